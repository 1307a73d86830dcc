//! Where a cluster's endpoints come from.

use underpass_config::Text;
use underpass_config::http::{Discovery, DnsDiscovery, DnsFamily, DnsKind, NamedEndpoint};
use underpass_config::waypoint::{DynamicNames, EndpointSource};

use super::super::endpoints;
use super::super::refusal::{At, Refused, only_if};
use super::super::values::{said, unpack};
use crate::proto::envoy::config::cluster::v3 as wire;
use crate::proto::envoy::config::core::v3 as base;
use crate::proto::envoy::config::endpoint::v3::ClusterLoadAssignment;
use crate::proto::envoy::extensions::clusters::dynamic_forward_proxy::v3 as dynamic;
use crate::proto::envoy::extensions::common::dynamic_forward_proxy::v3::DnsCacheConfig;
use crate::proto::envoy::extensions::network::dns_resolver::cares::v3::CaresDnsResolverConfig;
use dynamic::cluster_config::ClusterImplementationSpecifier;
use wire::cluster::{ClusterDiscoveryType, DiscoveryType, DnsLookupFamily};

pub(super) fn source(
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
pub(in super::super) fn cached_names(cache: &DnsCacheConfig) -> Result<DynamicNames, Refused> {
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

pub(super) fn discovery(
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
pub(super) fn check_resolver(resolver: Option<&base::TypedExtensionConfig>) -> Result<(), Refused> {
    let Some(base::TypedExtensionConfig { name: _, typed_config }) = resolver else {
        return Ok(());
    };
    let CaresDnsResolverConfig {
        // So many questions for each of the library's sockets.
        udp_max_queries: _,
    } = unpack(typed_config.as_ref()).at("typed_config")?;
    Ok(())
}
