//! What Istio's `AuthorizationPolicy` can ask for, and the conditions that istiod makes of it.

use std::net::IpAddr;

use ipnet::IpNet;
use regex::Regex;

use crate::Text;
use crate::http::{ClaimMatch, Condition, Field, HeaderMatch, PathTemplate, TextMatch, ValueMatch};

/// Of which half of a rule an attribute is: what istiod takes for a permission, what for a principal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Permission,
    Principal,
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Attribute {
    Principal,
    Namespace,
    ServiceAccount,
    PeerIp,
    ClientIp,
    RequestPrincipal,
    Host,
    Port,
    Method,
    Path,
    Header(Field),
    DestinationIp,
    ServerName,
    Claim(Vec<Text>),
    Told(Text),
}

/// Why a text is no key, or no value.
#[derive(Debug)]
pub(super) struct Bad {
    pub(super) problem: String,
    pub(super) remedy: String,
}

fn bad(problem: impl Into<String>, remedy: impl Into<String>) -> Bad {
    Bad {
        problem: problem.into(),
        remedy: remedy.into(),
    }
}

/// `source`'s fields, as Istio writes them.
const SOURCE: [(&str, Attribute); 6] = [
    ("principals", Attribute::Principal),
    ("requestPrincipals", Attribute::RequestPrincipal),
    ("namespaces", Attribute::Namespace),
    ("serviceAccounts", Attribute::ServiceAccount),
    ("ipBlocks", Attribute::PeerIp),
    ("remoteIpBlocks", Attribute::ClientIp),
];
/// `operation`'s fields.
const OPERATION: [(&str, Attribute); 4] = [
    ("hosts", Attribute::Host),
    ("ports", Attribute::Port),
    ("methods", Attribute::Method),
    ("paths", Attribute::Path),
];
/// Keys of `when` without a name in brackets.
const KEYS: [(&str, Attribute); 9] = [
    ("source.ip", Attribute::PeerIp),
    ("remote.ip", Attribute::ClientIp),
    ("source.namespace", Attribute::Namespace),
    ("source.principal", Attribute::Principal),
    ("source.serviceAccount", Attribute::ServiceAccount),
    ("request.auth.principal", Attribute::RequestPrincipal),
    ("destination.ip", Attribute::DestinationIp),
    ("destination.port", Attribute::Port),
    ("connection.sni", Attribute::ServerName),
];

impl Place {
    /// The fields of its half, for a message.
    pub(super) fn fields(self) -> String {
        let table: &[(&str, Attribute)] = self.table();
        let names: Vec<String> = table.iter().map(|(name, _)| snake(name)).collect();
        format!("{}; or the same with `not_` before it", names.join(", "))
    }

    fn table(self) -> &'static [(&'static str, Attribute)] {
        match self {
            Self::Permission => &OPERATION,
            Self::Principal => &SOURCE,
        }
    }
}

/// `ipBlocks` is `ip_blocks`.
fn snake(camel: &str) -> String {
    let mut snake = String::new();
    for letter in camel.chars() {
        if letter.is_ascii_uppercase() {
            snake.push('_');
        }
        snake.push(letter.to_ascii_lowercase());
    }
    snake
}

impl Attribute {
    /// That of a field, and whether it is a `not` one.
    pub(super) fn of_field(name: &str, place: Place) -> Option<(Self, bool)> {
        let name = snake(name);
        let (name, is_negative) = match name.strip_prefix("not_") {
            Some(rest) => (rest, true),
            None => (&*name, false),
        };
        let mut known = place.table().iter();
        let (_, attribute) = known.find(|(known, _)| snake(known) == name)?;
        Some((attribute.clone(), is_negative))
    }

    /// That of a key of `when`.
    pub(super) fn of_key(key: &str) -> Result<Self, Bad> {
        if let Some((_, attribute)) = KEYS.iter().find(|(known, _)| *known == key) {
            return Ok(attribute.clone());
        }
        let claim = |path: Vec<Text>| Ok(Self::Claim(path));
        match key {
            "request.auth.audiences" => return claim(vec!["aud".into()]),
            "request.auth.presenter" => return claim(vec!["azp".into()]),
            _ => {}
        }
        let unknown = || {
            let known: Vec<&str> = KEYS.iter().map(|(known, _)| *known).collect();
            let named = "request.auth.audiences, request.auth.presenter, request.headers[NAME], request.auth.claims[NAME], experimental.envoy.filters.http.ext_authz[NAME]";
            bad(
                "is no key that is known",
                format!("write one of: {}, {named}", known.join(", ")),
            )
        };
        let (what, names) = key.split_once('[').ok_or_else(unknown)?;
        let names = names.strip_suffix(']').ok_or_else(unknown)?;
        match what {
            "request.headers" => {
                let remedy = "write for example request.headers[x-tenant]";
                let field = Field::named(names);
                field
                    .map(Self::Header)
                    .ok_or_else(|| bad("names no header field", remedy))
            }
            // Istio's words for what any filter leaves behind; of those here only this one leaves what a server says.
            "experimental.envoy.filters.http.ext_authz" if !names.is_empty() => Ok(Self::Told(names.into())),
            what if what.starts_with("experimental.envoy.filters.") => Err(bad(
                "names no filter that leaves anything for rules",
                "write for example experimental.envoy.filters.http.ext_authz[tenant]",
            )),
            "request.auth.claims" => {
                let path: Vec<Text> = names.split("][").map(Text::from).collect();
                match path.iter().any(|name| name.is_empty()) {
                    true => Err(bad(
                        "names no claim",
                        "write for example request.auth.claims[realm][role]",
                    )),
                    false => claim(path),
                }
            }
            _ => Err(unknown()),
        }
    }

    pub(super) fn place(&self) -> Place {
        match self {
            Self::Host
            | Self::Port
            | Self::Method
            | Self::Path
            | Self::DestinationIp
            | Self::ServerName
            | Self::Told(_) => Place::Permission,
            _ => Place::Principal,
        }
    }

    /// Whether a connection that carries no HTTP has none.
    pub(super) fn is_of_requests(&self) -> bool {
        match self {
            Self::Principal
            | Self::Namespace
            | Self::ServiceAccount
            | Self::PeerIp
            | Self::Port
            | Self::DestinationIp
            | Self::ServerName => false,
            // Without HTTP there is nobody but the peer, and istiod leaves it out as well.
            Self::ClientIp
            | Self::RequestPrincipal
            | Self::Host
            | Self::Method
            | Self::Path
            | Self::Header(_)
            | Self::Claim(_)
            | Self::Told(_) => true,
        }
    }

    /// What `value` asks for; `namespace` is the policy's.
    pub(super) fn condition(&self, value: &str, namespace: &str) -> Result<Condition, Bad> {
        if value.is_empty() {
            return Err(bad("is empty", "write a value, or `\"*\"` for any"));
        }
        Ok(match self {
            Self::Principal => Condition::Principal(principal(value)),
            Self::Namespace => Condition::Principal(TextMatch::Regex(of_namespace(value))),
            Self::ServiceAccount => Condition::Principal(TextMatch::Regex(of_service_account(value, namespace)?)),
            Self::PeerIp => Condition::PeerIp(block(value)?),
            Self::ClientIp => Condition::ClientIp(block(value)?),
            Self::DestinationIp => Condition::DestinationIp(block(value)?),
            Self::RequestPrincipal => of_token(value),
            Self::Host => header(Field::Authority, value, true),
            Self::Method => header(Field::Method, value, false),
            Self::Header(field) => header(field.clone(), value, false),
            Self::Port => {
                let port = value.parse::<u16>().ok().filter(|port| *port != 0);
                let port = port.ok_or_else(|| bad("is not a port", "write a number from 1 to 65535"))?;
                Condition::DestinationPort(port..=port)
            }
            Self::Path if value.contains('{') => {
                let template = value.replace("{**}", "**").replace("{*}", "*");
                let template = PathTemplate::new(&template);
                let remedy = "write for example /users/{*}/info or /files/{**}";
                Condition::Template(template.map_err(|error| bad(error.to_string(), remedy))?)
            }
            Self::Path => Condition::Path(pattern(value)),
            Self::ServerName => Condition::ServerName(pattern(value)),
            Self::Claim(path) => claim(path.clone(), pattern(value)),
            Self::Told(name) => told(name.clone(), value),
        })
    }
}

/// Istio's patterns: all of it, or with a star at one end; a star alone is anything that is not empty.
fn pattern(value: &str) -> TextMatch {
    match (value.strip_prefix('*'), value.strip_suffix('*')) {
        (Some(""), _) => TextMatch::Regex(regex(".+")),
        (Some(suffix), _) => TextMatch::Suffix(suffix.to_owned()),
        (None, Some(prefix)) => TextMatch::Prefix(prefix.to_owned()),
        (None, None) => TextMatch::Exact(value.to_owned()),
    }
}

/// Made of escaped text: it is one, and small.
fn regex(pattern: &str) -> Regex {
    Regex::new(&format!("^(?:{pattern})$")).unwrap_or_else(|error| unreachable!("{pattern} is made here: {error}"))
}

/// Istio's principals have no scheme.
fn principal(value: &str) -> TextMatch {
    let scheme = |rest: &str| format!("spiffe://{}", rest.strip_prefix("spiffe://").unwrap_or(rest));
    match pattern(value) {
        // An identity is never empty.
        TextMatch::Regex(_) => TextMatch::Prefix(String::new()),
        TextMatch::Prefix(prefix) => TextMatch::Prefix(scheme(&prefix)),
        TextMatch::Exact(exact) => TextMatch::Exact(scheme(&exact)),
        other => other,
    }
}

/// Stars are anything.
fn with_stars(value: &str) -> String {
    let parts: Vec<String> = value.split('*').map(regex::escape).collect();
    parts.join(".*")
}

fn of_namespace(value: &str) -> Regex {
    regex(&format!(".*/ns/{}/.*", with_stars(value)))
}

/// `namespace/name`, or a name in the policy's namespace.
fn of_service_account(value: &str, own: &str) -> Result<Regex, Bad> {
    let (namespace, name) = value.split_once('/').unwrap_or((own, value));
    if name.contains('/') || value.contains('*') || namespace.is_empty() || name.is_empty() {
        let remedy = "write `namespace/name`, or the name of one in the policy's namespace";
        return Err(bad("is not a service account", remedy));
    }
    let [namespace, name] = [namespace, name].map(regex::escape);
    Ok(regex(&format!("spiffe://.+/ns/{namespace}/(.+/|)sa/{name}(/.+)?")))
}

fn block(value: &str) -> Result<IpNet, Bad> {
    let address = value
        .parse::<IpAddr>()
        .map(|address| IpNet::from(address.to_canonical()));
    let remedy = "write an address, or a block such as 10.0.0.0/8";
    address
        .or_else(|_| value.parse::<IpNet>())
        .map_err(|_| bad("is not a block of addresses", remedy))
}

fn header(field: Field, value: &str, ignores_case: bool) -> Condition {
    let pattern = match pattern(value) {
        // Any: that it is there.
        TextMatch::Regex(_) => None,
        pattern if ignores_case => Some(TextMatch::IgnoreCase(pattern.into())),
        pattern => Some(pattern),
    };
    Condition::Header(HeaderMatch {
        field,
        value: pattern,
        invert: false,
        missing_is_empty: false,
    })
}

/// A claim that is such a text, or a list that has one.
fn claim(path: Vec<Text>, pattern: TextMatch) -> Condition {
    let text = ValueMatch::Text(pattern);
    let value = ValueMatch::Either(vec![ValueMatch::OneOf(text.clone().into()), text]);
    Condition::Claim(ClaimMatch { path, value })
}

/// What an authorization server has told: a text, or, in brackets, a list that has it.
fn told(name: Text, value: &str) -> Condition {
    let within = value.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let value = match within {
        Some(within) => ValueMatch::OneOf(ValueMatch::Text(pattern(within)).into()),
        None => ValueMatch::Text(pattern(value)),
    };
    Condition::Told(ClaimMatch {
        path: vec![name],
        value,
    })
}

/// Issuer and subject, with a slash between them.
fn of_token(value: &str) -> Condition {
    let of = |name: &str, pattern: TextMatch| {
        Condition::Claim(ClaimMatch {
            path: vec![name.into()],
            value: ValueMatch::Text(pattern),
        })
    };
    let any = || pattern("*");
    let (issuer, subject) = match (value.rsplit_once('/'), value) {
        (None, "*") => (any(), any()),
        // Of one without a slash, a star stands for all of the other as well.
        (None, value) => match pattern(value) {
            TextMatch::Prefix(prefix) => (TextMatch::Prefix(prefix), any()),
            TextMatch::Suffix(suffix) => (any(), TextMatch::Suffix(suffix)),
            // It can't be: that is a slash too few.
            other => (other, TextMatch::Exact(String::new())),
        },
        (Some((issuer, subject)), _) => {
            let issuer = match issuer.strip_prefix('*') {
                Some("") => any(),
                Some(suffix) => TextMatch::Suffix(suffix.to_owned()),
                None => TextMatch::Exact(issuer.to_owned()),
            };
            let subject = match subject.strip_suffix('*') {
                Some("") => any(),
                Some(prefix) => TextMatch::Prefix(prefix.to_owned()),
                None => TextMatch::Exact(subject.to_owned()),
            };
            (issuer, subject)
        }
    };
    Condition::All(vec![of("iss", issuer), of("sub", subject)])
}
