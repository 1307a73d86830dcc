//! `http.clusters[].outliers`, with Envoy's names.

use std::ops::RangeInclusive;

use serde::Deserialize;

use super::super::reading::{Path, Reading, YES_OR_NO};
use super::super::scalar::Scalar;
use crate::http::{FailurePercentage, OutlierKind, OutlierSettings, SuccessRate};

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct OutliersShape<'a> {
    #[serde(borrow)]
    interval: Option<Scalar<'a>>,
    base_ejection_time: Option<Scalar<'a>>,
    max_ejection_time: Option<Scalar<'a>>,
    max_ejection_time_jitter: Option<Scalar<'a>>,
    max_ejection_percent: Option<Scalar<'a>>,
    always_eject_one: Option<Scalar<'a>>,
    split_local_origin: Option<Scalar<'a>>,
    consecutive_5xx: Option<Scalar<'a>>,
    consecutive_gateway_failure: Option<Scalar<'a>>,
    consecutive_local_origin_failure: Option<Scalar<'a>>,
    success_rate: SuccessRateShape<'a>,
    failure_percentage: FailurePercentageShape<'a>,
    enforcing: EnforcingShape<'a>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct SuccessRateShape<'a> {
    #[serde(borrow)]
    minimum_hosts: Option<Scalar<'a>>,
    request_volume: Option<Scalar<'a>>,
    stdev_factor: Option<Scalar<'a>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct FailurePercentageShape<'a> {
    #[serde(borrow)]
    threshold: Option<Scalar<'a>>,
    minimum_hosts: Option<Scalar<'a>>,
    request_volume: Option<Scalar<'a>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct EnforcingShape<'a> {
    #[serde(borrow)]
    consecutive_5xx: Option<Scalar<'a>>,
    consecutive_gateway_failure: Option<Scalar<'a>>,
    consecutive_local_origin_failure: Option<Scalar<'a>>,
    success_rate: Option<Scalar<'a>>,
    success_rate_local_origin: Option<Scalar<'a>>,
    failure_percentage: Option<Scalar<'a>>,
    failure_percentage_local_origin: Option<Scalar<'a>>,
}

const ANY: RangeInclusive<u32> = 0..=u32::MAX;
const PERCENT: RangeInclusive<u32> = 0..=100;

/// A number in place of `default`.
fn count(
    path: Path<'_>,
    value: &Option<Scalar<'_>>,
    range: RangeInclusive<u32>,
    default: u32,
    reading: &mut Reading,
) -> u32 {
    let value = value.as_ref().and_then(|value| reading.count(path, value, range));
    value.unwrap_or(default)
}

impl OutliersShape<'_> {
    pub(super) fn compile(&self, path: Path<'_>, reading: &mut Reading) -> OutlierSettings {
        let default = OutlierSettings::default();
        let flag = |field, value: &Option<Scalar<'_>>, reading: &mut Reading| {
            let word = reading.choice(path.field(field), value.as_ref(), &YES_OR_NO);
            word.unwrap_or_default()
        };
        let mut settings = OutlierSettings {
            interval: reading.duration(path.field("interval"), self.interval.as_ref(), default.interval),
            base_ejection_time: reading.duration(
                path.field("base_ejection_time"),
                self.base_ejection_time.as_ref(),
                default.base_ejection_time,
            ),
            max_ejection_time: reading.duration(
                path.field("max_ejection_time"),
                self.max_ejection_time.as_ref(),
                default.max_ejection_time,
            ),
            max_ejection_time_jitter: reading.duration_or_zero(
                path.field("max_ejection_time_jitter"),
                self.max_ejection_time_jitter.as_ref(),
                default.max_ejection_time_jitter,
            ),
            max_ejection_percent: count(
                path.field("max_ejection_percent"),
                &self.max_ejection_percent,
                PERCENT,
                default.max_ejection_percent,
                reading,
            ),
            always_eject_one: flag("always_eject_one", &self.always_eject_one, reading),
            split_local_origin: flag("split_local_origin", &self.split_local_origin, reading),
            success_rate: self
                .success_rate
                .compile(path.field("success_rate"), default.success_rate, reading),
            failure_percentage: self.failure_percentage.compile(
                path.field("failure_percentage"),
                default.failure_percentage,
                reading,
            ),
            enforcing: self
                .enforcing
                .compile(path.field("enforcing"), default.enforcing, reading),
            ..default
        };
        let limits = &mut settings.consecutive;
        for (field, value, limit) in [
            ("consecutive_5xx", &self.consecutive_5xx, &mut limits.server_errors),
            (
                "consecutive_gateway_failure",
                &self.consecutive_gateway_failure,
                &mut limits.gateway_failures,
            ),
            (
                "consecutive_local_origin_failure",
                &self.consecutive_local_origin_failure,
                &mut limits.local_origin_failures,
            ),
        ] {
            *limit = count(path.field(field), value, ANY, *limit, reading);
        }
        settings
    }
}

impl SuccessRateShape<'_> {
    fn compile(&self, path: Path<'_>, default: SuccessRate, reading: &mut Reading) -> SuccessRate {
        SuccessRate {
            minimum_hosts: count(path.field("minimum_hosts"), &self.minimum_hosts, ANY, 5, reading) as usize,
            request_volume: count(
                path.field("request_volume"),
                &self.request_volume,
                ANY,
                default.request_volume,
                reading,
            ),
            stdev_factor: count(
                path.field("stdev_factor"),
                &self.stdev_factor,
                ANY,
                default.stdev_factor,
                reading,
            ),
        }
    }
}

impl FailurePercentageShape<'_> {
    fn compile(&self, path: Path<'_>, default: FailurePercentage, reading: &mut Reading) -> FailurePercentage {
        FailurePercentage {
            threshold: count(
                path.field("threshold"),
                &self.threshold,
                PERCENT,
                default.threshold,
                reading,
            ),
            minimum_hosts: count(path.field("minimum_hosts"), &self.minimum_hosts, ANY, 5, reading) as usize,
            request_volume: count(
                path.field("request_volume"),
                &self.request_volume,
                ANY,
                default.request_volume,
                reading,
            ),
        }
    }
}

impl EnforcingShape<'_> {
    fn compile(
        &self,
        path: Path<'_>,
        mut enforcing: [u32; OutlierKind::COUNT],
        reading: &mut Reading,
    ) -> [u32; OutlierKind::COUNT] {
        for (field, value, kind) in [
            ("consecutive_5xx", &self.consecutive_5xx, OutlierKind::Consecutive5xx),
            (
                "consecutive_gateway_failure",
                &self.consecutive_gateway_failure,
                OutlierKind::ConsecutiveGatewayFailure,
            ),
            (
                "consecutive_local_origin_failure",
                &self.consecutive_local_origin_failure,
                OutlierKind::ConsecutiveLocalOriginFailure,
            ),
            ("success_rate", &self.success_rate, OutlierKind::SuccessRate),
            (
                "success_rate_local_origin",
                &self.success_rate_local_origin,
                OutlierKind::SuccessRateLocalOrigin,
            ),
            (
                "failure_percentage",
                &self.failure_percentage,
                OutlierKind::FailurePercentage,
            ),
            (
                "failure_percentage_local_origin",
                &self.failure_percentage_local_origin,
                OutlierKind::FailurePercentageLocalOrigin,
            ),
        ] {
            enforcing[kind as usize] = count(path.field(field), value, PERCENT, enforcing[kind as usize], reading);
        }
        enforcing
    }
}
