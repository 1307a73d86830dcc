//! Connections of HTTP/1.1 that nobody asks anything by hold no codec.
//!
//! hyper's keeps two buffers of 8 KiB for each, used or not. A connection whose requests are all answered and by which nothing moves gives its codec back, and has
//! another when there is something to read. That is only sound between two messages: a codec that goes takes with it what it knows of the one that it is
//! reading, and the rest of a body would be taken for a request.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use tokio::time::Instant;

use super::connection::Connection;

/// What is left of a codec.
#[derive(Debug)]
pub struct Parked {
    /// What it has read and not understood yet.
    pub unread: Bytes,
    /// Since when nothing has moved.
    pub since: Instant,
}

/// What a connection knows of its requests' bodies.
#[derive(Debug, Default)]
pub struct Parking {
    bodies: AtomicU32,
}

impl Parking {
    /// Whether a request's body is being read, or may be: then the codec knows where it ends, and nobody else.
    pub fn is_body_open(&self) -> bool {
        self.bodies.load(Ordering::Relaxed) > 0
    }
}

/// A request's body that somebody reads. When it is dropped before its end, the codec closes the connection.
#[derive(Debug)]
pub struct BodyOpen(Arc<Connection>);

impl BodyOpen {
    /// One of a request that came by `connection`.
    pub fn of(connection: &Arc<Connection>) -> Self {
        connection.parking.bodies.fetch_add(1, Ordering::Relaxed);
        Self(connection.clone())
    }
}

impl Drop for BodyOpen {
    fn drop(&mut self) {
        self.0.parking.bodies.fetch_sub(1, Ordering::Relaxed);
    }
}
