//! Envoy's attributes, and the facts that they are.

use std::sync::LazyLock;

use cel::Value;
use chrono::{DateTime, TimeDelta};
use http::header::{HeaderName, REFERER, USER_AGENT};

use super::super::filter::{RESPONSE_FLAGS, told};
use crate::http::{Fact, Facts, Field, PEER_FIELDS, Part, PeerEnd};

/// What CEL gets to see of a fact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Text,
    Number,
    /// A number that is not there if it is 0: there is no response.
    Code,
    /// The bits of flags.
    Flags,
    Truth,
    Time,
    Milliseconds,
    /// What follows the `?`; nothing, if there is none.
    Query,
}

/// An attribute.
#[derive(Debug)]
pub(super) struct Attribute {
    /// Its name, with a dot in it.
    pub(super) name: &'static str,
    /// What it tells.
    pub(super) fact: Fact,
    kind: Kind,
}

/// Maps of fields, which are asked for by their names.
pub(super) const HEADERS: [&str; 3] = ["request.headers", "response.headers", "response.trailers"];

/// Attributes that Envoy has, and this proxy, whose listeners have no TLS of their own and whose filters leave no metadata but of the two workloads, never does. Whoever asks for one has no
/// answer, as in Envoy.
const NEVER: [&str; 24] = [
    "request.total_size",
    "response.total_size",
    "response.backend_latency",
    "connection.id",
    "connection.requested_server_name",
    "connection.tls_version",
    "connection.subject_local_certificate",
    "connection.subject_peer_certificate",
    "connection.dns_san_local_certificate",
    "connection.dns_san_peer_certificate",
    "connection.uri_san_local_certificate",
    "connection.sha256_peer_certificate_digest",
    "connection.termination_details",
    "connection.transport_failure_reason",
    "upstream.tls_version",
    "upstream.subject_local_certificate",
    "upstream.subject_peer_certificate",
    "upstream.dns_san_local_certificate",
    "upstream.dns_san_peer_certificate",
    "upstream.uri_san_local_certificate",
    "upstream.uri_san_peer_certificate",
    "upstream.sha256_peer_certificate_digest",
    "upstream.locality",
    "upstream.cx_pool_ready_duration",
];

/// What whole trees of such attributes begin with.
const NEVER_FROM: [&str; 9] = [
    "metadata",
    "filter_state",
    "upstream_filter_state",
    "node",
    "listener_direction",
    "listener_metadata",
    "xds.node",
    "xds.listener_metadata",
    "xds.cluster_metadata",
];

static ATTRIBUTES: LazyLock<Vec<Attribute>> = LazyLock::new(|| {
    use Kind::{Code, Flags, Milliseconds, Number, Query, Text, Time, Truth};
    let header = |name: HeaderName| Fact::Request(Field::Header(name), None);
    let of = |name, kind, fact| Attribute { name, fact, kind };
    let of_peers = PEER_FIELDS.into_iter().flat_map(|(_, field, names)| {
        let ends = PeerEnd::ALL.into_iter().zip(names);
        ends.map(move |(end, name)| of(name, Text, Fact::Peer(end, field)))
    });
    let of_requests = vec![
        of("request.path", Text, Fact::Request(Field::Path, None)),
        of("request.url_path", Text, Fact::RequestWithoutQuery(Field::Path, None)),
        of("request.query", Query, Fact::Request(Field::Path, None)),
        of("request.host", Text, Fact::Request(Field::Authority, None)),
        of("request.scheme", Text, Fact::Request(Field::Scheme, None)),
        of("request.method", Text, Fact::Request(Field::Method, None)),
        of("request.referer", Text, header(REFERER)),
        of("request.useragent", Text, header(USER_AGENT)),
        of("request.id", Text, header(HeaderName::from_static("x-request-id"))),
        of("request.protocol", Text, Fact::Protocol),
        of("request.time", Time, Fact::StartTime(None)),
        of("request.duration", Milliseconds, Fact::Duration),
        of("request.size", Number, Fact::BytesReceived),
        of("response.code", Code, Fact::Status),
        of("response.code_details", Text, Fact::Details),
        of("response.flags", Flags, Fact::Flags),
        of("response.grpc_status", Number, Fact::AsGrpcStatus),
        of("response.size", Number, Fact::BytesSent),
        of("connection.mtls", Truth, Fact::MutualTls),
        of("connection.uri_san_peer_certificate", Text, Fact::Identity),
        of("source.address", Text, Fact::Client(Part::Address)),
        of("source.port", Number, Fact::Client(Part::Port)),
        of("destination.address", Text, Fact::Local(Part::Address)),
        of("destination.port", Number, Fact::Local(Part::Port)),
        of("upstream.address", Text, Fact::Endpoint(Part::Address)),
        of("upstream.port", Number, Fact::Endpoint(Part::Port)),
        of("upstream.local_address", Text, Fact::EndpointLocal(Part::Address)),
        of("upstream.transport_failure_reason", Text, Fact::TransportFailure),
        of("upstream.request_attempt_count", Number, Fact::Attempts),
        of("xds.cluster_name", Text, Fact::Cluster),
        of("xds.route_name", Text, Fact::Route),
        of("xds.virtual_host_name", Text, Fact::VirtualHost),
    ];
    of_requests.into_iter().chain(of_peers).collect()
});

/// That of a name.
pub(super) fn find(name: &str) -> Option<&'static Attribute> {
    ATTRIBUTES.iter().find(|attribute| attribute.name == name)
}

/// Whether an attribute is Envoy's, but never there.
pub(super) fn is_never(name: &str) -> bool {
    let begins = |root: &&str| {
        name.strip_prefix(*root)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    NEVER.contains(&name) || NEVER_FROM.iter().any(begins)
}

/// All names, for messages.
pub(super) fn names() -> Vec<&'static str> {
    HEADERS
        .into_iter()
        .chain(ATTRIBUTES.iter().map(|attribute| attribute.name))
        .collect()
}

impl Attribute {
    /// What it is of a request; nothing, if the request does not have it.
    pub(super) fn value(&self, facts: &dyn Facts) -> Option<Value> {
        let text = told(&self.fact, facts)?;
        Some(match self.kind {
            Kind::Text => text.into(),
            Kind::Number => Value::Int(text.parse().ok()?),
            Kind::Code => Value::Int(text.parse().ok().filter(|code| *code != 0)?),
            Kind::Flags => Value::Int(bits(&text)),
            Kind::Truth => Value::Bool(text == "true"),
            Kind::Time => Value::Timestamp(DateTime::parse_from_rfc3339(&text).ok()?),
            Kind::Milliseconds => Value::Duration(TimeDelta::try_milliseconds(text.parse().ok()?)?),
            Kind::Query => text.split_once('?').map_or("", |(_, query)| query).into(),
        })
    }
}

fn bits(flags: &str) -> i64 {
    let place = |flag| RESPONSE_FLAGS.iter().position(|(short, _)| *short == flag);
    flags.split(',').filter_map(place).map(|place| 1 << place).sum()
}
