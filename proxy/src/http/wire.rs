//! The bytes under a codec: a socket, perhaps with bytes that were read from it already, that counts what it moves.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::pool::slots::{Queue, Slot};
use crate::hbone::pool::Standing;
use crate::socket;
use crate::stream::Stream;

/// What one socket has moved.
#[derive(Debug, Default)]
pub struct Moved {
    read: AtomicU64,
    written: AtomicU64,
    is_stuck: AtomicBool,
}

impl Moved {
    /// Bytes that its peer sent.
    pub fn read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// Notes that its peer sent so many more.
    pub fn count_read(&self, length: usize) {
        self.read.fetch_add(length as u64, Ordering::Relaxed);
    }

    /// Notes that it was sent so many more.
    pub fn count_written(&self, length: usize) {
        self.written.fetch_add(length as u64, Ordering::Relaxed);
    }

    /// Whether something waits to be written that the peer has no room for.
    pub fn is_stuck(&self) -> bool {
        self.is_stuck.load(Ordering::Relaxed)
    }

    /// Bytes moved in both directions.
    pub fn total(&self) -> u64 {
        self.read().wrapping_add(self.written.load(Ordering::Relaxed))
    }
}

/// What can be told of a socket that a codec has, or has had: it keeps nothing open.
#[derive(Clone, Debug)]
pub struct Pulse {
    socket: Weak<Stream>,
    moved: Arc<Moved>,
    queue: Option<Arc<Queue>>,
    /// How the connection below stands, where it is a tunnel's.
    standing: Option<Standing>,
}

/// A socket that is to be asked about later, whatever its codec does with it meanwhile.
#[derive(Debug)]
pub struct Kept {
    socket: Arc<Stream>,
    written: u64,
}

impl Pulse {
    /// That of a tunnel, which has no socket of its own.
    pub fn of_tunnel(moved: Arc<Moved>, queue: Arc<Queue>, standing: Option<Standing>) -> Self {
        Self {
            socket: Weak::new(),
            moved,
            queue: Some(queue),
            standing,
        }
    }

    /// Whether what is below may carry another request: a tunnel's connection whose peer goes, or whose certificates no longer stand, may not.
    pub fn is_good(&self) -> bool {
        self.standing.as_ref().is_none_or(Standing::is_good)
    }

    /// Whether somebody waits for a connection of its cluster to go.
    pub fn is_wanted(&self) -> bool {
        self.queue.as_ref().is_some_and(|queue| queue.is_waited_in())
    }

    /// Bytes moved in both directions.
    pub fn moved(&self) -> u64 {
        self.moved.total()
    }

    /// Keeps the socket from now on, if it is still there.
    pub fn keep(&self) -> Option<Kept> {
        Some(Kept {
            socket: self.socket.upgrade()?,
            written: self.moved.written.load(Ordering::Relaxed),
        })
    }
}

impl Kept {
    /// Whether the peer's kernel has acknowledged nothing that was written since it was kept. Then its application has probably seen nothing of it:
    /// acknowledgements are delayed, and that of a reset is not counted (`tcp_reset` comes before `tcp_ack`).
    pub fn was_not_received(&self) -> bool {
        // The SYN counts as one; a kernel that does not answer says zero.
        let taken = socket::delivery(&*self.socket).taken;
        taken > 0 && taken <= self.written + 1
    }
}

/// One task's hold on a socket.
#[derive(Debug)]
pub struct Wire {
    socket: Arc<Stream>,
    early: Bytes,
    moved: Arc<Moved>,
    /// What it takes of its cluster's limit on connections, until it is closed.
    slot: Option<Slot>,
}

impl Wire {
    /// `socket`, from which `early` was read, and counted.
    pub fn new(socket: Arc<Stream>, early: Bytes, moved: Arc<Moved>) -> Self {
        Self {
            socket,
            early,
            moved,
            slot: None,
        }
    }

    /// The same, with what it takes of a limit.
    pub fn holding(mut self, slot: Slot) -> Self {
        self.slot = Some(slot);
        self
    }

    /// The socket.
    pub fn socket(&self) -> &Arc<Stream> {
        &self.socket
    }

    /// What was read early, and nobody has taken.
    pub fn unread(&self) -> &[u8] {
        &self.early
    }

    /// What tells of the socket.
    pub fn pulse(&self) -> Pulse {
        Pulse {
            socket: Arc::downgrade(&self.socket),
            moved: self.moved.clone(),
            queue: self.slot.as_ref().map(Slot::queue),
            standing: None,
        }
    }

    fn count_written(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if self.moved.is_stuck() != written.is_pending() {
            self.moved.is_stuck.store(written.is_pending(), Ordering::Relaxed);
        }
        let length = ready!(written)?;
        self.moved.count_written(length);
        Poll::Ready(Ok(length))
    }
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.early.is_empty() {
            let length = self.early.len().min(buf.remaining());
            buf.put_slice(&self.early[..length]);
            self.early.advance(length);
            return Poll::Ready(Ok(()));
        }
        let received = ready!(self.socket.poll_fill(cx, buf))?;
        self.moved.count_read(received.length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.count_written(self.socket.poll_send(cx, buf, false))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.count_written(self.socket.poll_send_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.socket.end())
    }
}
