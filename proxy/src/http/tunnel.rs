//! What a request becomes when both ends have agreed to speak something else: bytes, both ways.
//!
//! ```text
//!  client: HTTP/1.1 after 101 or CONNECT, or a stream of HTTP/2 ─ Pump ─ endpoint: HTTP/1.1 after 101 or CONNECT, TCP, or a stream of HTTP/2
//! ```
//!
//! * **It has an owner.** Whoever serves the client's connection (or stream) runs it, and has it end by dropping it: a policy that comes to deny, a
//!   client that goes, a drain's deadline.
//! * **It ends complete only if both have finished.** FIN and END_STREAM stand for each other; whatever else ends it resets both sides (`End`'s
//!   drop): RST, or RST_STREAM with CANCEL (RFC 8441, section 5), for CONNECT with CONNECT_ERROR (RFC 9113, section 8.5).
//! * **One that does not move ends** after the route's `idle_timeout`.
//! * **Bytes are counted when the receiver's side has taken them**, and nothing is read before that: each side feels the other's slowness.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use h2::{Reason, RecvStream, SendStream};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::Broken;
use super::download::until;
use super::flags::Flags;
use super::forward::Holds;
use super::idle::Activity;
use super::pool::Lease;
use super::pool::stream::Stream;
use super::record::Record;
use super::wire::Wire;
use crate::socket;
use crate::stream::Stream as Socket;

/// What is read at once of a connection, in bytes.
const PIECE: usize = 16 * 1024;

/// Why a tunnel ended before both sides had finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broke {
    /// The client reset it, or is gone.
    #[error("the client broke off")]
    Client,
    /// The endpoint reset it, or is gone.
    #[error("the endpoint broke off")]
    Endpoint,
    /// Nothing moved.
    #[error("nothing moved for too long")]
    Idle,
    /// It lasted too long.
    #[error("it lasted too long")]
    Lasted,
}

/// One end of it. One that is dropped before both ways have ended is reset.
#[derive(Debug)]
pub struct End {
    kind: Kind,
    /// What the other side gets to know of a reset.
    reason: Reason,
    is_complete: bool,
}

#[derive(Debug)]
enum Kind {
    /// A connection of its own, of which `early` was read before.
    Connection { stream: Stream, early: Bytes },
    /// A stream of HTTP/2.
    Stream {
        send: SendStream<Bytes>,
        receive: RecvStream,
    },
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
        Self::new(Kind::Stream { send, receive })
    }

    /// A client's connection that has spoken HTTP/1.1.
    ///
    /// # Errors
    /// When it is none.
    pub fn of_client(upgraded: Upgraded) -> io::Result<Self> {
        let parts = upgraded.downcast::<TokioIo<Wire>>().map_err(|_| unknown())?;
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
        Ok(Self::new(Kind::Connection {
            stream: parts.io.into_inner(),
            early: parts.read_buf,
        }))
    }

    /// The socket below, if it is this end's own.
    fn socket(&self) -> Option<Arc<Socket>> {
        match &self.kind {
            Kind::Connection { stream, .. } => Some(stream.socket().clone()),
            Kind::Stream { .. } => None,
        }
    }

    /// Reads what is there; `None` is the end.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
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
        }
    }

    /// The other end has taken `count` of the bytes that were read: as many more may come.
    fn taken(&mut self, count: usize) {
        if let Kind::Stream { receive, .. } = &mut self.kind {
            // Fails only for bytes that were never received.
            let _ = receive.flow_control().release_capacity(count);
        }
    }

    /// Writes some of `bytes`, which are not none, and says how many.
    fn poll_write(&mut self, bytes: &Bytes, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        match &mut self.kind {
            Kind::Connection { stream, .. } => {
                let written = ready!(Pin::new(stream).poll_write(cx, bytes))?;
                match written {
                    0 => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    written => Poll::Ready(Ok(written)),
                }
            }
            Kind::Stream { send, .. } => {
                send.reserve_capacity(bytes.len());
                while send.capacity() == 0 {
                    match ready!(send.poll_capacity(cx)) {
                        Some(Ok(_)) => {}
                        Some(Err(_)) | None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
                    }
                }
                let room = send.capacity().min(bytes.len());
                send.send_data(bytes.slice(..room), false).map_err(io::Error::other)?;
                Poll::Ready(Ok(room))
            }
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.kind {
            Kind::Connection { stream, .. } => Pin::new(stream).poll_flush(cx),
            Kind::Stream { .. } => Poll::Ready(Ok(())),
        }
    }

    /// Tells the peer that nothing more comes.
    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.kind {
            Kind::Connection { stream, .. } => Pin::new(stream).poll_shutdown(cx),
            Kind::Stream { send, .. } => Poll::Ready(send.send_data(Bytes::new(), true).map_err(io::Error::other)),
        }
    }

    /// Ready when the peer has reset its stream, or the connection below is gone; also while nothing is read.
    fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.kind {
            // `reset` tells.
            Kind::Connection { .. } => Poll::Pending,
            Kind::Stream { send, .. } => send.poll_reset(cx).map(drop),
        }
    }
}

impl Drop for End {
    fn drop(&mut self) {
        if self.is_complete {
            return;
        }
        match &mut self.kind {
            Kind::Connection { stream, .. } => socket::reset_on_close(&**stream.socket()),
            Kind::Stream { send, .. } => send.send_reset(self.reason),
        }
    }
}

fn unknown() -> io::Error {
    io::Error::other("it is no connection of the proxy's")
}

/// Resolves when the kernel has seen `socket` fail, whether or not anybody reads it.
async fn reset(socket: Option<Arc<Socket>>) {
    match socket {
        Some(socket) => socket.failed().await,
        None => std::future::pending().await,
    }
}

/// How a tunnel ends before its end.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// How long it may do nothing; none: no limit.
    pub idle_timeout: Option<Duration>,
    /// When it has to have ended, whatever moves; none: no limit.
    pub lasts_until: Option<Instant>,
    /// What a peer gets to know of a reset.
    pub reason: Reason,
}

/// A request that has become one: what goes on, and its account.
#[derive(Debug)]
pub struct Tunnel {
    endpoint: End,
    terms: Terms,
    /// Closed when it ends.
    record: Box<Record>,
    _lease: Lease,
    _holds: Holds,
}

impl Tunnel {
    /// To `endpoint`, which is reached by `lease`; `holds` is what its request has of the cluster's limits, and `record` its account.
    pub fn new(endpoint: End, terms: Terms, record: Box<Record>, lease: Lease, holds: Holds) -> Self {
        Self {
            endpoint,
            terms,
            record,
            _lease: lease,
            _holds: holds,
        }
    }

    /// Moves bytes until both sides have finished.
    ///
    /// # Errors
    /// When it ends before: both ends are reset.
    pub async fn run(self: Box<Self>, mut client: End) -> Result<(), Broke> {
        let mut this = self;
        client.reason = this.terms.reason;
        this.endpoint.reason = this.terms.reason;
        let activity = Activity::begin();
        let (client_reset, endpoint_reset) = (reset(client.socket()), reset(this.endpoint.socket()));
        let (idle_timeout, lasts_until) = (this.terms.idle_timeout, this.terms.lasts_until);
        let result = {
            let Tunnel { endpoint, record, .. } = &mut *this;
            let mut pump = Pump::default();
            tokio::select! {
                biased;
                // What has come before a reset is passed on first.
                result = poll_fn(|cx| pump.poll(&mut client, endpoint, record, &activity, cx)) => result,
                () = client_reset => Err(Broke::Client),
                () = endpoint_reset => Err(Broke::Endpoint),
                () = activity.ceased(idle_timeout) => Err(Broke::Idle),
                () = until(lasts_until) => Err(Broke::Lasted),
            }
        };
        match result {
            Ok(()) => {
                client.is_complete = true;
                this.endpoint.is_complete = true;
                this.record.is_complete = true;
            }
            Err(Broke::Client) => this.record.flags.add(Flags::CLIENT_GONE),
            Err(Broke::Endpoint) => this.record.broke(Broken::Upstream),
            Err(Broke::Idle) => this.record.broke(Broken::Idle),
            Err(Broke::Lasted) => this.record.broke(Broken::Lasted),
        }
        result
    }
}

/// Both ways.
#[derive(Debug, Default)]
struct Pump {
    up: Way,
    down: Way,
}

/// One way.
#[derive(Debug, Default)]
struct Way {
    /// Was read, and is to be written.
    held: Bytes,
    has_read_all: bool,
    has_finished: bool,
}

/// Which of the two failed.
#[derive(Clone, Copy)]
enum Failed {
    Source,
    Sink,
}

impl Pump {
    fn poll(
        &mut self,
        client: &mut End,
        endpoint: &mut End,
        record: &mut Record,
        activity: &Activity,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Broke>> {
        let up = self.up.poll(client, endpoint, cx, |count| {
            record.tunneled += count;
            activity.note();
        });
        if let Poll::Ready(Err(failed)) = up {
            return Poll::Ready(Err(match failed {
                Failed::Source => Broke::Client,
                Failed::Sink => Broke::Endpoint,
            }));
        }
        let down = self.down.poll(endpoint, client, cx, |count| {
            record.sent += count;
            activity.note();
        });
        if let Poll::Ready(Err(failed)) = down {
            return Poll::Ready(Err(match failed {
                Failed::Source => Broke::Endpoint,
                Failed::Sink => Broke::Client,
            }));
        }
        if up.is_ready() && down.is_ready() {
            return Poll::Ready(Ok(()));
        }
        if client.poll_reset(cx).is_ready() {
            return Poll::Ready(Err(Broke::Client));
        }
        endpoint.poll_reset(cx).map(|()| Err(Broke::Endpoint))
    }
}

impl Way {
    /// Ready when it has ended.
    fn poll(
        &mut self,
        from: &mut End,
        to: &mut End,
        cx: &mut Context<'_>,
        mut count: impl FnMut(u64),
    ) -> Poll<Result<(), Failed>> {
        while !self.has_finished {
            if !self.held.is_empty() {
                let written = ready!(to.poll_write(&self.held, cx)).map_err(|_| Failed::Sink)?;
                self.held.advance(written);
                from.taken(written);
                count(written as u64);
            } else if self.has_read_all {
                ready!(to.poll_finish(cx)).map_err(|_| Failed::Sink)?;
                self.has_finished = true;
            } else {
                match from.poll_read(cx) {
                    Poll::Pending => {
                        ready!(to.poll_flush(cx)).map_err(|_| Failed::Sink)?;
                        return Poll::Pending;
                    }
                    Poll::Ready(Err(_)) => return Poll::Ready(Err(Failed::Source)),
                    Poll::Ready(Ok(Some(bytes))) => self.held = bytes,
                    Poll::Ready(Ok(None)) => self.has_read_all = true,
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}
