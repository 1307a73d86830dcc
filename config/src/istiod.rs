//! istiod, as the configuration file names it: where it is, how it is known, and who this node says it is.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use crate::http::UpstreamHbone;
use crate::settings::as_written;
use crate::{Destination, Text};

/// How istiod is reached. With it the mesh comes from there, and the file has no workloads, services and policies: two
/// sources that disagree on whose an address is, or on whether a policy exists, would have to be weighed against each
/// other, and the loser would be in force nowhere without anybody being told. Read at the start; a change needs a
/// restart. The files themselves may be replaced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct IstiodSettings {
    /// Its host and port; always TLS. Default `istiod.istio-system.svc:15012`.
    pub address: Destination,
    /// The file with the roots that vouch for it, as PEM. Default `/var/run/secrets/istio/root-cert.pem`.
    pub roots: PathBuf,
    /// The name that its certificate must have. Default: the host of `address`.
    pub server_name: Option<Text>,
    /// The file with the token that says who we are; read anew for each connection. Default
    /// `/var/run/secrets/tokens/istio-token`.
    pub token: PathBuf,
    /// The namespace whose policies may guard the whole mesh. Default `istio-system`.
    pub root_namespace: Text,
    /// The name of the pod that this proxy is. Default `underpass`.
    pub pod: Text,
    /// That pod's namespace, which must be the token's. Default `istio-system`.
    pub namespace: Text,
    /// That pod's address, by which istiod names the connection. Default 127.0.0.1.
    pub pod_ip: IpAddr,
    /// The token's service account; istiod refuses any other. Default: not said.
    pub service_account: Option<Text>,
    /// How long a connection to it may take to be made. Default 5 s.
    #[serde(serialize_with = "as_written")]
    pub connect_timeout: Duration,
    /// How long a workload waits for a policy that it refers to and that has not come yet, before it denies everybody.
    /// Default 500 ms.
    #[serde(serialize_with = "as_written")]
    pub policy_grace: Duration,
    /// What this proxy is a waypoint of, beside what else it is; none: it is none. Default: none, but in the role `waypoint`.
    pub waypoint: Option<WaypointSettings>,
}

/// A proxy that serves what istiod sends a waypoint: tables and clusters come from there, and the file has none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WaypointSettings {
    /// The `Gateway` that it belongs to, as its pod's label `gateway.networking.k8s.io/gateway-name` says. Default `waypoint`.
    pub gateway: Text,
    /// Where it takes tunnels. Default `[::]:15008`.
    pub address: SocketAddr,
    /// How long a route waits for the endpoints of what it leads to, and a cluster that is gone for the routes that lead to it, before what is there counts.
    /// Default 500 ms.
    #[serde(serialize_with = "as_written")]
    pub grace: Duration,
}

impl Default for WaypointSettings {
    fn default() -> Self {
        Self {
            gateway: "waypoint".into(),
            address: SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), UpstreamHbone::PORT),
            grace: Duration::from_millis(500),
        }
    }
}

impl Default for IstiodSettings {
    fn default() -> Self {
        Self {
            address: Destination::Host {
                host: "istiod.istio-system.svc".into(),
                port: 15012,
            },
            roots: "/var/run/secrets/istio/root-cert.pem".into(),
            server_name: None,
            token: "/var/run/secrets/tokens/istio-token".into(),
            root_namespace: "istio-system".into(),
            pod: "underpass".into(),
            namespace: "istio-system".into(),
            pod_ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
            service_account: None,
            connect_timeout: Duration::from_secs(5),
            policy_grace: Duration::from_millis(500),
            waypoint: None,
        }
    }
}
