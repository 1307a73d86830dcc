//! When a request has last moved: its client's bytes, or its endpoint's (Envoy's `stream_idle_timeout`).
//!
//! Whatever moves notes the time; whoever waits looks at it when the limit could have passed. So a byte costs a look at the clock, and no timer is set
//! anew for it.
//!
//! What an endpoint takes of a body that waits in kernels moves, too, and only kernels know: theirs is asked now and then, while there is
//! such a body.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::time::Instant;

use crate::socket;
use crate::stream::Stream;

/// How often within the limit a kernel is asked.
const LOOKS: u32 = 4;

/// When one request has last moved.
#[derive(Clone, Debug)]
pub struct Activity(Arc<Moments>);

#[derive(Debug)]
struct Moments {
    began: Instant,
    /// Nanoseconds from the beginning to the last move.
    last: AtomicU64,
    sent: Mutex<Option<Sent>>,
}

/// Where a body is sent, by a connection that has nothing else to send.
#[derive(Debug)]
struct Sent {
    socket: Weak<Stream>,
    /// Bytes that the peer's kernel had taken when it was last asked.
    taken: u64,
}

impl Activity {
    /// It moves now.
    pub fn begin() -> Self {
        Self(Arc::new(Moments {
            began: Instant::now(),
            last: AtomicU64::new(0),
            sent: Mutex::default(),
        }))
    }

    /// Has it move, too, with what the peer takes of what is written to `socket`.
    pub fn follow(&self, socket: Weak<Stream>) {
        *self.sent() = Some(Sent { socket, taken: 0 });
    }

    fn sent(&self) -> MutexGuard<'_, Option<Sent>> {
        self.0.sent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what the peer has taken. False: there is nothing to be taken.
    fn note_taken(&self) -> bool {
        let mut sent = self.sent();
        let Some(sent) = &mut *sent else { return false };
        let Some(socket) = sent.socket.upgrade() else {
            return false;
        };
        let (taken, ago) = socket::taken(&*socket);
        if std::mem::replace(&mut sent.taken, taken) != taken {
            let since = self.0.began.elapsed().saturating_sub(ago);
            // Something else may have moved later.
            self.0.last.fetch_max(nanos(since), Ordering::Relaxed);
        }
        true
    }

    /// Notes that it moves.
    pub fn note(&self) {
        self.0.last.store(nanos(self.0.began.elapsed()), Ordering::Relaxed);
    }

    /// Resolves when it has not moved for `limit`; without a limit, never.
    pub async fn ceased(&self, limit: Option<Duration>) {
        let Some(limit) = limit else {
            return std::future::pending().await;
        };
        loop {
            let last = self.last();
            let (end, now) = (last + limit, Instant::now());
            let is_sent = now > last && self.note_taken();
            if is_sent && self.last() > last {
                continue;
            }
            if now >= end {
                return;
            }
            let look = if is_sent { end.min(now + limit / LOOKS) } else { end };
            tokio::time::sleep_until(look).await;
        }
    }

    fn last(&self) -> Instant {
        self.0.began + Duration::from_nanos(self.0.last.load(Ordering::Relaxed))
    }
}

fn nanos(since: Duration) -> u64 {
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_moves_has_not_ceased() {
        let activity = Activity::begin();
        let (limit, began) = (Duration::from_secs(10), Instant::now());
        let moving = activity.clone();
        tokio::spawn(async move {
            for _ in 0..3 {
                tokio::time::sleep(Duration::from_secs(7)).await;
                moving.note();
            }
        });
        activity.ceased(Some(limit)).await;
        assert_eq!(began.elapsed(), Duration::from_secs(3 * 7 + 10));
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_limit_it_never_does() {
        let ceased = Activity::begin();
        let waited = tokio::time::timeout(Duration::from_secs(1 << 20), ceased.ceased(None)).await;
        assert!(waited.is_err());
    }
}
