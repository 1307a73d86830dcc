//! `metrics:` of a route table: Istio's `Telemetry.metrics.overrides`.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::super::reading::{Path, Reading, YES_OR_NO};
use super::super::scalar::Scalar;
use super::headers::format;
use super::routes::any_name;
use crate::http::{AddedLabel, MetricSettings, RequestMetric, ServiceName, Stage};

/// What one metric, or all, are changed by.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MetricShape<'a> {
    #[serde(borrow)]
    metric: Scalar<'a>,
    disabled: Option<Scalar<'a>>,
    #[serde(default)]
    remove_labels: Vec<Scalar<'a>>,
    #[serde(default)]
    labels: BTreeMap<Scalar<'a>, Scalar<'a>>,
}

/// `service:` of a cluster.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ServiceNameShape<'a> {
    #[serde(borrow)]
    hostname: Scalar<'a>,
    name: Option<Scalar<'a>>,
    namespace: Option<Scalar<'a>>,
}

const ALL: &[RequestMetric] = &RequestMetric::ALL;
/// Istio's names of its metrics, but for those of TCP.
const METRICS: [(&str, &[RequestMetric]); 7] = [
    ("ALL_METRICS", ALL),
    ("REQUEST_COUNT", &[RequestMetric::Count]),
    ("REQUEST_DURATION", &[RequestMetric::Duration]),
    ("REQUEST_SIZE", &[RequestMetric::RequestBytes]),
    ("RESPONSE_SIZE", &[RequestMetric::ResponseBytes]),
    ("GRPC_REQUEST_MESSAGES", &[RequestMetric::RequestMessages]),
    ("GRPC_RESPONSE_MESSAGES", &[RequestMetric::ResponseMessages]),
];

pub(super) fn compile(path: Path<'_>, shapes: &[MetricShape<'_>], reading: &mut Reading) -> MetricSettings {
    let mut settings = MetricSettings::default();
    for (index, shape) in shapes.iter().enumerate() {
        let path = path.item(index);
        let metrics = reading.choice(path.field("metric"), Some(&shape.metric), &METRICS);
        let metrics = metrics.unwrap_or_default();
        let disabled = reading.choice(path.field("disabled"), shape.disabled.as_ref(), &YES_OR_NO);
        if disabled.unwrap_or(false) {
            settings.disabled.extend(metrics);
        }
        for (place, label) in shape.remove_labels.iter().enumerate() {
            let list = path.field("remove_labels");
            let name = label_name(list.item(place), label, reading);
            settings
                .removed
                .extend(metrics.iter().map(|metric| (*metric, name.clone())));
        }
        for (name, value) in &shape.labels {
            let labels = path.field("labels");
            let path = labels.key(name);
            let label = label_name(path, name, reading);
            if let Some(value) = format(path, value, Stage::Request, reading) {
                settings.added.push(AddedLabel {
                    metrics: metrics.to_vec(),
                    name: label,
                    value,
                });
            }
        }
    }
    settings
}

/// A label's name (the data model of Prometheus).
fn label_name(path: Path<'_>, name: &str, reading: &mut Reading) -> crate::Text {
    let is_letter = |byte: u8| byte.is_ascii_alphabetic() || byte == b'_';
    let begins = name.bytes().next().is_some_and(is_letter) && !name.starts_with("__");
    if !begins || !name.bytes().all(|byte| is_letter(byte) || byte.is_ascii_digit()) {
        let remedy = "use letters, digits and underscores, for example request_host";
        reading.report(path, name, "is not the name of a label", remedy);
    }
    reading.text(name)
}

impl ServiceNameShape<'_> {
    pub(super) fn compile(&self, path: Path<'_>, reading: &mut Reading) -> ServiceName {
        let hostname = reading.hostname(path.field("hostname"), Some(&self.hostname));
        let hostname = hostname.unwrap_or_else(|| reading.text(&self.hostname));
        // istiod's names of services in Kubernetes: NAME.NAMESPACE.svc.DOMAIN
        let mut parts = hostname.split('.');
        let (first, second) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let name = match &self.name {
            Some(name) => any_name(path.field("name"), name, reading),
            None => first.into(),
        };
        let namespace = match &self.namespace {
            Some(namespace) => any_name(path.field("namespace"), namespace, reading),
            None if parts.next() == Some("svc") => second.into(),
            None => "".into(),
        };
        ServiceName {
            hostname,
            name,
            namespace,
        }
    }
}
