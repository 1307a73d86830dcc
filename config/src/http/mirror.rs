//! Copies of requests that go to another cluster, whose answers nobody waits for (`RouteAction.RequestMirrorPolicy`).

use std::sync::atomic::{AtomicU64, Ordering};

use super::domains::without_port;
use super::{Fault, Labels};
use crate::Text;

/// One of a route's mirrors.
#[derive(Clone, Debug)]
pub struct Mirror {
    /// The cluster that the copies go to.
    pub cluster: Text,
    /// The subset of its endpoints; empty: as the cluster says.
    pub labels: Labels,
    /// How many requests are copied, in parts of a million ([`Fault::ALL`]). Default all.
    pub share: u32,
    /// Whether the copy's host ends in `-shadow`, so that logs tell it from the request. Default yes, as in Envoy.
    pub has_host_suffix: bool,
    /// How much of a body may wait for the copy's endpoint, in bytes. A copy that is slower breaks off. Default 1 MiB.
    pub buffer: usize,
}

impl Mirror {
    /// Default of [`Mirror::buffer`]: Envoy's limit on what one stream buffers.
    pub const DEFAULT_BUFFER: usize = 1 << 20;

    /// Whether a request is copied; `random` is below [`Fault::ALL`].
    pub fn strikes(&self, random: u32) -> bool {
        self.share >= Fault::ALL || random < self.share
    }

    /// The host that a copy of a request for `authority` names. An IPv6 address has no name that a suffix could be added to.
    pub fn host(&self, authority: &str) -> String {
        let host = without_port(authority);
        if !self.has_host_suffix || host.ends_with(']') {
            return authority.to_owned();
        }
        format!("{host}-shadow{}", &authority[host.len()..])
    }
}

/// What came of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MirrorEnd {
    /// It was answered, whatever with.
    Answered,
    /// There is no endpoint, or none that is well.
    NoEndpoint,
    /// Policy denies the request's client the copy's endpoint.
    Denied,
    /// A limit of the cluster was reached.
    Overflow,
    /// The endpoint could not be connected to, or broke off.
    Failed,
    /// It took longer than the route lets a request take.
    TimedOut,
    /// Its endpoint took the body too slowly.
    Slow,
    /// The request itself was cut off.
    CutOff,
}

impl MirrorEnd {
    /// All of them, with the words for them.
    pub const ALL: [(Self, &'static str); 8] = [
        (Self::Answered, "answered"),
        (Self::NoEndpoint, "no_endpoint"),
        (Self::Denied, "denied"),
        (Self::Overflow, "overflow"),
        (Self::Failed, "failed"),
        (Self::TimedOut, "timed_out"),
        (Self::Slow, "slow"),
        (Self::CutOff, "cut_off"),
    ];
}

/// What came of the copies that went to a cluster.
#[derive(Debug, Default)]
pub struct MirrorCounts([AtomicU64; MirrorEnd::ALL.len()]);

impl MirrorCounts {
    /// Counts one.
    pub fn count(&self, end: MirrorEnd) {
        self.0[end as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// How many came to this end.
    pub fn of(&self, end: MirrorEnd) -> u64 {
        self.0[end as usize].load(Ordering::Relaxed)
    }

    /// Whether there was none.
    pub fn is_empty(&self) -> bool {
        MirrorEnd::ALL.iter().all(|(end, _)| self.of(*end) == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_says_that_it_is_one_in_its_host() {
        let mut mirror = Mirror {
            cluster: "m".into(),
            labels: Labels::default(),
            share: 1,
            has_host_suffix: true,
            buffer: 0,
        };
        for (authority, host) in [
            ("web.test", "web.test-shadow"),
            ("web.test:8080", "web.test-shadow:8080"),
            ("10.0.0.1:80", "10.0.0.1-shadow:80"),
            ("[::1]:80", "[::1]:80"),
        ] {
            assert_eq!(mirror.host(authority), host);
        }
        mirror.has_host_suffix = false;
        assert_eq!(mirror.host("web.test:8080"), "web.test:8080");
    }

    #[test]
    fn ends_are_counted_apart() {
        let counts = MirrorCounts::default();
        assert!(counts.is_empty());
        for (times, (end, _)) in (1..).zip(MirrorEnd::ALL) {
            for _ in 0..times {
                counts.count(end);
            }
        }
        assert_eq!(MirrorEnd::ALL.map(|(end, _)| counts.of(end)), [1, 2, 3, 4, 5, 6, 7, 8]);
    }
}
