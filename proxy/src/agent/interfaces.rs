//! The interfaces of the namespace that the calling thread is in.

use std::io;
use std::net::{IpAddr, Ipv6Addr};

use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkFlags, LinkMessage};
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;

use super::netlink::{Conversation, ROUTE};

/// The addresses of this namespace's interfaces, best first: IPv4 before IPv6, and in each family those that others may reach
/// before those of loopback devices and link-local ones. `127.0.0.0/8` and `::1` are no addresses of a pod.
///
/// # Errors
/// Those of getifaddrs(3).
pub fn addresses() -> io::Result<Vec<IpAddr>> {
    let mut found: Vec<((bool, u8), IpAddr)> = Vec::new();
    for interface in getifaddrs()? {
        let Some(address) = interface.address.as_ref().and_then(ip_address) else {
            continue;
        };
        if address.is_loopback() || found.iter().any(|(_, known)| *known == address) {
            continue;
        }
        let rank = match interface.flags.contains(InterfaceFlags::IFF_LOOPBACK) {
            _ if is_link_local(address) => 2,
            true => 1,
            false => 0,
        };
        found.push(((address.is_ipv6(), rank), address));
    }
    found.sort_by_key(|(rank, _)| *rank);
    Ok(found.into_iter().map(|(_, address)| address).collect())
}

fn ip_address(address: &nix::sys::socket::SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
}

/// Whether an address means something on one link only.
fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

/// Whether a socket can be bound to an address and reached without naming the link.
pub fn is_bindable(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(_) => true,
        IpAddr::V6(address) => !Ipv6Addr::is_unicast_link_local(&address),
    }
}

/// Brings the loopback device up if it is down: the inbound listeners are on it.
///
/// # Errors
/// When the device cannot be looked at or changed.
pub fn bring_loopback_up() -> io::Result<()> {
    let is_up = |flags: InterfaceFlags| flags.contains(InterfaceFlags::IFF_LOOPBACK | InterfaceFlags::IFF_UP);
    if getifaddrs()?.any(|interface| is_up(interface.flags)) {
        return Ok(());
    }
    let mut up = LinkMessage::default();
    // The kernel gives every namespace's loopback device the first index (LOOPBACK_IFINDEX).
    up.header.index = 1;
    up.header.flags = LinkFlags::Up;
    up.header.change_mask = LinkFlags::Up;
    Conversation::start(ROUTE)?.ask(RouteNetlinkMessage::SetLink(up), NLM_F_REQUEST | NLM_F_ACK)
}
