//! A cluster and its endpoints, together: what of them is served, and by which way each is reached.

use std::sync::Arc;

use underpass_config::Text;
use underpass_config::http::{ClusterSettings, EndpointSettings, Transport};
use underpass_config::waypoint::{EndpointSet, EndpointSource, EndpointTransport, WaypointCluster};

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

fn left(name: &Text, endpoint: &EndpointSettings, why: &str) -> Untranslated {
    Untranslated {
        name: name.clone(),
        field: format!("endpoint {}", endpoint.address),
        why: why.to_owned(),
    }
}
