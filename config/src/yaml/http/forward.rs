//! `forward`: how requests go on to clusters.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

use serde::Deserialize;

use super::super::reading::{Path, Reading};
use super::super::scalar::Scalar;
use super::actions::{host_value, path_value};
use super::balancing::labels;
use super::cors::CorsShape;
use super::fault::FaultShape;
use super::hash::HashShape;
use super::headers::EditsShape;
use super::mirror::MirrorShape;
use super::retry::RetryShape;
use super::times::{DurationShape, duration, grpc_timeout};
use super::{regex, report_unknown};
use crate::http::{ConnectMode, Cors, Forward, Http, Labels, PathRewrite, Substitution, WeightedCluster};

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
    cors: Option<CorsShape<'a>>,
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

const CONNECT_MODES: [(&str, ConnectMode); 2] = [("tcp", ConnectMode::Tcp), ("pass", ConnectMode::Pass)];
const WEIGHTS: RangeInclusive<u32> = 0..=1_000_000;

impl ForwardShape<'_> {
    /// `of_host`: the policy of the route's virtual host.
    pub(super) fn compile(
        &self,
        path: Path<'_>,
        http: &Http,
        of_host: Option<&Arc<Cors>>,
        reading: &mut Reading,
    ) -> Option<Forward> {
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
        let own = self.cors.as_ref();
        let own = own.map(|cors| Arc::new(cors.compile(path.field("cors"), of_host.map(|cors| &**cors), reading)));
        let list = path.field("mirrors");
        let mirrors = self.mirrors.iter().enumerate();
        let mirrors = mirrors.map(|(index, mirror)| mirror.compile(list.item(index), http, reading));
        let mirrors = mirrors.collect();
        let mut forward = forward?;
        forward.mirrors = mirrors;
        forward.cors = own.or_else(|| of_host.cloned());
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
pub(in crate::yaml) fn check_cluster(path: Path<'_>, name: &str, http: &Http, reading: &mut Reading) {
    if http.cluster(name).is_none() {
        let known = http.clusters.keys().map(|name| &**name);
        report_unknown(path, name, "is not one of `http.clusters`", known, reading);
    }
}
