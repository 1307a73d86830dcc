//! `RouteAction`: requests that go on to clusters.

use std::time::Duration;

use http::StatusCode;
use underpass_config::http::{
    Fault, Field, Forward, GrpcTimeout, HashCookie, HashPolicy, HashSource, Labels, Mirror, PathRewrite, Stage,
    StreamDuration, Substitution, WeightedCluster, part_pattern,
};

use super::super::refusal::{At, Refused, each, only_if};
use super::super::values::{field_value, limit, parts, said};
use super::{Everywhere, edits, retry};
use crate::proto::envoy::config::route::v3 as wire;
use crate::proto::envoy::r#type::matcher::v3::RegexMatchAndSubstitute;
use wire::route_action::hash_policy::PolicySpecifier;
use wire::route_action::{ClusterNotFoundResponseCode as NotFound, ClusterSpecifier, HostRewriteSpecifier};

/// More would let one request wait on itself for longer than any client does.
const RETRIES_IN_ALL: usize = 100;

pub(super) fn forward(wire: &wire::RouteAction, everywhere: &Everywhere) -> Result<Forward, Refused> {
    let wire::RouteAction {
        cluster_specifier,
        cluster_not_found_response_code,
        prefix_rewrite,
        regex_rewrite,
        host_rewrite_specifier,
        timeout,
        idle_timeout,
        retry_policy,
        request_mirror_policies,
        hash_policy,
        max_grpc_timeout,
        grpc_timeout_offset,
        max_stream_duration,
        upgrade_configs,
    } = wire;
    let clusters = clusters(cluster_specifier.as_ref())?;
    let why = "have no weight, or too much";
    let mut forward = Forward::new(clusters).ok_or_else(|| Refused::new("weighted_clusters", why))?;
    forward.not_found = match NotFound::try_from(*cluster_not_found_response_code) {
        Ok(NotFound::ServiceUnavailable) => StatusCode::SERVICE_UNAVAILABLE,
        Ok(NotFound::NotFound) => StatusCode::NOT_FOUND,
        Ok(NotFound::InternalServerError) => StatusCode::INTERNAL_SERVER_ERROR,
        Err(_) => {
            let code = cluster_not_found_response_code;
            return Err(Refused::unsupported("cluster_not_found_response_code", code));
        }
    };
    forward.path = rewrite(prefix_rewrite, regex_rewrite.as_ref())?;
    forward.host = match host_rewrite_specifier {
        Some(HostRewriteSpecifier::HostRewriteLiteral(host)) => Some(field_value(host).at("host_rewrite_literal")?),
        None => None,
    };
    forward.timeout = limit("timeout", timeout.as_ref(), Some(Forward::DEFAULT_TIMEOUT))?;
    forward.idle_timeout = limit("idle_timeout", idle_timeout.as_ref(), everywhere.idle_timeout)?;
    let offset = said("grpc_timeout_offset", grpc_timeout_offset.as_ref())?.unwrap_or(Duration::ZERO);
    let max = said("max_grpc_timeout", max_grpc_timeout.as_ref())?;
    forward.grpc_timeout = max.map(|max| GrpcTimeout {
        max: Some(max).filter(|max| !max.is_zero()),
        offset,
    });
    forward.duration = max_stream_duration
        .as_ref()
        .map(duration)
        .transpose()
        .at("max_stream_duration")?;
    forward.retry = retry_policy
        .as_ref()
        .map(retry::translate)
        .transpose()
        .at("retry_policy")?;
    only_if(
        forward
            .retry
            .as_ref()
            .is_none_or(|retry| retry.retries as usize <= RETRIES_IN_ALL),
        "retry_policy.num_retries",
        "is above 100",
    )?;
    forward.mirrors = each("request_mirror_policies", request_mirror_policies, mirror)?;
    forward.hash = each("hash_policy", hash_policy, hash)?;
    forward.upgrades.clone_from(&everywhere.upgrades);
    for upgrade in upgrade_configs {
        let wire::route_action::UpgradeConfig {
            upgrade_type,
            connect_config,
        } = upgrade;
        let is_plain = connect_config.is_none() && !upgrade_type.eq_ignore_ascii_case("connect");
        only_if(is_plain, "upgrade_configs", "let CONNECT be, which is for wiring only")?;
        forward.upgrades.push(upgrade_type.to_ascii_lowercase());
    }
    Ok(forward)
}

fn clusters(specified: Option<&ClusterSpecifier>) -> Result<Vec<WeightedCluster>, Refused> {
    match specified {
        Some(ClusterSpecifier::Cluster(name)) => Ok(vec![WeightedCluster {
            cluster: name.as_str().into(),
            weight: 1,
            labels: Labels::default(),
            request_headers: Default::default(),
            response_headers: Default::default(),
        }]),
        Some(ClusterSpecifier::WeightedClusters(wire::WeightedCluster { clusters })) => {
            each("weighted_clusters.clusters", clusters, weighted)
        }
        None => Err(Refused::missing("cluster")),
    }
}

fn weighted(wire: &wire::weighted_cluster::ClusterWeight) -> Result<WeightedCluster, Refused> {
    let wire::weighted_cluster::ClusterWeight {
        name,
        weight,
        request_headers_to_add,
        response_headers_to_add,
        response_headers_to_remove,
        request_headers_to_remove,
    } = wire;
    Ok(WeightedCluster {
        cluster: name.as_str().into(),
        weight: weight.unwrap_or(0),
        labels: Labels::default(),
        request_headers: edits(Stage::Request, request_headers_to_add, request_headers_to_remove)
            .at("request_headers_to_add")?,
        response_headers: edits(Stage::Response, response_headers_to_add, response_headers_to_remove)
            .at("response_headers_to_add")?,
    })
}

fn rewrite(prefix: &str, pattern: Option<&RegexMatchAndSubstitute>) -> Result<PathRewrite, Refused> {
    let Some(RegexMatchAndSubstitute { pattern, substitution }) = pattern else {
        return Ok(match prefix {
            "" => PathRewrite::None,
            new => PathRewrite::Matched(new.to_owned()),
        });
    };
    only_if(prefix.is_empty(), "prefix_rewrite", "is said beside `regex_rewrite`")?;
    let pattern = pattern
        .as_ref()
        .ok_or_else(|| Refused::missing("regex_rewrite.pattern"))?;
    let pattern = part_pattern(&pattern.regex);
    let pattern = pattern.map_err(|why| Refused::new("regex_rewrite.pattern.regex", why.to_string()))?;
    let substitution = Substitution::parse(substitution, pattern.captures_len() - 1);
    let substitution = substitution.map_err(|why| Refused::new("regex_rewrite.substitution", why))?;
    Ok(PathRewrite::Regex(pattern, substitution))
}

fn duration(wire: &wire::route_action::MaxStreamDuration) -> Result<StreamDuration, Refused> {
    let wire::route_action::MaxStreamDuration {
        max_stream_duration,
        grpc_timeout_header_max,
        grpc_timeout_header_offset,
    } = wire;
    let offset = said("grpc_timeout_header_offset", grpc_timeout_header_offset.as_ref())?;
    let max = said("grpc_timeout_header_max", grpc_timeout_header_max.as_ref())?;
    Ok(StreamDuration {
        limit: limit("max_stream_duration", max_stream_duration.as_ref(), None)?,
        grpc: max.map(|max| GrpcTimeout {
            max: Some(max).filter(|max| !max.is_zero()),
            offset: offset.unwrap_or(Duration::ZERO),
        }),
    })
}

fn mirror(wire: &wire::route_action::RequestMirrorPolicy) -> Result<Mirror, Refused> {
    let wire::route_action::RequestMirrorPolicy {
        cluster,
        runtime_fraction,
        // Whether copies have spans.
        trace_sampled: _,
        disable_shadow_host_suffix_append,
    } = wire;
    let share = super::matches::fraction(runtime_fraction.as_ref());
    Ok(Mirror {
        cluster: cluster.as_str().into(),
        labels: Labels::default(),
        share: match share {
            None => Fault::ALL,
            Some(share) => parts(share).at("runtime_fraction.default_value")?,
        },
        has_host_suffix: !disable_shadow_host_suffix_append,
        buffer: Mirror::DEFAULT_BUFFER,
    })
}

fn hash(wire: &wire::route_action::HashPolicy) -> Result<HashPolicy, Refused> {
    use wire::route_action::hash_policy as policy;
    let wire::route_action::HashPolicy {
        policy_specifier,
        terminal,
    } = wire;
    let source = match policy_specifier {
        Some(PolicySpecifier::Header(policy::Header { header_name })) => {
            let field = Field::named(header_name);
            let why = || Refused::new("header.header_name", format!("is `{header_name}`, which is no name"));
            HashSource::Header(field.ok_or_else(why)?)
        }
        Some(PolicySpecifier::Cookie(policy::Cookie { name, ttl, path })) => HashSource::Cookie(HashCookie {
            name: name.clone(),
            ttl: said("cookie.ttl", ttl.as_ref())?,
            path: path.clone(),
        }),
        Some(PolicySpecifier::QueryParameter(policy::QueryParameter { name })) => HashSource::Query(name.clone()),
        Some(PolicySpecifier::ConnectionProperties(policy::ConnectionProperties { source_ip: true })) => {
            HashSource::SourceIp
        }
        _ => return Err(Refused::missing("policy_specifier")),
    };
    Ok(HashPolicy {
        source,
        is_terminal: *terminal,
    })
}
