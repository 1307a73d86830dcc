//! Limits of a cluster (`CircuitBreakers.Thresholds`). They are exact for the node: one counter for all cores, which whoever is admitted holds.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Limits of a cluster for the whole node. Envoy's defaults: 1024 requests, 3 retries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Breakers {
    /// Open requests.
    pub requests: u32,
    /// Open requests that are retries.
    pub retries: u32,
}

impl Default for Breakers {
    fn default() -> Self {
        Self {
            requests: 1024,
            retries: 3,
        }
    }
}

/// A place under a limit, or in an endpoint's load; dropping it gives it back.
#[derive(Debug)]
pub struct Held(Arc<AtomicU32>);

impl Held {
    pub(super) fn take(counter: &Arc<AtomicU32>, limit: u32) -> Option<Self> {
        let admitted = counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |open| {
            (open < limit).then_some(open + 1)
        });
        admitted.ok().map(|_| Self(counter.clone()))
    }

    pub(super) fn count(counter: &Arc<AtomicU32>) -> Self {
        counter.fetch_add(1, Ordering::Relaxed);
        Self(counter.clone())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
