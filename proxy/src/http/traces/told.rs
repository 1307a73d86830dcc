//! What is told of a request that is over: its span, and one for each try where those have any, with the tags of Envoy's `HttpTracerUtility`.

use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use http::HeaderName;
use http::header::CONTENT_TYPE;
use prost::Message;
use underpass_config::http::{Field, MetadataTag, SpanDirection, Tracing};

use super::{Name, Reported, Span, Try};
use crate::export::otlp;
use crate::export::{KeyValue, text};
use crate::http::facts::protocol;
use crate::http::flags::Flags;
use crate::http::logged::Logged;
use crate::http::record::Record;
use crate::http::reply::is_kind_of_grpc;

/// opentelemetry-proto's `SpanKind`, `StatusCode` and `SpanFlags`.
const SERVER: i32 = 2;
const CLIENT: i32 = 3;
const ERROR: i32 = 2;
const IS_SAMPLED: u32 = 1;
const HAS_IS_REMOTE: u32 = 1 << 8;
const IS_REMOTE: u32 = 1 << 9;

/// What dry-run policies tell under this filter's name (Envoy's RBAC).
const RBAC: &str = "envoy.filters.http.rbac";

/// The methods that OpenTelemetry's conventions know (`http.request.method`); all others are one.
const METHODS: [&str; 9] = [
    "CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE",
];
const OTHER_METHOD: &str = "_OTHER";

/// gRPC's statuses that are a server's failure: UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS.
const GRPC_FAILURES: [u16; 6] = [2, 4, 12, 13, 14, 15];

/// Tags, each name once: what is said again takes the place of what was said.
#[derive(Default)]
struct Tags(Vec<KeyValue>);

impl Tags {
    fn set(&mut self, name: &str, value: impl Into<String>) {
        let mut value: String = value.into();
        if name == "http.method" && !METHODS.contains(&&*value) {
            value = OTHER_METHOD.to_owned();
        }
        let tag = text(name, value);
        match self.0.iter_mut().find(|known| known.key == name) {
            Some(known) => *known = tag,
            None => self.0.push(tag),
        }
    }
}

/// Queues the spans of a request that is over.
pub(super) fn tell(tracing: &Tracing, span: &Span, reported: &Reported, record: &Record) {
    let ended = SystemTime::now();
    let telling = Telling {
        tracing,
        span,
        reported,
        record,
        logged: Logged {
            record,
            kept: &reported.kept,
        },
    };
    reported.exporter.push(telling.request(ended).encode_to_vec());
    for one in &reported.tries {
        reported.exporter.push(telling.of_try(one, ended).encode_to_vec());
    }
}

struct Telling<'a> {
    tracing: &'a Tracing,
    span: &'a Span,
    reported: &'a Reported,
    record: &'a Record,
    logged: Logged<'a>,
}

/// What a request or a try has come to.
struct CameTo {
    status: u16,
    flags: Flags,
}

impl Telling<'_> {
    fn request(&self, ended: SystemTime) -> otlp::Span {
        let came_to = CameTo {
            status: self.record.status,
            flags: self.record.flags,
        };
        let kind = match self.tracing.direction {
            SpanDirection::Ingress => SERVER,
            SpanDirection::Egress => CLIENT,
        };
        let mut tags = Tags::default();
        self.node(&mut tags);
        self.of_request(&mut tags);
        self.common(&came_to, self.logged.cluster(), &mut tags);
        let grpc = self.of_grpc(&mut tags);
        let parent = self.span.parent;
        otlp::Span {
            trace_id: self.span.context.trace_id.to_vec(),
            span_id: self.span.context.span_id.to_vec(),
            trace_state: String::from_utf8_lossy(&self.span.context.state).into_owned(),
            parent_span_id: parent.map(|parent| parent.to_vec()).unwrap_or_default(),
            name: self.name(),
            kind,
            start_time_unix_nano: nanos(self.record.started()),
            end_time_unix_nano: nanos(ended),
            attributes: tags.0,
            status: status(kind, came_to.status, grpc),
            flags: IS_SAMPLED | HAS_IS_REMOTE | if parent.is_some() { IS_REMOTE } else { 0 },
        }
    }

    /// A try's, below the request's.
    fn of_try(&self, one: &Try, ended: SystemTime) -> otlp::Span {
        let came_to = match &one.given_up {
            Some(given_up) => CameTo {
                status: given_up.status,
                flags: given_up.flags,
            },
            None => CameTo {
                status: self.record.answered_status(),
                flags: self.record.flags.of_last_try(),
            },
        };
        let mut tags = Tags::default();
        if one.number > 0 {
            tags.set("retry.count", one.number.to_string());
        }
        if one.given_up.is_some() {
            tags.set("canceled", "true");
        }
        if let Some(reset) = one.reset {
            tags.set("error", "true");
            tags.set("error.reason", reset);
        }
        tags.set("http.protocol", one.version.map_or("-", protocol));
        tags.set("upstream_address", one.endpoint.to_string());
        tags.set("peer.address", one.endpoint.to_string());
        self.common(&came_to, Some(&one.cluster), &mut tags);
        otlp::Span {
            trace_id: self.span.context.trace_id.to_vec(),
            span_id: one.id.to_vec(),
            trace_state: String::from_utf8_lossy(&self.span.context.state).into_owned(),
            parent_span_id: self.span.context.span_id.to_vec(),
            name: format!("router {} egress", one.cluster),
            kind: CLIENT,
            start_time_unix_nano: nanos(one.began),
            end_time_unix_nano: nanos(one.given_up.as_ref().map_or(ended, |given_up| given_up.at)),
            attributes: tags.0,
            status: status(CLIENT, came_to.status, None),
            flags: IS_SAMPLED | HAS_IS_REMOTE,
        }
    }

    fn name(&self) -> String {
        match (&self.reported.name, self.tracing.direction) {
            (Name::Operation(operation), _) => operation.to_string(),
            (Name::Said(said), _) => String::from_utf8_lossy(said.as_bytes()).into_owned(),
            (Name::Direction, SpanDirection::Ingress) => "ingress".to_owned(),
            (Name::Direction, SpanDirection::Egress) => {
                let authority = self.logged.lossy(&Field::Authority).unwrap_or_default();
                format!("egress {authority}")
            }
        }
    }

    fn node(&self, tags: &mut Tags) {
        let snapshot = self.record.connection().session.node.snapshot();
        let node = &snapshot.config.node;
        tags.set("node_id", &*node.name);
        tags.set("zone", &*node.locality.zone);
    }

    fn header(&self, name: &HeaderName) -> Option<String> {
        self.logged.lossy(&Field::Header(name.clone()))
    }

    fn named(&self, name: &'static str) -> Option<String> {
        self.header(&HeaderName::from_static(name))
    }

    fn of_request(&self, tags: &mut Tags) {
        let (record, logged) = (self.record, &self.logged);
        if let Some(id) = self.named("x-request-id") {
            tags.set("guid:x-request-id", id);
        }
        tags.set("http.url", self.url());
        tags.set("http.method", logged.lossy(&Field::Method).unwrap_or_default());
        let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
        tags.set(
            "downstream_cluster",
            or_dash(self.named("x-envoy-downstream-service-cluster")),
        );
        tags.set("user_agent", or_dash(self.named("user-agent")));
        if let Some(version) = record.version {
            tags.set("http.protocol", protocol(version));
        }
        let peer: SocketAddr = record.connection().session.source.address();
        tags.set("peer.address", peer.ip().to_string());
        if let Some(id) = self.named("x-client-trace-id") {
            tags.set("guid:x-client-trace-id", id);
        }
        if self.is_grpc() {
            tags.set("grpc.path", logged.lossy(&Field::Path).unwrap_or_default());
            tags.set("grpc.authority", logged.lossy(&Field::Authority).unwrap_or_default());
            tags.set("grpc.content_type", self.header(&CONTENT_TYPE).unwrap_or_default());
            if let Some(timeout) = self.named("grpc-timeout") {
                tags.set("grpc.timeout", timeout);
            }
        }
        tags.set("request_size", record.received().to_string());
        tags.set("response_size", record.sent.to_string());
    }

    fn is_grpc(&self) -> bool {
        (self.header(&CONTENT_TYPE)).is_some_and(|kind| is_kind_of_grpc(kind.as_bytes()))
    }

    /// As the client has asked for it, but for the host that it goes on to.
    fn url(&self) -> String {
        let scheme = self.named("x-forwarded-proto").unwrap_or_default();
        let authority = self.logged.lossy(&Field::Authority).unwrap_or_default();
        let original = self.named("x-envoy-original-path");
        let mut path = original.or_else(|| self.logged.lossy(&Field::Path)).unwrap_or_default();
        let most = self.tracing.max_path_tag_length;
        if path.len() > most {
            path.truncate(path.floor_char_boundary(most));
        }
        format!("{scheme}://{authority}{path}")
    }

    /// What a response of gRPC says, and its status.
    fn of_grpc(&self, tags: &mut Tags) -> Option<u16> {
        for (tag, name) in [("grpc.status_code", "grpc-status"), ("grpc.message", "grpc-message")] {
            let said = self.logged.answered(&HeaderName::from_static(name));
            if let Some(said) = said {
                tags.set(tag, String::from_utf8_lossy(said));
            }
        }
        let said = std::str::from_utf8(self.logged.answered(&HeaderName::from_static("grpc-status"))?);
        let status = said.ok()?.parse().ok()?;
        if GRPC_FAILURES.contains(&status) {
            tags.set("error", "true");
        }
        Some(status)
    }

    fn common(&self, came_to: &CameTo, cluster: Option<&str>, tags: &mut Tags) {
        tags.set("component", "proxy");
        if let Some(cluster) = cluster {
            tags.set("upstream_cluster", cluster);
            tags.set("upstream_cluster.name", cluster);
        }
        tags.set("http.status_code", came_to.status.to_string());
        tags.set("response_flags", came_to.flags.to_string());
        if came_to.status == 0 || came_to.status >= 500 {
            tags.set("error", "true");
        }
        for tag in self.tracing.tags() {
            let header = |name: &HeaderName| self.header(name);
            let value = tag
                .value
                .written(&self.logged, header, |metadata| self.metadata(metadata));
            if let Some(value) = value {
                tags.set(&tag.name, value);
            }
        }
    }

    /// What shadow rules have said is all that is known here.
    fn metadata(&self, tag: &MetadataTag) -> Option<String> {
        let [name] = &tag.path[..] else { return None };
        let mut shadow = self.reported.shadow.iter().rev();
        let found = shadow.find(|(key, _)| *tag.filter == *RBAC && key == name);
        found.map(|(_, value)| value.to_string())
    }
}

/// A server's span has an error where the server has failed, a client's where it was not served (OpenTelemetry's conventions for HTTP and gRPC).
fn status(kind: i32, status: u16, grpc: Option<u16>) -> Option<otlp::Status> {
    let is_error = match kind == SERVER {
        true => status >= 500 || grpc.is_some_and(|grpc| GRPC_FAILURES.contains(&grpc)),
        false => status >= 400 || grpc.is_some_and(|grpc| grpc != 0),
    };
    is_error.then_some(otlp::Status { code: ERROR })
}

fn nanos(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
