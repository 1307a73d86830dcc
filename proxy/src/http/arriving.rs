//! A message's body as it comes from its sender, whichever codec reads it.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::{Reason, RecvStream};
use http::HeaderMap;
use http::header::CONTENT_LENGTH;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::runtime::Handle;

use super::kept::Kept;
use super::parking::BodyOpen;
use super::tap::Tap;

/// A sender that has sent all but the end is waited for so long: END_STREAM may come in a frame of its own.
const LAST_WORD: Duration = Duration::from_secs(5);

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
    /// One whose beginning was read already.
    Kept(Kept),
}

/// The body that a stream of HTTP/2 carries.
#[derive(Debug)]
pub struct Streamed {
    stream: RecvStream,
    /// Bytes that are to come, where that was said beforehand.
    left: Option<u64>,
    /// Whether there can be none, whatever length was said: that of an answer to HEAD is another's.
    is_without_content: bool,
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
    /// The proxy has ended the connection: see [`is_our_limit`].
    #[error("the proxy keeps no more of what was sent by its connection")]
    Limited,
}

impl From<h2::Error> for BrokenOff {
    fn from(error: h2::Error) -> Self {
        match error.is_reset() || error.is_go_away() {
            true if is_our_limit(&error) => Self::Limited,
            true => Self::Reset,
            false => Self::Closed,
        }
    }
}

/// Whether the codec has ended a connection since it would have had to keep too much (CVE-2023-44487 and what followed it): frames that
/// clients have not read, streams that were let go. That is not its peer's doing alone.
pub fn is_our_limit(error: &h2::Error) -> bool {
    error.is_go_away() && error.is_library() && error.reason() == Some(Reason::ENHANCE_YOUR_CALM)
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
            is_without_content: false,
            has_data_ended: false,
        })
    }

    /// The same, of a message that has no content (RFC 9110, section 6.4.1).
    #[must_use]
    pub fn without_content(mut self) -> Self {
        if let Self::Stream(streamed) = &mut self {
            streamed.is_without_content = true;
        }
        self
    }

    /// Whether all content has come that was announced, be it that the end itself has not.
    pub fn has_all(&self) -> bool {
        match self {
            Self::Stream(streamed) => streamed.has_all() || self.is_end_stream(),
            _ => self.is_end_stream(),
        }
    }

    /// Waits a little for the end of a body that nobody reads any more and of which all has come: a stream that is let go before its end
    /// is cancelled, which its sender takes for an answer that was not wanted.
    pub fn let_end(mut self) {
        if self.poll_end(&mut Context::from_waker(Waker::noop())).is_ready() {
            return;
        }
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move {
                let end = poll_fn(|cx| self.poll_end(cx));
                // What comes of it is the sender's.
                let _ = tokio::time::timeout(LAST_WORD, end).await;
            });
        }
    }

    /// Ready when it has ended, or goes on beyond what was announced.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while let Some(Ok(frame)) = ready!(Pin::new(&mut *self).poll_frame(cx)) {
            if frame.data_ref().is_some_and(|data| !data.is_empty()) {
                break;
            }
        }
        Poll::Ready(())
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
            Self::Kept(kept) => kept.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Nothing => true,
            Self::Read(incoming) | Self::Asked { body: incoming, .. } => incoming.is_end_stream(),
            Self::Stream(streamed) => streamed.stream.is_end_stream(),
            Self::Tapped(tap) => tap.is_end_stream(),
            Self::Kept(kept) => kept.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Nothing => SizeHint::with_exact(0),
            Self::Read(incoming) | Self::Asked { body: incoming, .. } => incoming.size_hint(),
            Self::Stream(streamed) => streamed.left.map_or_else(SizeHint::default, SizeHint::with_exact),
            Self::Tapped(tap) => tap.size_hint(),
            Self::Kept(kept) => kept.size_hint(),
        }
    }
}

impl Streamed {
    fn has_all(&self) -> bool {
        self.is_without_content || self.left == Some(0)
    }

    /// The next frame. What is all there by its length is whole, though the connection went before END_STREAM was seen: that is forgotten
    /// by the codec with all else.
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        match ready!(self.poll_next(cx)) {
            Some(Err(BrokenOff::Closed)) if self.has_all() => Poll::Ready(None),
            frame => Poll::Ready(frame),
        }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
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
