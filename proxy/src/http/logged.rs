//! What access logs in Envoy's words are told of a request; and of a connection that is none of HTTP ([`carried`]).
//!
//! Of heads and trailers only those fields are kept that some log asks for, from when they come until the request is over; where there is no such log, nothing
//! is. A request keeps to the logs that there were when it came.

pub mod carried;
mod remote;

use std::sync::Arc;
use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use underpass_config::http::{Fact, Facts, Field, GrpcForm, RouteAction};
use underpass_config::{RESPONSE_FLAGS, WantedFields};

use super::facts::{address, of_record, protocol};
use super::filters::{Findings, Found};
use super::flags::Flags;
use super::intake::Intake;
use super::record::Record;
use super::reply::{GRPC_STATUS, grpc_status, is_kind_of_grpc, read_grpc_status};
use super::upload::Upload;
use crate::telemetry::RequestLogs;

/// What is kept of a request for its lines.
#[derive(Debug)]
pub struct Heard {
    logs: Arc<RequestLogs>,
    kept: Kept,
}

/// What is kept of a request, until it is over.
#[derive(Debug, Default)]
pub struct Kept {
    asked: Option<Asked>,
    request: Fields,
    response: Fields,
    trailers: Fields,
    found: Option<Box<Found>>,
}

type Fields = Vec<(HeaderName, HeaderValue)>;

/// What a request began with.
#[derive(Debug)]
struct Asked {
    method: Method,
    target: Option<String>,
    authority: Option<HeaderValue>,
}

/// The first value of each of the fields, as Envoy's.
fn keep(names: &[HeaderName], headers: &HeaderMap) -> Fields {
    let value = |name: &HeaderName| Some((name.clone(), headers.get(name)?.clone()));
    names.iter().filter_map(value).collect()
}

fn find<'f>(fields: &'f Fields, name: &HeaderName) -> Option<&'f [u8]> {
    let found = fields.iter().find(|(known, _)| known == name);
    found.map(|(_, value)| value.as_bytes())
}

impl Heard {
    /// Nothing yet, of a request that `logs` will have lines of.
    pub fn new(logs: Arc<RequestLogs>) -> Self {
        Self {
            logs,
            kept: Kept::default(),
        }
    }

    /// What filters have found out, if a log asks for it.
    pub fn found(&mut self, findings: &Findings) {
        self.kept.found(self.logs.wanted(), findings);
    }

    /// What is asked for, as it is now.
    pub fn request(&mut self, intake: &Intake) {
        self.kept.request(self.logs.wanted(), intake);
    }

    /// The head of the response.
    pub fn response(&mut self, headers: &HeaderMap) {
        self.kept.response(self.logs.wanted(), headers);
    }

    /// Its trailers.
    pub fn trailers(&mut self, trailers: &HeaderMap) {
        self.kept.trailers(self.logs.wanted(), trailers);
    }

    /// The request is over.
    pub fn write(&self, record: &Record) {
        self.logs.write(&Logged {
            record,
            kept: &self.kept,
        });
    }
}

impl Kept {
    /// What filters have found out, if somebody asks for it.
    pub fn found(&mut self, wanted: &WantedFields, findings: &Findings) {
        self.found = wanted.metadata.then(|| Box::new(findings.found()));
    }

    /// What is asked for, as it is now.
    pub fn request(&mut self, wanted: &WantedFields, intake: &Intake) {
        self.asked = Some(Asked {
            method: intake.method.clone(),
            target: (wanted.path && !intake.target.is_empty()).then(|| intake.target.clone()),
            authority: wanted.authority.then(|| intake.authority.clone()),
        });
        self.request = keep(&wanted.request, &intake.headers);
    }

    /// The head of the response.
    pub fn response(&mut self, wanted: &WantedFields, headers: &HeaderMap) {
        self.response = keep(&wanted.response, headers);
    }

    /// Its trailers.
    pub fn trailers(&mut self, wanted: &WantedFields, trailers: &HeaderMap) {
        self.trailers = keep(&wanted.trailers, trailers);
    }

    fn field(&self, field: &Field) -> Option<&[u8]> {
        let asked = self.asked.as_ref()?;
        match field {
            Field::Method => Some(asked.method.as_str().as_bytes()),
            Field::Authority => asked.authority.as_ref().map(HeaderValue::as_bytes),
            Field::Scheme => Some(b"http"),
            Field::Path => asked.target.as_deref().map(str::as_bytes),
            Field::Header(name) => find(&self.request, name),
        }
    }

    /// That of a field, or else of another.
    fn either(&self, first: &Field, second: Option<&Field>) -> Option<&[u8]> {
        self.field(first).or_else(|| self.field(second?))
    }
}

/// A request that is over.
pub struct Logged<'a> {
    /// Its account.
    pub record: &'a Record,
    /// What was kept of it.
    pub kept: &'a Kept,
}

impl Logged<'_> {
    /// The first value of a field of the request, as a text.
    pub fn lossy(&self, field: &Field) -> Option<String> {
        let value = self.kept.field(field);
        value.map(|value| String::from_utf8_lossy(value).into_owned())
    }

    /// The value of a field of the response's trailers, or else of its head.
    pub fn answered(&self, name: &HeaderName) -> Option<&[u8]> {
        find(&self.kept.trailers, name).or_else(|| find(&self.kept.response, name))
    }

    /// Tries. Envoy counts one that found no endpoint.
    fn attempts(&self) -> u32 {
        let in_vain = u32::from(self.record.flags.has(Flags::NO_HEALTHY_UPSTREAM));
        self.record.attempts.saturating_add(in_vain)
    }

    fn is_grpc(&self) -> bool {
        find(&self.kept.request, &CONTENT_TYPE).is_some_and(is_kind_of_grpc)
    }

    /// gRPC's status, as Envoy finds it: in the trailers, in the head, or by what HTTP's stands for.
    fn grpc_status(&self) -> Option<i64> {
        let said = |fields: &Fields| read_grpc_status(find(fields, &GRPC_STATUS)?);
        said(&self.kept.trailers)
            .or_else(|| said(&self.kept.response))
            .or_else(|| Some(grpc_status(StatusCode::from_u16(self.record.status).ok()?).into()))
    }

    /// Since it came until all of it was there.
    fn request_duration(&self) -> Option<Duration> {
        if !self.record.has_body {
            return Some(Duration::ZERO);
        }
        let completed_at = self.record.upload.as_ref()?.completed_at()?;
        Some(completed_at.duration_since(self.record.began()))
    }

    /// The one that was chosen, or would have been in any case.
    pub fn cluster(&self) -> Option<&str> {
        let only = || match &self.record.route.as_ref()?.1.action {
            RouteAction::Forward(forward) => match forward.clusters() {
                [only] => Some(&*only.cluster),
                _ => None,
            },
            RouteAction::Redirect(_) | RouteAction::Direct(_) => None,
        };
        self.record.cluster.as_deref().or_else(only)
    }
}

/// Flags, as they are told in long.
fn long(short: &str) -> String {
    let words = short.split(',').map(|flag| {
        let known = RESPONSE_FLAGS.iter().find(|(short, _)| *short == flag);
        known.map_or(flag, |(_, long)| *long)
    });
    words.collect::<Vec<_>>().join(",")
}

/// Writes what there is of a value.
fn some(value: Option<impl AsRef<[u8]>>, out: &mut Vec<u8>) -> bool {
    match value {
        Some(value) => {
            out.extend_from_slice(value.as_ref());
            true
        }
        None => false,
    }
}

fn number(value: Option<impl Into<i128>>, out: &mut Vec<u8>) -> bool {
    let value: Option<i128> = value.map(Into::into);
    some(value.map(|number| number.to_string()), out)
}

fn millis(duration: Option<Duration>, out: &mut Vec<u8>) -> bool {
    number(
        duration.map(|duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)),
        out,
    )
}

fn without_query(value: &[u8]) -> &[u8] {
    let end = value.iter().position(|&byte| byte == b'?');
    &value[..end.unwrap_or(value.len())]
}

impl Facts for Logged<'_> {
    fn tell(&self, fact: &Fact, _: &HeaderMap, out: &mut Vec<u8>) -> bool {
        let (record, heard) = (self.record, self.kept);
        let session = &record.connection().session;
        match fact {
            Fact::Request(first, second) => some(heard.either(first, second.as_ref()), out),
            Fact::RequestWithoutQuery(first, second) => {
                some(heard.either(first, second.as_ref()).map(without_query), out)
            }
            Fact::Response(first, second) => {
                let second = || find(&heard.response, second.as_ref()?);
                some(find(&heard.response, first).or_else(second), out)
            }
            Fact::Trailer(first, second) => {
                let second = || find(&heard.trailers, second.as_ref()?);
                some(find(&heard.trailers, first).or_else(second), out)
            }
            Fact::Protocol => some(record.version.map(protocol), out),
            Fact::Status => number(Some(record.status), out),
            Fact::Flags => some(Some(record.flags.to_string()), out),
            Fact::LongFlags => some(Some(long(&record.flags.to_string())), out),
            // A word, as Envoy's.
            Fact::Details => some(
                Some(&record.details)
                    .filter(|text| &***text != "-")
                    .map(|text| text.replace(' ', "_")),
                out,
            ),
            Fact::TransportFailure => some(record.transport_failure.as_ref().map(|why| why.replace(' ', "_")), out),
            Fact::VirtualHost => some(record.route.as_ref().map(|(host, _)| host.as_bytes()), out),
            Fact::EndpointLocal(part) => {
                let local = record.upload.as_ref().and_then(Upload::local);
                local.is_some_and(|local| address(local, *part, out))
            }
            Fact::Connected(part) => {
                let connected = record.endpoint.filter(|_| !record.flags.has(Flags::CONNECT_FAILED));
                connected.is_some_and(|endpoint| address(endpoint, *part, out))
            }
            Fact::Cluster => some(self.cluster(), out),
            Fact::BytesReceived => number(Some(record.received()), out),
            Fact::BytesSent => number(Some(record.sent), out),
            Fact::Duration => millis(Some(record.age()), out),
            Fact::RequestDuration => millis(self.request_duration(), out),
            Fact::ResponseDuration => millis(record.answered_after, out),
            Fact::ResponseTxDuration => {
                let after = record.answered_after.filter(|_| record.is_complete);
                millis(after.map(|after| record.age().saturating_sub(after)), out)
            }
            Fact::Attempts => number(Some(self.attempts()), out),
            Fact::GrpcStatus(form) => {
                let status = self.grpc_status().filter(|_| self.is_grpc());
                some(status.map(|status| grpc_word(status, *form)), out)
            }
            Fact::AsGrpcStatus => number(self.grpc_status(), out),
            Fact::Identity => some(session.source.identity().map(ToString::to_string), out),
            Fact::MutualTls => {
                let is_mutual = record.ends().is_mutual();
                some(Some(if is_mutual { "true" } else { "false" }), out)
            }
            Fact::TraceId => {
                let ids = record.traced.as_ref().and_then(|traced| traced.ids());
                some(
                    ids.map(|(trace, _)| format!("{:032x}", u128::from_be_bytes(trace))),
                    out,
                )
            }
            Fact::Metadata(path) => self.kept.found.as_ref().is_some_and(|found| found.tell(path, out)),
            Fact::Nothing => false,
            Fact::StartTime(_)
            | Fact::Client(_)
            | Fact::Local(_)
            | Fact::Endpoint(_)
            | Fact::Route
            | Fact::Peer(..)
            | Fact::Hostname => of_record(record, fact, out),
        }
    }
}

/// gRPC's statuses, by their numbers (grpc/doc/statuscodes.md).
const GRPC_WORDS: [(&str, &str); 17] = [
    ("OK", "OK"),
    ("Canceled", "CANCELLED"),
    ("Unknown", "UNKNOWN"),
    ("InvalidArgument", "INVALID_ARGUMENT"),
    ("DeadlineExceeded", "DEADLINE_EXCEEDED"),
    ("NotFound", "NOT_FOUND"),
    ("AlreadyExists", "ALREADY_EXISTS"),
    ("PermissionDenied", "PERMISSION_DENIED"),
    ("ResourceExhausted", "RESOURCE_EXHAUSTED"),
    ("FailedPrecondition", "FAILED_PRECONDITION"),
    ("Aborted", "ABORTED"),
    ("OutOfRange", "OUT_OF_RANGE"),
    ("Unimplemented", "UNIMPLEMENTED"),
    ("Internal", "INTERNAL"),
    ("Unavailable", "UNAVAILABLE"),
    ("DataLoss", "DATA_LOSS"),
    ("Unauthenticated", "UNAUTHENTICATED"),
];

fn grpc_word(status: i64, form: GrpcForm) -> String {
    let words = usize::try_from(status).ok().and_then(|status| GRPC_WORDS.get(status));
    match (words, form) {
        (Some((camel, _)), GrpcForm::Camel) => (*camel).to_owned(),
        (Some((_, snake)), GrpcForm::Snake) => (*snake).to_owned(),
        _ => status.to_string(),
    }
}

#[cfg(test)]
mod tests;
