//! Entries of logs that others keep, as OpenTelemetry and as Envoy's access log service have them.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::header::{REFERER, USER_AGENT};
use http::{HeaderName, Method, Version};
use prost::Message;
use underpass_config::http::{Fact, Facts, Field};
use underpass_config::{GrpcLog, JsonFormat, OtlpLog, RESPONSE_FLAGS};

use super::{Fields, Logged, find};
use crate::export::otlp::any_value::Value;
use crate::export::{als, otlp};
use crate::http::facts::Ends;
use crate::http::intake::{X_FORWARDED_FOR, X_REQUEST_ID};
use crate::http::upload::Upload;
use crate::telemetry::Entry;

/// What stands in a text for what is not known, as in a line.
const UNKNOWN: &str = "-";
const X_ENVOY_ORIGINAL_PATH: HeaderName = HeaderName::from_static("x-envoy-original-path");
/// By their numbers in `RequestMethod` (envoy.config.core.v3); others are 0.
const METHODS: [Method; 9] = [
    Method::GET,
    Method::HEAD,
    Method::POST,
    Method::PUT,
    Method::DELETE,
    Method::CONNECT,
    Method::OPTIONS,
    Method::TRACE,
    Method::PATCH,
];

impl Entry for Logged<'_> {
    fn log_record(&self, log: &OtlpLog) -> Vec<u8> {
        let ids = self.record.traced.as_ref().and_then(|traced| traced.ids());
        let record = otlp::LogRecord {
            trace_id: ids.map(|(trace, _)| trace.to_vec()).unwrap_or_default(),
            span_id: ids.map(|(_, span)| span.to_vec()).unwrap_or_default(),
            ..log_record(self, log, self.record.started())
        };
        record.encode_to_vec()
    }

    fn http_entry(&self, log: &GrpcLog) -> Vec<u8> {
        let entry = als::HttpAccessLogEntry {
            common_properties: Some(self.common()),
            protocol_version: match self.record.version {
                Some(Version::HTTP_2) => 3,
                Some(_) => 2,
                None => 0,
            },
            request: Some(self.request(log)),
            response: Some(self.response(log)),
        };
        entry.encode_to_vec()
    }
}

/// An entry of no trace, of what came at this time.
pub fn log_record(facts: &dyn Facts, log: &OtlpLog, started: SystemTime) -> otlp::LogRecord {
    let attributes = log.attributes.iter().map(|(name, format)| otlp::KeyValue {
        key: name.to_string(),
        value: Some(value(facts, format)),
    });
    otlp::LogRecord {
        time_unix_nano: u64::try_from(since_epoch(started).as_nanos()).unwrap_or(u64::MAX),
        body: log.body.as_ref().map(|format| value(facts, format)),
        attributes: attributes.collect(),
        ..Default::default()
    }
}

/// Texts are texts, whatever operator they are of (as with Envoy).
fn value(facts: &dyn Facts, format: &JsonFormat) -> otlp::AnyValue {
    let value = match format {
        JsonFormat::Text(text) => Value::StringValue(text.line(facts, UNKNOWN)),
        JsonFormat::Fixed(serde_json::Value::Bool(fixed)) => Value::BoolValue(*fixed),
        JsonFormat::Fixed(fixed) => match (fixed.as_i64(), fixed.as_f64()) {
            (Some(number), _) => Value::IntValue(number),
            (None, Some(number)) => Value::DoubleValue(number),
            (None, None) => Value::StringValue(fixed.to_string()),
        },
        JsonFormat::Object(fields) => {
            let fields = fields.iter().map(|(name, format)| otlp::KeyValue {
                key: name.clone(),
                value: Some(value(facts, format)),
            });
            Value::KvlistValue(otlp::KeyValueList {
                values: fields.collect(),
            })
        }
        JsonFormat::List(items) => Value::ArrayValue(otlp::ArrayValue {
            values: items.iter().map(|item| value(facts, item)).collect(),
        }),
    };
    otlp::AnyValue { value: Some(value) }
}

/// What is the same of requests and of connections, which have lasted so long.
pub fn common(ends: &Ends<'_>, age: Duration, flags: &str) -> als::AccessLogCommon {
    let session = ends.session;
    let client = Some(address(session.source.address()));
    als::AccessLogCommon {
        downstream_remote_address: client.clone(),
        downstream_direct_remote_address: client,
        downstream_local_address: Some(address(ends.local)),
        tls_properties: session.source.identity().map(|identity| als::TlsProperties {
            peer_certificate_properties: Some(als::Certificate {
                subject_alt_name: vec![als::SubjectAltName {
                    uri: identity.to_string(),
                }],
            }),
        }),
        start_time: Some(timestamp(ends.started)),
        duration: Some(duration(age)),
        upstream_remote_address: ends.endpoint.map(address),
        response_flags: response_flags(flags),
        ..Default::default()
    }
}

/// `ResponseFlags`: each flag is a field, by its place in the list; one of them is a message. None: there are none.
fn response_flags(flags: &str) -> Option<Vec<u8>> {
    const UNAUTHORIZED: &str = "UAEX";
    /// `unauthorized_details { reason: EXTERNAL_SERVICE }`, without its key.
    const EXTERNAL_SERVICE: [u8; 2] = [1 << 3, 1];
    let mut out = Vec::new();
    for flag in flags.split(',') {
        let Some(place) = RESPONSE_FLAGS.iter().position(|(short, _)| *short == flag) else {
            continue;
        };
        // There are a few dozens.
        let field = u32::try_from(place).unwrap_or(0) + 1;
        match flag == UNAUTHORIZED {
            false => prost::encoding::bool::encode(field, &true, &mut out),
            true => prost::encoding::bytes::encode(field, &EXTERNAL_SERVICE.to_vec(), &mut out),
        }
    }
    (!out.is_empty()).then_some(out)
}

impl Logged<'_> {
    /// A fact as a text; empty, if it is not known.
    fn fact(&self, fact: &Fact) -> String {
        let mut out = Vec::new();
        self.tell(fact, &http::HeaderMap::new(), &mut out);
        String::from_utf8_lossy(&out).into_owned()
    }

    fn common(&self) -> als::AccessLogCommon {
        let record = self.record;
        als::AccessLogCommon {
            time_to_last_rx_byte: self.request_duration().map(duration),
            time_to_first_upstream_rx_byte: record.answered_after.map(duration),
            time_to_last_downstream_tx_byte: Some(record.age()).filter(|_| record.is_complete).map(duration),
            upstream_local_address: record.upload.as_ref().and_then(Upload::local).map(address),
            // That of the endpoint, as with Envoy: without one there is none.
            upstream_cluster: self
                .cluster()
                .filter(|_| record.endpoint.is_some())
                .unwrap_or_default()
                .to_owned(),
            upstream_transport_failure_reason: record.transport_failure.as_deref().unwrap_or_default().to_owned(),
            route_name: record
                .route
                .as_ref()
                .map(|(_, route)| route.name.to_string())
                .unwrap_or_default(),
            upstream_request_attempt_count: self.attempts(),
            stream_id: self.header(&X_REQUEST_ID),
            ..common(&record.ends(), record.age(), &record.flags.to_string())
        }
    }

    fn header(&self, name: &HeaderName) -> String {
        self.lossy(&Field::Header(name.clone())).unwrap_or_default()
    }

    fn request(&self, log: &GrpcLog) -> als::Request {
        let method = self.kept.asked.as_ref().map(|asked| &asked.method);
        let place = METHODS.iter().position(|known| Some(known) == method);
        als::Request {
            request_method: place.and_then(|place| i32::try_from(place + 1).ok()).unwrap_or(0),
            scheme: self.lossy(&Field::Scheme).unwrap_or_default(),
            authority: self.lossy(&Field::Authority).unwrap_or_default(),
            path: self.lossy(&Field::Path).unwrap_or_default(),
            user_agent: self.header(&USER_AGENT),
            referer: self.header(&REFERER),
            forwarded_for: self.header(&X_FORWARDED_FOR),
            request_id: self.header(&X_REQUEST_ID),
            original_path: self.header(&X_ENVOY_ORIGINAL_PATH),
            request_body_bytes: self.record.received(),
            request_headers: named(&log.request_headers, &self.kept.request),
        }
    }

    fn response(&self, log: &GrpcLog) -> als::Response {
        let record = self.record;
        als::Response {
            response_code: (record.status > 0).then(|| als::UInt32Value {
                value: record.status.into(),
            }),
            response_body_bytes: record.sent,
            response_headers: named(&log.response_headers, &self.kept.response),
            response_trailers: named(&log.response_trailers, &self.kept.trailers),
            response_code_details: self.fact(&Fact::Details),
        }
    }
}

fn named(names: &[HeaderName], fields: &Fields) -> std::collections::HashMap<String, String> {
    let told = names.iter().filter_map(|name| {
        let value = String::from_utf8_lossy(find(fields, name)?).into_owned();
        Some((name.to_string(), value))
    });
    told.collect()
}

pub fn address(address: SocketAddr) -> als::Address {
    als::Address {
        socket_address: Some(als::SocketAddress {
            address: address.ip().to_string(),
            port_value: address.port().into(),
        }),
    }
}

fn since_epoch(time: SystemTime) -> Duration {
    time.duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn parts(duration: Duration) -> (i64, i32) {
    // The nanoseconds are less than a billion.
    let nanos = i32::try_from(duration.subsec_nanos()).unwrap_or(0);
    (i64::try_from(duration.as_secs()).unwrap_or(i64::MAX), nanos)
}

fn timestamp(time: SystemTime) -> als::Timestamp {
    let (seconds, nanos) = parts(since_epoch(time));
    als::Timestamp { seconds, nanos }
}

fn duration(duration: Duration) -> als::Duration {
    let (seconds, nanos) = parts(duration);
    als::Duration { seconds, nanos }
}
