//! A message's body as it comes from its sender, whichever codec reads it.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::RecvStream;
use http::HeaderMap;
use http::header::CONTENT_LENGTH;
use hyper::body::{Body, Frame, Incoming, SizeHint};

use super::parking::BodyOpen;
use super::tap::Tap;

/// A body on its way here.
#[derive(Debug)]
pub enum Arriving {
    /// There is none.
    Nothing,
    /// Read by hyper, which takes a stream of HTTP/2 that is reset without an error for a whole one: only HTTP/1.1.
    Read(Incoming),
    /// A request's, read by hyper. The client's connection knows as long as it is read.
    Asked {
        /// What is read.
        body: Incoming,
        /// That it is.
        _open: BodyOpen,
    },
    /// A stream of HTTP/2.
    Stream(Streamed),
    /// A copy of another.
    Tapped(Tap),
}

/// The body that a stream of HTTP/2 carries.
#[derive(Debug)]
pub struct Streamed {
    stream: RecvStream,
    /// Bytes that are to come, where that was said beforehand.
    left: Option<u64>,
    has_data_ended: bool,
}

/// The body ended before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BrokenOff {
    /// Its sender has reset the stream, with whatever code: END_STREAM alone is an end (RFC 9113, section 8.1).
    #[error("the body was reset")]
    Reset,
    /// The connection has ended, or what came by it was no body.
    #[error("the body broke off")]
    Closed,
}

impl From<h2::Error> for BrokenOff {
    fn from(error: h2::Error) -> Self {
        match error.is_reset() || error.is_go_away() {
            true => Self::Reset,
            false => Self::Closed,
        }
    }
}

impl Arriving {
    /// The body that follows a head of HTTP/2. The codec holds it to the length that the head says.
    pub fn of_stream(headers: &HeaderMap, stream: RecvStream) -> Self {
        if stream.is_end_stream() {
            return Self::Nothing;
        }
        let length = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok());
        Self::Stream(Streamed {
            stream,
            left: length.and_then(|length| length.parse().ok()),
            has_data_ended: false,
        })
    }
}

impl Body for Arriving {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        match &mut *self {
            Self::Nothing => Poll::Ready(None),
            Self::Read(incoming) | Self::Asked { body: incoming, .. } => {
                let frame = ready!(Pin::new(incoming).poll_frame(cx));
                Poll::Ready(frame.map(|frame| frame.map_err(|_| BrokenOff::Closed)))
            }
            Self::Stream(streamed) => streamed.poll_frame(cx),
            Self::Tapped(tap) => tap.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Nothing => true,
            Self::Read(incoming) | Self::Asked { body: incoming, .. } => incoming.is_end_stream(),
            Self::Stream(streamed) => streamed.stream.is_end_stream(),
            Self::Tapped(tap) => tap.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Nothing => SizeHint::with_exact(0),
            Self::Read(incoming) | Self::Asked { body: incoming, .. } => incoming.size_hint(),
            Self::Stream(streamed) => streamed.left.map_or_else(SizeHint::default, SizeHint::with_exact),
            Self::Tapped(tap) => tap.size_hint(),
        }
    }
}

impl Streamed {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        if !self.has_data_ended {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(bytes)) => {
                    // Fails only for bytes that were never received.
                    let _ = self.stream.flow_control().release_capacity(bytes.len());
                    self.left = self.left.map(|left| left.saturating_sub(bytes.len() as u64));
                    return Poll::Ready(Some(Ok(Frame::data(bytes))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                None => self.has_data_ended = true,
            }
        }
        Poll::Ready(match ready!(self.stream.poll_trailers(cx)) {
            Ok(Some(trailers)) => Some(Ok(Frame::trailers(trailers))),
            Ok(None) => None,
            Err(error) => Some(Err(error.into())),
        })
    }
}
