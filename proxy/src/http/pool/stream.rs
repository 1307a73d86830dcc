//! What a codec speaks by to an endpoint: a socket, or TLS over one.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::client::TlsStream;

use crate::http::wire::Wire;

/// Bytes of HTTP that an endpoint has sent on a connection: what belongs to TLS is none.
#[derive(Clone, Debug, Default)]
pub struct Answered(Arc<AtomicU64>);

impl Answered {
    /// How many.
    pub fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A connection to an endpoint, below its codec.
#[derive(Debug)]
pub struct Stream {
    carrier: Carrier,
    answered: Answered,
}

#[derive(Debug)]
enum Carrier {
    Plain(Wire),
    Tls(Box<TlsStream<Wire>>),
}

impl Stream {
    /// In the clear.
    pub fn plain(wire: Wire) -> Self {
        Self::new(Carrier::Plain(wire))
    }

    /// By TLS.
    pub fn tls(tls: TlsStream<Wire>) -> Self {
        Self::new(Carrier::Tls(Box::new(tls)))
    }

    fn new(carrier: Carrier) -> Self {
        Self {
            carrier,
            answered: Answered::default(),
        }
    }

    /// What tells how much the endpoint has sent.
    pub fn answered(&self) -> Answered {
        self.answered.clone()
    }

    /// Whether the endpoint has chosen HTTP/2 in the handshake.
    pub fn has_chosen_http2(&self) -> bool {
        match &self.carrier {
            Carrier::Plain(_) => false,
            Carrier::Tls(tls) => tls.get_ref().1.alpn_protocol() == Some(b"h2"),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = match &mut self.carrier {
            Carrier::Plain(wire) => Pin::new(wire).poll_read(cx, buf),
            Carrier::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
        };
        ready!(read)?;
        let length = (buf.filled().len() - before) as u64;
        self.answered.0.fetch_add(length, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.carrier {
            Carrier::Plain(wire) => Pin::new(wire).poll_write(cx, buf),
            Carrier::Tls(tls) => Pin::new(tls).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.carrier {
            Carrier::Plain(wire) => Pin::new(wire).poll_write_vectored(cx, bufs),
            Carrier::Tls(tls) => Pin::new(tls).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.carrier {
            Carrier::Plain(wire) => wire.is_write_vectored(),
            Carrier::Tls(tls) => tls.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.carrier {
            Carrier::Plain(wire) => Pin::new(wire).poll_flush(cx),
            Carrier::Tls(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.carrier {
            Carrier::Plain(wire) => Pin::new(wire).poll_shutdown(cx),
            Carrier::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}
