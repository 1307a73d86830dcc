//! istiod, as the configuration file names it: where it is, how it is known, and who this node says it is.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

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
        }
    }
}
