//! Logs of requests that others keep: what their entries say.

use serde::Serialize;

use super::JsonFormat;
use crate::Text;
use crate::export::Export;
use crate::http::Fact;

use http::HeaderName;

/// A collector of OpenTelemetry's logs (`OpenTelemetryAccessLogConfig`).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OtlpLog {
    /// How it is told.
    pub export: Export,
    /// The log's name.
    pub log_name: Text,
    /// Whether it is told of the log's name and of the node (unless `disable_builtin_labels`).
    pub has_builtin_labels: bool,
    /// What else it is told of whom the log is of (`resource_attributes`).
    pub resource: Vec<(Text, Text)>,
    /// The body of an entry; none: it has none.
    #[serde(skip)]
    pub body: Option<JsonFormat>,
    /// The attributes of an entry.
    #[serde(skip)]
    pub attributes: Vec<(Text, JsonFormat)>,
}

/// A server of Envoy's access log service (`HttpGrpcAccessLogConfig`).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GrpcLog {
    /// How it is told.
    pub export: Export,
    /// The log's name.
    pub log_name: Text,
    /// What else an entry says of the request's head (`additional_request_headers_to_log`).
    #[serde(skip)]
    pub request_headers: Vec<HeaderName>,
    /// Of the response's head.
    #[serde(skip)]
    pub response_headers: Vec<HeaderName>,
    /// Of its trailers.
    #[serde(skip)]
    pub response_trailers: Vec<HeaderName>,
}

impl OtlpLog {
    /// What it asks for.
    pub(super) fn facts<'a>(&'a self, found: &mut dyn FnMut(&'a Fact)) {
        for (_, format) in &self.attributes {
            format.facts(found);
        }
        if let Some(body) = &self.body {
            body.facts(found);
        }
    }
}
