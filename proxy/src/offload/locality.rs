//! Whether both ends of a flow are on this node.

use std::net::SocketAddr;

use crate::capture::Pods;
use crate::entrance::Entrance;
use crate::socket;
use crate::stream::Stream;

/// Whether one end is on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Near {
    /// It is.
    Yes,
    /// It is not, or is not known to be.
    No,
    /// If the connection to it has one address at both ends. To ask costs a system call, so it is only asked when it matters.
    IfOneAddress,
}

/// Both ends of a flow.
#[derive(Clone, Copy, Debug)]
pub struct Locality {
    /// Who opened it.
    pub client: Near,
    /// Where it goes.
    pub server: Near,
}

impl Locality {
    /// Of a connection from `client` that came in by `entrance` and goes to `destination`.
    pub fn of(entrance: &Entrance, client: SocketAddr, destination: SocketAddr, pods: &Pods) -> Self {
        let own = |address: SocketAddr| match address.ip().is_loopback() {
            true => Near::Yes,
            false => Near::IfOneAddress,
        };
        let server = |otherwise| match pods.at(destination.ip()) {
            Some(_) => Near::Yes,
            None => otherwise,
        };
        let (client, server) = match entrance {
            // What has arrived at a pod may come from anywhere.
            Entrance::Inbound(_) | Entrance::Hbone(_) | Entrance::Waypoint(_) | Entrance::InPlace(_) => {
                (Near::No, Near::No)
            }
            Entrance::Outbound(_) => (Near::Yes, server(Near::No)),
            Entrance::Plain(_) => (own(client), server(own(destination))),
        };
        Self { client, server }
    }

    /// Whether one of them is known to be elsewhere.
    pub fn is_away(&self) -> bool {
        self.client == Near::No || self.server == Near::No
    }

    /// Whether both are here, given the sockets to them and the addresses at their other ends.
    pub fn is_here(&self, client: (&Stream, SocketAddr), server: (&Stream, SocketAddr)) -> bool {
        is_here(self.client, client) && is_here(self.server, server)
    }
}

fn is_here(near: Near, (stream, peer): (&Stream, SocketAddr)) -> bool {
    match near {
        Near::Yes => true,
        Near::No => false,
        Near::IfOneAddress => stream
            .local_address()
            .is_ok_and(|local| socket::canonical(local).ip() == peer.ip()),
    }
}
