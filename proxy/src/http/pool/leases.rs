//! The certificates that tunnels to clusters' endpoints are opened with, and those that listeners for tunnels show.
//!
//! One is held from when a configuration that names its identity is applied until one is that doesn't: it is there before the first request wants it, and kept
//! fresh. Requests read without a lock.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arc_swap::ArcSwap;
use foldhash::quality::RandomState;
use underpass_certs::Lease;
use underpass_config::{Config, Identity, ListenerProtocol};

use crate::identities::Identities;

type Held = HashMap<Identity, Arc<Lease>, RandomState>;

/// Those of all clusters and listeners.
#[derive(Debug, Default)]
pub struct Leases {
    held: ArcSwap<Held>,
}

impl Leases {
    /// Holds what `config` needs, beside what is held.
    pub fn prepare(&self, config: &Config, identities: Option<&Identities>) {
        let Some(identities) = identities else { return };
        let mut held = Held::clone(&self.held.load());
        for identity in needed(config) {
            let lease = || Arc::new(identities.hold(&identity));
            held.entry(identity.clone()).or_insert_with(lease);
        }
        self.held.store(Arc::new(held));
    }

    /// Lets go what `config` does not need.
    pub fn keep(&self, config: &Config) {
        let needed: HashSet<Identity, RandomState> = needed(config).collect();
        let mut held = Held::clone(&self.held.load());
        held.retain(|identity, _| needed.contains(identity));
        self.held.store(Arc::new(held));
    }

    /// That of an identity.
    pub fn of(&self, identity: &Identity) -> Option<Arc<Lease>> {
        self.held.load().get(identity).cloned()
    }
}

fn needed(config: &Config) -> impl Iterator<Item = Identity> {
    let transports = config.http.clusters.values().map(|cluster| &cluster.settings.transport);
    let listeners = config.node.all_listeners().into_iter();
    let of_listeners = listeners.filter_map(|listener| match listener.protocol {
        ListenerProtocol::Hbone { identity } => Some(identity),
        _ => None,
    });
    let of_clusters = transports.filter_map(|transport| Some(transport.hbone.as_ref()?.client.clone()));
    of_clusters.chain(of_listeners).chain(config.http.client.clone())
}
