//! What all cores share: the current snapshot, the flows, telemetry, and the one way to change the configuration.
//!
//! **Changing.** A new snapshot is published first and the flow table is told second; a connection is entered into the
//! table first and looks at the generation second. Whichever comes first, a flow that was decided on the older snapshot is
//! seen by one of the two, so no connection outlives a policy that denies it.
//!
//! Settings come from the file and the mesh, perhaps, from istiod: each change is made of the configuration that it
//! finds in force, one after the other, so that none undoes another's.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use tokio::sync::watch;
use underpass_config::http::Http;
use underpass_config::waypoint::Chain;
use underpass_config::{Config, Decision, Mesh, Text, Touched};

use crate::authorization::judge;
use crate::capture::{Pod, Pods};
use crate::ending::Ending;
use crate::flow::{ByChain, Denial, Flow};
use crate::flow_table::FlowTable;
use crate::hbone::pool::Pool;
use crate::http::filters::judge_by;
use crate::http::filters::jwt::KeySets;
use crate::http::pool::Pools as HttpPools;
use crate::identities::Identities;
use crate::istiod::{Standing, Told};
use crate::offload::Offload;
use crate::source::Source;
use crate::telemetry::Telemetry;

/// One version of the configuration, immutable.
#[derive(Debug)]
pub struct Snapshot {
    /// The configuration.
    pub config: Config,
    /// Counts the changes; a later snapshot has a larger one.
    pub generation: u64,
}

/// The proxy of one node.
#[derive(Debug)]
pub struct Node {
    snapshot: ArcSwap<Snapshot>,
    generation: AtomicU64,
    /// Serialises changes of the configuration and of the enrolled pods; never taken by connections.
    changing: Mutex<()>,
    /// Open connections.
    pub flows: Arc<FlowTable>,
    /// Enrolled pods.
    pub pods: Pods,
    /// Their certificates, where there is a source of them.
    pub identities: Option<Identities>,
    /// HBONE connections to other nodes' pods.
    pub tunnels: Arc<Pool>,
    /// How the streams to istiod stand, where the mesh comes from there.
    pub istiod: Option<Standing>,
    /// The kernel tier.
    pub offload: Arc<Offload>,
    /// HTTP connections to endpoints.
    pub http: HttpPools,
    /// The keys of those whose tokens requests come with.
    pub key_sets: KeySets,
    /// Metrics and access log.
    pub telemetry: Telemetry,
    mesh_came: watch::Sender<bool>,
    awaits_serving: AtomicBool,
    awaits_agent: AtomicBool,
    draining: AtomicBool,
    closed: AtomicBool,
    drain: watch::Sender<bool>,
    changes: watch::Sender<()>,
}

impl Node {
    /// A node that serves `config` on `cores` cores.
    pub fn new(
        config: Config,
        identities: Option<Identities>,
        istiod: Option<Standing>,
        flows: Arc<FlowTable>,
        offload: Arc<Offload>,
        telemetry: Telemetry,
    ) -> Arc<Self> {
        let http = HttpPools::new(flows.cores(), config.node.limits.idle_http_connections);
        let key_sets = KeySets::new(flows.cores());
        Arc::new(Self {
            snapshot: ArcSwap::from_pointee(Snapshot { config, generation: 1 }),
            generation: AtomicU64::new(1),
            changing: Mutex::new(()),
            http,
            key_sets,
            flows,
            pods: Pods::default(),
            identities,
            tunnels: Arc::default(),
            mesh_came: watch::Sender::new(istiod.is_none()),
            awaits_serving: AtomicBool::new(
                istiod
                    .as_ref()
                    .is_some_and(|istiod| istiod.reader(Told::Waypoint).is_some()),
            ),
            istiod,
            offload,
            telemetry,
            awaits_agent: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            drain: watch::Sender::new(false),
            changes: watch::Sender::new(()),
        })
    }

    /// The snapshot in force.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// That of the snapshot in force.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    /// Whether `snapshot` is still the one in force.
    pub fn is_current(&self, snapshot: &Snapshot) -> bool {
        self.generation.load(Ordering::SeqCst) == snapshot.generation
    }

    /// Puts in force what `change` makes of the configuration: new connections are decided by it, and open ones that it
    /// concerns are decided again. Returns how many were denied.
    pub fn publish(self: &Arc<Self>, change: impl FnOnce(&Config) -> (Config, Touched)) -> usize {
        self.publish_telling(change, &AtomicBool::new(false))
    }

    /// [`Node::publish`], for those who go on when it panics: `is_in_force` becomes true when what `change` made is.
    pub fn publish_telling(
        self: &Arc<Self>,
        change: impl FnOnce(&Config) -> (Config, Touched),
        is_in_force: &AtomicBool,
    ) -> usize {
        let _one_at_a_time = self.one_at_a_time();
        let (config, touched) = change(&self.snapshot.load().config);
        if let Some(identities) = &self.identities {
            identities.mesh_changes(&touched, &config.mesh);
        }
        let generation = self.generation.load(Ordering::Relaxed) + 1;
        let snapshot = Arc::new(Snapshot { config, generation });
        let replaced = self.snapshot.swap(snapshot.clone());
        is_in_force.store(true, Ordering::Relaxed);
        self.generation.store(generation, Ordering::SeqCst);
        self.changes.send_replace(());
        let mut affected = self.flows.apply(&touched, &snapshot.config);
        let chains = changed_chains(&replaced.config.http, &snapshot.config.http);
        if !chains.is_empty() {
            let is_by_another =
                |flow: &Arc<Flow>| flow.facts.chain.as_ref().is_none_or(|by| !chains.contains(&by.name));
            affected.retain(is_by_another);
            affected.extend(self.flows.by_chains(&chains));
        }
        if replaced.config.node.offload != snapshot.config.node.offload {
            self.flows
                .flows()
                .iter()
                .for_each(|(_, flow)| reconsider_offload(flow, &snapshot.config));
        }
        affected.iter().filter(|flow| self.reconsider(flow, &snapshot)).count()
    }

    /// Decides all open flows again, for when it is not known which have been. One about which that fails is denied.
    pub fn reconsider_all(self: &Arc<Self>) {
        let snapshot = self.snapshot();
        for (_, flow) in self.flows.flows() {
            let decided = catch_unwind(AssertUnwindSafe(|| self.reconsider(&flow, &snapshot)));
            if decided.is_err() {
                flow.end(Ending::PolicyRevoked);
            }
        }
    }

    /// Serves an enrolled pod, in the place of what was known of it.
    pub fn add_pod(&self, pod: &Arc<Pod>) {
        let _one_at_a_time = self.one_at_a_time();
        if let Some(identities) = &self.identities {
            identities.pod_added(pod.cookie, &pod.uid, &self.snapshot.load().config.mesh);
        }
        self.pods.add(pod);
    }

    /// Serves a pod no more.
    pub fn remove_pod(&self, cookie: u64) {
        let _one_at_a_time = self.one_at_a_time();
        self.pods.remove(cookie);
        if let Some(identities) = &self.identities {
            identities.pod_removed(cookie);
        }
    }

    fn one_at_a_time(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Decides an open flow again. True if it is denied now.
    fn reconsider(self: &Arc<Self>, flow: &Arc<Flow>, snapshot: &Snapshot) -> bool {
        let config = &snapshot.config;
        if let Some(denial) = denied(flow, config) {
            flow.deny(denial);
            return true;
        }
        if has_lost_its_way(flow, config) {
            self.end_after_drain(flow.clone(), config);
        }
        false
    }

    fn end_after_drain(self: &Arc<Self>, flow: Arc<Flow>, config: &Config) {
        let (node, patience) = (Arc::downgrade(self), config.node.timeouts.drain);
        let Ok(control) = tokio::runtime::Handle::try_current() else {
            return;
        };
        let flow = Arc::downgrade(&flow);
        control.spawn(async move {
            tokio::time::sleep(patience).await;
            if let (Some(node), Some(flow)) = (node.upgrade(), flow.upgrade())
                && has_lost_its_way(&flow, &node.snapshot().config)
            {
                flow.end(Ending::EndpointDrained);
            }
        });
    }

    /// Tells of snapshots that are put in force from now on.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// Starts to drain: listeners close, `/ready` says no. Idempotent.
    pub fn start_drain(&self) {
        self.draining.store(true, Ordering::SeqCst);
        self.drain.send_replace(true);
    }

    /// From now on no connection begins: those that were being made when the drain ran out of time are refused.
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }

    /// Whether the drain has run out of time.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Whether istiod has yet to tell of the mesh. Until then nobody is served.
    pub fn awaits_mesh(&self) -> bool {
        !*self.mesh_came.borrow()
    }

    fn mesh_has_come(&self) {
        self.mesh_came.send_if_modified(|came| !std::mem::replace(came, true));
    }

    /// Whether istiod has yet to tell what the waypoint serves that this node is besides. Until then its streams are refused.
    pub fn awaits_serving(&self) -> bool {
        self.awaits_serving.load(Ordering::SeqCst)
    }

    /// Notes that the first of what a stream tells of is in force.
    pub fn has_been_told(&self, told: Told) {
        match told {
            Told::Mesh => self.mesh_has_come(),
            Told::Waypoint => self.awaits_serving.store(false, Ordering::SeqCst),
        }
    }

    /// Resolves when there is a mesh.
    pub async fn mesh_came(&self) {
        // The sender lives as long as the node, so this waits for the value.
        let _ = self.mesh_came.subscribe().wait_for(|came| *came).await;
    }

    /// Whether an agent has yet to tell which pods there are. One that has, and is gone, is not waited for: its pods are served.
    pub fn awaits_agent(&self) -> bool {
        self.awaits_agent.load(Ordering::SeqCst)
    }

    /// Notes whether it does.
    pub fn await_agent(&self, awaits: bool) {
        self.awaits_agent.store(awaits, Ordering::SeqCst);
    }

    /// Whether the node drains.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    /// Resolves when the node starts to drain.
    pub async fn drain_started(&self) {
        // The sender lives as long as the node, so this waits for the value.
        let _ = self.drain.subscribe().wait_for(|draining| *draining).await;
    }
}

/// Why a flow would not be let in by `config`, if it were opened now.
fn denied(flow: &Flow, config: &Config) -> Option<Denial> {
    if let Some(by) = &flow.facts.chain {
        let why = denied_by_chain(by, &flow.facts.source, &config.http)?;
        return Some(Denial { policy: None, why });
    }
    match decide(flow, config) {
        Decision::Allow { .. } => None,
        Decision::Deny { policy, why } => Some(Denial {
            policy,
            why: why.to_string(),
        }),
    }
}

/// Why a waypoint's chain does not let a connection of `source` in that was led to it. One that is gone has no rules; its flows are drained instead.
fn denied_by_chain(by: &ByChain, source: &Source, http: &Http) -> Option<String> {
    let is_for_requests = || "what was carried as it is, is for requests now".to_owned();
    match http.chains.get(&by.name) {
        Some(Err(why)) => Some(format!("what this waypoint was told of it is not understood: {why}")),
        Some(Ok(chain)) => match &**chain {
            Chain::Tcp(chain) => judge_by(&chain.rules, source, by.to, None).err(),
            Chain::Http(_) => Some(is_for_requests()),
        },
        None => http.tables.contains_key(&by.name).then(is_for_requests),
    }
}

/// The chains that are not what they were, with those that came and went.
fn changed_chains(before: &Arc<Http>, now: &Arc<Http>) -> HashSet<Text> {
    if Arc::ptr_eq(before, now) {
        return HashSet::new();
    }
    let is_the_same = |name: &Text| match (before.chains.get(name), now.chains.get(name)) {
        (Some(Ok(before)), Some(Ok(now))) => Arc::ptr_eq(before, now),
        (Some(Err(before)), Some(Err(now))) => before == now,
        _ => false,
    };
    let names = before.chains.keys().chain(now.chains.keys());
    names.filter(|name| !is_the_same(name)).cloned().collect()
}

/// The verdict on a flow by `config`, as if it were opened now by the same client to the same place.
fn decide(flow: &Flow, config: &Config) -> Decision {
    if flow.facts.is_judged_elsewhere {
        return Decision::Allow { policy: None };
    }
    let source = flow.facts.source.refreshed(&config.mesh, &config.node);
    let destination = match &flow.facts.destination_workload {
        Some(known) => config.mesh.workload(&known.uid),
        None => config
            .mesh
            .workload_at(&config.node.network, flow.facts.destination.ip()),
    };
    // One that is gone has no policies; its flows are drained instead.
    judge(
        config,
        &source,
        flow.facts.destination,
        destination.map(|workload| &**workload),
    )
    .decision
}

/// Takes an open flow back from the kernel if the settings say so, or lets it go there.
fn reconsider_offload(flow: &Flow, config: &Config) {
    flow.set_offload_allowed(flow.facts.may_offload(&config.node.offload));
}

/// Whether nothing leads to a flow's endpoint any more: the chain is gone by which it went, or the endpoint.
fn has_lost_its_way(flow: &Flow, config: &Config) -> bool {
    let chain = flow.facts.chain.as_ref();
    let has_lost_its_chain = chain.is_some_and(|by| !config.http.chains.contains_key(&by.name));
    has_lost_its_chain || endpoint_is_gone(flow, &config.mesh)
}

/// Whether a flow's endpoint has left the mesh, or the service by which it was reached. Being unready is no reason: as in
/// Kubernetes, that keeps new connections away and leaves the open ones alone.
fn endpoint_is_gone(flow: &Flow, mesh: &Mesh) -> bool {
    let Some(known) = &flow.facts.destination_workload else {
        return false;
    };
    let Some(workload) = mesh.workload(&known.uid) else {
        return true;
    };
    let Some(service) = &flow.facts.service else {
        return false;
    };
    let was_member = known.services.iter().any(|membership| membership.service == *service);
    was_member
        && (mesh.service(service).is_none()
            || !workload
                .services
                .iter()
                .any(|membership| membership.service == *service))
}
