//! Bytes that know their position: a byte lost, doubled, swapped or from another connection is found where it happened.

/// An endless stream of bytes, each determined by the stream's key and its position.
#[derive(Clone, Copy, Debug)]
pub struct Pattern(u64);

impl Pattern {
    /// The stream of this key; streams of different keys have nothing in common.
    pub fn new(key: u64) -> Self {
        Self(key)
    }

    /// Fills `buffer` with the bytes from `position` on.
    pub fn fill(self, position: u64, buffer: &mut [u8]) {
        let mut position = position;
        let mut rest = buffer;
        while !rest.is_empty() {
            let word = self.word(position / 8).to_le_bytes();
            let skip = (position % 8) as usize;
            let length = rest.len().min(8 - skip);
            let (now, later) = rest.split_at_mut(length);
            now.copy_from_slice(&word[skip..skip + length]);
            position += length as u64;
            rest = later;
        }
    }

    /// The position of the first byte of `bytes`, which are claimed to start at `position`, that is not the stream's.
    pub fn mismatch(self, position: u64, bytes: &[u8]) -> Option<u64> {
        let mut expected = vec![0; bytes.len()];
        self.fill(position, &mut expected);
        if expected == bytes {
            return None;
        }
        let at = expected.iter().zip(bytes).position(|(a, b)| a != b)?;
        Some(position + at as u64)
    }

    /// SplitMix64 of the position: neighbouring words share no structure that a copying error could preserve.
    fn word(self, number: u64) -> u64 {
        let mut z = self.0.wrapping_add(number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_cut_of_the_stream_is_the_same_stream() {
        let pattern = Pattern::new(7);
        let mut whole = vec![0; 100];
        pattern.fill(0, &mut whole);
        for start in 0..20 {
            for end in start..100 {
                assert_eq!(pattern.mismatch(start as u64, &whole[start..end]), None);
            }
        }
    }

    #[test]
    fn a_shift_a_swap_and_a_foreign_stream_are_found() {
        let pattern = Pattern::new(7);
        let mut bytes = vec![0; 64];
        pattern.fill(0, &mut bytes);
        assert!(pattern.mismatch(1, &bytes).is_some());
        bytes.swap(10, 40);
        assert_eq!(pattern.mismatch(0, &bytes), Some(10));
        bytes.swap(10, 40);
        assert!(Pattern::new(8).mismatch(0, &bytes).is_some());
    }
}
