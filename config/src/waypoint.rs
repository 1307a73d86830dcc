//! What a waypoint serves: where a connection was going leads to a chain, and the chain to clusters.
//!
//! **One idea.** This is what istiod's listeners *mean*; how Envoy wires it is not here. A service and port has a [`Chain`]: routes and filters of HTTP, or
//! clusters and rules of TCP, in the types that a listener of the file has as well. Each is independent of the others: what is not understood of one
//! closes that one.

mod place;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

pub use place::{Going, Lead, Place, Places};

use crate::http::{
    ClusterSettings, DnsFamily, EndpointSettings, Labels, MetricSettings, ProxyProtocol, Rbac, RouteTable, UpstreamTls,
};
use crate::{RequestLog, Text};

/// What becomes of the connections that are led to one name.
#[derive(Debug)]
pub enum Chain {
    /// Their requests go through a table.
    Http(HttpChain),
    /// They are carried as they are.
    Tcp(TcpChain),
}

impl Chain {
    /// The clusters that it may lead to.
    pub fn clusters<'c>(&'c self, found: &mut dyn FnMut(&'c Text)) {
        match self {
            Self::Http(http) => http.table.clusters(found),
            Self::Tcp(tcp) => tcp.clusters.iter().for_each(|weighted| found(&weighted.cluster)),
        }
    }

    /// Takes over what `before` has counted, which it is in the place of. Nobody is served by it yet.
    pub fn continues(&mut self, before: &Self) {
        if let (Self::Http(new), Self::Http(old)) = (self, before)
            && let Some(table) = Arc::get_mut(&mut new.table)
        {
            table.continues(&old.table);
        }
    }
}

/// A service that speaks HTTP.
#[derive(Debug)]
pub struct HttpChain {
    /// Its routes, filters, metrics, spans and logs.
    pub table: Arc<RouteTable>,
    /// Where requests go by the name that they are for: its cluster asks DNS for it. None: its clusters know their endpoints.
    pub dynamic: Option<DynamicNames>,
    /// Where a connection was going whose tunnel named the service: its own address. None: that is not said.
    pub destination: Option<SocketAddr>,
}

/// A service of which nothing is known above TCP.
#[derive(Debug)]
pub struct TcpChain {
    /// Where connections go; at least one has a weight.
    pub clusters: Vec<TcpCluster>,
    /// Whether the client's address decides which endpoint one goes to, where the cluster goes by that.
    pub by_source: bool,
    /// Rules that each goes through, in their order. None asks for a request.
    pub rules: Vec<Rbac>,
    /// How long no byte may move; none: no limit. Default 1 h, Envoy's.
    pub idle_timeout: Option<Duration>,
    /// How long it may be open; none: no limit.
    pub max_duration: Option<Duration>,
    /// Where what a client speaks decides between this and a chain of HTTP: how long that may be open; then it is taken not to speak HTTP, so that a server
    /// may speak first. Zero: only what the client says decides. Default 15 s: Envoy's `listener_filters_timeout`, which istiod leaves as it is. (Envoy ends the
    /// connection then, which is no answer to a server that speaks first.)
    pub detection_timeout: Duration,
    /// What it is counted by.
    pub metrics: Arc<MetricSettings>,
    /// How often an open connection is counted; none: Istio's 5 s.
    pub reporting_interval: Option<Duration>,
    /// Its access logs; none: it has none.
    pub logs: Option<Arc<Vec<RequestLog>>>,
    /// Where it goes by the name that its client asks TLS for, at this port.
    pub dynamic: Option<(DynamicNames, u16)>,
    /// Where a connection was going whose tunnel named the service: its own address. None: that is not said.
    pub destination: Option<SocketAddr>,
}

impl TcpChain {
    /// Envoy's `idle_timeout` of `TcpProxy`.
    pub const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);

    /// Default of [`TcpChain::detection_timeout`].
    pub const DETECTION_TIMEOUT: Duration = Duration::from_secs(15);

    /// The cluster for a connection; `random` is any number, which leads to the same one as long as the chain says the same. None: no cluster has a weight.
    pub fn choose(&self, random: u32) -> Option<&TcpCluster> {
        let total: u64 = self.clusters.iter().map(|cluster| u64::from(cluster.weight)).sum();
        let mut point = u64::from(random).checked_rem(total)?;
        self.clusters.iter().find(|cluster| {
            let is_it = point < u64::from(cluster.weight);
            point = point.saturating_sub(cluster.weight.into());
            is_it
        })
    }
}

/// The name that stands, in routes and in [`TcpCluster`]s, for the workload that a connection was going to: it goes on there. Istio's name for how
/// that is wired.
pub const ORIGINAL_WORKLOAD: &str = "encap";

/// One of the clusters that a TCP chain leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpCluster {
    /// Its name.
    pub cluster: Text,
    /// Its share, of the sum of all.
    pub weight: u32,
}

/// Names that are asked for when somebody wants them (Envoy's dynamic forward proxy, which Istio has wildcard hosts of a `ServiceEntry` go through).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DynamicNames {
    /// Which of a name's addresses count.
    pub family: DnsFamily,
}

/// A cluster, as far as it says itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaypointCluster {
    /// All but its endpoints, what is below HTTP, and what its localities weigh.
    pub settings: ClusterSettings,
    /// Where its endpoints come from.
    pub source: EndpointSource,
    /// Whether localities get what they weigh.
    pub weighs_localities: bool,
    /// What is between TCP and HTTP, by what an endpoint says of itself: the first whose labels it has.
    pub transports: Vec<(Labels, EndpointTransport)>,
}

/// Where a cluster's endpoints come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndpointSource {
    /// Another resource, of this name.
    Named(Text),
    /// The cluster itself: addresses, or names as [`ClusterSettings::discovery`] says.
    Here,
    /// Where the connection was going is the endpoint (`ORIGINAL_DST`).
    Original,
    /// The name that a request or a connection is for has it.
    Dynamic(DynamicNames),
}

/// What is between TCP and HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndpointTransport {
    /// This, by itself or in the endpoint's tunnel.
    Known {
        /// TLS, as its client.
        tls: Option<UpstreamTls>,
        /// Who the client is, before it.
        proxy_protocol: Option<ProxyProtocol>,
    },
    /// The mutual TLS of Istio's sidecars, without HBONE: there is nothing here that speaks it.
    Sidecar,
}

/// The endpoints of one name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointSet {
    /// The endpoints.
    pub endpoints: Vec<WaypointEndpoint>,
    /// What localities weigh, in the order in which they came.
    pub localities: Vec<(Text, u32)>,
}

/// One endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaypointEndpoint {
    /// Its address, and what is said of it.
    pub settings: EndpointSettings,
    /// What transports are chosen by.
    pub transport: Labels,
    /// Whose it is, for metrics: `workload;namespace;canonical name;canonical revision;cluster`, as istiod writes it; may be empty. Who may be there, by its
    /// certificate, is not said here: workloads say that.
    pub workload: Text,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::MetricSettings;

    #[test]
    fn each_cluster_gets_its_share_and_one_without_a_weight_gets_nothing() {
        let cluster = |(name, weight): (&str, u32)| TcpCluster {
            cluster: name.into(),
            weight,
        };
        let chain = |clusters: &[(&str, u32)]| TcpChain {
            clusters: clusters.iter().copied().map(cluster).collect(),
            by_source: false,
            rules: Vec::new(),
            idle_timeout: None,
            max_duration: None,
            detection_timeout: TcpChain::DETECTION_TIMEOUT,
            metrics: MetricSettings::unsaid(),
            reporting_interval: None,
            logs: None,
            dynamic: None,
            destination: None,
        };
        let shared = chain(&[("a", 1), ("never", 0), ("b", 3)]);
        let chosen = |number: u32| shared.choose(number).map(|cluster| &*cluster.cluster);
        let all: Vec<_> = (4..8).filter_map(chosen).collect();
        assert_eq!(all, ["a", "b", "b", "b"]);
        assert_eq!(chain(&[("never", 0)]).choose(1), None);
        assert_eq!(chain(&[]).choose(1), None);
    }
}
