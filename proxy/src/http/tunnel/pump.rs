//! Moves a tunnel's bytes, both ways.
//!
//! A side that breaks off (its connection is reset, or takes nothing) may have said its last before: nothing more is brought to it, and what it had said goes on to
//! the other until its end has been read.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::time::Sleep;

use super::end::End;
use super::{Account, Broke, FAREWELL};
use crate::http::idle::Activity;

/// Pieces that one way moves before the other, and this core's other connections, have their turn.
const PIECES_PER_TURN: usize = 16;

/// Both ways.
#[derive(Debug, Default)]
pub(super) struct Pump {
    up: Way,
    down: Way,
    /// Who has broken off first. Only what it had said before is passed on.
    broke: Option<Broke>,
    patience: Option<Pin<Box<Sleep>>>,
    /// The last of whoever broke off was not taken.
    is_stuck: bool,
    /// How long the client may leave the endpoint's last untaken; and until when that is, once all of it is here, or as good as here.
    stalled: Option<Duration>,
    stall: Option<Pin<Box<Sleep>>>,
}

/// One way.
#[derive(Debug, Default)]
struct Way {
    /// Was read, and is to be written.
    held: Bytes,
    has_read_all: bool,
    /// All of it has come, and was passed on.
    has_finished: bool,
    /// It has failed.
    is_over: bool,
}

/// Which of the two failed.
#[derive(Clone, Copy)]
enum Failed {
    Source,
    Sink,
}

impl Pump {
    /// One by which nothing has moved. `stalled`: how long a client may leave untaken what its endpoint has sent last.
    pub(super) fn new(stalled: Option<Duration>) -> Self {
        Self {
            stalled,
            ..Self::default()
        }
    }

    /// Ready when both have finished, or when one has broken off, which is then the error, and the other has what it had said before.
    pub(super) fn poll<C, E>(
        &mut self,
        client: &mut End,
        endpoint: &mut End,
        resets: &mut (Pin<&mut C>, Pin<&mut E>),
        (account, activity): (&mut impl Account, &Activity),
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Broke>>
    where
        C: Future<Output = ()>,
        E: Future<Output = ()>,
    {
        let mut has_moved = false;
        if self.broke != Some(Broke::Endpoint) && !self.up.has_finished {
            let up = self.up.poll(client, endpoint, self.broke.is_none(), cx, |count| {
                account.up(count);
                has_moved = true;
            });
            self.note(up, Broke::Client, Broke::Endpoint);
        }
        if self.broke != Some(Broke::Client) && !self.down.has_finished {
            let down = self.down.poll(endpoint, client, self.broke.is_none(), cx, |count| {
                account.down(count);
                has_moved = true;
            });
            self.note(down, Broke::Endpoint, Broke::Client);
        }
        if has_moved {
            activity.note();
            self.patience = None;
            self.stall = None;
        }
        if self.broke.is_none() {
            if self.up.has_finished && self.down.has_finished {
                return Poll::Ready(Ok(()));
            }
            // Whether or not anybody reads.
            if client.poll_reset(cx).is_ready() || resets.0.as_mut().poll(cx).is_ready() {
                self.broke = Some(Broke::Client);
            } else if endpoint.poll_reset(cx).is_ready() || resets.1.as_mut().poll(cx).is_ready() {
                self.broke = Some(Broke::Endpoint);
            } else {
                return self.poll_stalled(endpoint, cx);
            }
        }
        if self.broke == Some(Broke::Endpoint) {
            // Nobody takes it.
            client.gather(cx);
        }
        self.poll_farewell(cx)
    }

    /// Ready when only the client keeps it, for too long.
    fn poll_stalled(&mut self, endpoint: &mut End, cx: &mut Context<'_>) -> Poll<Result<(), Broke>> {
        let Some(limit) = self.stalled else {
            return Poll::Pending;
        };
        let is_last = self.down.has_read_all || !self.down.held.is_empty() && endpoint.has_ended(cx);
        if self.down.has_finished || !is_last {
            self.stall = None;
            return Poll::Pending;
        }
        let stall = self.stall.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        ready!(stall.as_mut().poll(cx));
        Poll::Ready(Err(Broke::Stalled))
    }

    /// Notes how a way has ended, if it has, of whose ends these are.
    fn note(&mut self, polled: Poll<Result<(), Failed>>, source: Broke, sink: Broke) {
        let broke = match polled {
            Poll::Pending | Poll::Ready(Ok(())) => return,
            Poll::Ready(Err(Failed::Source)) => source,
            Poll::Ready(Err(Failed::Sink)) => sink,
        };
        let way = match source {
            Broke::Client => &mut self.up,
            _ => &mut self.down,
        };
        // Nothing more comes by it.
        way.is_over = true;
        self.broke.get_or_insert(broke);
    }

    /// Ready when the last of whoever broke off is passed on, or is not taken.
    fn poll_farewell(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broke>> {
        let broke = self.broke.unwrap_or(Broke::Idle);
        let last = match broke {
            Broke::Client => &self.up,
            _ => &self.down,
        };
        if last.is_over || last.has_finished {
            return Poll::Ready(Err(broke));
        }
        let patience = self
            .patience
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(FAREWELL)));
        ready!(patience.as_mut().poll(cx));
        self.is_stuck = true;
        Poll::Ready(Err(broke))
    }

    /// Whether the last of whoever broke off was not taken.
    pub(super) fn is_stuck(&self) -> bool {
        self.is_stuck
    }
}

impl Way {
    /// Ready when it has ended. The end itself is passed on if it `may_finish`.
    fn poll(
        &mut self,
        from: &mut End,
        to: &mut End,
        may_finish: bool,
        cx: &mut Context<'_>,
        mut count: impl FnMut(usize),
    ) -> Poll<Result<(), Failed>> {
        let mut pieces = 0;
        while !self.has_finished {
            if !self.held.is_empty() {
                let Poll::Ready(written) = to.poll_write(&self.held, cx) else {
                    from.gather(cx);
                    return Poll::Pending;
                };
                let written = written.map_err(|_| Failed::Sink)?;
                self.held.advance(written);
                from.taken(written);
                count(written);
            } else if self.has_read_all && !may_finish {
                // The error that a reset leaves behind is told once, perhaps to whoever was writing: what looks like an end may be none.
                return Poll::Ready(Err(Failed::Source));
            } else if self.has_read_all {
                ready!(to.poll_finish(cx)).map_err(|_| Failed::Sink)?;
                self.has_finished = true;
            } else if pieces == PIECES_PER_TURN {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            } else {
                pieces += 1;
                match from.poll_read(cx) {
                    Poll::Pending => {
                        ready!(to.poll_flush(cx)).map_err(|_| Failed::Sink)?;
                        return Poll::Pending;
                    }
                    Poll::Ready(Err(_)) => return Poll::Ready(Err(Failed::Source)),
                    Poll::Ready(Ok(Some(bytes))) => self.held = bytes,
                    Poll::Ready(Ok(None)) => self.has_read_all = true,
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}
