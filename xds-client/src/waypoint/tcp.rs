//! `TcpProxy`, with what connections go through before it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use underpass_config::http::{MetricSettings, Rbac};
use underpass_config::waypoint::{DynamicNames, TcpChain, TcpCluster};

use super::cluster::cached_names;
use super::http::logs;
use super::refusal::{At, Refused, only_if};
use super::values::{limit, port};
use crate::proto::envoy::extensions::filters::network::sni_dynamic_forward_proxy::v3 as sni;
use crate::proto::envoy::extensions::filters::network::tcp_proxy::v3 as wire;
use crate::proto::envoy::r#type::v3 as types;
use types::hash_policy::PolicySpecifier;
use wire::tcp_proxy::ClusterSpecifier;

/// What connections go through on their way.
#[derive(Default)]
pub(super) struct Way {
    pub(super) rules: Vec<Rbac>,
    pub(super) metrics: Arc<MetricSettings>,
    pub(super) reporting_interval: Option<Duration>,
    pub(super) dynamic: Option<(DynamicNames, u16)>,
    pub(super) destination: Option<SocketAddr>,
}

impl Way {
    /// Whether nothing of it would be missed by who only looks at requests.
    pub(super) fn is_plain(&self) -> bool {
        self.rules.is_empty() && self.dynamic.is_none()
    }
}

pub(super) fn translate(wire: &wire::TcpProxy, way: Way, left_out: &mut Vec<Refused>) -> Result<TcpChain, Refused> {
    let wire::TcpProxy {
        // What Envoy's statistics call it.
        stat_prefix: _,
        cluster_specifier,
        access_log,
        idle_timeout,
        hash_policy,
        tunneling_config,
        max_downstream_connection_duration,
    } = wire;
    only_if(tunneling_config.is_none(), "tunneling_config", "is for wiring only")?;
    let clusters = match cluster_specifier {
        Some(ClusterSpecifier::Cluster(name)) => vec![TcpCluster {
            cluster: name.as_str().into(),
            weight: 1,
        }],
        Some(ClusterSpecifier::WeightedClusters(weighted)) => {
            let of = |wire: &wire::tcp_proxy::weighted_cluster::ClusterWeight| {
                let wire::tcp_proxy::weighted_cluster::ClusterWeight { name, weight } = wire;
                TcpCluster {
                    cluster: name.as_str().into(),
                    weight: *weight,
                }
            };
            weighted.clusters.iter().map(of).collect()
        }
        None => return Err(Refused::missing("cluster")),
    };
    let sum = clusters
        .iter()
        .try_fold(0u32, |sum, cluster| sum.checked_add(cluster.weight));
    only_if(
        sum.is_some_and(|sum| sum > 0),
        "weighted_clusters",
        "have no weight, or too much",
    )?;
    let by_source = match &hash_policy[..] {
        [] => false,
        [
            types::HashPolicy {
                policy_specifier: Some(PolicySpecifier::SourceIp(_)),
            },
        ] => true,
        _ => return Err(Refused::unsupported("hash_policy", "not the client's address")),
    };
    Ok(TcpChain {
        clusters,
        by_source,
        rules: way.rules,
        idle_timeout: limit("idle_timeout", idle_timeout.as_ref(), Some(TcpChain::IDLE_TIMEOUT))?,
        max_duration: limit(
            "max_downstream_connection_duration",
            max_downstream_connection_duration.as_ref(),
            None,
        )?,
        detection_timeout: TcpChain::DETECTION_TIMEOUT,
        metrics: way.metrics,
        reporting_interval: way.reporting_interval,
        logs: logs::translate(access_log, left_out),
        dynamic: way.dynamic,
        destination: way.destination,
    })
}

/// Where connections go by the name that their client asks TLS for.
pub(super) fn dynamic(wire: &sni::FilterConfig) -> Result<(DynamicNames, u16), Refused> {
    let sni::FilterConfig {
        dns_cache_config,
        port_specifier,
    } = wire;
    let cache = dns_cache_config
        .as_ref()
        .ok_or_else(|| Refused::missing("dns_cache_config"))?;
    let names = cached_names(cache).at("dns_cache_config")?;
    let Some(sni::filter_config::PortSpecifier::PortValue(number)) = port_specifier else {
        return Err(Refused::missing("port_value"));
    };
    Ok((names, port(*number).at("port_value")?))
}
