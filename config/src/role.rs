//! What a node's proxy is to the mesh.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use serde::Serialize;

/// Decides what a configuration means where it says nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// A proxy that does what its configuration says, and no more.
    #[default]
    Standalone,
    /// The data plane of a node's pods, in the place of Istio's ztunnel: pods are captured, and metrics and readiness are on ztunnel's ports
    /// for whoever asks.
    Node,
    /// A waypoint: it takes tunnels for the services that it stands before, and is told of them by istiod; metrics and readiness are on the ports of Istio's.
    Waypoint,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Standalone, Self::Node, Self::Waypoint];

    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Standalone => "standalone",
            Self::Node => "node",
            Self::Waypoint => "waypoint",
        }
    }

    /// Where metrics are by default.
    pub(crate) fn metrics(self) -> Option<SocketAddr> {
        self.public(15020)
    }

    /// Where readiness is by default.
    pub(crate) fn readiness(self) -> Option<SocketAddr> {
        self.public(15021)
    }

    fn public(self, port: u16) -> Option<SocketAddr> {
        let everywhere = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
        (self != Self::Standalone).then_some(SocketAddr::new(everywhere, port))
    }
}
