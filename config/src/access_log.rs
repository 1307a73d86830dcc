//! Lines about requests that are over, in Envoy's words: what an access log's `log_format` and `filter` are there, and Istio's Telemetry makes of it.
//!
//! **One idea.** All that can be read is read when the configuration changes; a request is told only what some line asks for ([`WantedFields`]). Formats and
//! filters ask for the same facts ([`Facts`]), so that there is one who tells them.

mod expression;
mod filter;
mod format;
mod remote;
mod wanted;

use std::path::PathBuf;

use serde::{Serialize, Serializer};

pub use expression::{BadExpression, Expression};
pub use filter::{LogFilter, RESPONSE_FLAGS};
pub use format::{ISTIO_JSON, ISTIO_TEXT, JsonFormat, RequestFormat};
pub use remote::{GrpcLog, OtlpLog};
pub use wanted::WantedFields;

use crate::http::Fact;

/// One log of requests.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RequestLog {
    /// Who is told.
    #[serde(flatten)]
    pub to: LogTo,
    /// Which requests have one.
    #[serde(skip_serializing_if = "LogFilter::is_empty")]
    pub filter: LogFilter,
}

/// Who is told of requests.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LogTo {
    /// A collector of OpenTelemetry's logs (`access_loggers.open_telemetry`).
    OpenTelemetry(OtlpLog),
    /// A server of Envoy's access log service (`access_loggers.http_grpc`).
    Grpc(GrpcLog),
    /// A file, of lines.
    #[serde(untagged)]
    File {
        /// It is appended to; `-` and `/dev/stdout` are standard output, `/dev/stderr` standard error.
        path: PathBuf,
        /// What a line says.
        #[serde(serialize_with = "as_written")]
        format: RequestFormat,
    },
}

fn as_written<S: Serializer>(format: &RequestFormat, serializer: S) -> Result<S::Ok, S::Error> {
    format!("{format:?}").serialize(serializer)
}

impl RequestLog {
    /// What it asks for.
    fn facts<'a>(&'a self, found: &mut dyn FnMut(&'a Fact)) {
        match &self.to {
            LogTo::File { format, .. } => format.facts(found),
            LogTo::OpenTelemetry(log) => log.facts(found),
            // What its entries say is always the same.
            LogTo::Grpc(_) => {}
        }
        self.filter.facts(found);
    }
}
