//! The small world from which random changes are drawn.

use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use crate::samples::{any_of, identity, ip, policy, policy_key, service, service_key, workload};
use crate::{
    Action, Authorization, BalanceMode, Health, LoadBalancing, Match, Membership, MeshChange, PolicyScope, PortMapping,
    Scope, Service, ServicePort, StringMatch, Vip, Workload, WorkloadUid,
};

pub(super) const ADDRESSES: [&str; 4] = ["10.0.0.0", "10.0.0.1", "10.0.0.2", "fd00::1"];
pub(super) const NETWORKS: [&str; 2] = ["", "remote"];
pub(super) const PORTS: [u16; 2] = [80, 90];
pub(super) const HOSTNAMES: [&str; 3] = ["web.test", "WEB.test.", "api.test"];

const WORKLOADS: [&str; 5] = ["w0", "w1", "w2", "w3", "w4"];
const SERVICES: [&str; 3] = ["s0", "s1", "s2"];
const POLICIES: [&str; 4] = ["p0", "p1", "p2", "p3"];
const NAMESPACES: [&str; 2] = ["shop", "bank"];

/// Changes in the batches in which they are applied.
pub(super) fn batches() -> impl Strategy<Value = Vec<Vec<MeshChange>>> {
    proptest::collection::vec(proptest::collection::vec(change(), 1..4), 1..24)
}

fn change() -> impl Strategy<Value = MeshChange> {
    prop_oneof![
        6 => any_workload().prop_map(MeshChange::Workload),
        2 => select(&WORKLOADS[..]).prop_map(|name| MeshChange::RemoveWorkload(WorkloadUid::new(name))),
        4 => any_service().prop_map(MeshChange::Service),
        1 => select(&SERVICES[..]).prop_map(|name| MeshChange::RemoveService(service_key(name))),
        2 => any_policy().prop_map(MeshChange::Policy),
        1 => select(&POLICIES[..]).prop_map(|name| MeshChange::RemovePolicy(policy_key(name))),
    ]
}

fn any_workload() -> impl Strategy<Value = Workload> {
    let text = || select(&NAMESPACES[..]);
    (
        (
            select(&WORKLOADS[..]),
            subsequence(&ADDRESSES[..], 0..3),
            prop_oneof![3 => Just(""), 1 => Just("remote")],
        ),
        (text(), text(), select(&["node-a", "node-b"][..]), any::<bool>()),
        prop_oneof![2 => Just(vec![]), 1 => subsequence(&POLICIES[..], 1..3)],
        (subsequence(&SERVICES[..], 0..=3), select(&[0, 0, 8081][..])),
    )
        .prop_map(
            |((name, addresses, network), (namespace, account, node, healthy), policies, (services, target))| {
                let ports = [PortMapping {
                    service_port: 80,
                    target_port: target,
                }];
                let ports: &[PortMapping] = if target == 0 { &[] } else { &ports };
                Workload {
                    namespace: namespace.into(),
                    identity: identity("cluster.local", namespace, account),
                    network: network.into(),
                    node: node.into(),
                    health: if healthy { Health::Healthy } else { Health::Unhealthy },
                    authorization_policies: policies.into_iter().map(policy_key).collect(),
                    services: services
                        .into_iter()
                        .map(|name| Membership {
                            service: service_key(name),
                            ports: ports.into(),
                        })
                        .collect(),
                    ..workload(name, &addresses)
                }
            },
        )
}

fn any_service() -> impl Strategy<Value = Service> {
    let vip = (select(&NETWORKS[..]), select(&ADDRESSES[..]));
    let mode = select(&[BalanceMode::Any, BalanceMode::Strict, BalanceMode::Failover][..]);
    (
        select(&SERVICES[..]),
        proptest::collection::vec(vip, 0..3),
        subsequence(&PORTS[..], 1..3),
        select(&HOSTNAMES[..]),
        mode,
    )
        .prop_map(|(name, vips, ports, hostname, mode)| Service {
            hostname: hostname.trim_end_matches('.').into(),
            vips: vips
                .into_iter()
                .map(|(network, at)| Vip {
                    network: network.into(),
                    address: ip(at),
                })
                .collect(),
            ports: ports
                .into_iter()
                .map(|port| ServicePort {
                    port,
                    target_port: port + 8000,
                    app_protocol: Default::default(),
                })
                .collect(),
            load_balancing: LoadBalancing {
                mode,
                scopes: Box::new([Scope::Node]),
                health: Default::default(),
            },
            ..service(name, &[])
        })
}

fn any_policy() -> impl Strategy<Value = Authorization> {
    let scope = prop_oneof![
        1 => Just(PolicyScope::Global),
        2 => Just(PolicyScope::Namespace),
        5 => Just(PolicyScope::WorkloadSelector),
    ];
    let groups = select(vec![
        vec![],
        any_of([Match::default()]),
        any_of([Match {
            namespaces: vec![StringMatch::Exact("shop".into())],
            ..Match::default()
        }]),
        any_of([Match {
            not_principals: vec![StringMatch::Presence],
            ..Match::default()
        }]),
        any_of([Match {
            destination_ports: vec![80],
            ..Match::default()
        }]),
    ]);
    let action = select(&[Action::Allow, Action::Deny][..]);
    (
        select(&POLICIES[..]),
        select(&NAMESPACES[..]),
        scope,
        action,
        prop::bool::weighted(0.2),
        groups,
    )
        .prop_map(|(name, namespace, scope, action, dry_run, groups)| Authorization {
            namespace: namespace.into(),
            scope,
            dry_run,
            groups,
            ..policy(name, action)
        })
}
