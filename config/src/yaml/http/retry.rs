//! `retry` of a route's `forward`: when a request is tried again.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use serde::Deserialize;

use super::super::reading::{Path, Reading, YES_OR_NO};
use super::super::scalar::{Scalar, ScalarOr};
use super::actions::status;
use super::headers::header_name;
use super::matches::{TextShape, header};
use crate::http::{ResetFormat, ResetHeader, RetryConditions, RetryPolicy, RetryWord};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RetryShape<'a> {
    #[serde(borrow)]
    on: Vec<Scalar<'a>>,
    #[serde(default)]
    statuses: Vec<Scalar<'a>>,
    retries: Option<Scalar<'a>>,
    per_try_timeout: Option<Scalar<'a>>,
    per_try_idle_timeout: Option<Scalar<'a>>,
    #[serde(default)]
    headers: BTreeMap<Scalar<'a>, ScalarOr<'a, TextShape<'a>>>,
    #[serde(default)]
    reset_headers: Vec<ResetShape<'a>>,
    reset_max_interval: Option<Scalar<'a>>,
    base_interval: Option<Scalar<'a>>,
    max_interval: Option<Scalar<'a>>,
    other_endpoints: Option<Scalar<'a>>,
    replay_bytes: Option<Scalar<'a>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ResetShape<'a> {
    #[serde(borrow)]
    name: Scalar<'a>,
    format: Option<Scalar<'a>>,
}

/// More would hold up a client longer than any waits.
const RETRIES: RangeInclusive<u32> = 0..=100;
/// Each request that may be sent again holds so much at most.
pub(super) const REPLAY: RangeInclusive<u32> = 0..=(16 << 20);

impl RetryShape<'_> {
    pub(super) fn compile(&self, path: Path<'_>, reading: &mut Reading) -> RetryPolicy {
        let base = path.field("base_interval");
        let base = reading.duration(base, self.base_interval.as_ref(), RetryPolicy::DEFAULT_BASE);
        let longest = path.field("max_interval");
        let longest = reading.duration(longest, self.max_interval.as_ref(), base.saturating_mul(10));
        if longest < base {
            let value = self.max_interval.as_ref().map_or("", |value| value);
            let remedy = "make it at least `base_interval`";
            reading.report(path.field("max_interval"), value, "is below `base_interval`", remedy);
        }
        let per_try = path.field("per_try_timeout");
        let per_try = reading.duration_or_zero(per_try, self.per_try_timeout.as_ref(), Duration::ZERO);
        let idle = path.field("per_try_idle_timeout");
        let idle = reading.duration_or_zero(idle, self.per_try_idle_timeout.as_ref(), Duration::ZERO);
        let reset = path.field("reset_max_interval");
        let reset = reading.duration(reset, self.reset_max_interval.as_ref(), RetryPolicy::DEFAULT_RESET);
        let other = path.field("other_endpoints");
        let retries = self.retries.as_ref();
        let replay = self.replay_bytes.as_ref();
        let replay = replay.and_then(|value| reading.count(path.field("replay_bytes"), value, REPLAY));
        RetryPolicy {
            on: self.conditions(path, reading),
            retries: retries
                .and_then(|value| reading.count(path.field("retries"), value, RETRIES))
                .unwrap_or(1),
            per_try_timeout: (!per_try.is_zero()).then_some(per_try),
            per_try_idle_timeout: (!idle.is_zero()).then_some(idle),
            reset_headers: self.reset_headers(path.field("reset_headers"), reading),
            reset_max_interval: reset,
            base_interval: base,
            max_interval: longest,
            other_endpoints: reading
                .choice(other, self.other_endpoints.as_ref(), &YES_OR_NO)
                .unwrap_or(true),
            replay: replay.map_or(RetryPolicy::DEFAULT_REPLAY, |bytes| bytes as usize),
        }
    }

    fn reset_headers(&self, path: Path<'_>, reading: &mut Reading) -> Vec<ResetHeader> {
        const FORMATS: [(&str, ResetFormat); 2] = [
            ("seconds", ResetFormat::Seconds),
            ("unix-timestamp", ResetFormat::UnixTimestamp),
        ];
        let shapes = self.reset_headers.iter().enumerate();
        let headers = shapes.filter_map(|(index, shape)| {
            let path = path.item(index);
            Some(ResetHeader {
                format: (reading.choice(path.field("format"), shape.format.as_ref(), &FORMATS)).unwrap_or_default(),
                name: header_name(path.field("name"), &shape.name, reading)?,
            })
        });
        headers.collect()
    }

    fn conditions(&self, path: Path<'_>, reading: &mut Reading) -> RetryConditions {
        let words = RetryWord::all();
        let mut on = RetryConditions::default();
        let list = path.field("on");
        let (mut uses_statuses, mut uses_headers) = (false, false);
        for (index, word) in self.on.iter().enumerate() {
            match reading.choice(list.item(index), Some(word), &words) {
                None => {}
                Some(RetryWord::Statuses) => uses_statuses = true,
                Some(RetryWord::Headers) => uses_headers = true,
                Some(word) => on.add(word),
            }
        }
        for (index, value) in self.statuses.iter().enumerate() {
            let statuses = path.field("statuses");
            on.statuses.extend(status(statuses.item(index), value, reading));
        }
        if uses_statuses == self.statuses.is_empty() {
            let remedy = "write both `on: [retriable-status-codes]` and `statuses: [503]`, or neither";
            reading.report(path.field("statuses"), "", "goes with `retriable-status-codes`", remedy);
        }
        let fields = path.field("headers");
        for (name, shape) in &self.headers {
            on.headers.extend(header(fields.key(name), name, shape, reading));
        }
        if uses_headers == self.headers.is_empty() {
            let remedy =
                "write both `on: [retriable-headers]` and `headers: {x-try-again: {present: true}}`, or neither";
            reading.report(path.field("headers"), "", "goes with `retriable-headers`", remedy);
        }
        on
    }
}
