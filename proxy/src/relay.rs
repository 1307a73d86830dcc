//! The byte pump: everything that A sends reaches B, in order, and the end of the connection looks as it would without
//! a proxy.
//!
//! **One idea.** A direction owns no memory while nothing is stuck in it. Bytes are read into a buffer borrowed from the
//! core's pool and written at once; only what the receiver would not take keeps its buffer, and while it does, nothing
//! more is read from the sender, so that TCP's own flow control holds the sender back. An idle connection therefore costs two
//! sockets and this future.
//!
//! **Ends.** FIN is passed on as FIN, each direction for itself, after the last byte. RST is passed on as RST: when one
//! side has reset the connection, what it sent before is still delivered, as it would be from the receiver's own queue on
//! a direct connection, and then the other side is reset. An end that the proxy decides (policy, idleness, drain) resets
//! both sides, because a FIN in the middle of a stream would make a truncated stream look complete.
//!
//! **Counting.** A byte is counted when the receiver's kernel has taken it, once.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::RecvFlags;
use tokio::time::{Instant, Sleep};
use underpass_config::NodeSettings;

use crate::buffer::{self, Buffer};
use crate::ending::Ending;
use crate::flow::Flow;
use crate::socket;
use crate::stream::{Received, Stream};

/// How long a reset waits for its last bytes to be taken by a receiver that is not reading. On a direct connection they
/// would be in the receiver's own queue; here they must still be put there, and a receiver that never reads must not
/// hold two sockets for it.
const FLUSH_BEFORE_RESET: Duration = Duration::from_secs(1);

/// When the upstream begins to be probed with keepalives. Most connections do not last that long, and setting the probes takes
/// four system calls, of some thirty for a short connection (`l4-connect`).
const SETTLED_AFTER: Duration = Duration::from_secs(1);

/// Chunks that one direction moves before the other has its turn. Two saturated directions would otherwise not share the core:
/// whichever is looked at first could go on for as long as the runtime lets it.
const CHUNKS_PER_TURN: usize = 8;

/// Which end of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Downstream,
    Upstream,
}

/// Relays between `downstream` and `upstream` until both directions have ended, and says how it ended. When it returns,
/// both sockets have been told: closing them finishes with FIN or RST as the ending asks.
///
/// `settings` say after what time without a byte it is ended, and how the upstream is probed. `early` are bytes that the client
/// has sent already.
pub async fn relay(
    downstream: &Stream,
    upstream: &Stream,
    flow: &Flow,
    settings: &NodeSettings,
    early: Vec<u8>,
) -> Ending {
    let mut pump = Pump::new(downstream, upstream, flow);
    pump.outward.stuck = Stuck::from_bytes(early);
    let mut idle_timer = IdleTimer::new(settings.timeouts.idle);
    let mut reset_watch = None;
    let ending = std::future::poll_fn(|cx| {
        if let Poll::Ready(ending) = flow.poll_end(cx) {
            return Poll::Ready(ending);
        }
        let before = flow.bytes_moved();
        if let Poll::Ready(ending) = pump.poll(cx) {
            return Poll::Ready(ending);
        }
        if pump.is_blind_to_reset() {
            let watch = reset_watch.get_or_insert_with(|| Box::pin(wait_for_reset(downstream, upstream)));
            if let Poll::Ready(side) = watch.as_mut().poll(cx) {
                pump.note_reset(side);
                reset_watch = None;
                return pump.poll(cx);
            }
        }
        idle_timer.poll(cx, flow.bytes_moved() != before, || {
            if let Err(error) = socket::set_keepalive(upstream, &settings.keepalive) {
                tracing::debug!(%error, "keepalive could not be set");
            }
        })
    })
    .await;
    if ending.resets() {
        pump.push_held();
        socket::reset_on_close(downstream);
        socket::reset_on_close(upstream);
    }
    ending
}

/// Ends a connection in which nothing moves, and notices when it has lasted a while. The timer is not moved for each byte:
/// it fires at the earliest possible end, and is then set anew from the last byte seen.
struct IdleTimer {
    sleep: Pin<Box<Sleep>>,
    registered: bool,
    settled: bool,
    last_progress: Instant,
    limit: Duration,
}

impl IdleTimer {
    fn new(limit: Duration) -> Self {
        let sleep = Box::pin(tokio::time::sleep(limit.min(SETTLED_AFTER)));
        Self {
            sleep,
            registered: false,
            settled: false,
            last_progress: Instant::now(),
            limit,
        }
    }

    /// `settle` is called once, when the connection has lasted a while.
    fn poll(&mut self, cx: &mut Context<'_>, progress: bool, settle: impl Fn()) -> Poll<Ending> {
        let now = Instant::now();
        if progress {
            self.last_progress = now;
        }
        if self.registered && now < self.sleep.deadline() {
            return Poll::Pending;
        }
        self.registered = true;
        while self.sleep.as_mut().poll(cx).is_ready() {
            if !self.settled {
                self.settled = true;
                settle();
            }
            let due = self.last_progress + self.limit;
            if now >= due {
                return Poll::Ready(Ending::IdleTimeout);
            }
            self.sleep.as_mut().reset(due);
        }
        Poll::Pending
    }
}

/// Resolves when a socket has an error pending, which is what RST leaves behind. Needed only while the pump does not
/// read from it (its direction is stalled or has ended) and so would not see the reset.
async fn wait_for_reset(downstream: &Stream, upstream: &Stream) -> Side {
    tokio::select! {
        _ = downstream.failed() => Side::Downstream,
        _ = upstream.failed() => Side::Upstream,
    }
}

/// One direction's state.
#[derive(Default)]
struct Direction {
    /// What the receiver would not take yet.
    stuck: Option<Stuck>,
    state: Reading,
    /// What is left to read is all here, the sender's FIN included.
    sender_has_ended: bool,
    /// The end of what was sent waits in the receiver's socket for that FIN.
    is_held: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Reading {
    #[default]
    Open,
    /// The sender's FIN was read; the receiver is told when nothing is stuck.
    Ended,
    /// The FIN was passed on.
    Closed,
}

struct Stuck {
    buffer: Buffer,
    written: usize,
    length: usize,
}

impl Stuck {
    fn from_bytes(bytes: Vec<u8>) -> Option<Self> {
        let length = bytes.len();
        (length > 0).then(|| Stuck {
            buffer: bytes.into_boxed_slice(),
            written: 0,
            length,
        })
    }
}

/// What a step in one direction came to.
enum Step {
    /// Nothing can move now; wakers are registered.
    Waiting,
    /// FIN was passed on.
    Closed,
    /// This side's socket failed.
    Failed(Side),
}

struct Pump<'a> {
    downstream: &'a Stream,
    upstream: &'a Stream,
    flow: &'a Flow,
    outward: Direction,
    inward: Direction,
    /// The side that was reset, and until when its last bytes may be delivered.
    reset: Option<(Side, Pin<Box<Sleep>>)>,
}

impl<'a> Pump<'a> {
    fn new(downstream: &'a Stream, upstream: &'a Stream, flow: &'a Flow) -> Self {
        let (outward, inward) = Default::default();
        Self {
            downstream,
            upstream,
            flow,
            outward,
            inward,
            reset: None,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Ending> {
        if self.reset.is_none() {
            for side in [Side::Downstream, Side::Upstream] {
                if let Step::Failed(failed) = self.step(side, cx) {
                    self.note_reset(failed);
                    break;
                }
            }
        }
        if self.reset.is_some() {
            return self.poll_last_bytes(cx);
        }
        if self.outward.state == Reading::Closed && self.inward.state == Reading::Closed {
            return Poll::Ready(Ending::Completed);
        }
        Poll::Pending
    }

    /// Sends on what waits for a FIN that will not come.
    fn push_held(&self) {
        for (direction, to) in [(&self.outward, self.upstream), (&self.inward, self.downstream)] {
            if direction.is_held {
                to.push();
            }
        }
    }

    fn note_reset(&mut self, side: Side) {
        if self.reset.is_none() {
            self.reset = Some((side, Box::pin(tokio::time::sleep(FLUSH_BEFORE_RESET))));
        }
    }

    /// After `side` was reset: deliver what it had sent, then end.
    fn poll_last_bytes(&mut self, cx: &mut Context<'_>) -> Poll<Ending> {
        let Some((side, deadline)) = &mut self.reset else {
            return Poll::Pending;
        };
        let side = *side;
        let expired = deadline.as_mut().poll(cx).is_ready();
        if !expired && matches!(self.step(side, cx), Step::Waiting) && self.has_last_bytes(side) {
            return Poll::Pending;
        }
        Poll::Ready(match side {
            Side::Downstream => Ending::DownstreamReset,
            Side::Upstream => Ending::UpstreamReset,
        })
    }

    /// A reset socket never blocks a read, so a step that waits is waiting for the receiver.
    fn has_last_bytes(&self, sender: Side) -> bool {
        self.direction(sender).stuck.is_some()
    }

    /// True while a reset of one side could go unnoticed, because nothing is being read from it.
    fn is_blind_to_reset(&self) -> bool {
        self.reset.is_none()
            && [&self.outward, &self.inward]
                .iter()
                .any(|d| d.stuck.is_some() || d.state != Reading::Open)
    }

    fn direction(&self, sender: Side) -> &Direction {
        match sender {
            Side::Downstream => &self.outward,
            Side::Upstream => &self.inward,
        }
    }

    /// Moves as much as possible from `sender` to the other side.
    fn step(&mut self, sender: Side, cx: &mut Context<'_>) -> Step {
        let was_reset = self.reset.is_some();
        let is_last = [&self.outward, &self.inward]
            .iter()
            .any(|direction| direction.state == Reading::Closed);
        let (direction, from, to, receiver) = match sender {
            Side::Downstream => (&mut self.outward, self.downstream, self.upstream, Side::Upstream),
            Side::Upstream => (&mut self.inward, self.upstream, self.downstream, Side::Downstream),
        };
        let count = |bytes| match sender {
            Side::Downstream => self.flow.count_sent(bytes),
            Side::Upstream => self.flow.count_received(bytes),
        };
        let chunks = if was_reset { usize::MAX } else { CHUNKS_PER_TURN };
        for chunk in 1..=chunks {
            // The FIN is passed on in the next round at the earliest, so there has to be one.
            let hold = direction.sender_has_ended && !was_reset && chunk < chunks;
            match direction.poll_flush(to, cx, hold, count) {
                Poll::Pending => return Step::Waiting,
                Poll::Ready(Err(_)) => return Step::Failed(receiver),
                Poll::Ready(Ok(())) => {}
            }
            match direction.state {
                Reading::Closed => return Step::Closed,
                // The end of what a reset side had sent is not a FIN: the reset follows it.
                Reading::Ended if was_reset => return Step::Closed,
                Reading::Ended if is_last => {
                    // Closing the socket, which is next, sends this FIN; by then the connection has been counted and logged.
                    direction.state = Reading::Closed;
                    return Step::Closed;
                }
                Reading::Ended => {
                    return match to.end() {
                        Ok(()) => {
                            direction.state = Reading::Closed;
                            Step::Closed
                        }
                        Err(_) => Step::Failed(receiver),
                    };
                }
                Reading::Open => match direction.poll_fill(from, cx, was_reset) {
                    Poll::Pending => return Step::Waiting,
                    Poll::Ready(Err(_)) => return Step::Failed(sender),
                    Poll::Ready(Ok(())) => {}
                },
            }
        }
        // The other direction, and this core's other connections, have their turn.
        cx.waker().wake_by_ref();
        Step::Waiting
    }
}

impl Direction {
    /// Reads into a pooled buffer, which is then stuck until flushed. Nothing read is the end.
    fn poll_fill(&mut self, from: &Stream, cx: &mut Context<'_>, was_reset: bool) -> Poll<io::Result<()>> {
        let mut buffer = buffer::take();
        // A reset socket has all that it will ever have, whatever the runtime has heard of it so far.
        let received = if was_reset {
            receive_rest(from, &mut buffer)
        } else {
            from.poll_receive(cx, &mut buffer)
        };
        let length = match received {
            Poll::Ready(Ok(received)) => {
                self.sender_has_ended = received.peer_has_ended;
                received.length
            }
            other => {
                buffer::give_back(buffer);
                return other.map_ok(|_| ());
            }
        };
        if length == 0 {
            buffer::give_back(buffer);
            self.state = Reading::Ended;
        } else {
            self.stuck = Some(Stuck {
                buffer,
                written: 0,
                length,
            });
        }
        Poll::Ready(Ok(()))
    }

    /// Sends what is stuck; with `hold`, so that it can travel with the FIN.
    fn poll_flush(
        &mut self,
        to: &Stream,
        cx: &mut Context<'_>,
        hold: bool,
        count: impl Fn(usize),
    ) -> Poll<io::Result<()>> {
        while let Some(stuck) = &mut self.stuck {
            let taken = ready!(to.poll_send(cx, &stuck.buffer[stuck.written..stuck.length], hold))?;
            self.is_held = hold;
            count(taken);
            stuck.written += taken;
            if stuck.written == stuck.length
                && let Some(done) = self.stuck.take()
            {
                buffer::give_back(done.buffer);
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// Reads once from a socket that was reset. Nothing more is an end like any other.
fn receive_rest(from: &Stream, buffer: &mut [u8]) -> Poll<io::Result<Received>> {
    let length = loop {
        match rustix::net::recv(from, &mut *buffer, RecvFlags::DONTWAIT) {
            Ok((length, _)) => break length,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => break 0,
            Err(error) => return Poll::Ready(Err(error.into())),
        }
    };
    // What follows is RST, which must not overtake what waits for a FIN.
    let peer_has_ended = false;
    Poll::Ready(Ok(Received { length, peer_has_ended }))
}
