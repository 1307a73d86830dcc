//! The mesh as one immutable value: every look-up a connection needs, in constant time, from persistent maps.
//!
//! Addresses and names are indexed to what claims them (`claims`); a service's state holds its endpoints, and
//! memberships of services that are not there wait beside them. How changes are made is in `change`.

mod change;

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use imbl::OrdMap;

pub use change::{MeshChange, ResourceKey, Touched};

use crate::authorization::{Facts, Tally};
use crate::claims::{Claims, Map, NetworkAddress, NetworkAddressRef};
use crate::service_state::Endpoints;
use crate::{
    Authorization, ConnectionFacts, PolicyKey, PolicyScope, ServiceKey, ServiceState, Text, Verdict, Workload,
    WorkloadUid,
};

/// Workloads, services and policies at one moment. Cloning is O(1); clones share all that is equal.
#[derive(Clone, Default)]
pub struct Mesh {
    workloads: Map<WorkloadUid, Arc<Workload>>,
    addresses: Map<NetworkAddress, Claims<Arc<Workload>>>,
    services: Map<ServiceKey, Arc<ServiceState>>,
    /// Endpoints of services that are not there, so that the order of arrival does not matter.
    waiting: Map<ServiceKey, Endpoints>,
    hostnames: Map<Text, Claims<ServiceKey>>,
    vips: Map<NetworkAddress, Claims<ServiceKey>>,
    policies: Map<PolicyKey, Arc<Authorization>>,
    global_policies: Policies,
    namespace_policies: Map<Text, Policies>,
}

/// Policies that guard without being referred to, ordered so that it is always the same one that is named in a verdict.
type Policies = OrdMap<PolicyKey, Arc<Authorization>>;

impl Mesh {
    /// The workload of that uid.
    pub fn workload(&self, uid: &WorkloadUid) -> Option<&Arc<Workload>> {
        self.workloads.get(uid)
    }

    /// The workload that a pod is, as istiod names pods (`CLUSTER//Pod/NAMESPACE/NAME`).
    pub fn pod(&self, cluster_id: &str, namespace: &str, name: &str) -> Option<&Arc<Workload>> {
        self.workload(&WorkloadUid::new(format!("{cluster_id}//Pod/{namespace}/{name}")))
    }

    /// The workload that has `ip` on `network`. An IPv4-mapped IPv6 address is its IPv4 address.
    pub fn workload_at(&self, network: &str, ip: IpAddr) -> Option<&Arc<Workload>> {
        self.addresses.get(&NetworkAddressRef::new(network, ip))?.winner()
    }

    /// The service of that key.
    pub fn service(&self, key: &ServiceKey) -> Option<&Arc<ServiceState>> {
        self.services.get(key)
    }

    /// The service of that host name, in any case, with or without a trailing dot.
    pub fn service_named(&self, hostname: &str) -> Option<&Arc<ServiceState>> {
        self.services
            .get(self.hostnames.get(&*canonical_hostname(hostname))?.winner()?)
    }

    /// The service that has `port` on the virtual address `vip` of `network`.
    pub fn service_at(&self, network: &str, vip: IpAddr, port: u16) -> Option<&Arc<ServiceState>> {
        let claims = self.vips.get(&NetworkAddressRef::new(network, vip))?;
        claims
            .iter()
            .filter_map(|key| self.services.get(key))
            .find(|state| state.service().port(port).is_some())
    }

    /// Whether `ip` on `network` is the virtual address of a service, whatever the port.
    pub fn is_vip(&self, network: &str, ip: IpAddr) -> bool {
        self.vips.contains_key(&NetworkAddressRef::new(network, ip))
    }

    /// The policy of that key.
    pub fn policy(&self, key: &PolicyKey) -> Option<&Arc<Authorization>> {
        self.policies.get(key)
    }

    /// All workloads, in no particular order.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads.values()
    }

    /// All services, in no particular order.
    pub fn services(&self) -> impl Iterator<Item = &Arc<ServiceState>> {
        self.services.values()
    }

    /// All policies, in no particular order.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<Authorization>> {
        self.policies.values()
    }

    /// Whether the connection may reach `destination`, according to all policies that guard it: global ones, those of
    /// its namespace, and those it refers to. A reference to an unknown policy denies.
    pub fn authorize(&self, connection: &ConnectionFacts<'_>, destination: &Workload) -> Verdict {
        let mut tally = Tally::new(Facts::new(connection));
        let of_namespace = self.namespace_policies.get(&*destination.namespace);
        for policy in self
            .global_policies
            .values()
            .chain(of_namespace.into_iter().flat_map(OrdMap::values))
        {
            tally.add(policy);
        }
        for key in &destination.authorization_policies {
            match self.policies.get(key) {
                None => tally.add_unknown(key),
                Some(policy) if guards_unreferred(policy, destination) => {} // counted above
                Some(policy) => tally.add(policy),
            }
        }
        tally.verdict()
    }
}

fn guards_unreferred(policy: &Authorization, destination: &Workload) -> bool {
    match policy.scope {
        PolicyScope::Global => true,
        PolicyScope::Namespace => policy.namespace == destination.namespace,
        PolicyScope::WorkloadSelector => false,
    }
}

/// Host names are compared without case (RFC 4343) and without the root's dot.
fn canonical_hostname(hostname: &str) -> Cow<'_, str> {
    let relative = hostname.strip_suffix('.').unwrap_or(hostname);
    if relative.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Cow::Owned(relative.to_ascii_lowercase());
    }
    Cow::Borrowed(relative)
}

impl fmt::Debug for Mesh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mesh")
            .field("workloads", &self.workloads.len())
            .field("services", &self.services.len())
            .field("policies", &self.policies.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
