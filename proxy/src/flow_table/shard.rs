//! One core's flows and paths, and the index from what a configuration change names to the paths it may concern.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;

use slab::Slab;
use underpass_config::{Config, PolicyKey, ServiceKey, Text, Touched, WorkloadUid};

use super::{PathEnds, Transport};
use crate::ending::Ending;
use crate::flow::Flow;
use crate::limits::{OpenConnections, TenantCounters};
use crate::offload::TierCounts;

/// Flows of one client workload to one destination workload by one service: one set of metric labels.
#[derive(Debug)]
struct Path {
    /// What it leads from and to, as its labels say it.
    ends: PathEnds,
    /// The same ends as the configuration in force has them: what changes must find this path by.
    current: PathEnds,
    counts: PathCounts,
    flows: HashSet<usize>,
    tenant: TenantCounters,
    /// An end is gone, or has other labels now: new flows use another path, and this one is forgotten with its last flow.
    retired: bool,
}

/// Counts of a path.
#[derive(Clone, Debug, Default)]
pub struct PathCounts {
    /// Ended connections, by [`Ending`] (index: discriminant − 1), refused ones included.
    pub ended: [u64; Ending::ALL.len()],
    /// Ended connections whose destination had been connected to.
    pub established_ended: u64,
    /// Open connections whose destination has been connected to.
    pub established_open: u64,
    /// Bytes from client to destination.
    pub sent: u64,
    /// Bytes from destination to client.
    pub received: u64,
}

impl PathCounts {
    fn is_zero(&self) -> bool {
        self.ended.iter().all(|&count| count == 0)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct PathKey {
    source: Option<WorkloadUid>,
    destination: Option<WorkloadUid>,
    service: Option<ServiceKey>,
    transport: Transport,
}

#[derive(Debug)]
struct Entry {
    flow: Arc<Flow>,
    path: usize,
}

#[derive(Debug, Default)]
pub(super) struct ShardState {
    flows: Slab<Entry>,
    paths: Slab<Path>,
    current: HashMap<PathKey, usize>,
    by_workload: HashMap<WorkloadUid, HashSet<usize>>,
    by_policy: HashMap<PolicyKey, HashSet<usize>>,
    by_namespace: HashMap<Text, HashSet<usize>>,
    by_service: HashMap<ServiceKey, HashSet<usize>>,
    /// Flows with an end that is no workload: the address may become one.
    by_address: HashMap<IpAddr, HashSet<usize>>,
    /// Flows that a waypoint's chain leads on.
    by_chain: HashMap<Text, HashSet<usize>>,
    /// Flows whose destination was no workload when they were opened and is one now. Their paths do not lead to it, so every
    /// change is taken to concern them; there are few.
    adopted: HashSet<usize>,
    /// What ended flows have moved, by tier.
    tiers: TierCounts,
}

fn key(ends: &PathEnds) -> PathKey {
    PathKey {
        source: ends.source.as_ref().map(|w| w.uid.clone()),
        destination: ends.destination.as_ref().map(|w| w.uid.clone()),
        service: ends.service.as_ref().map(|s| s.key.clone()),
        transport: ends.transport.clone(),
    }
}

fn add<K: Eq + Hash + Clone>(index: &mut HashMap<K, HashSet<usize>>, key: &K, value: usize) {
    match index.get_mut(key) {
        Some(set) => {
            set.insert(value);
        }
        None => {
            index.insert(key.clone(), HashSet::from([value]));
        }
    }
}

fn drop_from<K: Eq + Hash>(index: &mut HashMap<K, HashSet<usize>>, key: &K, value: usize) {
    if let Some(set) = index.get_mut(key) {
        set.remove(&value);
        if set.is_empty() {
            index.remove(key);
        }
    }
}

/// Addresses of a flow that are not those of a known workload.
fn unknown_addresses(flow: &Flow) -> impl Iterator<Item = IpAddr> {
    let source = flow.facts.source.workload().is_none().then(|| flow.facts.source.ip());
    let destination = flow
        .facts
        .destination_workload
        .is_none()
        .then(|| flow.facts.destination.ip());
    source.into_iter().chain(destination)
}

impl ShardState {
    pub(super) fn flows(&self) -> impl Iterator<Item = (usize, &Arc<Flow>)> {
        self.flows.iter().map(|(place, entry)| (place, &entry.flow))
    }

    /// The path for these ends, made when first seen.
    pub(super) fn path(&mut self, ends: PathEnds, open: &OpenConnections) -> usize {
        let key = key(&ends);
        if let Some(&path) = self.current.get(&key) {
            return path;
        }
        let tenant = open.tenant(ends.source.as_deref());
        let current = ends.clone();
        let path = self.paths.insert(Path {
            ends,
            current,
            counts: PathCounts::default(),
            flows: HashSet::new(),
            tenant,
            retired: false,
        });
        self.current.insert(key, path);
        self.index(path);
        path
    }

    pub(super) fn tenant(&self, path: usize) -> &TenantCounters {
        &self.paths[path].tenant
    }

    pub(super) fn insert(&mut self, path: usize, flow: Arc<Flow>) -> usize {
        let place = self.flows.vacant_key();
        for address in unknown_addresses(&flow) {
            add(&mut self.by_address, &address, place);
        }
        if let Some(by) = &flow.facts.chain {
            add(&mut self.by_chain, &by.name, place);
        }
        self.paths[path].flows.insert(place);
        self.flows.insert(Entry { flow, path })
    }

    pub(super) fn count_refused(&mut self, path: usize, ending: Ending) {
        self.paths[path].counts.ended[ending as usize - 1] += 1;
    }

    /// Ends the flow at `place` and counts it.
    pub(super) fn close(&mut self, place: usize, ending: Ending) {
        let entry = &self.flows[place];
        if let Some(kernel) = entry.flow.offload.kernel() {
            kernel.settle();
        }
        self.tiers.add(&entry.flow);
        let counts = &mut self.paths[entry.path].counts;
        counts.ended[ending as usize - 1] += 1;
        counts.established_ended += u64::from(entry.flow.is_established());
        counts.sent += entry.flow.sent();
        counts.received += entry.flow.received();
        self.remove(place);
    }

    /// Takes the flow at `place` out without counting it.
    pub(super) fn remove(&mut self, place: usize) {
        let entry = self.flows.remove(place);
        for address in unknown_addresses(&entry.flow) {
            drop_from(&mut self.by_address, &address, place);
        }
        if let Some(by) = &entry.flow.facts.chain {
            drop_from(&mut self.by_chain, &by.name, place);
        }
        let path = &mut self.paths[entry.path];
        self.adopted.remove(&place);
        path.flows.remove(&place);
        // A path that never counted anything may have been made from a snapshot that is no longer in force.
        if path.flows.is_empty() && (path.retired || path.counts.is_zero()) {
            self.forget(entry.path);
        }
    }

    /// Each path's labels and counts, those of its live flows included.
    pub(super) fn paths(&self) -> impl Iterator<Item = (PathEnds, PathCounts)> {
        self.paths.iter().map(|(_, path)| {
            let mut counts = path.counts.clone();
            for &place in &path.flows {
                let flow = &self.flows[place].flow;
                counts.established_open += u64::from(flow.is_established());
                counts.sent += flow.sent();
                counts.received += flow.received();
            }
            (path.ends.clone(), counts)
        })
    }

    /// What ended and live flows have moved, by tier.
    pub(super) fn tiers(&self) -> TierCounts {
        let mut tiers = self.tiers;
        for (_, flow) in self.flows() {
            tiers.add(flow);
            tiers.joined += u64::from(flow.offload.kernel().is_some());
        }
        tiers
    }

    fn index(&mut self, path: usize) {
        let ends = self.paths[path].current.clone();
        for workload in [&ends.source, &ends.destination].into_iter().flatten() {
            add(&mut self.by_workload, &workload.uid, path);
        }
        if let Some(destination) = &ends.destination {
            add(&mut self.by_namespace, &destination.namespace, path);
            for policy in &destination.authorization_policies {
                add(&mut self.by_policy, policy, path);
            }
        }
        if let Some(service) = &ends.service {
            add(&mut self.by_service, &service.key, path);
        }
    }

    fn unindex(&mut self, path: usize) {
        let ends = self.paths[path].current.clone();
        for workload in [&ends.source, &ends.destination].into_iter().flatten() {
            drop_from(&mut self.by_workload, &workload.uid, path);
        }
        if let Some(destination) = &ends.destination {
            drop_from(&mut self.by_namespace, &destination.namespace, path);
            for policy in &destination.authorization_policies {
                drop_from(&mut self.by_policy, policy, path);
            }
        }
        if let Some(service) = &ends.service {
            drop_from(&mut self.by_service, &service.key, path);
        }
    }

    fn forget(&mut self, path: usize) {
        self.unindex(path);
        let forgotten = self.paths.remove(path);
        let key = key(&forgotten.ends);
        if self.current.get(&key) == Some(&path) {
            self.current.remove(&key);
        }
    }

    /// See [`super::FlowTable::apply`].
    pub(super) fn apply(&mut self, touched: &Touched, config: &Config, affected: &mut Vec<Arc<Flow>>) {
        let mut flows = self.flows_at(touched);
        for &place in &flows {
            self.adopt(place, config);
        }
        flows.extend(&self.adopted);
        for path in self.paths_of(touched) {
            flows.extend(&self.paths[path].flows);
            self.refresh(path, config);
        }
        affected.extend(
            flows
                .into_iter()
                .filter_map(|place| self.flows.get(place))
                .map(|entry| entry.flow.clone()),
        );
    }

    fn flows_at(&self, touched: &Touched) -> HashSet<usize> {
        touched
            .addresses
            .iter()
            .filter_map(|address| self.by_address.get(address))
            .flatten()
            .copied()
            .collect()
    }

    /// See [`super::FlowTable::by_chains`].
    pub(super) fn by_chains(&self, chains: &HashSet<Text>) -> impl Iterator<Item = Arc<Flow>> {
        let places = chains.iter().filter_map(|chain| self.by_chain.get(chain)).flatten();
        places
            .filter_map(|place| self.flows.get(*place))
            .map(|entry| entry.flow.clone())
    }

    fn adopt(&mut self, place: usize, config: &Config) {
        let Some(Entry { flow, .. }) = self.flows.get(place) else {
            return;
        };
        let address = flow.facts.destination.ip();
        let known_now = config.mesh.workload_at(&config.node.network, address).is_some();
        if flow.facts.destination_workload.is_none() && known_now {
            self.adopted.insert(place);
        }
    }

    fn paths_of(&self, touched: &Touched) -> HashSet<usize> {
        if touched.everything {
            return self.paths.iter().map(|(path, _)| path).collect();
        }
        let workloads = touched.workloads.iter().filter_map(|uid| self.by_workload.get(uid));
        let namespaces = touched.namespaces.iter().filter_map(|name| self.by_namespace.get(name));
        let policies = touched.policies.iter().filter_map(|policy| self.by_policy.get(policy));
        let services = touched
            .services
            .iter()
            .filter_map(|service| self.by_service.get(service));
        workloads
            .chain(namespaces)
            .chain(policies)
            .chain(services)
            .flatten()
            .copied()
            .collect()
    }

    /// Brings a path up to the new configuration, and retires it when an end is gone or has other labels.
    fn refresh(&mut self, path: usize, config: &Config) {
        self.unindex(path);
        let state = &mut self.paths[path];
        let refreshed = state.current.refreshed(config);
        if refreshed.is_less_than(&state.current) || refreshed.labels_differ(&state.ends) {
            state.retired = true;
        } else {
            state.ends = refreshed.clone();
        }
        // What is gone from the configuration may come back, and must find this path then.
        state.current.update(refreshed);
        let (retired, unused) = (state.retired, state.flows.is_empty());
        let key = key(&state.ends);
        self.index(path);
        if retired && self.current.get(&key) == Some(&path) {
            self.current.remove(&key);
        }
        if retired && unused {
            self.forget(path);
        }
    }
}
