//! Which requests a route is for (`config.route.v3.RouteMatch`).

use std::borrow::Cow;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use regex::Regex;

/// What of a request a route looks at.
#[derive(Clone, Copy, Debug)]
pub struct RequestView<'a> {
    /// The method.
    pub method: &'a str,
    /// `http` or `https`.
    pub scheme: &'a str,
    /// Host, and port if the client gave one.
    pub authority: &'a str,
    /// The path without the query; that of CONNECT is empty.
    pub path: &'a str,
    /// What follows the question mark, if there is one.
    pub query: Option<&'a str>,
    /// The other header fields.
    pub headers: &'a HeaderMap,
}

/// A condition on a text (`type.matcher.v3.StringMatcher`).
#[derive(Clone, Debug)]
pub enum TextMatch {
    /// It is this.
    Exact(String),
    /// It begins so.
    Prefix(String),
    /// It ends so.
    Suffix(String),
    /// This is in it.
    Contains(String),
    /// The whole of it matches.
    Regex(Regex),
}

impl PartialEq for TextMatch {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Exact(one), Self::Exact(other))
            | (Self::Prefix(one), Self::Prefix(other))
            | (Self::Suffix(one), Self::Suffix(other))
            | (Self::Contains(one), Self::Contains(other)) => one == other,
            (Self::Regex(one), Self::Regex(other)) => one.as_str() == other.as_str(),
            _ => false,
        }
    }
}

impl Eq for TextMatch {}

impl TextMatch {
    /// Whether `text` fulfils it.
    pub fn matches(&self, text: &str) -> bool {
        match self {
            Self::Exact(exact) => text == exact,
            Self::Prefix(prefix) => text.starts_with(prefix.as_str()),
            Self::Suffix(suffix) => text.ends_with(suffix.as_str()),
            Self::Contains(part) => text.contains(part.as_str()),
            Self::Regex(regex) => regex.is_match(text),
        }
    }
}

/// A condition on the path, without the query.
#[derive(Clone, Debug)]
pub enum PathMatch {
    /// It is this.
    Exact(String),
    /// It begins so.
    Prefix(String),
    /// It begins with these whole segments: `/api` is in `/api` and `/api/x`, not in `/apis`.
    Segments(String),
    /// The whole of it matches.
    Regex(Regex),
    /// There is none: it is a CONNECT (`connect_matcher`), which no other condition on a path matches.
    Connect,
}

impl PathMatch {
    /// Whether `path` fulfils it; `case_sensitive` as the route says.
    pub fn matches(&self, path: &str, case_sensitive: bool) -> bool {
        if path.is_empty() {
            return matches!(self, Self::Connect);
        }
        let begins = |prefix: &str| {
            let Some(beginning) = path.as_bytes().get(..prefix.len()) else {
                return false;
            };
            match case_sensitive {
                true => beginning == prefix.as_bytes(),
                false => beginning.eq_ignore_ascii_case(prefix.as_bytes()),
            }
        };
        match self {
            Self::Exact(exact) => path.len() == exact.len() && begins(exact),
            Self::Prefix(prefix) => begins(prefix),
            Self::Segments(prefix) => begins(prefix) && matches!(path.as_bytes().get(prefix.len()), None | Some(b'/')),
            // Its author says `(?i)`.
            Self::Regex(regex) => regex.is_match(path),
            Self::Connect => false,
        }
    }
}

/// A condition on a header field (`config.route.v3.HeaderMatcher`).
#[derive(Clone, Debug)]
pub struct HeaderMatch {
    /// Which.
    pub field: Field,
    /// What of it; none: that it is there.
    pub value: Option<TextMatch>,
    /// Whether the condition has to be false.
    pub invert: bool,
    /// Whether a missing field is an empty one. If not, a condition on a missing field is false, inverted or not.
    pub missing_is_empty: bool,
}

/// A header field, or what HTTP/2 has as one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Field {
    /// `:method`
    Method,
    /// `:authority`
    Authority,
    /// `:scheme`
    Scheme,
    /// `:path`, with the query.
    Path,
    /// Any other.
    Header(HeaderName),
}

impl HeaderMatch {
    /// Whether `request` fulfils it. Of a field that is there several times, one value has to (as in Envoy 1.40), and none if it is inverted.
    pub fn matches(&self, request: &RequestView<'_>) -> bool {
        let Some(matcher) = &self.value else {
            return (self.is_there(request) || self.missing_is_empty) != self.invert;
        };
        if !self.is_there(request) {
            return self.missing_is_empty && matcher.matches("") != self.invert;
        }
        let is_met = match &self.field {
            Field::Method => matcher.matches(request.method),
            Field::Authority => matcher.matches(request.authority),
            Field::Scheme => matcher.matches(request.scheme),
            Field::Path => matcher.matches(&whole_path(request)),
            Field::Header(name) => {
                let mut values = request.headers.get_all(name).iter();
                values.any(|value| matcher.matches(text(value)))
            }
        };
        is_met != self.invert
    }

    fn is_there(&self, request: &RequestView<'_>) -> bool {
        match &self.field {
            Field::Header(name) => request.headers.contains_key(name),
            _ => true,
        }
    }
}

fn whole_path<'a>(request: &RequestView<'a>) -> Cow<'a, str> {
    match request.query {
        None => request.path.into(),
        Some(query) => format!("{}?{query}", request.path).into(),
    }
}

/// Bytes that are no text are a text that no configuration can name.
fn text(value: &HeaderValue) -> &str {
    std::str::from_utf8(value.as_bytes()).unwrap_or("\u{fffd}")
}

/// A condition on a parameter of the query (`config.route.v3.QueryParameterMatcher`): on its first value, as it is written.
#[derive(Clone, Debug)]
pub struct QueryMatch {
    /// Which.
    pub name: String,
    /// What of it; none: that it is there.
    pub value: Option<TextMatch>,
}

impl QueryMatch {
    /// Whether `query` fulfils it.
    pub fn matches(&self, query: Option<&str>) -> bool {
        let pairs = query.unwrap_or_default().split('&');
        let mut named = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        let Some((_, value)) = named.find(|(name, _)| *name == self.name) else {
            return false;
        };
        self.value.as_ref().is_none_or(|matcher| matcher.matches(value))
    }
}

/// All that a route asks of a request.
#[derive(Clone, Debug)]
pub struct RouteMatch {
    /// The path.
    pub path: PathMatch,
    /// Whether upper and lower case differ in the path. Default yes.
    pub case_sensitive: bool,
    /// Header fields: all of them.
    pub headers: Vec<HeaderMatch>,
    /// Parameters of the query: all of them.
    pub query: Vec<QueryMatch>,
}

impl RouteMatch {
    /// Whether `request` fulfils all of it.
    pub fn matches(&self, request: &RequestView<'_>) -> bool {
        self.path.matches(request.path, self.case_sensitive)
            && self.headers.iter().all(|header| header.matches(request))
            && self.query.iter().all(|query| query.matches(request.query))
    }
}
