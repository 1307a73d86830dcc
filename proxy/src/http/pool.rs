//! Connections to endpoints, each core's own.
//!
//! * [`dial`]: how one is made: TCP, the PROXY protocol's header, TLS, the codec.
//! * [`http1`]: one that has done its work waits on top of a stack; the one used last is used next, so that those which a quieter time doesn't
//!   need grow old at the bottom.
//! * [`waiting`]: those that wait, of all kinds: how many there may be, and which is closed beyond it.
//! * [`http2`]: a request goes to the connection with the fewest of them, and when all have as many as they may, to a new one: no endpoint is
//!   reached over one hot connection.
//! * [`alone`]: a tunnel by HTTP/2 has a connection of its own.
//! * [`usage`]: how many there are to each endpoint, for whoever asks.
//! * [`way`]: by which way an endpoint is reached, and whom the mesh expects there.
//! * [`stream`], [`originations`], [`leases`]: what a codec speaks by; the TLS of clusters, and the certificates of their tunnels.
//!
//! A connection belongs to a [`Key`]: nothing that was asked of it, or told by it, at its beginning is another's.

pub mod alone;
pub mod dial;
pub mod http1;
pub mod http2;
pub mod leases;
pub mod originations;
pub mod slots;
pub mod stream;
#[cfg(test)]
mod tests;
pub mod usage;
mod waiting;
pub mod way;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use underpass_config::Text;
use underpass_config::http::{
    Cluster, ClusterEndpoint, ClusterSettings, Discovery, DnsKind, Held as Admitted, Outcome, Transport,
};

pub use dial::NotConnected;
use dial::{Dial, Opened};
use http1::{Carrier, Codec, Idle};
use http2::{Given, Group, Place};
use leases::Leases;
use originations::Originations;
use slots::Queues;
use waiting::{Groups, Handing, Waiting};
use way::Way;

use super::arriving::BrokenOff;
use super::idle::Activity;
use super::names::Names;
use super::outliers;
use super::upload::Sent;
use crate::node::Node;

/// Requests of one core that a connection serves, while others may be waiting for it to go: then it goes, and they have their turn.
const SERVED_WHILE_WANTED: u32 = 16;
/// How often old connections are looked for, at least.
const SWEEP: Duration = Duration::from_secs(10);
/// And at most.
const SWEEP_SOONEST: Duration = Duration::from_millis(100);

/// The pools of all cores. A core locks its own only.
#[derive(Debug)]
pub struct Pools {
    cores: Box<[Mutex<Pool>]>,
    /// Connections without a request that the node keeps.
    idle: AtomicU32,
    /// Who waits for connections to go.
    pub queues: Queues,
    /// The TLS of clusters.
    pub originations: Originations,
    /// The certificates of their tunnels.
    pub leases: Leases,
    /// The hosts that requests are for.
    pub names: Names,
}

#[derive(Debug, Default)]
struct Pool {
    http1: Waiting,
    handing: Handing,
    http2: Groups,
    is_swept: bool,
}

/// Which connections are as good as each other.
#[derive(Clone, Debug)]
pub struct Key {
    /// Whose endpoint it leads to.
    pub cluster: Text,
    /// Where that is.
    pub address: SocketAddr,
    /// What is below HTTP. The same object: a cluster that is told another has other connections.
    pub transport: Arc<Transport>,
    /// Which edition of TLS's files it was made by: who was believed then may be believed no more.
    pub edition: u64,
    /// Whom it is asked for by TLS.
    pub server_name: Option<Text>,
    /// Whose it is, and where they had connected to, where the endpoint is told that.
    pub client: Option<(SocketAddr, SocketAddr)>,
    /// By which way, with whom at its end.
    pub way: Way,
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.address == other.address
            && Arc::ptr_eq(&self.transport, &other.transport)
            && self.edition == other.edition
            && self.cluster == other.cluster
            && self.server_name == other.server_name
            && self.client == other.client
            && self.way == other.way
    }
}

impl Eq for Key {}

impl std::hash::Hash for Key {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.cluster.hash(state);
        self.address.hash(state);
        self.edition.hash(state);
        self.server_name.hash(state);
        self.client.hash(state);
    }
}

/// What is to be spoken with an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaks {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
    /// What it chooses.
    Negotiated,
    /// What is not the proxy's to know.
    Bytes,
}

/// Which connections will do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Age {
    /// Any.
    Any,
    /// One that is made from now on: those that are there have turned out to be gone.
    New,
}

/// How many connections without a request are kept.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// To one endpoint, by the node.
    endpoint: u32,
    /// To one endpoint, by one core.
    endpoints_share: usize,
    /// To all endpoints, by one core.
    share: usize,
}

impl Pools {
    /// For `cores` cores, with no more than `idle` connections that have no request.
    pub fn new(cores: usize, idle: u32) -> Self {
        Self {
            cores: (0..cores).map(|_| Mutex::default()).collect(),
            idle: AtomicU32::new(idle),
            queues: Queues::default(),
            originations: Originations::default(),
            leases: Leases::default(),
            names: Names::default(),
        }
    }

    fn limits_of(&self, cluster: &ClusterSettings) -> Limits {
        let cores = self.cores.len();
        Limits {
            endpoint: cluster.connections.idle,
            endpoints_share: (cluster.connections.idle as usize).div_ceil(cores),
            share: (self.idle.load(Ordering::Relaxed) as usize).div_ceil(cores),
        }
    }

    /// Has the node keep no more than `idle` connections that have no request.
    pub fn keep_at_most(&self, idle: u32) {
        self.idle.store(idle, Ordering::Relaxed);
    }

    /// Closes the connection of a cluster that has been idle longest, of all cores; one after the other is looked at.
    fn end_longest_idle(&self, cluster: &Text) {
        let cores = 0..self.cores.len();
        let longest = cores
            .filter_map(|core| Some((self.pool(core).idle_since(cluster)?, core)))
            .min();
        let Some((_, core)) = longest else { return };
        let ended = self.pool(core).end_longest_idle(cluster);
        // What is given back takes other locks.
        drop(ended);
    }

    fn pool(&self, core: usize) -> MutexGuard<'_, Pool> {
        self.cores[core].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One request's hold on a connection.
#[derive(Debug)]
pub struct Lease {
    node: Arc<Node>,
    core: usize,
    key: Key,
    cluster: Arc<Cluster>,
    endpoint: Arc<ClusterEndpoint>,
    /// None once it is given back.
    connection: Option<Held>,
    /// Its place among the cluster's requests.
    request: Option<Admitted>,
    sent: Sent,
    /// What still sends the request's body.
    uploading: Option<Codec>,
    /// Whether others have used it before.
    pub is_reused: bool,
}

#[derive(Debug)]
enum Held {
    Http1(Carrier),
    Http2(Place),
    Alone { below: Option<alone::Below> },
}

/// Where a connection is wanted to.
#[derive(Clone, Debug)]
pub struct Wanted<'a> {
    /// The node.
    pub node: &'a Arc<Node>,
    /// The core that asks.
    pub core: usize,
    /// The cluster.
    pub cluster: &'a Arc<Cluster>,
    /// Its endpoint.
    pub endpoint: &'a Arc<ClusterEndpoint>,
    /// As what it is wanted.
    pub key: Key,
    /// What is to be spoken.
    pub speaks: Speaks,
}

impl Wanted<'_> {
    fn lease(&self, connection: Held, is_reused: bool) -> Lease {
        Lease {
            node: self.node.clone(),
            core: self.core,
            key: self.key.clone(),
            cluster: self.cluster.clone(),
            endpoint: self.endpoint.clone(),
            connection: Some(connection),
            request: None,
            sent: Sent::default(),
            uploading: None,
            is_reused,
        }
    }

    fn dial(&self) -> Dial {
        Dial {
            node: self.node.clone(),
            cluster: self.cluster.clone(),
            key: self.key.clone(),
            speaks: self.speaks,
        }
    }

    /// The way that the endpoint asks for now, if it does; else the one that is wanted.
    async fn way(&self) -> Result<Way, NotConnected> {
        let asked = way::tunnel(self.node, self.cluster, &self.endpoint.settings).await?;
        Ok(asked.map_or_else(|| self.key.way.clone(), Way::Tunnel))
    }

    /// A new connection, on which nothing is spoken yet, and how it was made.
    ///
    /// # Errors
    /// As [`Wanted::connection`].
    pub async fn stream(&self) -> Result<(Dial, stream::Stream), NotConnected> {
        let way = self.way().await?;
        let _pending = self.cluster.admit_pending().ok_or(NotConnected::Overflow)?;
        let slot = slots::slot(self.node, self.cluster).await;
        let mut dial = self.dial();
        dial.key.way = way;
        let stream = dial.stream(slot).await?;
        Ok((dial, stream))
    }

    /// The same for what is no request: where there is no room for it now, it does not wait for one, whose end nobody knows (Envoy's `TcpProxy`).
    ///
    /// # Errors
    /// As [`Wanted::stream`].
    pub async fn stream_at_once(&self) -> Result<stream::Stream, NotConnected> {
        let way = self.way().await?;
        let _pending = self.cluster.admit_pending().ok_or(NotConnected::Overflow)?;
        let slot = slots::take(self.node, self.cluster).ok_or(NotConnected::Overflow)?;
        let mut dial = self.dial();
        dial.key.way = way;
        dial.stream(slot).await
    }

    /// When a request that has a connection now has to have ended, by what the cluster says.
    pub fn stream_until(&self) -> Option<tokio::time::Instant> {
        let limit = self.cluster.settings.max_stream_duration?;
        tokio::time::Instant::now().checked_add(limit)
    }

    /// A place among the cluster's requests, for one that goes by [`Wanted::stream`].
    ///
    /// # Errors
    /// When there is none.
    pub fn admit(&self) -> Result<Admitted, NotConnected> {
        self.cluster.admit().ok_or(NotConnected::Overflow)
    }

    /// Notes a connection that nobody else will use, with its request's place: what is below its stream, if it is one of HTTP/2.
    pub fn alone(&self, below: Option<alone::Below>, request: Admitted) -> Lease {
        let mut lease = self.lease(Held::Alone { below }, false);
        lease.request = Some(request);
        lease
    }

    /// As [`Wanted::alone`], one of HTTP/1.1.
    pub fn alone_by_http1(&self, carrier: Carrier, request: Admitted) -> Lease {
        let mut lease = self.http1_lease(carrier, false);
        lease.request = Some(request);
        lease
    }

    /// A connection: one that is there, or a new one.
    ///
    /// # Errors
    /// When the endpoint can't be connected to.
    pub async fn connection(&mut self, age: Age) -> Result<Lease, NotConnected> {
        let mut lease = self.any_connection(age).await?;
        lease.request = self.cluster.admit();
        if lease.request.is_none() {
            // It has carried nothing.
            lease.sends(Sent::whole());
            lease.give_back();
            return Err(NotConnected::Overflow);
        }
        Ok(lease)
    }

    async fn any_connection(&mut self, age: Age) -> Result<Lease, NotConnected> {
        self.key.way = self.way().await?;
        if let Some(origination) = self.node.http.originations.of(&self.key.transport)? {
            self.key.edition = origination.edition().await;
        }
        if self.speaks == Speaks::Http1 {
            return self.http1(age).await;
        }
        let group = self.group();
        if self.speaks == Speaks::Negotiated && group.has_chosen_http1() {
            return self.http1(age).await;
        }
        if let Some(place) = group.free_place(&self.cluster.settings, age) {
            return Ok(self.http2_lease(place));
        }
        // What is rare is not part of each request's future, which is moved whole.
        match Box::pin(group.place(self.dial(), age)).await? {
            Given::Http2(place) => Ok(self.http2_lease(place)),
            Given::Http1(carrier) => Ok(self.http1_lease(carrier, false)),
            Given::Alone => self.http1(age).await,
        }
    }

    async fn http1(&self, age: Age) -> Result<Lease, NotConnected> {
        while let Some(mut idle) = self.take_idle().filter(|_| age == Age::Any) {
            if idle.is_usable().await {
                return Ok(self.http1_lease(idle.carrier, true));
            }
        }
        // Rare, too.
        Box::pin(self.http1_handed_or_new()).await
    }

    /// The next that is handed on, where no more may be made, or a new one.
    async fn http1_handed_or_new(&self) -> Result<Lease, NotConnected> {
        let _pending = self.cluster.admit_pending().ok_or(NotConnected::Overflow)?;
        let slot = match slots::take(self.node, self.cluster) {
            Some(slot) => slot,
            None => {
                let handed = self.node.http.pool(self.core).handing.wait(&self.key);
                self.sweep_later();
                tokio::select! {
                    biased;
                    Ok(carrier) = handed => return Ok(self.http1_lease(carrier, true)),
                    slot = slots::slot(self.node, self.cluster) => slot,
                }
            }
        };
        match self.dial().open(http2::ALLOWED, slot).await? {
            Opened::Http1(carrier) => Ok(self.http1_lease(carrier, false)),
            Opened::Http2(shared) => {
                let place = self.group().adopt(shared);
                Ok(self.http2_lease(place))
            }
        }
    }

    fn http1_lease(&self, mut carrier: Carrier, is_reused: bool) -> Lease {
        carrier.begin();
        self.lease(Held::Http1(carrier), is_reused)
    }

    fn http2_lease(&self, place: Place) -> Lease {
        let is_reused = place.is_reused;
        self.sweep_later();
        self.lease(Held::Http2(place), is_reused)
    }

    fn take_idle(&self) -> Option<Idle> {
        self.node.http.pool(self.core).http1.take(&self.key)
    }

    fn group(&self) -> Arc<Group> {
        let mut pool = self.node.http.pool(self.core);
        if let Some(group) = pool.http2.get(&self.key) {
            return group.clone();
        }
        let group = Arc::<Group>::default();
        let limits = self.node.http.limits_of(&self.cluster.settings);
        pool.http2.insert(self.key.clone(), group.clone(), limits);
        drop(pool);
        // Also if no connection is ever made for it.
        self.sweep_later();
        group
    }

    fn sweep_later(&self) {
        sweep_later(self.node, self.core, &self.cluster.settings);
    }
}

impl Lease {
    /// Notes what tells whether its request was sent whole.
    pub fn sends(&mut self, sent: Sent) {
        self.sent = sent;
    }

    /// Has a request move as its body is taken; where many share a connection, whoever sends it tells.
    pub fn moves(&self, activity: &Activity) {
        if let Some(Held::Http1(carrier)) = &self.connection {
            carrier.moves(activity);
        }
    }

    /// Has what still sends the request's body end with it.
    pub fn uploads(&mut self, uploading: Option<Codec>) {
        self.uploading = uploading;
    }

    /// The way to send a request by it.
    pub fn sender(&mut self) -> Option<Sender<'_>> {
        match self.connection.as_mut()? {
            Held::Http1(carrier) => Some(Sender::Http1(&mut carrier.sender)),
            Held::Http2(place) => Some(Sender::Http2(place.sender())),
            Held::Alone { .. } => None,
        }
    }

    /// The connection's own address; none, if it has no socket of its own, or one that nobody else may use.
    pub fn local_address(&self) -> Option<SocketAddr> {
        match self.connection.as_ref()? {
            Held::Http1(carrier) => carrier.local,
            Held::Http2(place) => place.local(),
            Held::Alone { .. } => None,
        }
    }

    /// Whether others have used it before, and its endpoint has not got a byte of this request: it had closed it by then. (Where the endpoint has got some,
    /// and closes without an answer, it may have done what was asked.)
    pub fn was_stale(&self) -> bool {
        match &self.connection {
            Some(Held::Http1(carrier)) => self.is_reused && carrier.was_not_received(),
            Some(Held::Http2(_) | Held::Alone { .. }) | None => false,
        }
    }

    /// Resolves when the endpoint's kernel has all of a tunnel that is over, as far as there is a codec between; what moves meanwhile is noted.
    pub async fn flushed(&mut self, activity: &Activity) {
        if let Some(Held::Alone { below: Some(below) }) = &mut self.connection {
            below.over(activity).await;
        }
    }

    /// It broke while the response came. What the proxy has broken is no fault of the endpoint's.
    pub fn broke(self, why: BrokenOff) {
        if self.sent.was_broken_off() || why == BrokenOff::Limited {
            return;
        }
        outliers::note(&self.cluster, &self.endpoint, Outcome::Broke, Duration::ZERO);
    }

    /// Lets others use it: its request is answered whole. One that is answered before it was sent whole takes its connection with it.
    pub fn give_back(mut self) {
        let settings = &self.cluster.settings;
        // Before another takes its place.
        self.request = None;
        if let Some(Held::Http1(carrier)) = &self.connection
            && self.sent.is_whole()
            && carrier.may_go_on(settings)
            && let Some(Held::Http1(carrier)) = self.connection.take()
        {
            let carrier = match carrier.is_wanted() {
                false => carrier,
                true if carrier.has_served_enough() => return,
                // Whoever waits for one of this kind has it; else it is closed, for those who wait for another.
                true => return self.node.http.pool(self.core).handing.hand(&self.key, carrier),
            };
            let idle = Idle::new(carrier, settings, &self.endpoint);
            let limits = self.node.http.limits_of(settings);
            let mut pool = self.node.http.pool(self.core);
            let excess = pool.http1.keep(self.key.clone(), idle, limits);
            drop(pool);
            drop(excess);
            sweep_later(&self.node, self.core, settings);
        }
    }
}

/// The way to send a request.
pub enum Sender<'a> {
    /// As HTTP/1.1.
    Http1(&'a mut http1::Sender),
    /// As HTTP/2.
    Http2(http2::Sender),
}

/// Starts to look for old connections now and then, for as long as there are any.
fn sweep_later(node: &Arc<Node>, core: usize, cluster: &ClusterSettings) {
    if std::mem::replace(&mut node.http.pool(core).is_swept, true) {
        return;
    }
    let mut pause = pause(cluster);
    let node = Arc::downgrade(node);
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(pause).await;
            let Some(node) = node.upgrade() else { return };
            let mut pool = node.http.pool(core);
            pause = pool.sweep(&node);
            if pool.http1.is_empty() && pool.http2.is_empty() && pool.handing.is_empty() {
                pool.is_swept = false;
                return;
            }
        }
    });
}

/// Whether DNS names another endpoint of the same service each time, and one that was named before again: connections there are kept, as Envoy does.
fn is_turned_round(cluster: &ClusterSettings) -> bool {
    matches!(&cluster.discovery, Discovery::Dns(dns) if dns.kind == DnsKind::Logical)
}

/// How long a cluster's connections may go unlooked at: what is too old goes soon after.
fn pause(cluster: &ClusterSettings) -> Duration {
    let shortest = cluster
        .connections
        .lifetime
        .into_iter()
        .chain([cluster.idle_timeout])
        .min();
    shortest.map_or(SWEEP, |shortest| (shortest / 4).clamp(SWEEP_SOONEST, SWEEP))
}

impl Pool {
    /// Since when the connection of a cluster waits that has waited longest.
    fn idle_since(&self, cluster: &Text) -> Option<Instant> {
        let of_http1 = self.http1.longest(cluster);
        let of_http2 = self.http2.longest(cluster).map(|(since, _)| since);
        of_http1.into_iter().chain(of_http2).min()
    }

    fn end_longest_idle(&mut self, cluster: &Text) -> (Vec<Idle>, Option<Arc<Group>>) {
        let of_http1 = self.http1.longest(cluster);
        match self.http2.longest(cluster) {
            Some((since, key)) if of_http1.is_none_or(|other| since < other) => (Vec::new(), self.http2.remove(&key)),
            _ => (self.http1.end_longest_of(cluster), None),
        }
    }

    /// Closes what is too old, what its peer has closed, and what leads to an endpoint that is no more, or to one in another way than is said now.
    /// Says when it is to be looked for again.
    fn sweep(&mut self, node: &Node) -> Duration {
        let snapshot = node.snapshot();
        let mut next = SWEEP;
        let mut cluster_of = |key: &Key| {
            let cluster = snapshot.config.http.cluster(&key.cluster)?;
            let is_there = match cluster.endpoint_at(key.address) {
                Some(endpoint) => way::leads_to(node, &snapshot.config, cluster, &endpoint, &key.way),
                None => is_turned_round(&cluster.settings),
            };
            let is_endpoint = is_there
                && Arc::ptr_eq(&cluster.settings.transport, &key.transport)
                && node.http.originations.edition_in_force(&key.transport) == key.edition;
            next = next.min(pause(&cluster.settings));
            is_endpoint.then_some(&*cluster.settings)
        };
        self.handing.sweep();
        let ended = self.http1.sweep(|key| cluster_of(key).is_some());
        self.http2.sweep(|key, group| group.sweep(cluster_of(key)));
        for key in self.http2.crowded() {
            if let Some(cluster) = snapshot.config.http.cluster(&key.cluster) {
                self.http2.bound(&key, node.http.limits_of(&cluster.settings));
            }
        }
        drop(ended);
        next
    }
}
