//! What operators in header values are told of a request (`%REQ(x-user)%`, `%DOWNSTREAM_REMOTE_ADDRESS%`).

use std::io::Write;
use std::net::SocketAddr;
use std::sync::LazyLock;

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version};
use underpass_config::http::{Fact, Facts, Field, Part};

use super::intake::Intake;
use super::record::Record;

/// What is known while fields are edited.
pub struct Known<'a> {
    /// The request's account.
    pub record: &'a Record,
    /// What was asked for, as it is now.
    pub asked: Asked<'a>,
    /// The request's fields, where it is not they that are edited, but the response's.
    pub request: Option<&'a HeaderMap>,
    /// The status of the response whose fields are edited.
    pub status: Option<StatusCode>,
}

/// The machine's name (Envoy asks once, too).
static HOSTNAME: LazyLock<Vec<u8>> = LazyLock::new(|| rustix::system::uname().nodename().to_bytes().to_vec());

/// What of a request is no header field.
#[derive(Clone, Copy)]
pub struct Asked<'a> {
    method: &'a Method,
    target: &'a str,
    authority: &'a HeaderValue,
    version: Version,
}

impl<'a> Asked<'a> {
    fn of(method: &'a Method, target: &'a str, authority: &'a HeaderValue, version: Version) -> Self {
        Self {
            method,
            target,
            authority,
            version,
        }
    }
}

impl<'a> Known<'a> {
    /// While the fields of a response with this status are edited.
    pub fn for_response(intake: &'a Intake, record: &'a Record, status: StatusCode) -> Self {
        Self {
            record,
            asked: Asked::of(&intake.method, &intake.target, &intake.authority, intake.version),
            request: Some(&intake.headers),
            status: Some(status),
        }
    }

    /// Of a request, whose fields are given beside it.
    pub fn of_request(intake: &'a Intake, record: &'a Record) -> Self {
        Self {
            record,
            asked: Asked::of(&intake.method, &intake.target, &intake.authority, intake.version),
            request: None,
            status: None,
        }
    }

    /// While the request's are; they are given beside it.
    pub fn for_request(intake: &'a mut Intake, record: &'a Record) -> (&'a mut HeaderMap, Self) {
        let known = Self {
            record,
            asked: Asked::of(&intake.method, &intake.target, &intake.authority, intake.version),
            request: None,
            status: None,
        };
        (&mut intake.headers, known)
    }

    /// Whether there is such a field, whose value is then written.
    fn field(&self, field: &Field, headers: &HeaderMap, out: &mut Vec<u8>) -> bool {
        match field {
            Field::Method => out.extend_from_slice(self.asked.method.as_str().as_bytes()),
            Field::Authority => out.extend_from_slice(self.asked.authority.as_bytes()),
            Field::Scheme => out.extend_from_slice(b"http"),
            Field::Path => out.extend_from_slice(self.asked.target.as_bytes()),
            Field::Header(name) => return header(name, headers, out),
        }
        true
    }
}

/// The first value of a field, as Envoy's.
fn header(name: &HeaderName, headers: &HeaderMap, out: &mut Vec<u8>) -> bool {
    let value = headers.get(name);
    out.extend_from_slice(value.map_or(b"", HeaderValue::as_bytes));
    value.is_some()
}

fn address(address: SocketAddr, part: Part, out: &mut Vec<u8>) {
    // Writing to memory does not fail.
    let _ = match part {
        Part::Address => write!(out, "{address}"),
        Part::WithoutPort => write!(out, "{}", address.ip()),
        Part::Port => write!(out, "{}", address.port()),
    };
}

impl Facts for Known<'_> {
    fn tell(&self, fact: &Fact, edited: &HeaderMap, out: &mut Vec<u8>) {
        let (record, connection) = (self.record, self.record.connection());
        match fact {
            Fact::Request(first, second) => {
                let headers = self.request.unwrap_or(edited);
                if !self.field(first, headers, out)
                    && let Some(second) = second
                {
                    self.field(second, headers, out);
                }
            }
            Fact::Response(first, second) => {
                if !header(first, edited, out)
                    && let Some(second) = second
                {
                    header(second, edited, out);
                }
            }
            Fact::Protocol => out.extend_from_slice(match self.asked.version {
                Version::HTTP_2 => b"HTTP/2",
                _ => b"HTTP/1.1",
            }),
            Fact::StartTime => {
                let _ = write!(out, "{}", humantime::format_rfc3339_millis(record.started()));
            }
            Fact::Client(part) => address(connection.session.source.address(), *part, out),
            Fact::Local(part) => address(connection.local, *part, out),
            Fact::Endpoint(part) => {
                if let Some(endpoint) = record.endpoint {
                    address(endpoint, *part, out);
                }
            }
            Fact::Cluster => out.extend_from_slice(record.cluster.as_deref().unwrap_or_default().as_bytes()),
            Fact::Route => {
                let route = record.route.as_ref();
                out.extend_from_slice(route.map_or(&b""[..], |(_, route)| route.name.as_bytes()));
            }
            Fact::Status => out.extend_from_slice(self.status.as_ref().map_or("", StatusCode::as_str).as_bytes()),
            Fact::Flags => {
                let _ = write!(out, "{}", record.flags);
            }
            Fact::Hostname => out.extend_from_slice(&HOSTNAME),
            Fact::Identity => {
                let _ = match connection.session.source.identity() {
                    Some(identity) => write!(out, "{identity}"),
                    None => write!(out, "-"),
                };
            }
        }
    }
}
