//! What operators in header values are told of a request (`%REQ(x-user)%`, `%DOWNSTREAM_REMOTE_ADDRESS%`).

use std::io::Write;
use std::net::SocketAddr;
use std::sync::LazyLock;
use std::time::SystemTime;

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version};
use underpass_config::http::{Fact, Facts, Field, Part};

use super::intake::Intake;
use super::peers;
use super::record::Record;
use crate::entrance::Entrance;
use crate::session::Session;

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

/// Writes it, or a part of it.
pub fn address(address: SocketAddr, part: Part, out: &mut Vec<u8>) -> bool {
    // Writing to memory does not fail.
    let _ = match part {
        Part::Address => write!(out, "{address}"),
        Part::WithoutPort => write!(out, "{}", address.ip()),
        Part::Port => write!(out, "{}", address.port()),
    };
    true
}

/// What a client speaks, in Envoy's words.
pub fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_2 => "HTTP/2",
        _ => "HTTP/1.1",
    }
}

/// What a request, or a connection that is none of HTTP, is between.
#[derive(Clone, Copy)]
pub struct Ends<'a> {
    /// What it came by.
    pub session: &'a Session,
    /// The address that its client connected to.
    pub local: SocketAddr,
    /// When it came.
    pub started: SystemTime,
    /// The endpoint of the last try.
    pub endpoint: Option<SocketAddr>,
    /// The cluster.
    pub cluster: Option<&'a str>,
}

impl Ends<'_> {
    /// Writes what they are; false, and nothing written, if it is not known, or is none of that.
    pub fn tell(&self, fact: &Fact, out: &mut Vec<u8>) -> bool {
        let mut some = |text: Option<&[u8]>| {
            out.extend_from_slice(text.unwrap_or_default());
            text.is_some()
        };
        match fact {
            Fact::StartTime(None) => some(Some(
                humantime::format_rfc3339_millis(self.started).to_string().as_bytes(),
            )),
            Fact::StartTime(Some(format)) => {
                format.write(self.started, out);
                true
            }
            Fact::Client(part) => address(self.session.source.address(), *part, out),
            Fact::Local(part) => address(self.local, *part, out),
            Fact::Endpoint(part) | Fact::Connected(part) => {
                self.endpoint.is_some_and(|endpoint| address(endpoint, *part, out))
            }
            Fact::Cluster => some(self.cluster.map(str::as_bytes)),
            Fact::Hostname => some(Some(&HOSTNAME)),
            Fact::Peer(end, field) => peers::tell(self, *end, *field, out),
            _ => false,
        }
    }

    /// Whether the client has shown a certificate.
    pub fn is_mutual(&self) -> bool {
        let session = self.session;
        matches!(session.entrance, Entrance::Hbone(_) | Entrance::Waypoint(_)) && session.source.identity().is_some()
    }
}

/// Writes what is the same at any time of a request's life; false, if it is not known, or is none of that.
pub fn of_record(record: &Record, fact: &Fact, out: &mut Vec<u8>) -> bool {
    match fact {
        Fact::Route => {
            let name = record.route.as_ref().map(|(_, route)| route.name.as_bytes());
            let name = name.filter(|name| !name.is_empty());
            out.extend_from_slice(name.unwrap_or_default());
            name.is_some()
        }
        _ => record.ends().tell(fact, out),
    }
}

impl Facts for Known<'_> {
    fn tell(&self, fact: &Fact, edited: &HeaderMap, out: &mut Vec<u8>) -> bool {
        let record = self.record;
        match fact {
            Fact::Request(first, second) => {
                let headers = self.request.unwrap_or(edited);
                self.field(first, headers, out)
                    || second.as_ref().is_some_and(|second| self.field(second, headers, out))
            }
            Fact::Response(first, second) => {
                header(first, edited, out) || second.as_ref().is_some_and(|second| header(second, edited, out))
            }
            Fact::Protocol => {
                out.extend_from_slice(protocol(self.asked.version).as_bytes());
                true
            }
            Fact::Status => {
                out.extend_from_slice(self.status.as_ref().map_or("", StatusCode::as_str).as_bytes());
                self.status.is_some()
            }
            Fact::Flags => {
                let _ = write!(out, "{}", record.flags);
                true
            }
            Fact::Identity => {
                let _ = match record.connection().session.source.identity() {
                    Some(identity) => write!(out, "{identity}"),
                    None => write!(out, "-"),
                };
                true
            }
            // The others are for logs.
            _ => of_record(record, fact, out),
        }
    }
}
