//! Who opened a connection.
//!
//! Policy must never see an identity that the peer merely claims. A `Source` can only be made here, from what the kernel
//! says about the connection: the network namespace that a captured socket came from, or, on a plain listener, the peer's address;
//! or from what a TLS handshake has verified. Its fields are private for that reason.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use underpass_certs::VerifiedPeer;
use underpass_config::{Identity, Mesh, NodeSettings, Position, Workload, WorkloadUid};

use crate::hbone::described::Described;

/// The verified origin of one connection.
#[derive(Clone, Debug)]
pub struct Source {
    address: SocketAddr,
    workload: Option<Arc<Workload>>,
    /// Who the peer has shown to be.
    verified: Option<Identity>,
    /// What it says of itself. Only metrics are told.
    described: Option<Arc<Described>>,
    evidence: Evidence,
}

/// What speaks for the workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Evidence {
    /// The peer's address.
    Address,
    /// The network namespace of the peer's socket.
    Capture,
    /// The peer's certificate.
    Certificate,
    /// Nothing that could not be forged.
    None,
}

impl Source {
    /// The workload that owns `peer`'s address in the node's network, if there is one.
    ///
    /// On a plain listener the address is as trustworthy as the network between: the listener is meant for loopback and for
    /// networks that prevent spoofing.
    pub fn by_address(mesh: &Mesh, node: &NodeSettings, peer: SocketAddr) -> Source {
        Source {
            address: peer,
            workload: mesh.workload_at(&node.network, peer.ip()).cloned(),
            verified: None,
            described: None,
            evidence: Evidence::Address,
        }
    }

    /// The pod that is enrolled as the workload `uid`, in whose network namespace the peer's socket is. None if the mesh does not know
    /// that workload.
    ///
    /// An application may bind its socket to any address that it has given to an interface of its pod. Policy and the destination are
    /// told an address that the mesh knows to be the workload's.
    pub fn captured(mesh: &Mesh, uid: &WorkloadUid, peer: SocketAddr) -> Option<Source> {
        let workload = mesh.workload(uid)?.clone();
        let own = &workload.addresses;
        let known = || own.iter().find(|ip| ip.is_ipv4() == peer.is_ipv4()).or(own.first());
        let ip = if own.contains(&peer.ip()) {
            peer.ip()
        } else {
            known().copied().unwrap_or(peer.ip())
        };
        Some(Source {
            address: SocketAddr::new(ip, peer.port()),
            workload: Some(workload),
            verified: None,
            described: None,
            evidence: Evidence::Capture,
        })
    }

    /// The peer of a connection from `address` whose handshake has verified who it is. Its certificate says so and nothing else does: the
    /// workload at its address, which metrics name, is its own only if it has that identity. (Through a gateway it has another's address.)
    pub fn verified(mesh: &Mesh, node: &NodeSettings, peer: &VerifiedPeer, address: SocketAddr) -> Source {
        let identity = peer.identity();
        // Trust domains that are both ours are one; the handshake has let in no other.
        let is_it = |workload: &&Arc<Workload>| {
            let known = &workload.identity;
            (&known.namespace, &known.service_account) == (&identity.namespace, &identity.service_account)
        };
        Source {
            address,
            workload: mesh.workload_at(&node.network, address.ip()).filter(is_it).cloned(),
            verified: Some(identity.clone()),
            described: None,
            evidence: Evidence::Certificate,
        }
    }

    /// A peer of which nothing is known but an address that anyone may have sent from: it is no workload and has no identity.
    pub fn unidentified(peer: SocketAddr) -> Source {
        Source {
            address: peer,
            workload: None,
            verified: None,
            described: None,
            evidence: Evidence::None,
        }
    }

    /// The same connection, judged by a newer snapshot: what a workload is may have changed, who it is may not.
    /// A workload that has gone keeps the identity under which it connected.
    pub fn refreshed(&self, mesh: &Mesh, node: &NodeSettings) -> Source {
        match &self.workload {
            None if self.evidence == Evidence::Address => Source::by_address(mesh, node, self.address),
            None => self.clone(),
            Some(known) => Source {
                workload: Some(mesh.workload(&known.uid).unwrap_or(known).clone()),
                ..self.clone()
            },
        }
    }

    /// The same, of which something is said for metrics.
    pub fn with_description(self, described: Option<Arc<Described>>) -> Source {
        Source { described, ..self }
    }

    /// What it says of itself, which nothing proves.
    pub fn described(&self) -> Option<&Arc<Described>> {
        self.described.as_ref()
    }

    /// The peer's address and port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The peer's IP address.
    pub fn ip(&self) -> IpAddr {
        self.address.ip()
    }

    /// The workload, when the mesh knows one at this address.
    pub fn workload(&self) -> Option<&Arc<Workload>> {
        self.workload.as_ref()
    }

    /// The identity that policy decides about.
    pub fn identity(&self) -> Option<&Identity> {
        let of_workload = || self.workload.as_deref().map(|w| &w.identity);
        self.verified.as_ref().or_else(of_workload)
    }

    /// Where the client is, for locality-aware balancing; an unknown client is taken to be on this node.
    pub fn position(&self, node: &NodeSettings) -> Position {
        match &self.workload {
            Some(workload) => Position::of(workload),
            None => Position {
                network: node.network.clone(),
                cluster_id: node.cluster_id.clone(),
                locality: node.locality.clone(),
                node: node.name.clone(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use underpass_config::Config;

    use super::*;

    #[test]
    fn a_captured_source_has_an_address_of_its_workload_whatever_its_socket_is_bound_to() {
        let yaml = "workloads:\n- {uid: u, name: a, namespace: x, addresses: [10.0.0.1, 10.0.0.2, \"fd00::1\"]}\n";
        let mesh = Config::from_yaml(yaml).unwrap().mesh;
        let address = |peer: &str| {
            let source = Source::captured(&mesh, &WorkloadUid::new("u"), peer.parse().unwrap()).unwrap();
            source.address().to_string()
        };
        assert_eq!(address("10.0.0.2:7"), "10.0.0.2:7");
        assert_eq!(address("10.9.9.9:7"), "10.0.0.1:7");
        assert_eq!(address("127.0.0.1:7"), "10.0.0.1:7");
        assert_eq!(address("[fe80::1]:7"), "[fd00::1]:7");
        assert!(Source::captured(&mesh, &WorkloadUid::new("v"), "10.0.0.1:7".parse().unwrap()).is_none());
    }

    #[test]
    fn an_unidentified_source_stays_so_whatever_the_mesh_learns() {
        let config = Config::from_yaml("workloads:\n- {name: a, namespace: x, addresses: [10.0.0.1]}\n").unwrap();
        let source = Source::unidentified("10.0.0.1:7".parse().unwrap());
        let later = source.refreshed(&config.mesh, &config.node);
        assert!(later.workload().is_none() && later.identity().is_none());
    }
}
