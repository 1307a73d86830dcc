//! What a codec speaks by to an endpoint: a socket or a tunnel, or TLS over one of them.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;

use crate::http::tunnelled::Carried;
use crate::http::wire::{Pulse, Wire};
use crate::socket::{self, Delivery};
use crate::stream::Stream as Socket;

/// A connection to an endpoint, below its codec.
#[derive(Debug)]
pub enum Stream {
    /// In the clear.
    Plain(Carried),
    /// By TLS.
    Tls(Box<TlsStream<Carried>>),
}

impl Stream {
    /// Whether the endpoint has chosen HTTP/2 in the handshake.
    pub fn has_chosen_http2(&self) -> bool {
        match self {
            Self::Plain(_) => false,
            Self::Tls(tls) => tls.get_ref().1.alpn_protocol() == Some(b"h2"),
        }
    }

    fn carried(&self) -> &Carried {
        match self {
            Self::Plain(carried) => carried,
            Self::Tls(tls) => tls.get_ref().0,
        }
    }

    fn carried_mut(&mut self) -> &mut Carried {
        match self {
            Self::Plain(carried) => carried,
            Self::Tls(tls) => tls.get_mut().0,
        }
    }

    /// What speaks on its socket, if it has one of its own.
    pub fn wire_mut(&mut self) -> Option<&mut Wire> {
        match self.carried_mut() {
            Either::Left(wire) => Some(wire),
            Either::Right(_) => None,
        }
    }

    /// Its socket, if it has one of its own.
    pub fn socket(&self) -> Option<&Arc<Socket>> {
        match self.carried() {
            Either::Left(wire) => Some(wire.socket()),
            Either::Right(_) => None,
        }
    }

    /// Its own address, if it has a socket of its own.
    pub fn local_address(&self) -> Option<SocketAddr> {
        self.socket()?.local_address().ok().map(socket::canonical)
    }

    /// What tells of it.
    pub fn pulse(&self) -> Pulse {
        match self.carried() {
            Either::Left(wire) => wire.pulse(),
            Either::Right(tunnel) => tunnel.pulse(),
        }
    }

    /// How far what was written has come.
    pub fn delivery(&self) -> Delivery {
        match self.carried() {
            Either::Left(wire) => socket::delivery(&**wire.socket()),
            Either::Right(tunnel) => tunnel.delivery(),
        }
    }

    /// Ready when a tunnel was reset, or is gone, whether or not anybody reads it. A socket tells by itself.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self.carried_mut() {
            Either::Left(_) => Poll::Pending,
            Either::Right(tunnel) => tunnel.poll_gone(cx),
        }
    }

    /// Has it be reset when it is dropped.
    pub fn reset_on_drop(&mut self) {
        match self.carried_mut() {
            Either::Left(wire) => socket::reset_on_close(&**wire.socket()),
            Either::Right(tunnel) => tunnel.reset_on_drop(),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(carried) => Pin::new(carried).poll_read(cx, buf),
            Self::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Plain(carried) => Pin::new(carried).poll_write(cx, buf),
            Self::Tls(tls) => Pin::new(tls).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Plain(carried) => Pin::new(carried).poll_write_vectored(cx, bufs),
            Self::Tls(tls) => Pin::new(tls).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(carried) => carried.is_write_vectored(),
            Self::Tls(tls) => tls.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(carried) => Pin::new(carried).poll_flush(cx),
            Self::Tls(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(carried) => Pin::new(carried).poll_shutdown(cx),
            Self::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}
