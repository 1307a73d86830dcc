//! Asking by gRPC: `envoy.service.auth.v3.Authorization/Check`.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::time::{Duration, UNIX_EPOCH};

use ::http::header::{CONTENT_TYPE, HeaderMap, HeaderValue, TE};
use ::http::{Method, StatusCode, Version};
use bytes::Bytes;
use prost::Message;
use serde_json::{Map, Value};
use underpass_config::http::{AuthzProvider, TextMatch};

use super::changes::{Changes, Mutation, Way};
use super::{Asked, Denial, PARTIAL_BODY, Passing, Verdict, sanitized, told_body, told_headers};
use crate::http::inquiry::Told;
use crate::http::intake::Intake;

#[allow(missing_docs, clippy::all, reason = "generated")]
mod proto {
    include!(concat!(env!("OUT_DIR"), "/envoy.service.auth.v3.rs"));
}

use proto::check_response::HttpResponse;

const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
/// Before a message: whether it is compressed, and its length (gRPC's PROTOCOL-HTTP2.md, `Length-Prefixed-Message`).
const PREFIX: usize = 5;

/// Beyond it, floating point leaves out whole numbers (2⁵³).
const LARGEST_WHOLE: f64 = 9_007_199_254_740_992.0;

/// The request that asks.
pub(super) fn question(
    provider: &AuthzProvider,
    authority: &HeaderValue,
    passing: &Passing<'_>,
    asked: Asked<'_>,
) -> (Intake, Bytes) {
    let session = &passing.connection.session;
    let http = http_request(provider, passing.intake, asked.beginning);
    let context = asked.context.iter();
    let request = proto::CheckRequest {
        attributes: Some(proto::AttributeContext {
            source: Some(peer(session.source.address(), passing.principal)),
            destination: Some(peer(passing.connection.local, None)),
            request: Some(proto::Request {
                time: Some(time(passing)),
                http: Some(http),
            }),
            context_extensions: context
                .map(|(name, value)| (name.to_string(), value.to_string()))
                .collect(),
        }),
    };
    let message = request.encode_to_vec();
    let mut body = Vec::with_capacity(PREFIX + message.len());
    body.push(0);
    // A client's head and the beginning of a body are far from 4 GiB.
    body.extend(u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes());
    body.extend(message);
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, GRPC);
    headers.insert(TE, HeaderValue::from_static("trailers"));
    if let Some(patience) = provider.forward.timeout.and_then(timeout) {
        headers.insert("grpc-timeout", patience);
    }
    let question = Intake::of_the_proxy(
        Method::POST,
        CHECK.to_owned(),
        authority.clone(),
        headers,
        Version::HTTP_2,
    );
    (question, Bytes::from(body))
}

/// `grpc-timeout`: at most eight digits.
fn timeout(patience: Duration) -> Option<HeaderValue> {
    let millis = patience.as_millis();
    let text = match millis < 100_000_000 {
        true => format!("{millis}m"),
        false => format!("{}S", patience.as_secs().min(99_999_999)),
    };
    HeaderValue::try_from(text).ok()
}

fn peer(address: SocketAddr, principal: Option<&str>) -> proto::Peer {
    proto::Peer {
        address: Some(proto::Address {
            socket_address: Some(proto::SocketAddress {
                address: address.ip().to_string(),
                port_value: address.port().into(),
            }),
        }),
        principal: principal.unwrap_or_default().to_owned(),
    }
}

fn time(passing: &Passing<'_>) -> proto::Timestamp {
    let since = passing.record.started().duration_since(UNIX_EPOCH).unwrap_or_default();
    proto::Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        // Below a billion.
        nanos: since.subsec_nanos() as i32,
    }
}

fn http_request(provider: &AuthzProvider, intake: &Intake, beginning: Option<&Bytes>) -> proto::HttpRequest {
    let may_be_told = |name: &str| {
        let allowed = provider.allowed_headers.as_deref();
        allowed.is_none_or(|allowed| allowed.iter().any(|one: &TextMatch| one.matches(name)))
    };
    let host = sanitized(intake.authority.as_bytes());
    let own = [
        (":method", intake.method.as_str()),
        (":path", &intake.target),
        (":authority", &host),
        (":scheme", "http"),
    ];
    let own = own.into_iter().filter(|(name, _)| may_be_told(name));
    let mut headers: HashMap<String, String> = own.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    headers.extend(told_headers(&intake.headers, may_be_told));
    let mut request = proto::HttpRequest {
        id: fastrand::u64(..).to_string(),
        method: intake.method.to_string(),
        path: intake.target.clone(),
        host: host.clone(),
        scheme: "http".to_owned(),
        protocol: protocol(intake.version).to_owned(),
        ..proto::HttpRequest::default()
    };
    if let Some(beginning) = beginning {
        let (told, is_cut) = told_body(provider, beginning);
        headers.insert(PARTIAL_BODY.to_owned(), is_cut.to_owned());
        request.size = i64::try_from(beginning.len()).unwrap_or(i64::MAX);
        match provider.request_body.is_some_and(|body| body.pack_as_bytes) {
            true => request.raw_body = told.to_vec(),
            false => request.body = sanitized(&told),
        }
    }
    request.headers = headers;
    request
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_2 => "HTTP/2",
        _ => "HTTP/1.1",
    }
}

/// What an answer says, if it is one.
pub(super) fn verdict(told: &Told) -> Option<Verdict> {
    let status = told
        .trailers
        .get("grpc-status")
        .or(told.head.headers.get("grpc-status"));
    let is_grpc = crate::http::reply::is_grpc(&told.head.headers);
    if told.head.status != StatusCode::OK || !is_grpc || status? != "0" {
        return None;
    }
    let (prefix, message) = told.body.split_first_chunk::<PREFIX>()?;
    let [compressed, length @ ..] = *prefix;
    if compressed != 0 || u32::from_be_bytes(length) as usize != message.len() {
        return None;
    }
    decode(message)
}

/// What a message says, if it is a `CheckResponse`.
pub(super) fn decode(message: &[u8]) -> Option<Verdict> {
    let response = proto::CheckResponse::decode(message).ok()?;
    let metadata = response.dynamic_metadata.map(object).unwrap_or_default();
    let code = response.status.unwrap_or_default().code;
    let mut verdict = match (code, response.http_response) {
        (0, Some(HttpResponse::OkResponse(told))) => Verdict::Allowed(changes(told)),
        (0, _) => Verdict::Allowed(Changes::default()),
        (_, Some(HttpResponse::ErrorResponse(told))) => Verdict::Failed(Some(denial(told, None))),
        (_, Some(HttpResponse::DeniedResponse(told))) => Verdict::Denied(denial(told, Some(StatusCode::FORBIDDEN))),
        (_, Some(HttpResponse::OkResponse(_)) | None) => Verdict::Denied(Denial {
            status: Some(StatusCode::FORBIDDEN),
            headers: Vec::new(),
            body: Bytes::new(),
            metadata: Map::new(),
        }),
    };
    match &mut verdict {
        Verdict::Allowed(changes) => changes.metadata = metadata,
        Verdict::Denied(denial) => denial.metadata = metadata,
        // Who can't say whether it may pass is not heard on anything else.
        Verdict::Failed(_) => {}
    }
    Some(verdict)
}

/// A struct as JSON has it. How deep it is, the decoder bounds.
fn object(told: proto::Struct) -> Map<String, Value> {
    let fields = told.fields.into_iter();
    fields.map(|(name, told)| (name, value(told))).collect()
}

fn value(told: proto::Value) -> Value {
    use proto::value::Kind;
    match told.kind {
        // A whole number is written as one. What JSON can't say of a number is nothing.
        Some(Kind::NumberValue(number)) if number.fract() == 0.0 && number.abs() < LARGEST_WHOLE => {
            (number as i64).into()
        }
        Some(Kind::NumberValue(number)) => number.into(),
        Some(Kind::StringValue(text)) => text.into(),
        Some(Kind::BoolValue(truth)) => truth.into(),
        Some(Kind::StructValue(fields)) => Value::Object(object(fields)),
        Some(Kind::ListValue(list)) => list.values.into_iter().map(value).collect(),
        Some(Kind::NullValue(_)) | None => Value::Null,
    }
}

fn denial(told: proto::DeniedHttpResponse, default: Option<StatusCode>) -> Denial {
    let code = told.status.unwrap_or_default().code;
    let status = u16::try_from(code)
        .ok()
        .and_then(|code| StatusCode::from_u16(code).ok());
    // No client could be answered by what is no final status.
    let status = status.filter(|status| (200..600).contains(&status.as_u16()));
    Denial {
        status: status.or(default),
        headers: of_refusal(told.headers),
        body: Bytes::from(told.body),
        metadata: Map::new(),
    }
}

fn changes(told: proto::OkHttpResponse) -> Changes {
    let set = told.query_parameters_to_set.into_iter();
    Changes {
        request: of_request(told.headers),
        remove: told.headers_to_remove,
        set_query: set.map(|parameter| (parameter.key, parameter.value)).collect(),
        remove_query: told.query_parameters_to_remove,
        response: of_response(told.response_headers_to_add),
        metadata: Map::new(),
    }
}

/// One field of an answer. What its value may be is said twice, since there were bytes.
fn mutation(option: proto::HeaderValueOption, way: Way) -> Mutation {
    let header = option.header.unwrap_or_default();
    let value = match header.value.is_empty() {
        true => header.raw_value,
        false => header.value.into_bytes(),
    };
    Mutation {
        name: header.key.to_ascii_lowercase(),
        value: Bytes::from(value),
        way,
    }
}

/// Those of a request: as in Envoy 1.40, they take the place of what is there, whatever `append_action` says, but for `append`.
fn of_request(options: Vec<proto::HeaderValueOption>) -> Vec<Mutation> {
    let mutations = options.into_iter().map(|option| {
        let is_part = option.append.is_some_and(|append| append.value);
        mutation(option, if is_part { Way::Join } else { Way::Set })
    });
    mutations.collect()
}

/// Those of a response, as they say; what does not say any way that there is, is left out.
fn of_response(options: Vec<proto::HeaderValueOption>) -> Vec<Mutation> {
    let mutations = options.into_iter().filter_map(|option| {
        let way = match (option.append, option.append_action) {
            (Some(proto::BoolValue { value: true }), _) | (None, 0) => Way::Add,
            (Some(proto::BoolValue { value: false }), _) | (None, 2) => Way::Set,
            (None, 1) => Way::Default,
            (None, 3) => Way::Replace,
            (None, _) => return None,
        };
        Some(mutation(option, way))
    });
    mutations.collect()
}

/// Those of a refusal: all values of a name, in the place of what is there.
fn of_refusal(options: Vec<proto::HeaderValueOption>) -> Vec<Mutation> {
    let mut seen = HashSet::new();
    let mutations = options.into_iter().map(|option| {
        let one = mutation(option, Way::Set);
        let way = if seen.insert(one.name.clone()) {
            Way::Set
        } else {
            Way::Add
        };
        Mutation { way, ..one }
    });
    mutations.collect()
}
