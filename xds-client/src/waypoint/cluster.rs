//! `envoy.config.cluster.v3.Cluster`: what a cluster says itself. Its endpoints are another resource's, or in it as names.

mod balancing;
mod outliers;
mod protocol;
mod transport;

use std::sync::Arc;
use std::time::Duration;

use prost_types::value::Kind;
use underpass_config::Text;
use underpass_config::http::{
    Breakers, ClusterSettings, ConnectionSettings, Discovery, DnsDiscovery, DnsFamily, DnsKind, NamedEndpoint, Retries,
    ServiceName, TcpKeepalive, UpstreamProtocol,
};
use underpass_config::waypoint::{DynamicNames, EndpointSource, WaypointCluster};

use super::endpoints;
use super::filters::known_struct;
use super::refusal::{At, Refused, each, only_if};
use super::values::{metadata, percent, said, text, unpack};
use crate::proto::envoy::config::cluster::v3 as wire;
use crate::proto::envoy::config::core::v3 as base;
use crate::proto::envoy::config::endpoint::v3::ClusterLoadAssignment;
use crate::proto::envoy::extensions::clusters::dynamic_forward_proxy::v3 as dynamic;
use crate::proto::envoy::extensions::common::dynamic_forward_proxy::v3::DnsCacheConfig;
use crate::proto::envoy::extensions::network::dns_resolver::cares::v3::CaresDnsResolverConfig;
use dynamic::cluster_config::ClusterImplementationSpecifier;
use wire::cluster::{ClusterDiscoveryType, CommonLbConfig, DiscoveryType, DnsLookupFamily, LbPolicy};

/// Envoy's (`Cluster.connect_timeout`).
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Envoy's (`HttpProtocolOptions.idle_timeout`).
const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);
/// Envoy's (`healthy_panic_threshold`).
const PANIC_THRESHOLD: u32 = 50;

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
    check_resolver(typed_dns_resolver_config.as_ref()).at("typed_dns_resolver_config")?;
    let source = source(wire, cluster_discovery_type.as_ref(), eds_cluster_config.as_ref())?;
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
    let discovery = discovery(wire, load_assignment.as_ref(), *dns_lookup_family)?;
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
    connections.keepalive = keepalive(upstream_connection_options.as_ref())?;
    let settings = ClusterSettings {
        service: service(described.as_ref()),
        endpoints: Vec::new(),
        discovery,
        balancing,
        slow_start,
        localities,
        panic_threshold: panic_threshold(common)?,
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
        breakers: breakers(circuit_breakers.as_ref()).at("circuit_breakers")?,
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

fn source(
    wire: &wire::Cluster,
    kind: Option<&ClusterDiscoveryType>,
    eds: Option<&wire::cluster::EdsClusterConfig>,
) -> Result<EndpointSource, Refused> {
    let kind = match kind {
        Some(ClusterDiscoveryType::ClusterType(custom)) => {
            let names = dynamic_names(custom).at("cluster_type")?;
            return Ok(EndpointSource::Dynamic(names));
        }
        Some(ClusterDiscoveryType::Type(kind)) => DiscoveryType::try_from(*kind),
        None => Ok(DiscoveryType::Static),
    };
    match kind {
        Ok(DiscoveryType::Eds) => {
            only_if(
                wire.load_assignment.is_none(),
                "load_assignment",
                "is given, and so is `eds_cluster_config`",
            )?;
            named(&wire.name, eds)
                .map(EndpointSource::Named)
                .at("eds_cluster_config")
        }
        Ok(DiscoveryType::OriginalDst) => Ok(EndpointSource::Original),
        // A name is not said of endpoints that are in the cluster.
        Ok(DiscoveryType::StrictDns | DiscoveryType::LogicalDns | DiscoveryType::Static) => Ok(EndpointSource::Here),
        Err(_) => Err(Refused::unsupported("type", "of an unknown kind")),
    }
}

/// The name of the endpoints.
fn named(cluster: &str, eds: Option<&wire::cluster::EdsClusterConfig>) -> Result<Text, Refused> {
    let eds = eds.ok_or_else(|| Refused::missing(""))?;
    let wire::cluster::EdsClusterConfig {
        eds_config,
        service_name,
    } = eds;
    let asked = eds_config.as_ref().ok_or_else(|| Refused::missing("eds_config"))?;
    let base::ConfigSource {
        config_source_specifier,
        // Nobody waits here: there are none until they come.
        initial_fetch_timeout: _,
        resource_api_version,
    } = asked;
    let is_ads = matches!(
        config_source_specifier,
        Some(base::config_source::ConfigSourceSpecifier::Ads(_))
    );
    only_if(
        is_ads,
        "eds_config",
        "does not say that endpoints come the same way as the cluster (ADS)",
    )?;
    let is_v3 = *resource_api_version == base::ApiVersion::V3 as i32;
    only_if(is_v3, "eds_config.resource_api_version", "is not V3")?;
    Ok(match service_name.as_str() {
        "" => cluster.into(),
        name => name.into(),
    })
}

fn dynamic_names(custom: &wire::cluster::CustomClusterType) -> Result<DynamicNames, Refused> {
    let wire::cluster::CustomClusterType {
        // A label; the type decides.
        name: _,
        typed_config,
    } = custom;
    let dynamic::ClusterConfig {
        cluster_implementation_specifier,
    } = unpack(typed_config.as_ref()).at("typed_config")?;
    let Some(ClusterImplementationSpecifier::DnsCacheConfig(cache)) = cluster_implementation_specifier else {
        return Err(Refused::missing("typed_config.dns_cache_config"));
    };
    cached_names(&cache).at("typed_config.dns_cache_config")
}

/// What a cache of DNS is for: those that share its name share what it has. Ours is one.
pub(super) fn cached_names(cache: &DnsCacheConfig) -> Result<DynamicNames, Refused> {
    let DnsCacheConfig {
        name: _,
        dns_lookup_family,
    } = cache;
    let family = family(*dns_lookup_family)?;
    Ok(DynamicNames { family })
}

fn family(number: i32) -> Result<DnsFamily, Refused> {
    match DnsLookupFamily::try_from(number) {
        Ok(DnsLookupFamily::Auto) => Ok(DnsFamily::Auto),
        Ok(DnsLookupFamily::V4Only) => Ok(DnsFamily::V4Only),
        Ok(DnsLookupFamily::V6Only) => Ok(DnsFamily::V6Only),
        Ok(DnsLookupFamily::V4Preferred) => Ok(DnsFamily::V4Preferred),
        Ok(DnsLookupFamily::All) => Ok(DnsFamily::All),
        Err(_) => Err(Refused::unsupported("dns_lookup_family", number)),
    }
}

fn discovery(
    wire: &wire::Cluster,
    inline: Option<&ClusterLoadAssignment>,
    addresses: i32,
) -> Result<Discovery, Refused> {
    let kind = match &wire.cluster_discovery_type {
        Some(ClusterDiscoveryType::Type(kind)) => DiscoveryType::try_from(*kind).ok(),
        _ => None,
    };
    let kind = match kind {
        Some(DiscoveryType::StrictDns) => DnsKind::Strict,
        Some(DiscoveryType::LogicalDns) => DnsKind::Logical,
        Some(DiscoveryType::Static) => {
            // Those of the file come by DNS or EDS; istiod has static ones for wiring only.
            return Err(Refused::unsupported("type", "STATIC"));
        }
        _ => return Ok(Discovery::Static),
    };
    let inline = inline.ok_or_else(|| Refused::missing("load_assignment"))?;
    let is_own = inline.cluster_name == wire.name;
    only_if(is_own, "load_assignment.cluster_name", "is another cluster's")?;
    let names: Vec<NamedEndpoint> = endpoints::names(inline).at("load_assignment")?;
    Ok(Discovery::Dns(DnsDiscovery {
        kind,
        family: family(addresses)?,
        names,
        refresh: said("dns_refresh_rate", wire.dns_refresh_rate.as_ref())?.unwrap_or(DnsDiscovery::REFRESH),
        holds_for_ttl: wire.respect_dns_ttl,
        servers: Vec::new(),
    }))
}

/// Which library Envoy asks DNS by. Ours asks whom the system asks, too.
fn check_resolver(resolver: Option<&base::TypedExtensionConfig>) -> Result<(), Refused> {
    let Some(base::TypedExtensionConfig { name: _, typed_config }) = resolver else {
        return Ok(());
    };
    let CaresDnsResolverConfig {
        // So many questions for each of the library's sockets.
        udp_max_queries: _,
    } = unpack(typed_config.as_ref()).at("typed_config")?;
    Ok(())
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

fn panic_threshold(common: Option<&CommonLbConfig>) -> Result<u32, Refused> {
    let Some(CommonLbConfig {
        healthy_panic_threshold,
        locality_config_specifier: _,
    }) = common
    else {
        return Ok(PANIC_THRESHOLD);
    };
    let threshold = healthy_panic_threshold.as_ref().map(percent).transpose();
    let threshold = threshold.at("common_lb_config.healthy_panic_threshold")?;
    Ok(threshold.unwrap_or(PANIC_THRESHOLD))
}

fn breakers(wire: Option<&wire::CircuitBreakers>) -> Result<Breakers, Refused> {
    let mut limits = Breakers::default();
    let Some(wire::CircuitBreakers { thresholds }) = wire else {
        return Ok(limits);
    };
    let [thresholds] = &thresholds[..] else {
        let why = format!(
            "has {} items: there is one kind of requests here, and one is supported",
            thresholds.len()
        );
        return Err(Refused::new("thresholds", why));
    };
    let wire::circuit_breakers::Thresholds {
        priority,
        max_connections,
        max_pending_requests,
        max_requests,
        max_retries,
        retry_budget,
    } = thresholds;
    let is_default = *priority == base::RoutingPriority::Default as i32;
    only_if(
        is_default,
        "thresholds[0].priority",
        "is not DEFAULT, which all requests have",
    )?;
    limits.connections = max_connections.unwrap_or(limits.connections);
    // Who may have none would wait for one for ever.
    only_if(limits.connections > 0, "thresholds[0].max_connections", "is 0")?;
    limits.pending_requests = max_pending_requests.unwrap_or(limits.pending_requests);
    limits.requests = max_requests.unwrap_or(limits.requests);
    if let Some(count) = max_retries {
        limits.retries = Retries::Count(*count);
    }
    if let Some(budget) = retry_budget {
        let wire::circuit_breakers::thresholds::RetryBudget {
            budget_percent,
            min_retry_concurrency,
        } = budget;
        let share = budget_percent.as_ref().map(percent).transpose();
        limits.retries = Retries::Budget {
            percent: share.at("thresholds[0].retry_budget.budget_percent")?.unwrap_or(20),
            minimum: min_retry_concurrency.unwrap_or(3),
        };
    }
    Ok(limits)
}

fn keepalive(options: Option<&wire::UpstreamConnectionOptions>) -> Result<Option<TcpKeepalive>, Refused> {
    let Some(wire::UpstreamConnectionOptions {
        tcp_keepalive: Some(wire),
    }) = options
    else {
        return Ok(None);
    };
    let base::TcpKeepalive {
        keepalive_probes,
        keepalive_time,
        keepalive_interval,
    } = wire;
    let keepalive = TcpKeepalive {
        time: keepalive_time.map(|seconds| Duration::from_secs(seconds.into())),
        interval: keepalive_interval.map(|seconds| Duration::from_secs(seconds.into())),
        probes: *keepalive_probes,
    };
    let field = "upstream_connection_options.tcp_keepalive";
    only_if(
        keepalive.is_possible(),
        field,
        "is beyond what the kernel takes (tcp(7))",
    )?;
    Ok(Some(keepalive))
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
