//! Random sequences of changes, against a reference that keeps plain lists and searches them from end to end: every
//! look-up must agree after every batch, older snapshots must stay what they were, and whatever changed for a
//! connection must have been touched.
//!
//! The world is small, so that resources collide: they share addresses, host names and keys, and refer to what is not
//! there.

mod reference;
mod strategy;

use std::net::SocketAddr;

use proptest::prelude::*;

use self::reference::Reference;
use self::strategy::{ADDRESSES, HOSTNAMES, NETWORKS, PORTS, batches};
use super::*;
use crate::{ConnectionFacts, Decision, Endpoint, Health, Identity, Position, Touched};

proptest! {
    #[test]
    fn every_look_up_agrees_with_plain_lists(batches in batches()) {
        let (mut mesh, mut reference) = (Mesh::default(), Reference::default());
        let mut snapshots = Vec::new();
        for batch in batches {
            reference.apply(&batch);
            mesh.apply(batch);
            assert_agree(&mesh, &reference);
            snapshots.push((mesh.clone(), reference.clone()));
        }
        for (mesh, reference) in &snapshots {
            assert_agree(mesh, reference);
        }
        let everything_goes = reference.removals();
        mesh.apply(everything_goes);
        assert_agree(&mesh, &Reference::default());
        assert_holds_nothing(&mesh);
    }

    #[test]
    fn what_changed_for_a_connection_was_touched(batches in batches()) {
        let mut mesh = Mesh::default();
        for batch in batches {
            let before = mesh.clone();
            let touched = mesh.apply(batch.clone());
            for connection in Connection::all(&before) {
                let (was, is) = (connection.outcome(&before), connection.outcome(&mesh));
                prop_assert!(
                    was == is || connection.is_touched(&touched),
                    "{connection:?} was {was:?} and is {is:?} after {batch:?}, which touched {touched:?}"
                );
            }
        }
    }
}

fn assert_agree(mesh: &Mesh, reference: &Reference) {
    assert_eq!(mesh.workloads().count(), reference.workloads.len());
    assert_eq!(mesh.services().count(), reference.services.len());
    assert_eq!(mesh.policies().count(), reference.policies.len());
    for workload in &reference.workloads {
        assert_eq!(mesh.workload(&workload.uid).map(|found| &**found), Some(workload));
        assert_eq!(
            facts(workload, |facts| mesh.authorize(facts, workload)),
            facts(workload, |facts| reference.authorize(facts, workload))
        );
    }
    for policy in &reference.policies {
        assert_eq!(mesh.policy(&policy.key).map(|found| &**found), Some(policy));
    }
    for network in NETWORKS {
        for address in ADDRESSES.map(ip) {
            let found = mesh.workload_at(network, address).map(|found| &**found);
            assert_eq!(found, reference.workload_at(network, address), "{network}/{address}");
            assert_eq!(
                mesh.is_vip(network, address),
                reference.is_vip(network, address),
                "{network}/{address}"
            );
            for port in PORTS {
                let found = mesh.service_at(network, address, port).map(|state| &**state.service());
                assert_eq!(
                    found,
                    reference.service_at(network, address, port),
                    "{network}/{address}:{port}"
                );
            }
        }
    }
    for hostname in HOSTNAMES {
        let found = mesh.service_named(hostname).map(|state| &**state.service());
        assert_eq!(found, reference.service_named(hostname), "{hostname}");
    }
    for service in &reference.services {
        let state = mesh.service(&service.key).unwrap();
        assert_eq!(&**state.service(), service);
        let members = |endpoint: &Arc<Endpoint>| (endpoint.workload.uid.clone(), endpoint.ports.to_vec());
        assert_eq!(
            state.endpoints().map(members).collect::<Vec<_>>(),
            reference.endpoints(service)
        );
        for endpoint in state.endpoints() {
            assert!(Arc::ptr_eq(
                &endpoint.workload,
                mesh.workload(&endpoint.workload.uid).unwrap()
            ));
        }
        for node in ["node-a", "node-b"] {
            let from = Position {
                node: node.into(),
                ..Position::default()
            };
            let found: Vec<_> = state
                .candidates(&from)
                .iter()
                .map(|found| found.workload.uid.clone())
                .collect();
            assert_eq!(found, reference.candidates(service, &from), "{service:?} from {node}");
        }
    }
}

fn assert_holds_nothing(mesh: &Mesh) {
    assert!(mesh.addresses.is_empty() && mesh.waiting.is_empty() && mesh.hostnames.is_empty() && mesh.vips.is_empty());
    assert!(mesh.global_policies.is_empty() && mesh.namespace_policies.is_empty());
}

/// Asks about two sources on the way to `destination`.
fn facts<T>(destination: &Workload, ask: impl Fn(&ConnectionFacts<'_>) -> T) -> [T; 2] {
    let source = crate::samples::identity("cluster.local", "shop", "w0");
    let address = SocketAddr::new(
        destination.addresses.first().copied().unwrap_or(ip("10.0.0.0")),
        PORTS[0],
    );
    [Some(&source), None].map(|source| {
        ask(&ConnectionFacts {
            source,
            source_ip: ip(ADDRESSES[0]),
            destination: address,
        })
    })
}

/// A connection that the proxy may have open, with everything by which it would be found when something is touched.
#[derive(Debug)]
struct Connection {
    source_ip: IpAddr,
    source: Option<WorkloadUid>,
    dialled: Dialled,
    service: ServiceKey,
    endpoint: Arc<Workload>,
}

#[derive(Debug)]
enum Dialled {
    Address(IpAddr, u16),
    Hostname(&'static str),
}

impl Dialled {
    fn resolve<'a>(&self, mesh: &'a Mesh) -> Option<&'a Arc<ServiceState>> {
        match self {
            Self::Address(vip, port) => mesh.service_at("", *vip, *port),
            Self::Hostname(hostname) => mesh.service_named(hostname),
        }
    }
}

/// Everything that the proxy decided a connection by.
#[derive(Debug, PartialEq)]
struct Outcome {
    source: Option<(WorkloadUid, Identity)>,
    service: ServiceKey,
    target_port: Option<u16>,
    health: Health,
    addresses: Box<[IpAddr]>,
    decision: Decision,
}

impl Connection {
    fn all(mesh: &Mesh) -> Vec<Self> {
        let vips = ADDRESSES
            .iter()
            .flat_map(|address| PORTS.map(|port| Dialled::Address(ip(address), port)));
        let mut all = Vec::new();
        for dialled in vips.chain(HOSTNAMES.map(Dialled::Hostname)) {
            let Some(state) = dialled.resolve(mesh) else { continue };
            for (endpoint, source_ip) in state.endpoints().zip(ADDRESSES.map(ip).into_iter().cycle()) {
                all.push(Self {
                    source_ip,
                    source: mesh.workload_at("", source_ip).map(|source| source.uid.clone()),
                    dialled: match dialled {
                        Dialled::Address(address, port) => Dialled::Address(address, port),
                        Dialled::Hostname(hostname) => Dialled::Hostname(hostname),
                    },
                    service: state.service().key.clone(),
                    endpoint: endpoint.workload.clone(),
                });
            }
        }
        all
    }

    fn outcome(&self, mesh: &Mesh) -> Option<Outcome> {
        let source = mesh.workload_at("", self.source_ip);
        let state = self.dialled.resolve(mesh)?;
        let endpoint = state
            .endpoints()
            .find(|endpoint| endpoint.workload.uid == self.endpoint.uid)?;
        let target_port = endpoint.target_port(state.service(), PORTS[0]);
        let address = endpoint.workload.addresses.first().copied().unwrap_or(ip("10.0.0.0"));
        let facts = ConnectionFacts {
            source: source.map(|source| &source.identity),
            source_ip: self.source_ip,
            destination: SocketAddr::new(address, target_port.unwrap_or(0)),
        };
        Some(Outcome {
            source: source.map(|source| (source.uid.clone(), source.identity.clone())),
            service: state.service().key.clone(),
            target_port,
            health: endpoint.workload.health,
            addresses: endpoint.workload.addresses.clone(),
            decision: mesh.authorize(&facts, &endpoint.workload).decision,
        })
    }

    fn is_touched(&self, touched: &Touched) -> bool {
        let dialled = match self.dialled {
            Dialled::Address(vip, _) => Some(vip),
            Dialled::Hostname(_) => None,
        };
        touched.everything
            || [Some(self.source_ip), dialled]
                .iter()
                .flatten()
                .any(|address| touched.addresses.contains(address))
            || self
                .source
                .iter()
                .chain([&self.endpoint.uid])
                .any(|uid| touched.workloads.contains(uid))
            || touched.services.contains(&self.service)
            || touched.namespaces.contains(&self.endpoint.namespace)
            || self
                .endpoint
                .authorization_policies
                .iter()
                .any(|key| touched.policies.contains(key))
    }
}

#[test]
fn the_random_world_is_rich_enough_to_mean_something() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;

    let mut runner = TestRunner::deterministic();
    let (mut connections, mut denied, mut shared) = (0, 0, 0);
    for _ in 0..50 {
        let mut mesh = Mesh::default();
        for batch in batches().new_tree(&mut runner).unwrap().current() {
            mesh.apply(batch);
            let all = Connection::all(&mesh);
            connections += all.len();
            denied += all
                .iter()
                .filter_map(|connection| connection.outcome(&mesh))
                .filter(|outcome| !outcome.decision.is_allowed())
                .count();
            shared += mesh
                .addresses
                .values()
                .filter(|claims| claims.iter().count() > 1)
                .count();
        }
    }
    assert!(
        connections > 1000 && denied * 4 > connections && (connections - denied) * 10 > connections,
        "{connections}, {denied} denied"
    );
    assert!(shared > 100, "{shared}");
}
