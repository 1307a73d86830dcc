//! What is in force of a waypoint's resources, and what a response makes of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use prost::Message;
use prost_reflect::DynamicMessage;
use underpass_config::Text;
use underpass_config::waypoint::{Chain, EndpointSet, Place, WaypointCluster};

use super::bytes::{CHAIN, Came, FRAME, Parts, hash_of_chain};
use super::inspection::{ContentHash, inspect, inspect_bytes};
use super::listener::{Frame, MAIN, Unread};
use super::refusal::{Refused, Untranslated};
use super::wiring::{self, Kind};
use super::{CLUSTER, ENDPOINTS, LISTENER, cluster, endpoints};
use crate::ResponseError;
use crate::proto::discovery::{DeltaDiscoveryResponse, Resource};
use crate::proto::envoy::config::cluster::v3::Cluster;
use crate::proto::envoy::config::endpoint::v3::ClusterLoadAssignment;
use crate::proto::envoy::config::listener::v3::Listener;

/// Something that was sent, with its hash. It is the same object as long as it says the same.
#[derive(Debug)]
pub struct Kept<T> {
    /// What it says.
    pub hash: ContentHash,
    /// What it means; or why that is not known, so that it is closed.
    pub served: Result<Arc<T>, Untranslated>,
    /// What of it is left out, which only tells of requests, or is one endpoint of several.
    pub left_out: Vec<Untranslated>,
}

/// Things by name.
pub type Served<T> = BTreeMap<Text, Arc<Kept<T>>>;

/// What is in force.
#[derive(Debug, Default)]
pub struct Held {
    /// Clusters that are not wiring.
    pub clusters: Served<WaypointCluster>,
    /// Sets of endpoints.
    pub endpoints: Served<EndpointSet>,
    /// Chains.
    pub chains: Served<Chain>,
    /// Where connections lead; none: nothing was sent.
    pub place: Option<Arc<Place>>,
    /// Branches of that which are closed.
    pub closed: Vec<Untranslated>,
    /// Listeners and clusters that are wiring and not as it is known, by type and name; while there is one, nothing can be served.
    pub unlike: BTreeMap<(&'static str, Text), Untranslated>,
    came: Came,
}

/// What a response has done.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// What was translated, by name: it is new, or says something else.
    pub rebuilt: Vec<Text>,
    /// How much was sent that says what it said.
    pub kept: usize,
    /// What is gone, by name.
    pub removed: Vec<Text>,
    /// What is closed, of what was translated: it is not understood.
    pub closed: Vec<Untranslated>,
    /// What is left out, of what was translated and is served.
    pub left_out: Vec<Untranslated>,
}

impl Held {
    /// Takes what a response says.
    ///
    /// # Errors
    /// If it is of a type that is not a waypoint's, has a resource without a name, or one twice. Nothing of it is in force then.
    pub fn take(&mut self, response: &DeltaDiscoveryResponse) -> Result<Taken, ResponseError> {
        type Remove = fn(&mut Held, &str, &mut Taken);
        type Take = fn(&mut Held, &Text, &Resource, &mut Taken);
        let (kind, remove, take): (_, Remove, Take) = match response.type_url.as_str() {
            CLUSTER => (CLUSTER, Self::remove_cluster, Self::take_cluster),
            ENDPOINTS => (ENDPOINTS, Self::remove_endpoints, Self::take_endpoints),
            LISTENER => (LISTENER, Self::remove_listener, Self::take_listener),
            other => return Err(ResponseError::Type(other.to_owned())),
        };
        crate::held::check_names(response)?;
        let mut taken = Taken::default();
        for name in &response.removed_resources {
            self.came.forget(kind, &name.as_str().into());
            remove(self, name, &mut taken);
        }
        for resource in &response.resources {
            let name: Text = resource.name.as_str().into();
            let bytes = hash_of(resource);
            let held = self.held_of(kind, &name);
            match self.came.is(kind, &name, bytes) && held > 0 {
                true => taken.kept += held,
                false => take(self, &name, resource, &mut taken),
            }
            self.came.note(kind, &name, bytes);
        }
        Ok(taken)
    }

    /// How much there is of a resource that was taken.
    fn held_of(&self, kind: &'static str, name: &Text) -> usize {
        match kind {
            CLUSTER => usize::from(self.clusters.contains_key(name)),
            ENDPOINTS => usize::from(self.endpoints.contains_key(name)),
            // What is wiring is not held.
            _ if &**name == MAIN => self.chains.len(),
            _ => 0,
        }
    }

    fn remove_cluster(&mut self, name: &str, taken: &mut Taken) {
        self.unlike.remove(&(CLUSTER, name.into()));
        taken.remove(&mut self.clusters, name);
    }

    fn remove_endpoints(&mut self, name: &str, taken: &mut Taken) {
        taken.remove(&mut self.endpoints, name);
    }

    fn remove_listener(&mut self, name: &str, taken: &mut Taken) {
        self.unlike.remove(&(LISTENER, name.into()));
        if name == MAIN {
            self.place = None;
            self.closed.clear();
            self.came.clear(CHAIN);
            let gone = std::mem::take(&mut self.chains);
            taken.removed.extend(gone.into_keys());
        }
    }

    fn take_cluster(&mut self, name: &Text, resource: &Resource, taken: &mut Taken) {
        let (wire, message) = match read::<Cluster>(resource, CLUSTER, |wire| &wire.name) {
            Ok(read) => read,
            Err(why) => return taken.unreadable(&mut self.clusters, name, resource, why),
        };
        if let Some(known) = wiring::known(Kind::Cluster, name) {
            return self.take_wiring(CLUSTER, name, wiring::check(&message, known), taken);
        }
        let inspected = inspect(&message);
        taken.keep_or(&mut self.clusters, name, inspected.hash, || {
            let known = all_known(&inspected.unknown);
            (known.and_then(|()| cluster::translate(&wire)), Vec::new())
        });
    }

    fn take_endpoints(&mut self, name: &Text, resource: &Resource, taken: &mut Taken) {
        let read = read::<ClusterLoadAssignment>(resource, ENDPOINTS, |wire| &wire.cluster_name);
        let (wire, message) = match read {
            Ok(read) => read,
            Err(why) => return taken.unreadable(&mut self.endpoints, name, resource, why),
        };
        let inspected = inspect(&message);
        taken.keep_or(&mut self.endpoints, name, inspected.hash, || {
            let translated = all_known(&inspected.unknown).and_then(|()| endpoints::translate(&wire));
            match translated {
                Ok((set, left_out)) => (Ok(set), left_out),
                Err(why) => (Err(why), Vec::new()),
            }
        });
    }

    fn take_listener(&mut self, name: &Text, resource: &Resource, taken: &mut Taken) {
        if &**name == MAIN {
            return self.take_main(name, resource, taken);
        }
        let checked = read::<Listener>(resource, LISTENER, |wire| &wire.name).and_then(|(_, message)| {
            let unknown = || Refused::new("name", "is no listener of a waypoint's that is known");
            wiring::check(&message, wiring::known(Kind::Listener, name).ok_or_else(unknown)?)
        });
        self.take_wiring(LISTENER, name, checked, taken);
    }

    fn take_wiring(&mut self, kind: &'static str, name: &Text, checked: Result<(), Refused>, taken: &mut Taken) {
        match checked {
            Ok(()) => {
                self.unlike.remove(&(kind, name.clone()));
            }
            Err(why) => {
                let why = why.of(name);
                taken.closed.push(why.clone());
                self.unlike.insert((kind, name.clone()), why);
            }
        }
    }

    fn take_main(&mut self, name: &Text, resource: &Resource, taken: &mut Taken) {
        let parts = bytes_of(resource, LISTENER)
            .and_then(|bytes| Parts::of(bytes).ok_or_else(|| Refused::new("", "can't be decoded")));
        let Parts { frame, chains } = match parts {
            Ok(parts) => parts,
            Err(why) => {
                self.came.forget(FRAME, name);
                return self.take_wiring(LISTENER, name, Err(why), taken);
            }
        };
        let hash = ContentHash::of_bytes(&frame);
        if self.place.is_none() || !self.came.is(FRAME, name, hash) {
            self.came.forget(FRAME, name);
            let read = decode::<Listener>(&resource.name, &frame, LISTENER, |wire| &wire.name);
            match read.map(|(wire, message)| Frame::of(&wire, &message)) {
                Ok(frame) => self.take_frame(name, frame, taken),
                Err(why) => return self.take_wiring(LISTENER, name, Err(why), taken),
            }
            self.came.note(FRAME, name, hash);
        }
        self.take_chains(chains, taken);
    }

    fn take_frame(&mut self, name: &Text, frame: Frame, taken: &mut Taken) {
        self.take_wiring(LISTENER, name, frame.checked, taken);
        let closed = frame.closed.into_iter();
        let closed: Vec<_> = closed.map(|why| why.within("filter_chain_matcher").of(name)).collect();
        taken.closed.extend(closed.iter().cloned());
        self.closed = closed;
        if self.place.as_deref() != Some(&frame.place) {
            self.place = Some(Arc::new(frame.place));
        }
    }

    fn take_chains(&mut self, chains: Vec<(Text, &[u8])>, taken: &mut Taken) {
        let mut before = std::mem::take(&mut self.chains);
        let mut by_name: BTreeMap<Text, Vec<&[u8]>> = BTreeMap::new();
        for (name, bytes) in chains {
            by_name.entry(name).or_default().push(bytes);
        }
        for (name, same) in by_name {
            let bytes = ContentHash::of_several(same.iter().map(|bytes| hash_of_chain(bytes)));
            if let Some(kept) = before.remove(&name) {
                self.chains.insert(name.clone(), kept);
                if self.came.is(CHAIN, &name, bytes) {
                    taken.kept += 1;
                    continue;
                }
            }
            match &same[..] {
                [one] => match Unread::of(&name, one) {
                    Ok(chain) => taken.keep_or_read(&mut self.chains, &name, chain.hash, || chain.read()),
                    Err(why) => taken.keep_or(&mut self.chains, &name, bytes, || (Err(why), Vec::new())),
                },
                _ => {
                    // Which of them is meant can't be known.
                    let why = || Refused::new("name", "is another chain's, too");
                    taken.keep_or(&mut self.chains, &name, bytes, || (Err(why()), Vec::new()));
                }
            }
            self.came.note(CHAIN, &name, bytes);
        }
        for name in before.keys() {
            self.came.forget(CHAIN, name);
        }
        taken.removed.extend(before.into_keys());
    }
}

/// What has a state that outlives its changes.
trait Continues {
    /// Takes over that of `before`.
    fn continues(&mut self, before: &Self);
}

impl Continues for Chain {
    fn continues(&mut self, before: &Self) {
        Chain::continues(self, before);
    }
}

/// A cluster's is with the one that is made of it.
impl Continues for WaypointCluster {
    fn continues(&mut self, _: &Self) {}
}

impl Continues for EndpointSet {
    fn continues(&mut self, _: &Self) {}
}

impl Taken {
    fn remove<T>(&mut self, from: &mut Served<T>, name: &str) {
        if let Some((name, _)) = from.remove_entry(name) {
            self.removed.push(name);
        }
    }

    /// Keeps what says the same, and translates the rest.
    fn keep_or<T: Continues>(
        &mut self,
        held: &mut Served<T>,
        name: &Text,
        hash: ContentHash,
        translate: impl FnOnce() -> (Result<T, Refused>, Vec<Refused>),
    ) {
        self.keep_or_read(held, name, hash, || {
            let (served, left_out) = translate();
            let left_out = left_out.into_iter().map(|why| why.of(name));
            (served.map_err(|why| why.of(name)), left_out.collect())
        });
    }

    fn keep_or_read<T: Continues>(
        &mut self,
        held: &mut Served<T>,
        name: &Text,
        hash: ContentHash,
        translate: impl FnOnce() -> (Result<T, Untranslated>, Vec<Untranslated>),
    ) {
        let before = held.get(name);
        if before.is_some_and(|kept| kept.hash == hash) {
            self.kept += 1;
            return;
        }
        let (mut served, left_out) = translate();
        if let (Ok(served), Some(Ok(before))) = (&mut served, before.map(|kept| &kept.served)) {
            served.continues(before);
        }
        let served = served.map(Arc::new);
        self.closed.extend(served.as_ref().err().cloned());
        self.left_out.extend(left_out.iter().cloned());
        self.rebuilt.push(name.clone());
        let kept = Kept { hash, served, left_out };
        held.insert(name.clone(), Arc::new(kept));
    }

    /// What is no such message is closed, as what it was before is not what it is now.
    fn unreadable<T: Continues>(&mut self, held: &mut Served<T>, name: &Text, resource: &Resource, why: Refused) {
        let bytes = resource.resource.as_ref().map_or(&[][..], |any| &any.value);
        let hash = ContentHash::of_bytes(bytes);
        self.keep_or(held, name, hash, || (Err(why), Vec::new()));
    }
}

fn all_known(unknown: &[String]) -> Result<(), Refused> {
    match unknown.first() {
        Some(path) => Err(Refused::new(path.as_str(), "is not known")),
        None => Ok(()),
    }
}

/// Of all that a resource says.
fn hash_of(resource: &Resource) -> ContentHash {
    let any = resource.resource.iter();
    let parts = any.flat_map(|any| [any.type_url.as_bytes(), &any.value[..]]);
    ContentHash::of_several(parts.map(ContentHash::of_bytes))
}

/// The bytes of a resource, which has to be of this type.
fn bytes_of<'r>(resource: &'r Resource, url: &str) -> Result<&'r [u8], Refused> {
    let any = resource.resource.as_ref().ok_or_else(|| Refused::missing("resource"))?;
    match any.type_url == url {
        true => Ok(&any.value),
        false => Err(Refused::unsupported("resource", format!("a `{}`", any.type_url))),
    }
}

/// A resource as its message, twice: as what is translated, and as what can be looked at.
fn read<M: Message + Default>(
    resource: &Resource,
    url: &'static str,
    name: impl Fn(&M) -> &String,
) -> Result<(M, DynamicMessage), Refused> {
    decode(&resource.name, bytes_of(resource, url)?, url, name)
}

/// The same of bytes, which have to be of this name.
fn decode<M: Message + Default>(
    expected: &str,
    bytes: &[u8],
    url: &'static str,
    name: impl Fn(&M) -> &String,
) -> Result<(M, DynamicMessage), Refused> {
    let wire = M::decode(bytes).map_err(|error| Refused::new("", format!("can't be decoded: {error}")))?;
    if *name(&wire) != expected {
        return Err(Refused::new("name", format!("is `{}` in the message", name(&wire))));
    }
    let type_name = url.rsplit_once('/').map_or(url, |(_, name)| name);
    let message = inspect_bytes(type_name, bytes).map_err(|why| Refused::new("", why))?;
    Ok((wire, message))
}
