//! A flow's way into the kernel, and the relay's part once it is there.
//!
//! **Holding.** The agent may join a flow only while the proxy holds nothing of it and sends nothing: what a receiver has unread when it is
//! joined would be overtaken. So nothing is read until what was sent has come and been read, and the agent, which alone can say so, has joined
//! the flow. As long as a receiver still takes what is on its way, it has enough to do and waiting costs it nothing; but when nothing has
//! moved for [`STILL`], or after [`HOLD`], the flow goes on as before and tries again later, each time later than the last. Only the
//! agent's answer has no time limit: while it may be joining, going on could put bytes in the wrong order. An agent that is
//! gone has answered; what one that hangs can stop is bounded (see `offload`).
//!
//! **Joined.** What the proxy sends goes into the receiver's queue by redirect, which nothing bounds. So the proxy measures the queue before
//! it reads, and leaves in the sender's connection what has no room: that is the sender's brake ([`crate::offload::WaitingRoom`]).
//! What was sent is reported to the kernel, which then lets the sender's next message pass by. Every message that does not pass
//! comes here, in order, like before.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep};
use underpass_config::OffloadSettings;

use super::Side;
use super::aside::{self, Pursuit};
use super::direction::Direction as Half;
use crate::flow::Flow;
use crate::offload::{Direction, Ends, InKernel, JoinAnswer, Locality, Offload, Place, Refusal, WaitingRoom, WhyNot};
use crate::socket;
use crate::stream::Stream;

/// How long a flow may be held for its join: what the buffers between two processes have (some 10 MB) a receiver of 100 MB/s reads in.
const HOLD: Duration = Duration::from_millis(100);

/// How long of that nothing may move: a reader's pause, which is no more than that to it.
const STILL: Duration = Duration::from_millis(15);

/// Until a held flow is looked at again: the runtime's timer has no shorter time.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// Until a flow that was not joined tries again: at first, and at most. It doubles each time.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(60));

/// Until a flow looks again whether the node has a kernel tier for it now.
const NODE_LOOK: Duration = Duration::from_secs(1);

/// How long a reset may wait for a receiver that reads to have read most of what the kernel has brought it.
const HEARS_WITHIN: Duration = Duration::from_secs(1);

/// What a receiver hears a reset beside, beyond the room that it was found to have when it was joined.
const BESIDE_ROOM: u32 = 64 * 1024;

/// Receive window and buffer of a joined flow's sockets, at least. What a sender can give to TCP while nobody reads is what it may send beyond
/// the limit.
const WINDOW: u32 = 16 * 1024;

/// But it must have room for so many of the largest segments: into a window that is smaller than one the sender sends only when its timer
/// fires, five times a second (`tcp_snd_wnd_test` and `tcp_write_wakeup` in the kernel's tcp_output.c).
const SEGMENTS: u32 = 2;

/// From this message on the receive windows of a flow that may be joined grow no more: what a sender was offered it may use before the brake
/// holds it, and the kernel would offer a stream megabytes. Between two processes of one node a small window is no slower.
const GROWN_AT: u32 = 2;

/// What a relay needs to know to move its flow into the kernel.
#[derive(Debug)]
pub struct Prospect<'a> {
    /// The kernel tier.
    pub offload: &'a Offload,
    /// When, and with which limits.
    pub settings: &'a OffloadSettings,
    /// Where both ends are.
    pub locality: Locality,
}

/// Where a flow stands.
enum Stage {
    Relayed,
    Holding(Box<Hold>),
    Joined(Box<Joined>),
    /// It will not be joined, whatever happens.
    Settled,
}

struct Hold {
    until: Instant,
    /// Wakes when it is time to look again; the first time that is at once.
    sleep: Pin<Box<Sleep>>,
    is_new: bool,
    /// What the receivers had taken, and since when no more.
    taken: [u64; 2],
    still_since: Instant,
    asked: Option<oneshot::Receiver<JoinAnswer>>,
    /// What the agent said last; else why it was not asked yet.
    why: Refusal,
}

struct Joined {
    kernel: Arc<InKernel>,
    halves: [Gate; 2],
}

/// The relay's side of one joined direction.
#[derive(Default)]
struct Gate {
    /// Whether we have let messages pass by.
    is_armed: bool,
    /// Where the sender waits for room.
    place: Option<Arc<Place>>,
    /// Bytes until the receiver would have to be waited for, and what had passed by when that was measured: while nothing else does, only the
    /// relay brings it any.
    room: (u64, u64),
    /// The sender's socket still has the receive buffer that it was joined with.
    is_wide: bool,
    /// How often in a row the sender has outrun us.
    pursuit: Pursuit,
}

impl Gate {
    /// Makes the buffer of `from`, the sender's socket, small, which is what stops a sender while nobody reads. Not before the queue is empty, and what
    /// the sender may still send has room in the small one: the kernel drops what has none, offered or not, and it comes again by timers, which
    /// back off for as long as the receiver is stuck.
    fn narrow(&mut self, from: &Stream) {
        let window = window(from);
        if self.is_wide && socket::receive_queue(from) == 0 && socket::receive_window(from) <= window {
            self.is_wide = false;
            socket::set_receive_buffer(from, window);
        }
    }
}

/// See the head of this module.
pub(super) struct Ascent<'a> {
    prospect: Prospect<'a>,
    stage: Stage,
    messages: u32,
    started: Instant,
    not_before: Option<Instant>,
    attempts: u8,
    /// Whether the receive windows may still grow.
    grows: bool,
    /// What had moved when the flow was last considered.
    considered: u32,
}

/// What the ascent sees of the pump.
pub(super) struct Sight<'a> {
    pub(super) flow: &'a Flow,
    pub(super) downstream: &'a Stream,
    pub(super) upstream: &'a Stream,
    pub(super) halves: [&'a Half; 2],
}

impl Sight<'_> {
    fn is_clear(&self) -> bool {
        self.halves.iter().all(|half| half.is_clear())
    }
}

impl<'a> Ascent<'a> {
    pub(super) fn new(prospect: Prospect<'a>, flow: &Flow) -> Self {
        let stage = match prospect.locality.is_away() {
            true => {
                flow.offload.set_why_not(WhyNot::NotLocal);
                Stage::Settled
            }
            false => Stage::Relayed,
        };
        Self {
            prospect,
            stage,
            messages: 0,
            started: Instant::now(),
            not_before: None,
            attempts: 0,
            grows: true,
            considered: 0,
        }
    }

    /// A message of `sender` was read, so long.
    pub(super) fn count_message(&mut self, sender: Side, length: usize) {
        self.messages = self.messages.saturating_add(1);
        if let Stage::Joined(joined) = &mut self.stage {
            let room = &mut joined.halves[sender as usize].room.0;
            *room = room.saturating_sub(length as u64);
        }
    }

    /// Whether nothing may be read now.
    pub(super) fn is_holding(&self) -> bool {
        matches!(self.stage, Stage::Holding(_))
    }

    /// The flow's part in the kernel.
    pub(super) fn kernel(&self) -> Option<&InKernel> {
        match &self.stage {
            Stage::Joined(joined) => Some(&joined.kernel),
            _ => None,
        }
    }

    /// Whether a sender waits for room.
    pub(super) fn is_parked(&self) -> bool {
        matches!(&self.stage, Stage::Joined(joined) if joined.halves.iter().any(|gate| gate.place.is_some()))
    }

    /// Whether `side`, which has just ended its stream, was closed with bytes unread that the kernel had brought it: without a proxy, the
    /// other side would have been reset.
    pub(super) fn was_closed_unread(&self, side: Side) -> bool {
        let to_it = side.other().direction();
        self.kernel().is_some_and(|kernel| kernel.was_closed_unread(to_it))
    }

    /// The flow is being reset: ready when the agent is not just joining it.
    pub(super) fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Stage::Holding(hold) = &mut self.stage {
            if let Some(answer) = &mut hold.asked {
                // A flow that was joined all the same leaves again when the answer is dropped.
                let _ = ready!(Pin::new(answer).poll(cx));
            }
            self.stage = Stage::Settled;
        }
        Poll::Ready(())
    }

    /// Goes on with the flow's way. Ready when the pump may move on: the flow was joined, or is not going to be for now.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, sight: &Sight<'_>) -> Poll<()> {
        if let Stage::Joined(joined) = &mut self.stage {
            joined.set_arms(sight);
            return Poll::Pending;
        }
        if self.grows && self.messages >= GROWN_AT && matches!(self.stage, Stage::Relayed) {
            self.grows = false;
            self.keep_windows(sight);
        }
        if matches!(self.stage, Stage::Relayed) && self.is_due(sight) {
            if let Some(why) = self.objection(sight) {
                // It was not held, so the pump need not move on.
                self.give_up(sight.flow, why.into());
                return Poll::Pending;
            }
            self.stage = Stage::Holding(Box::new(Hold::begin()));
        }
        let Stage::Holding(hold) = &mut self.stage else {
            return Poll::Pending;
        };
        match ready!(hold.poll(cx, &self.prospect, sight)) {
            Ok(kernel) => self.adopt(kernel, sight),
            Err(refusal) => self.give_up(sight.flow, refusal),
        }
        Poll::Ready(())
    }

    /// Keeps the senders' windows from growing, if the flow may be joined.
    fn keep_windows(&self, sight: &Sight<'_>) {
        if !self.prospect.offload.is_on(self.prospect.settings) || sight.flow.offload.is_forbidden() {
            return;
        }
        for stream in [sight.downstream, sight.upstream] {
            socket::keep_receive_buffer(stream);
        }
    }

    /// Whether it is worth to look, now that something has moved.
    fn is_due(&mut self, sight: &Sight<'_>) -> bool {
        if self.messages == self.considered {
            return false;
        }
        let after = &self.prospect.settings.after;
        let has_lasted = self.messages >= after.messages
            || sight.flow.bytes_moved() >= u64::from(after.bytes.0)
            || self.started.elapsed() >= after.time;
        if !has_lasted || self.not_before.is_some_and(|time| Instant::now() < time) {
            return false;
        }
        self.considered = self.messages;
        true
    }

    fn objection(&self, sight: &Sight<'_>) -> Option<WhyNot> {
        if sight.halves.iter().any(|half| !half.is_open()) {
            return Some(WhyNot::Ending);
        }
        let facts = &sight.flow.facts;
        let ends = [
            (sight.downstream, facts.source.address()),
            (sight.upstream, facts.destination),
        ];
        if !self.prospect.locality.is_here(ends[0], ends[1]) {
            return Some(WhyNot::NotLocal);
        }
        self.prospect
            .offload
            .objection(&sight.flow.offload, &Ends::of(facts), self.prospect.settings)
    }

    fn give_up(&mut self, flow: &Flow, refusal: Refusal) {
        let why = refusal.why;
        let is_news = flow.offload.set_why_not(why);
        if is_news || !why.is_of_the_node() {
            self.prospect.offload.refused(&refusal, &Ends::of(&flow.facts));
        }
        if !(why.may_pass() || refusal.again) {
            self.stage = Stage::Settled;
            return;
        }
        let pause = if why.is_of_the_node() {
            NODE_LOOK
        } else {
            self.attempts = self.attempts.saturating_add(1);
            (BACK_OFF.0 * (1 << (self.attempts - 1).min(15))).min(BACK_OFF.1)
        };
        self.not_before = Some(Instant::now() + pause);
        self.stage = Stage::Relayed;
    }

    fn adopt(&mut self, kernel: Arc<InKernel>, sight: &Sight<'_>) {
        for stream in [sight.downstream, sight.upstream] {
            socket::keep_receive_buffer(stream);
            socket::clamp_window(stream, window(stream));
            // If this process is killed, neither side may take what it has got for the whole.
            socket::reset_on_close(stream);
        }
        sight.flow.offload.joined(kernel.clone());
        self.prospect.offload.joined(&Ends::of(&sight.flow.facts));
        let halves = Direction::ALL.map(|_| Gate {
            is_wide: true,
            ..Gate::default()
        });
        let mut joined = Joined { kernel, halves };
        joined.set_arms(sight);
        self.stage = Stage::Joined(Box::new(joined));
    }

    /// Before something is read from `sender`, whose socket is `from`: ready when its receiver has room for it. Nothing else may be sent to
    /// the receiver in between.
    pub(super) fn poll_room(&mut self, sender: Side, from: &Stream, cx: &mut Context<'_>) -> Poll<()> {
        let Stage::Joined(joined) = &mut self.stage else {
            return Poll::Ready(());
        };
        let direction = sender.direction();
        let (low, limit) = (self.prospect.settings.low_watermark.0, self.prospect.settings.limit.0);
        joined.halves[direction as usize].narrow(from);
        if let Some(answer) = joined.poll_wait(direction, cx) {
            ready!(answer);
            // Now all that the sender has sent may follow, up to the limit. Who stopped it again in the middle of a message would never have it caught up.
            let passed_by = joined.kernel.tally(direction).bypassed_bytes;
            joined.halves[direction as usize].room = (u64::from(limit - low), passed_by);
            return Poll::Ready(());
        }
        let gate = &mut joined.halves[direction as usize];
        // While there is nothing to read there is nothing to measure for. What is wrong with the socket, reading it will tell.
        let _ = ready!(from.poll_readable(cx));
        let tally = joined.kernel.tally(direction);
        if gate.pursuit.is_in_vain(&tally) {
            aside::leave(joined.kernel.flow().sender_core(direction));
        }
        let passed_by = tally.bypassed_bytes;
        if gate.room.0 > 0 && gate.room.1 == passed_by {
            return Poll::Ready(());
        }
        let measured = joined.kernel.measure();
        let queued = joined.kernel.flow().queued(direction);
        if measured.is_ok() && queued <= low {
            gate.room = (u64::from(low - queued), passed_by);
            return Poll::Ready(());
        }
        self.prospect.offload.counts.count_park();
        joined.wait(&self.prospect.offload.room, direction, low, cx)
    }

    /// Before the end of what `sender` has sent is passed on: ready when its receiver has read all that was redirected to it. Sooner it would
    /// not see the end anyway; unless it is one that redirected bytes do not reach (splice(2)), and then its stream must not look complete.
    pub(super) fn poll_read_out(&mut self, sender: Side, cx: &mut Context<'_>) -> Poll<()> {
        let Stage::Joined(joined) = &mut self.stage else {
            return Poll::Ready(());
        };
        let direction = sender.direction();
        if let Some(answer) = joined.poll_wait(direction, cx) {
            return answer;
        }
        if joined.kernel.measure().is_ok() && joined.kernel.flow().queued(direction) == 0 {
            return Poll::Ready(());
        }
        joined.wait(&self.prospect.offload.room, direction, 0, cx)
    }

    /// Both ends are about to be reset, and nothing is redirected any more: waits until neither has so much in its queue that it might miss that. What comes
    /// for a socket while a system call is at work on it, the kernel keeps only up to a bound (tcp_add_backlog), and a reset comes once: a
    /// receiver that reads just then would wait for ever. One that does not read hears it in any case.
    pub(super) async fn until_heard(&self) {
        let Stage::Joined(joined) = &self.stage else {
            return;
        };
        let flow = joined.kernel.flow();
        let until = Instant::now() + HEARS_WITHIN;
        let (mut last, mut since) = (None, Instant::now());
        while joined.kernel.measure().is_ok() {
            let queued = Direction::ALL.map(|direction| flow.queued(direction));
            let hears =
                |(direction, queued): (Direction, u32)| queued <= flow.room(direction).saturating_add(BESIDE_ROOM);
            let now = Instant::now();
            // Of one that is at work on its socket, how much waits is not said.
            if last != Some(queued) || queued.contains(&u32::MAX) {
                (last, since) = (Some(queued), now);
            }
            if Direction::ALL.into_iter().zip(queued).all(hears) || now - since >= STILL || now >= until {
                return;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// The relay is over. An orderly end ends the sockets with FIN again.
    pub(super) fn end(&mut self, resets: bool, sockets: [&Stream; 2]) {
        let Stage::Joined(joined) = &self.stage else {
            return;
        };
        joined.kernel.disarm();
        if !resets {
            sockets.into_iter().for_each(socket::end_on_close);
        }
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        self.halves
            .iter()
            .filter_map(|gate| gate.place.as_ref())
            .for_each(|place| place.leave());
    }
}

impl Joined {
    /// Has the sender of a direction wait until no more than `low` bytes are in its receiver's queue.
    fn wait(&mut self, room: &WaitingRoom, direction: Direction, low: u32, cx: &mut Context<'_>) -> Poll<()> {
        self.kernel.set_parked(direction, true);
        let place = room.enter(&self.kernel, direction, low);
        self.halves[direction as usize].place.insert(place).poll(cx)
    }

    /// Goes on with such a wait, if there is one. Ready once: then it is over.
    fn poll_wait(&mut self, direction: Direction, cx: &mut Context<'_>) -> Option<Poll<()>> {
        let gate = &mut self.halves[direction as usize];
        if gate.place.as_ref()?.poll(cx).is_pending() {
            return Some(Poll::Pending);
        }
        gate.place = None;
        gate.room.0 = 0;
        self.kernel.set_parked(direction, false);
        Some(Poll::Ready(()))
    }

    /// Arms what may be armed, and takes back what may not.
    fn set_arms(&mut self, sight: &Sight<'_>) {
        let may_pass = || !sight.flow.offload.is_forbidden() && sight.flow.requested_end().is_none();
        for (direction, half) in Direction::ALL.into_iter().zip(sight.halves) {
            let gate = &mut self.halves[direction as usize];
            let wanted = half.is_open() && may_pass();
            if wanted == gate.is_armed {
                continue;
            }
            gate.is_armed = wanted;
            if wanted {
                self.kernel.flow().arm(direction);
                // Who forbids it says so first and disarms then; the order of our two must be as certain.
                fence(Ordering::SeqCst);
            }
            if !wanted || !may_pass() {
                self.kernel.flow().disarm(direction);
                gate.is_armed = false;
            }
        }
    }
}

impl Hold {
    fn begin() -> Self {
        let now = Instant::now();
        Self {
            until: now + HOLD,
            sleep: Box::pin(tokio::time::sleep_until(now)),
            is_new: true,
            taken: [0; 2],
            still_since: now,
            asked: None,
            why: WhyNot::NotDrained.into(),
        }
    }

    /// Ready with the answer, or with why there will be none for now.
    fn poll(&mut self, cx: &mut Context<'_>, prospect: &Prospect<'_>, sight: &Sight<'_>) -> Poll<JoinAnswer> {
        loop {
            if let Some(answer) = &mut self.asked {
                // Without an answer there is no agent any more.
                let answer = ready!(Pin::new(answer).poll(cx)).unwrap_or(Err(WhyNot::NoAgent.into()));
                self.asked = None;
                match answer {
                    Err(refusal) if refusal.again => self.why = refusal,
                    answer => return Poll::Ready(answer),
                }
                self.sleep.as_mut().reset(Instant::now() + LOOK_AGAIN);
            }
            if !std::mem::take(&mut self.is_new) {
                ready!(self.sleep.as_mut().poll(cx));
            }
            if self.is_lost(sight) {
                return Poll::Ready(Err(self.why));
            }
            self.sleep.as_mut().reset(Instant::now() + LOOK_AGAIN);
            if !was_sent(sight) {
                continue;
            }
            match prospect
                .offload
                .ask(sight.downstream, sight.upstream, prospect.settings.limit)
            {
                Ok(answer) => self.asked = Some(answer),
                Err(why) => return Poll::Ready(Err(why.into())),
            }
        }
    }

    /// Whether it has been held for too long.
    fn is_lost(&mut self, sight: &Sight<'_>) -> bool {
        let now = Instant::now();
        let taken = [sight.upstream, sight.downstream].map(|stream| socket::delivery(stream).taken);
        if taken != self.taken {
            (self.taken, self.still_since) = (taken, now);
        }
        now >= self.until || now >= self.still_since + STILL
    }
}

/// Whether everything has been sent; whether it was read, the agent says.
fn was_sent(sight: &Sight<'_>) -> bool {
    let is_waiting = |stream| socket::delivery(stream).is_waiting;
    sight.is_clear() && !is_waiting(sight.upstream) && !is_waiting(sight.downstream)
}

fn window(stream: &Stream) -> u32 {
    WINDOW.max(SEGMENTS * socket::largest_segment(stream))
}
