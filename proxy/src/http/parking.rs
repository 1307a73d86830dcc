//! Connections of HTTP/1.1 that nobody asks anything by hold no codec.
//!
//! hyper's keeps two buffers of 8 KiB for each, used or not. A connection whose requests are all answered and by which nothing moves gives its codec back, and has
//! another when there is something to read. That is only sound between two messages: a codec that goes takes with it what it knows of the one that it is
//! reading, and the rest of a body would be taken for a request.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use tokio::time::Instant;

/// What is left of a codec.
#[derive(Debug)]
pub struct Parked {
    /// What it has read and not understood yet.
    pub unread: Bytes,
    /// Since when nothing has moved.
    pub since: Instant,
}

/// Bodies of a connection's requests that are being read, or may be.
#[derive(Debug, Default)]
pub struct OpenBodies(Arc<AtomicU32>);

/// One of them, until it is dropped. When that is before its end, the codec closes the connection, or resets the stream.
#[derive(Debug)]
pub struct BodyOpen(Arc<AtomicU32>);

impl OpenBodies {
    /// How many there are.
    pub fn count(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }

    /// One more.
    pub fn one_more(&self) -> BodyOpen {
        self.0.fetch_add(1, Ordering::Relaxed);
        BodyOpen(self.0.clone())
    }
}

impl Drop for BodyOpen {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
