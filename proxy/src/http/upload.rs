//! A request's body on its way to an endpoint, and again to another while that is possible.
//!
//! **One idea.** The client's body is read once, by whichever try is the current one. What was read is kept beside until it is more than
//! the limit; then nothing is, and there will be no other try. A try that another has taken the place of reads no further.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::sync::Notify;

use super::Broken;

/// A request's body, and what of it was sent.
#[derive(Clone, Debug)]
pub struct Upload {
    source: Arc<Source>,
}

#[derive(Debug)]
struct Source {
    state: Mutex<State>,
    /// Told when the client has sent all of it.
    completed: Notify,
}

#[derive(Debug)]
struct State {
    incoming: Incoming,
    kept: Vec<Bytes>,
    room: usize,
    can_replay: bool,
    /// Whether its length was said beforehand.
    has_length: bool,
    has_ended: bool,
    has_broken: bool,
    received: u64,
    attempt: u32,
}

impl Upload {
    /// The body of a request, of which up to `room` bytes are kept for further tries.
    pub fn new(incoming: Incoming, room: usize) -> Self {
        let has_ended = incoming.is_end_stream();
        let state = State {
            has_length: incoming.size_hint().exact().is_some(),
            incoming,
            kept: Vec::new(),
            room,
            can_replay: true,
            has_ended,
            has_broken: false,
            received: 0,
            attempt: 0,
        };
        let (state, completed) = (Mutex::new(state), Notify::new());
        Self {
            source: Arc::new(Source { state, completed }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.source.state()
    }

    /// The body for one try, from its beginning; the tries before get no more.
    pub fn attempt(&self) -> Attempt {
        let mut state = self.state();
        state.attempt += 1;
        let number = state.attempt;
        // Nothing to send is known to be so before it is asked for: the request is framed by it.
        let is_empty = state.has_ended && state.received == 0;
        drop(state);
        Attempt {
            source: self.source.clone(),
            number,
            next: 0,
            has_ended: is_empty,
        }
    }

    /// Whether it can be sent once more.
    pub fn can_replay(&self) -> bool {
        let state = self.state();
        state.can_replay && !state.has_broken
    }

    /// Bytes that the client has sent.
    pub fn received(&self) -> u64 {
        self.state().received
    }

    /// Whether all of it has come.
    pub fn is_complete(&self) -> bool {
        self.state().has_ended
    }

    /// Whether any of it was asked for.
    pub fn was_asked_for(&self) -> bool {
        let state = self.state();
        state.has_ended || state.received > 0
    }

    /// Whether the client broke it off.
    pub fn has_broken(&self) -> bool {
        self.state().has_broken
    }

    /// Resolves when all of it has come.
    pub async fn completed(&self) {
        while !self.is_complete() {
            self.source.completed.notified().await;
        }
    }
}

impl Source {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request's body, as one try sends it.
#[derive(Debug)]
pub struct Attempt {
    source: Arc<Source>,
    number: u32,
    /// The next of the pieces that are kept.
    next: usize,
    has_ended: bool,
}

impl Body for Attempt {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let this = &mut *self;
        let mut state = this.source.state();
        if state.attempt != this.number {
            return Poll::Ready(Some(Err(Broken::Superseded)));
        }
        if let Some(piece) = state.kept.get(this.next) {
            this.next += 1;
            return Poll::Ready(Some(Ok(Frame::data(piece.clone()))));
        }
        if state.has_ended {
            this.has_ended = true;
            return Poll::Ready(None);
        }
        let frame = std::task::ready!(Pin::new(&mut state.incoming).poll_frame(cx));
        let frame = match frame {
            None => None,
            Some(Ok(frame)) => Some(frame),
            Some(Err(_)) => {
                state.has_broken = true;
                return Poll::Ready(Some(Err(Broken::Downstream)));
            }
        };
        if let Some(frame) = &frame {
            state.keep(frame);
            this.next = state.kept.len();
        }
        state.has_ended = frame.is_none() || state.incoming.is_end_stream();
        if state.has_ended {
            this.has_ended = true;
            this.source.completed.notify_waiters();
            this.source.completed.notify_one();
        }
        Poll::Ready(frame.map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.has_ended
    }

    fn size_hint(&self) -> SizeHint {
        if self.has_ended {
            return SizeHint::with_exact(0);
        }
        let state = self.source.state();
        let kept: u64 = state.kept[self.next.min(state.kept.len())..]
            .iter()
            .map(|p| p.len() as u64)
            .sum();
        match state.incoming.size_hint().exact() {
            _ if !state.has_length => SizeHint::default(),
            _ if state.has_ended => SizeHint::with_exact(kept),
            Some(rest) => SizeHint::with_exact(rest + kept),
            None => SizeHint::default(),
        }
    }
}

impl State {
    fn keep(&mut self, frame: &Frame<Bytes>) {
        let Some(data) = frame.data_ref() else {
            // Trailers are not sent twice: rare, and then the request is tried once.
            self.can_replay = false;
            self.kept.clear();
            return;
        };
        self.received += data.len() as u64;
        if !self.can_replay {
            return;
        }
        match self.room.checked_sub(data.len()) {
            Some(room) => {
                self.room = room;
                self.kept.push(data.clone());
            }
            None => {
                self.can_replay = false;
                self.kept.clear();
                self.kept.shrink_to_fit();
            }
        }
    }
}

/// Reads and drops what is left of a response, so that its connection can be used again; for a little while, and a little of it.
pub async fn discard(mut body: Incoming, most: usize) -> bool {
    let mut left = most;
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return false };
        let length = frame.data_ref().map_or(0, Bytes::len);
        match left.checked_sub(length) {
            Some(rest) => left = rest,
            None => return false,
        }
    }
    true
}
