//! How one of a cluster's endpoints is chosen, as a configuration says it.

use std::time::Duration;

use super::Labels;
use crate::Text;

/// How an endpoint is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HttpBalancing {
    /// One after the other, by weight (`ROUND_ROBIN`).
    RoundRobin,
    /// Of two at random, the one with fewer open requests for its weight (`LEAST_REQUEST`). Istio's default.
    #[default]
    LeastRequest,
    /// Any (`RANDOM`).
    Random,
    /// Of two at random, the one that a request is likely to wait less for: by how long it took to answer lately, and by how many requests it has.
    PeakEwma(PeakEwma),
    /// By the request's hash, on a ring (`RING_HASH`). A request without a hash goes to any.
    RingHash(RingHash),
    /// By the request's hash, in a table (`MAGLEV`).
    Maglev(MaglevTable),
}

impl HttpBalancing {
    /// Whether a request goes by its hash.
    pub(super) fn is_consistent(self) -> bool {
        matches!(self, Self::RingHash(_) | Self::Maglev(_))
    }
}

/// Peak EWMA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeakEwma {
    /// In which time what was seen comes to count a third. Default 10 s.
    pub decay: Duration,
}

/// The size of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingHash {
    /// Places at least. Default 1024, up to 8 388 608.
    pub minimum_ring_size: u64,
    /// Places at most. Default 8 388 608.
    pub maximum_ring_size: u64,
}

/// The size of Maglev's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaglevTable {
    /// A prime number, up to 5 000 011. Default 65 537.
    pub table_size: u64,
}

impl Default for PeakEwma {
    fn default() -> Self {
        Self {
            decay: Duration::from_secs(10),
        }
    }
}

impl Default for RingHash {
    fn default() -> Self {
        Self {
            minimum_ring_size: 1024,
            maximum_ring_size: 8 << 20,
        }
    }
}

impl Default for MaglevTable {
    fn default() -> Self {
        Self { table_size: 65_537 }
    }
}

/// How a new endpoint comes to its share (`SlowStartConfig`; Istio's `warmup`). It is for round robin and least request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlowStart {
    /// How long that takes.
    pub window: Duration,
    /// In thousandths: 1000, the default, is a share that grows evenly; more, one that grows faster at first.
    pub aggression: u32,
    /// The share that it begins with, in percent. Default 10.
    pub minimum_percent: u32,
}

impl SlowStart {
    /// What part of its share an endpoint of this age has.
    pub(super) fn share(&self, age: Duration) -> f64 {
        if age >= self.window {
            return 1.0;
        }
        let time = age.as_secs_f64().max(0.001) / self.window.as_secs_f64();
        let grown = time.powf(1000.0 / f64::from(self.aggression.max(1)));
        grown.max(f64::from(self.minimum_percent) / 100.0)
    }
}

/// Which endpoints are for which requests (`LbSubsetConfig`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subsets {
    /// Names of labels whose values make a subset; each in the order of names.
    pub selectors: Vec<Vec<Text>>,
    /// Where a request goes that is for no subset that there is.
    pub fallback: Fallback,
}

/// Where a request goes that is for no subset that there is (`fallback_policy`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Fallback {
    /// Nowhere. Envoy's default.
    #[default]
    Nowhere,
    /// To any endpoint.
    Any,
    /// To those with these labels.
    Default(Labels),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_grows_as_envoy_documents_it() {
        let of = |aggression, seconds| {
            let slow = SlowStart {
                window: Duration::from_secs(100),
                aggression,
                minimum_percent: 10,
            };
            (slow.share(Duration::from_secs(seconds)) * 100.0).round() as u32
        };
        assert_eq!(
            [0, 5, 50, 99, 100, 200].map(|at| of(1000, at)),
            [10, 10, 50, 99, 100, 100]
        );
        assert_eq!([25, 50].map(|at| of(2000, at)), [50, 71]);
        assert_eq!([25, 50].map(|at| of(500, at)), [10, 25]);
    }
}
