//! `OutlierDetection`.

use std::time::Duration;

use underpass_config::http::{Consecutive, FailurePercentage, OutlierKind, OutlierSettings, SuccessRate};

use super::super::refusal::{Refused, only_if};
use super::super::values::said;
use crate::proto::envoy::config::cluster::v3 as wire;

pub(super) fn translate(wire: &wire::OutlierDetection) -> Result<OutlierSettings, Refused> {
    let wire::OutlierDetection {
        consecutive_5xx,
        interval,
        base_ejection_time,
        max_ejection_percent,
        enforcing_consecutive_5xx,
        enforcing_success_rate,
        success_rate_minimum_hosts,
        success_rate_request_volume,
        success_rate_stdev_factor,
        consecutive_gateway_failure,
        enforcing_consecutive_gateway_failure,
        split_external_local_origin_errors,
        consecutive_local_origin_failure,
        enforcing_consecutive_local_origin_failure,
        enforcing_local_origin_success_rate,
        failure_percentage_threshold,
        enforcing_failure_percentage,
        enforcing_failure_percentage_local_origin,
        failure_percentage_minimum_hosts,
        failure_percentage_request_volume,
        max_ejection_time,
        max_ejection_time_jitter,
        always_eject_one_host,
    } = wire;
    let default = OutlierSettings::default();
    let mut enforcing = default.enforcing;
    for (kind, field, share) in [
        (
            OutlierKind::Consecutive5xx,
            "enforcing_consecutive_5xx",
            enforcing_consecutive_5xx,
        ),
        (
            OutlierKind::ConsecutiveGatewayFailure,
            "enforcing_consecutive_gateway_failure",
            enforcing_consecutive_gateway_failure,
        ),
        (
            OutlierKind::ConsecutiveLocalOriginFailure,
            "enforcing_consecutive_local_origin_failure",
            enforcing_consecutive_local_origin_failure,
        ),
        (
            OutlierKind::SuccessRate,
            "enforcing_success_rate",
            enforcing_success_rate,
        ),
        (
            OutlierKind::SuccessRateLocalOrigin,
            "enforcing_local_origin_success_rate",
            enforcing_local_origin_success_rate,
        ),
        (
            OutlierKind::FailurePercentage,
            "enforcing_failure_percentage",
            enforcing_failure_percentage,
        ),
        (
            OutlierKind::FailurePercentageLocalOrigin,
            "enforcing_failure_percentage_local_origin",
            enforcing_failure_percentage_local_origin,
        ),
    ] {
        enforcing[kind as usize] = share_of(field, *share, enforcing[kind as usize])?;
    }
    let base = said("base_ejection_time", base_ejection_time.as_ref())?.unwrap_or(default.base_ejection_time);
    let interval = said("interval", interval.as_ref())?.unwrap_or(default.interval);
    only_if(!interval.is_zero(), "interval", "is 0")?;
    // Envoy's: no shorter than the first (`outlier_detection_impl.cc`).
    let longest = said("max_ejection_time", max_ejection_time.as_ref())?.unwrap_or(default.max_ejection_time.max(base));
    let jitter = said("max_ejection_time_jitter", max_ejection_time_jitter.as_ref())?;
    Ok(OutlierSettings {
        interval,
        base_ejection_time: base,
        max_ejection_time: longest,
        max_ejection_time_jitter: jitter.unwrap_or(Duration::ZERO),
        max_ejection_percent: share_of(
            "max_ejection_percent",
            *max_ejection_percent,
            default.max_ejection_percent,
        )?,
        always_eject_one: always_eject_one_host.unwrap_or(default.always_eject_one),
        split_local_origin: *split_external_local_origin_errors,
        consecutive: Consecutive {
            server_errors: consecutive_5xx.unwrap_or(default.consecutive.server_errors),
            gateway_failures: consecutive_gateway_failure.unwrap_or(default.consecutive.gateway_failures),
            local_origin_failures: consecutive_local_origin_failure
                .unwrap_or(default.consecutive.local_origin_failures),
        },
        success_rate: SuccessRate {
            minimum_hosts: hosts(*success_rate_minimum_hosts, default.success_rate.minimum_hosts),
            request_volume: success_rate_request_volume.unwrap_or(default.success_rate.request_volume),
            stdev_factor: success_rate_stdev_factor.unwrap_or(default.success_rate.stdev_factor),
        },
        failure_percentage: FailurePercentage {
            threshold: share_of(
                "failure_percentage_threshold",
                *failure_percentage_threshold,
                default.failure_percentage.threshold,
            )?,
            minimum_hosts: hosts(
                *failure_percentage_minimum_hosts,
                default.failure_percentage.minimum_hosts,
            ),
            request_volume: failure_percentage_request_volume.unwrap_or(default.failure_percentage.request_volume),
        },
        enforcing,
    })
}

fn share_of(field: &str, percent: Option<u32>, default: u32) -> Result<u32, Refused> {
    let percent = percent.unwrap_or(default);
    only_if(percent <= 100, field, "is above 100 percent")?;
    Ok(percent)
}

fn hosts(count: Option<u32>, default: usize) -> usize {
    count.map_or(default, |count| count as usize)
}
