//! A response's body on its way to the client. It counts, it times out, and when it has come to its end it gives the
//! connection back that it came by.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::Broken;
use super::arriving::{Arriving, BrokenOff};
use super::forward::Holds;
use super::idle::Activity;
use super::pool::Lease;
use super::record::Record;

/// The body of a response.
#[derive(Debug)]
pub struct Download {
    content: Content,
    /// Ends with the body.
    record: Option<Box<Record>>,
    is_cut_short: bool,
}

#[derive(Debug)]
enum Content {
    Whole(Option<Bytes>),
    Streamed(Timed),
}

/// When a response has to have come to its end.
pub type Deadline = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What ends a response before its end.
pub struct End {
    /// It has to have come to its end by then.
    pub deadline: Option<Deadline>,
    /// And by then, too.
    pub lasts_until: Option<Instant>,
    /// And by then, by what its cluster says of one stream.
    pub stream_until: Option<Instant>,
    /// When the request has last moved.
    pub activity: Activity,
    /// How long it may do nothing.
    pub limit: Option<Duration>,
}

impl End {
    /// Resolves when the request, or its response, is to be ended, and says why.
    pub async fn came(&mut self) -> Broken {
        let late = async {
            match &mut self.deadline {
                Some(deadline) => deadline.await,
                None => std::future::pending().await,
            }
        };
        let lasting = lasted(self.lasts_until, self.stream_until);
        tokio::select! {
            biased;
            () = late => Broken::TimedOut,
            why = lasting => why,
            () = self.activity.ceased(self.limit) => Broken::Idle,
        }
    }
}

/// Resolves when a request, or its stream to the endpoint, has to have ended, and says which of the two.
pub async fn lasted(request: Option<Instant>, stream: Option<Instant>) -> Broken {
    let stream = stream.filter(|stream| request.is_none_or(|request| *stream < request));
    until(stream.or(request)).await;
    match stream {
        Some(_) => Broken::StreamLasted,
        None => Broken::Lasted,
    }
}

/// Resolves at an instant, if there is one.
pub async fn until(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

/// A body that is taken away at its deadline, whether or not it is asked for: a client that does not read holds neither a connection to an endpoint
/// nor a place in a cluster for longer. When all of it has come there is no deadline any more, but a client that takes nothing of it is still not waited for
/// longer than nothing may move.
#[derive(Debug)]
struct Timed {
    slot: Arc<Mutex<Slot>>,
    activity: Activity,
    timer: Option<AbortHandle>,
}

#[derive(Debug)]
struct Slot {
    /// Or why it was taken away.
    streamed: Result<Streamed, Broken>,
    /// Why the client is not waited for any more.
    given_up: Option<Broken>,
    waiting: Option<Waker>,
}

#[derive(Debug)]
struct Streamed {
    incoming: Arriving,
    lease: Option<Lease>,
    has_ended: bool,
    _holds: Holds,
}

impl Download {
    /// A body that is there already.
    pub fn whole(bytes: Bytes) -> Self {
        Self {
            content: Content::Whole((!bytes.is_empty()).then_some(bytes)),
            record: None,
            is_cut_short: false,
        }
    }

    /// A body that comes from an endpoint by `lease`, until `end`.
    pub fn streamed(incoming: Arriving, lease: Lease, end: End, holds: Holds) -> Self {
        let streamed = Streamed {
            has_ended: incoming.is_end_stream(),
            incoming,
            lease: Some(lease),
            _holds: holds,
        };
        Self {
            content: Content::Streamed(Timed::new(streamed, end)),
            record: None,
            is_cut_short: false,
        }
    }

    /// The same, at whose end the request's account is closed.
    #[must_use]
    pub fn recorded(mut self, record: Box<Record>) -> Self {
        self.record = Some(record);
        self
    }

    fn note(&mut self, frame: &Poll<Option<Result<Frame<Bytes>, Broken>>>) {
        // A client of HTTP/1.1 is sent as much as was announced, and the end is asked for no more.
        let is_last = self.is_end_stream() || self.size_hint().exact() == Some(0);
        let Some(record) = &mut self.record else { return };
        match frame {
            Poll::Pending => {}
            Poll::Ready(None) => record.is_complete = true,
            Poll::Ready(Some(Ok(frame))) => {
                record.sent += frame.data_ref().map_or(0, |data| data.len() as u64);
                if let Some(trailers) = frame.trailers_ref() {
                    record.note_trailers(trailers);
                }
                record.is_complete |= is_last;
            }
            Poll::Ready(Some(Err(why))) => record.broke(*why),
        }
    }

    /// Ready when the client is to be waited for no more, which has not taken what it was given.
    pub fn poll_given_up(&mut self, cx: &mut Context<'_>) -> Poll<Broken> {
        match &mut self.content {
            Content::Whole(_) => Poll::Pending,
            Content::Streamed(timed) => timed.poll_given_up(cx),
        }
    }

    /// Notes that the client has taken some of it.
    pub fn moves(&self) {
        if let Content::Streamed(timed) = &self.content {
            timed.activity.note();
        }
    }

    /// The client does not get what it was given last: it is gone, or is waited for no more.
    pub fn is_cut_short(&mut self, why: Option<Broken>) {
        if let Some(record) = &mut self.record {
            record.is_complete = false;
            if let Some(why) = why {
                record.broke(why);
            }
        }
        self.is_cut_short = true;
    }
}

impl Body for Download {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let frame = match &mut self.content {
            Content::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Content::Streamed(timed) => timed.poll_frame(cx),
        };
        self.note(&frame);
        frame
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Whole(bytes) => bytes.is_none(),
            Content::Streamed(timed) => timed.has_ended(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Content::Streamed(timed) => timed.size_hint(),
        }
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        let has_ended = self.is_end_stream();
        let taken = match &self.content {
            Content::Streamed(timed) => timed.taken(),
            Content::Whole(_) => None,
        };
        // A body without content is asked for nothing, and not for its end.
        let is_whole = has_ended || matches!(&self.content, Content::Streamed(timed) if timed.has_all());
        let Some(record) = &mut self.record else { return };
        record.is_complete |= is_whole && !self.is_cut_short;
        if let Some(why) = taken {
            record.broke(why);
        }
    }
}

impl Timed {
    fn new(streamed: Streamed, mut end: End) -> Self {
        let lasts = end.lasts_until.or(end.stream_until);
        let has_limit = end.deadline.is_some() || lasts.is_some() || end.limit.is_some();
        let is_timed = !streamed.has_ended && has_limit;
        let activity = end.activity.clone();
        let slot = Arc::new(Mutex::new(Slot {
            streamed: Ok(streamed),
            given_up: None,
            waiting: None,
        }));
        let weak = Arc::downgrade(&slot);
        let timer = is_timed.then(|| {
            let timer = tokio::spawn(async move {
                let mut why = end.came().await;
                let is_here = |slot: &Arc<Mutex<Slot>>| locked(slot).has_ended();
                if why == Broken::TimedOut && weak.upgrade().as_ref().is_some_and(is_here) {
                    end.deadline = None;
                    why = end.came().await;
                }
                if let Some(slot) = weak.upgrade() {
                    take_away(&slot, why);
                }
            });
            timer.abort_handle()
        });
        Self { slot, activity, timer }
    }

    fn slot(&self) -> MutexGuard<'_, Slot> {
        locked(&self.slot)
    }

    fn has_ended(&self) -> bool {
        self.slot().has_ended()
    }

    fn poll_given_up(&self, cx: &mut Context<'_>) -> Poll<Broken> {
        let mut slot = self.slot();
        match slot.given_up {
            Some(why) => Poll::Ready(why),
            None => {
                slot.waiting = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    fn has_all(&self) -> bool {
        let slot = self.slot();
        slot.streamed.as_ref().is_ok_and(|streamed| streamed.incoming.has_all())
    }

    /// Why it was taken away, if it was.
    fn taken(&self) -> Option<Broken> {
        self.slot().streamed.as_ref().err().copied()
    }

    fn size_hint(&self) -> SizeHint {
        let slot = self.slot();
        (slot.streamed.as_ref()).map_or_else(|_| SizeHint::default(), |streamed| streamed.incoming.size_hint())
    }

    fn poll_frame(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let mut slot = self.slot();
        let streamed = match &mut slot.streamed {
            Ok(streamed) => streamed,
            Err(why) => return Poll::Ready(Some(Err(*why))),
        };
        let polled = streamed.poll_frame(cx);
        match polled.is_pending() {
            true => slot.waiting = Some(cx.waker().clone()),
            false => self.activity.note(),
        }
        polled
    }
}

impl Drop for Timed {
    fn drop(&mut self) {
        if let Some(timer) = &self.timer {
            timer.abort();
        }
    }
}

fn locked(slot: &Mutex<Slot>) -> MutexGuard<'_, Slot> {
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Slot {
    fn has_ended(&self) -> bool {
        self.streamed.as_ref().is_ok_and(|streamed| streamed.has_ended)
    }
}

/// Takes a body away, unless it has come to its end, and has whoever waits for it, or for its client, told why.
fn take_away(slot: &Mutex<Slot>, why: Broken) {
    let mut slot = locked(slot);
    slot.given_up = Some(why);
    let taken = match slot.streamed.as_ref().is_ok_and(|streamed| !streamed.has_ended) {
        true => Some(std::mem::replace(&mut slot.streamed, Err(why))),
        false => None,
    };
    let waiting = slot.waiting.take();
    // What is given back takes other locks.
    drop(slot);
    drop(taken);
    if let Some(waiting) = waiting {
        waiting.wake();
    }
}

impl Streamed {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let frame = std::task::ready!(Pin::new(&mut self.incoming).poll_frame(cx));
        Poll::Ready(match frame {
            None => {
                self.has_ended = true;
                None
            }
            Some(Ok(frame)) => {
                self.has_ended = self.incoming.is_end_stream();
                Some(Ok(frame))
            }
            Some(Err(why)) => {
                if let Some(lease) = self.lease.take() {
                    lease.broke(why);
                }
                Some(Err(match why {
                    BrokenOff::Reset => Broken::Reset,
                    BrokenOff::Closed | BrokenOff::Limited => Broken::Upstream,
                }))
            }
        })
    }
}

impl Drop for Streamed {
    fn drop(&mut self) {
        if !self.has_ended && !self.incoming.has_all() {
            return;
        }
        if let Some(lease) = self.lease.take() {
            lease.give_back();
        }
        if !self.has_ended {
            std::mem::replace(&mut self.incoming, Arriving::Nothing).let_end();
        }
    }
}
