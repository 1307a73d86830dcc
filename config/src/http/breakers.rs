//! Limits of a cluster (`CircuitBreakers.Thresholds`). They are exact for the node: one counter for all cores, which whoever is admitted holds.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Limits of a cluster for the whole node. The defaults are Envoy's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Breakers {
    /// Connections to its endpoints. Default 1024.
    pub connections: u32,
    /// Requests that wait for a connection. Default 1024.
    pub pending_requests: u32,
    /// Requests that have one. Default 1024.
    pub requests: u32,
    /// Requests at once that are retries. Default 3.
    pub retries: Retries,
}

/// How many requests may be retries at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retries {
    /// So many.
    Count(u32),
    /// A share of the requests that there are (`retry_budget`).
    Budget {
        /// In percent. Default 20.
        percent: u32,
        /// So many in any case. Default 3.
        minimum: u32,
    },
}

impl Retries {
    /// The limit, while there are so many requests.
    fn limit(self, requests: u32) -> u32 {
        match self {
            Self::Count(count) => count,
            Self::Budget { percent, minimum } => {
                let share = u64::from(requests) * u64::from(percent) / 100;
                u32::try_from(share).unwrap_or(u32::MAX).max(minimum)
            }
        }
    }
}

impl Default for Breakers {
    fn default() -> Self {
        Self {
            connections: 1024,
            pending_requests: 1024,
            requests: 1024,
            retries: Retries::Count(3),
        }
    }
}

/// How much of a cluster's limits is used at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Connections to its endpoints.
    pub connections: u32,
    /// Requests that wait for one.
    pub pending_requests: u32,
    /// Requests that have one.
    pub requests: u32,
    /// Those of them that are retries.
    pub retries: u32,
    /// How many of them may be, while there are so many requests.
    pub retries_limit: u32,
}

/// What of a cluster's limits is used.
#[derive(Debug, Default)]
pub(super) struct Used {
    connections: Arc<AtomicU32>,
    pending: Arc<AtomicU32>,
    requests: Arc<AtomicU32>,
    retries: Arc<AtomicU32>,
}

impl Used {
    pub fn connection(&self, limits: &Breakers) -> Option<Held> {
        Held::take(&self.connections, limits.connections)
    }

    pub fn pending(&self, limits: &Breakers) -> Option<Held> {
        Held::take(&self.pending, limits.pending_requests)
    }

    pub fn request(&self, limits: &Breakers) -> Option<Held> {
        Held::take(&self.requests, limits.requests)
    }

    pub fn retry(&self, limits: &Breakers) -> Option<Held> {
        Held::take(&self.retries, self.retries_limit(limits))
    }

    fn retries_limit(&self, limits: &Breakers) -> u32 {
        let requests = self.requests.load(Ordering::Relaxed);
        let pending = self.pending.load(Ordering::Relaxed);
        limits.retries.limit(requests.saturating_add(pending))
    }

    pub fn usage(&self, limits: &Breakers) -> Usage {
        let of = |counter: &AtomicU32| counter.load(Ordering::Relaxed);
        Usage {
            connections: of(&self.connections),
            pending_requests: of(&self.pending),
            requests: of(&self.requests),
            retries: of(&self.retries),
            retries_limit: self.retries_limit(limits),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_grows_with_requests() {
        let limits = Breakers {
            retries: Retries::Budget {
                percent: 20,
                minimum: 2,
            },
            ..Breakers::default()
        };
        let used = Used::default();
        let retries: Vec<_> = (0..3).map_while(|_| used.retry(&limits)).collect();
        assert_eq!(retries.len(), 2);
        let requests: Vec<_> = (0..15).map_while(|_| used.request(&limits)).collect();
        assert!(used.retry(&limits).is_some(), "a fifth of {} is more", requests.len());
        let usage = used.usage(&limits);
        assert_eq!((usage.requests, usage.retries, usage.retries_limit), (15, 2, 3));
        let counted = Retries::Count(1);
        assert_eq!([0, 100].map(|requests| counted.limit(requests)), [1, 1]);
    }

    #[test]
    fn each_limit_is_its_own_and_is_given_back() {
        let limits = Breakers {
            connections: 1,
            pending_requests: 1,
            requests: 1,
            retries: Retries::Count(1),
        };
        let used = Used::default();
        type Take = fn(&Used, &Breakers) -> Option<Held>;
        for take in [Used::connection as Take, Used::pending, Used::request, Used::retry] {
            let held = take(&used, &limits);
            assert!(held.is_some() && take(&used, &limits).is_none());
            drop(held);
            assert!(take(&used, &limits).is_some());
        }
    }
}
