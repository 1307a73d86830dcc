//! The operators, and what each of them asks for.

use http::header::HeaderName;

use super::super::Field;
use super::peer::{self, PeerEnd, PeerField};
use super::{BadFormat, Limited, Stage, TimeFormat};
use crate::Text;

/// What an operator tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact {
    /// A field of the request, or else another (`REQ(X?Y)`).
    Request(Field, Option<Field>),
    /// The same, without what follows a `?` in it (`REQ_WITHOUT_QUERY(X?Y)`).
    RequestWithoutQuery(Field, Option<Field>),
    /// A field of the response, or else another (`RESP(X?Y)`).
    Response(HeaderName, Option<HeaderName>),
    /// A field of its trailers, or else another (`TRAILER(X?Y)`).
    Trailer(HeaderName, Option<HeaderName>),
    /// `HTTP/1.1` or `HTTP/2`, as the client speaks it.
    Protocol,
    /// When the request came; without a format: RFC 3339, milliseconds.
    StartTime(Option<TimeFormat>),
    /// The client's address.
    Client(Part),
    /// The address that the client had connected to.
    Local(Part),
    /// The address of the endpoint that was chosen.
    Endpoint(Part),
    /// The same, if there was a connection to it.
    Connected(Part),
    /// Our address of the connection to the endpoint that has answered.
    EndpointLocal(Part),
    /// The cluster.
    Cluster,
    /// The route.
    Route,
    /// The route's virtual host. (No operator asks for it.)
    VirtualHost,
    /// The status of the response; in a line 0, if there is none.
    Status,
    /// Why it did not go as it should have (Envoy's response flags), `-` if it did.
    Flags,
    /// The same in long words.
    LongFlags,
    /// More about that (`RESPONSE_CODE_DETAILS`).
    Details,
    /// Why there was no connection to the endpoint.
    TransportFailure,
    /// Bytes of the request's body, or that a tunnel's client has sent.
    BytesReceived,
    /// Bytes of the response's body, or that a tunnel's client was sent.
    BytesSent,
    /// Milliseconds from when the request came to its end.
    Duration,
    /// Milliseconds until all of the request had come.
    RequestDuration,
    /// Milliseconds until the head of the endpoint's response came.
    ResponseDuration,
    /// Milliseconds from then to the end.
    ResponseTxDuration,
    /// Tries.
    Attempts,
    /// gRPC's status, of a request of gRPC.
    GrpcStatus(GrpcForm),
    /// The same of any request, as a number: what HTTP's status stands for, where nothing else is said. (No operator asks for it.)
    AsGrpcStatus,
    /// The name of the machine, as its kernel has it.
    Hostname,
    /// The client's SPIFFE identity, which policy decides about. In a header `-` if it has none.
    Identity,
    /// `true` if the client has shown a certificate, else `false`. (No operator asks for it.)
    MutualTls,
    /// The trace that it belongs to, in hexadecimal.
    TraceId,
    /// What is known of the workload at one end.
    Peer(PeerEnd, PeerField),
    /// What filters have found out of it: the name of one, and names within what it has left (`DYNAMIC_METADATA(FILTER:KEY:KEY)`).
    Metadata(Box<[Text]>),
    /// What Envoy may know and this proxy never does: a listener here has no TLS of its own, and most filters leave nothing behind.
    Nothing,
}

/// What of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Both.
    Address,
    /// The IP address.
    WithoutPort,
    /// The port.
    Port,
}

/// How gRPC's status is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrpcForm {
    /// `NotFound`
    Camel,
    /// `NOT_FOUND`
    Snake,
    /// `5`
    Number,
}

impl Fact {
    /// Whether it is a number, and is one in JSON.
    pub fn is_number(&self) -> bool {
        match self {
            Self::Client(part)
            | Self::Local(part)
            | Self::Endpoint(part)
            | Self::Connected(part)
            | Self::EndpointLocal(part) => *part == Part::Port,
            Self::GrpcStatus(form) => *form == GrpcForm::Number,
            Self::Status
            | Self::BytesReceived
            | Self::BytesSent
            | Self::Duration
            | Self::RequestDuration
            | Self::ResponseDuration
            | Self::ResponseTxDuration
            | Self::Attempts
            | Self::AsGrpcStatus => true,
            _ => false,
        }
    }

    /// From when on it is known.
    fn since(&self) -> Stage {
        match self {
            Self::Request(..)
            | Self::Protocol
            | Self::StartTime(_)
            | Self::Client(_)
            | Self::Local(_)
            | Self::Cluster
            | Self::Route
            | Self::Hostname
            | Self::Peer(PeerEnd::Downstream, _)
            | Self::Identity => Stage::Request,
            Self::Peer(PeerEnd::Upstream, _) => Stage::Response,
            Self::Response(..) | Self::Endpoint(_) | Self::Connected(_) | Self::Status | Self::Flags => Stage::Response,
            _ => Stage::Log,
        }
    }
}

/// Operators without arguments.
const PLAIN: &[(&str, Fact)] = &[
    ("PROTOCOL", Fact::Protocol),
    ("START_TIME", Fact::StartTime(None)),
    ("DOWNSTREAM_REMOTE_ADDRESS", Fact::Client(Part::Address)),
    (
        "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT",
        Fact::Client(Part::WithoutPort),
    ),
    ("DOWNSTREAM_REMOTE_PORT", Fact::Client(Part::Port)),
    ("DOWNSTREAM_DIRECT_REMOTE_ADDRESS", Fact::Client(Part::Address)),
    (
        "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT",
        Fact::Client(Part::WithoutPort),
    ),
    ("DOWNSTREAM_DIRECT_REMOTE_PORT", Fact::Client(Part::Port)),
    ("DOWNSTREAM_LOCAL_ADDRESS", Fact::Local(Part::Address)),
    ("DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT", Fact::Local(Part::WithoutPort)),
    ("DOWNSTREAM_LOCAL_PORT", Fact::Local(Part::Port)),
    ("UPSTREAM_HOST", Fact::Endpoint(Part::Address)),
    ("UPSTREAM_REMOTE_ADDRESS", Fact::Connected(Part::Address)),
    (
        "UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT",
        Fact::Connected(Part::WithoutPort),
    ),
    ("UPSTREAM_REMOTE_PORT", Fact::Connected(Part::Port)),
    ("UPSTREAM_LOCAL_ADDRESS", Fact::EndpointLocal(Part::Address)),
    (
        "UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT",
        Fact::EndpointLocal(Part::WithoutPort),
    ),
    ("UPSTREAM_LOCAL_PORT", Fact::EndpointLocal(Part::Port)),
    ("UPSTREAM_CLUSTER", Fact::Cluster),
    ("UPSTREAM_CLUSTER_RAW", Fact::Cluster),
    ("ROUTE_NAME", Fact::Route),
    ("RESPONSE_CODE", Fact::Status),
    ("RESPONSE_FLAGS", Fact::Flags),
    ("RESPONSE_FLAGS_LONG", Fact::LongFlags),
    ("RESPONSE_CODE_DETAILS", Fact::Details),
    ("UPSTREAM_TRANSPORT_FAILURE_REASON", Fact::TransportFailure),
    ("BYTES_RECEIVED", Fact::BytesReceived),
    ("BYTES_SENT", Fact::BytesSent),
    ("DURATION", Fact::Duration),
    ("REQUEST_DURATION", Fact::RequestDuration),
    ("RESPONSE_DURATION", Fact::ResponseDuration),
    ("RESPONSE_TX_DURATION", Fact::ResponseTxDuration),
    ("UPSTREAM_REQUEST_ATTEMPT_COUNT", Fact::Attempts),
    ("GRPC_STATUS", Fact::GrpcStatus(GrpcForm::Camel)),
    ("GRPC_STATUS_NUMBER", Fact::GrpcStatus(GrpcForm::Number)),
    ("HOSTNAME", Fact::Hostname),
    // Elsewhere nothing is written of what is not known. Of this, something is: an edit that writes nothing leaves what the client has sent,
    // which could be another's name.
    ("DOWNSTREAM_PEER_URI_SAN", Fact::Identity),
    ("CONNECTION_TERMINATION_DETAILS", Fact::Nothing),
    ("DOWNSTREAM_TRANSPORT_FAILURE_REASON", Fact::Nothing),
    ("REQUESTED_SERVER_NAME", Fact::Nothing),
    ("DOWNSTREAM_TLS_VERSION", Fact::Nothing),
    ("DOWNSTREAM_TLS_CIPHER", Fact::Nothing),
    ("DOWNSTREAM_LOCAL_URI_SAN", Fact::Nothing),
    ("TRACE_ID", Fact::TraceId),
    ("VIRTUAL_CLUSTER_NAME", Fact::Nothing),
];

/// Those with arguments.
const WITH_ARGUMENTS: [(&str, Stage); 12] = [
    ("REQ(NAME?OTHER):LENGTH", Stage::Request),
    ("RESP(NAME?OTHER):LENGTH", Stage::Response),
    ("START_TIME(FORMAT)", Stage::Request),
    ("REQ_WITHOUT_QUERY(NAME?OTHER):LENGTH", Stage::Log),
    ("TRAILER(NAME?OTHER):LENGTH", Stage::Log),
    ("GRPC_STATUS(CAMEL_STRING|SNAKE_STRING|NUMBER)", Stage::Log),
    ("STREAM_ID", Stage::Log),
    ("FILTER_STATE(downstream_peer_obj:FIELD:NAME):LENGTH", Stage::Request),
    ("FILTER_STATE(upstream_peer_obj:FIELD:NAME):LENGTH", Stage::Response),
    ("DYNAMIC_METADATA(FILTER:KEY):LENGTH", Stage::Log),
    ("FILTER_STATE(…):LENGTH", Stage::Log),
    ("METADATA(…):LENGTH", Stage::Log),
];

fn is_for(fact: Stage, stage: Stage) -> bool {
    match stage {
        Stage::Log => true,
        Stage::Response => fact != Stage::Log,
        Stage::Request => fact == Stage::Request,
    }
}

/// The operators that may stand somewhere.
pub(super) fn names(stage: Stage) -> Vec<&'static str> {
    let with_arguments = WITH_ARGUMENTS.iter().map(|(name, since)| (*name, *since));
    let plain = PLAIN.iter().map(|(name, fact)| (*name, fact.since()));
    let all = with_arguments.chain(plain);
    all.filter(|(_, since)| is_for(*since, stage))
        .map(|(name, _)| name)
        .collect()
}

/// An operator, up to the `%` that ends it, and what follows. In parentheses there may be percent signs, as in `START_TIME(%s)`.
pub(super) fn split(text: &str) -> Option<(&str, &str)> {
    let name = text.find(|c: char| !(c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_'));
    let begins = name.filter(|&at| text[at..].starts_with('('));
    let closing = begins
        .into_iter()
        .flat_map(|at| text[at..].match_indices(')').map(move |(close, _)| at + close + 1));
    for at in closing {
        let digits = text[at..].strip_prefix(':').map_or(0, |rest| {
            1 + rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len())
        });
        let end = at + digits;
        if let Some(rest) = text[end..].strip_prefix('%') {
            return Some((&text[..end], rest));
        }
    }
    text.split_once('%')
}

/// Reads what stands between two percent signs.
pub(super) fn parse(operator: &str, stage: Stage) -> Result<Limited, BadFormat> {
    let unknown = || BadFormat::Unknown(operator.to_owned());
    let limited = match operator.split_once('(') {
        None if operator == "STREAM_ID" => Limited {
            fact: Fact::Request(Field::Header(HeaderName::from_static("x-request-id")), None),
            limit: None,
        },
        None => {
            let found = PLAIN.iter().find(|(name, _)| *name == operator);
            Limited {
                fact: found.ok_or_else(unknown)?.1.clone(),
                limit: None,
            }
        }
        Some((name, rest)) => {
            let (arguments, after) = rest.rsplit_once(')').ok_or_else(unknown)?;
            let limit = match after.strip_prefix(':') {
                Some(digits) => Some(digits.parse().map_err(|_| unknown())?),
                None if after.is_empty() => None,
                None => return Err(unknown()),
            };
            let fact = with_arguments(name, arguments, limit.is_some())?.ok_or_else(unknown)?;
            Limited { fact, limit }
        }
    };
    let since = match operator {
        "STREAM_ID" => Stage::Log,
        _ => limited.fact.since(),
    };
    match is_for(since, stage) {
        true => Ok(limited),
        false if since == Stage::Log => Err(BadFormat::ForLogs(operator.to_owned())),
        false => Err(BadFormat::Early(operator.to_owned())),
    }
}

fn with_arguments(name: &str, arguments: &str, has_limit: bool) -> Result<Option<Fact>, BadFormat> {
    let (first, second) = match arguments.split_once('?') {
        Some((first, second)) => (first, Some(second)),
        None => (arguments, None),
    };
    let form = || match arguments {
        "" | "CAMEL_STRING" => Some(GrpcForm::Camel),
        "SNAKE_STRING" => Some(GrpcForm::Snake),
        "NUMBER" => Some(GrpcForm::Number),
        _ => None,
    };
    Ok(match name {
        "REQ" => Some(Fact::Request(
            request_field(first)?,
            second.map(request_field).transpose()?,
        )),
        "REQ_WITHOUT_QUERY" => Some(Fact::RequestWithoutQuery(
            request_field(first)?,
            second.map(request_field).transpose()?,
        )),
        "RESP" => Some(Fact::Response(
            header_name(first)?,
            second.map(header_name).transpose()?,
        )),
        "TRAILER" => Some(Fact::Trailer(header_name(first)?, second.map(header_name).transpose()?)),
        "START_TIME" if !has_limit && arguments.is_empty() => Some(Fact::StartTime(None)),
        "START_TIME" if !has_limit => {
            let format = TimeFormat::parse(arguments).ok_or_else(|| BadFormat::Time(arguments.to_owned()))?;
            Some(Fact::StartTime(Some(format)))
        }
        "GRPC_STATUS" if !has_limit => form().map(Fact::GrpcStatus),
        "FILTER_STATE" if !arguments.is_empty() => Some(match peer::asked(arguments) {
            Some((end, field)) => Fact::Peer(end, field),
            None => Fact::Nothing,
        }),
        "DYNAMIC_METADATA" if !arguments.is_empty() => {
            Some(Fact::Metadata(arguments.split(':').map(Text::from).collect()))
        }
        "METADATA" if !arguments.is_empty() => Some(Fact::Nothing),
        _ => None,
    })
}

fn header_name(name: &str) -> Result<HeaderName, BadFormat> {
    HeaderName::try_from(name).map_err(|_| BadFormat::Name(name.to_owned()))
}

/// A field of a request, by its name in Envoy.
pub(super) fn request_field(name: &str) -> Result<Field, BadFormat> {
    Ok(match name.to_ascii_lowercase().as_str() {
        ":method" => Field::Method,
        ":authority" | "host" => Field::Authority,
        ":scheme" => Field::Scheme,
        ":path" => Field::Path,
        _ => Field::Header(header_name(name)?),
    })
}

#[cfg(test)]
mod tests {
    use super::super::Format;
    use super::*;

    #[test]
    fn an_operator_ends_where_envoys_ends() {
        for (text, operator, rest) in [
            ("PROTOCOL% x", "PROTOCOL", " x"),
            ("REQ(a)%b%", "REQ(a)", "b%"),
            ("REQ(a):12%b", "REQ(a):12", "b"),
            ("START_TIME(%s.%3f)% y", "START_TIME(%s.%3f)", " y"),
            ("START_TIME((%s))%", "START_TIME((%s))", ""),
            // What is wrong is shown up to the next percent sign.
            ("REQ(x%", "REQ(x", ""),
            ("REQ(x):y%z", "REQ(x):y", "z"),
        ] {
            assert_eq!(split(text), Some((operator, rest)), "{text}");
        }
        assert_eq!(split("PROTOCOL"), None);
    }

    #[test]
    fn what_istiod_asks_of_peers_is_understood() {
        let fact = |operator: &str, stage| parse(operator, stage).map(|limited| limited.fact);
        let asked = "FILTER_STATE(downstream_peer_obj:FIELD:namespace)";
        let known = Fact::Peer(PeerEnd::Downstream, PeerField::Namespace);
        assert_eq!(fact(asked, Stage::Request).unwrap(), known);
        let of_endpoint = "FILTER_STATE(upstream_peer_obj:FIELD:app):8";
        assert!(matches!(fact(of_endpoint, Stage::Request), Err(BadFormat::Early(_))));
        let known = Fact::Peer(PeerEnd::Upstream, PeerField::App);
        assert_eq!(fact(of_endpoint, Stage::Response).unwrap(), known);
        for other in [
            "wasm.downstream_peer:PLAIN",
            "downstream_peer_obj:FIELD:labels",
            "downstream_peer_obj:PLAIN",
        ] {
            assert_eq!(
                fact(&format!("FILTER_STATE({other})"), Stage::Log).unwrap(),
                Fact::Nothing
            );
        }
    }

    #[test]
    fn every_operator_is_told_where_it_may_stand() {
        for stage in [Stage::Request, Stage::Response, Stage::Log] {
            for name in names(stage).iter().filter(|name| !name.contains('(')) {
                assert!(Format::parse(&format!("%{name}%"), stage).is_ok(), "{name} {stage:?}");
            }
        }
        for text in [
            "%REQ_WITHOUT_QUERY(:path):5%",
            "%TRAILER(grpc-status?x)%",
            "%GRPC_STATUS(SNAKE_STRING)%",
            "%GRPC_STATUS()%",
            "%START_TIME()%",
            "%DYNAMIC_METADATA(com.test:key):8%",
            "%FILTER_STATE(wasm.downstream_peer:PLAIN)%",
        ] {
            assert!(Format::parse(text, Stage::Log).is_ok(), "{text}");
        }
        for text in [
            "%GRPC_STATUS(WHAT)%",
            "%START_TIME(%s):3%",
            "%DYNAMIC_METADATA()%",
            "%REQ_WITHOUT_QUERY%",
            "%CEL(request.path)%",
        ] {
            assert!(
                matches!(Format::parse(text, Stage::Log), Err(BadFormat::Unknown(_))),
                "{text}"
            );
        }
    }
}
