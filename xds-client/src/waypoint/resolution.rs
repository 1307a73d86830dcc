//! A cluster and its endpoints, together: what of them is served, and by which way each is reached. And the cluster that istiod's routes name without telling what it
//! means: the workload that a connection was going to.

use std::sync::Arc;
use std::time::Duration;

use underpass_config::Text;
use underpass_config::http::{
    Breakers, ClusterSettings, Discovery, EndpointSettings, HostDiscovery, Reach, Retries, Transport, UpstreamProtocol,
};
use underpass_config::waypoint::{
    DynamicNames, EndpointSet, EndpointSource, EndpointTransport, ORIGINAL_WORKLOAD, WaypointCluster,
};

use super::refusal::Untranslated;

/// A cluster with its endpoints.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// What is said of it. Endpoints that DNS has come later.
    pub settings: ClusterSettings,
    /// Endpoints that are left out, and why.
    pub left_out: Vec<Untranslated>,
}

/// Puts a cluster and its endpoints together. Its endpoints have one transport here: what differs from that of most is left out.
pub fn resolve(cluster: &WaypointCluster, endpoints: Option<&EndpointSet>) -> Resolved {
    let mut settings = cluster.settings.clone();
    match cluster.source {
        EndpointSource::Original => settings.discovery = Discovery::Original(Reach::Direct),
        EndpointSource::Dynamic(DynamicNames { family }) => {
            let servers = Vec::new();
            settings.discovery = Discovery::Host(HostDiscovery { family, servers });
        }
        EndpointSource::Named(_) | EndpointSource::Here => {}
    }
    let mut left_out = Vec::new();
    let mut transport = match &cluster.source {
        EndpointSource::Named(_) => None,
        // Names have no labels: the last is for those.
        _ => cluster.transports.last().map(|(_, transport)| transport),
    };
    let none = EndpointSet::default();
    let set = endpoints.unwrap_or(&none);
    for endpoint in &set.endpoints {
        let own = cluster
            .transports
            .iter()
            .find(|(labels, _)| endpoint.transport.have(labels));
        let own = own.map(|(_, own)| own);
        let why = match (own, transport) {
            (Some(EndpointTransport::Sidecar), _) => {
                "is reached by the mutual TLS of Istio's sidecars, which is not supported"
            }
            (None, _) => "has no transport",
            (Some(own), Some(others)) if own != others => "has another transport than the others of its cluster",
            (own, _) => {
                transport = own;
                settings.endpoints.push(endpoint.settings.clone());
                continue;
            }
        };
        left_out.push(left(&settings.name, &endpoint.settings, why));
    }
    if let Some(EndpointTransport::Known { tls, proxy_protocol }) = transport {
        settings.transport = Arc::new(Transport {
            hbone: None,
            tls: tls.clone(),
            proxy_protocol: *proxy_protocol,
        });
    }
    if cluster.weighs_localities && endpoints.is_some() {
        settings.localities.clone_from(&set.localities);
    }
    Resolved { settings, left_out }
}

/// The cluster that stands for the workload that a connection was going to ([`ORIGINAL_WORKLOAD`]): its endpoint, by HBONE. istiod's own of that name is
/// wiring, and says of what is spoken what is said here.
pub fn original_workload() -> ClusterSettings {
    /// Envoy has no limits where Istio says none.
    const UNLIMITED: Breakers = Breakers {
        connections: u32::MAX,
        pending_requests: u32::MAX,
        requests: u32::MAX,
        retries: Retries::Count(u32::MAX),
    };
    ClusterSettings {
        name: ORIGINAL_WORKLOAD.into(),
        service: None,
        endpoints: Vec::new(),
        discovery: Discovery::Original(Reach::Hbone { via: None }),
        balancing: Default::default(),
        slow_start: None,
        localities: Vec::new(),
        panic_threshold: 50,
        subsets: None,
        outliers: None,
        protocol: UpstreamProtocol::AsDownstream,
        // Of `connect_originate`, which it leads to.
        connect_timeout: Duration::from_secs(10),
        idle_timeout: Duration::from_secs(300),
        max_stream_duration: None,
        breakers: UNLIMITED,
        connections: Default::default(),
        transport: Arc::default(),
    }
}

fn left(name: &Text, endpoint: &EndpointSettings, why: &str) -> Untranslated {
    Untranslated {
        name: name.clone(),
        field: format!("endpoint {}", endpoint.address),
        why: why.to_owned(),
    }
}
