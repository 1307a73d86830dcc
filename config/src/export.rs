//! Who is told what a node has seen, message by message: a collector of spans or of logs, in a cluster.

use std::time::Duration;

use http::{HeaderName, HeaderValue};
use serde::{Serialize, Serializer};

use crate::{ByteSize, Text};

/// How a collector is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// One of the clusters.
    pub cluster: Text,
    /// What is spoken with it.
    pub protocol: ExportProtocol,
    /// Whom it is asked for by.
    pub authority: HeaderValue,
    /// What it is told beside (`initial_metadata`, `request_headers_to_add`).
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// From a message to its answer.
    pub timeout: Duration,
    /// How much goes in one message, and how much may wait.
    pub batching: Batching,
}

/// What is spoken with a collector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExportProtocol {
    /// gRPC.
    Grpc,
    /// HTTP, with protobuf in the body (OTLP/HTTP), at this path.
    Http(String),
}

/// How much goes in one message, and how much may wait for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batching {
    /// So many are sent without waiting for more.
    pub items: u32,
    /// So long one waits for others at most.
    pub interval: Duration,
    /// What waits beyond that is dropped.
    pub pending: ByteSize,
}

impl Export {
    /// Default of [`Export::timeout`], that of OTLP's exporters.
    pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

    /// Where traces go by HTTP, unless it is said (the OTLP specification).
    pub const TRACES_PATH: &str = "/v1/traces";

    /// By what a collector is asked for that nobody has a host of.
    pub const ANY_HOST: HeaderValue = HeaderValue::from_static("collector");

    /// A host, perhaps with a port, by which a collector may be asked for; none: the text is no such thing.
    pub fn host(text: &str) -> Option<HeaderValue> {
        let is_one = text.parse::<http::uri::Authority>().is_ok() && !text.contains(['@', '%']);
        HeaderValue::try_from(text).ok().filter(|_| is_one)
    }

    /// Whether a text may be the path that it is told at by HTTP.
    pub fn is_path(text: &str) -> bool {
        text.starts_with('/') && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#')
    }
}

impl Batching {
    /// Of spans: what Envoy's tracer has (`tracing.opentelemetry.min_flush_spans`, `flush_interval_ms`), and a bound for what it does not bound.
    pub const SPANS: Self = Self {
        items: 5,
        interval: Duration::from_secs(5),
        pending: ByteSize(4 << 20),
    };

    /// Of logs: Envoy's interval (`buffer_flush_interval`).
    pub const LOGS: Self = Self {
        items: 64,
        interval: Duration::from_secs(1),
        pending: ByteSize(4 << 20),
    };
}

/// Without the headers, which may have secrets.
impl Serialize for Export {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let protocol = match &self.protocol {
            ExportProtocol::Grpc => "grpc".to_owned(),
            ExportProtocol::Http(path) => format!("http {path}"),
        };
        serializer.collect_str(&format_args!("{} by {protocol}", self.cluster))
    }
}
