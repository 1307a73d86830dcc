//! When a request has last moved: its client's bytes, or its endpoint's (Envoy's `stream_idle_timeout`).
//!
//! Whatever moves notes the time; whoever waits looks at it when the limit could have passed. So a byte costs a look at the clock, and no timer is set
//! anew for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// When one request has last moved.
#[derive(Clone, Debug)]
pub struct Activity(Arc<Moments>);

#[derive(Debug)]
struct Moments {
    began: Instant,
    /// Nanoseconds from the beginning to the last move.
    last: AtomicU64,
}

impl Activity {
    /// It moves now.
    pub fn begin() -> Self {
        Self(Arc::new(Moments {
            began: Instant::now(),
            last: AtomicU64::new(0),
        }))
    }

    /// Notes that it moves.
    pub fn note(&self) {
        let since = u64::try_from(self.0.began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.0.last.store(since, Ordering::Relaxed);
    }

    /// Resolves when it has not moved for `limit`; without a limit, never.
    pub async fn ceased(&self, limit: Option<Duration>) {
        let Some(limit) = limit else {
            return std::future::pending().await;
        };
        loop {
            let last = self.0.began + Duration::from_nanos(self.0.last.load(Ordering::Relaxed));
            let end = last + limit;
            if Instant::now() >= end {
                return;
            }
            tokio::time::sleep_until(end).await;
        }
    }
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
