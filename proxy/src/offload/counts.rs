//! What the kernel tier has done, for the metrics.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{Direction, Tally, WhyNot};
use crate::flow::Flow;

/// Events of the whole process.
#[derive(Debug)]
pub struct Counts {
    joins: AtomicU64,
    parks: AtomicU64,
    refusals: [AtomicU64; WhyNot::ALL.len()],
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            joins: AtomicU64::new(0),
            parks: AtomicU64::new(0),
            refusals: [const { AtomicU64::new(0) }; WhyNot::ALL.len()],
        }
    }
}

impl Counts {
    /// A flow was joined.
    pub fn count_join(&self) {
        self.joins.fetch_add(1, Ordering::Relaxed);
    }

    /// A sender waits for its receiver.
    pub fn count_park(&self) {
        self.parks.fetch_add(1, Ordering::Relaxed);
    }

    /// A flow was to be joined and was not.
    pub fn count_refusal(&self, why: WhyNot) {
        self.refusals[why as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Flows joined.
    pub fn joins(&self) -> u64 {
        self.joins.load(Ordering::Relaxed)
    }

    /// Times that a sender had to wait.
    pub fn parks(&self) -> u64 {
        self.parks.load(Ordering::Relaxed)
    }

    /// Flows that were to be joined and were not, with the reason; one that is refused again counts again.
    pub fn refusals(&self) -> impl Iterator<Item = (WhyNot, u64)> {
        let counts = self.refusals.iter().map(|count| count.load(Ordering::Relaxed));
        WhyNot::ALL.into_iter().zip(counts)
    }
}

/// Bytes and messages of many flows, by tier. Index of the pairs: client to destination, and back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TierCounts {
    /// Bytes that the proxy relayed.
    pub relayed: [u64; 2],
    /// What the kernel counted.
    pub kernel: [Tally; 2],
    /// Flows that are joined now.
    pub joined: u64,
}

impl TierCounts {
    /// Adds what a flow has moved.
    pub fn add(&mut self, flow: &Flow) {
        for (place, direction) in Direction::ALL.into_iter().enumerate() {
            self.relayed[place] += flow.relayed(direction);
            let Some(kernel) = flow.offload.kernel() else {
                continue;
            };
            add_tally(&mut self.kernel[place], &kernel.tally(direction));
        }
    }

    /// Adds what others have moved.
    pub fn merge(&mut self, other: &Self) {
        for place in 0..2 {
            self.relayed[place] += other.relayed[place];
            add_tally(&mut self.kernel[place], &other.kernel[place]);
        }
        self.joined += other.joined;
    }
}

fn add_tally(sum: &mut Tally, tally: &Tally) {
    sum.bypassed_bytes += tally.bypassed_bytes;
    sum.bypassed_messages += tally.bypassed_messages;
    sum.behind += tally.behind;
    sum.full += tally.full;
    sum.busy += tally.busy;
}
