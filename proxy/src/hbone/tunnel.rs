//! One CONNECT stream of an HBONE connection, as an end of a proxied connection.
//!
//! It has the same four operations as a socket (receive, send, end, reset), and the same backpressure: the peer may send on only when the bytes that
//! were received have been [taken](Tunnel::taken) by somebody, and we may send only what [there is room](Tunnel::poll_room) for.
//!
//! **Room is not hoarded.** The codec reserves a stream's room out of the connection's, which all its streams share. A tunnel that waits for
//! its sender gives back what it had reserved, so that idle streams leave all of it to busy ones.

use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};

use super::backlog::Backlog;
use super::chunk::{Chunk, Progress};
use super::pool::Standing;
use super::streams::StreamPlace;
use super::windows::Held;
use crate::room::poll_room;

/// The two halves of a stream.
#[derive(Debug)]
pub struct Tunnel {
    send: SendStream<Chunk>,
    receive: RecvStream,
    progress: Arc<Progress>,
    given: u64,
    ends_on_drop: bool,
    held: Held,
    /// What came before the stream was a tunnel; it has been received already.
    early: Backlog,
    /// Where the connection leads from and to, seen from here.
    pub connection: Ends,
    /// Its place among the streams of a pooled connection, and how that stands.
    pooled: Option<(StreamPlace, Standing)>,
}

/// The two addresses of the TCP connection that carries a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// Ours.
    pub local: SocketAddr,
    /// The peer's.
    pub peer: SocketAddr,
}

impl Tunnel {
    /// A stream on which both sides have agreed. `held` is what has been read of it before.
    pub fn new(
        send: SendStream<Chunk>,
        receive: RecvStream,
        connection: Ends,
        held: Held,
        pooled: Option<(StreamPlace, Standing)>,
    ) -> Self {
        Self {
            send,
            receive,
            held,
            early: Backlog::default(),
            progress: Arc::default(),
            given: 0,
            ends_on_drop: false,
            connection,
            pooled,
        }
    }

    /// How the pooled connection stands that it is a stream of.
    pub fn standing(&self) -> Option<Standing> {
        self.pooled.as_ref().map(|(_, standing)| standing.clone())
    }

    /// How many bytes were sent, and how many of them the connection has taken.
    pub fn progress(&self) -> (u64, u64) {
        (self.given, self.progress.taken())
    }

    /// Reads what is there; `None` is the end of the stream.
    ///
    /// # Errors
    /// When the stream was reset, or its connection broke. What came before has been read by then.
    pub fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, h2::Error>>> {
        if let Some(bytes) = self.early.pop() {
            return Poll::Ready(Some(Ok(bytes)));
        }
        loop {
            match ready!(self.receive.poll_data(cx)) {
                // A frame of padding only, or one that is there for its END_STREAM.
                Some(Ok(bytes)) if bytes.is_empty() => {}
                Some(Ok(bytes)) => {
                    self.held.received(bytes.len());
                    return Poll::Ready(Some(Ok(bytes)));
                }
                ended => return Poll::Ready(ended),
            }
        }
    }

    /// Has [`poll_receive`](Self::poll_receive) give first what was read before.
    pub fn put_back(&mut self, early: Backlog) {
        self.early = early;
    }

    /// The same for what was read first of all, before what has been put back already.
    pub fn put_back_first(&mut self, first: Bytes) {
        let mut rest = std::mem::take(&mut self.early);
        self.early.push(first);
        while let Some(bytes) = rest.pop() {
            self.early.push(bytes);
        }
    }

    /// Somebody has taken `count` of the bytes that were received: the peer may send as many more.
    pub fn taken(&mut self, count: usize) {
        // Fails only for bytes that were never received.
        let _ = self.receive.flow_control().release_capacity(count);
        self.held.taken(count);
    }

    /// How many bytes may be sent now, at least one and not many more than `wanted`.
    ///
    /// # Errors
    /// When nothing can be sent any more.
    pub fn poll_room(&mut self, wanted: usize, cx: &mut Context<'_>) -> Poll<Result<usize, Gone>> {
        poll_room(&mut self.send, wanted, cx).map(|room| room.ok_or(Gone))
    }

    /// Gives back the room that was asked for.
    pub fn give_back_room(&mut self) {
        self.send.reserve_capacity(0);
    }

    /// Sends bytes, of which there must be no more than there was room for.
    ///
    /// # Errors
    /// When nothing can be sent any more.
    pub fn send(&mut self, bytes: Bytes) -> Result<(), Gone> {
        let length = bytes.len() as u64;
        self.send
            .send_data(Chunk::new(bytes, &self.progress), false)
            .map_err(|_| Gone)?;
        self.given += length;
        Ok(())
    }

    /// Ready when the connection has taken all that was sent. What it has not taken is forgotten by a reset.
    pub fn poll_flushed(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.progress.poll_taken(self.given, cx)
    }

    /// Ends our half of the stream, after what was sent.
    ///
    /// # Errors
    /// When nothing can be sent any more.
    pub fn end(&mut self) -> Result<(), Gone> {
        let nothing = Chunk::new(Bytes::new(), &self.progress);
        self.send.send_data(nothing, true).map_err(|_| Gone)
    }

    /// Has our half end when this is dropped, by when whoever sees the end can already see its trace. Without it a drop resets what has not ended.
    pub fn end_on_drop(&mut self) {
        self.ends_on_drop = true;
    }

    /// Resets the stream. What the connection has not taken is not sent.
    pub fn reset(&mut self, reason: Reason) {
        self.ends_on_drop = false;
        self.send.send_reset(reason);
    }

    /// Ready when the peer has reset the stream, or the connection broke; also while nothing is received from it.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.send.poll_reset(cx).map(drop)
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        if self.ends_on_drop {
            // Fails when the stream has been reset meanwhile: then the peer knows already.
            let _ = self.end();
        }
    }
}

/// The stream takes nothing any more: it was reset, or its connection broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone;
