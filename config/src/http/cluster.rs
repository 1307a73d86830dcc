//! Clusters: endpoints that are as good as each other, and which of them is chosen (`config.cluster.v3.Cluster`).
//!
//! A cluster's settings are compared to tell whether an update changed it. Its state is shared by all that it becomes by updates, and by all cores: requests that are
//! open, for the limits, which hold for the whole node; whose turn it is; which endpoints are ejected. What is chosen from ([`Table`]) is made of both, when one of them
//! changes; a large ring on a thread of its own, until which the old one leads on.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, TryLockError};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, Guard};

use super::breakers::{Held, Usage, Used};
use super::made::Made;
use super::outliers::{Detector, Event, Outcome, OutlierSettings, Watched};
use super::table::{LocalityWeights, PriorityLoad, Table, Wish, priorities};
use super::{
    Breakers, ClusterEndpoint, ConnectionSettings, Discovery, EndpointSettings, HttpBalancing, MirrorCounts, Reach,
    ServiceName, SlowStart, Subsets, Transport,
};
use crate::Text;

/// What a configuration says of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterSettings {
    /// Unique name.
    pub name: Text,
    /// The service that it stands for, in metrics; none: none that is known.
    pub service: Option<Arc<ServiceName>>,
    /// Its endpoints; their addresses are unique. Those of names are what DNS has answered.
    pub endpoints: Vec<EndpointSettings>,
    /// Where they come from.
    pub discovery: Discovery,
    /// How one of them is chosen.
    pub balancing: HttpBalancing,
    /// How new ones come to their share; none: at once.
    pub slow_start: Option<SlowStart>,
    /// What localities weigh (`locality_weighted_lb_config`); empty: it doesn't matter where an endpoint is. One that is not named gets nothing.
    pub localities: LocalityWeights,
    /// Below which share of endpoints that are well, in percent, ejections are disregarded (`healthy_panic_threshold`). Default 50, Envoy's; 0: never.
    pub panic_threshold: u32,
    /// Which endpoints are for which requests; none: all for all.
    pub subsets: Option<Subsets>,
    /// When an endpoint is given nothing for a while; none: never.
    pub outliers: Option<OutlierSettings>,
    /// What they speak.
    pub protocol: UpstreamProtocol,
    /// How long one connection may take to be made. Default 5 s, Envoy's.
    pub connect_timeout: Duration,
    /// How long a connection may be idle. Default 1 h, Envoy's.
    pub idle_timeout: Duration,
    /// How long one request may last that has a connection, to the end of its answer, each try anew (`HttpProtocolOptions.max_stream_duration`); none: no
    /// limit.
    pub max_stream_duration: Option<Duration>,
    /// Limits.
    pub breakers: Breakers,
    /// How connections are kept.
    pub connections: ConnectionSettings,
    /// What is below HTTP. One object as long as it says the same: connections belong to it.
    pub transport: Arc<Transport>,
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

/// A cluster with its state.
#[derive(Debug)]
pub struct Cluster {
    /// What the configuration says of it.
    pub settings: Arc<ClusterSettings>,
    choice: Arc<Choice>,
}

/// What is chosen from, and what that is made of.
#[derive(Debug)]
struct Choice {
    settings: Arc<ClusterSettings>,
    endpoints: Vec<Arc<ClusterEndpoint>>,
    state: Arc<State>,
    table: ArcSwap<Table>,
    making: Mutex<()>,
    /// Whether a thread is about to make another.
    is_being_made: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    turn: Arc<AtomicU32>,
    used: Used,
    /// How often an endpoint was ejected or taken back.
    generation: AtomicU64,
    detector: Detector,
    mirrored: MirrorCounts,
    made: Made,
}

impl Cluster {
    /// A cluster that nothing has been sent to.
    pub fn new(settings: ClusterSettings) -> Self {
        let watches = settings.outliers.is_some();
        let endpoint = |settings: &EndpointSettings| Arc::new(ClusterEndpoint::new(settings.clone(), watches));
        let endpoints = settings.endpoints.iter().map(endpoint).collect();
        let new = Self::with(settings, endpoints, Arc::default());
        if is_large(&new.settings) {
            // Not left to the first request.
            new.choice.make();
        }
        new
    }

    fn with(settings: ClusterSettings, endpoints: Vec<Arc<ClusterEndpoint>>, state: Arc<State>) -> Self {
        let settings = Arc::new(settings);
        Self {
            settings: settings.clone(),
            choice: Arc::new(Choice {
                settings,
                endpoints,
                state,
                table: ArcSwap::from_pointee(Table::empty()),
                making: Mutex::default(),
                is_being_made: AtomicBool::new(false),
            }),
        }
    }

    /// `new` with the state of `old`: the same object if the settings are the same.
    pub(super) fn continuing(new: &Arc<Self>, old: &Arc<Self>) -> Arc<Self> {
        let mut settings = (*new.settings).clone();
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
            ..(*old.settings).clone()
        };
        Self::changed(settings, old)
    }

    fn changed(mut settings: ClusterSettings, old: &Arc<Self>) -> Arc<Self> {
        if settings == *old.settings {
            return old.clone();
        }
        if settings.transport == old.settings.transport {
            settings.transport = old.settings.transport.clone();
        }
        let watches = settings.outliers.is_some();
        let known: std::collections::HashMap<_, _> = (old.endpoints().iter())
            .map(|endpoint| (endpoint.settings.address, endpoint))
            .collect();
        let endpoint = |settings: &EndpointSettings| {
            Arc::new(match known.get(&settings.address) {
                Some(known) => known.changed(settings.clone(), watches),
                None => ClusterEndpoint::new(settings.clone(), watches),
            })
        };
        let endpoints = settings.endpoints.iter().map(endpoint).collect();
        let changed = Arc::new(Self::with(settings, endpoints, old.choice.state.clone()));
        // Not left to the first request.
        changed.choice.make();
        changed
    }

    /// Its endpoints.
    pub fn endpoints(&self) -> &[Arc<ClusterEndpoint>] {
        &self.choice.endpoints
    }

    /// Those endpoints that were made for whoever was going there, and are kept.
    pub fn made(&self) -> Vec<Arc<ClusterEndpoint>> {
        self.choice.state.made.all()
    }

    /// The endpoint at `address`.
    pub fn endpoint_at(&self, address: SocketAddr) -> Option<Arc<ClusterEndpoint>> {
        if self.settings.discovery.is_made() {
            return self.choice.state.made.at(address);
        }
        let mut endpoints = self.endpoints().iter();
        endpoints.find(|endpoint| endpoint.settings.address == address).cloned()
    }

    /// Room for one more request that has a connection; none at the limit.
    pub fn admit(&self) -> Option<Held> {
        self.choice.state.used.request(&self.settings.breakers)
    }

    /// Room for one more request that waits for a connection; none at the limit.
    pub fn admit_pending(&self) -> Option<Held> {
        self.choice.state.used.pending(&self.settings.breakers)
    }

    /// Room for one more connection; none at the limit.
    pub fn admit_connection(&self) -> Option<Held> {
        self.choice.state.used.connection(&self.settings.breakers)
    }

    /// Room for one more retry; none at the limit.
    pub fn admit_retry(&self) -> Option<Held> {
        self.choice.state.used.retry(&self.settings.breakers)
    }

    /// How much of its limits is used.
    pub fn usage(&self) -> Usage {
        self.choice.state.used.usage(&self.settings.breakers)
    }

    /// Its priorities, the first first, with what each gets of the requests that are for no subset.
    pub fn priorities(&self) -> Vec<PriorityLoad> {
        let loads = priorities(&self.settings, self.endpoints());
        loads.into_iter().map(|(load, _)| load).collect()
    }

    /// The endpoint for the next request; none if there is none that is well. `random` gives any numbers.
    pub fn choose(&self, wish: &Wish<'_>, random: impl FnMut() -> u32) -> Option<Arc<ClusterEndpoint>> {
        let reach = match &self.settings.discovery {
            Discovery::Original(reach) => Some(reach.clone()),
            Discovery::Host(_) => Some(Reach::Direct),
            Discovery::Static | Discovery::Dns(_) => None,
        };
        if let Some(reach) = reach {
            let (address, host) = wish.at?;
            let is_somewhere = !address.ip().is_unspecified() && address.port() != 0;
            return is_somewhere.then(|| {
                let settings = EndpointSettings::new(address, host.cloned(), 1);
                self.choice.state.made.endpoint(EndpointSettings { reach, ..settings })
            });
        }
        self.choice.table().choose(&self.settings, wish, random).cloned()
    }

    /// What is done about its outliers.
    pub fn detector(&self) -> &Detector {
        &self.choice.state.detector
    }

    /// What came of the copies of requests that went to it.
    pub fn mirrored(&self) -> &MirrorCounts {
        &self.choice.state.mirrored
    }

    /// Notes what came of a try at one of its endpoints, and how long that took. What is to be told of it is given back.
    pub fn note(
        &self,
        endpoint: &Arc<ClusterEndpoint>,
        outcome: Outcome,
        took: Duration,
        random: impl FnMut() -> u32,
    ) -> Vec<Event> {
        if let HttpBalancing::PeakEwma(peak) = self.settings.balancing {
            // Whoever fails at once is not the quicker one for it.
            let took = match outcome {
                Outcome::Answered(status) if status < 500 => took,
                Outcome::Connected => took,
                _ => took.max(PENALTY),
            };
            endpoint.note_latency(took, peak.decay);
        }
        let Some(watched) = self.watched() else {
            return Vec::new();
        };
        let events = self.detector().note(watched, endpoint, outcome, Instant::now(), random);
        self.take_in(&events);
        events
    }

    /// The end of an interval of outlier detection, at `now`. What is to be told of it is given back.
    pub fn compare(&self, now: Instant, random: impl FnMut() -> u32) -> Vec<Event> {
        let Some(watched) = self.watched() else {
            return Vec::new();
        };
        let events = self.detector().compare(watched, now, random);
        self.take_in(&events);
        events
    }

    /// None where nothing could take an endpoint's place: as with Envoy, where a connection was going it goes.
    fn watched(&self) -> Option<Watched<'_>> {
        if self.settings.discovery.is_made() {
            return None;
        }
        Some(Watched {
            settings: self.settings.outliers.as_ref()?,
            endpoints: self.endpoints(),
        })
    }

    fn take_in(&self, events: &[Event]) {
        if !events.is_empty() {
            self.choice.state.generation.fetch_add(1, Ordering::AcqRel);
            self.choice.renew();
        }
    }
}

impl Choice {
    fn table(self: &Arc<Self>) -> Guard<Arc<Table>> {
        let table = self.table.load();
        if table.generation == self.state.generation.load(Ordering::Acquire) {
            return table;
        }
        self.renew();
        self.table.load()
    }

    /// Makes what is chosen from anew: here, or, if that takes a while and there is an old one until then, on a thread of its own.
    fn renew(self: &Arc<Self>) {
        if self.table.load().generation == u64::MAX || !is_large(&self.settings) {
            return self.make();
        }
        if self.is_being_made.swap(true, Ordering::AcqRel) {
            return;
        }
        let choice = self.clone();
        let made = std::thread::Builder::new().name("ring".to_owned()).spawn(move || {
            choice.make();
            // What has changed meanwhile, whoever chooses next will see.
            choice.is_being_made.store(false, Ordering::Release);
        });
        if made.is_err() {
            self.make();
            self.is_being_made.store(false, Ordering::Release);
        }
    }

    /// Makes what is chosen from anew, unless another core is about to: one that is a moment old will do, but none at all will not.
    fn make(&self) {
        let _making = match self.making.try_lock() {
            Ok(making) => making,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) if self.table.load().generation != u64::MAX => return,
            Err(TryLockError::WouldBlock) => self.making.lock().unwrap_or_else(std::sync::PoisonError::into_inner),
        };
        // Before endpoints are looked at: what changes meanwhile makes another table.
        let generation = self.state.generation.load(Ordering::Acquire);
        if self.table.load().generation != generation {
            let table = Table::new(&self.settings, &self.endpoints, &self.state.turn, generation);
            self.table.store(Arc::new(table));
        }
    }
}

/// Places of a ring or table whose making would hold up requests: some milliseconds.
const LARGE: u64 = 100_000;

/// Whether a choice takes a while to make.
fn is_large(settings: &ClusterSettings) -> bool {
    match settings.balancing {
        HttpBalancing::Maglev(table) => table.table_size > LARGE,
        HttpBalancing::RingHash(ring) => {
            let weights = settings.endpoints.iter().map(|endpoint| u64::from(endpoint.weight));
            // Each endpoint has a place at least.
            let least = weights.clone().min().unwrap_or(1).max(1);
            let places = (weights.sum::<u64>() / least).max(ring.minimum_ring_size);
            places.min(ring.maximum_ring_size) > LARGE
        }
        _ => false,
    }
}

/// What a failure counts as a latency of, at least.
const PENALTY: Duration = Duration::from_secs(1);
