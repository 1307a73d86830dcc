//! Where a flow waits until its receiver has read: the parked message.
//!
//! While nothing is read from a sender's connection, the sender sleeps as on a full TCP connection. It must be let go on as soon as the
//! receiver's queue is short enough: late, and the receiver runs dry. There is no event for that, so the queues are looked at, by one
//! thread for the whole process, in one call for many flows; the runtimes' timers are too coarse (1 ms, in which a fast reader
//! empties its queue several times).
//!
//! The pauses grow with the time that a flow has waited: a fast reader is seen within a quarter of what it took. One that has not read for
//! seconds is seen within a twentieth of that, and within half a second. While nothing waits the thread sleeps.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::thread;
use std::time::{Duration, Instant};

use atomic_waker::AtomicWaker;

use super::{Direction, InKernel, KernelMemory, Ticket};
use crate::affinity;

/// First pause: some 40 KB of a fast reader.
const SHORTEST: Duration = Duration::from_micros(20);

/// A flow is looked at again after this part of the time that it has waited, but every 10 ms at least,
const PATIENCE: u32 = 4;
const LONG: Duration = Duration::from_millis(10);

/// until it has waited so long that the 10 ms would be less than this part of it; then so seldom, but twice a second at least.
const STUCK: u32 = 20;
const LONGEST: Duration = Duration::from_millis(500);

/// The thread wakes up when it asked to, not up to 50 µs later (prctl(2), `PR_SET_TIMERSLACK`).
const TIMER_SLACK_NS: NonZeroU64 = NonZeroU64::MIN;

/// One direction of a flow that waits.
#[derive(Debug)]
pub struct Place {
    kernel: Arc<InKernel>,
    direction: Direction,
    /// It waits until no more bytes than this are in the receiver's queue.
    low: u32,
    state: AtomicU8,
    waker: AtomicWaker,
}

const WAITING: u8 = 0;
const ROOM: u8 = 1;
const GONE: u8 = 2;

impl Place {
    /// Ready when the receiver has room.
    pub fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.waker.register(cx.waker());
        match self.state.load(Ordering::Acquire) {
            WAITING => Poll::Pending,
            _ => Poll::Ready(()),
        }
    }

    /// It waits no more.
    pub fn leave(&self) {
        self.state.store(GONE, Ordering::Release);
    }

    fn is_left(&self) -> bool {
        self.state.load(Ordering::Acquire) == GONE
    }

    fn has_room(&self) -> bool {
        self.kernel.flow().queued(self.direction) <= self.low
    }

    fn let_go(&self) {
        let _ = (self.state).compare_exchange(WAITING, ROOM, Ordering::AcqRel, Ordering::Relaxed);
        self.waker.wake();
    }
}

/// The room. Its thread is started when a flow first waits.
#[derive(Debug, Default)]
pub struct WaitingRoom(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    door: Mutex<Door>,
    arrived: Condvar,
}

#[derive(Debug, Default)]
struct Door {
    arrivals: Vec<Arc<Place>>,
    has_thread: bool,
    closed: bool,
}

impl Shared {
    fn door(&self) -> MutexGuard<'_, Door> {
        self.door.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl WaitingRoom {
    /// Has a direction of a flow wait until no more than `low` bytes are in its receiver's queue.
    pub fn enter(&self, kernel: &Arc<InKernel>, direction: Direction, low: u32) -> Arc<Place> {
        let place = Arc::new(Place {
            kernel: kernel.clone(),
            direction,
            low,
            state: AtomicU8::new(WAITING),
            waker: AtomicWaker::new(),
        });
        let mut door = self.0.door();
        door.arrivals.push(place.clone());
        if !door.has_thread {
            let shared = self.0.clone();
            let thread = thread::Builder::new().name("waiting-room".to_owned());
            door.has_thread = thread.spawn(move || Watch::default().run(&shared)).is_ok();
        }
        drop(door);
        self.0.arrived.notify_one();
        place
    }
}

impl Drop for WaitingRoom {
    fn drop(&mut self) {
        self.0.door().closed = true;
        self.0.arrived.notify_one();
    }
}

struct Waiting {
    place: Arc<Place>,
    since: Instant,
    look_at: Instant,
}

impl PartialEq for Waiting {
    fn eq(&self, other: &Self) -> bool {
        self.look_at == other.look_at
    }
}

impl Eq for Waiting {}

impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Waiting {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.look_at.cmp(&other.look_at)
    }
}

/// The thread's own.
struct Watch {
    started: Instant,
    waiting: BinaryHeap<Reverse<Waiting>>,
    complained: bool,
}

impl Default for Watch {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            waiting: BinaryHeap::new(),
            complained: false,
        }
    }
}

impl Watch {
    fn run(mut self, shared: &Shared) {
        // Without it only the first looks come later than they might.
        let _ = rustix::thread::set_current_timer_slack(Some(TIMER_SLACK_NS));
        // Who started it may have been away from a core (`relay/aside`).
        let _ = rustix::thread::sched_setaffinity(None, affinity::usual());
        while self.sleep(shared) {
            let now = Instant::now();
            let due = self.due(now);
            self.measure(&due);
            for mut waiting in due {
                if waiting.place.has_room() {
                    waiting.place.let_go();
                } else {
                    waiting.look_at = self.next_look(&waiting, now);
                    self.waiting.push(Reverse(waiting));
                }
            }
        }
    }

    /// When somebody who was looked at is looked at again. Those who have waited long all have their turn at the same times, so that a
    /// thousand stuck flows are one look.
    fn next_look(&self, waiting: &Waiting, now: Instant) -> Instant {
        let waited = now - waiting.since;
        if waited / PATIENCE < LONG {
            return now + (waited / PATIENCE).max(SHORTEST);
        }
        let turns = ((waited / STUCK).clamp(LONG, LONGEST).as_nanos() / LONG.as_nanos()).max(1);
        let past = (now - self.started).as_nanos() / (LONG.as_nanos() * turns);
        self.started + LONG * u32::try_from((past + 1) * turns).unwrap_or(u32::MAX)
    }

    /// Sleeps until somebody is to be looked at, and lets in who has come. False when the room is closed.
    fn sleep(&mut self, shared: &Shared) -> bool {
        let mut door = shared.door();
        loop {
            if door.closed {
                return false;
            }
            let now = Instant::now();
            for place in door.arrivals.drain(..) {
                let (since, look_at) = (now, now + SHORTEST);
                self.waiting.push(Reverse(Waiting { place, since, look_at }));
            }
            let Some(Reverse(next)) = self.waiting.peek() else {
                door = shared.arrived.wait(door).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let pause = next.look_at.saturating_duration_since(now);
            if pause.is_zero() {
                return true;
            }
            let woken = shared.arrived.wait_timeout(door, pause);
            door = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Takes out who is to be looked at.
    fn due(&mut self, now: Instant) -> Vec<Waiting> {
        let mut due = Vec::new();
        while self.waiting.peek().is_some_and(|Reverse(next)| next.look_at <= now)
            && let Some(Reverse(waiting)) = self.waiting.pop()
        {
            if !waiting.place.is_left() {
                due.push(waiting);
            }
        }
        due
    }

    fn measure(&mut self, due: &[Waiting]) {
        // One memory, but for the time after an agent was replaced.
        let mut rest: Vec<&Waiting> = due.iter().collect();
        while let Some(first) = rest.first() {
            let memory = first.place.kernel.memory().clone();
            let (of_it, others) = rest.into_iter().partition(|waiting| is_same(waiting, &memory));
            rest = others;
            let of_it: Vec<&Waiting> = of_it;
            let tickets: Vec<Ticket> = of_it
                .iter()
                .map(|waiting| waiting.place.kernel.flow().ticket())
                .collect();
            if let Err(error) = memory.measure(&tickets)
                && !std::mem::replace(&mut self.complained, true)
            {
                tracing::warn!(%error, "the kernel does not say how long receivers' queues are; their senders wait");
            }
        }
    }
}

fn is_same(waiting: &Waiting, memory: &Arc<dyn KernelMemory>) -> bool {
    std::ptr::addr_eq(Arc::as_ptr(waiting.place.kernel.memory()), Arc::as_ptr(memory))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::task::{Wake, Waker};

    use super::*;
    use crate::offload::KernelFlow;
    use crate::offload::fake::FakeKernel;

    const LOW: u32 = 1000;
    const SOON: Duration = Duration::from_secs(5);

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn eventually(what: &str, is_so: impl Fn() -> bool) {
        let start = Instant::now();
        while !is_so() {
            assert!(start.elapsed() < SOON, "{what}");
            thread::yield_now();
        }
    }

    #[test]
    fn who_waits_is_woken_when_the_receiver_has_read() {
        let room = WaitingRoom::default();
        let kernels = [FakeKernel::new(1), FakeKernel::new(2)];
        let woken = [(); 2].map(|()| Arc::new(Woken::default()));
        let wakers = woken.clone().map(Waker::from);
        let places: Vec<_> = (kernels.iter().zip(&wakers))
            .map(|(kernel, waker)| {
                kernel.set_queue(Direction::Out, LOW + 1);
                kernel.measure(&[kernel.ticket()]).unwrap();
                let place = room.enter(&kernel.joined(), Direction::Out, LOW);
                assert!(place.poll(&mut Context::from_waker(waker)).is_pending());
                place
            })
            .collect();
        let looks = || {
            kernels
                .each_ref()
                .map(|kernel| kernel.measurements.load(Ordering::SeqCst))
        };
        eventually("both are looked at", || looks().iter().all(|looks| *looks > 3));
        kernels[1].set_queue(Direction::Out, LOW);
        eventually("the second is woken", || woken[1].0.load(Ordering::SeqCst) > 0);
        assert!(places[1].poll(&mut Context::from_waker(&wakers[1])).is_ready());
        assert!(places[0].poll(&mut Context::from_waker(&wakers[0])).is_pending());
        assert_eq!(woken[0].0.load(Ordering::SeqCst), 0);
        let seen = looks()[1];
        eventually("the first is looked at on", || looks()[0] > seen + 3);
        assert_eq!(looks()[1], seen, "who has left is not looked at");
    }

    /// However many are stuck, and however long ago they came.
    #[test]
    fn the_stuck_are_looked_at_together_and_seldom() {
        let start = Instant::now();
        let mut watch = Watch::default();
        let kernel = FakeKernel::new(1);
        kernel.set_queue(Direction::Out, LOW + 1);
        let joined = kernel.joined();
        for number in 0..1000 {
            let since = start + Duration::from_micros(37 * number);
            let place = Arc::new(Place {
                kernel: joined.clone(),
                direction: Direction::Out,
                low: LOW,
                state: AtomicU8::new(WAITING),
                waker: AtomicWaker::new(),
            });
            let look_at = since + SHORTEST;
            watch.waiting.push(Reverse(Waiting { place, since, look_at }));
        }
        let (mut now, mut looks, mut looked_at) = (start, [0; 15], [0; 15]);
        while let Some(Reverse(next)) = watch.waiting.peek() {
            now = now.max(next.look_at);
            let second = (now - start).as_secs() as usize;
            if second >= looks.len() {
                break;
            }
            let due = watch.due(now);
            looks[second] += 1;
            looked_at[second] += due.len();
            for mut waiting in due {
                waiting.look_at = watch.next_look(&waiting, now);
                watch.waiting.push(Reverse(waiting));
            }
        }
        assert!(looks[1] <= 101 && looks[14] <= 5, "looks in each second: {looks:?}");
        assert!(
            looked_at[1] <= 101_000 && looked_at[14] <= 5_000,
            "flows looked at: {looked_at:?}"
        );
        assert!(looked_at[14] >= 2_000, "flows looked at: {looked_at:?}");
    }
}
