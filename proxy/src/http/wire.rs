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
    pub fn of_tunnel(moved: Arc<Moved>, queue: Option<Arc<Queue>>, standing: Option<Standing>) -> Self {
        Self {
            socket: Weak::new(),
            moved,
            queue,
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

    /// The socket, as long as it is there.
    pub fn socket(&self) -> Weak<Stream> {
        self.socket.clone()
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
    /// What is still heard of a peer that is gone.
    hearing: Hearing,
    /// How it is gone, once it is.
    gone: Option<io::ErrorKind>,
}

/// How a peer is gone that has said so.
const END: io::ErrorKind = io::ErrorKind::UnexpectedEof;

/// What becomes of what a peer has said before it went. An endpoint may answer before it has the whole request, and close: then what the
/// proxy goes on to send is refused, before the answer is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hearing {
    /// Its codec is told at once, and hears no more.
    Cut,
    /// All of it is read first. What is written meanwhile waits, and is never taken.
    Out,
    /// Those whom its last words are for have a turn before the end is told.
    Turn,
}

impl Wire {
    /// `socket`, from which `early` was read, and counted.
    pub fn new(socket: Arc<Stream>, early: Bytes, moved: Arc<Moved>) -> Self {
        Self {
            socket,
            early,
            moved,
            slot: None,
            hearing: Hearing::Cut,
            gone: None,
        }
    }

    /// Has all that the peer has sent read before it is told that it takes no more.
    pub fn hear_out(&mut self) {
        self.hearing = Hearing::Out;
    }

    /// Has an end told at once again.
    pub fn hear_no_more(&mut self) {
        self.hearing = Hearing::Cut;
    }

    /// Has those that the peer's last words are for see them before they see its end, where one task reads for many.
    pub fn end_a_turn_later(&mut self) {
        self.hearing = Hearing::Turn;
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

    /// Notes that the peer is gone, and says whether its codec is to go on as if it were not, for now.
    fn is_heard(&mut self, error: io::ErrorKind, cx: &mut Context<'_>) -> bool {
        let is_news = self.gone.is_none();
        let is_heard = match self.hearing {
            Hearing::Cut => false,
            Hearing::Out => matches!(error, io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset),
            Hearing::Turn => is_news,
        };
        if is_heard {
            self.gone = Some(error);
            // It reads on.
            cx.waker().wake_by_ref();
        }
        is_heard
    }

    /// What becomes of a write, when the peer is gone already.
    fn poll_gone(&self) -> Option<Poll<io::Result<usize>>> {
        match (self.hearing, self.gone?) {
            (Hearing::Out, _) => Some(Poll::Pending),
            (Hearing::Cut, error) => Some(Poll::Ready(Err(error.into()))),
            // One that has ended its own stream may still take something.
            (Hearing::Turn, _) => None,
        }
    }

    fn count_written(&mut self, written: Poll<io::Result<usize>>, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Err(error)) = &written
            && self.is_heard(error.kind(), cx)
        {
            return Poll::Pending;
        }
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
        let gone = self.gone;
        let received = match ready!(self.socket.poll_fill(cx, buf)) {
            Ok(received) if received.length > 0 || buf.remaining() == 0 => received,
            // The kernel tells of a reset once: to whoever wrote, and whoever reads then sees an end like any.
            Ok(end) => match gone {
                Some(END) => end,
                Some(error) => return Poll::Ready(Err(error.into())),
                None if self.hearing == Hearing::Turn && self.is_heard(END, cx) => return Poll::Pending,
                None => end,
            },
            Err(error) if self.hearing == Hearing::Turn && self.is_heard(error.kind(), cx) => return Poll::Pending,
            Err(error) => return Poll::Ready(Err(error)),
        };
        self.moved.count_read(received.length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if let Some(gone) = self.poll_gone() {
            return gone;
        }
        let written = self.socket.poll_send(cx, buf, false);
        self.count_written(written, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Some(gone) = self.poll_gone() {
            return gone;
        }
        let written = self.socket.poll_send_vectored(cx, bufs);
        self.count_written(written, cx)
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
