//! What all HBONE connections of a node share: the budget of their windows, and how many each peer has.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, PoisonError};

use underpass_config::Identity;

use super::described::Descriptions;
use super::windows::Budget;

/// The limits of one node.
#[derive(Debug, Default)]
pub struct TunnelLimits {
    /// What peers may send before it is taken.
    pub budget: Arc<Budget>,
    /// Connections that were accepted.
    pub peers: Arc<Peers>,
    /// What clients have said of themselves.
    pub descriptions: Descriptions,
}

/// Open connections by pod and by who opened them.
#[derive(Debug, Default)]
pub struct Peers(Mutex<HashMap<(u64, Identity), u32>>);

/// One connection's place; dropping it gives it back.
#[derive(Debug)]
pub struct PeerPlace {
    peers: Arc<Peers>,
    key: (u64, Identity),
}

impl Peers {
    /// A place for one more connection of `identity` to the pod in the namespace `pod`; none when it has `limit`.
    pub fn admit(self: &Arc<Self>, pod: u64, identity: &Identity, limit: u32) -> Option<PeerPlace> {
        let key = (pod, identity.clone());
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(key.clone()).or_default();
        if *count >= limit {
            return None;
        }
        *count += 1;
        let peers = self.clone();
        Some(PeerPlace { peers, key })
    }
}

impl Drop for PeerPlace {
    fn drop(&mut self) {
        let mut open = self.peers.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut count) = open.entry(self.key.clone()) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_has_all_its_connections_gets_no_more_and_others_do() {
        let peers: Arc<Peers> = Arc::default();
        let [one, other] = ["one", "other"].map(|name| {
            let uri = format!("spiffe://cluster.local/ns/shop/sa/{name}");
            uri.parse::<Identity>().unwrap()
        });
        let places = [(); 2].map(|()| peers.admit(1, &one, 2).unwrap());
        assert!(peers.admit(1, &one, 2).is_none());
        assert!(peers.admit(1, &other, 2).is_some() && peers.admit(2, &one, 2).is_some());
        drop(places);
        assert!(peers.admit(1, &one, 2).is_some());
        assert!(peers.0.lock().unwrap().is_empty(), "nothing is kept of who has gone");
    }
}
