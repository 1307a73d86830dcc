//! Who claims an address or a name.
//!
//! Normally one resource does. When two do (a pod's address is given to the next pod before the first is reported gone;
//! pods on the host network share the node's), the one that changed last has it, and when that one goes the other has
//! it again, as if the last had never been. Hence an index entry is the list of claimants in the order of their
//! changes, in the space of one while there is one.

use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};

use equivalent::Equivalent;
use foldhash::quality::RandomState;
use imbl::GenericHashMap;
use imbl::shared_ptr::DefaultSharedPtr;

use crate::Text;

/// A persistent map. Its hasher is seeded at random, because pods choose their names.
pub(crate) type Map<K, V> = GenericHashMap<K, V, RandomState, DefaultSharedPtr>;

/// The claimants of one key, oldest first; never none.
#[derive(Clone, Debug)]
pub(crate) enum Claims<T> {
    One(T),
    Many(Box<[T]>),
}

impl<T> Claims<T> {
    fn oldest_first(&self) -> &[T] {
        match self {
            Self::One(only) => std::slice::from_ref(only),
            Self::Many(all) => all,
        }
    }

    /// The claimants, the one that has the key first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.oldest_first().iter().rev()
    }

    /// Who has the key.
    pub(crate) fn winner(&self) -> Option<&T> {
        self.iter().next()
    }
}

/// Adds `claimant` as the latest.
pub(crate) fn claim<K, T>(index: &mut Map<K, Claims<T>>, key: K, claimant: T)
where
    K: Clone + Eq + Hash,
    T: Clone,
{
    let claims = match index.get(&key) {
        None => Claims::One(claimant),
        Some(others) => Claims::Many(others.oldest_first().iter().cloned().chain([claimant]).collect()),
    };
    index.insert(key, claims);
}

/// Takes back what `is_claimant` recognises.
pub(crate) fn release<K, T>(index: &mut Map<K, Claims<T>>, key: &K, is_claimant: impl Fn(&T) -> bool)
where
    K: Clone + Eq + Hash,
    T: Clone,
{
    let Some(claims) = index.get(key) else { return };
    let mut left: Vec<T> = claims
        .oldest_first()
        .iter()
        .filter(|other| !is_claimant(other))
        .cloned()
        .collect();
    match left.len() {
        0 => drop(index.remove(key)),
        1 => drop(index.insert(key.clone(), Claims::One(left.remove(0)))),
        _ => drop(index.insert(key.clone(), Claims::Many(left.into()))),
    }
}

/// An address on a network. IPv4 is kept in its IPv6-mapped form, so that both ways to write it are one key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct NetworkAddress {
    network: Text,
    address: Ipv6Addr,
}

impl NetworkAddress {
    pub(crate) fn new(network: Text, address: IpAddr) -> Self {
        Self {
            network,
            address: mapped(address),
        }
    }
}

/// A [`NetworkAddress`] to look for.
#[derive(Hash)]
pub(crate) struct NetworkAddressRef<'a> {
    network: &'a str,
    address: Ipv6Addr,
}

impl<'a> NetworkAddressRef<'a> {
    pub(crate) fn new(network: &'a str, address: IpAddr) -> Self {
        Self {
            network,
            address: mapped(address),
        }
    }
}

impl Equivalent<NetworkAddress> for NetworkAddressRef<'_> {
    fn equivalent(&self, key: &NetworkAddress) -> bool {
        self.address == key.address && self.network == &*key.network
    }
}

fn mapped(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}
