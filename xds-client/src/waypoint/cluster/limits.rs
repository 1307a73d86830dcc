//! How much is taken on, and when that is not held against anybody: circuit breakers, the threshold of panic, keepalive.

use std::time::Duration;

use underpass_config::http::{Breakers, Retries, TcpKeepalive};

use super::super::refusal::{At, Refused, only_if};
use super::super::values::percent;
use crate::proto::envoy::config::cluster::v3 as wire;
use crate::proto::envoy::config::core::v3 as base;
use wire::cluster::CommonLbConfig;

/// Envoy's (`healthy_panic_threshold`).
const PANIC_THRESHOLD: u32 = 50;

pub(super) fn panic_threshold(common: Option<&CommonLbConfig>) -> Result<u32, Refused> {
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

pub(super) fn breakers(wire: Option<&wire::CircuitBreakers>) -> Result<Breakers, Refused> {
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

pub(super) fn keepalive(options: Option<&wire::UpstreamConnectionOptions>) -> Result<Option<TcpKeepalive>, Refused> {
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
