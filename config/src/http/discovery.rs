//! Endpoints that are known by name (`Cluster.DiscoveryType` `STRICT_DNS` and `LOGICAL_DNS`).

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::{EndpointSettings, Labels, Reach};
use crate::Text;

/// Where a cluster's endpoints come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Discovery {
    /// Their addresses are in the configuration.
    #[default]
    Static,
    /// DNS has them.
    Dns(DnsDiscovery),
    /// Where a connection was going is its endpoint, reached like this (`ORIGINAL_DST`).
    Original(Reach),
    /// The host that a request is for is its endpoint (`envoy.clusters.dynamic_forward_proxy`).
    Host(HostDiscovery),
}

impl Discovery {
    /// Whether the cluster has no endpoints of its own: each is made when it is asked for.
    pub fn is_made(&self) -> bool {
        matches!(self, Self::Original(_) | Self::Host(_))
    }
}

/// How the hosts that requests are for are found. What DNS answers holds as long as it says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct HostDiscovery {
    /// Which of a host's addresses count.
    pub family: DnsFamily,
    /// Who is asked. None: those that the system asks, after its hosts file.
    pub servers: Vec<SocketAddr>,
}

/// What is asked of DNS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsDiscovery {
    /// What becomes of answers.
    pub kind: DnsKind,
    /// Which of their addresses count.
    pub family: DnsFamily,
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
            Some(name.endpoint(endpoint.address))
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

/// Which of a name's addresses count (`dns_lookup_family`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum DnsFamily {
    /// Those of IPv6; where there are none, those of IPv4. Envoy's default.
    #[default]
    Auto,
    /// Those of IPv4.
    V4Only,
    /// Those of IPv6.
    V6Only,
    /// Those of IPv4; where there are none, those of IPv6.
    V4Preferred,
    /// All; of a logical cluster, one of IPv6 first.
    All,
}

impl DnsFamily {
    /// Whether addresses of IPv6 are asked for, and of IPv4.
    pub fn asks(self) -> [bool; 2] {
        [self != Self::V4Only, self != Self::V6Only]
    }

    /// Those that count of what is known of IPv6 and of IPv4.
    pub fn chosen(self, [v6, v4]: [&[IpAddr]; 2]) -> [&[IpAddr]; 2] {
        match self {
            Self::V4Only => [v4, &[]],
            Self::V6Only => [v6, &[]],
            Self::Auto if v6.is_empty() => [v4, &[]],
            Self::Auto => [v6, &[]],
            Self::V4Preferred if v4.is_empty() => [v6, &[]],
            Self::V4Preferred => [v4, &[]],
            Self::All => [v6, v4],
        }
    }
}

/// A name whose addresses are endpoints. What is said of it is said of each of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedEndpoint {
    /// The name, or an address, which stands for itself.
    pub host: Text,
    /// Their port.
    pub port: u16,
    /// The weight of each.
    pub weight: u32,
    /// The priority of each.
    pub priority: u32,
    /// The locality of each; may be empty.
    pub locality: Text,
    /// The labels of each.
    pub labels: Labels,
}

impl NamedEndpoint {
    /// The endpoint at one of its addresses.
    pub fn endpoint(&self, address: SocketAddr) -> EndpointSettings {
        EndpointSettings {
            address,
            host: Some(self.host.clone()),
            weight: self.weight,
            priority: self.priority,
            locality: self.locality.clone(),
            labels: self.labels.clone(),
            is_well: true,
            reach: Reach::Direct,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_chosen_as_envoy_documents_it() {
        let (v6, v4): (IpAddr, IpAddr) = ("fd00::1".parse().unwrap(), "10.0.0.1".parse().unwrap());
        for (family, both, only_v6, only_v4) in [
            (DnsFamily::Auto, &[v6][..], &[v6][..], &[v4][..]),
            (DnsFamily::V4Only, &[v4], &[], &[v4]),
            (DnsFamily::V6Only, &[v6], &[v6], &[]),
            (DnsFamily::V4Preferred, &[v4], &[v6], &[v4]),
            (DnsFamily::All, &[v6, v4], &[v6], &[v4]),
        ] {
            let chosen = |v6: &[IpAddr], v4: &[IpAddr]| family.chosen([v6, v4]).concat();
            assert_eq!(chosen(&[v6], &[v4]), both, "{family:?}");
            assert_eq!(chosen(&[v6], &[]), only_v6, "{family:?}");
            assert_eq!(chosen(&[], &[v4]), only_v4, "{family:?}");
        }
    }
}
