//! Command operators in the values of header fields and in the formats of access logs: `%REQ(x-user)%`, `%DOWNSTREAM_REMOTE_ADDRESS%` (Envoy's substitution
//! formats, of which these are those that say something of a request, a connection or an endpoint).
//!
//! [`fact`] has the operators and what each asks for; [`peer`] what is told of the workloads at both ends; [`time`] the formats of times. Who knows the facts is the proxy's matter ([`Facts`]).

mod fact;
mod peer;
mod time;

use std::borrow::Cow;

use http::header::HeaderMap;

pub use fact::{Fact, GrpcForm, Part};
pub use peer::{PEER_FIELDS, PeerEnd, PeerField};
pub use time::TimeFormat;

/// A text with operators in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Format(Vec<Piece>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Fact(Limited),
}

/// A fact, and no more of it than is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limited {
    /// What is told.
    pub fact: Fact,
    /// No more than so many bytes of it.
    pub limit: Option<usize>,
}

/// Where operators stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// In a request: there is neither endpoint nor response yet.
    Request,
    /// In a response.
    Response,
    /// In the line of a request that is over.
    Log,
}

/// What knows the facts of one request.
pub trait Facts {
    /// Writes a fact to `out`; false, and nothing written, if it is not known. `edited` are the fields that are being edited.
    fn tell(&self, fact: &Fact, edited: &HeaderMap, out: &mut Vec<u8>) -> bool;
}

/// The operators, for messages.
pub fn known(stage: Stage) -> String {
    fact::names(stage).join(", ")
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
    /// It is asked for what is known only at the end.
    #[error("has the operator `%{0}%`, which is for access logs")]
    ForLogs(String),
    /// No format of a time.
    #[error("has the time format `{0}`, which is not supported")]
    Time(String),
}

impl BadFormat {
    /// What to do about it, where `stage` says where it stands.
    pub fn remedy(&self, stage: Stage) -> String {
        match self {
            Self::Unclosed => "write %% for a percent sign, %OPERATOR% for an operator".to_owned(),
            Self::Name(_) => "write for example %REQ(x-user)% or %REQ(:path)%".to_owned(),
            Self::Early(_) => "write it in `response_headers`, or remove it".to_owned(),
            Self::ForLogs(_) => "write it in `node.access_log`, or remove it".to_owned(),
            Self::Time(_) => "write for example %START_TIME(%Y-%m-%dT%H:%M:%S.%3fZ)% or %START_TIME(%s)%".to_owned(),
            Self::Unknown(_) => format!("write one of: {}", known(stage)),
        }
    }
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
            let (operator, after) = fact::split(after).ok_or(BadFormat::Unclosed)?;
            pieces.push(Piece::Text(std::mem::take(&mut plain)));
            pieces.push(Piece::Fact(fact::parse(operator, stage)?));
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

    /// The one fact that it is, if it is nothing else.
    pub fn single(&self) -> Option<&Limited> {
        match &self.0[..] {
            [Piece::Fact(limited)] => Some(limited),
            _ => None,
        }
    }

    /// What it asks for.
    pub fn facts(&self) -> impl Iterator<Item = &Fact> {
        self.0.iter().filter_map(|piece| match piece {
            Piece::Text(_) => None,
            Piece::Fact(limited) => Some(&limited.fact),
        })
    }

    /// What it is for one request; nothing stands for what is not known.
    pub fn written(&self, edited: &HeaderMap, facts: &dyn Facts) -> Vec<u8> {
        self.told(edited, facts, "")
    }

    /// The same, where `unknown` stands for what is not known.
    pub fn told(&self, edited: &HeaderMap, facts: &dyn Facts, unknown: &str) -> Vec<u8> {
        let mut out = Vec::new();
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => out.extend_from_slice(text.as_bytes()),
                Piece::Fact(limited) => {
                    if !limited.tell(edited, facts, &mut out) {
                        out.extend_from_slice(unknown.as_bytes());
                    }
                }
            }
        }
        out
    }

    /// The same for the line of a request that is over, as a text: what is none is shown as such.
    pub fn line(&self, facts: &dyn Facts, unknown: &str) -> String {
        text(self.told(&HeaderMap::new(), facts, unknown))
    }
}

impl Limited {
    fn tell(&self, edited: &HeaderMap, facts: &dyn Facts, out: &mut Vec<u8>) -> bool {
        let before = out.len();
        let is_known = facts.tell(&self.fact, edited, out);
        if let Some(limit) = self.limit {
            out.truncate(before.saturating_add(limit));
        }
        is_known
    }

    /// It alone, for the line of a request that is over; nothing, if it is not known.
    pub fn alone(&self, facts: &dyn Facts) -> Option<String> {
        let mut out = Vec::new();
        self.tell(&HeaderMap::new(), facts, &mut out).then(|| text(out))
    }
}

/// Fields of HTTP may hold bytes that are no text.
fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| match String::from_utf8_lossy(error.as_bytes()) {
        Cow::Owned(text) => text,
        Cow::Borrowed(text) => text.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::Field;

    struct Told;

    impl Facts for Told {
        fn tell(&self, fact: &Fact, edited: &HeaderMap, out: &mut Vec<u8>) -> bool {
            match fact {
                Fact::Protocol => out.extend_from_slice(b"HTTP/1.1"),
                Fact::Request(Field::Path, _) => out.extend_from_slice(b"/path"),
                Fact::Request(Field::Header(name), other) => {
                    let second = match other {
                        Some(Field::Header(name)) => edited.get(name),
                        _ => None,
                    };
                    let value = edited.get(name).or(second);
                    out.extend_from_slice(value.map_or(b"", |value| value.as_bytes()));
                    return value.is_some();
                }
                _ => return false,
            }
            true
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
    fn what_is_not_known_has_its_sign_in_a_line() {
        for (text, line) in [
            ("%REQ(x)%|%PROTOCOL%|%UPSTREAM_HOST%", "-|HTTP/1.1|-"),
            ("%START_TIME(%s)% %TRAILER(x?y):3%", "- -"),
            ("%REQUESTED_SERVER_NAME% %DYNAMIC_METADATA(a.b:c):9%", "- -"),
        ] {
            let format = Format::parse(text, Stage::Log).unwrap();
            assert_eq!(format.line(&Told, "-"), line);
        }
        let host = Format::parse("%UPSTREAM_HOST%", Stage::Log).unwrap();
        assert_eq!(host.single().unwrap().alone(&Told), None);
    }

    #[test]
    fn what_is_no_format_says_why() {
        use BadFormat::{Early, ForLogs, Name, Time, Unclosed, Unknown};
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
            ("%BYTES_SENT%", ForLogs("BYTES_SENT".into())),
            ("%START_TIME(%Q)%", Time("%Q".into())),
            ("%START_TIME(a\nb)%", Time("a\nb".into())),
        ] {
            assert_eq!(Format::parse(text, Stage::Request).unwrap_err(), why, "{text}");
        }
        assert_eq!(Format::parse("a%%", Stage::Request).unwrap().fixed(), Some("a%"));
        assert_eq!(Format::parse("", Stage::Request).unwrap().fixed(), Some(""));
    }
}
