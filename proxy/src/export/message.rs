//! What a batch is put into: one message, of which each kind of collector has its own.

use bytes::Bytes;
use prost::Message;
use underpass_config::Text;

use super::{als, otlp};

pub use super::otlp::KeyValue;

/// Who the proxy says that it is.
const SDK: &str = "underpass";
/// gRPC's PROTOCOL-HTTP2.md, `Length-Prefixed-Message`: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// What batches of a queue are put into.
#[derive(Debug)]
pub enum Envelope {
    /// Spans.
    Spans(Otlp),
    /// Entries of OpenTelemetry's logs.
    Logs(Otlp),
    /// Entries of a log of Envoy's access log service, by whom.
    Entries(als::Identifier),
}

/// What spans and logs are of.
#[derive(Debug)]
pub struct Otlp {
    resource: otlp::Resource,
    scope: Option<otlp::Scope>,
}

/// A text under a name.
pub fn text(name: &str, value: impl Into<String>) -> KeyValue {
    KeyValue {
        key: name.to_owned(),
        value: Some(otlp::AnyValue {
            value: Some(otlp::any_value::Value::StringValue(value.into())),
        }),
    }
}

impl Otlp {
    /// Of spans, with these attributes of the process.
    pub fn of_spans(resource: &[(Text, Text)]) -> Self {
        let version = env!("CARGO_PKG_VERSION");
        let own = [
            ("telemetry.sdk.language", "rust"),
            ("telemetry.sdk.name", SDK),
            ("telemetry.sdk.version", version),
        ];
        let own = own.into_iter().map(|(name, value)| text(name, value));
        let said = resource.iter().map(|(name, value)| text(name, &**value));
        Self {
            resource: otlp::Resource {
                attributes: own.chain(said).collect(),
            },
            scope: Some(otlp::Scope {
                name: SDK.to_owned(),
                version: version.to_owned(),
            }),
        }
    }

    /// Of logs, with these attributes of the process.
    pub fn of_logs(attributes: Vec<KeyValue>) -> Self {
        Self {
            resource: otlp::Resource { attributes },
            scope: None,
        }
    }

    fn request(&self, items: Vec<Vec<u8>>) -> otlp::ExportRequest {
        otlp::ExportRequest {
            of_resource: vec![otlp::OfResource {
                resource: Some(self.resource.clone()),
                of_scope: vec![otlp::OfScope {
                    scope: self.scope.clone(),
                    items,
                }],
            }],
        }
    }
}

impl Envelope {
    /// For metrics.
    pub(super) fn signal(&self) -> &'static str {
        match self {
            Self::Spans(_) => "spans",
            Self::Logs(_) | Self::Entries(_) => "logs",
        }
    }

    /// The method of gRPC that it is for.
    pub(super) fn method(&self) -> &'static str {
        match self {
            Self::Spans(_) => "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
            Self::Logs(_) => "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
            Self::Entries(_) => "/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs",
        }
    }

    /// Whether the answer says how many items could not be used.
    pub(super) fn is_otlp(&self) -> bool {
        !matches!(self, Self::Entries(_))
    }

    /// The message, as gRPC has it or as it is.
    pub(super) fn encoded(&self, items: Vec<Vec<u8>>, is_grpc: bool) -> Bytes {
        match self {
            Self::Spans(otlp) | Self::Logs(otlp) => encoded(&otlp.request(items), is_grpc),
            Self::Entries(identifier) => {
                let message = als::StreamAccessLogsMessage {
                    identifier: Some(identifier.clone()),
                    http_logs: Some(als::HttpLogs { log_entry: items }),
                };
                encoded(&message, is_grpc)
            }
        }
    }
}

fn encoded(message: &impl Message, is_grpc: bool) -> Bytes {
    let length = message.encoded_len();
    let mut bytes = Vec::with_capacity(PREFIX + length);
    if is_grpc {
        bytes.push(0);
        // A batch is far from 4 GiB.
        bytes.extend(u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    }
    // A vector has room for all of it.
    let _ = message.encode(&mut bytes);
    bytes.into()
}

/// How many items an answer says could not be used, and why.
pub(super) fn rejected(answer: &[u8], is_grpc: bool) -> Option<otlp::PartialSuccess> {
    let message = match is_grpc {
        true => answer.get(PREFIX..)?,
        false => answer,
    };
    let partial = otlp::ExportResponse::decode(message).ok()?.partial_success?;
    (partial.rejected > 0).then_some(partial)
}
