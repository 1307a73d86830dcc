//! What of a request decides which endpoint it goes to, where that is by hash (`RouteAction.HashPolicy`).
//!
//! Policies are gone through in their order, and what each finds is mixed into the hash, as Envoy mixes it: the same request goes to the same endpoint from both.

use std::net::SocketAddr;
use std::time::Duration;

use http::HeaderValue;
use http::header::COOKIE;

use super::ring::{hash, seeded};
use super::{Field, RequestView};

/// One of a route's hash policies.
#[derive(Clone, Debug)]
pub struct HashPolicy {
    /// What is hashed.
    pub source: HashSource,
    /// Whether the policies behind it are passed over once there is a hash.
    pub is_terminal: bool,
}

/// What is hashed.
#[derive(Clone, Debug)]
pub enum HashSource {
    /// The values of a header field.
    Header(Field),
    /// A cookie.
    Cookie(HashCookie),
    /// A parameter of the query.
    Query(String),
    /// The client's IP address.
    SourceIp,
}

/// A cookie that keeps a client at its endpoint.
#[derive(Clone, Debug)]
pub struct HashCookie {
    /// Its name.
    pub name: String,
    /// How long a client that has none keeps the one that it is given; zero: for its session. None: it is given none.
    pub ttl: Option<Duration>,
    /// Below which path the client shows it; empty: where it was given it.
    pub path: String,
}

/// What came of a request's hash policies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hashed {
    /// The hash; none if no policy found anything.
    pub hash: Option<u64>,
    /// Cookies that its answer gives the client.
    pub cookies: Vec<HeaderValue>,
}

/// Goes through the policies for a request of the client at `source`, which came to `local`.
pub fn hash_request(
    policies: &[HashPolicy],
    request: &RequestView<'_>,
    source: SocketAddr,
    local: SocketAddr,
) -> Hashed {
    let mut hashed = Hashed::default();
    for policy in policies {
        let found = match &policy.source {
            HashSource::Header(field) => of_field(field, request),
            HashSource::Cookie(cookie) => match cookie.shown(request) {
                Some(value) => Some(hash(value.as_bytes())),
                None => cookie.give(source, local, &mut hashed.cookies),
            },
            HashSource::Query(name) => of_query(name, request),
            HashSource::SourceIp => Some(hash_source(source)),
        };
        if let Some(found) = found {
            // Turned, so that two that are the same don't cancel each other out.
            hashed.hash = Some(hashed.hash.map_or(0, |before| before.rotate_left(1)) ^ found);
        }
        if policy.is_terminal && hashed.hash.is_some() {
            break;
        }
    }
    hashed
}

/// The hash by which all that comes from one IP address goes to one endpoint, whatever it carries.
pub fn hash_source(source: SocketAddr) -> u64 {
    hash(source.ip().to_canonical().to_string().as_bytes())
}

fn of_field(field: &Field, request: &RequestView<'_>) -> Option<u64> {
    let name = match field {
        Field::Method => return Some(hash(request.method.as_bytes())),
        Field::Authority => return Some(hash(request.authority.as_bytes())),
        Field::Scheme => return Some(hash(request.scheme.as_bytes())),
        Field::Path => {
            let path = match request.query {
                Some(query) => hash(format!("{}?{query}", request.path).as_bytes()),
                None => hash(request.path.as_bytes()),
            };
            return Some(path);
        }
        Field::Header(name) => name,
    };
    let mut values = request.headers.get_all(name).iter();
    let first = values.next()?;
    let Some(second) = values.next() else {
        return Some(hash(first.as_bytes()));
    };
    // Whatever their order.
    let mut all: Vec<&[u8]> = [first, second]
        .into_iter()
        .chain(values)
        .map(HeaderValue::as_bytes)
        .collect();
    all.sort_unstable();
    Some(all.into_iter().fold(0, seeded))
}

fn of_query(name: &str, request: &RequestView<'_>) -> Option<u64> {
    let pairs = request.query?.split('&');
    let mut named = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let (_, value) = named.find(|(own, _)| *own == name)?;
    Some(hash(value.as_bytes()))
}

impl HashCookie {
    /// Its value, without the quotes that it may have.
    fn shown<'r>(&self, request: &RequestView<'r>) -> Option<&'r str> {
        let fields = request.headers.get_all(COOKIE).iter();
        let pairs = fields
            .filter_map(|field| field.to_str().ok())
            .flat_map(|field| field.split(';'));
        let mut named = pairs.filter_map(|pair| pair.trim().split_once('='));
        let (_, value) = named.find(|(name, _)| *name == self.name)?;
        let inside = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
        Some(inside.unwrap_or(value)).filter(|value| !value.is_empty())
    }

    /// Gives the client one, if it is to have one: the same for all requests of its connection, which may be on their way at once.
    fn give(&self, source: SocketAddr, local: SocketAddr, cookies: &mut Vec<HeaderValue>) -> Option<u64> {
        let ttl = self.ttl?;
        let value = format!("{:016x}", hash(format!("{source}{local}").as_bytes()));
        let mut cookie = format!("{}=\"{value}\"", self.name);
        if !ttl.is_zero() {
            cookie += &format!("; Max-Age={}", ttl.as_secs());
        }
        if !self.path.is_empty() {
            cookie += &format!("; Path={}", self.path);
        }
        cookies.push(HeaderValue::try_from(cookie + "; HttpOnly").ok()?);
        Some(hash(value.as_bytes()))
    }
}
