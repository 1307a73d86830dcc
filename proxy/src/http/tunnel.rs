//! What an HTTP/1.1 connection becomes when both ends have changed to another protocol (WebSocket): bytes, both ways.

use std::io;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::forward::Holds;
use super::pool::Lease;

/// Both ends of it.
#[derive(Debug)]
pub struct Tunnel {
    downstream: OnUpgrade,
    upstream: OnUpgrade,
    _lease: Lease,
    _holds: Holds,
}

impl Tunnel {
    /// Of a client and an endpoint that have agreed.
    pub fn new(downstream: OnUpgrade, upstream: OnUpgrade, lease: Lease, holds: Holds) -> Self {
        Self {
            downstream,
            upstream,
            _lease: lease,
            _holds: holds,
        }
    }

    /// Moves bytes until both have ended, and says how many went each way: from the client, to it.
    ///
    /// # Errors
    /// When one of them breaks off.
    pub async fn run(self) -> io::Result<(u64, u64)> {
        let downstream = self.downstream.await.map_err(io::Error::other)?;
        let upstream = self.upstream.await.map_err(io::Error::other)?;
        let (mut downstream, mut upstream) = (TokioIo::new(downstream), TokioIo::new(upstream));
        tokio::io::copy_bidirectional(&mut downstream, &mut upstream).await
    }
}
