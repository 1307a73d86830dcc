//! A service as it is declared: its names, virtual addresses and ports, and how its endpoints are to be chosen. What it
//! is at the moment, endpoints included, is [`ServiceState`](crate::ServiceState).

use std::net::IpAddr;

use serde::Serialize;

use crate::{Gateway, Identity, ServiceKey, Text};

/// The declaration of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Service {
    /// Its name in the whole mesh.
    pub key: ServiceKey,
    /// Its name in its namespace.
    pub name: Text,
    /// Its namespace.
    pub namespace: Text,
    /// The host name that clients use.
    pub hostname: Text,
    /// Its virtual addresses; none for a headless service.
    pub vips: Box<[Vip]>,
    /// Its ports.
    pub ports: Box<[ServicePort]>,
    /// How its endpoints are chosen.
    pub load_balancing: LoadBalancing,
    /// Where traffic to it goes first.
    pub waypoint: Option<Box<Gateway>>,
    /// Whom its endpoints may be, beside the identity that each has as a workload.
    pub subject_alt_names: Box<[Identity]>,
}

impl Service {
    /// The declaration of `port`, if the service has it.
    pub fn port(&self, port: u16) -> Option<&ServicePort> {
        self.ports.iter().find(|declared| declared.port == port)
    }
}

/// A virtual address on a network.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Vip {
    /// The network it is an address of; empty is the default network.
    pub network: Text,
    /// The address.
    pub address: IpAddr,
}

/// A port of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ServicePort {
    /// The port that clients connect to.
    pub port: u16,
    /// The port that endpoints listen on, unless they say otherwise; 0 (a named port) means that they must.
    pub target_port: u16,
    /// What is spoken on it.
    pub app_protocol: AppProtocol,
}

/// The declared application protocol of a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AppProtocol {
    /// Not declared.
    #[default]
    Unknown,
    /// HTTP/1.1, in plain text.
    #[serde(rename = "http")]
    Http11,
    /// HTTP/2, in plain text.
    Http2,
    /// gRPC, in plain text.
    Grpc,
    /// Bytes.
    Tcp,
    /// TLS that the applications terminate themselves.
    Tls,
}

/// How endpoints are chosen for a client. The default takes any healthy one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LoadBalancing {
    /// What should be the same for client and endpoint, most important first (Istio's `routing_preference`).
    pub scopes: Box<[Scope]>,
    /// How strictly.
    pub mode: BalanceMode,
    /// Whether unhealthy endpoints count.
    pub health: HealthPolicy,
}

/// Something that a client and an endpoint may have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// The region.
    Region,
    /// The zone.
    Zone,
    /// The subzone.
    Subzone,
    /// The node.
    Node,
    /// The cluster.
    Cluster,
    /// The network.
    Network,
}

/// What [`LoadBalancing::scopes`] demand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BalanceMode {
    /// Nothing: all endpoints are alike.
    #[default]
    Any,
    /// Only endpoints for which every scope is the same.
    Strict,
    /// The endpoints with the longest run of scopes, from the first, that are the same.
    Failover,
    /// The address that the client dialled is the endpoint. Only a client that named nothing but the host is given
    /// one, and then any.
    Passthrough,
}

/// Which endpoints may be sent connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum HealthPolicy {
    /// Only healthy ones.
    #[default]
    OnlyHealthy,
    /// All (Kubernetes' `publishNotReadyAddresses`).
    AllowAll,
}
