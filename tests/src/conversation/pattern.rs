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

/// How many threads may write to one socket: what two bits of a byte can tell apart.
pub const MAX_VOICES: u8 = 4;
const VOICE_BITS: u32 = 6;
const REST: u8 = (1 << VOICE_BITS) - 1;

/// What one side says, by one thread or by several at once.
///
/// Where several threads write to a socket, the kernel may interleave them at any byte. So each byte says whose it is, in its highest
/// bits, and with the others where in that thread's own stream it belongs.
#[derive(Clone, Copy, Debug)]
pub struct Speech {
    key: u64,
    /// How many threads write, at most [`MAX_VOICES`].
    pub voices: u8,
}

impl Speech {
    /// The stream of one thread; streams of different keys have nothing in common.
    pub fn new(key: u64) -> Self {
        Self { key, voices: 1 }
    }

    /// Fills `buffer` with what `voice` says from its `position` on.
    pub fn fill(self, voice: u8, position: u64, buffer: &mut [u8]) {
        self.of(voice).fill(position, buffer);
        if self.voices > 1 {
            for byte in buffer {
                *byte = (*byte & REST) | (voice << VOICE_BITS);
            }
        }
    }

    fn of(self, voice: u8) -> Pattern {
        Pattern::new(self.key.wrapping_add(u64::from(voice)))
    }
}

/// Listens to a [`Speech`] from its beginning.
pub struct Listener {
    speech: Speech,
    heard: [u64; MAX_VOICES as usize],
}

impl Listener {
    /// Nothing heard yet.
    pub fn new(speech: Speech) -> Self {
        Self {
            speech,
            heard: [0; MAX_VOICES as usize],
        }
    }

    /// Hears the next bytes; answers the position in the whole of the first that is not what it should be.
    pub fn hear(&mut self, bytes: &[u8]) -> Option<u64> {
        let before: u64 = self.heard.iter().sum();
        if self.speech.voices == 1 {
            self.heard[0] += bytes.len() as u64;
            return self.speech.of(0).mismatch(before, bytes);
        }
        for voice in 0..=u8::MAX >> VOICE_BITS {
            let is_its = |byte: &&u8| **byte >> VOICE_BITS == voice;
            let said: Vec<u8> = bytes.iter().filter(is_its).copied().collect();
            let heard = &mut self.heard[usize::from(voice)];
            let mut expected = vec![0; said.len()];
            self.speech.fill(voice, *heard, &mut expected);
            *heard += said.len() as u64;
            if voice >= self.speech.voices && !said.is_empty() || said != expected {
                return Some(before);
            }
        }
        None
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

    #[test]
    fn voices_may_interleave_but_not_lose_or_swap_a_byte() {
        let mut speech = Speech::new(7);
        speech.voices = 3;
        let [mut one, mut two] = [[0; 100]; 2];
        speech.fill(0, 0, &mut one);
        speech.fill(2, 0, &mut two);
        let (head, tail) = one.split_at(30);
        let mixed = [head, &two, tail].concat();
        assert_eq!(Listener::new(speech).hear(&mixed), None);
        let mut cut = Listener::new(speech);
        assert_eq!(cut.hear(&mixed[..50]), None);
        assert_eq!(cut.hear(&mixed[50..]), None);
        for broken in [
            [head, &two[1..], tail].concat(),
            [head, &two, &tail[1..]].concat(),
            [tail, &two, head].concat(),
            [head, head, &two, tail].concat(),
        ] {
            assert!(Listener::new(speech).hear(&broken).is_some());
        }
    }
}
