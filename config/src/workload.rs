//! A workload: something with addresses and an identity, that opens and accepts connections. Field for field what
//! Istio's `Workload` says (`pkg/workloadapi/workload.proto`), as far as the proxy uses it.

use std::net::IpAddr;

use serde::Serialize;

use crate::{Gateway, Identity, PolicyKey, ServiceKey, Text, WorkloadUid};

/// A pod, a virtual machine, or an entry that stands for one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Workload {
    /// Its name in the whole mesh.
    pub uid: WorkloadUid,
    /// Its name in its namespace, usually the pod's.
    pub name: Text,
    /// Its namespace.
    pub namespace: Text,
    /// The identity it runs as.
    pub identity: Identity,
    /// Its own addresses, IPv4 and IPv6, on [`network`](Self::network).
    pub addresses: Box<[IpAddr]>,
    /// Whose these addresses are.
    pub network_mode: NetworkMode,
    /// The host name to resolve instead, if it has no addresses; else empty.
    pub hostname: Text,
    /// The node it runs on.
    pub node: Text,
    /// The network on which its addresses are meaningful; empty is the default network.
    pub network: Text,
    /// The cluster it belongs to.
    pub cluster_id: Text,
    /// Where it runs.
    pub locality: Locality,
    /// Whether it may be sent new connections.
    pub health: Health,
    /// How it wants to be reached.
    pub tunnel_protocol: TunnelProtocol,
    /// How an HBONE stream to it goes on to the application, if not to the port it names.
    pub application_tunnel: Option<ApplicationTunnel>,
    /// Where traffic to one of its own addresses goes first.
    pub waypoint: Option<Box<Gateway>>,
    /// The gateway through which it is reached from other networks.
    pub network_gateway: Option<Box<Gateway>>,
    /// Istio's canonical service name, for telemetry.
    pub canonical_name: Text,
    /// Istio's canonical revision, for telemetry.
    pub canonical_revision: Text,
    /// The name of what created it, such as its Deployment.
    pub workload_name: Text,
    /// The kind of what [`workload_name`](Self::workload_name) names.
    pub workload_type: WorkloadType,
    /// Policies that guard it by selector. A key the mesh does not know denies every connection.
    pub authorization_policies: Box<[PolicyKey]>,
    /// The services it is an endpoint of, at most once each.
    pub services: Box<[Membership]>,
}

/// Where something runs. Unknown parts are empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Locality {
    /// For example `eu-west-1`.
    pub region: Text,
    /// A zone of that region.
    pub zone: Text,
    /// A part of that zone.
    pub subzone: Text,
}

/// Whether a workload may be sent new connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Health {
    /// Ready.
    #[default]
    Healthy,
    /// Not ready. It keeps its identity and policies, and may still open connections.
    Unhealthy,
}

/// How a workload wants to be reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum TunnelProtocol {
    /// Plain TCP.
    #[default]
    None,
    /// HTTP/2 CONNECT over mTLS on port 15008.
    Hbone,
}

/// Whose a workload's addresses are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetworkMode {
    /// Its own.
    #[default]
    Standard,
    /// The node's, shared with every other such workload: an address does not tell who it is.
    HostNetwork,
}

/// How a workload takes the streams that reach it over HBONE: all on one port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct ApplicationTunnel {
    /// The port; 0 is the one that the stream names.
    pub port: u16,
    /// Whether each begins with a PROXY protocol header.
    pub proxy_protocol: bool,
}

/// The kind of object that created a workload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkloadType {
    /// A Deployment, or anything like it.
    Deployment,
    /// A CronJob.
    CronJob,
    /// The pod itself.
    #[default]
    Pod,
    /// A Job.
    Job,
}

/// That a workload is an endpoint of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Membership {
    /// The service. It may be one the mesh does not know (yet).
    pub service: ServiceKey,
    /// This endpoint's own target ports; a port not listed has the service's. See
    /// [`Endpoint::target_port`](crate::Endpoint::target_port).
    pub ports: Box<[PortMapping]>,
}

/// Where connections to one port of a service go on an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct PortMapping {
    /// The port that clients connect to.
    pub service_port: u16,
    /// The port that the endpoint listens on; 0 (Istio's "not resolved") is none.
    pub target_port: u16,
}
