//! Moves a tunnel's bytes, both ways.
//!
//! A side that breaks off (its connection is reset, or takes nothing) may have said its last before: nothing more is brought to it, and what it had said goes on to
//! the other until its end has been read.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::time::Sleep;

use super::end::End;
use super::{Broke, FAREWELL};
use crate::http::idle::Activity;
use crate::http::record::Record;
use crate::telemetry::RequestCounts;

/// Where a tunnel's bytes are counted, and its moves noted.
pub(super) struct Counted<'r> {
    pub(super) record: &'r mut Record,
    pub(super) counts: &'r RequestCounts,
    pub(super) activity: &'r Activity,
}

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
    /// Ready when both have finished, or when one has broken off, which is then the error, and the other has what it had said before.
    pub(super) fn poll<C, E>(
        &mut self,
        client: &mut End,
        endpoint: &mut End,
        resets: &mut (Pin<&mut C>, Pin<&mut E>),
        counted: Counted<'_>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Broke>>
    where
        C: Future<Output = ()>,
        E: Future<Output = ()>,
    {
        let Counted {
            record,
            counts,
            activity,
        } = counted;
        let mut has_moved = false;
        if self.broke != Some(Broke::Endpoint) && !self.up.has_finished {
            let up = self.up.poll(client, endpoint, self.broke.is_none(), cx, |count| {
                record.tunneled += count;
                counts.tunnel_received(count);
                has_moved = true;
            });
            self.note(up, Broke::Client, Broke::Endpoint);
        }
        if self.broke != Some(Broke::Client) && !self.down.has_finished {
            let down = self.down.poll(endpoint, client, self.broke.is_none(), cx, |count| {
                record.sent += count;
                counts.tunnel_sent(count);
                has_moved = true;
            });
            self.note(down, Broke::Endpoint, Broke::Client);
        }
        if has_moved {
            activity.note();
            self.patience = None;
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
                return Poll::Pending;
            }
        }
        self.poll_farewell(cx)
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
        mut count: impl FnMut(u64),
    ) -> Poll<Result<(), Failed>> {
        while !self.has_finished {
            if !self.held.is_empty() {
                let written = ready!(to.poll_write(&self.held, cx)).map_err(|_| Failed::Sink)?;
                self.held.advance(written);
                from.taken(written);
                count(written as u64);
            } else if self.has_read_all && !may_finish {
                // The error that a reset leaves behind is told once, perhaps to whoever was writing: what looks like an end may be none.
                return Poll::Ready(Err(Failed::Source));
            } else if self.has_read_all {
                ready!(to.poll_finish(cx)).map_err(|_| Failed::Sink)?;
                self.has_finished = true;
            } else {
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
