//! When what istiod sent is handed on: together with what it needs.
//!
//! * *The first update holds both types.* Workloads without the policies that guard their namespace would be open.
//! * *A workload waits for the policies it refers to.* istiod pushes workloads before policies, so a new selector
//!   policy is referred to before it is there; handed on at once, the workload would refuse everybody for that
//!   moment. It waits for a grace period, with all that came with it and after it, and then denies.

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::Instant;
use underpass_config::{MeshChange, PolicyKey};

use crate::held::Held;
use crate::resource::ResourceType;

#[derive(Debug)]
pub(crate) struct Assembly {
    grace: Duration,
    changes: Vec<MeshChange>,
    /// Types of which nothing has come yet.
    awaited: HashSet<ResourceType>,
    /// Policies that are referred to and not held, and until when they are waited for.
    missing: HashSet<PolicyKey>,
    until: Option<Instant>,
}

impl Assembly {
    pub(crate) fn new(grace: Duration) -> Self {
        Self {
            grace,
            changes: Vec::new(),
            awaited: ResourceType::MESH.into(),
            missing: HashSet::new(),
            until: None,
        }
    }

    /// Adds what a response of `kind` came to.
    pub(crate) fn add(&mut self, kind: ResourceType, changes: Vec<MeshChange>, held: &Held) {
        self.awaited.remove(&kind);
        for change in &changes {
            let MeshChange::Workload(workload) = change else {
                continue;
            };
            let missing = workload
                .authorization_policies
                .iter()
                .filter(|key| !held.has_policy(key));
            self.missing.extend(missing.cloned());
        }
        self.missing.retain(|key| !held.has_policy(key));
        if self.missing.is_empty() {
            self.until = None;
        } else if self.until.is_none() {
            self.until = Some(Instant::now() + self.grace);
        }
        self.changes.extend(changes);
    }

    /// Until when what is here waits for policies. `None`: it waits for a whole type, or for nothing.
    pub(crate) fn until(&self) -> Option<Instant> {
        if self.awaited.is_empty() { self.until } else { None }
    }

    /// Whether all types are there, and what is here need not wait any longer.
    pub(crate) fn is_complete(&self) -> bool {
        let waits = self.until.is_some_and(|until| Instant::now() < until);
        self.awaited.is_empty() && !waits
    }

    /// All changes, if they need not wait any longer.
    pub(crate) fn complete(&mut self) -> Option<Vec<MeshChange>> {
        if !self.is_complete() {
            return None;
        }
        self.missing.clear();
        self.until = None;
        Some(std::mem::take(&mut self.changes))
    }
}
