//! Counts, limits and the index, on the table alone.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use underpass_config::{
    Config, Health, Identity, Locality, Mesh, MeshChange, NodeSettings, Touched, TunnelProtocol, Workload,
    WorkloadType, WorkloadUid,
};

use super::*;
use crate::offload::Direction;
use crate::source::Source;

fn workload(name: &str, address: &str) -> Workload {
    Workload {
        uid: WorkloadUid::new(format!("Kubernetes//Pod/shop/{name}")),
        name: name.into(),
        namespace: "shop".into(),
        identity: Identity {
            trust_domain: "cluster.local".into(),
            namespace: "shop".into(),
            service_account: name.into(),
        },
        addresses: Box::new([address.parse().unwrap()]),
        hostname: "".into(),
        node: "".into(),
        network: "".into(),
        cluster_id: "Kubernetes".into(),
        locality: Locality::default(),
        health: Health::Healthy,
        tunnel_protocol: TunnelProtocol::None,
        network_mode: Default::default(),
        application_tunnel: None,
        waypoint: None,
        network_gateway: None,
        canonical_name: name.into(),
        canonical_revision: "latest".into(),
        workload_name: name.into(),
        workload_type: WorkloadType::Pod,
        authorization_policies: Box::new([]),
        services: Box::new([]),
    }
}

struct World {
    table: Arc<FlowTable>,
    config: Config,
    settings: NodeSettings,
}

impl World {
    fn new() -> Self {
        let mut mesh = Mesh::default();
        for (name, address) in [("client", "10.0.0.1"), ("server", "10.0.0.2"), ("other", "10.0.0.3")] {
            mesh.apply([MeshChange::Workload(workload(name, address))]);
        }
        Self {
            table: Arc::new(FlowTable::new(2)),
            config: Config {
                node: Arc::new(NodeSettings::default()),
                mesh,
                http: Default::default(),
            },
            settings: NodeSettings::default(),
        }
    }

    fn at(&self, address: &str) -> Option<Arc<Workload>> {
        self.config
            .mesh
            .workload_at("", address.parse::<IpAddr>().unwrap())
            .cloned()
    }

    fn try_open(&self, from: &str, to: &str) -> Result<FlowGuard, Ending> {
        let source = Source::by_address(
            &self.config.mesh,
            &self.config.node,
            format!("{from}:1000").parse().unwrap(),
        );
        let destination = self.at(to);
        let ends = PathEnds::new(source.workload(), destination.as_ref(), None, &self.config.node);
        let facts = FlowFacts {
            listener: "test".into(),
            source,
            pod: None,
            destination: format!("{to}:80").parse().unwrap(),
            destination_workload: destination,
            service: None,
            policy: None,
            tunnel: None,
            is_judged_elsewhere: false,
            chain: None,
        };
        self.table.open(0, ends, facts, SystemTime::now(), &self.settings)
    }

    fn open(&self, from: &str, to: &str) -> FlowGuard {
        self.try_open(from, to).unwrap()
    }

    /// Applies a change to the mesh and returns the destinations of the flows it may concern, sorted.
    fn change(&mut self, change: MeshChange) -> Vec<String> {
        let touched = self.config.mesh.apply([change]);
        self.tell(&touched)
    }

    fn tell(&self, touched: &Touched) -> Vec<String> {
        let affected = self.table.apply(touched, &self.config);
        let mut names: Vec<_> = affected.iter().map(|flow| flow.facts.destination.to_string()).collect();
        names.sort();
        names
    }

    /// (connections ended, bytes sent) summed over paths to `name`; none when there is no path to it.
    fn counts_to(&self, name: &str) -> Option<(u64, u64)> {
        let mut sum = None;
        for (ends, counts) in self.table.paths() {
            if ends.destination.as_deref().is_some_and(|w| &*w.name == name) {
                let (ended, sent) = sum.unwrap_or((0, 0));
                sum = Some((ended + counts.ended.iter().sum::<u64>(), sent + counts.sent));
            }
        }
        sum
    }
}

#[test]
fn bytes_count_while_the_flow_is_open_and_stay_when_it_has_ended() {
    let world = World::new();
    let guard = world.open("10.0.0.1", "10.0.0.2");
    guard.flow().count(Direction::Out, 100);
    assert_eq!(world.counts_to("server"), Some((0, 100)));
    guard.flow().count(Direction::Out, 11);
    guard.finish(Ending::Completed);
    assert_eq!(world.counts_to("server"), Some((1, 111)));
    assert!(world.table.flows().is_empty());
}

#[test]
fn a_dropped_guard_still_counts_and_an_abandoned_one_does_not() {
    let world = World::new();
    drop(world.open("10.0.0.1", "10.0.0.2"));
    assert_eq!(world.counts_to("server"), Some((1, 0)));
    world.open("10.0.0.1", "10.0.0.3").abandon();
    assert_eq!(world.counts_to("other"), None);
    assert!(world.table.flows().is_empty());
}

#[test]
fn a_change_concerns_only_the_flows_of_what_it_touches() {
    let mut world = World::new();
    let _flows = [world.open("10.0.0.1", "10.0.0.2"), world.open("10.0.0.1", "10.0.0.3")];
    let _unknown = world.open("10.9.9.9", "10.8.8.8");
    let mut unready = workload("other", "10.0.0.3");
    unready.health = Health::Unhealthy;
    assert_eq!(world.change(MeshChange::Workload(unready)), ["10.0.0.3:80"]);
    assert_eq!(
        world.change(MeshChange::Workload(workload("new", "10.8.8.8"))),
        ["10.8.8.8:80"]
    );
    let everything = Touched {
        everything: true,
        ..Touched::default()
    };
    assert_eq!(world.tell(&everything).len(), 3);
}

#[test]
fn a_namespace_policy_concerns_the_flows_into_its_namespace() {
    let world = World::new();
    let _flow = world.open("10.0.0.1", "10.0.0.2");
    let touched = |name: &str| Touched {
        namespaces: [name.into()].into(),
        ..Touched::default()
    };
    assert_eq!(world.tell(&touched("shop")), ["10.0.0.2:80"]);
    assert!(world.tell(&touched("elsewhere")).is_empty());
}

#[test]
fn a_workload_policy_concerns_the_flows_to_the_workloads_that_refer_to_it() {
    let mut world = World::new();
    let mut guarded = workload("server", "10.0.0.2");
    guarded.authorization_policies = Box::new([underpass_config::PolicyKey::new("shop/p")]);
    world.change(MeshChange::Workload(guarded));
    let _flows = [world.open("10.0.0.1", "10.0.0.2"), world.open("10.0.0.1", "10.0.0.3")];
    let touched = Touched {
        policies: vec![underpass_config::PolicyKey::new("shop/p")],
        ..Touched::default()
    };
    assert_eq!(world.tell(&touched), ["10.0.0.2:80"]);
}

#[test]
fn labels_of_a_gone_workload_are_dropped_with_its_last_flow() {
    let mut world = World::new();
    world.open("10.0.0.1", "10.0.0.2").finish(Ending::Completed);
    let open = world.open("10.0.0.1", "10.0.0.2");
    let gone = MeshChange::RemoveWorkload(workload("server", "10.0.0.2").uid);
    assert_eq!(world.change(gone), ["10.0.0.2:80"]);
    assert_eq!(world.counts_to("server"), Some((1, 0)), "an open flow still counts");
    open.finish(Ending::EndpointDrained);
    assert_eq!(world.counts_to("server"), None);
}

#[test]
fn a_relabelled_workload_counts_on_under_its_new_labels() {
    let mut world = World::new();
    let old = world.open("10.0.0.1", "10.0.0.2");
    let mut relabelled = workload("server", "10.0.0.2");
    relabelled.canonical_revision = "v2".into();
    world.change(MeshChange::Workload(relabelled));
    let new = world.open("10.0.0.1", "10.0.0.2");
    new.flow().count(Direction::Out, 1);
    old.flow().count(Direction::Out, 10);
    let mut by_revision = Vec::new();
    for (ends, counts) in world.table.paths() {
        if let Some(destination) = &ends.destination {
            by_revision.push((destination.canonical_revision.to_string(), counts.sent));
        }
    }
    by_revision.sort();
    assert_eq!(by_revision, [("latest".to_owned(), 10), ("v2".to_owned(), 1)]);
}

#[test]
fn a_client_at_its_limit_is_refused_and_others_are_not() {
    let mut world = World::new();
    world.settings.limits.connections_per_workload = 1;
    let first = world.open("10.0.0.1", "10.0.0.2");
    assert_eq!(
        world.try_open("10.0.0.1", "10.0.0.3").err(),
        Some(Ending::ConnectionLimit)
    );
    let _other = world.open("10.0.0.2", "10.0.0.3");
    drop(first);
    let _again = world.open("10.0.0.1", "10.0.0.3");
}

/// What the policies of a destination touch, when it has come to refer to one.
fn policy(name: &str) -> Touched {
    Touched {
        policies: vec![underpass_config::PolicyKey::new(name)],
        ..Touched::default()
    }
}

fn guarded(mut workload: Workload, policy: &str) -> Workload {
    workload.authorization_policies = Box::new([underpass_config::PolicyKey::new(policy)]);
    workload
}

#[test]
fn a_policy_that_came_with_new_labels_still_finds_the_flows() {
    let mut world = World::new();
    let _flow = world.open("10.0.0.1", "10.0.0.2");
    let mut relabelled = guarded(workload("server", "10.0.0.2"), "shop/p");
    relabelled.canonical_revision = "v2".into();
    world.change(MeshChange::Workload(relabelled));
    assert_eq!(world.tell(&policy("shop/p")), ["10.0.0.2:80"]);
}

#[test]
fn a_policy_finds_the_flows_to_an_address_that_became_a_workload() {
    let mut world = World::new();
    let flow = world.open("10.0.0.1", "10.8.8.8");
    world.change(MeshChange::Workload(guarded(workload("new", "10.8.8.8"), "shop/p")));
    assert_eq!(world.tell(&policy("shop/p")), ["10.8.8.8:80"]);
    drop(flow);
    assert!(world.tell(&policy("shop/p")).is_empty());
}

#[test]
fn a_connection_refused_on_an_older_snapshot_leaves_a_path_of_the_one_in_force() {
    let mut world = World::new();
    let (old_source, old_destination) = (world.at("10.0.0.1"), world.at("10.0.0.2"));
    let old = PathEnds::new(old_source.as_ref(), old_destination.as_ref(), None, &world.config.node);
    world.change(MeshChange::Workload(guarded(workload("server", "10.0.0.2"), "shop/p")));
    world
        .table
        .count_refused(0, || old.refreshed(&world.config), Ending::ConnectTimeout);
    let _flow = world.open("10.0.0.1", "10.0.0.2");
    assert_eq!(world.tell(&policy("shop/p")), ["10.0.0.2:80"]);
    world.change(MeshChange::RemoveWorkload(workload("other", "10.0.0.3").uid));
    world
        .table
        .count_refused(0, || old.refreshed(&world.config), Ending::ConnectTimeout);
    assert_eq!(world.counts_to("server"), Some((2, 0)));
}

#[test]
fn a_workload_that_comes_back_is_guarded_again() {
    let mut world = World::new();
    let _flow = world.open("10.0.0.1", "10.0.0.2");
    world.change(MeshChange::RemoveWorkload(workload("server", "10.0.0.2").uid));
    world.change(MeshChange::Workload(guarded(workload("server", "10.0.0.2"), "shop/p")));
    assert_eq!(world.tell(&policy("shop/p")), ["10.0.0.2:80"]);
}
