//! A copy of a request's body, for a mirror.
//!
//! **One idea.** Whoever reads the client's body gives each piece to its taps, which share its bytes, and never waits for them: a tap that holds as much as
//! it may breaks off, and with it the request that its body is of. So a slow mirror costs a bounded amount of memory, and no time.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use atomic_waker::AtomicWaker;
use bytes::Bytes;
use http::HeaderMap;
use hyper::body::{Frame, SizeHint};

use super::arriving::BrokenOff;

/// What a piece costs beside its bytes.
const PIECE: usize = 64;

#[derive(Debug)]
struct Pipe {
    state: Mutex<State>,
    reader: AtomicWaker,
    /// Whoever waits for its end.
    watcher: AtomicWaker,
    was_slow: AtomicBool,
    /// As much has come as was announced, whether or not anybody asks for the end.
    has_come: AtomicBool,
}

#[derive(Debug)]
struct State {
    pieces: VecDeque<Bytes>,
    trailers: Option<HeaderMap>,
    /// Bytes that may yet wait.
    room: usize,
    end: End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Open,
    Whole,
    Broken,
}

impl Pipe {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where the body is read. One that is dropped before the end breaks the copy off, unless all that was announced has come.
#[derive(Debug)]
pub struct Feed {
    pipe: Arc<Pipe>,
    is_all_here: bool,
}

/// Where it is copied to.
#[derive(Debug)]
pub struct Tap {
    pipe: Arc<Pipe>,
    /// Bytes that are to come, where that was said beforehand.
    left: Option<u64>,
}

/// What can be told of a tap that another has.
#[derive(Clone, Debug)]
pub struct Pace(Arc<Pipe>);

impl Pace {
    /// Resolves when nothing more is copied: all of the body has come, or the copy has broken off. Whether it is read makes no difference.
    pub async fn over(&self) {
        poll_fn(|cx| {
            self.0.watcher.register(cx.waker());
            match self.0.has_come.load(Ordering::Relaxed) || self.0.state().end != End::Open {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }
        })
        .await;
    }

    /// Whether it broke off because it was read too slowly.
    pub fn was_slow(&self) -> bool {
        self.0.was_slow.load(Ordering::Relaxed)
    }
}

/// Both ends of a copy of a body of `length` bytes, if that is known, of which up to `room` wait.
pub fn tap(length: Option<u64>, room: usize) -> (Feed, Tap) {
    let state = State {
        pieces: VecDeque::new(),
        trailers: None,
        room,
        end: End::Open,
    };
    let pipe = Arc::new(Pipe {
        state: Mutex::new(state),
        reader: AtomicWaker::new(),
        watcher: AtomicWaker::new(),
        was_slow: AtomicBool::new(false),
        has_come: AtomicBool::new(length == Some(0)),
    });
    let feed = Feed {
        pipe: pipe.clone(),
        is_all_here: length == Some(0),
    };
    (feed, Tap { pipe, left: length })
}

impl Feed {
    /// Gives it a piece. False: it takes no more.
    pub fn data(&self, piece: &Bytes) -> bool {
        let mut state = self.pipe.state();
        if state.end != End::Open {
            return false;
        }
        match state.room.checked_sub(piece.len() + PIECE) {
            Some(room) => {
                state.room = room;
                state.pieces.push_back(piece.clone());
            }
            None => {
                self.pipe.was_slow.store(true, Ordering::Relaxed);
                state.pieces = VecDeque::new();
                state.end = End::Broken;
            }
        }
        let is_open = state.end == End::Open;
        drop(state);
        self.pipe.reader.wake();
        if !is_open {
            self.pipe.watcher.wake();
        }
        is_open
    }

    /// Gives it what follows the body.
    pub fn trailers(&self, trailers: &HeaderMap) {
        self.pipe.state().trailers = Some(trailers.clone());
    }

    /// As much has come as was announced; the end itself may be asked for by nobody.
    pub fn note_all_here(&mut self) {
        self.is_all_here = true;
        self.pipe.has_come.store(true, Ordering::Relaxed);
        self.pipe.watcher.wake();
    }

    /// The body has ended.
    pub fn end(mut self) {
        self.is_all_here = true;
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        let mut state = self.pipe.state();
        if state.end == End::Open {
            state.end = if self.is_all_here { End::Whole } else { End::Broken };
        }
        drop(state);
        self.pipe.reader.wake();
        self.pipe.watcher.wake();
    }
}

impl Tap {
    /// What tells of it.
    pub fn pace(&self) -> Pace {
        Pace(self.pipe.clone())
    }

    /// The next frame.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        self.pipe.reader.register(cx.waker());
        let mut state = self.pipe.state();
        if let Some(piece) = state.pieces.pop_front() {
            state.room += piece.len() + PIECE;
            self.left = self.left.map(|left| left.saturating_sub(piece.len() as u64));
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        match state.end {
            End::Open => Poll::Pending,
            End::Broken => Poll::Ready(Some(Err(BrokenOff::Closed))),
            End::Whole => Poll::Ready(state.trailers.take().map(|trailers| Ok(Frame::trailers(trailers)))),
        }
    }

    /// Whether it has come to its end.
    pub fn is_end_stream(&self) -> bool {
        let state = self.pipe.state();
        state.end == End::Whole && state.pieces.is_empty() && state.trailers.is_none()
    }

    /// What is to come.
    pub fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        // Nothing is kept for nobody.
        let mut state = self.pipe.state();
        state.end = End::Broken;
        state.pieces = VecDeque::new();
        drop(state);
        self.pipe.watcher.wake();
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    fn next(tap: &mut Tap) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        tap.poll_frame(&mut Context::from_waker(Waker::noop()))
    }

    #[tokio::test]
    async fn it_is_over_when_no_more_comes_though_nobody_reads_it() {
        let (feed, copy) = tap(None, 100 + PIECE);
        let pace = copy.pace();
        let mut over = Box::pin(async move { pace.over().await });
        let mut is_over = || over.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready();
        assert!(feed.data(&Bytes::from(vec![0; 100])) && !is_over());
        assert!(!feed.data(&Bytes::from("a")));
        assert!(is_over(), "it was broken off");
        for length in [None, Some(1)] {
            let (mut feed, copy) = tap(length, 1 << 10);
            let pace = copy.pace();
            let waiting = tokio::spawn(async move { pace.over().await });
            tokio::task::yield_now().await;
            assert!(!waiting.is_finished());
            match length {
                None => feed.end(),
                Some(_) => feed.note_all_here(),
            }
            waiting.await.expect("it is over");
            drop(copy);
        }
    }

    fn data(polled: Poll<Option<Result<Frame<Bytes>, BrokenOff>>>) -> Bytes {
        match polled {
            Poll::Ready(Some(Ok(frame))) => frame.into_data().unwrap(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_was_read_comes_in_its_order_with_its_trailers() {
        let (feed, mut tap) = tap(None, 1 << 10);
        assert!(next(&mut tap).is_pending());
        assert!(feed.data(&Bytes::from("a")) && feed.data(&Bytes::from("b")));
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", "2".parse().unwrap());
        feed.trailers(&trailers);
        feed.end();
        assert_eq!((data(next(&mut tap)), data(next(&mut tap))), ("a".into(), "b".into()));
        assert!(!tap.is_end_stream());
        let Poll::Ready(Some(Ok(frame))) = next(&mut tap) else {
            panic!("no trailers")
        };
        assert_eq!(frame.into_trailers().unwrap(), trailers);
        assert!(tap.is_end_stream() && matches!(next(&mut tap), Poll::Ready(None)));
    }

    #[test]
    fn a_copy_that_is_read_too_slowly_breaks_off_and_keeps_nothing() {
        let (feed, mut tap) = tap(None, 2 * (1000 + PIECE));
        let (piece, pace) = (Bytes::from(vec![0; 1000]), tap.pace());
        assert!(feed.data(&piece) && feed.data(&piece));
        // What was read makes room.
        assert_eq!(data(next(&mut tap)).len(), 1000);
        assert!(feed.data(&piece) && !pace.was_slow());
        assert!(!feed.data(&piece) && pace.was_slow());
        feed.end();
        assert!(matches!(next(&mut tap), Poll::Ready(Some(Err(BrokenOff::Closed)))));
        assert!(piece.is_unique(), "a piece is kept for a copy that broke off");
    }

    #[test]
    fn a_body_that_breaks_off_is_no_whole_copy() {
        for (length, expected) in [(None, false), (Some(1), false), (Some(0), true)] {
            let (feed, mut tap) = tap(length, 1 << 10);
            drop(feed);
            assert_eq!(matches!(next(&mut tap), Poll::Ready(None)), expected, "{length:?}");
        }
    }

    #[test]
    fn one_that_nobody_reads_takes_nothing() {
        let (feed, tap) = tap(None, 1 << 10);
        drop(tap);
        assert!(!feed.data(&Bytes::from("a")));
    }
}
