//! A stream of HBONE as what a codec speaks by, to an endpoint or with a client.
//!
//! It is to the codec what a socket would be. Its window follows what the codec has read; a reset of the stream, and whatever becomes of the connection below, is an error
//! and never an end. When the codec of an endpoint lets go of it, it ends as a socket that is closed: the endpoint sees FIN, and a reset if it goes on. One of a client's is reset
//! unless its codec has ended it: what was broken off must not look complete; and what a client goes on to say is thrown away for a while, so that it sees the last
//! answer (RFC 9112, section 9.6). For both the stream is kept until the other side has ended too, since one that nobody holds any more is reset.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use h2::Reason;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::either::Either;

use super::pool::slots::Slot;
use super::wire::{Moved, Pulse, Wire};
use crate::hbone::tunnel::Tunnel;
use crate::socket::Delivery;

/// What carries a connection of HTTP: a socket, or a stream of HBONE.
pub type Carried = Either<Wire, Box<Tunnelled>>;

/// How long the other side may take to end, when the codec has let go of it.
const FAREWELL: Duration = Duration::from_secs(5);

/// A client that has been told of the end, and says nothing for so long, has had time to see it (as of a socket, `farewell`).
const SILENCE: Duration = Duration::from_secs(1);

/// A tunnel to an endpoint, or a client's.
#[derive(Debug)]
pub struct Tunnelled {
    /// None only while it is dropped.
    tunnel: Option<Tunnel>,
    /// What came of the stream's last frame, and the codec has not read.
    unread: Bytes,
    has_ended: bool,
    resets: bool,
    moved: Arc<Moved>,
    /// What it takes of its cluster's limit on connections; none: it is a client's.
    slot: Option<Slot>,
}

impl Tunnelled {
    /// One that has carried nothing; `slot` is what it takes of its cluster's limit.
    pub fn new(tunnel: Tunnel, slot: Slot) -> Self {
        Self {
            tunnel: Some(tunnel),
            unread: Bytes::new(),
            has_ended: false,
            resets: false,
            moved: Arc::default(),
            slot: Some(slot),
        }
    }

    /// A client's.
    pub fn of_client(tunnel: Tunnel, moved: Arc<Moved>) -> Self {
        Self {
            tunnel: Some(tunnel),
            unread: Bytes::new(),
            has_ended: false,
            resets: false,
            moved,
            slot: None,
        }
    }

    /// One that is not there any more.
    pub fn gone() -> Self {
        Self {
            tunnel: None,
            unread: Bytes::new(),
            has_ended: true,
            resets: false,
            moved: Arc::default(),
            slot: None,
        }
    }

    /// Has `early`, which was read of it before, read again.
    pub fn put_back(&mut self, early: Bytes) {
        self.unread = match self.unread.is_empty() {
            true => early,
            false => [&early[..], &self.unread].concat().into(),
        };
    }

    /// The stream itself, of which no codec has had anything; none: it is gone.
    pub fn into_tunnel(mut self) -> Option<Tunnel> {
        let mut tunnel = self.tunnel.take()?;
        if !self.unread.is_empty() {
            tunnel.put_back_first(std::mem::take(&mut self.unread));
        }
        Some(tunnel)
    }

    /// Ready when there is something to read, or its end.
    pub fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.unread.is_empty() {
            match ready!(self.tunnel()?.poll_receive(cx)) {
                Some(Ok(bytes)) => self.unread = bytes,
                Some(Err(error)) => return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionReset, error))),
                None => {}
            }
        }
        Poll::Ready(Ok(()))
    }

    /// What tells of it.
    pub fn pulse(&self) -> Pulse {
        let standing = self.tunnel.as_ref().and_then(Tunnel::standing);
        Pulse::of_tunnel(self.moved.clone(), self.slot.as_ref().map(Slot::queue), standing)
    }

    /// How much of what was written the connection below has taken; a reset forgets the rest.
    pub fn delivery(&self) -> Delivery {
        self.tunnel.as_ref().map_or_else(Delivery::default, |tunnel| {
            let (given, taken) = tunnel.progress();
            Delivery {
                taken,
                is_waiting: taken < given,
                is_all: taken >= given,
            }
        })
    }

    /// Ready when the stream was reset, or the connection below is gone; also while nothing is read.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.tunnel {
            Some(tunnel) => tunnel.poll_gone(cx),
            None => Poll::Ready(()),
        }
    }

    /// Has it be reset when it is dropped.
    pub fn reset_on_drop(&mut self) {
        self.resets = true;
    }

    fn tunnel(&mut self) -> io::Result<&mut Tunnel> {
        self.tunnel.as_mut().ok_or_else(gone)
    }
}

impl AsyncRead for Tunnelled {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        ready!(this.poll_readable(cx))?;
        let length = this.unread.len().min(buf.remaining());
        buf.put_slice(&this.unread[..length]);
        this.unread.advance(length);
        this.tunnel()?.taken(length);
        this.moved.count_read(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tunnelled {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let tunnel = self.tunnel()?;
        let room = ready!(tunnel.poll_room(buf.len(), cx)).map_err(|_| gone())?;
        let length = room.min(buf.len());
        // The connection below keeps it until it has sent it.
        let piece = Bytes::copy_from_slice(&buf[..length]);
        tunnel.send(piece).map_err(|_| gone())?;
        self.moved.count_written(length);
        Poll::Ready(Ok(length))
    }

    fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // What was given is on its way. The codec waits: what room it has not used, others have.
        self.tunnel()?.give_back_room();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !std::mem::replace(&mut self.has_ended, true) {
            self.tunnel()?.end().map_err(|_| gone())?;
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for Tunnelled {
    fn drop(&mut self) {
        let Some(mut tunnel) = self.tunnel.take() else { return };
        let is_of_client = self.slot.is_none();
        let is_over = match is_of_client {
            true => self.resets || !self.has_ended,
            false => self.resets || !self.unread.is_empty() || (!self.has_ended && tunnel.end().is_err()),
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) if !is_over && is_of_client => {
                let unread = self.unread.len();
                drop(runtime.spawn(linger(tunnel, unread)));
            }
            Ok(runtime) if !is_over => drop(runtime.spawn(leave(tunnel))),
            _ => tunnel.reset(Reason::CANCEL),
        }
    }
}

/// Lets a client see the end before it is told that nobody hears what it still says; `unread` bytes of that are here already.
async fn linger(mut tunnel: Tunnel, unread: usize) {
    tunnel.taken(unread);
    let reading = async {
        while let Ok(Some(Ok(bytes))) = tokio::time::timeout(SILENCE, poll_fn(|cx| tunnel.poll_receive(cx))).await {
            tunnel.taken(bytes.len());
        }
    };
    let _ = tokio::time::timeout(FAREWELL, reading).await;
    // What it has ended itself, it does not hear of any more.
    tunnel.reset(Reason::NO_ERROR);
}

/// Lets the other side end as well. What it still says nobody hears, of which it is told.
async fn leave(mut tunnel: Tunnel) {
    let end = poll_fn(|cx| tunnel.poll_receive(cx));
    if !matches!(tokio::time::timeout(FAREWELL, end).await, Ok(None)) {
        tunnel.reset(Reason::CANCEL);
    }
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the tunnel is gone")
}
