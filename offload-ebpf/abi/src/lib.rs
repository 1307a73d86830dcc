//! What the eBPF programs and the processes that work with them agree on.
//!
//! The one idea: an address is always 16 bytes in network order, IPv4 in its mapped form (`::ffff:a.b.c.d`, RFC 4291
//! section 2.5.5.2), so that one map and one comparison serve both families and a dual-stack socket is no special case.
//! Ports are in host order. Everything here crosses the system call boundary as bytes: `repr(C)`, no padding that is
//! not a field. The layouts are pinned by the tests below, since an agent adopts maps which an agent of another version
//! made.
//!
//! Compiled for both sides: for the kernel's programs (`bpfel-unknown-none`), hence `no_std`, and for the host.

#![no_std]
#![forbid(unsafe_code)]

pub mod tier;

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Pods that can be enrolled on a node at once; also the number of slots.
pub const MAX_PODS: u32 = 4096;
/// Addresses that enrolled pods can have together.
pub const MAX_ADDRESSES: u32 = 16384;
/// Cgroups that can be exempt, and cgroups that can be the kubelet's.
pub const MAX_CGROUPS: u32 = 1024;
/// Handshakes under way on the node. Each pod has a limit of its own far below it ([`PodEntry::handshake_limit`]).
pub const MAX_HANDSHAKES: u32 = 262_144;

/// An enrolled pod as the programs see it: the value of the map `PODS`, whose key is the network namespace's cookie.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodEntry {
    /// The pod's number: its place in `SLOTS`, and half its place in `LISTENERS`.
    pub slot: u32,
    /// See [`REFUSING`].
    pub flags: u32,
    /// Where the IPv4 connections of the pod are sent (mapped form); means nothing when `port_v4` is 0.
    pub address_v4: [u8; 16],
    /// Where the IPv6 connections of the pod are sent; means nothing when `port_v6` is 0.
    pub address_v6: [u8; 16],
    /// Port of the listener at `address_v4`; 0 when the pod has no IPv4.
    pub port_v4: u16,
    /// Port of the listener at `address_v6`; 0 when the pod has no IPv6.
    pub port_v6: u16,
    /// How many captured connections may be between their SYN and the listener's side of the handshake.
    pub handshake_limit: u32,
}

/// What belongs to a slot: the value of the map `SLOTS`. Beside `PODS` because the agent rewrites entries of `PODS`
/// whole, and would lose counts.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    /// Cookie of the network namespace of the pod that has the slot.
    pub netns: u64,
    /// Captured connections between their SYN and the listener's side of the handshake; kept by the programs.
    pub handshakes: u64,
}

/// Flag of a [`PodEntry`]: no proxy serves the pod; what would be captured or steered is refused.
pub const REFUSING: u32 = 1;

/// A connection on its way, as the *listening* side in network namespace `netns` will see it: the key of the map
/// `HANDSHAKES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HandshakeKey {
    /// Cookie of the listener's network namespace.
    pub netns: u64,
    /// Where the connection comes from.
    pub remote_address: [u8; 16],
    /// Where the connection comes from.
    pub remote_port: u16,
    /// The port that it is for, before any steering.
    pub local_port: u16,
    /// Always 0.
    pub pad: u32,
}

impl HandshakeKey {
    /// The key of a connection from `remote` to `local_port` in the namespace `netns`.
    pub fn new(netns: u64, remote: SocketAddr, local_port: u16) -> Self {
        Self {
            netns,
            remote_address: to_bytes(remote.ip()),
            remote_port: remote.port(),
            local_port,
            pad: 0,
        }
    }

    /// Where the connection comes from.
    pub fn remote(&self) -> SocketAddr {
        SocketAddr::new(from_bytes(self.remote_address), self.remote_port)
    }
}

/// What is known of a connection beyond its own addresses: the value of `HANDSHAKES` while it is on its way, and of the
/// socket storage `NOTES` for as long as the socket lives.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Note {
    /// [`ORIGINAL`], [`PEER`] or [`DIRECT`].
    pub kind: u32,
    /// Port that belongs to `address`.
    pub port: u16,
    /// Always 0.
    pub pad: u16,
    /// What the kind says; zeroes for [`DIRECT`].
    pub address: [u8; 16],
}

/// Kind of a [`Note`]: a captured connect(2); the address is the one that the application asked for.
pub const ORIGINAL: u32 = 1;
/// Kind of a [`Note`]: the proxy's connection to an application; the address is the client that the application shall
/// see.
pub const PEER: u32 = 2;
/// Kind of a [`Note`]: let through to the application as it is, such as the kubelet's probes.
pub const DIRECT: u32 = 3;

impl Note {
    /// The application shall see `client` as its peer.
    pub fn peer(client: SocketAddr) -> Self {
        Self {
            kind: PEER,
            port: client.port(),
            pad: 0,
            address: to_bytes(client.ip()),
        }
    }

    /// The application shall see the connection as it is.
    pub const fn direct() -> Self {
        Self {
            kind: DIRECT,
            port: 0,
            pad: 0,
            address: [0; 16],
        }
    }

    /// The address and port, IPv4 unmapped.
    pub fn socket_address(&self) -> SocketAddr {
        SocketAddr::new(from_bytes(self.address), self.port)
    }
}

/// What the programs count: the index in the map `COUNTERS`.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// connect(2) calls sent to the pod's listener.
    Captured,
    /// connect(2) refused: no proxy serves the pod.
    RefusedRefusing,
    /// connect(2) refused: the pod has no listener of that address family.
    RefusedFamily,
    /// connect(2) refused: the pod has as many handshakes under way as it may have.
    RefusedLimit,
    /// connect(2) refused: the kernel had no memory to note the destination.
    RefusedStorage,
    /// A captured connection whose destination found no room in `HANDSHAKES`; the proxy will reset it.
    HandshakesFull,
    /// A connection whose note could not be copied to the accepted socket for want of memory.
    NoteLost,
    /// The kubelet's connects to enrolled pods.
    Probes,
    /// Lookups answered with the pod's inbound listener: one for each connection, and one for each packet that belongs
    /// to none.
    Steered,
    /// Lookups left to the kernel because the connection was announced.
    Announced,
    /// Lookups refused: no listener to steer to, or no proxy.
    Unsteerable,
    /// Packets dropped by `guard`: a connection begun past the hooks.
    GuardedSyn,
    /// Packets dropped by `guard`: TCP that did not come from a TCP socket.
    GuardedForged,
    /// Packets dropped by `guard`: headers that could hide TCP.
    GuardedHidden,
    /// Packets dropped by `guard`: a connection of the mesh's whose addresses the pod's own rules have changed.
    GuardedTranslated,
    /// setsockopt(2) refused: it would have sent packets past `guard`.
    RefusedBypass,
}

impl Counter {
    /// All counters with their names, in the order of their index.
    pub const ALL: [(Self, &'static str); 16] = [
        (Self::Captured, "captured"),
        (Self::RefusedRefusing, "refused_no_proxy"),
        (Self::RefusedFamily, "refused_family"),
        (Self::RefusedLimit, "refused_handshake_limit"),
        (Self::RefusedStorage, "refused_storage"),
        (Self::HandshakesFull, "handshakes_full"),
        (Self::NoteLost, "note_lost"),
        (Self::Probes, "probes"),
        (Self::Steered, "steered"),
        (Self::Announced, "announced"),
        (Self::Unsteerable, "unsteerable"),
        (Self::GuardedSyn, "guarded_syn"),
        (Self::GuardedForged, "guarded_forged"),
        (Self::GuardedHidden, "guarded_hidden"),
        (Self::GuardedTranslated, "guarded_translated"),
        (Self::RefusedBypass, "refused_bypass"),
    ];
}

/// The 16 bytes by which an address is known.
pub fn to_bytes(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4_to_bytes(v4),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// The mapped form of an IPv4 address.
pub const fn v4_to_bytes(address: Ipv4Addr) -> [u8; 16] {
    address.to_ipv6_mapped().octets()
}

/// The address that 16 bytes stand for; the mapped form is IPv4.
pub fn from_bytes(bytes: [u8; 16]) -> IpAddr {
    Ipv6Addr::from(bytes).to_canonical()
}

#[cfg(test)]
mod tests {
    extern crate std;

    use core::mem::{align_of, offset_of, size_of};

    use super::*;

    #[test]
    fn layouts_are_those_of_the_pinned_maps() {
        assert_eq!((size_of::<PodEntry>(), align_of::<PodEntry>()), (48, 4));
        assert_eq!(offset_of!(PodEntry, flags), 4);
        assert_eq!(offset_of!(PodEntry, address_v4), 8);
        assert_eq!(offset_of!(PodEntry, address_v6), 24);
        assert_eq!(offset_of!(PodEntry, port_v4), 40);
        assert_eq!(offset_of!(PodEntry, port_v6), 42);
        assert_eq!(offset_of!(PodEntry, handshake_limit), 44);

        assert_eq!((size_of::<Slot>(), align_of::<Slot>()), (16, 8));
        assert_eq!(offset_of!(Slot, handshakes), 8);

        assert_eq!((size_of::<HandshakeKey>(), align_of::<HandshakeKey>()), (32, 8));
        assert_eq!(offset_of!(HandshakeKey, remote_address), 8);
        assert_eq!(offset_of!(HandshakeKey, remote_port), 24);
        assert_eq!(offset_of!(HandshakeKey, local_port), 26);
        assert_eq!(offset_of!(HandshakeKey, pad), 28);

        assert_eq!((size_of::<Note>(), align_of::<Note>()), (24, 4));
        assert_eq!(offset_of!(Note, port), 4);
        assert_eq!(offset_of!(Note, pad), 6);
        assert_eq!(offset_of!(Note, address), 8);
    }

    #[test]
    fn addresses_survive_the_way_there_and_back() {
        for text in ["10.1.2.3", "::1", "fd00::7", "255.255.255.255", "::"] {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(from_bytes(to_bytes(address)), address);
        }
        let mapped: IpAddr = "::ffff:10.1.2.3".parse().unwrap();
        assert_eq!(from_bytes(to_bytes(mapped)), "10.1.2.3".parse::<IpAddr>().unwrap());
    }

    #[test]
    fn counters_are_listed_at_their_index() {
        for (index, (counter, _)) in Counter::ALL.iter().enumerate() {
            assert_eq!(*counter as usize, index);
        }
    }
}
