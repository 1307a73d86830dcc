//! All open flows, with exact counts of those that have ended, and an index from configuration to flows.
//!
//! **One idea.** Each core has a shard of its own, so opening and closing a flow takes a lock that only readers (a metrics
//! scrape, the admin view, a configuration change) ever contend for. Within a shard, flows with the same client workload,
//! destination workload and service share a [`Path`]: the unit of metrics (a path is a label set) and of the index (a policy guards
//! destinations, hence paths).
//!
//! **Invariants.** A path's counts are those of its ended flows; what a live flow has moved is read from the flow itself,
//! and added to the path in the same critical section that removes the flow. So a scrape, which holds the lock too, counts
//! each byte once and never sees a sum go down.

mod shard;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use underpass_config::http::ServiceName;
use underpass_config::{Config, Identity, NodeSettings, Service, Text, Touched, Workload};

pub use shard::PathCounts;
use shard::ShardState;

use crate::ending::Ending;
use crate::flow::{Flow, FlowFacts, FlowId};
use crate::hbone::described::Described;
use crate::limits::{OpenConnections, Place};
use crate::offload::TierCounts;

/// Bits of a [`FlowId`] that hold the place in the shard; the rest is the shard's number.
const PLACE_BITS: u32 = 40;

/// The flows of the whole process.
#[derive(Debug)]
pub struct FlowTable {
    shards: Box<[Mutex<ShardState>]>,
    open: OpenConnections,
}

/// What a path is made of: the ends of a connection as the configuration knows them.
#[derive(Clone, Debug)]
pub struct PathEnds {
    /// The client's workload.
    pub source: Option<Arc<Workload>>,
    /// The destination's workload.
    pub destination: Option<Arc<Workload>>,
    /// The service it was reached by.
    pub service: Option<Arc<Service>>,
    /// Whether the destination is on this node, which then reports its side too.
    pub destination_is_local: bool,
    /// What is between them.
    pub transport: Transport,
}

/// What carries a connection beyond this node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Transport {
    /// TCP.
    #[default]
    Plain,
    /// A tunnel, by which it goes on; the destination's node reports the destination's side.
    TunnelOut,
    /// A tunnel, by which it came; the client's node reports the client's side. Who opened it, if the handshake has come so far.
    TunnelIn(Option<TunnelPeer>),
    /// A tunnel to a waypoint, of whose connections it reports: each has two sides there.
    Waypoint {
        /// Who opened the tunnel.
        peer: Option<TunnelPeer>,
        /// The service that its cluster stands for.
        service: Option<Arc<ServiceName>>,
    },
}

impl Transport {
    /// Who opened the tunnel that a connection came by, where the handshake has said.
    pub fn peer(&self) -> Option<&TunnelPeer> {
        match self {
            Self::Plain | Self::TunnelOut => None,
            Self::TunnelIn(peer) | Self::Waypoint { peer, .. } => peer.as_ref(),
        }
    }
}

/// Who opened a tunnel.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TunnelPeer {
    /// Verified.
    pub identity: Identity,
    /// What it says of itself.
    pub described: Option<Arc<Described>>,
}

impl PathEnds {
    /// The ends of a connection served by `node`.
    pub fn new(
        source: Option<&Arc<Workload>>,
        destination: Option<&Arc<Workload>>,
        service: Option<&Arc<Service>>,
        node: &NodeSettings,
    ) -> Self {
        let destination_is_local = destination.is_some_and(|w| w.node == node.name);
        Self {
            source: source.cloned(),
            destination: destination.cloned(),
            service: service.cloned(),
            destination_is_local,
            transport: Transport::Plain,
        }
    }

    /// The same ends, with something else between them.
    pub fn carried_by(self, transport: Transport) -> Self {
        Self { transport, ..self }
    }
}

impl PathEnds {
    /// The same ends in another configuration; an end that is not in it is unknown there.
    pub fn refreshed(&self, config: &Config) -> Self {
        let workload = |known: &Option<Arc<Workload>>| known.as_ref().and_then(|w| config.mesh.workload(&w.uid));
        let service = self
            .service
            .as_ref()
            .and_then(|s| config.mesh.service(&s.key))
            .map(|state| state.service());
        Self::new(
            workload(&self.source),
            workload(&self.destination),
            service,
            &config.node,
        )
        .carried_by(self.transport.clone())
    }

    /// Whether an end that `other` has is missing here.
    fn is_less_than(&self, other: &Self) -> bool {
        (self.source.is_none() && other.source.is_some())
            || (self.destination.is_none() && other.destination.is_some())
            || (self.service.is_none() && other.service.is_some())
    }

    /// Whether the labels of metrics are others.
    fn labels_differ(&self, other: &Self) -> bool {
        let differ = |a: &Option<Arc<Workload>>, b: &Option<Arc<Workload>>| match (a, b) {
            (Some(a), Some(b)) => labelled_differently(a, b),
            _ => false,
        };
        differ(&self.source, &other.source)
            || differ(&self.destination, &other.destination)
            || self.destination_is_local != other.destination_is_local
    }

    /// Takes over what `newer` has.
    fn update(&mut self, newer: Self) {
        self.destination_is_local = newer.destination_is_local;
        self.source = newer.source.or(self.source.take());
        self.destination = newer.destination.or(self.destination.take());
        self.service = newer.service.or(self.service.take());
    }
}

/// Whether two versions of a workload are labelled differently in metrics.
fn labelled_differently(a: &Workload, b: &Workload) -> bool {
    (&a.name, &a.namespace, &a.identity, &a.cluster_id, &a.addresses)
        != (&b.name, &b.namespace, &b.identity, &b.cluster_id, &b.addresses)
        || (&a.canonical_name, &a.canonical_revision, &a.workload_name)
            != (&b.canonical_name, &b.canonical_revision, &b.workload_name)
}

/// The relaying task's hold on its flow. Dropping it closes the flow in the table.
#[derive(Debug)]
pub struct FlowGuard {
    table: Arc<FlowTable>,
    shard: usize,
    place: usize,
    flow: Arc<Flow>,
    /// What is counted if the task goes without a word, as it does when the process stops.
    ending: Ending,
    counted: bool,
    _limits: Place,
}

impl FlowTable {
    /// A table for `cores` cores.
    pub fn new(cores: usize) -> Self {
        Self {
            shards: (0..cores).map(|_| Mutex::default()).collect(),
            open: OpenConnections::default(),
        }
    }

    /// The cores that it is for.
    pub fn cores(&self) -> usize {
        self.shards.len()
    }

    /// The counters of open connections.
    pub fn open_connections(&self) -> &OpenConnections {
        &self.open
    }

    fn shard(&self, index: usize) -> MutexGuard<'_, ShardState> {
        self.shards[index].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn all_shards(&self) -> impl Iterator<Item = MutexGuard<'_, ShardState>> {
        (0..self.shards.len()).map(|i| self.shard(i))
    }

    /// Enters a flow of core `shard`, which `settings` let open and into the kernel. From here on configuration changes find it.
    ///
    /// # Errors
    /// `Ending::ConnectionLimit` when the client's workload or namespace has as many open as it may have.
    pub fn open(
        self: &Arc<Self>,
        shard: usize,
        ends: PathEnds,
        facts: FlowFacts,
        started: SystemTime,
        settings: &NodeSettings,
    ) -> Result<FlowGuard, Ending> {
        let mut state = self.shard(shard);
        let path = state.path(ends, &self.open);
        let Some(place) = state.tenant(path).admit(&settings.limits) else {
            return Err(Ending::ConnectionLimit);
        };
        let may_offload = facts.may_offload(&settings.offload);
        let flow = Arc::new(Flow::new(facts, started, may_offload));
        let index = state.insert(path, flow.clone());
        Ok(FlowGuard {
            table: self.clone(),
            shard,
            place: index,
            flow,
            ending: Ending::Drained,
            counted: true,
            _limits: place,
        })
    }

    /// Enters what is no connection of its own, but may be denied as one: a client's way to an endpoint, inside a connection that is counted
    /// already. Whoever holds it abandons it.
    pub fn watch(self: &Arc<Self>, shard: usize, ends: PathEnds, facts: FlowFacts, started: SystemTime) -> FlowGuard {
        let mut state = self.shard(shard);
        let path = state.path(ends, &self.open);
        let flow = Arc::new(Flow::watch(facts, started));
        let place = state.insert(path, flow.clone());
        FlowGuard {
            table: self.clone(),
            shard,
            place,
            flow,
            ending: Ending::Drained,
            counted: false,
            _limits: Place::none(),
        }
    }

    /// Counts a connection that ended before it became a flow. `ends` is asked for them while the shard is locked: they are then
    /// either of the snapshot in force, or about to be brought up to it.
    pub fn count_refused(&self, shard: usize, ends: impl FnOnce() -> PathEnds, ending: Ending) {
        let mut state = self.shard(shard);
        let path = state.path(ends(), &self.open);
        state.count_refused(path, ending);
    }

    /// All open flows.
    pub fn flows(&self) -> Vec<(FlowId, Arc<Flow>)> {
        let mut all = Vec::new();
        for (number, shard) in self.all_shards().enumerate() {
            all.extend(shard.flows().map(|(place, flow)| (id(number, place), flow.clone())));
        }
        all
    }

    /// Each label set with its counts, those of its live flows included. Nothing is formatted while a shard is locked.
    pub fn paths(&self) -> Vec<(PathEnds, PathCounts)> {
        let mut all = Vec::new();
        for shard in self.all_shards() {
            all.extend(shard.paths());
        }
        all
    }

    /// What flows have moved by each tier, the live ones included.
    pub fn tiers(&self) -> TierCounts {
        let mut sum = TierCounts::default();
        for shard in self.all_shards() {
            sum.merge(&shard.tiers());
        }
        sum
    }

    /// The flows that go by these chains of a waypoint.
    pub fn by_chains(&self, chains: &HashSet<Text>) -> Vec<Arc<Flow>> {
        let mut all = Vec::new();
        for shard in self.all_shards() {
            all.extend(shard.by_chains(chains));
        }
        all
    }

    /// Takes note of a configuration change: forgets the label sets of workloads and services that are gone, and returns the
    /// flows whose verdict or endpoint the change may have altered. The work is proportional to those, not to all flows.
    pub fn apply(&self, touched: &Touched, config: &Config) -> Vec<Arc<Flow>> {
        let mut affected = Vec::new();
        for mut shard in self.all_shards() {
            shard.apply(touched, config, &mut affected);
        }
        self.open.forget_unused();
        affected
    }
}

fn id(shard: usize, place: usize) -> FlowId {
    ((shard as u64) << PLACE_BITS) | place as u64
}

impl FlowGuard {
    /// The flow.
    pub fn flow(&self) -> &Arc<Flow> {
        &self.flow
    }

    /// Ends the flow: takes it out of the table and adds its counts to its path.
    pub fn finish(mut self, ending: Ending) -> Arc<Flow> {
        self.ending = ending;
        self.flow.clone()
    }

    /// Takes the flow out of the table without counting it: another endpoint is tried, as another flow.
    pub fn abandon(mut self) {
        self.counted = false;
    }
}

impl Drop for FlowGuard {
    fn drop(&mut self) {
        let mut state = self.table.shard(self.shard);
        if self.counted {
            state.close(self.place, self.ending);
        } else {
            state.remove(self.place);
        }
    }
}

#[cfg(test)]
mod tests;
