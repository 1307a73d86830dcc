//! Small resources for this crate's unit tests: complete, plain, and changed by the test where it matters.

use std::net::IpAddr;

use crate::{
    Action, Authorization, Group, Health, Identity, LoadBalancing, Locality, Match, Membership, Mesh, PolicyKey,
    PolicyScope, Rule, Service, ServiceKey, ServicePort, TunnelProtocol, Vip, Workload, WorkloadType, WorkloadUid,
};

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn identity(trust_domain: &str, namespace: &str, service_account: &str) -> Identity {
    Identity {
        trust_domain: trust_domain.into(),
        namespace: namespace.into(),
        service_account: service_account.into(),
    }
}

/// A healthy pod of namespace `shop` whose uid, name and service account are `name`.
pub(crate) fn workload(name: &str, addresses: &[&str]) -> Workload {
    Workload {
        uid: WorkloadUid::new(name),
        name: name.into(),
        namespace: "shop".into(),
        identity: identity("cluster.local", "shop", name),
        addresses: addresses.iter().map(|text| ip(text)).collect(),
        hostname: "".into(),
        node: "node-a".into(),
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
        authorization_policies: Box::default(),
        services: Box::default(),
    }
}

/// The same workload as an endpoint of these services of [`service`].
pub(crate) fn serving(mut workload: Workload, services: &[&str]) -> Workload {
    workload.services = services
        .iter()
        .map(|name| Membership {
            service: service_key(name),
            ports: Box::default(),
        })
        .collect();
    workload
}

/// A service of namespace `shop` with port 80, which endpoints serve on 8080.
pub(crate) fn service(name: &str, vips: &[&str]) -> Service {
    Service {
        key: service_key(name),
        name: name.into(),
        namespace: "shop".into(),
        hostname: format!("{name}.shop.svc.cluster.local").into(),
        vips: vips
            .iter()
            .map(|text| Vip {
                network: "".into(),
                address: ip(text),
            })
            .collect(),
        ports: Box::new([ServicePort {
            port: 80,
            target_port: 8080,
            app_protocol: Default::default(),
        }]),
        load_balancing: LoadBalancing::default(),
        waypoint: None,
        subject_alt_names: Box::default(),
    }
}

pub(crate) fn service_key(name: &str) -> ServiceKey {
    ServiceKey::new(format!("shop/{name}.shop.svc.cluster.local"))
}

/// A policy of namespace `shop` that workloads refer to; without groups.
pub(crate) fn policy(name: &str, action: Action) -> Authorization {
    Authorization {
        key: policy_key(name),
        namespace: "shop".into(),
        scope: PolicyScope::WorkloadSelector,
        action,
        dry_run: false,
        groups: Vec::new(),
    }
}

pub(crate) fn policy_key(name: &str) -> PolicyKey {
    PolicyKey::new(format!("shop/{name}"))
}

/// Groups that match if any of `matches` does.
pub(crate) fn any_of(matches: impl Into<Vec<Match>>) -> Vec<Group> {
    vec![Group {
        rules: vec![Rule {
            matches: matches.into(),
        }],
    }]
}

/// A mesh of these changes.
pub(crate) fn mesh(changes: impl IntoIterator<Item = crate::MeshChange>) -> Mesh {
    let mut mesh = Mesh::default();
    mesh.apply(changes);
    mesh
}
