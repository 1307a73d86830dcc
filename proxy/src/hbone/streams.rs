//! How many streams a connection carries, and word of when it has some and when it has none.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

/// The streams of one connection.
#[derive(Debug, Default)]
pub struct Streams {
    open: AtomicUsize,
    changed: Notify,
}

/// Counts a stream for as long as it is held.
#[derive(Debug)]
pub struct StreamPlace(Arc<Streams>);

impl Streams {
    /// One more.
    pub fn enter(self: &Arc<Self>) -> StreamPlace {
        if self.open.fetch_add(1, Ordering::AcqRel) == 0 {
            self.changed.notify_waiters();
        }
        StreamPlace(self.clone())
    }

    /// How many there are.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Acquire)
    }

    /// Resolves when there are some.
    pub async fn busy(&self) {
        self.wait_until(|open| open > 0).await;
    }

    /// Resolves when there are none.
    pub async fn idle(&self) {
        self.wait_until(|open| open == 0).await;
    }

    /// Resolves when there have been none for `time`.
    pub async fn unused_for(&self, time: Duration) {
        loop {
            self.idle().await;
            tokio::select! {
                () = tokio::time::sleep(time) => return,
                () = self.busy() => {}
            }
        }
    }

    async fn wait_until(&self, is_so: impl Fn(usize) -> bool) {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if is_so(self.open()) {
                return;
            }
            changed.await;
        }
    }
}

impl Drop for StreamPlace {
    fn drop(&mut self) {
        if self.0.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.changed.notify_waiters();
        }
    }
}
