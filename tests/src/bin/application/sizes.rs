//! What clients send, and in what pieces.

use std::io;

use underpass_tests::conversation::Pattern;

/// The largest piece.
pub(crate) const LARGEST: usize = 128 * 1024;

/// What the connection `number` sends.
pub(crate) fn pattern(number: usize) -> Pattern {
    Pattern::new(0x5eed + number as u64)
}

/// The size of a piece: small ones and large ones, each kind often.
pub(crate) fn piece() -> usize {
    fastrand::usize(1..=1 << fastrand::u32(0..=LARGEST.ilog2()))
}

/// An error unless `bytes` are what the connection `number` has sent from `position` on.
pub(crate) fn verify(number: usize, position: usize, bytes: &[u8]) -> io::Result<()> {
    match pattern(number).mismatch(position as u64, bytes) {
        None => Ok(()),
        Some(at) => Err(io::Error::other(format!("byte {at} of the echo is wrong"))),
    }
}
