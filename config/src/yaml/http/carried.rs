//! `http.services[].tcp`: where the bytes of a service go that speaks no HTTP.

use std::ops::RangeInclusive;

use serde::Deserialize;

use super::super::reading::{Path, Reading, YES_OR_NO};
use super::super::scalar::Scalar;
use super::authorization::{self, AuthorizationShape, Judged};
use super::ext_authz::Providers;
use super::forward::check_cluster;
use super::times::limit;
use crate::http::{Filter, Http, MetricSettings};
use crate::waypoint::{TcpChain, TcpCluster};

/// A chain of TCP.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct TcpShape<'a> {
    #[serde(borrow)]
    cluster: Option<Scalar<'a>>,
    clusters: Vec<WeightedShape<'a>>,
    hash_source_ip: Option<Scalar<'a>>,
    authorization: Vec<AuthorizationShape<'a>>,
    idle_timeout: Option<Scalar<'a>>,
    max_duration: Option<Scalar<'a>>,
    detection_timeout: Option<Scalar<'a>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WeightedShape<'a> {
    #[serde(borrow)]
    cluster: Scalar<'a>,
    weight: Scalar<'a>,
}

const WEIGHTS: RangeInclusive<u32> = 0..=1_000_000;

impl TcpShape<'_> {
    pub(super) fn compile(
        &self,
        path: Path<'_>,
        http: &Http,
        providers: &Providers,
        reading: &mut Reading,
    ) -> TcpChain {
        let clusters = self.clusters(path, http, reading);
        if clusters.iter().all(|cluster| cluster.weight == 0) {
            let remedy = "write `cluster: NAME`, or `clusters` with a weight above 0";
            reading.report(path, "", "leads to no cluster", remedy);
        }
        let by_source = self.hash_source_ip.as_ref();
        let by_source = reading.choice(path.field("hash_source_ip"), by_source, &YES_OR_NO);
        let judged = (Judged::Connections, providers);
        let rules = authorization::compile(path.field("authorization"), &self.authorization, judged, reading);
        let rules = rules.into_iter().filter_map(|(_, filter)| match filter {
            Filter::Rbac(rules) => Some(rules),
            _ => None,
        });
        let rules = rules.collect();
        let idle = path.field("idle_timeout");
        let idle = reading.duration_or_zero(idle, self.idle_timeout.as_ref(), TcpChain::IDLE_TIMEOUT);
        let detection = path.field("detection_timeout");
        TcpChain {
            clusters,
            by_source: by_source.unwrap_or(false),
            rules,
            idle_timeout: (!idle.is_zero()).then_some(idle),
            max_duration: limit(path.field("max_duration"), self.max_duration.as_ref(), reading),
            detection_timeout: reading.duration_or_zero(
                detection,
                self.detection_timeout.as_ref(),
                TcpChain::DETECTION_TIMEOUT,
            ),
            metrics: MetricSettings::unsaid(),
            reporting_interval: None,
            logs: None,
            dynamic: None,
            destination: None,
        }
    }

    /// Reports what decides nothing where no HTTP can be spoken.
    pub(super) fn check_alone(&self, path: Path<'_>, reading: &mut Reading) {
        if let Some(value) = &self.detection_timeout {
            let problem = "decides nothing: there are no `routes` beside `tcp`";
            reading.report(path.field("detection_timeout"), value, problem, "remove it");
        }
    }

    fn clusters(&self, path: Path<'_>, http: &Http, reading: &mut Reading) -> Vec<TcpCluster> {
        let mut clusters = Vec::new();
        if let Some(name) = &self.cluster {
            check_cluster(path.field("cluster"), name, http, reading);
            if !self.clusters.is_empty() {
                reading.report(path.field("cluster"), name, "`clusters` is given too", "remove one");
            }
            clusters.push(TcpCluster {
                cluster: reading.text(name),
                weight: 1,
            });
        }
        for (index, shape) in self.clusters.iter().enumerate() {
            let list = path.field("clusters");
            let path = list.item(index);
            check_cluster(path.field("cluster"), &shape.cluster, http, reading);
            let weight = reading.count(path.field("weight"), &shape.weight, WEIGHTS);
            clusters.push(TcpCluster {
                cluster: reading.text(&shape.cluster),
                weight: weight.unwrap_or(1),
            });
        }
        clusters
    }
}
