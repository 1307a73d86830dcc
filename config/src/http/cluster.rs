//! Clusters: endpoints that are as good as each other, and which of them is chosen (`config.cluster.v3.Cluster`).
//!
//! A cluster's settings are compared to tell whether an update changed it. Its state is atomics that all cores share: requests that are
//! open, for the limits, which hold for the whole node, and for the choice of an endpoint.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::{ConnectionSettings, Discovery, Transport};
use crate::Text;

/// What a configuration says of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterSettings {
    /// Unique name.
    pub name: Text,
    /// Its endpoints; their addresses are unique. Those of names are what DNS has answered.
    pub endpoints: Vec<EndpointSettings>,
    /// Where they come from.
    pub discovery: Discovery,
    /// How one of them is chosen.
    pub balancing: HttpBalancing,
    /// What they speak.
    pub protocol: UpstreamProtocol,
    /// How long one connection may take to be made. Default 5 s, Envoy's.
    pub connect_timeout: Duration,
    /// How long a connection may be idle. Default 1 h, Envoy's.
    pub idle_timeout: Duration,
    /// Limits.
    pub breakers: Breakers,
    /// How connections are kept.
    pub connections: ConnectionSettings,
    /// What is below HTTP. One object as long as it says the same: connections belong to it.
    pub transport: Arc<Transport>,
}

/// What a configuration says of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSettings {
    /// Where it is.
    pub address: SocketAddr,
    /// The name that DNS has this address for, where it was asked.
    pub host: Option<Text>,
    /// Its share, from 1 on.
    pub weight: u32,
}

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
}

/// What endpoints speak.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UpstreamProtocol {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2, known beforehand.
    Http2,
    /// What the client speaks (`use_downstream_protocol_config`).
    AsDownstream,
    /// What an endpoint chooses in the handshake of TLS, HTTP/2 if it can (`auto_config`).
    Negotiated,
}

/// Limits of a cluster for the whole node (`CircuitBreakers.Thresholds`). Envoy's defaults: 1024 requests, 3 retries.
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
    fn take(counter: &Arc<AtomicU32>, limit: u32) -> Option<Self> {
        let admitted = counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |open| {
            (open < limit).then_some(open + 1)
        });
        admitted.ok().map(|_| Self(counter.clone()))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An endpoint with its load.
#[derive(Debug)]
pub struct ClusterEndpoint {
    /// What the configuration says of it.
    pub settings: EndpointSettings,
    active: Arc<AtomicU32>,
    idle: Arc<AtomicU32>,
}

impl ClusterEndpoint {
    /// Connections to it that wait for work, of all cores.
    pub fn idle(&self) -> u32 {
        self.idle.load(Ordering::Relaxed)
    }

    /// One more connection to it waits for work.
    pub fn rest(&self) -> Held {
        self.idle.fetch_add(1, Ordering::Relaxed);
        Held(self.idle.clone())
    }

    /// Requests that it has.
    pub fn active(&self) -> u32 {
        self.active.load(Ordering::Relaxed)
    }

    /// Gives it one more.
    pub fn hold(&self) -> Held {
        self.active.fetch_add(1, Ordering::Relaxed);
        Held(self.active.clone())
    }
}

/// A cluster with its state.
#[derive(Debug)]
pub struct Cluster {
    /// What the configuration says of it.
    pub settings: ClusterSettings,
    endpoints: Vec<Arc<ClusterEndpoint>>,
    total_weight: u64,
    turn: Arc<AtomicU32>,
    requests: Arc<AtomicU32>,
    retries: Arc<AtomicU32>,
}

impl Cluster {
    /// A cluster that nothing has been sent to.
    pub fn new(settings: ClusterSettings) -> Self {
        let endpoint = |settings: &EndpointSettings| {
            Arc::new(ClusterEndpoint {
                settings: settings.clone(),
                active: Arc::default(),
                idle: Arc::default(),
            })
        };
        let endpoints = settings.endpoints.iter().map(endpoint).collect();
        Self::with_endpoints(settings, endpoints)
    }

    fn with_endpoints(settings: ClusterSettings, endpoints: Vec<Arc<ClusterEndpoint>>) -> Self {
        Self {
            total_weight: endpoints.iter().map(|e| u64::from(e.settings.weight)).sum(),
            settings,
            endpoints,
            turn: Arc::default(),
            requests: Arc::default(),
            retries: Arc::default(),
        }
    }

    /// `new` with the state of `old`: the same object if the settings are the same.
    pub(super) fn continuing(new: &Arc<Self>, old: &Arc<Self>) -> Arc<Self> {
        let mut settings = new.settings.clone();
        if let (Discovery::Dns(asked), Discovery::Dns(_)) = (&settings.discovery, &old.settings.discovery) {
            settings.endpoints = asked.still_named(&old.settings.endpoints);
        }
        Self::changed(settings, old)
    }

    /// `old`, with the endpoints that DNS has for its names now.
    #[must_use]
    pub fn with_addresses(old: &Arc<Self>, endpoints: Vec<EndpointSettings>) -> Arc<Self> {
        let settings = ClusterSettings {
            endpoints,
            ..old.settings.clone()
        };
        Self::changed(settings, old)
    }

    fn changed(mut settings: ClusterSettings, old: &Arc<Self>) -> Arc<Self> {
        if settings == old.settings {
            return old.clone();
        }
        if settings.transport == old.settings.transport {
            settings.transport = old.settings.transport.clone();
        }
        let endpoint = |settings: &EndpointSettings| {
            let known = (old.endpoints.iter()).find(|endpoint| endpoint.settings.address == settings.address);
            Arc::new(ClusterEndpoint {
                settings: settings.clone(),
                active: known.map_or_else(Arc::default, |endpoint| endpoint.active.clone()),
                idle: known.map_or_else(Arc::default, |endpoint| endpoint.idle.clone()),
            })
        };
        let endpoints = settings.endpoints.iter().map(endpoint).collect();
        Arc::new(Self {
            turn: old.turn.clone(),
            requests: old.requests.clone(),
            retries: old.retries.clone(),
            ..Self::with_endpoints(settings, endpoints)
        })
    }

    /// Its endpoints.
    pub fn endpoints(&self) -> &[Arc<ClusterEndpoint>] {
        &self.endpoints
    }

    /// Room for one more request; none at the limit.
    pub fn admit(&self) -> Option<Held> {
        Held::take(&self.requests, self.settings.breakers.requests)
    }

    /// Room for one more retry; none at the limit.
    pub fn admit_retry(&self) -> Option<Held> {
        Held::take(&self.retries, self.settings.breakers.retries)
    }

    /// The endpoint for the next request, not among `tried` while there is another. `random` gives any numbers.
    pub fn choose(&self, tried: &[SocketAddr], random: impl FnMut() -> u32) -> Option<&Arc<ClusterEndpoint>> {
        let is_new = |endpoint: &Arc<ClusterEndpoint>| !tried.contains(&endpoint.settings.address);
        let any_is_new = !tried.is_empty() && self.endpoints.iter().any(is_new);
        let chosen = self.choose_any(random)?;
        if !any_is_new || is_new(chosen) {
            return Some(chosen);
        }
        // The next in the list, from the chosen one on: a retry is rare, and its load is spread as the choices are.
        let start = self
            .endpoints
            .iter()
            .position(|endpoint| Arc::ptr_eq(endpoint, chosen))?;
        let around = self.endpoints[start..].iter().chain(&self.endpoints[..start]);
        around.into_iter().find(|endpoint| is_new(endpoint))
    }

    fn choose_any(&self, mut random: impl FnMut() -> u32) -> Option<&Arc<ClusterEndpoint>> {
        if self.endpoints.len() < 2 {
            return self.endpoints.first();
        }
        match self.settings.balancing {
            HttpBalancing::RoundRobin => {
                let turn = self.turn.fetch_add(1, Ordering::Relaxed);
                self.at_weight(u64::from(turn))
            }
            HttpBalancing::Random => self.at_weight(u64::from(random())),
            HttpBalancing::LeastRequest => {
                let (one, other) = (
                    self.at_weight(u64::from(random()))?,
                    self.at_weight(u64::from(random()))?,
                );
                Some(if other.active() < one.active() { other } else { one })
            }
        }
    }

    /// The endpoint at a place on the line of all weights.
    fn at_weight(&self, place: u64) -> Option<&Arc<ClusterEndpoint>> {
        let mut place = place % self.total_weight.max(1);
        self.endpoints.iter().find(|endpoint| {
            let weight = u64::from(endpoint.settings.weight);
            let is_here = place < weight;
            place = place.saturating_sub(weight);
            is_here
        })
    }
}
