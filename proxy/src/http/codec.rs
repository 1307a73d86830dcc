//! What reads a client's connection, whichever protocol it speaks, as whoever serves it sees it.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio_util::either::Either;

use super::download::Download;
use super::intake::MAX_HEAD;
use super::streams::Streams;
use super::tunnelled::Carried;

/// How HTTP/1.1 is read. Of as many fields as [`MAX_HEADERS`](super::intake::MAX_HEADERS), which is hyper's own limit: to tell it costs each request two copies of all its tables.
pub fn codec_of_http1() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(None)
        .half_close(false)
        .max_buf_size(MAX_HEAD.max(64 * 1024));
    builder
}

/// A codec that can be asked to finish.
pub trait Codec: Unpin {
    /// Ready when it is done, or broke.
    fn poll_done(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>>;

    /// Takes no more requests.
    fn finish(self: Pin<&mut Self>);

    /// What it has read and not understood, when it goes and another takes its place; nothing: it can't be replaced.
    fn into_unread(self) -> Option<Bytes>;
}

/// Why a codec broke.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// What HTTP/1.1's reads.
pub type Io = TokioIo<Carried>;

impl<S> Codec for http1::UpgradeableConnection<Io, S>
where
    S: hyper::service::HttpService<Incoming, ResBody = Download>,
    S::Error: Into<BoxError>,
{
    fn poll_done(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.poll(cx).map_err(BoxError::from)
    }

    fn finish(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }

    fn into_unread(self) -> Option<Bytes> {
        let parts = self.into_parts()?;
        // A stream of HBONE keeps its codec.
        let Either::Left(wire) = parts.io.into_inner() else {
            return None;
        };
        // Copied: what is read into may be much larger, and would be kept.
        Some([&parts.read_buf[..], wire.unread()].concat().into())
    }
}

impl Codec for Streams {
    fn poll_done(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.poll(cx).map_err(BoxError::from)
    }

    fn finish(self: Pin<&mut Self>) {
        self.get_mut().finish();
    }

    fn into_unread(self) -> Option<Bytes> {
        None
    }
}
