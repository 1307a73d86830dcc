//! A waypoint's half of the client: what it holds, which endpoints are asked for, and when what it serves is handed on.
//!
//! **Handed on when it fits together.** istiod pushes clusters first, then endpoints, then listeners, and a stream may carry anything between them. A new cluster waits
//! for its endpoints, which are asked for only when it is known; and a cluster that is gone stays until no chain leads there any more: the listener that says so is on
//! its way. Both have a grace period, after which what is there counts.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Duration;

use tokio::time::Instant;
use underpass_config::Text;
use underpass_config::waypoint::EndpointSource;

use crate::held::{Rejection, ResponseError};
use crate::proto::discovery::DeltaDiscoveryResponse;
use crate::resource::ResourceType;
use crate::waypoint::{Held, Told, not_served};

/// What a waypoint holds.
#[derive(Debug)]
pub(super) struct Serving {
    held: Held,
    /// By type, names with the versions that istiod gave them.
    versions: HashMap<ResourceType, HashMap<String, String>>,
    /// Sets of endpoints that istiod says there are none of.
    none: HashSet<String>,
    /// Types of which nothing has come yet. Endpoints are not among them: they are asked for by name.
    awaited: HashSet<ResourceType>,
    grace: Duration,
    until: Option<Instant>,
    is_changed: bool,
    /// What was handed on last.
    told: Option<Told>,
}

impl Serving {
    pub(super) fn new(grace: Duration) -> Self {
        Self {
            held: Held::default(),
            versions: HashMap::new(),
            none: HashSet::new(),
            awaited: [ResourceType::Cluster, ResourceType::Listener].into(),
            grace,
            until: None,
            is_changed: false,
            told: None,
        }
    }

    /// Takes a response of one of a waypoint's types.
    ///
    /// # Errors
    /// If it contradicts itself; then nothing of it is taken.
    pub(super) fn take(
        &mut self,
        kind: ResourceType,
        response: &DeltaDiscoveryResponse,
    ) -> Result<Vec<Rejection>, ResponseError> {
        let taken = self.held.take(response)?;
        self.awaited.remove(&kind);
        let versions = self.versions.entry(kind).or_default();
        for name in &response.removed_resources {
            versions.remove(name);
            if kind == ResourceType::Endpoints {
                self.none.insert(name.clone());
            }
        }
        for resource in &response.resources {
            versions.insert(resource.name.clone(), resource.version.clone());
            self.none.remove(&resource.name);
        }
        self.is_changed = true;
        self.look();
        let rejections = taken.closed.into_iter().map(|why| Rejection {
            name: why.name.to_string(),
            reason: format!("`{}` {}; it is closed", why.field, why.why),
        });
        Ok(rejections.collect())
    }

    /// The sets of endpoints that clusters name.
    pub(super) fn wanted(&self) -> BTreeSet<Text> {
        let clusters = self.held.clusters.values();
        let named = clusters.filter_map(|kept| match &kept.served.as_ref().ok()?.source {
            EndpointSource::Named(set) => Some(set.clone()),
            EndpointSource::Here | EndpointSource::Original | EndpointSource::Dynamic(_) => None,
        });
        named.collect()
    }

    /// Forgets a set that is not asked for any more: nobody would tell of its changes.
    pub(super) fn forget(&mut self, set: &str) {
        self.held.endpoints.remove(set);
        self.none.remove(set);
        if let Some(versions) = self.versions.get_mut(&ResourceType::Endpoints) {
            versions.remove(set);
        }
    }

    /// Names and versions of what is held, for a new stream.
    pub(super) fn versions(&self, kind: ResourceType) -> HashMap<String, String> {
        self.versions.get(&kind).cloned().unwrap_or_default()
    }

    /// How many resources are held.
    pub(super) fn count(&self, kind: ResourceType) -> usize {
        self.versions.get(&kind).map_or(0, HashMap::len)
    }

    /// What is not served as it was sent.
    pub(super) fn rejected(&self) -> Vec<(ResourceType, String, String)> {
        let all = not_served(&self.held).into_iter();
        let known = all.filter_map(|(url, why)| {
            let kind = ResourceType::of_url(url)?;
            Some((kind, why.name.to_string(), format!("`{}` {}", why.field, why.why)))
        });
        known.collect()
    }

    /// Until when what is here waits for what belongs to it. None: it waits for a whole type, or for nothing.
    pub(super) fn until(&self) -> Option<Instant> {
        match self.awaited.is_empty() {
            true => self.until,
            false => None,
        }
    }

    /// Whether it need not wait any longer.
    pub(super) fn is_ready(&self) -> bool {
        self.awaited.is_empty() && self.until.is_none_or(|until| until <= Instant::now())
    }

    /// What is to be served from now on, if that is something else than before and need not wait.
    pub(super) fn hand_on(&mut self) -> Option<Told> {
        if !self.is_ready() || !std::mem::take(&mut self.is_changed) {
            return None;
        }
        self.until = None;
        let told = Told::of(&self.held);
        // istiod often sends again what it has sent.
        if self.told.as_ref().is_some_and(|before| before.is(&told)) {
            return None;
        }
        self.told = Some(told.clone());
        Some(told)
    }

    /// Looks whether it fits together.
    fn look(&mut self) {
        match self.fits() {
            true => self.until = None,
            false if self.until.is_none() => self.until = Some(Instant::now() + self.grace),
            false => {}
        }
    }

    fn fits(&self) -> bool {
        let has_endpoints = |set: &Text| self.held.endpoints.contains_key(set) || self.none.contains(&**set);
        if !self.wanted().iter().all(has_endpoints) {
            return false;
        }
        let mut fits = true;
        for chain in self.held.chains.values().filter_map(|kept| kept.served.as_ref().ok()) {
            // One that never was is the route's affair: its requests are answered as it says.
            chain.clusters(&mut |name| {
                let was_there = self.told.as_ref().is_some_and(|told| told.has_cluster(name));
                fits &= self.held.clusters.contains_key(name) || !was_there;
            });
        }
        fits
    }
}
