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
//!
//! **In the kernel.** A flow may leave for the kernel at any byte and be taken back at any byte (`ascent`). Then only a part of its messages comes
//! here, and all of the above holds for those as it did before.

mod ascent;
mod aside;
mod direction;
mod idle;

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Sleep;
use underpass_config::NodeSettings;

pub use ascent::Prospect;
pub use idle::IdleTimer;

use crate::ending::Ending;
use crate::flow::Flow;
use crate::offload;
use crate::socket;
use crate::stream::Stream;
use ascent::{Ascent, Sight};
use direction::{Direction, Reading, Stuck};

/// How long a reset waits for its last bytes to be taken by a receiver that is not reading. On a direct connection they
/// would be in the receiver's own queue; here they must still be put there, and a receiver that never reads must not
/// hold two sockets for it.
const FLUSH_BEFORE_RESET: Duration = Duration::from_secs(1);

/// Chunks that one direction moves before the other has its turn. Two saturated directions would otherwise not share the core:
/// whichever is looked at first could go on for as long as the runtime lets it.
const CHUNKS_PER_TURN: usize = 8;

/// Which end of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Downstream,
    Upstream,
}

impl Side {
    fn other(self) -> Self {
        match self {
            Self::Downstream => Self::Upstream,
            Self::Upstream => Self::Downstream,
        }
    }

    /// Which way what it sends goes.
    fn direction(self) -> offload::Direction {
        match self {
            Self::Downstream => offload::Direction::Out,
            Self::Upstream => offload::Direction::In,
        }
    }
}

/// Relays between `downstream` and `upstream` until both directions have ended, and says how it ended. When it returns,
/// both sockets have been told: closing them finishes with FIN or RST as the ending asks.
///
/// `settings` say after what time without a byte it is ended, and how the upstream is probed. `early` are bytes that the client
/// has sent already. With a `prospect` the flow may move into the kernel.
pub async fn relay(
    downstream: &Stream,
    upstream: &Stream,
    flow: &Flow,
    settings: &NodeSettings,
    early: Vec<u8>,
    prospect: Prospect<'_>,
) -> Ending {
    let mut pump = Pump::new(downstream, upstream, flow, Ascent::new(prospect, flow));
    pump.outward.stuck = Stuck::from_bytes(early);
    let mut idle_timer = IdleTimer::new(settings.timeouts.idle);
    let mut reset_watch = None;
    let ending = std::future::poll_fn(|cx| {
        if let Poll::Ready(ending) = flow.poll_end(cx) {
            return Poll::Ready(ending);
        }
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
        let moves_unseen = pump.ascent.kernel().is_some();
        idle_timer.poll(cx, flow.bytes_moved(), moves_unseen, || {
            if let Err(error) = socket::set_keepalive(upstream, &settings.keepalive) {
                tracing::debug!(%error, "keepalive could not be set");
            }
        })
    })
    .await;
    pump.ascent.end(ending.resets(), [downstream, upstream]);
    if ending.resets() {
        pump.push_held();
        pump.ascent.until_heard().await;
        socket::reset_on_close(downstream);
        socket::reset_on_close(upstream);
    }
    ending
}

/// Resolves when a socket has an error pending, which is what RST leaves behind. Needed only while the pump does not
/// read from it (its direction is stalled or has ended) and so would not see the reset.
async fn wait_for_reset(downstream: &Stream, upstream: &Stream) -> Side {
    tokio::select! {
        _ = downstream.failed() => Side::Downstream,
        _ = upstream.failed() => Side::Upstream,
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
    ascent: Ascent<'a>,
    /// The side that was reset, and until when its last bytes may be delivered.
    reset: Option<(Side, Pin<Box<Sleep>>)>,
}

impl<'a> Pump<'a> {
    fn new(downstream: &'a Stream, upstream: &'a Stream, flow: &'a Flow, ascent: Ascent<'a>) -> Self {
        let (outward, inward) = Default::default();
        Self {
            downstream,
            upstream,
            flow,
            outward,
            inward,
            ascent,
            reset: None,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Ending> {
        loop {
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
            let sight = Sight {
                flow: self.flow,
                downstream: self.downstream,
                upstream: self.upstream,
                halves: [&self.outward, &self.inward],
            };
            if self.ascent.poll(cx, &sight).is_pending() {
                return Poll::Pending;
            }
        }
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
        // What is sent while the agent joins the sockets could overtake, or be overtaken.
        if !expired && self.ascent.poll_answer(cx).is_pending() {
            return Poll::Pending;
        }
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
        let is_blind = |direction: &Direction| direction.stuck.is_some() || direction.state != Reading::Open;
        self.reset.is_none()
            && (is_blind(&self.outward)
                || is_blind(&self.inward)
                || self.ascent.is_holding()
                || self.ascent.is_parked())
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
        let (direction, from, to) = match sender {
            Side::Downstream => (&mut self.outward, self.downstream, self.upstream),
            Side::Upstream => (&mut self.inward, self.upstream, self.downstream),
        };
        let (receiver, way) = (sender.other(), sender.direction());
        let chunks = if was_reset { usize::MAX } else { CHUNKS_PER_TURN };
        for chunk in 1..=chunks {
            // The FIN is passed on in the next round at the earliest, so there has to be one.
            let kernel = self.ascent.kernel();
            let hold = direction.sender_has_ended && !was_reset && chunk < chunks && kernel.is_none();
            let count = |bytes| {
                self.flow.count(way, bytes);
                if let Some(kernel) = kernel {
                    kernel.flow().handed_on(way, bytes as u64);
                }
            };
            match direction.poll_flush(to, cx, hold, count) {
                Poll::Pending => return Step::Waiting,
                Poll::Ready(Err(_)) => return Step::Failed(receiver),
                Poll::Ready(Ok(())) => {}
            }
            match direction.state {
                Reading::Closed => return Step::Closed,
                // The end of what a reset side had sent is not a FIN: the reset follows it.
                Reading::Ended if was_reset => return Step::Closed,
                Reading::Ended if self.ascent.poll_read_out(sender, cx).is_pending() => return Step::Waiting,
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
                Reading::Open if self.ascent.is_holding() && !was_reset => return Step::Waiting,
                Reading::Open => {
                    if !was_reset && self.ascent.poll_room(sender, from, cx).is_pending() {
                        return Step::Waiting;
                    }
                    match direction.poll_fill(from, cx, was_reset) {
                        Poll::Pending => return Step::Waiting,
                        Poll::Ready(Err(_)) => return Step::Failed(sender),
                        Poll::Ready(Ok(())) => self.ascent.count_message(sender, direction.length()),
                    }
                    if direction.state == Reading::Ended && self.ascent.was_closed_unread(sender) {
                        return Step::Failed(sender);
                    }
                }
            }
        }
        // The other direction, and this core's other connections, have their turn.
        cx.waker().wake_by_ref();
        Step::Waiting
    }
}

#[cfg(test)]
mod tests;
