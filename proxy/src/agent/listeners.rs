//! The listening sockets that a pod's connections are led to, and sockets for the proxy's own connections.
//!
//! Everything here is done inside the pod's namespace. The sockets are the agent's: a proxy that comes later takes up the same
//! queues, and with the last copy of a listener its queue is reset.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use socket2::SockRef;
use underpass_config::Keepalive;

use super::interfaces::is_bindable;
use crate::handover::Family;
use crate::socket;

/// Where a pod's own connections are led to, unless the pod itself has taken that port.
const OUTBOUND_PORT: u16 = 15001;

/// Where connections to a pod are steered to, on its loopback, unless the pod itself has taken that port.
const INBOUND_PORT: u16 = 15006;

/// A listening socket.
#[derive(Debug)]
pub struct Listener {
    /// Where it listens.
    pub address: SocketAddr,
    /// The socket.
    pub socket: OwnedFd,
}

/// A pod's listeners, at most one of each family and direction.
#[derive(Debug)]
pub struct Listeners {
    /// For connections that the pod opens.
    pub outbound: Vec<Listener>,
    /// For connections to the pod.
    pub inbound: Vec<Listener>,
}

impl Listeners {
    /// Opens the listeners of a pod with these addresses, the ones to listen on first.
    ///
    /// # Errors
    /// Those of socket(2), bind(2) and listen(2).
    pub fn open(addresses: &[IpAddr], keepalive: &Keepalive) -> io::Result<Self> {
        let mut listeners = Self {
            outbound: Vec::new(),
            inbound: Vec::new(),
        };
        for family in FAMILIES {
            let Some(address) = first(addresses, family) else {
                continue;
            };
            let outbound = SocketAddr::new(address, OUTBOUND_PORT);
            let inbound = SocketAddr::new(loopback(family), INBOUND_PORT);
            listeners.outbound.push(listen_there_or_elsewhere(outbound, keepalive)?);
            listeners.inbound.push(listen_there_or_elsewhere(inbound, keepalive)?);
        }
        Ok(listeners)
    }

    /// Whether they are where those of a pod with these addresses would be.
    pub fn suit(&self, addresses: &[IpAddr]) -> bool {
        let mut listening = self.outbound.iter().map(|listener| listener.address.ip());
        let mut wanted = FAMILIES.into_iter().filter_map(|family| first(addresses, family));
        wanted.by_ref().eq(listening.by_ref())
    }

    /// The sockets in the order in which they are told to a proxy.
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let all = self.outbound.iter().chain(&self.inbound);
        all.map(|listener| listener.socket.as_fd()).collect()
    }

    /// Listeners that came with a message that names them.
    pub fn received(outbound: Vec<SocketAddr>, inbound: Vec<SocketAddr>, sockets: Vec<OwnedFd>) -> Option<Self> {
        if sockets.len() != outbound.len() + inbound.len() {
            return None;
        }
        let mut sockets = sockets.into_iter();
        let mut take = |addresses: Vec<SocketAddr>| {
            let pairs = addresses.into_iter().zip(sockets.by_ref());
            pairs.map(|(address, socket)| Listener { address, socket }).collect()
        };
        Some(Self {
            outbound: take(outbound),
            inbound: take(inbound),
        })
    }

    /// Where the pod's own connections arrive.
    pub fn outbound_addresses(&self) -> Vec<SocketAddr> {
        self.outbound.iter().map(|listener| listener.address).collect()
    }

    /// Where connections to the pod are steered to.
    pub fn inbound_addresses(&self) -> Vec<SocketAddr> {
        self.inbound.iter().map(|listener| listener.address).collect()
    }
}

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// The address that a pod's sockets of a family are bound to.
fn first(addresses: &[IpAddr], family: Family) -> Option<IpAddr> {
    let mut suitable = addresses.iter().copied().filter(|address| is_bindable(*address));
    suitable.find(|address| Family::of(*address) == family)
}

fn loopback(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::LOCALHOST.into(),
        Family::V6 => Ipv6Addr::LOCALHOST.into(),
    }
}

fn listen_there_or_elsewhere(address: SocketAddr, keepalive: &Keepalive) -> io::Result<Listener> {
    match listen(address, keepalive) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => listen(SocketAddr::new(address.ip(), 0), keepalive),
        outcome => outcome,
    }
}

/// Unlike the proxy's own listeners these never share their port (no `SO_REUSEADDR`): who else could listen there would receive
/// what is meant for the proxy.
fn listen(address: SocketAddr, keepalive: &Keepalive) -> io::Result<Listener> {
    let listener = socket::tcp_socket(address)?;
    let options = SockRef::from(&listener);
    if address.is_ipv6() {
        options.set_only_v6(true)?;
        // An address whose duplicate detection is under way cannot be bound otherwise.
        options.set_freebind_v6(true)?;
    }
    socket::set_stream_options(&listener)?;
    socket::set_keepalive(&listener, keepalive)?;
    rustix::net::bind(&listener, &address)?;
    options.set_tcp_mss(socket::LARGEST_SEGMENT)?;
    rustix::net::listen(&listener, socket::BACKLOG)?;
    let address = options.local_addr()?.as_socket();
    Ok(Listener {
        address: address.ok_or_else(|| io::Error::from(Errno::AFNOSUPPORT))?,
        socket: listener,
    })
}

/// `count` unconnected sockets of the namespace that the calling thread is in.
///
/// # Errors
/// Those of socket(2).
pub fn sockets(family: Family, count: usize) -> io::Result<Vec<OwnedFd>> {
    let address = SocketAddr::new(loopback(family), 0);
    (0..count).map(|_| socket::tcp_socket(address)).collect()
}
