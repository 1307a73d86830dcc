//! Command operators in the values of header fields: `%REQ(x-user)%`, `%DOWNSTREAM_REMOTE_ADDRESS%` (Envoy's substitution formats, of which these are those that
//! say something of a request, a connection or an endpoint).

use http::header::{HeaderMap, HeaderName};

use super::Field;

/// A text with operators in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Format(Vec<Piece>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Fact {
        fact: Fact,
        /// No more than so many bytes of it.
        limit: Option<usize>,
    },
}

/// What an operator tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact {
    /// A field of the request, or else another (`REQ(X?Y)`).
    Request(Field, Option<Field>),
    /// A field of the response, or else another (`RESP(X?Y)`).
    Response(HeaderName, Option<HeaderName>),
    /// `HTTP/1.1` or `HTTP/2`, as the client speaks it.
    Protocol,
    /// When the request came (RFC 3339, milliseconds).
    StartTime,
    /// The client's address.
    Client(Part),
    /// The address that the client had connected to.
    Local(Part),
    /// The endpoint's address.
    Endpoint(Part),
    /// The cluster.
    Cluster,
    /// The route.
    Route,
    /// The status of the response.
    Status,
    /// Why it did not go as it should have (Envoy's response flags), `-` if it did.
    Flags,
    /// The name of the machine, as its kernel has it.
    Hostname,
    /// The client's SPIFFE identity, which policy decides about; `-` if it has none.
    Identity,
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

/// Where a value is edited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// In a request: there is neither endpoint nor response yet.
    Request,
    /// In a response.
    Response,
}

/// What knows the facts of one request.
pub trait Facts {
    /// Writes a fact to `out`; nothing, if it is not known. `edited` are the fields that are being edited.
    fn tell(&self, fact: &Fact, edited: &HeaderMap, out: &mut Vec<u8>);
}

/// Operators without arguments.
const PLAIN: [(&str, Fact); 21] = [
    ("PROTOCOL", Fact::Protocol),
    ("START_TIME", Fact::StartTime),
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
    ("UPSTREAM_REMOTE_ADDRESS", Fact::Endpoint(Part::Address)),
    (
        "UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT",
        Fact::Endpoint(Part::WithoutPort),
    ),
    ("UPSTREAM_REMOTE_PORT", Fact::Endpoint(Part::Port)),
    ("UPSTREAM_CLUSTER", Fact::Cluster),
    ("ROUTE_NAME", Fact::Route),
    ("RESPONSE_CODE", Fact::Status),
    ("RESPONSE_FLAGS", Fact::Flags),
    ("HOSTNAME", Fact::Hostname),
    // Elsewhere nothing is written of what is not known. Of this, something is: an edit that writes nothing leaves what the client has sent,
    // which could be another's name.
    ("DOWNSTREAM_PEER_URI_SAN", Fact::Identity),
];

/// The operators, for messages.
pub fn known() -> String {
    let names: Vec<&str> = ["REQ(NAME?OTHER):LENGTH", "RESP(NAME?OTHER):LENGTH"]
        .into_iter()
        .chain(PLAIN.iter().map(|(name, _)| *name))
        .collect();
    names.join(", ")
}

/// Why a text is no format.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadFormat {
    /// `%` that nothing follows which ends in another.
    #[error("has a `%` that begins nothing")]
    Unclosed,
    /// None of those that there are.
    #[error("has the operator `%{0}%`, which is not supported")]
    Unknown(String),
    /// No name of a field in it.
    #[error("asks for a field by `{0}`, which is no name")]
    Name(String),
    /// It is asked for what comes later.
    #[error("has the operator `%{0}%`, about which nothing is known when a request is edited")]
    Early(String),
}

impl Format {
    /// Reads a text, in which `%%` is a percent sign.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str, stage: Stage) -> Result<Self, BadFormat> {
        let mut pieces = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('%') {
            plain.push_str(before);
            if let Some(after) = after.strip_prefix('%') {
                plain.push('%');
                rest = after;
                continue;
            }
            let (operator, after) = after.split_once('%').ok_or(BadFormat::Unclosed)?;
            pieces.push(Piece::Text(std::mem::take(&mut plain)));
            pieces.push(Piece::parse(operator, stage)?);
            rest = after;
        }
        plain.push_str(rest);
        pieces.push(Piece::Text(plain));
        pieces.retain(|piece| !matches!(piece, Piece::Text(text) if text.is_empty()));
        Ok(Self(pieces))
    }

    /// What it always is, if there is no operator in it.
    pub fn fixed(&self) -> Option<&str> {
        match &self.0[..] {
            [] => Some(""),
            [Piece::Text(text)] => Some(text),
            _ => None,
        }
    }

    /// What it is for one request.
    pub fn written(&self, edited: &HeaderMap, facts: &dyn Facts) -> Vec<u8> {
        let mut out = Vec::new();
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => out.extend_from_slice(text.as_bytes()),
                Piece::Fact { fact, limit } => {
                    let before = out.len();
                    facts.tell(fact, edited, &mut out);
                    if let Some(limit) = limit {
                        out.truncate(before + limit);
                    }
                }
            }
        }
        out
    }
}

impl Piece {
    fn parse(operator: &str, stage: Stage) -> Result<Self, BadFormat> {
        let unknown = || BadFormat::Unknown(operator.to_owned());
        let (fact, limit) = match operator.split_once('(') {
            None => {
                let found = PLAIN.iter().find(|(name, _)| *name == operator);
                (found.ok_or_else(unknown)?.1.clone(), None)
            }
            Some((name, arguments)) => {
                let (arguments, after) = arguments.split_once(')').ok_or_else(unknown)?;
                let limit = match after.strip_prefix(':') {
                    Some(digits) => Some(digits.parse().map_err(|_| unknown())?),
                    None if after.is_empty() => None,
                    None => return Err(unknown()),
                };
                let (first, second) = match arguments.split_once('?') {
                    Some((first, second)) => (first, Some(second)),
                    None => (arguments, None),
                };
                let fact = match name {
                    "REQ" => Fact::Request(request_field(first)?, second.map(request_field).transpose()?),
                    "RESP" => Fact::Response(response_field(first)?, second.map(response_field).transpose()?),
                    _ => return Err(unknown()),
                };
                (fact, limit)
            }
        };
        let is_later = matches!(
            fact,
            Fact::Response(..) | Fact::Endpoint(_) | Fact::Status | Fact::Flags
        );
        match is_later && stage == Stage::Request {
            true => Err(BadFormat::Early(operator.to_owned())),
            false => Ok(Self::Fact { fact, limit }),
        }
    }
}

fn response_field(name: &str) -> Result<HeaderName, BadFormat> {
    HeaderName::try_from(name).map_err(|_| BadFormat::Name(name.to_owned()))
}

fn request_field(name: &str) -> Result<Field, BadFormat> {
    Ok(match name.to_ascii_lowercase().as_str() {
        ":method" => Field::Method,
        ":authority" | "host" => Field::Authority,
        ":scheme" => Field::Scheme,
        ":path" => Field::Path,
        _ => Field::Header(response_field(name)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Told;

    impl Facts for Told {
        fn tell(&self, fact: &Fact, edited: &HeaderMap, out: &mut Vec<u8>) {
            match fact {
                Fact::Protocol => out.extend_from_slice(b"HTTP/1.1"),
                Fact::Request(Field::Path, _) => out.extend_from_slice(b"/path"),
                Fact::Request(Field::Header(name), other) => {
                    let second = match other {
                        Some(Field::Header(name)) => edited.get(name),
                        _ => None,
                    };
                    if let Some(value) = edited.get(name).or(second) {
                        out.extend_from_slice(value.as_bytes());
                    }
                }
                _ => {}
            }
        }
    }

    #[test]
    fn operators_are_told_in_their_places() {
        let mut headers = HeaderMap::new();
        headers.insert("x-user", "alice".parse().unwrap());
        for (text, expected) in [
            ("a%%b", "a%b"),
            ("%PROTOCOL%", "HTTP/1.1"),
            ("u=%REQ(X-User)%;", "u=alice;"),
            ("%REQ(x-none?x-user):3%!", "ali!"),
            ("%REQ(x-none)%", ""),
            ("%REQ(:path)%%REQ(x-user):99%", "/pathalice"),
            ("%UPSTREAM_HOST%", ""),
        ] {
            let format = Format::parse(text, Stage::Response).unwrap();
            assert_eq!(format.written(&headers, &Told), expected.as_bytes(), "{text}");
        }
    }

    #[test]
    fn what_is_no_format_says_why() {
        use BadFormat::{Early, Name, Unclosed, Unknown};
        for (text, why) in [
            ("100%", Unclosed),
            ("%PROTOCOL", Unclosed),
            ("%NOTHING%", Unknown("NOTHING".into())),
            ("%REQ(x%", Unknown("REQ(x".into())),
            ("%REQ(x):y%", Unknown("REQ(x):y".into())),
            ("%REQ(x)y%", Unknown("REQ(x)y".into())),
            ("%REQ()%", Name(String::new())),
            ("%REQ(a b)%", Name("a b".into())),
            ("%RESP(x)%", Early("RESP(x)".into())),
            ("%UPSTREAM_HOST%", Early("UPSTREAM_HOST".into())),
            ("%RESPONSE_CODE%", Early("RESPONSE_CODE".into())),
            ("%RESPONSE_FLAGS%", Early("RESPONSE_FLAGS".into())),
        ] {
            assert_eq!(Format::parse(text, Stage::Request).unwrap_err(), why, "{text}");
        }
        assert_eq!(Format::parse("a%%", Stage::Request).unwrap().fixed(), Some("a%"));
        assert_eq!(Format::parse("", Stage::Request).unwrap().fixed(), Some(""));
    }
}
