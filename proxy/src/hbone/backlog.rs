//! What a stream has brought and its receiver does not take yet.
//!
//! The codec keeps a note of some 250 bytes for each frame that was not read from it, and resets the *connection*, with all streams of it, when its notes
//! have become many (`DataFrameBudget` in h2's `proto/connection.rs`): a few streams of tiny messages with slow readers would end their neighbours.
//! A frame also holds on to the whole buffer that it was received into. So frames are read at once, and small ones are copied together; what this
//! holds is what the peer has sent, and the peer's window says how much that may be.

use std::collections::VecDeque;

use bytes::{Buf, Bytes, BytesMut};

/// Less than this is copied. It costs a stream whose receiver does not read one copy of its bytes.
const COPIED: usize = 16 << 10;

/// Bytes in order. One frame, which is taken at once as nearly all are, costs neither a copy nor an allocation.
#[derive(Debug, Default)]
pub struct Backlog {
    length: usize,
    first: Bytes,
    /// Whether nobody else holds on to what `first` is part of.
    is_own: bool,
    /// Behind that.
    whole: VecDeque<Bytes>,
    /// Behind those.
    copied: BytesMut,
}

impl Backlog {
    /// One more frame.
    pub fn push(&mut self, bytes: Bytes) {
        let (was_empty, length) = (self.is_empty(), bytes.len());
        self.length += length;
        if was_empty {
            (self.first, self.is_own) = (bytes, false);
        } else if length < COPIED {
            self.copied.extend_from_slice(&bytes);
        } else {
            if !self.copied.is_empty() {
                // It comes before what follows.
                self.whole.push_back(self.copied.split().freeze());
            }
            self.whole.push_back(bytes);
        }
    }

    /// What is there will stay for a while.
    pub fn keep(&mut self) {
        if !self.is_own && self.first.len() < COPIED {
            self.first = Bytes::copy_from_slice(&self.first);
        }
        self.is_own = true;
    }

    /// How many bytes there are.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// What comes first; empty only when there is nothing.
    pub fn front(&self) -> &[u8] {
        &self.first
    }

    /// Takes all of [`Backlog::front`].
    pub fn pop(&mut self) -> Option<Bytes> {
        let first = self.first.clone();
        self.advance(first.len());
        (!first.is_empty()).then_some(first)
    }

    /// The first `count` bytes of [`Backlog::front`] are taken.
    pub fn advance(&mut self, count: usize) {
        self.length -= count;
        self.first.advance(count);
        if self.first.is_empty() && !self.is_empty() {
            // Of what it held at its fullest, nothing stays.
            let copied = || std::mem::take(&mut self.copied).freeze();
            self.first = self.whole.pop_front().unwrap_or_else(copied);
            self.is_own = true;
        }
        if self.whole.is_empty() && self.whole.capacity() > 0 {
            self.whole = VecDeque::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_goes_in_comes_out_in_order(
            frames in prop::collection::vec(0_usize..3 * COPIED, 0..12),
            takes in prop::collection::vec(1_usize..2 * COPIED, 0..40),
        ) {
            let (mut backlog, mut given, mut got) = (Backlog::default(), Vec::<u8>::new(), Vec::<u8>::new());
            let (mut frames, mut takes) = (frames.into_iter().enumerate(), takes.into_iter().cycle());
            loop {
                let frame = frames.next();
                if let Some((number, length)) = frame {
                    let bytes: Vec<u8> = (0..length).map(|byte| (byte + 31 * number) as u8).collect();
                    given.extend(&bytes);
                    backlog.push(bytes.into());
                    if number % 3 == 0 {
                        backlog.keep();
                    }
                }
                let count = takes.next().unwrap_or(COPIED).min(backlog.front().len());
                got.extend(&backlog.front()[..count]);
                if count > 0 {
                    backlog.advance(count);
                }
                prop_assert_eq!(backlog.is_empty(), backlog.front().is_empty());
                if frame.is_none() && backlog.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(given, got);
        }
    }
}
