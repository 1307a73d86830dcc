//! Connections to endpoints, each core's own.
//!
//! * [`dial`]: how one is made: TCP, the PROXY protocol's header, TLS, the codec.
//! * [`http1`]: one that has done its work waits on top of a stack; the one used last is used next, so that those which a quieter time doesn't
//!   need grow old at the bottom.
//! * [`http2`]: a request goes to the connection with the fewest of them, and when all have as many as they may, to a new one: no endpoint is
//!   reached over one hot connection.
//! * [`alone`]: a tunnel by HTTP/2 has a connection of its own.
//! * [`stream`], [`originations`]: what a codec speaks by; the TLS of clusters.
//!
//! A connection belongs to a [`Key`]: nothing that was asked of it, or told by it, at its beginning is another's.

pub mod alone;
pub mod dial;
pub mod http1;
pub mod http2;
pub mod originations;
pub mod stream;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use foldhash::quality::RandomState;
use underpass_config::Text;
use underpass_config::http::{Cluster, ClusterSettings, Transport};

pub use dial::NotConnected;
use dial::{Dial, Opened};
use http1::{Carrier, Idle};
use http2::{Given, Group, Place};
use originations::Originations;

use super::upload::Sent;
use crate::node::Node;

/// How often old connections are looked for, at least.
const SWEEP: Duration = Duration::from_secs(10);
/// And at most.
const SWEEP_SOONEST: Duration = Duration::from_millis(100);

/// The pools of all cores. A core locks its own only.
#[derive(Debug)]
pub struct Pools {
    cores: Box<[Mutex<Pool>]>,
    /// The TLS of clusters.
    pub originations: Originations,
}

#[derive(Debug, Default)]
struct Pool {
    http1: HashMap<Key, Vec<Idle>, RandomState>,
    http2: HashMap<Key, Arc<Group>, RandomState>,
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
    /// Whom it is asked for by TLS.
    pub server_name: Option<Text>,
    /// Whose it is, and where they had connected to, where the endpoint is told that.
    pub client: Option<(SocketAddr, SocketAddr)>,
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.address == other.address
            && Arc::ptr_eq(&self.transport, &other.transport)
            && self.cluster == other.cluster
            && self.server_name == other.server_name
            && self.client == other.client
    }
}

impl Eq for Key {}

impl std::hash::Hash for Key {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.cluster.hash(state);
        self.address.hash(state);
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
}

impl Pools {
    /// For `cores` cores.
    pub fn new(cores: usize) -> Self {
        Self {
            cores: (0..cores).map(|_| Mutex::default()).collect(),
            originations: Originations::default(),
        }
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
    /// None once it is given back.
    connection: Option<Held>,
    sent: Sent,
    /// Whether others have used it before.
    pub is_reused: bool,
}

#[derive(Debug)]
enum Held {
    Http1(Carrier),
    Http2(Place),
    Alone { _below: Option<alone::Below> },
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
            connection: Some(connection),
            sent: Sent::default(),
            is_reused,
        }
    }

    /// How a connection for one alone is made.
    pub fn dial(&self) -> Dial {
        Dial {
            node: self.node.clone(),
            cluster: self.cluster.clone(),
            key: self.key.clone(),
            speaks: self.speaks,
        }
    }

    /// Notes a connection that nobody else will use: what is below its stream, if it is one of HTTP/2.
    pub fn alone(&self, below: Option<alone::Below>) -> Lease {
        self.lease(Held::Alone { _below: below }, false)
    }

    /// As [`Wanted::alone`], one of HTTP/1.1.
    pub fn alone_by_http1(&self, carrier: Carrier) -> Lease {
        self.http1_lease(carrier, false)
    }

    /// A connection: one that waits, unless it is to be `fresh`, or a new one.
    ///
    /// # Errors
    /// When the endpoint can't be connected to.
    pub async fn connection(&self, fresh: bool) -> Result<Lease, NotConnected> {
        if self.speaks == Speaks::Http1 {
            return self.http1(fresh).await;
        }
        let group = self.group();
        if self.speaks == Speaks::Negotiated && group.has_chosen_http1() {
            return self.http1(fresh).await;
        }
        match group.place(self.dial()).await? {
            Given::Http2(place) => Ok(self.http2_lease(place)),
            Given::Http1(carrier) => Ok(self.http1_lease(carrier, false)),
            Given::Alone => self.http1(fresh).await,
        }
    }

    async fn http1(&self, fresh: bool) -> Result<Lease, NotConnected> {
        while let Some(mut idle) = self.take_idle().filter(|_| !fresh) {
            if idle.is_usable().await {
                return Ok(self.http1_lease(idle.carrier, true));
            }
        }
        match self.dial().open(http2::ALLOWED).await? {
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
        self.node.http.pool(self.core).http1.get_mut(&self.key)?.pop()
    }

    fn group(&self) -> Arc<Group> {
        let mut pool = self.node.http.pool(self.core);
        if let Some(group) = pool.http2.get(&self.key) {
            return group.clone();
        }
        pool.http2.entry(self.key.clone()).or_default().clone()
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

    /// The way to send a request by it.
    pub fn sender(&mut self) -> Option<Sender<'_>> {
        match self.connection.as_mut()? {
            Held::Http1(carrier) => Some(Sender::Http1(&mut carrier.sender)),
            Held::Http2(place) => Some(Sender::Http2(place.sender())),
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

    /// Lets others use it: its request is answered whole. One that is answered before it was sent whole takes its connection with it.
    pub fn give_back(mut self) {
        let settings = &self.cluster.settings;
        if let Some(Held::Http1(carrier)) = &self.connection
            && self.sent.is_whole()
            && carrier.may_go_on(settings)
            && let Some(Held::Http1(carrier)) = self.connection.take()
        {
            let idle = Idle::new(carrier, settings);
            let mut pool = self.node.http.pool(self.core);
            pool.http1.entry(self.key.clone()).or_default().push(idle);
            drop(pool);
            sweep_later(&self.node, self.core, settings);
        }
    }
}

/// The way to send a request.
pub enum Sender<'a> {
    /// As HTTP/1.1.
    Http1(&'a mut http1::Sender),
    /// As HTTP/2.
    Http2(&'a mut http2::Sender),
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
            if pool.http1.is_empty() && pool.http2.is_empty() {
                pool.is_swept = false;
                return;
            }
        }
    });
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
    /// Closes what is too old, what its peer has closed, and what leads to an endpoint that is no more, or to one in another way than is said now.
    /// Says when it is to be looked for again.
    fn sweep(&mut self, node: &Node) -> Duration {
        let snapshot = node.snapshot();
        let mut next = SWEEP;
        let mut cluster_of = |key: &Key| {
            let cluster = snapshot.config.http.cluster(&key.cluster)?;
            let mut endpoints = cluster.endpoints().iter();
            let is_endpoint = Arc::ptr_eq(&cluster.settings.transport, &key.transport)
                && endpoints.any(|endpoint| endpoint.settings.address == key.address);
            next = next.min(pause(&cluster.settings));
            is_endpoint.then_some(&cluster.settings)
        };
        self.http1.retain(|key, waiting| {
            let is_endpoint = cluster_of(key).is_some();
            waiting.retain(|idle| is_endpoint && idle.is_alive());
            !waiting.is_empty()
        });
        self.http2
            .retain(|key, group| group.sweep(cluster_of(key)) || Arc::strong_count(group) > 1);
        next
    }
}
