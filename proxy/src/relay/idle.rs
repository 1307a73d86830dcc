//! Ends a connection in which nothing moves.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

use crate::ending::Ending;

/// When the upstream begins to be probed with keepalives. Most connections do not last that long, and setting the probes takes
/// four system calls, of some thirty for a short connection (`l4-connect`).
const SETTLED_AFTER: Duration = Duration::from_secs(1);

/// Bytes that pass by the proxy wake nobody: they are seen when the timer fires. So often does it, in the time that a connection may be idle,
/// while the flow is in the kernel; the connection ends that part of it late at most.
const LOOKS_AT_THE_KERNEL: u32 = 8;

/// Ends a connection in which nothing moves, and notices when it has lasted a while. The timer is not moved for each byte:
/// it fires at the earliest possible end, and is then set anew from the last byte seen.
pub struct IdleTimer {
    sleep: Pin<Box<Sleep>>,
    registered: bool,
    settled: bool,
    last_progress: Instant,
    moved: u64,
    limit: Duration,
}

impl IdleTimer {
    pub fn new(limit: Duration) -> Self {
        let sleep = Box::pin(tokio::time::sleep(limit.min(SETTLED_AFTER)));
        Self {
            sleep,
            registered: false,
            settled: false,
            last_progress: Instant::now(),
            moved: 0,
            limit,
        }
    }

    /// `moved` is what has moved so far; `unseen` says whether more may move without waking the relay. `settle` is called
    /// once, when the connection has lasted a while.
    pub fn poll(&mut self, cx: &mut Context<'_>, moved: u64, unseen: bool, settle: impl Fn()) -> Poll<Ending> {
        let now = Instant::now();
        if moved != self.moved {
            self.moved = moved;
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
            let look = now + self.limit / LOOKS_AT_THE_KERNEL;
            self.sleep.as_mut().reset(if unseen { due.min(look) } else { due });
        }
        Poll::Pending
    }
}
