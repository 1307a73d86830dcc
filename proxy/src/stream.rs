//! One end of a proxied connection: a TCP socket registered with its core's runtime.
//!
//! tokio's own `TcpStream` hides two things that the kernel says with each readiness event, and both save work on every
//! connection:
//!
//! * **Whether the peer has ended its stream** (`EPOLLRDHUP`). What is read after that is the last of it, so it may wait in the receiver's
//!   socket for the FIN that follows at once, and travel with it as one segment.
//! * **Whether urgent data came** (`EPOLLPRI`). A read that fills less than its buffer has emptied the queue, except that a read
//!   also stops at urgent data (`tcp_recvmsg` in the kernel's tcp.c). Only a stream that carries some needs one more
//!   read, to be told that there is nothing.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::task::{Context, Poll, ready};

use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags};
use socket2::SockRef;
use tokio::io::unix::AsyncFd;
use tokio::io::{Interest, ReadBuf};

use crate::socket;

/// A non-blocking TCP socket, known to the runtime of the thread that made this.
#[derive(Debug)]
pub struct Stream {
    socket: AsyncFd<OwnedFd>,
}

/// What one read brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Bytes; 0 is the end of the stream.
    pub length: usize,
    /// The peer has ended its stream: what is left to read, an end included, is here already.
    pub peer_has_ended: bool,
}

impl Stream {
    /// Registers `socket`, which must be non-blocking.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        let interest = Interest::READABLE | Interest::WRITABLE | Interest::PRIORITY;
        let socket = socket::register(socket, interest)?;
        Ok(Self { socket })
    }

    /// Ready when there may be something to read; it stays so until [`Stream::poll_receive`] has found nothing.
    ///
    /// # Errors
    /// When the runtime is shutting down.
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket.poll_read_ready(cx).map_ok(drop)
    }

    /// Whether the peer has ended its stream, for one that finds something to read.
    pub fn peer_has_ended(&self, cx: &mut Context<'_>) -> bool {
        let readiness = self.socket.poll_read_ready(cx);
        matches!(readiness, Poll::Ready(Ok(guard)) if guard.ready().is_read_closed())
    }

    /// Reads once what is there.
    pub fn poll_receive(&self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<Received>> {
        let room = buffer.len();
        self.poll_receive_by(cx, room, || {
            rustix::net::recv(&self.socket, &mut *buffer, RecvFlags::empty()).map(|(length, _)| length)
        })
    }

    /// Reads once what is there behind what `buffer` has, into the room that it has left.
    pub fn poll_append(&self, cx: &mut Context<'_>, buffer: &mut Vec<u8>) -> Poll<io::Result<Received>> {
        let room = buffer.capacity() - buffer.len();
        self.poll_receive_by(cx, room, || {
            rustix::net::recv(&self.socket, spare_capacity(buffer), RecvFlags::empty()).map(|(length, _)| length)
        })
    }

    /// Reads once what is there, into the room that `buffer` has left.
    pub fn poll_fill(&self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<Received>> {
        let room = buffer.remaining();
        self.poll_receive_by(cx, room, || socket::receive_into(&self.socket, buffer))
    }

    fn poll_receive_by(
        &self,
        cx: &mut Context<'_>,
        room: usize,
        mut receive: impl FnMut() -> Result<usize, Errno>,
    ) -> Poll<io::Result<Received>> {
        loop {
            let mut ready = ready!(self.socket.poll_read_ready(cx))?;
            let length = match receive() {
                Ok(length) => length,
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => {
                    ready.clear_ready();
                    continue;
                }
                Err(error) => return Poll::Ready(Err(error.into())),
            };
            if length < room && !self.carries_urgent_data() {
                ready.clear_ready();
            }
            return Poll::Ready(Ok(Received {
                length,
                peer_has_ended: ready.ready().is_read_closed(),
            }));
        }
    }

    /// Reads once from a socket that was reset, which has all that it will ever have, whatever the runtime has heard of it so far. Nothing is
    /// the end of it.
    pub fn receive_rest(&self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        loop {
            match rustix::net::recv(&self.socket, spare_capacity(buffer), RecvFlags::DONTWAIT) {
                Ok((length, _)) => return Ok(length),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(0),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Reads at least one byte, or nothing at the end of the stream.
    pub async fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        std::future::poll_fn(|cx| self.poll_receive(cx, buffer))
            .await
            .map(|received| received.length)
    }

    fn carries_urgent_data(&self) -> bool {
        self.socket.try_io(Interest::PRIORITY, |_| Ok(())).is_ok()
    }

    /// Sends what the socket takes, at least one byte. With `more_follows` the last part of a segment waits for what comes
    /// next: more bytes, the FIN, or [`Stream::push`].
    pub fn poll_send(&self, cx: &mut Context<'_>, bytes: &[u8], more_follows: bool) -> Poll<io::Result<usize>> {
        let more = if more_follows {
            SendFlags::MORE
        } else {
            SendFlags::empty()
        };
        self.poll_send_by(cx, bytes.len(), || {
            rustix::net::send(&self.socket, bytes, SendFlags::NOSIGNAL | more)
        })
    }

    /// Sends what the socket takes of `parts`, one after the other, at least one byte.
    pub fn poll_send_vectored(&self, cx: &mut Context<'_>, parts: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let length = parts.iter().map(|part| part.len()).sum();
        self.poll_send_by(cx, length, || {
            let mut nothing = SendAncillaryBuffer::default();
            rustix::net::sendmsg(&self.socket, parts, &mut nothing, SendFlags::NOSIGNAL)
        })
    }

    fn poll_send_by(
        &self,
        cx: &mut Context<'_>,
        length: usize,
        send: impl Fn() -> Result<usize, Errno>,
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.socket.poll_write_ready(cx))?;
            let sent = match send() {
                Ok(sent) => sent,
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => {
                    ready.clear_ready();
                    continue;
                }
                Err(error) => return Poll::Ready(Err(error.into())),
            };
            if sent < length {
                // The queue is full when it took only a part.
                ready.clear_ready();
            }
            return Poll::Ready(Ok(sent));
        }
    }

    /// Sends all of `bytes`.
    ///
    /// # Errors
    /// Those of send(2).
    pub async fn send_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let sent = std::future::poll_fn(|cx| self.poll_send(cx, bytes, false)).await?;
            bytes = &bytes[sent..];
        }
        Ok(())
    }

    /// Sends on what waits for more (setting TCP_NODELAY pushes what is pending: `__tcp_sock_set_nodelay` in the kernel's tcp.c).
    pub fn push(&self) {
        // Fails only on a descriptor that is no TCP socket.
        let _ = SockRef::from(&self.socket).set_tcp_nodelay(true);
    }

    /// Sends FIN after what was sent.
    ///
    /// # Errors
    /// `NotConnected` when the peer has reset the connection.
    pub fn end(&self) -> io::Result<()> {
        Ok(rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Write)?)
    }

    /// Resolves once the socket takes bytes, which a connecting one does when it is connected or has failed.
    ///
    /// # Errors
    /// When the runtime is shutting down.
    pub async fn writable(&self) -> io::Result<()> {
        self.socket.writable().await.map(drop)
    }

    /// Resolves when an error is pending on the socket, which is what RST leaves behind.
    pub async fn failed(&self) {
        // An error here is the runtime shutting down: nothing will come of this connection either.
        let _ = self.socket.ready(Interest::ERROR).await;
    }

    /// The socket, for another runtime.
    pub fn into_socket(self) -> OwnedFd {
        self.socket.into_inner()
    }

    /// The socket's own address.
    ///
    /// # Errors
    /// Those of getsockname(2).
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        let address = rustix::net::getsockname(&self.socket)?;
        SocketAddr::try_from(address).map_err(|_| io::Error::other("the socket has no internet address"))
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.get_ref().as_fd()
    }
}

impl AsRawFd for Stream {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.get_ref().as_raw_fd()
    }
}
