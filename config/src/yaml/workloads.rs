//! The `workloads:` section.

use std::collections::HashMap;
use std::net::IpAddr;

use foldhash::quality::RandomState;
use serde::Deserialize;

use super::policies::Policies;
use super::reading::{Path, Reading};
use super::scalar::Scalar;
use crate::{
    Health, Identity, Locality, Membership, NetworkMode, NodeSettings, PolicyKey, PolicyScope, Text, TunnelProtocol,
    Workload, WorkloadType, WorkloadUid,
};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WorkloadShape<'a> {
    #[serde(borrow)]
    name: Scalar<'a>,
    namespace: Scalar<'a>,
    uid: Option<Scalar<'a>>,
    service_account: Option<Scalar<'a>>,
    trust_domain: Option<Scalar<'a>>,
    #[serde(default)]
    addresses: Vec<Scalar<'a>>,
    hostname: Option<Scalar<'a>>,
    node: Option<Scalar<'a>>,
    network: Option<Scalar<'a>>,
    cluster_id: Option<Scalar<'a>>,
    locality: Option<LocalityShape<'a>>,
    health: Option<Scalar<'a>>,
    tunnel_protocol: Option<Scalar<'a>>,
    canonical_name: Option<Scalar<'a>>,
    canonical_revision: Option<Scalar<'a>>,
    workload_name: Option<Scalar<'a>>,
    workload_type: Option<Scalar<'a>>,
    #[serde(default)]
    authorization_policies: Vec<Scalar<'a>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LocalityShape<'a> {
    #[serde(borrow)]
    region: Option<Scalar<'a>>,
    zone: Option<Scalar<'a>>,
    subzone: Option<Scalar<'a>>,
}

impl LocalityShape<'_> {
    pub(super) fn compile(&self, reading: &mut Reading) -> Locality {
        Locality {
            region: reading.text_or_empty(self.region.as_ref()),
            zone: reading.text_or_empty(self.zone.as_ref()),
            subzone: reading.text_or_empty(self.subzone.as_ref()),
        }
    }
}

const HEALTH: [(&str, Health); 2] = [("healthy", Health::Healthy), ("unhealthy", Health::Unhealthy)];
const TUNNEL_PROTOCOLS: [(&str, TunnelProtocol); 2] =
    [("none", TunnelProtocol::None), ("hbone", TunnelProtocol::Hbone)];
const WORKLOAD_TYPES: [(&str, WorkloadType); 4] = [
    ("pod", WorkloadType::Pod),
    ("deployment", WorkloadType::Deployment),
    ("cronjob", WorkloadType::CronJob),
    ("job", WorkloadType::Job),
];

/// What a workload has by default.
struct Defaults<'d> {
    node: &'d NodeSettings,
    trust_domain: Text,
    service_account: Text,
    revision: Text,
    empty: Text,
}

/// The workloads of a document, and the ways to refer to them.
pub(super) struct Workloads<'a> {
    compiled: Vec<Workload>,
    /// Services of each workload, as far as they have been read.
    memberships: Vec<Vec<Membership>>,
    by_uid: HashMap<WorkloadUid, usize, RandomState>,
    by_name: HashMap<(&'a str, &'a str), Named, RandomState>,
    by_address: HashMap<(Text, IpAddr), usize, RandomState>,
}

/// What `namespace/name` refers to.
#[derive(Clone, Copy)]
enum Named {
    One(usize),
    /// Workloads of several clusters may share a name; they are told apart by uid.
    Several,
}

impl<'a> Workloads<'a> {
    pub(super) fn compile(
        shapes: &'a [WorkloadShape<'a>],
        node: &NodeSettings,
        policies: &Policies,
        reading: &mut Reading,
    ) -> Self {
        let defaults = Defaults {
            node,
            trust_domain: node.identities.trust_domain.clone(),
            service_account: reading.text("default"),
            revision: reading.text("latest"),
            empty: reading.text(""),
        };
        let mut workloads = Self {
            compiled: Vec::with_capacity(shapes.len()),
            memberships: Vec::new(),
            by_uid: HashMap::with_capacity_and_hasher(shapes.len(), RandomState::default()),
            by_name: HashMap::with_capacity_and_hasher(shapes.len(), RandomState::default()),
            by_address: HashMap::with_capacity_and_hasher(shapes.len(), RandomState::default()),
        };
        workloads.memberships.resize_with(shapes.len(), Vec::new);
        let section = Path::Section("workloads");
        for (index, shape) in shapes.iter().enumerate() {
            let path = section.item(index);
            let mut workload = shape.compile(path, &defaults, reading);
            workloads.claim_uid(path, index, &workload, reading);
            workload.addresses =
                workloads.claim_addresses(path.field("addresses"), index, shape, &workload.network, reading);
            workload.authorization_policies = shape.policy_references(path, policies, reading);
            let named = workloads.by_name.entry((&shape.namespace, &shape.name));
            named
                .and_modify(|named| *named = Named::Several)
                .or_insert(Named::One(index));
            workloads.compiled.push(workload);
        }
        workloads
    }

    fn claim_uid(&mut self, path: Path<'_>, index: usize, workload: &Workload, reading: &mut Reading) {
        if let Some(first) = self.by_uid.insert(workload.uid.clone(), index) {
            self.by_uid.insert(workload.uid.clone(), first);
            let problem = format!("workloads[{first}] already has this uid");
            let remedy = "give each workload its own `name` (in its namespace), or its own `uid`";
            reading.report(path.field("uid"), workload.uid.as_str(), problem, remedy);
        }
    }

    fn claim_addresses(
        &mut self,
        path: Path<'_>,
        index: usize,
        shape: &WorkloadShape<'_>,
        network: &Text,
        reading: &mut Reading,
    ) -> Box<[IpAddr]> {
        let mut addresses = Vec::with_capacity(shape.addresses.len());
        for (position, value) in shape.addresses.iter().enumerate() {
            let path = path.item(position);
            let Some(address) = reading.address(path, value) else {
                continue;
            };
            addresses.push(address);
            let Some(first) = self.by_address.insert((network.clone(), address), index) else {
                continue;
            };
            let problem = format!("workloads[{first}] already has this address in network {network:?}");
            let remedy = "an address belongs to one workload: remove it from one, or set their `network`";
            reading.report(path, value, problem, remedy);
        }
        addresses.into()
    }

    /// The workload that `reference` means: a uid, or `namespace/name`.
    pub(super) fn find(&self, path: Path<'_>, reference: &str, reading: &mut Reading) -> Option<usize> {
        if let Some(index) = self.by_uid.get(reference) {
            return Some(*index);
        }
        match reference.split_once('/').and_then(|name| self.by_name.get(&name)) {
            Some(Named::One(index)) => return Some(*index),
            Some(Named::Several) => {
                let remedy = "write the `uid` of the one that is meant";
                reading.report(path, reference, "several workloads have this name", remedy);
            }
            None => self.report_unknown(path, reference, reading),
        }
        None
    }

    /// The uid of a workload that [`find`](Self::find) found.
    pub(super) fn uid(&self, index: usize) -> &WorkloadUid {
        &self.compiled[index].uid
    }

    fn report_unknown(&self, path: Path<'_>, reference: &str, reading: &mut Reading) {
        let names = || self.by_name.keys().copied();
        let near = match reference.split_once('/') {
            // Perhaps only the namespace was forgotten.
            None => names().filter(|(_, name)| *name == reference).min(),
            Some((namespace, name)) => {
                let neighbours = names().filter(|(other, _)| *other == namespace).map(|(_, name)| name);
                let namesakes = names()
                    .filter(|(_, other)| *other == name)
                    .map(|(namespace, _)| namespace);
                let misspelt = reading.nearest(name, neighbours).map(|name| (namespace, name));
                misspelt.or_else(|| reading.nearest(namespace, namesakes).map(|namespace| (namespace, name)))
            }
        };
        let remedy = match near {
            Some((namespace, name)) => format!("did you mean `{namespace}/{name}`?"),
            None => "write `namespace/name` or the `uid` of one under `workloads`".to_owned(),
        };
        reading.report(path, reference, "there is no such workload", remedy);
    }

    /// Makes a workload an endpoint of a service; false if it is one already. All endpoints of a service are added before
    /// those of the next.
    pub(super) fn join(&mut self, index: usize, membership: Membership) -> bool {
        let memberships = &mut self.memberships[index];
        if memberships
            .last()
            .is_some_and(|last| last.service == membership.service)
        {
            return false;
        }
        memberships.push(membership);
        true
    }

    /// The workloads with all their memberships, in the order of the document. Memberships are sorted: services that
    /// only change places in the file change no workload.
    pub(super) fn finish(mut self) -> Vec<Workload> {
        for (workload, mut memberships) in self.compiled.iter_mut().zip(self.memberships) {
            memberships.sort_by(|one, other| one.service.cmp(&other.service));
            workload.services = memberships.into();
        }
        self.compiled
    }
}

impl WorkloadShape<'_> {
    /// Everything but what depends on other resources.
    fn compile(&self, path: Path<'_>, defaults: &Defaults<'_>, reading: &mut Reading) -> Workload {
        let name = reading.name(path.field("name"), &self.name);
        let namespace = reading.name(path.field("namespace"), &self.namespace);
        let cluster_id = reading.text_or(self.cluster_id.as_ref(), &defaults.node.cluster_id);
        let uid = match &self.uid {
            Some(uid) => reading.uid(path.field("uid"), uid),
            None => WorkloadUid::new(format!("{cluster_id}//Pod/{namespace}/{name}")),
        };
        let path = |field| Path::Field(&path, field);
        Workload {
            uid,
            identity: Identity {
                trust_domain: reading.name_or(path("trust_domain"), self.trust_domain.as_ref(), &defaults.trust_domain),
                namespace: namespace.clone(),
                service_account: reading.name_or(
                    path("service_account"),
                    self.service_account.as_ref(),
                    &defaults.service_account,
                ),
            },
            addresses: Box::default(),
            hostname: reading
                .hostname(path("hostname"), self.hostname.as_ref())
                .unwrap_or_else(|| defaults.empty.clone()),
            node: reading.text_or_empty(self.node.as_ref()),
            network: reading.text_or(self.network.as_ref(), &defaults.node.network),
            cluster_id,
            locality: self
                .locality
                .as_ref()
                .map(|locality| locality.compile(reading))
                .unwrap_or_else(|| Locality {
                    region: defaults.empty.clone(),
                    zone: defaults.empty.clone(),
                    subzone: defaults.empty.clone(),
                }),
            health: reading
                .choice(path("health"), self.health.as_ref(), &HEALTH)
                .unwrap_or_default(),
            tunnel_protocol: reading
                .choice(
                    path("tunnel_protocol"),
                    self.tunnel_protocol.as_ref(),
                    &TUNNEL_PROTOCOLS,
                )
                .unwrap_or_default(),
            network_mode: NetworkMode::Standard,
            application_tunnel: None,
            waypoint: None,
            network_gateway: None,
            canonical_name: reading.text_or(self.canonical_name.as_ref(), &name),
            canonical_revision: reading.text_or(self.canonical_revision.as_ref(), &defaults.revision),
            workload_name: reading.text_or(self.workload_name.as_ref(), &name),
            workload_type: reading
                .choice(path("workload_type"), self.workload_type.as_ref(), &WORKLOAD_TYPES)
                .unwrap_or_default(),
            authorization_policies: Box::default(),
            services: Box::default(),
            name,
            namespace,
        }
    }

    fn policy_references(&self, path: Path<'_>, policies: &Policies, reading: &mut Reading) -> Box<[PolicyKey]> {
        let path = path.field("authorization_policies");
        let mut keys: Vec<PolicyKey> = Vec::with_capacity(self.authorization_policies.len());
        for (position, reference) in self.authorization_policies.iter().enumerate() {
            let path = path.item(position);
            let Some((key, scope)) = policies.find(path, reference, &self.namespace, reading) else {
                continue;
            };
            if scope != PolicyScope::WorkloadSelector {
                let guards = if scope == PolicyScope::Global {
                    "every workload"
                } else {
                    "its whole namespace"
                };
                let problem = format!("this policy guards {guards} without being referred to");
                let remedy = "remove the reference, or give the policy `scope: WORKLOAD_SELECTOR`";
                reading.report(path, reference, problem, remedy);
            } else if keys.contains(key) {
                reading.report(path, reference, "this policy is listed twice", "remove one");
            } else {
                keys.push(key.clone());
            }
        }
        keys.into()
    }
}
