//! Endpoints that are made when they are asked for: of clusters that have none of their own ([`Discovery::is_made`](super::Discovery::is_made)).
//!
//! Each is kept as one of the cluster's, with its counts, for as long as something goes on there. Peers decide how many there are, so there is a bound: those that
//! nothing uses give way to new ones; one that finds no room is made for the request that asks for it and is nobody else's.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use foldhash::quality::RandomState;

use super::{ClusterEndpoint, EndpointSettings};
use crate::Text;

/// Endpoints of one cluster that are kept. As many as Envoy keeps names (`DnsCacheConfig.max_hosts`).
const MOST: usize = 1024;

/// Two names may have one address.
type Known = HashMap<(SocketAddr, Option<Text>), Arc<ClusterEndpoint>, RandomState>;

/// Those of one cluster. Requests read it without a lock.
#[derive(Debug, Default)]
pub(super) struct Made {
    known: ArcSwap<Known>,
    making: Mutex<()>,
}

impl Made {
    /// The one of which this is said.
    pub fn endpoint(&self, settings: EndpointSettings) -> Arc<ClusterEndpoint> {
        let key = (settings.address, settings.host.clone());
        let known = |known: &Known| known.get(&key).filter(|one| one.settings == settings).cloned();
        if let Some(endpoint) = known(&self.known.load()) {
            return endpoint;
        }
        let _making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.known.load();
        if let Some(endpoint) = known(&before) {
            return endpoint;
        }
        let mut all = Known::clone(&before);
        let made = match all.get(&key) {
            Some(other) => other.changed(settings, false),
            None => ClusterEndpoint::new(settings, false),
        };
        let made = Arc::new(made);
        if all.len() >= MOST {
            all.retain(|_, one| one.active() > 0 || one.idle() > 0);
        }
        if all.len() < MOST || all.contains_key(&key) {
            all.insert(key, made.clone());
            self.known.store(Arc::new(all));
        }
        made
    }

    /// One that is kept at `address`.
    pub fn at(&self, address: SocketAddr) -> Option<Arc<ClusterEndpoint>> {
        let known = self.known.load();
        let mut of_address = known.iter().filter(|((known, _), _)| *known == address);
        of_address.next().map(|(_, endpoint)| endpoint.clone())
    }

    /// All that are kept.
    pub fn all(&self) -> Vec<Arc<ClusterEndpoint>> {
        self.known.load().values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(number: u32) -> EndpointSettings {
        let ip = std::net::Ipv4Addr::from_bits(0x0a00_0000 + number);
        EndpointSettings::new((ip, 80).into(), None, 1)
    }

    #[test]
    fn what_nobody_uses_gives_way_and_what_is_used_stays() {
        let made = Made::default();
        let used = made.endpoint(at(0));
        let held = used.hold();
        for number in 1..10_000 {
            made.endpoint(at(number));
        }
        assert!(made.all().len() <= MOST);
        assert!(
            Arc::ptr_eq(&used, &made.endpoint(at(0))),
            "its requests are counted by it"
        );
        drop(held);
        let held: Vec<_> = (0..MOST as u32 + 10)
            .map(|number| made.endpoint(at(number)).hold())
            .collect();
        assert_eq!(made.all().len(), MOST);
        let more = made.endpoint(at(1_000_000));
        assert!(made.at(more.settings.address).is_none(), "it is its request's alone");
        drop(held);
    }

    #[test]
    fn one_of_which_something_else_is_said_keeps_its_counts() {
        let made = Made::default();
        let _held = made.endpoint(at(1)).hold();
        let changed = EndpointSettings {
            reach: super::super::Reach::Hbone { via: None },
            ..at(1)
        };
        assert_eq!(made.endpoint(changed).active(), 1);
        assert_eq!(made.all().len(), 1);
    }
}
