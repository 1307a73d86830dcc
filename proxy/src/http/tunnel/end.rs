//! One end of a tunnel: a connection of its own, or a stream of HTTP/2 or HBONE.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::FAREWELL;
use crate::hbone::backlog::Backlog;
use crate::hbone::tunnel::Tunnel;
use crate::http::pool::stream::Stream;
use crate::http::tunnelled::Carried;
use crate::room::poll_room;
use crate::stream::Stream as Socket;

/// What is read at once of a connection, in bytes.
const PIECE: usize = 16 * 1024;

/// How often it is looked whether the last bytes have arrived.
const LOOK: Duration = Duration::from_millis(10);

/// One end of it. One that is dropped before both ways have ended is reset.
#[derive(Debug)]
pub struct End {
    kind: Kind,
    /// What its peer gets to know of a reset.
    pub(super) reason: Reason,
    /// Both ways have ended: it is not reset.
    pub(super) is_complete: bool,
}

#[derive(Debug)]
enum Kind {
    /// A connection of its own, of which `early` was read before.
    Connection { stream: Stream, early: Bytes },
    /// A stream of HTTP/2.
    Stream {
        send: SendStream<Bytes>,
        receive: RecvStream,
        unsent: Arc<AtomicUsize>,
    },
    /// A client's stream of HBONE.
    Tunnel(Box<Opened>),
}

/// A stream of HBONE that a client has opened. What it brings is passed on as it came.
#[derive(Debug)]
struct Opened {
    tunnel: Tunnel,
    /// Was read before it was clear what becomes of it.
    early: Bytes,
    /// How many of the bytes that are given on have been given back to the client's window already.
    is_free: usize,
    /// Was read because nobody takes it: the codec must not keep it ([`Backlog`]).
    unread: Backlog,
    /// It has ended behind that: as its client wanted, or not.
    has_ended: Option<bool>,
    has_been_ended: bool,
}

impl Opened {
    /// Reads what is there; `None` is the end.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        if !self.early.is_empty() {
            return Poll::Ready(Ok(Some(std::mem::take(&mut self.early))));
        }
        if let Some(bytes) = self.unread.pop() {
            return Poll::Ready(Ok(Some(bytes)));
        }
        if self.has_ended.is_none() {
            match ready!(self.tunnel.poll_receive(cx)) {
                Some(Ok(bytes)) => return Poll::Ready(Ok(Some(bytes))),
                ended => self.has_ended = Some(ended.is_none()),
            }
        }
        Poll::Ready(match self.has_ended {
            Some(true) => Ok(None),
            _ => Err(io::ErrorKind::ConnectionReset.into()),
        })
    }

    /// Reads all that is there, which the client's window bounds.
    fn gather(&mut self, cx: &mut Context<'_>) {
        while self.has_ended.is_none() {
            match self.tunnel.poll_receive(cx) {
                Poll::Ready(Some(Ok(bytes))) => self.unread.push(bytes),
                Poll::Ready(ended) => self.has_ended = Some(ended.is_none()),
                Poll::Pending => break,
            }
        }
        self.unread.keep();
    }

    fn taken(&mut self, count: usize) {
        let free = self.is_free.min(count);
        self.is_free -= free;
        self.tunnel.taken(count - free);
    }

    fn poll_write(&mut self, bytes: &Bytes, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let room = ready!(self.tunnel.poll_room(bytes.len(), cx)).map_err(|_| gone())?;
        let length = room.min(bytes.len());
        self.tunnel.send(bytes.slice(..length)).map_err(|_| gone())?;
        Poll::Ready(Ok(length))
    }

    /// Ready when the connection below has taken all of it: until then it is in nobody's account but its flow's.
    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !std::mem::replace(&mut self.has_been_ended, true) {
            self.tunnel.end().map_err(|_| gone())?;
        }
        self.tunnel.poll_flushed(cx).map(Ok)
    }
}

/// Bytes that the codec has, until it has written them.
struct Unsent {
    bytes: Bytes,
    all: Arc<AtomicUsize>,
}

impl Unsent {
    fn track(bytes: Bytes, all: &Arc<AtomicUsize>) -> Bytes {
        all.fetch_add(bytes.len(), Ordering::Relaxed);
        let all = all.clone();
        Bytes::from_owner(Self { bytes, all })
    }
}

impl AsRef<[u8]> for Unsent {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Unsent {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes.len(), Ordering::Relaxed);
    }
}

impl End {
    fn new(kind: Kind) -> Self {
        Self {
            kind,
            reason: Reason::CANCEL,
            is_complete: false,
        }
    }

    /// A connection that has carried nothing.
    pub fn connection(stream: Stream) -> Self {
        let early = Bytes::new();
        Self::new(Kind::Connection { stream, early })
    }

    /// A stream of HTTP/2 whose heads are exchanged.
    pub fn stream(send: SendStream<Bytes>, receive: RecvStream) -> Self {
        let unsent = Arc::default();
        Self::new(Kind::Stream { send, receive, unsent })
    }

    /// A client's stream of HBONE, of which `early` was read before, and given back to its window.
    pub fn tunnel(tunnel: Tunnel, early: Bytes) -> Self {
        Self::new(Kind::Tunnel(Box::new(Opened {
            tunnel,
            is_free: early.len(),
            early,
            unread: Backlog::default(),
            has_ended: None,
            has_been_ended: false,
        })))
    }

    /// A client's connection that has spoken HTTP/1.1.
    ///
    /// # Errors
    /// When it is none.
    pub fn of_client(upgraded: Upgraded) -> io::Result<Self> {
        let parts = upgraded.downcast::<TokioIo<Carried>>().map_err(|_| unknown())?;
        Ok(Self::new(Kind::Connection {
            stream: Stream::Plain(parts.io.into_inner()),
            early: parts.read_buf,
        }))
    }

    /// An endpoint's connection that has spoken HTTP/1.1.
    ///
    /// # Errors
    /// When it is none.
    pub fn of_endpoint(upgraded: Upgraded) -> io::Result<Self> {
        let parts = upgraded.downcast::<TokioIo<Stream>>().map_err(|_| unknown())?;
        let mut stream = parts.io.into_inner();
        if let Some(wire) = stream.wire_mut() {
            wire.hear_no_more();
        }
        Ok(Self::new(Kind::Connection {
            stream,
            early: parts.read_buf,
        }))
    }

    /// Has its peer know this of a reset.
    pub fn reset_with(&mut self, reason: Reason) {
        self.reason = reason;
    }

    /// The socket below, if it is this end's own.
    pub fn socket(&self) -> Option<Arc<Socket>> {
        match &self.kind {
            Kind::Connection { stream, .. } => stream.socket().cloned(),
            Kind::Stream { .. } | Kind::Tunnel(_) => None,
        }
    }

    /// Reads what is there; `None` is the end.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        match &mut self.kind {
            Kind::Connection { early, .. } if !early.is_empty() => Poll::Ready(Ok(Some(std::mem::take(early)))),
            Kind::Connection { stream, .. } => {
                // A tunnel that is idle holds no buffer.
                let mut piece = [0; PIECE];
                let mut buffer = ReadBuf::new(&mut piece);
                ready!(Pin::new(stream).poll_read(cx, &mut buffer))?;
                let read = buffer.filled();
                Poll::Ready(Ok((!read.is_empty()).then(|| Bytes::copy_from_slice(read))))
            }
            Kind::Stream { receive, .. } => loop {
                match ready!(receive.poll_data(cx)) {
                    // One that is there for its END_STREAM.
                    Some(Ok(bytes)) if bytes.is_empty() => {}
                    Some(Ok(bytes)) => return Poll::Ready(Ok(Some(bytes))),
                    Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
                    None => return Poll::Ready(Ok(None)),
                }
            },
            Kind::Tunnel(opened) => opened.poll_read(cx),
        }
    }

    /// Reads ahead what would be kept by a codec that others share: the other end takes nothing.
    pub fn gather(&mut self, cx: &mut Context<'_>) {
        if let Kind::Tunnel(opened) = &mut self.kind {
            opened.gather(cx);
        }
    }

    /// Whether its peer is known to have ended its side, of which not all has been read.
    pub(super) fn has_ended(&self, cx: &mut Context<'_>) -> bool {
        match &self.kind {
            Kind::Connection { stream, .. } => stream.socket().is_some_and(|socket| socket.peer_has_ended(cx)),
            Kind::Stream { .. } | Kind::Tunnel(_) => false,
        }
    }

    /// The other end has taken `count` of the bytes that were read: as many more may come.
    pub(super) fn taken(&mut self, count: usize) {
        match &mut self.kind {
            Kind::Connection { .. } => {}
            // Fails only for bytes that were never received.
            Kind::Stream { receive, .. } => drop(receive.flow_control().release_capacity(count)),
            Kind::Tunnel(opened) => opened.taken(count),
        }
    }

    /// Writes some of `bytes`, which are not none, and says how many.
    pub(super) fn poll_write(&mut self, bytes: &Bytes, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        match &mut self.kind {
            Kind::Connection { stream, .. } => {
                let written = ready!(Pin::new(stream).poll_write(cx, bytes))?;
                match written {
                    0 => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    written => Poll::Ready(Ok(written)),
                }
            }
            Kind::Stream { send, unsent, .. } => {
                let Some(room) = ready!(poll_room(send, bytes.len(), cx)) else {
                    return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
                };
                let room = room.min(bytes.len());
                let piece = Unsent::track(bytes.slice(..room), unsent);
                send.send_data(piece, false).map_err(io::Error::other)?;
                Poll::Ready(Ok(room))
            }
            Kind::Tunnel(opened) => opened.poll_write(bytes, cx),
        }
    }

    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.kind {
            Kind::Connection { stream, .. } => Pin::new(stream).poll_flush(cx),
            Kind::Stream { .. } => Poll::Ready(Ok(())),
            // What was given is on its way; what room it has not used, others have.
            Kind::Tunnel(opened) => {
                opened.tunnel.give_back_room();
                Poll::Ready(Ok(()))
            }
        }
    }

    /// Tells the peer that nothing more comes.
    pub(super) fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.kind {
            Kind::Connection { stream, .. } => Pin::new(stream).poll_shutdown(cx),
            Kind::Stream { send, .. } => Poll::Ready(send.send_data(Bytes::new(), true).map_err(io::Error::other)),
            Kind::Tunnel(opened) => opened.poll_finish(cx),
        }
    }

    /// Resolves when the peer's kernel has all that was written, or takes nothing more of it: a reset forgets what is on its way.
    pub(super) async fn delivered(&self) {
        let (mut before, mut since) = (None, Instant::now());
        loop {
            let left = match &self.kind {
                Kind::Connection { stream, .. } => {
                    let delivery = stream.delivery();
                    (!delivery.is_all).then_some(delivery.taken)
                }
                // Behind what the codec has written comes the reset.
                Kind::Stream { unsent, .. } => match unsent.load(Ordering::Relaxed) {
                    0 => None,
                    left => Some(left as u64),
                },
                Kind::Tunnel(opened) => {
                    let (given, taken) = opened.tunnel.progress();
                    (taken < given).then_some(taken)
                }
            };
            if left.is_none() || left == before && since.elapsed() >= FAREWELL {
                return;
            }
            if left != before {
                (before, since) = (left, Instant::now());
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Ready when the peer has reset its stream, or the connection below is gone; also while nothing is read.
    pub(super) fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.kind {
            // Of a socket, `reset` tells.
            Kind::Connection { stream, .. } => stream.poll_gone(cx),
            Kind::Stream { send, .. } => send.poll_reset(cx).map(drop),
            Kind::Tunnel(opened) => opened.tunnel.poll_gone(cx),
        }
    }
}

impl Drop for End {
    fn drop(&mut self) {
        if self.is_complete {
            return;
        }
        match &mut self.kind {
            Kind::Connection { stream, .. } => stream.reset_on_drop(),
            Kind::Stream { send, .. } => send.send_reset(self.reason),
            Kind::Tunnel(opened) => opened.tunnel.reset(self.reason),
        }
    }
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the stream is gone")
}

fn unknown() -> io::Error {
    io::Error::other("it is no connection of the proxy's")
}
