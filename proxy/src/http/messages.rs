//! Messages of gRPC in a body, counted as they pass (PROTOCOL-HTTP2.md, `Length-Prefixed-Message`): a byte of flags, four of length, the message.

/// Bytes before a message.
const PREFIX: usize = 5;

/// Where a body is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Messages {
    /// Messages that have begun with a whole prefix.
    count: u64,
    /// What has come of a prefix.
    prefix: [u8; PREFIX],
    has: usize,
    /// What is to come of a message.
    left: u64,
}

impl Messages {
    /// How many there were.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Takes the next bytes of the body.
    pub fn pass(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.left > 0 {
                let of_message = bytes.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
                self.left -= of_message as u64;
                bytes = &bytes[of_message..];
                continue;
            }
            let (of_prefix, rest) = bytes.split_at(bytes.len().min(PREFIX - self.has));
            self.prefix[self.has..self.has + of_prefix.len()].copy_from_slice(of_prefix);
            self.has += of_prefix.len();
            bytes = rest;
            if self.has == PREFIX {
                let [_, length @ ..] = self.prefix;
                self.left = u64::from(u32::from_be_bytes(length));
                self.has = 0;
                self.count += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// However a body is cut into pieces, the messages are the same.
        #[test]
        fn messages_are_counted_whatever_the_pieces(lengths in prop::collection::vec(0usize..40, 0..20), piece in 1usize..17) {
            let mut body = Vec::new();
            for length in &lengths {
                body.push(0);
                body.extend_from_slice(&(*length as u32).to_be_bytes());
                body.extend(std::iter::repeat_n(7, *length));
            }
            let mut messages = Messages::default();
            body.chunks(piece).for_each(|piece| messages.pass(piece));
            prop_assert_eq!(messages.count(), lengths.len() as u64);
        }
    }

    #[test]
    fn a_prefix_that_breaks_off_is_no_message() {
        let mut messages = Messages::default();
        messages.pass(&[0, 0, 0, 0, 2, 1, 1, 0, 0]);
        assert_eq!(messages.count(), 1);
        messages.pass(&[0, 0xff, 0xff]);
        messages.pass(&[1; 100]);
        assert_eq!(messages.count(), 2);
    }
}
