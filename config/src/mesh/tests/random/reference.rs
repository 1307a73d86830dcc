//! A mesh as three lists in the order of their last change, searched from the end: too slow to serve, too plain to be
//! wrong.

use std::net::IpAddr;

use crate::authorization::{Facts, Tally};
use crate::{
    Authorization, BalanceMode, ConnectionFacts, Health, MeshChange, PolicyScope, PortMapping, Position, Service,
    Verdict, Workload, WorkloadUid,
};

#[derive(Clone, Default)]
pub(super) struct Reference {
    pub(super) workloads: Vec<Workload>,
    pub(super) services: Vec<Service>,
    pub(super) policies: Vec<Authorization>,
}

impl Reference {
    pub(super) fn apply(&mut self, changes: &[MeshChange]) {
        for change in changes.iter().cloned() {
            match change {
                MeshChange::Workload(new) => put(&mut self.workloads, new, |one| &one.uid),
                MeshChange::RemoveWorkload(uid) => self.workloads.retain(|old| old.uid != uid),
                MeshChange::Service(new) => put(&mut self.services, new, |one| &one.key),
                MeshChange::RemoveService(key) => self.services.retain(|old| old.key != key),
                MeshChange::Policy(new) => put(&mut self.policies, new, |one| &one.key),
                MeshChange::RemovePolicy(key) => self.policies.retain(|old| old.key != key),
            }
        }
    }

    pub(super) fn removals(&self) -> Vec<MeshChange> {
        let workloads = self
            .workloads
            .iter()
            .map(|one| MeshChange::RemoveWorkload(one.uid.clone()));
        let services = self
            .services
            .iter()
            .map(|one| MeshChange::RemoveService(one.key.clone()));
        let policies = self
            .policies
            .iter()
            .map(|one| MeshChange::RemovePolicy(one.key.clone()));
        services.chain(workloads).chain(policies).collect()
    }

    pub(super) fn workload_at(&self, network: &str, address: IpAddr) -> Option<&Workload> {
        self.workloads
            .iter()
            .rev()
            .find(|one| &*one.network == network && one.addresses.contains(&address))
    }

    pub(super) fn is_vip(&self, network: &str, address: IpAddr) -> bool {
        self.services.iter().any(|service| has_vip(service, network, address))
    }

    pub(super) fn service_at(&self, network: &str, address: IpAddr, port: u16) -> Option<&Service> {
        let has_port = |service: &Service| service.ports.iter().any(|declared| declared.port == port);
        self.services
            .iter()
            .rev()
            .find(|service| has_vip(service, network, address) && has_port(service))
    }

    pub(super) fn service_named(&self, hostname: &str) -> Option<&Service> {
        let bare = |name: &str| name.trim_end_matches('.').to_lowercase();
        self.services
            .iter()
            .rev()
            .find(|service| bare(&service.hostname) == bare(hostname))
    }

    pub(super) fn endpoints(&self, service: &Service) -> Vec<(WorkloadUid, Vec<PortMapping>)> {
        let endpoints = self.members(service).into_iter().map(|workload| {
            let own = workload
                .services
                .iter()
                .find(|membership| membership.service == service.key)
                .unwrap();
            (workload.uid.clone(), own.ports.to_vec())
        });
        endpoints.collect()
    }

    pub(super) fn candidates(&self, service: &Service, from: &Position) -> Vec<WorkloadUid> {
        let healthy: Vec<_> = self
            .members(service)
            .into_iter()
            .filter(|workload| workload.health == Health::Healthy)
            .collect();
        let near: Vec<_> = healthy
            .iter()
            .copied()
            .filter(|workload| workload.node == from.node)
            .collect();
        let chosen = match service.load_balancing.mode {
            BalanceMode::Strict => near,
            BalanceMode::Failover if !near.is_empty() => near,
            _ => healthy,
        };
        chosen.into_iter().map(|workload| workload.uid.clone()).collect()
    }

    pub(super) fn authorize(&self, connection: &ConnectionFacts<'_>, destination: &Workload) -> Verdict {
        let mut tally = Tally::new(Facts::new(connection));
        let of_scope = |scope| {
            let mut found: Vec<_> = self.policies.iter().filter(|policy| policy.scope == scope).collect();
            found.sort_by_key(|policy| &policy.key);
            found
        };
        let global = of_scope(PolicyScope::Global);
        let of_namespace = of_scope(PolicyScope::Namespace);
        let guards: Vec<_> = global
            .into_iter()
            .chain(
                of_namespace
                    .into_iter()
                    .filter(|policy| policy.namespace == destination.namespace),
            )
            .collect();
        guards.iter().for_each(|policy| tally.add(policy));
        for key in &destination.authorization_policies {
            match self.policies.iter().find(|policy| policy.key == *key) {
                None => tally.add_unknown(key),
                Some(policy) if guards.contains(&policy) => {}
                Some(policy) => tally.add(policy),
            }
        }
        tally.verdict()
    }

    fn members(&self, service: &Service) -> Vec<&Workload> {
        let is_member = |workload: &&Workload| workload.services.iter().any(|one| one.service == service.key);
        let mut members: Vec<_> = self.workloads.iter().filter(is_member).collect();
        members.sort_by_key(|workload| &workload.uid);
        members
    }
}

fn has_vip(service: &Service, network: &str, address: IpAddr) -> bool {
    service
        .vips
        .iter()
        .any(|vip| &*vip.network == network && vip.address == address)
}

fn put<T: PartialEq, K: PartialEq>(list: &mut Vec<T>, new: T, key: impl Fn(&T) -> &K) {
    if list.contains(&new) {
        return;
    }
    list.retain(|old| key(old) != key(&new));
    list.push(new);
}
