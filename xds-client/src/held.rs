//! What this client holds of istiod's resources, and what a response makes of it.
//!
//! A response is refused whole if it contradicts itself (a resource twice, or both sent and removed; a type that was
//! not asked for): who can't be understood there can't be trusted with the rest. Otherwise its resources are
//! independent: each is taken whole or rejected whole, and for a rejected one the last good version stays in force,
//! which the client tells istiod by its version when it connects again. So one bad resource never keeps a hundred
//! thousand from being updated.

use std::collections::{BTreeMap, HashMap, HashSet};

use thiserror::Error;
use underpass_config::{Interner, MeshChange, PolicyKey, ServiceKey, Text, WorkloadUid};

use crate::proto::discovery::{DeltaDiscoveryResponse, Resource};
use crate::resource::ResourceType;
use crate::translate::{self, Invalid, MeshFacts, authorization};

/// Why a whole response is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ResponseError {
    /// Nobody asked for it.
    #[error("`{0}` is not subscribed to")]
    Type(String),
    /// A resource without a name can't be updated or removed later.
    #[error("a resource has no name")]
    Nameless,
    /// Which of the two is meant can't be known.
    #[error("resource `{0}` is named twice")]
    Twice(String),
}

/// A resource that is not in force as istiod sent it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// The resource.
    pub name: String,
    /// What is wrong with it, and what is done instead.
    pub reason: String,
}

/// Rejections kept in view. They are only for people, and whoever sends nonsense must not fill the memory with it.
const REMEMBERED_REJECTIONS: usize = 10_000;

/// What a response comes to.
#[derive(Debug, Default)]
pub struct Accepted {
    /// What it changes.
    pub changes: Vec<MeshChange>,
    /// What of it is not in force as it was sent.
    pub rejections: Vec<Rejection>,
}

/// What a response says to who holds nothing yet: for replaying what was recorded.
pub fn translate_response(response: &DeltaDiscoveryResponse, mesh: &MeshFacts) -> Result<Accepted, ResponseError> {
    let (_, accepted) = Held::default().take(response, mesh)?;
    Ok(accepted)
}

/// The resources in force, with the versions that istiod gave them.
#[derive(Debug, Default)]
pub(crate) struct Held {
    /// Their names are the texts that the model has as well.
    addresses: HashMap<Text, HeldAddress>,
    policies: HashMap<Box<str>, Box<str>>,
    rejected: BTreeMap<(ResourceType, String), String>,
}

#[derive(Debug)]
struct HeldAddress {
    key: AddressKey,
    version: Box<str>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum AddressKey {
    Workload(WorkloadUid),
    Service(ServiceKey),
}

impl AddressKey {
    fn as_str(&self) -> &str {
        match self {
            Self::Workload(uid) => uid.as_str(),
            Self::Service(key) => key.as_str(),
        }
    }

    fn removal(self) -> MeshChange {
        match self {
            Self::Workload(uid) => MeshChange::RemoveWorkload(uid),
            Self::Service(key) => MeshChange::RemoveService(key),
        }
    }
}

impl Held {
    /// Takes what a response says.
    pub(crate) fn take(
        &mut self,
        response: &DeltaDiscoveryResponse,
        mesh: &MeshFacts,
    ) -> Result<(ResourceType, Accepted), ResponseError> {
        let kind = ResourceType::of_url(&response.type_url).filter(|kind| !kind.is_of_waypoint());
        let kind = kind.ok_or_else(|| ResponseError::Type(response.type_url.clone()))?;
        check_names(response)?;
        let mut accepted = Accepted::default();
        let mut names = Interner::default();
        for name in &response.removed_resources {
            self.remove(kind, name, &mut accepted);
        }
        for resource in &response.resources {
            match kind {
                ResourceType::Address => self.take_address(resource, mesh, &mut names, &mut accepted),
                _ => self.take_policy(resource, mesh, &mut accepted),
            }
        }
        Ok((kind, accepted))
    }

    /// Names and versions of what is held of one of the mesh's types, for a new stream.
    pub(crate) fn versions(&self, kind: ResourceType) -> HashMap<String, String> {
        match kind {
            ResourceType::Address => self
                .addresses
                .iter()
                .map(|(name, held)| (name.to_string(), held.version.to_string()))
                .collect(),
            _ => self
                .policies
                .iter()
                .map(|(name, version)| (name.to_string(), version.to_string()))
                .collect(),
        }
    }

    /// How many resources are held of one of the mesh's types.
    pub(crate) fn count(&self, kind: ResourceType) -> usize {
        match kind {
            ResourceType::Address => self.addresses.len(),
            _ => self.policies.len(),
        }
    }

    pub(crate) fn has_policy(&self, key: &PolicyKey) -> bool {
        self.policies.contains_key(key.as_str())
    }

    /// What is not in force as istiod sent it.
    pub(crate) fn rejected(&self) -> &BTreeMap<(ResourceType, String), String> {
        &self.rejected
    }

    fn remove(&mut self, kind: ResourceType, name: &str, accepted: &mut Accepted) {
        self.rejected.remove(&(kind, name.to_owned()));
        let change = match kind {
            ResourceType::Address => self.addresses.remove(name).map(|held| held.key.removal()),
            _ => self
                .policies
                .remove(name)
                .map(|_| MeshChange::RemovePolicy(PolicyKey::new(name))),
        };
        accepted.changes.extend(change);
    }

    fn take_address(&mut self, resource: &Resource, mesh: &MeshFacts, names: &mut Interner, accepted: &mut Accepted) {
        let translated = payload(resource, ResourceType::Address).and_then(|bytes| {
            let change = translate::address(bytes, mesh, names)?;
            let key = match &change {
                MeshChange::Workload(workload) => AddressKey::Workload(workload.uid.clone()),
                MeshChange::Service(service) => AddressKey::Service(service.key.clone()),
                other => return Err(Invalid::Name(format!("{other:?}"))),
            };
            same_name(resource, key.as_str())?;
            Ok((key, change))
        });
        let (key, change) = match translated {
            Ok(translated) => translated,
            Err(invalid) => return self.reject(ResourceType::Address, resource, invalid.to_string(), accepted),
        };
        self.rejected.remove(&(ResourceType::Address, resource.name.clone()));
        let held = HeldAddress {
            key: key.clone(),
            version: resource.version.as_str().into(),
        };
        let old = self.addresses.insert(names.intern(&resource.name), held);
        // A service that takes the name of a workload, or the other way round, replaces it.
        let replaced = old.filter(|old| old.key != key);
        accepted.changes.extend(replaced.map(|old| old.key.removal()));
        accepted.changes.push(change);
    }

    fn take_policy(&mut self, resource: &Resource, mesh: &MeshFacts, accepted: &mut Accepted) {
        let kind = ResourceType::Authorization;
        let translated = payload(resource, kind).and_then(|bytes| {
            let translated = authorization::translate(bytes, mesh)?;
            same_name(resource, translated.policy.key.as_str())?;
            Ok(translated)
        });
        match translated {
            Ok(translated) => {
                let version = match &translated.not_understood {
                    None => {
                        self.rejected.remove(&(kind, resource.name.clone()));
                        &*resource.version
                    }
                    // Not what istiod knows by that version: it is to be sent again to whoever may understand it.
                    Some(_) => "",
                };
                self.policies.insert(resource.name.as_str().into(), version.into());
                accepted.changes.push(MeshChange::Policy(translated.policy));
                if let Some(why) = translated.not_understood {
                    self.reject(
                        kind,
                        resource,
                        format!("{why}; until then it denies whatever it guards"),
                        accepted,
                    );
                }
            }
            Err(invalid) if self.policies.contains_key(resource.name.as_str()) => {
                self.reject(
                    kind,
                    resource,
                    format!("{invalid}; the last good version stays in force"),
                    accepted,
                );
            }
            Err(invalid) => {
                // Were it just left out, what it guards would be open.
                if let Some(denying) = authorization::of_unknown_content(&resource.name, mesh) {
                    self.policies.insert(resource.name.as_str().into(), "".into());
                    accepted.changes.push(MeshChange::Policy(denying));
                }
                self.reject(
                    kind,
                    resource,
                    format!("{invalid}; its namespace is closed by it"),
                    accepted,
                );
            }
        }
    }

    fn reject(&mut self, kind: ResourceType, resource: &Resource, reason: String, accepted: &mut Accepted) {
        let key = (kind, resource.name.clone());
        if self.rejected.len() < REMEMBERED_REJECTIONS || self.rejected.contains_key(&key) {
            self.rejected.insert(key, reason.clone());
        }
        accepted.rejections.push(Rejection {
            name: resource.name.clone(),
            reason,
        });
    }
}

pub(crate) fn check_names(response: &DeltaDiscoveryResponse) -> Result<(), ResponseError> {
    let sent = response.resources.iter().map(|resource| &resource.name);
    let mut seen = HashSet::with_capacity(response.resources.len() + response.removed_resources.len());
    for name in sent.chain(&response.removed_resources) {
        if name.is_empty() {
            return Err(ResponseError::Nameless);
        }
        if !seen.insert(name.as_str()) {
            return Err(ResponseError::Twice(name.clone()));
        }
    }
    Ok(())
}

fn payload(resource: &Resource, kind: ResourceType) -> Result<&[u8], Invalid> {
    let any = resource.resource.as_ref().ok_or(Invalid::Missing("resource"))?;
    if any.type_url != kind.url() {
        return Err(Invalid::Type {
            found: any.type_url.clone(),
            expected: kind.url(),
        });
    }
    Ok(&any.value)
}

fn same_name(resource: &Resource, key: &str) -> Result<(), Invalid> {
    if resource.name == key {
        return Ok(());
    }
    Err(Invalid::Name(key.to_owned()))
}
