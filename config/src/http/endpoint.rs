//! An endpoint: what the configuration says of it, and what is known of it beside, which outlives updates.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::breakers::Held;
use super::outliers::Monitor;
use crate::Text;

/// What a configuration says of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSettings {
    /// Where it is.
    pub address: SocketAddr,
    /// The name that DNS has this address for, where it was asked.
    pub host: Option<Text>,
    /// Its share, from 1 on.
    pub weight: u32,
    /// Those of a lower number come first; the others get what those can't take. From 0 on.
    pub priority: u32,
    /// Where it is, as `region/zone/subzone`; may be empty.
    pub locality: Text,
    /// What subsets go by.
    pub labels: Labels,
    /// Whether it is well, as far as the configuration knows. One that is not is given nothing, as one that is ejected.
    pub is_well: bool,
    /// How it is reached; what its cluster's transport says of tunnels comes first.
    pub reach: Reach,
}

/// How an endpoint is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Reach {
    /// At its address.
    #[default]
    Direct,
    /// By HBONE to its address, through the proxy before it; or through another, a waypoint or gateway on the way. Who may be there, says the mesh.
    Hbone {
        /// The address of the one on the way.
        via: Option<SocketAddr>,
    },
    /// By HBONE within HBONE: to the gateway of another network at the endpoint's address, and there to a service (`host:port`).
    Network {
        /// What the gateway is asked for.
        target: Text,
    },
}

impl EndpointSettings {
    /// One of which nothing is said.
    pub fn new(address: SocketAddr, host: Option<Text>, weight: u32) -> Self {
        Self {
            address,
            host,
            weight,
            priority: 0,
            locality: "".into(),
            labels: Labels::default(),
            is_well: true,
            reach: Reach::Direct,
        }
    }
}

/// Names with values, in the order of the names: equal ones are equal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Labels(Vec<(Text, Text)>);

impl Labels {
    /// Labels of any order. Of two of one name the last counts.
    pub fn new(labels: impl IntoIterator<Item = (Text, Text)>) -> Self {
        let sorted: std::collections::BTreeMap<Text, Text> = labels.into_iter().collect();
        Self(sorted.into_iter().collect())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All, in the order of the names.
    pub fn iter(&self) -> impl Iterator<Item = &(Text, Text)> {
        self.0.iter()
    }

    /// The names, in their order.
    pub fn names(&self) -> impl Iterator<Item = &Text> {
        self.0.iter().map(|(name, _)| name)
    }

    /// The labels of these names, if all of them are there.
    pub(super) fn restricted_to(&self, names: &[Text]) -> Option<Self> {
        let of = |name: &Text| self.0.iter().find(|(own, _)| own == name).cloned();
        names.iter().map(of).collect::<Option<Vec<_>>>().map(Self)
    }

    /// Whether all of `wanted` are among them.
    pub fn have(&self, wanted: &Self) -> bool {
        wanted.0.iter().all(|label| self.0.contains(label))
    }
}

/// An endpoint with its load.
#[derive(Debug)]
pub struct ClusterEndpoint {
    /// What the configuration says of it.
    pub settings: EndpointSettings,
    load: Arc<Load>,
    /// Where its cluster detects outliers.
    monitor: Option<Arc<Monitor>>,
}

/// What is known of an endpoint's load.
#[derive(Debug)]
struct Load {
    active: Arc<AtomicU32>,
    idle: Arc<AtomicU32>,
    latency: Latency,
    born: Instant,
}

impl ClusterEndpoint {
    pub(super) fn new(settings: EndpointSettings, watches: bool) -> Self {
        Self {
            settings,
            load: Arc::new(Load {
                active: Arc::default(),
                idle: Arc::default(),
                latency: Latency::default(),
                born: Instant::now(),
            }),
            monitor: watches.then(Arc::default),
        }
    }

    /// The same endpoint, of which something else is said now.
    pub(super) fn changed(&self, settings: EndpointSettings, watches: bool) -> Self {
        Self {
            settings,
            load: self.load.clone(),
            monitor: watches.then(|| self.monitor.clone().unwrap_or_default()),
        }
    }

    /// Requests that it has.
    pub fn active(&self) -> u32 {
        self.load.active.load(Ordering::Relaxed)
    }

    /// Gives it one more.
    pub fn hold(&self) -> Held {
        Held::count(&self.load.active)
    }

    /// Connections to it that wait for work, of all cores.
    pub fn idle(&self) -> u32 {
        self.load.idle.load(Ordering::Relaxed)
    }

    /// One more connection to it waits for work.
    pub fn rest(&self) -> Held {
        Held::count(&self.load.idle)
    }

    /// How it fails, where its cluster detects outliers.
    pub fn monitor(&self) -> Option<&Monitor> {
        self.monitor.as_deref()
    }

    /// Whether it is ejected.
    pub fn is_ejected(&self) -> bool {
        self.monitor().is_some_and(Monitor::is_ejected)
    }

    /// Whether it is to be given anything.
    pub(super) fn is_well(&self) -> bool {
        self.settings.is_well && !self.is_ejected()
    }

    /// Since when it is an endpoint.
    pub(super) fn born(&self) -> Instant {
        self.load.born
    }

    /// Notes how long it took to answer, for [`HttpBalancing::PeakEwma`](super::HttpBalancing::PeakEwma).
    pub(super) fn note_latency(&self, took: Duration, decay: Duration) {
        self.load.latency.note(took, self.load.born.elapsed(), decay);
    }

    /// What a request more would wait, by what it took to answer lately and by how many it has.
    pub(super) fn cost(&self, decay: Duration) -> f64 {
        let latency = self.load.latency.now(self.load.born.elapsed(), decay);
        let active = f64::from(self.active());
        // One of which nothing is known is tried by one request, and has others when that is answered, as Finagle's.
        match latency < KNOWN && active > 0.0 {
            true => UNKNOWN * active,
            false => latency.max(KNOWN) * (active + 1.0),
        }
    }
}

/// In microseconds: a latency that has fallen below says nothing.
const KNOWN: f64 = 1.0;
/// In microseconds: what one of which nothing is known is taken for, for each request that it has.
const UNKNOWN: f64 = 1e6;

/// A latency that rises at once, and falls as time passes (Finagle's peak EWMA): microseconds above, the millisecond since birth that they are of below.
#[derive(Debug, Default)]
struct Latency(AtomicU64);

impl Latency {
    fn decayed(packed: u64, at: Duration, decay: Duration) -> (f64, f64) {
        let micros = f64::from(f32::from_bits((packed >> 32) as u32));
        // The clock of milliseconds goes round in 50 days.
        let passed = Duration::from_millis(u64::from((at.as_millis() as u32).wrapping_sub(packed as u32)));
        let left = (-passed.as_secs_f64() / decay.as_secs_f64().max(f64::EPSILON)).exp();
        (micros, left)
    }

    fn now(&self, at: Duration, decay: Duration) -> f64 {
        let (micros, left) = Self::decayed(self.0.load(Ordering::Relaxed), at, decay);
        micros * left
    }

    fn note(&self, took: Duration, at: Duration, decay: Duration) {
        let took = took.as_secs_f64() * 1e6;
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |packed| {
            let (before, left) = Self::decayed(packed, at, decay);
            let now = match took > before * left {
                true => took,
                false => before * left + took * (1.0 - left),
            };
            Some(u64::from((now as f32).to_bits()) << 32 | u64::from(at.as_millis() as u32))
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_latency_rises_at_once_and_falls_with_time() {
        let (latency, decay) = (Latency::default(), Duration::from_secs(10));
        let at = Duration::from_secs;
        latency.note(Duration::from_millis(5), at(1), decay);
        assert!((latency.now(at(1), decay) - 5000.0).abs() < 1.0);
        latency.note(Duration::from_millis(100), at(1), decay);
        assert!((latency.now(at(1), decay) - 100_000.0).abs() < 10.0);
        // Quick answers lower it as far as time has passed.
        latency.note(Duration::from_millis(5), at(1), decay);
        assert!(latency.now(at(1), decay) > 99_000.0);
        let later = latency.now(at(11), decay);
        assert!((36_000.0..37_500.0).contains(&later), "{later}");
    }
}
