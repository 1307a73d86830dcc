//! A request's body on its way to an endpoint, and again to another while that is possible.
//!
//! **One idea.** The client's body is read once, by whichever try is the current one. What was read is kept beside until it is more than
//! the limit; then nothing is, and there will be no other try. A try that another has taken the place of reads no further.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::Broken;
use super::arriving::Arriving;
use super::idle::Activity;
use super::messages::Messages;
use super::tap::{Feed, Pace, tap};

/// The number of no try.
const NONE: u32 = 0;

/// A request's body, and what of it was sent.
#[derive(Clone, Debug)]
pub struct Upload {
    source: Arc<Source>,
}

#[derive(Debug)]
struct Source {
    state: Mutex<State>,
    activity: Activity,
    /// Told when the client has sent all of it.
    completed: Notify,
}

#[derive(Debug)]
struct State {
    incoming: Arriving,
    kept: Kept,
    /// Who gets a copy.
    taps: Vec<Feed>,
    /// Whether its length was said beforehand.
    has_length: bool,
    has_ended: bool,
    has_trailers: bool,
    /// As much has come as was announced; the end itself may come by itself, and nobody asks for it.
    is_all_here: bool,
    has_broken: bool,
    /// When the last of it came; none: it has not, or there was nothing to wait for.
    completed_at: Option<Instant>,
    /// Our address of the connection by which it goes, or went last.
    local: Option<SocketAddr>,
    received: u64,
    messages: Option<Messages>,
    attempt: u32,
}

impl Upload {
    /// The body of a request, of which up to `room` bytes are kept for further tries. The messages of one of gRPC are counted.
    pub fn new(incoming: Arriving, room: usize, is_grpc: bool) -> Self {
        let has_ended = incoming.is_end_stream();
        let state = State {
            has_length: incoming.size_hint().exact().is_some(),
            is_all_here: incoming.size_hint().exact() == Some(0),
            incoming,
            kept: Kept::new(room),
            taps: Vec::new(),
            has_ended,
            has_trailers: false,
            has_broken: false,
            completed_at: None,
            local: None,
            received: 0,
            messages: is_grpc.then(Messages::default),
            attempt: 0,
        };
        let (state, completed) = (Mutex::new(state), Notify::new());
        let activity = Activity::begin();
        Self {
            source: Arc::new(Source {
                state,
                activity,
                completed,
            }),
        }
    }

    /// One that was read to its end, so many bytes, and goes nowhere.
    pub fn read(received: u64) -> Self {
        let upload = Self::new(Arriving::Nothing, 0, false);
        upload.state().received = received;
        upload
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.source.state()
    }

    /// The body for one try, from its beginning; the tries before get no more. One whose beginning is not kept any more breaks.
    pub fn attempt(&self) -> Attempt {
        let mut state = self.state();
        let has_beginning = state.received == 0 || state.kept.can_replay;
        state.attempt += 1;
        state.kept.next = 0;
        let number = if has_beginning { state.attempt } else { NONE };
        // Nothing to send is known to be so before it is asked for: the request is framed by it.
        let is_empty = state.has_ended && state.received == 0;
        let is_whole = is_empty || state.is_all_here && state.received == 0;
        drop(state);
        Attempt {
            source: self.source.clone(),
            number,
            has_ended: is_empty,
            sent: Sent::new(is_whole),
        }
    }

    /// A copy of it, of which up to `room` bytes wait to be read, and what tells of that. It is asked for before any of the body is read.
    pub fn tapped(&self, room: usize) -> (Arriving, Option<Pace>) {
        let mut state = self.state();
        if state.has_ended {
            return (Arriving::Nothing, None);
        }
        let (feed, tap) = tap(state.incoming.size_hint().exact(), room);
        state.taps.push(feed);
        let pace = tap.pace();
        (Arriving::Tapped(tap), Some(pace))
    }

    /// Messages of gRPC that the client has sent.
    pub fn messages(&self) -> u64 {
        self.state().messages.map_or(0, |messages| messages.count())
    }

    /// Whether it can be sent once more, as far as is known now: a try that goes on reading may yet come to the end of what is kept.
    pub fn can_replay(&self) -> bool {
        self.state().can_replay()
    }

    /// Has the tries before get no more, if it can be sent once more: it can then be later, too.
    pub fn stop_for_another(&self) -> bool {
        let mut state = self.state();
        let can_replay = state.can_replay();
        if can_replay {
            state.attempt += 1;
        }
        can_replay
    }

    /// Tries that were begun, and ended for others.
    pub fn attempts(&self) -> u32 {
        self.state().attempt
    }

    /// There will be no other try: nothing more is kept than what the one that goes on has yet to send.
    pub fn settle(&self) {
        self.state().kept.settle();
    }

    /// When its request has last moved.
    pub fn activity(&self) -> &Activity {
        &self.source.activity
    }

    /// Bytes that the client has sent.
    pub fn received(&self) -> u64 {
        self.state().received
    }

    /// Whether all of it has come.
    pub fn is_complete(&self) -> bool {
        let state = self.state();
        state.has_ended || state.is_all_here
    }

    /// Notes our address of the connection by which it goes now, for logs.
    pub fn goes_by(&self, local: Option<SocketAddr>) {
        self.state().local = local;
    }

    /// Our address of the connection by which it went last.
    pub fn local(&self) -> Option<SocketAddr> {
        self.state().local
    }

    /// When the last of it came; none: it has not, or there was nothing to wait for.
    pub fn completed_at(&self) -> Option<Instant> {
        self.state().completed_at
    }

    /// Whether everybody sees its end where we do, if it came by HTTP/1.1: its length was said beforehand, or the last chunk has come and nothing behind it. The
    /// codec lets the lines of trailers, even the one that has none, end with a bare LF or not, and so what begins with one can hide a request that another sees.
    pub fn has_plain_end(&self) -> bool {
        let state = self.state();
        state.has_length || state.has_ended && !state.has_trailers
    }

    /// Whether any of it was asked for.
    pub fn was_asked_for(&self) -> bool {
        let state = self.state();
        state.has_ended || state.is_all_here || state.received > 0
    }

    /// Whether the client broke it off.
    pub fn has_broken(&self) -> bool {
        self.state().has_broken
    }

    /// Resolves when all of it has come.
    pub async fn completed(&self) {
        // Made before the look: of several that wait, none misses it.
        let completed = self.source.completed.notified();
        if !self.is_complete() {
            completed.await;
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
    has_ended: bool,
    sent: Sent,
}

/// Whether a try's codec was given all of the request.
#[derive(Clone, Debug, Default)]
pub struct Sent(Arc<Told>);

#[derive(Debug, Default)]
struct Told {
    is_whole: AtomicBool,
    was_broken_off: AtomicBool,
}

impl Sent {
    fn new(is_whole: bool) -> Self {
        Self(Arc::new(Told {
            is_whole: AtomicBool::new(is_whole),
            was_broken_off: AtomicBool::default(),
        }))
    }

    /// There is nothing to send.
    pub fn whole() -> Self {
        Self::new(true)
    }

    fn note_whole(&self) {
        self.0.is_whole.store(true, Ordering::Relaxed);
    }

    /// Whether it was.
    pub fn is_whole(&self) -> bool {
        self.0.is_whole.load(Ordering::Relaxed)
    }

    /// Whether it was told to break off, by the client or for another try: what came of that is not the endpoint's doing.
    pub fn was_broken_off(&self) -> bool {
        self.0.was_broken_off.load(Ordering::Relaxed)
    }
}

impl Attempt {
    /// Notes that the endpoint has taken some of it.
    pub fn moves(&self) {
        self.source.activity.note();
    }

    /// What tells when all of it is sent.
    pub fn sent(&self) -> Sent {
        self.sent.clone()
    }

    fn end(&mut self) {
        self.has_ended = true;
        self.sent.note_whole();
    }

    fn break_off(&self, why: Broken) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        self.sent.0.was_broken_off.store(true, Ordering::Relaxed);
        Poll::Ready(Some(Err(why)))
    }
}

impl Body for Attempt {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let this = &mut *self;
        let source = this.source.clone();
        let mut state = source.state();
        if state.attempt != this.number {
            return this.break_off(Broken::Superseded);
        }
        if let Some(piece) = state.kept.take() {
            // Its codec, which knows the length, need not ask whether anything follows.
            match state.kept.left() == 0 {
                true if state.has_ended => this.end(),
                true if state.is_all_here => this.sent.note_whole(),
                _ => {}
            }
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        if state.has_ended {
            this.end();
            return Poll::Ready(None);
        }
        let frame = std::task::ready!(Pin::new(&mut state.incoming).poll_frame(cx));
        source.activity.note();
        let frame = match frame {
            None => None,
            Some(Ok(frame)) => Some(frame),
            Some(Err(_)) => {
                state.has_broken = true;
                state.taps.clear();
                return this.break_off(Broken::Downstream);
            }
        };
        if let Some(frame) = &frame {
            state.keep(frame);
        }
        state.has_ended = frame.is_none() || state.incoming.is_end_stream();
        let is_all_here = state.incoming.size_hint().exact() == Some(0);
        let was_all_here = std::mem::replace(&mut state.is_all_here, is_all_here);
        state.tell_taps();
        if state.has_ended {
            this.end();
        } else if state.is_all_here {
            this.sent.note_whole();
        }
        if state.has_ended || state.is_all_here && !was_all_here {
            state.completed_at.get_or_insert_with(Instant::now);
            source.completed.notify_waiters();
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
        let kept = state.kept.left();
        match state.incoming.size_hint().exact() {
            _ if !state.has_length => SizeHint::default(),
            _ if state.has_ended => SizeHint::with_exact(kept),
            Some(rest) => SizeHint::with_exact(rest + kept),
            None => SizeHint::default(),
        }
    }
}

impl State {
    fn can_replay(&self) -> bool {
        self.kept.can_replay && !self.has_broken
    }

    fn keep(&mut self, frame: &Frame<Bytes>) {
        match frame.data_ref() {
            Some(data) => {
                self.received += data.len() as u64;
                if let Some(messages) = &mut self.messages {
                    messages.pass(data);
                }
                self.kept.keep(data);
                if !self.taps.is_empty() {
                    let piece = unshared(data);
                    self.taps.retain(|tap| tap.data(&piece));
                }
            }
            // Trailers are not sent twice: rare, and then the request is tried once.
            None => {
                self.has_trailers = true;
                self.kept.settle();
            }
        }
        if let Some(trailers) = frame.trailers_ref() {
            self.taps.iter().for_each(|tap| tap.trailers(trailers));
        }
    }

    /// Tells those who get copies how far it is.
    fn tell_taps(&mut self) {
        if self.has_ended {
            self.taps.drain(..).for_each(Feed::end);
        } else if self.is_all_here {
            self.taps.iter_mut().for_each(Feed::note_all_here);
        }
    }
}

/// A piece that is smaller does not hold the buffer that it was read into.
const SMALL: usize = 4096;

/// A piece that is to be kept.
fn unshared(data: &Bytes) -> Bytes {
    match data.len() < SMALL {
        true => Bytes::copy_from_slice(data),
        false => data.clone(),
    }
}

/// What of a body was read, for further tries.
#[derive(Debug)]
struct Kept {
    pieces: VecDeque<Bytes>,
    /// The next that the current try sends.
    next: usize,
    /// Bytes that may yet be kept.
    room: usize,
    can_replay: bool,
}

impl Kept {
    /// What a piece costs beside its bytes.
    const PIECE: usize = 64;

    fn new(room: usize) -> Self {
        Self {
            pieces: VecDeque::new(),
            next: 0,
            room,
            can_replay: true,
        }
    }

    /// Keeps a piece that was read and sent, if there is room; otherwise there will be no other try.
    fn keep(&mut self, data: &Bytes) {
        if !self.can_replay {
            return;
        }
        match self.room.checked_sub(data.len() + Self::PIECE) {
            Some(room) => {
                self.room = room;
                self.pieces.push_back(unshared(data));
                self.next = self.pieces.len();
            }
            None => self.settle(),
        }
    }

    /// The next piece for the current try.
    fn take(&mut self) -> Option<Bytes> {
        if !self.can_replay {
            return self.pieces.pop_front();
        }
        let piece = self.pieces.get(self.next)?.clone();
        self.next += 1;
        Some(piece)
    }

    /// Bytes that the current try has yet to send of it.
    fn left(&self) -> u64 {
        self.pieces.iter().skip(self.next).map(|piece| piece.len() as u64).sum()
    }

    /// Frees what the current try has sent: there will be no other.
    fn settle(&mut self) {
        self.can_replay = false;
        self.pieces.drain(..self.next);
        self.pieces.shrink_to_fit();
        self.next = 0;
    }
}

/// Reads and drops what is left of a response, so that its connection can be used again; for a little while, and a little of it.
pub async fn discard(mut body: Arriving, most: usize) -> bool {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_of_many_small_pieces_is_kept_no_further_than_its_room() {
        let mut kept = Kept::new(6500);
        let buffer = Bytes::from(vec![0; 1 << 20]);
        for n in 0..100 {
            kept.keep(&buffer.slice(n..=n));
        }
        assert!(kept.can_replay);
        assert!(buffer.is_unique(), "a piece of a byte holds a buffer of a megabyte");
        kept.keep(&buffer.slice(..1));
        assert!(!kept.can_replay && kept.pieces.is_empty());
    }

    #[test]
    fn what_a_try_has_yet_to_send_outlives_the_decision_that_it_is_the_last() {
        let mut kept = Kept::new(1 << 20);
        for piece in ["a", "b", "c"] {
            kept.keep(&Bytes::from(piece));
        }
        kept.next = 0;
        assert_eq!((kept.take().unwrap(), kept.left()), (Bytes::from("a"), 2));
        kept.settle();
        assert_eq!((kept.pieces.len(), kept.left()), (2, 2));
        assert_eq!(
            (kept.take().unwrap(), kept.take().unwrap(), kept.take()),
            (Bytes::from("b"), Bytes::from("c"), None)
        );
        assert_eq!(kept.left(), 0);
    }
}
