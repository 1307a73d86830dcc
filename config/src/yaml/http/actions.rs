//! What becomes of a request: `forward`, `redirect`, `direct`.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use http::{HeaderValue, StatusCode};
use serde::Deserialize;

use super::super::reading::{Path, Reading, YES_OR_NO};
use super::super::scalar::{Scalar, ScalarOr};
use super::balancing::labels;
use super::cors::CorsShape;
use super::fault::FaultShape;
use super::hash::HashShape;
use super::headers::{EditsShape, header_name, header_value};
use super::matches::{TextShape, header};
use super::mirror::MirrorShape;
use super::times::{DurationShape, duration, grpc_timeout};
use super::{regex, report_unknown};
use crate::http::{
    ConnectMode, DirectResponse, Fault, Forward, Http, Labels, PathRewrite, Redirect, ResetFormat, ResetHeader,
    RetryConditions, RetryPolicy, Substitution, WeightedCluster,
};

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ForwardShape<'a> {
    #[serde(borrow)]
    cluster: Option<Scalar<'a>>,
    clusters: Vec<WeightedShape<'a>>,
    prefix_rewrite: Option<Scalar<'a>>,
    path_rewrite: Option<Scalar<'a>>,
    regex_rewrite: Option<RegexRewriteShape<'a>>,
    host_rewrite: Option<Scalar<'a>>,
    timeout: Option<Scalar<'a>>,
    max_grpc_timeout: Option<Scalar<'a>>,
    grpc_timeout_offset: Option<Scalar<'a>>,
    max_stream_duration: Option<DurationShape<'a>>,
    idle_timeout: Option<Scalar<'a>>,
    retry: Option<RetryShape<'a>>,
    upgrades: Vec<Scalar<'a>>,
    connect: Option<Scalar<'a>>,
    fault: Option<FaultShape<'a>>,
    hash: Vec<HashShape<'a>>,
    pub(super) cors: Option<CorsShape<'a>>,
    mirrors: Vec<MirrorShape<'a>>,
    labels: BTreeMap<Scalar<'a>, Scalar<'a>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WeightedShape<'a> {
    #[serde(borrow)]
    cluster: Scalar<'a>,
    weight: Scalar<'a>,
    #[serde(default)]
    labels: BTreeMap<Scalar<'a>, Scalar<'a>>,
    #[serde(default)]
    request_headers: EditsShape<'a>,
    #[serde(default)]
    response_headers: EditsShape<'a>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RegexRewriteShape<'a> {
    #[serde(borrow)]
    pattern: Scalar<'a>,
    substitution: Scalar<'a>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RetryShape<'a> {
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

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RedirectShape<'a> {
    #[serde(borrow)]
    status: Option<Scalar<'a>>,
    scheme: Option<Scalar<'a>>,
    host: Option<Scalar<'a>>,
    port: Option<Scalar<'a>>,
    path: Option<Scalar<'a>>,
    prefix: Option<Scalar<'a>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DirectShape<'a> {
    #[serde(borrow)]
    status: Scalar<'a>,
    body: Option<Scalar<'a>>,
}

const CONNECT_MODES: [(&str, ConnectMode); 2] = [("tcp", ConnectMode::Tcp), ("pass", ConnectMode::Pass)];
const WEIGHTS: RangeInclusive<u32> = 0..=1_000_000;
/// More would hold up a client longer than any waits.
const RETRIES: RangeInclusive<u32> = 0..=100;
/// Each request that may be sent again holds so much at most.
pub(super) const REPLAY: RangeInclusive<u32> = 0..=(16 << 20);
/// What may be asked to be answered by the proxy itself (`DirectResponseAction.status`).
const STATUSES: RangeInclusive<u32> = 200..=599;

#[derive(Clone, Copy)]
enum Condition {
    ServerError,
    GatewayError,
    Reset,
    ConnectFailure,
    RefusedStream,
    Retriable4xx,
    BeforeRequest,
    RateLimited,
    /// What this proxy never has a reason for.
    Never,
    Statuses,
    Headers,
    Grpc(u32),
}

fn conditions() -> Vec<(&'static str, Condition)> {
    let mut all = vec![
        ("5xx", Condition::ServerError),
        ("gateway-error", Condition::GatewayError),
        ("reset", Condition::Reset),
        ("connect-failure", Condition::ConnectFailure),
        ("refused-stream", Condition::RefusedStream),
        ("retriable-4xx", Condition::Retriable4xx),
        ("retriable-status-codes", Condition::Statuses),
        ("retriable-headers", Condition::Headers),
        ("reset-before-request", Condition::BeforeRequest),
        ("envoy-ratelimited", Condition::RateLimited),
        ("http3-post-connect-failure", Condition::Never),
    ];
    all.extend(RetryConditions::GRPC.map(|(word, code)| (word, Condition::Grpc(code))));
    all
}

impl ForwardShape<'_> {
    pub(super) fn compile(&self, path: Path<'_>, http: &Http, reading: &mut Reading) -> Option<Forward> {
        let clusters = self.clusters(path, http, reading);
        let forward = Forward::new(clusters);
        if forward.is_none() {
            let remedy = "write `cluster: NAME`, or `clusters` with a weight above 0";
            reading.report(path, "", "leads to no cluster", remedy);
        }
        let rewrite = self.path_rewrite(path, reading);
        let host = self.host_rewrite.as_ref();
        let host = host.and_then(|host| host_value(path.field("host_rewrite"), host, reading));
        let timeout = path.field("timeout");
        let timeout = reading.duration_or_zero(timeout, self.timeout.as_ref(), Forward::DEFAULT_TIMEOUT);
        let retry = (self.retry.as_ref()).map(|retry| retry.compile(path.field("retry"), reading));
        let fault = (self.fault.as_ref()).map(|fault| fault.compile(path.field("fault"), reading));
        let list = path.field("hash");
        let hash = self.hash.iter().enumerate();
        let hash = hash.filter_map(|(index, policy)| policy.compile(list.item(index), reading));
        let hash = hash.collect();
        let list = path.field("mirrors");
        let mirrors = self.mirrors.iter().enumerate();
        let mirrors = mirrors.map(|(index, mirror)| mirror.compile(list.item(index), http, reading));
        let mirrors = mirrors.collect();
        let mut forward = forward?;
        forward.mirrors = mirrors;
        forward.hash = hash;
        forward.path = rewrite;
        forward.host = host;
        let idle = path.field("idle_timeout");
        let idle = reading.duration_or_zero(idle, self.idle_timeout.as_ref(), Forward::DEFAULT_IDLE_TIMEOUT);
        forward.idle_timeout = (!idle.is_zero()).then_some(idle);
        forward.timeout = (!timeout.is_zero()).then_some(timeout);
        self.times(path, &mut forward, reading);
        forward.retry = retry;
        forward.upgrades = self.upgrades.iter().map(|name| name.to_ascii_lowercase()).collect();
        forward.connect = reading.choice(path.field("connect"), self.connect.as_ref(), &CONNECT_MODES);
        forward.fault = fault;
        Some(forward)
    }

    /// What may take the place of `timeout`.
    fn times(&self, path: Path<'_>, forward: &mut Forward, reading: &mut Reading) {
        let max = ("max_grpc_timeout", self.max_grpc_timeout.as_ref());
        let offset = ("grpc_timeout_offset", self.grpc_timeout_offset.as_ref());
        forward.grpc_timeout = grpc_timeout(path, max, offset, reading);
        let shape = self.max_stream_duration.as_ref();
        forward.duration = shape.map(|shape| duration(path.field("max_stream_duration"), shape, reading));
        if forward.duration.is_none() {
            return;
        }
        for (name, value) in [("timeout", &self.timeout), ("max_grpc_timeout", &self.max_grpc_timeout)] {
            if let Some(value) = value {
                let problem = "has no effect beside `max_stream_duration`";
                reading.report(path.field(name), value, problem, "remove one of them");
            }
        }
    }

    fn clusters(&self, path: Path<'_>, http: &Http, reading: &mut Reading) -> Vec<WeightedCluster> {
        let mut clusters = Vec::new();
        if let Some(name) = &self.cluster {
            check_cluster(path.field("cluster"), name, http, reading);
            if !self.clusters.is_empty() {
                reading.report(path.field("cluster"), name, "`clusters` is given too", "remove one");
            }
            clusters.push(WeightedCluster {
                cluster: reading.text(name),
                weight: 1,
                labels: labels(&self.labels, reading),
                request_headers: Default::default(),
                response_headers: Default::default(),
            });
        }
        for (index, shape) in self.clusters.iter().enumerate() {
            let list = path.field("clusters");
            let path = list.item(index);
            check_cluster(path.field("cluster"), &shape.cluster, http, reading);
            let weight = reading.count(path.field("weight"), &shape.weight, WEIGHTS);
            clusters.push(WeightedCluster {
                cluster: reading.text(&shape.cluster),
                weight: weight.unwrap_or(1),
                labels: self.labels_of(shape, reading),
                request_headers: shape
                    .request_headers
                    .of_requests(path.field("request_headers"), reading),
                response_headers: shape
                    .response_headers
                    .of_responses(path.field("response_headers"), reading),
            });
        }
        clusters
    }

    /// The route's, where the cluster's say nothing else.
    fn labels_of(&self, shape: &WeightedShape<'_>, reading: &mut Reading) -> Labels {
        let all = self.labels.iter().chain(&shape.labels);
        Labels::new(all.map(|(name, value)| (reading.text(name), reading.text(value))))
    }

    fn path_rewrite(&self, path: Path<'_>, reading: &mut Reading) -> PathRewrite {
        let given = [
            self.prefix_rewrite.is_some(),
            self.path_rewrite.is_some(),
            self.regex_rewrite.is_some(),
        ];
        if given.into_iter().filter(|given| *given).count() > 1 {
            let remedy = "keep one of `prefix_rewrite`, `path_rewrite` and `regex_rewrite`";
            reading.report(path, "", "the path is rewritten twice", remedy);
        }
        if let Some(whole) = &self.path_rewrite {
            return PathRewrite::Whole(path_value(path.field("path_rewrite"), whole, reading));
        }
        if let Some(prefix) = &self.prefix_rewrite {
            return PathRewrite::Matched(path_value(path.field("prefix_rewrite"), prefix, reading));
        }
        let Some(shape) = &self.regex_rewrite else {
            return PathRewrite::None;
        };
        let path = path.field("regex_rewrite");
        let Some(pattern) = regex(path.field("pattern"), &shape.pattern, false, reading) else {
            return PathRewrite::None;
        };
        match Substitution::parse(&shape.substitution, pattern.captures_len() - 1) {
            Ok(substitution) => PathRewrite::Regex(pattern, substitution),
            Err(problem) => {
                let remedy = "write \\1 for the first group of the pattern, \\\\ for a backslash";
                reading.report(path.field("substitution"), &shape.substitution, problem, remedy);
                PathRewrite::None
            }
        }
    }
}

/// Reports a name that no cluster has.
pub(super) fn check_cluster(path: Path<'_>, name: &str, http: &Http, reading: &mut Reading) {
    if http.cluster(name).is_none() {
        let known = http.clusters.keys().map(|name| &**name);
        report_unknown(path, name, "is not one of `http.clusters`", known, reading);
    }
}

/// A path to send on: visible ASCII from `/` on.
fn path_value(path: Path<'_>, value: &Scalar<'_>, reading: &mut Reading) -> String {
    let is_path = value.starts_with('/') && value.bytes().all(|b| b.is_ascii_graphic() && b != b'#' && b != b'?');
    if !is_path {
        let remedy = "write visible ASCII characters from `/` on, without a query";
        reading.report(path, value, "is not a path", remedy);
    }
    value.to_string()
}

fn host_value(path: Path<'_>, value: &Scalar<'_>, reading: &mut Reading) -> Option<HeaderValue> {
    let is_authority =
        !value.is_empty() && value.parse::<http::uri::Authority>().is_ok() && !value.contains(['@', '%']);
    if !is_authority {
        let remedy = "write a host, perhaps with a port: web.example.com:8080";
        reading.report(path, value, "is not a host", remedy);
        return None;
    }
    header_value(path, value, reading)
}

impl RetryShape<'_> {
    fn compile(&self, path: Path<'_>, reading: &mut Reading) -> RetryPolicy {
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
        let words = conditions();
        let mut on = RetryConditions::default();
        let list = path.field("on");
        let (mut uses_statuses, mut uses_headers) = (false, false);
        for (index, word) in self.on.iter().enumerate() {
            match reading.choice(list.item(index), Some(word), &words) {
                None | Some(Condition::Never) => {}
                Some(Condition::ServerError) => on.server_error = true,
                Some(Condition::GatewayError) => on.gateway_error = true,
                Some(Condition::Reset) => on.reset = true,
                Some(Condition::ConnectFailure) => on.connect_failure = true,
                Some(Condition::RefusedStream) => on.refused_stream = true,
                Some(Condition::Retriable4xx) => on.retriable_4xx = true,
                Some(Condition::BeforeRequest) => on.reset_before_request = true,
                Some(Condition::RateLimited) => on.rate_limited = true,
                Some(Condition::Statuses) => uses_statuses = true,
                Some(Condition::Headers) => uses_headers = true,
                Some(Condition::Grpc(code)) => on.grpc.push(code),
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

/// A percentage, in parts of a million; all if there is none.
pub(super) fn parts(path: Path<'_>, value: Option<&Scalar<'_>>, reading: &mut Reading) -> u32 {
    let Some(value) = value else { return Fault::ALL };
    let percent = value
        .parse::<f64>()
        .ok()
        .filter(|percent| (0.0..=100.0).contains(percent));
    match percent {
        // At most a million.
        Some(percent) => (percent * 10_000.0).round() as u32,
        None => {
            reading.report(
                path,
                value,
                "is not a percentage",
                "write a number from 0 to 100, for example 0.5",
            );
            0
        }
    }
}

pub(super) fn status(path: Path<'_>, value: &Scalar<'_>, reading: &mut Reading) -> Option<StatusCode> {
    let code = reading.count(path, value, STATUSES)?;
    u16::try_from(code)
        .ok()
        .and_then(|code| StatusCode::from_u16(code).ok())
}

impl RedirectShape<'_> {
    pub(super) fn compile(&self, path: Path<'_>, reading: &mut Reading) -> Redirect {
        const REDIRECTS: [(&str, StatusCode); 5] = [
            ("301", StatusCode::MOVED_PERMANENTLY),
            ("302", StatusCode::FOUND),
            ("303", StatusCode::SEE_OTHER),
            ("307", StatusCode::TEMPORARY_REDIRECT),
            ("308", StatusCode::PERMANENT_REDIRECT),
        ];
        const SCHEMES: [(&str, &str); 2] = [("http", "http"), ("https", "https")];
        if self.path.is_some()
            && let Some(prefix) = &self.prefix
        {
            reading.report(path.field("prefix"), prefix, "`path` is given too", "remove one");
        }
        let status = reading.choice(path.field("status"), self.status.as_ref(), &REDIRECTS);
        let scheme = reading.choice(path.field("scheme"), self.scheme.as_ref(), &SCHEMES);
        let host = self.host.as_ref();
        let port = self.port.as_ref();
        Redirect {
            status: status.unwrap_or(StatusCode::MOVED_PERMANENTLY),
            scheme: scheme.map(str::to_owned),
            host: host
                .filter(|host| host_value(path.field("host"), host, reading).is_some())
                .map(|host| host.to_string()),
            port: port.and_then(|port| reading.port(path.field("port"), port)),
            path: (self.path.as_ref()).map(|value| location_path(path.field("path"), value, reading)),
            prefix: (self.prefix.as_ref()).map(|value| path_value(path.field("prefix"), value, reading)),
        }
    }
}

/// As [`path_value`], perhaps with a query.
fn location_path(path: Path<'_>, value: &Scalar<'_>, reading: &mut Reading) -> String {
    if !value.starts_with('/') || !value.bytes().all(|b| b.is_ascii_graphic()) {
        reading.report(
            path,
            value,
            "is not a path",
            "write visible ASCII characters from `/` on",
        );
    }
    value.to_string()
}

impl DirectShape<'_> {
    pub(super) fn compile(&self, path: Path<'_>, reading: &mut Reading) -> DirectResponse {
        DirectResponse {
            status: status(path.field("status"), &self.status, reading).unwrap_or_default(),
            body: self.body.as_ref().map_or_else(String::new, |body| body.to_string()),
        }
    }
}
