//! `envoy.config.cluster.v3.Cluster`: what a cluster says itself. Its endpoints are another resource's, or in it as names.

mod balancing;
mod discovery;
mod limits;
mod outliers;
mod protocol;
mod transport;

use std::sync::Arc;
use std::time::Duration;

use prost_types::value::Kind;
use underpass_config::Text;
use underpass_config::http::{ClusterSettings, ConnectionSettings, Discovery, ServiceName, UpstreamProtocol};
use underpass_config::waypoint::{EndpointSource, WaypointCluster};

use super::endpoints;
use super::filters::known_struct;
use super::refusal::{At, Refused, each, only_if};
use super::values::{metadata, said, text};
use crate::proto::envoy::config::cluster::v3 as wire;
use crate::proto::envoy::config::core::v3 as base;
pub(super) use discovery::cached_names;
use wire::cluster::LbPolicy;

/// Envoy's (`Cluster.connect_timeout`).
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Envoy's (`HttpProtocolOptions.idle_timeout`).
const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);

/// Translates a cluster that is not wiring.
pub(super) fn translate(wire: &wire::Cluster) -> Result<WaypointCluster, Refused> {
    // Taken apart by name, so that a field can't be forgotten.
    let wire::Cluster {
        name,
        // What Envoy's statistics call it.
        alt_stat_name: _,
        cluster_discovery_type,
        eds_cluster_config,
        connect_timeout,
        lb_policy,
        lb_config,
        circuit_breakers,
        dns_refresh_rate,
        // Spreads what is asked of DNS; so does ours, by how long answers hold.
        dns_jitter: _,
        dns_lookup_family,
        respect_dns_ttl,
        typed_dns_resolver_config,
        outlier_detection,
        cleanup_interval,
        transport_socket,
        transport_socket_matches,
        metadata: described,
        common_lb_config,
        upstream_connection_options,
        load_assignment,
        typed_extension_protocol_options,
        filters,
    } = wire;
    let name: Text = name.as_str().into();
    check_filters(filters)?;
    only_if(cleanup_interval.is_none(), "cleanup_interval", "is for wiring only")?;
    discovery::check_resolver(typed_dns_resolver_config.as_ref()).at("typed_dns_resolver_config")?;
    let source = discovery::source(wire, cluster_discovery_type.as_ref(), eds_cluster_config.as_ref())?;
    let is_made_by_source = matches!(source, EndpointSource::Original | EndpointSource::Dynamic(_));
    let (balancing, slow_start) = match LbPolicy::try_from(*lb_policy) {
        Ok(LbPolicy::ClusterProvided) => {
            only_if(
                is_made_by_source,
                "lb_policy",
                "is CLUSTER_PROVIDED, and the cluster provides none",
            )?;
            only_if(
                lb_config.is_none(),
                "lb_config",
                "is said where there is nothing to balance",
            )?;
            Default::default()
        }
        _ => {
            only_if(
                !is_made_by_source,
                "lb_policy",
                "is said where there is nothing to balance",
            )?;
            balancing::translate(*lb_policy, lb_config.as_ref())?
        }
    };
    let common = common_lb_config.as_ref();
    let protocol = protocol::translate(typed_extension_protocol_options)?;
    let asks = protocol.names;
    let transports = transport::translate(transport_socket.as_ref(), transport_socket_matches, asks)?;
    let weighs_localities = common.is_some_and(|common| common.locality_config_specifier.is_some());
    let localities = match (load_assignment, weighs_localities) {
        (Some(inline), true) => endpoints::localities(inline).at("load_assignment")?,
        _ => Vec::new(),
    };
    let discovery = discovery::discovery(wire, load_assignment.as_ref(), *dns_lookup_family)?;
    if matches!(discovery, Discovery::Static) {
        only_if(
            dns_refresh_rate.is_none(),
            "dns_refresh_rate",
            "is said, and DNS is not asked",
        )?;
        only_if(!respect_dns_ttl, "respect_dns_ttl", "is said, and DNS is not asked")?;
        only_if(
            *dns_lookup_family == 0,
            "dns_lookup_family",
            "is said, and DNS is not asked",
        )?;
    }
    let mut connections = protocol.connections;
    connections.keepalive = limits::keepalive(upstream_connection_options.as_ref())?;
    let settings = ClusterSettings {
        service: service(described.as_ref()),
        endpoints: Vec::new(),
        discovery,
        balancing,
        slow_start,
        localities,
        panic_threshold: limits::panic_threshold(common)?,
        subsets: None,
        outliers: outlier_detection
            .as_ref()
            .map(outliers::translate)
            .transpose()
            .at("outlier_detection")?,
        protocol: protocol.speaks,
        connect_timeout: said("connect_timeout", connect_timeout.as_ref())?.unwrap_or(CONNECT_TIMEOUT),
        idle_timeout: protocol.idle_timeout.unwrap_or(IDLE_TIMEOUT),
        max_stream_duration: protocol.max_stream_duration,
        breakers: limits::breakers(circuit_breakers.as_ref()).at("circuit_breakers")?,
        connections,
        transport: Arc::default(),
        name,
    };
    Ok(WaypointCluster {
        settings,
        source,
        weighs_localities,
        transports,
    })
}

/// What a cluster says of what it speaks.
#[derive(Default)]
struct Protocol {
    speaks: UpstreamProtocol,
    idle_timeout: Option<Duration>,
    max_stream_duration: Option<Duration>,
    connections: ConnectionSettings,
    names: AskedNames,
}

/// Whether TLS goes by the name that a request is for.
#[derive(Clone, Copy, Default)]
struct AskedNames {
    /// It is asked for (`auto_sni`).
    are_asked_for: bool,
    /// Certificates have to have it (`auto_san_validation`).
    are_verified: bool,
}

/// Filters of connections to endpoints: only what tells Istio's peers of each other, for which the mesh is asked here.
fn check_filters(filters: &[wire::Filter]) -> Result<(), Refused> {
    let check = |filter: &wire::Filter| {
        let wire::Filter {
            // A label: the type decides.
            name: _,
            typed_config,
        } = filter;
        let any = typed_config.as_ref().ok_or_else(|| Refused::missing("typed_config"))?;
        known_struct(any).at("typed_config")
    };
    each("filters", filters, check).map(|_| ())
}

/// The service that a cluster stands for; of several (aliases of one) the first.
fn service(described: Option<&base::Metadata>) -> Option<Arc<ServiceName>> {
    let istio = metadata(described, "istio")?;
    let Kind::ListValue(services) = istio.get("services")?.kind.as_ref()? else {
        return None;
    };
    let Kind::StructValue(first) = services.values.first()?.kind.as_ref()? else {
        return None;
    };
    let of = |name: &str| text(Some(&first.fields), name).unwrap_or_default();
    Some(Arc::new(ServiceName {
        hostname: of("host").into(),
        name: of("name").into(),
        namespace: of("namespace").into(),
    }))
}
