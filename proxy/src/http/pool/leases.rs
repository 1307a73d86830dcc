//! The certificates that tunnels to clusters' endpoints are opened with.
//!
//! One is held from when a configuration that names its identity is applied until one is that doesn't: it is there before the first request wants it, and kept
//! fresh. Requests read without a lock.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arc_swap::ArcSwap;
use foldhash::quality::RandomState;
use underpass_certs::Lease;
use underpass_config::Identity;
use underpass_config::http::Http;

use crate::identities::Identities;

type Held = HashMap<Identity, Arc<Lease>, RandomState>;

/// Those of all clusters.
#[derive(Debug, Default)]
pub struct Leases {
    held: ArcSwap<Held>,
}

impl Leases {
    /// Holds what the clusters of `http` need, beside what is held.
    pub fn prepare(&self, http: &Http, identities: Option<&Identities>) {
        let Some(identities) = identities else { return };
        let mut held = Held::clone(&self.held.load());
        for identity in needed(http) {
            let lease = || Arc::new(identities.hold(identity));
            held.entry(identity.clone()).or_insert_with(lease);
        }
        self.held.store(Arc::new(held));
    }

    /// Lets go what no cluster of `http` needs.
    pub fn keep(&self, http: &Http) {
        let needed: HashSet<&Identity, RandomState> = needed(http).collect();
        let mut held = Held::clone(&self.held.load());
        held.retain(|identity, _| needed.contains(identity));
        self.held.store(Arc::new(held));
    }

    /// That of an identity.
    pub fn of(&self, identity: &Identity) -> Option<Arc<Lease>> {
        self.held.load().get(identity).cloned()
    }
}

fn needed(http: &Http) -> impl Iterator<Item = &Identity> {
    let transports = http.clusters.values().map(|cluster| &cluster.settings.transport);
    transports.filter_map(|transport| Some(&transport.hbone.as_ref()?.client))
}
