//! A response's body on its way to the client. It counts, it times out, and when it has come to its end it gives the
//! connection back that it came by.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::Sleep;

use super::Broken;
use super::flags::Flags;
use super::forward::Holds;
use super::pool::Lease;
use super::record::Record;

/// The body of a response.
#[derive(Debug)]
pub struct Download {
    content: Content,
    /// Ends with the body.
    record: Option<Box<Record>>,
}

#[derive(Debug)]
enum Content {
    Whole(Option<Bytes>),
    Streamed(Box<Streamed>),
}

#[derive(Debug)]
struct Streamed {
    incoming: Incoming,
    lease: Option<Lease>,
    deadline: Option<Pin<Box<Sleep>>>,
    has_ended: bool,
    _holds: Holds,
}

impl Download {
    /// A body that is there already.
    pub fn whole(bytes: Bytes) -> Self {
        Self {
            content: Content::Whole((!bytes.is_empty()).then_some(bytes)),
            record: None,
        }
    }

    /// A body that comes from an endpoint by `lease`, until `deadline`.
    pub fn streamed(incoming: Incoming, lease: Lease, deadline: Option<Pin<Box<Sleep>>>, holds: Holds) -> Self {
        let streamed = Streamed {
            has_ended: incoming.is_end_stream(),
            incoming,
            lease: Some(lease),
            deadline,
            _holds: holds,
        };
        Self {
            content: Content::Streamed(Box::new(streamed)),
            record: None,
        }
    }

    /// The same, at whose end the request's account is closed.
    #[must_use]
    pub fn recorded(mut self, record: Box<Record>) -> Self {
        self.record = Some(record);
        self
    }

    fn note(&mut self, frame: &Poll<Option<Result<Frame<Bytes>, Broken>>>) {
        let is_last = self.is_end_stream();
        let Some(record) = &mut self.record else { return };
        match frame {
            Poll::Pending => {}
            Poll::Ready(None) => record.is_complete = true,
            Poll::Ready(Some(Ok(frame))) => {
                record.sent += frame.data_ref().map_or(0, |data| data.len() as u64);
                record.is_complete |= is_last;
            }
            Poll::Ready(Some(Err(Broken::TimedOut))) => record.flags.add(Flags::UPSTREAM_TIMEOUT),
            Poll::Ready(Some(Err(_))) => record.flags.add(Flags::UPSTREAM_CLOSED),
        }
    }
}

impl Body for Download {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let frame = match &mut self.content {
            Content::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Content::Streamed(streamed) => streamed.poll_frame(cx),
        };
        self.note(&frame);
        frame
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Whole(bytes) => bytes.is_none(),
            Content::Streamed(streamed) => streamed.has_ended,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Content::Streamed(streamed) => streamed.incoming.size_hint(),
        }
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        // A body without content is asked for nothing.
        if self.is_end_stream()
            && let Some(record) = &mut self.record
        {
            record.is_complete = true;
        }
    }
}

impl Streamed {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        match Pin::new(&mut self.incoming).poll_frame(cx) {
            Poll::Ready(None) => {
                self.has_ended = true;
                Poll::Ready(None)
            }
            Poll::Ready(Some(Ok(frame))) => {
                self.has_ended = self.incoming.is_end_stream();
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(_))) => {
                self.lease = None;
                Poll::Ready(Some(Err(Broken::Upstream)))
            }
            Poll::Pending => {
                let deadline = self.deadline.as_mut();
                match deadline.is_some_and(|deadline| deadline.as_mut().poll(cx).is_ready()) {
                    true => {
                        self.lease = None;
                        Poll::Ready(Some(Err(Broken::TimedOut)))
                    }
                    false => Poll::Pending,
                }
            }
        }
    }
}

impl Drop for Streamed {
    fn drop(&mut self) {
        if self.has_ended
            && let Some(lease) = self.lease.take()
        {
            lease.give_back();
        }
    }
}
