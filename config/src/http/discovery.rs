//! Endpoints that are known by name (`Cluster.DiscoveryType` `STRICT_DNS` and `LOGICAL_DNS`).

use std::net::SocketAddr;
use std::time::Duration;

use super::EndpointSettings;
use crate::Text;

/// Where a cluster's endpoints come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Discovery {
    /// Their addresses are in the configuration.
    #[default]
    Static,
    /// DNS has them.
    Dns(DnsDiscovery),
}

/// What is asked of DNS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsDiscovery {
    /// What becomes of answers.
    pub kind: DnsKind,
    /// The names.
    pub names: Vec<NamedEndpoint>,
    /// How often it is asked where answers don't say how long they hold, or are not asked for that; and after a failure. Default 5 s, Envoy's.
    pub refresh: Duration,
    /// Whether answers hold as long as they say (`respect_dns_ttl`, which istiod sets). Default: yes.
    pub holds_for_ttl: bool,
    /// Who is asked. None: those that the system asks, after its hosts file.
    pub servers: Vec<SocketAddr>,
}

impl DnsDiscovery {
    /// Default of [`DnsDiscovery::refresh`].
    pub const REFRESH: Duration = Duration::from_secs(5);

    /// Those of `known` that DNS was asked for by names that are still asked for: what was answered holds until it is answered anew.
    pub(super) fn still_named(&self, known: &[EndpointSettings]) -> Vec<EndpointSettings> {
        let still = known.iter().filter_map(|endpoint| {
            let of = |name: &&NamedEndpoint| {
                Some(&name.host) == endpoint.host.as_ref() && name.port == endpoint.address.port()
            };
            let name = self.names.iter().find(of)?;
            Some(EndpointSettings {
                weight: name.weight,
                ..endpoint.clone()
            })
        });
        still.collect()
    }
}

/// What becomes of the addresses of a name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DnsKind {
    /// Each is an endpoint.
    #[default]
    Strict,
    /// The first is the endpoint: for names of services that answer with another choice of their addresses each time.
    Logical,
}

/// A name whose addresses are endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedEndpoint {
    /// The name, or an address.
    pub host: Text,
    /// The port.
    pub port: u16,
    /// Each address's share, from 1 on.
    pub weight: u32,
}
