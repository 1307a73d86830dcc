//! What a table's requests are counted by (Istio's `Telemetry.metrics`, as istiod compiles it for `istio.stats`).

use std::sync::{Arc, LazyLock};

use super::Format;
use crate::Text;

/// One of Istio's metrics of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RequestMetric {
    /// `istio_requests_total`
    Count,
    /// `istio_request_duration_milliseconds`
    Duration,
    /// `istio_request_bytes`
    RequestBytes,
    /// `istio_response_bytes`
    ResponseBytes,
    /// `istio_request_messages_total`
    RequestMessages,
    /// `istio_response_messages_total`
    ResponseMessages,
}

impl RequestMetric {
    /// All, in a lasting order.
    pub const ALL: [Self; 6] = [
        Self::Count,
        Self::Duration,
        Self::RequestBytes,
        Self::ResponseBytes,
        Self::RequestMessages,
        Self::ResponseMessages,
    ];
}

/// What differs from the metrics as they are without a word.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MetricSettings {
    /// Metrics that are not told.
    pub disabled: Vec<RequestMetric>,
    /// Labels that a metric does not have.
    pub removed: Vec<(RequestMetric, Text)>,
    /// Labels that metrics have besides, or instead of what they are otherwise.
    pub added: Vec<AddedLabel>,
}

impl MetricSettings {
    /// Those of tables that say nothing: one object, since series are told apart by it.
    pub fn unsaid() -> Arc<Self> {
        static UNSAID: LazyLock<Arc<MetricSettings>> = LazyLock::new(Arc::default);
        UNSAID.clone()
    }
}

/// A label that is told of each request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddedLabel {
    /// Of which metrics.
    pub metrics: Vec<RequestMetric>,
    /// Its name.
    pub name: Text,
    /// Its value; what is not known is `unknown`.
    pub value: Format,
}

/// The service that a cluster stands for (`filter_metadata.istio.services` of istiod's clusters).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServiceName {
    /// Its host name.
    pub hostname: Text,
    /// Its name.
    pub name: Text,
    /// Its namespace.
    pub namespace: Text,
}
