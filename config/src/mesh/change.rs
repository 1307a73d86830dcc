//! How a mesh becomes the next one.
//!
//! Each change takes the old resource out of the indexes and puts the new one in, touching only what the resource
//! itself names: a workload's addresses and services, a service's addresses and host name. A change that says what is
//! already there does nothing.
//!
//! [`Touched`] is collected on the way, from both the old and the new side. It may name too much (the proxy then looks
//! at a connection and finds it unchanged), never too little.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use super::{Mesh, canonical_hostname};
use crate::claims::{NetworkAddress, claim, release};
use crate::service_state::Endpoints;
use crate::{
    Authorization, Endpoint, NetworkMode, PolicyKey, PolicyScope, Service, ServiceKey, ServiceState, Text, Workload,
    WorkloadUid,
};

/// One change of a mesh. Adding what exists replaces it; removing what does not exist does nothing.
#[derive(Clone, Debug)]
pub enum MeshChange {
    /// Adds or replaces a workload.
    Workload(Workload),
    /// Removes a workload.
    RemoveWorkload(WorkloadUid),
    /// Adds or replaces a service.
    Service(Service),
    /// Removes a service. Workloads remember that they belong to it.
    RemoveService(ServiceKey),
    /// Adds or replaces a policy.
    Policy(Authorization),
    /// Removes a policy.
    RemovePolicy(PolicyKey),
}

impl MeshChange {
    /// What it changes. Of two changes of the same the later one stands.
    pub fn key(&self) -> ResourceKey {
        match self {
            Self::Workload(workload) => ResourceKey::Workload(workload.uid.clone()),
            Self::RemoveWorkload(uid) => ResourceKey::Workload(uid.clone()),
            Self::Service(service) => ResourceKey::Service(service.key.clone()),
            Self::RemoveService(key) => ResourceKey::Service(key.clone()),
            Self::Policy(policy) => ResourceKey::Policy(policy.key.clone()),
            Self::RemovePolicy(key) => ResourceKey::Policy(key.clone()),
        }
    }
}

/// A resource of a mesh.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ResourceKey {
    /// A workload.
    Workload(WorkloadUid),
    /// A service.
    Service(ServiceKey),
    /// A policy.
    Policy(PolicyKey),
}

/// What changes may have altered for open connections: a connection whose workloads, addresses, service and guarding
/// policies are not named here has the verdict and the endpoint it had.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// Workloads that came, changed or went, and those that lost an address to another or got it back.
    pub workloads: HashSet<WorkloadUid>,
    /// Addresses (canonical) that these workloads and services have or had.
    pub addresses: HashSet<IpAddr>,
    /// Services whose declaration came, changed or went, and those that lost a name or address to another or got it
    /// back. A change of endpoints alone is told by the workload.
    pub services: HashSet<ServiceKey>,
    /// Policies that came, changed or went; each once, in order.
    pub policies: Vec<PolicyKey>,
    /// Namespaces that such policies guard or guarded as a whole.
    pub namespaces: HashSet<Text>,
    /// Whether a global policy is or was among them.
    pub everything: bool,
}

impl Touched {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Mesh {
    /// Applies changes in order. Each costs what the resource itself lists (addresses, services, ports), whatever the
    /// size of the mesh; clones made before are not affected.
    pub fn apply(&mut self, changes: impl IntoIterator<Item = MeshChange>) -> Touched {
        let mut touched = Touched::default();
        for change in changes {
            match change {
                MeshChange::Workload(workload) => self.put_workload(workload, &mut touched),
                MeshChange::RemoveWorkload(uid) => self.remove_workload(&uid, &mut touched),
                MeshChange::Service(service) => self.put_service(service, &mut touched),
                MeshChange::RemoveService(key) => self.remove_service(&key, &mut touched),
                MeshChange::Policy(policy) => self.put_policy(policy, &mut touched),
                MeshChange::RemovePolicy(key) => self.remove_policy(&key, &mut touched),
            }
        }
        touched.policies.sort();
        touched.policies.dedup();
        touched
    }

    fn put_workload(&mut self, workload: Workload, touched: &mut Touched) {
        let old = self.workloads.get(&workload.uid).cloned();
        if old.as_deref() == Some(&workload) {
            return;
        }
        let new = Arc::new(workload);
        if let Some(old) = &old {
            self.release_addresses(old, touched);
            let kept = |key: &ServiceKey| new.services.iter().any(|membership| membership.service == *key);
            for left in old.services.iter().filter(|membership| !kept(&membership.service)) {
                self.remove_endpoint(&left.service, &old.uid);
            }
        }
        self.claim_addresses(&new, touched);
        self.put_endpoints(&new);
        self.workloads.insert(new.uid.clone(), new);
    }

    fn remove_workload(&mut self, uid: &WorkloadUid, touched: &mut Touched) {
        let Some(old) = self.workloads.remove(uid) else { return };
        self.release_addresses(&old, touched);
        for membership in &old.services {
            self.remove_endpoint(&membership.service, uid);
        }
    }

    fn claim_addresses(&mut self, workload: &Arc<Workload>, touched: &mut Touched) {
        touched.workloads.insert(workload.uid.clone());
        if workload.network_mode == NetworkMode::HostNetwork {
            return; // The address is the node's: whoever has it is not known by it.
        }
        for &ip in &workload.addresses {
            let key = NetworkAddress::new(workload.network.clone(), ip);
            // An address that is listed twice is claimed once.
            release(&mut self.addresses, &key, |claimant| claimant.uid == workload.uid);
            claim(&mut self.addresses, key.clone(), workload.clone());
            self.touch_address(&key, ip, touched);
        }
    }

    fn release_addresses(&mut self, workload: &Workload, touched: &mut Touched) {
        touched.workloads.insert(workload.uid.clone());
        for &ip in &workload.addresses {
            let key = NetworkAddress::new(workload.network.clone(), ip);
            release(&mut self.addresses, &key, |claimant| claimant.uid == workload.uid);
            self.touch_address(&key, ip, touched);
        }
    }

    /// Also names whoever else claims the address: its connections may have changed hands.
    fn touch_address(&self, key: &NetworkAddress, ip: IpAddr, touched: &mut Touched) {
        touched.addresses.insert(ip.to_canonical());
        if let Some(claims) = self.addresses.get(key) {
            touched
                .workloads
                .extend(claims.iter().map(|workload| workload.uid.clone()));
        }
    }

    fn put_endpoints(&mut self, workload: &Arc<Workload>) {
        for membership in &workload.services {
            self.change_endpoints(&membership.service, |endpoints| {
                let load = endpoints
                    .get(&workload.uid)
                    .map(|old| old.load.clone())
                    .unwrap_or_default();
                let endpoint = Endpoint {
                    workload: workload.clone(),
                    ports: membership.ports.clone(),
                    load,
                };
                endpoints.insert(workload.uid.clone(), Arc::new(endpoint));
            });
        }
    }

    fn remove_endpoint(&mut self, service: &ServiceKey, uid: &WorkloadUid) {
        self.change_endpoints(service, |endpoints| {
            endpoints.remove(uid);
        });
    }

    /// Changes the endpoints of a service, wherever they are kept.
    fn change_endpoints(&mut self, service: &ServiceKey, change: impl FnOnce(&mut Endpoints)) {
        if let Some(state) = self.services.get_mut(service) {
            return Arc::make_mut(state).change_members(change);
        }
        let waiting = self.waiting.entry(service.clone()).or_default();
        change(waiting);
        if waiting.is_empty() {
            self.waiting.remove(service);
        }
    }

    fn put_service(&mut self, service: Service, touched: &mut Touched) {
        let old = self.services.get(&service.key).cloned();
        let endpoints = match &old {
            Some(state) if **state.service() == service => return,
            Some(state) => {
                self.release_names(state.service(), touched);
                state.members().clone()
            }
            None => self.waiting.remove(&service.key).unwrap_or_default(),
        };
        self.claim_names(&service, touched);
        let key = service.key.clone();
        self.services
            .insert(key, Arc::new(ServiceState::new(Arc::new(service), endpoints)));
    }

    fn remove_service(&mut self, key: &ServiceKey, touched: &mut Touched) {
        let Some(old) = self.services.remove(key) else { return };
        self.release_names(old.service(), touched);
        if !old.members().is_empty() {
            self.waiting.insert(key.clone(), old.members().clone());
        }
    }

    fn claim_names(&mut self, service: &Service, touched: &mut Touched) {
        let key = &service.key;
        touched.services.insert(key.clone());
        let hostname = match canonical_hostname(&service.hostname) {
            canonical if *canonical == *service.hostname => service.hostname.clone(),
            canonical => canonical.as_ref().into(),
        };
        claim(&mut self.hostnames, hostname, key.clone());
        for vip in &service.vips {
            let address = NetworkAddress::new(vip.network.clone(), vip.address);
            // An address that is listed twice is claimed once.
            release(&mut self.vips, &address, |claimant| claimant == key);
            claim(&mut self.vips, address, key.clone());
        }
        self.touch_names(service, touched);
    }

    fn release_names(&mut self, service: &Service, touched: &mut Touched) {
        let key = &service.key;
        touched.services.insert(key.clone());
        let hostname: Text = canonical_hostname(&service.hostname).as_ref().into();
        release(&mut self.hostnames, &hostname, |claimant| claimant == key);
        for vip in &service.vips {
            let address = NetworkAddress::new(vip.network.clone(), vip.address);
            release(&mut self.vips, &address, |claimant| claimant == key);
        }
        self.touch_names(service, touched);
    }

    /// Also names whoever else claims the service's name or addresses.
    fn touch_names(&self, service: &Service, touched: &mut Touched) {
        if let Some(claims) = self.hostnames.get(&*canonical_hostname(&service.hostname)) {
            touched.services.extend(claims.iter().cloned());
        }
        for vip in &service.vips {
            touched.addresses.insert(vip.address.to_canonical());
            if let Some(claims) = self.vips.get(&NetworkAddress::new(vip.network.clone(), vip.address)) {
                touched.services.extend(claims.iter().cloned());
            }
        }
    }

    fn put_policy(&mut self, policy: Authorization, touched: &mut Touched) {
        if self.policies.get(&policy.key).is_some_and(|old| **old == policy) {
            return;
        }
        self.remove_policy(&policy.key, touched);
        touched.name_policy(&policy);
        let (key, policy) = (policy.key.clone(), Arc::new(policy));
        match policy.scope {
            PolicyScope::Global => drop(self.global_policies.insert(key.clone(), policy.clone())),
            PolicyScope::Namespace => {
                let guards = self.namespace_policies.entry(policy.namespace.clone()).or_default();
                guards.insert(key.clone(), policy.clone());
            }
            PolicyScope::WorkloadSelector => {}
        }
        self.policies.insert(key, policy);
    }

    fn remove_policy(&mut self, key: &PolicyKey, touched: &mut Touched) {
        let Some(old) = self.policies.remove(key) else { return };
        touched.name_policy(&old);
        match old.scope {
            PolicyScope::Global => drop(self.global_policies.remove(key)),
            PolicyScope::Namespace => {
                let guards = self.namespace_policies.entry(old.namespace.clone()).or_default();
                guards.remove(key);
                if guards.is_empty() {
                    self.namespace_policies.remove(&old.namespace);
                }
            }
            PolicyScope::WorkloadSelector => {}
        }
    }
}

impl Touched {
    fn name_policy(&mut self, policy: &Authorization) {
        self.policies.push(policy.key.clone());
        match policy.scope {
            PolicyScope::Global => self.everything = true,
            PolicyScope::Namespace => drop(self.namespaces.insert(policy.namespace.clone())),
            PolicyScope::WorkloadSelector => {}
        }
    }
}
