//! Which requests a route is for (`config.route.v3.RouteMatch`).

use std::borrow::Cow;
use std::fmt;

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

/// Text that fills one compiled regular expression; more would let one route use up the node's memory.
const REGEX_SIZE: usize = 1 << 20;

/// Why a text is no regular expression.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPattern {
    /// It would take too much memory.
    #[error("is too large a regular expression")]
    Large,
    /// It is none.
    #[error("is not a regular expression: {0}")]
    Syntax(String),
}

/// A regular expression that parts of a text have to match.
///
/// # Errors
/// If it is none (RE2's syntax: no look-around, no back-references), or too large.
pub fn part_pattern(pattern: &str) -> Result<Regex, BadPattern> {
    let compiled = regex::RegexBuilder::new(pattern).size_limit(REGEX_SIZE).build();
    compiled.map_err(|error| match error {
        regex::Error::CompiledTooBig(_) => BadPattern::Large,
        // The parser's drawing of where it stopped takes several lines.
        other => BadPattern::Syntax(other.to_string().lines().last().unwrap_or_default().trim().to_owned()),
    })
}

/// A regular expression that the whole of a text has to match.
///
/// # Errors
/// As [`part_pattern`].
pub fn whole_pattern(pattern: &str) -> Result<Regex, BadPattern> {
    // By itself first: `a)|(?:b` would be two of them in the parentheses that it is to fill.
    part_pattern(pattern)?;
    part_pattern(&format!("^(?:{pattern})$"))
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
    /// It fulfils this, whatever the case of ASCII letters in both (`ignore_case`); regular expressions say so themselves.
    IgnoreCase(Box<TextMatch>),
}

impl PartialEq for TextMatch {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Exact(one), Self::Exact(other))
            | (Self::Prefix(one), Self::Prefix(other))
            | (Self::Suffix(one), Self::Suffix(other))
            | (Self::Contains(one), Self::Contains(other)) => one == other,
            (Self::Regex(one), Self::Regex(other)) => one.as_str() == other.as_str(),
            (Self::IgnoreCase(one), Self::IgnoreCase(other)) => one == other,
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
            Self::IgnoreCase(inner) => inner.matches_in_any_case(text),
        }
    }

    fn matches_in_any_case(&self, text: &str) -> bool {
        let (text, is) = (text.as_bytes(), <[u8]>::eq_ignore_ascii_case);
        match self {
            Self::Exact(exact) => is(text, exact.as_bytes()),
            Self::Prefix(prefix) => {
                let beginning = text.get(..prefix.len());
                beginning.is_some_and(|beginning| is(beginning, prefix.as_bytes()))
            }
            Self::Suffix(suffix) => {
                let end = text.len().checked_sub(suffix.len()).and_then(|at| text.get(at..));
                end.is_some_and(|end| is(end, suffix.as_bytes()))
            }
            Self::Contains(part) if part.is_empty() => true,
            Self::Contains(part) => text.windows(part.len()).any(|within| is(within, part.as_bytes())),
            Self::Regex(_) | Self::IgnoreCase(_) => self.matches(std::str::from_utf8(text).unwrap_or_default()),
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

impl fmt::Display for PathMatch {
    /// As a configuration file has it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(path) => write!(f, "path {path}"),
            Self::Prefix(prefix) => write!(f, "prefix {prefix}"),
            Self::Segments(prefix) => write!(f, "segments {prefix}"),
            Self::Regex(regex) => write!(f, "regex {regex}"),
            Self::Connect => f.write_str("connect"),
        }
    }
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

impl fmt::Display for Field {
    /// Its name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Method => ":method",
            Self::Authority => ":authority",
            Self::Scheme => ":scheme",
            Self::Path => ":path",
            Self::Header(name) => name.as_str(),
        })
    }
}

impl Field {
    /// By its name, which may be one of HTTP/2's own; none: it can't be one.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            ":method" => Self::Method,
            ":authority" | "host" => Self::Authority,
            ":scheme" => Self::Scheme,
            ":path" => Self::Path,
            _ => Self::Header(HeaderName::try_from(name).ok()?),
        })
    }
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

/// A share of requests (`config.core.v3.RuntimeFractionalPercent`). There is no runtime here that could say another: the default holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fraction {
    /// So many,
    pub numerator: u32,
    /// of so many: 100, 10 000 or 1 000 000.
    pub denominator: u32,
}

impl Fraction {
    /// Whether the request for which `random` was drawn is one of them.
    pub fn has(self, random: u64) -> bool {
        random % u64::from(self.denominator) < u64::from(self.numerator)
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
    /// How many of those that fulfil all else; none: all.
    pub fraction: Option<Fraction>,
}

impl RouteMatch {
    /// Whether `request` fulfils all of it. `random` is any number, one for all routes that a request is compared with: as in Envoy, of two
    /// fractions with one denominator the second gets what it has beyond the first.
    pub fn matches(&self, request: &RequestView<'_>, random: u64) -> bool {
        self.fraction.is_none_or(|fraction| fraction.has(random))
            && self.path.matches(request.path, self.case_sensitive)
            && self.headers.iter().all(|header| header.matches(request))
            && self.query.iter().all(|query| query.matches(request.query))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::Config;

    /// A route for each of these fractions, `rN`, and one for what is left.
    fn share_of(fractions: &[&str]) -> HashMap<String, u32> {
        let routes: Vec<String> = fractions
            .iter()
            .enumerate()
            .map(|(at, fraction)| {
                format!("{{name: r{at}, match: {{runtime_fraction: {{{fraction}}}}}, direct: {{status: 200}}}}")
            })
            .chain(["{name: rest, direct: {status: 200}}".to_owned()])
            .collect();
        let host = format!("{{name: h, domains: ['*'], routes: [{}]}}", routes.join(", "));
        let config = Config::from_yaml(&format!("http: {{routes: [{{name: t, virtual_hosts: [{host}]}}]}}")).unwrap();
        let (headers, mut random) = (HeaderMap::new(), fastrand::Rng::with_seed(7));
        let view = RequestView {
            method: "GET",
            scheme: "http",
            authority: "web.test",
            path: "/",
            query: None,
            headers: &headers,
        };
        let mut shares = HashMap::new();
        for _ in 0..ASKED {
            let (_, route) = config.http.tables["t"].route(&view, random.u64(..)).unwrap();
            *shares.entry(route.name.to_string()).or_default() += 1;
        }
        shares
    }

    const ASKED: u32 = 200_000;

    #[test]
    fn a_route_gets_its_fraction_of_requests() {
        for (fractions, expected) in [
            // Of 100, as nothing else is said.
            (&["numerator: 25"][..], &[25.0][..]),
            (&["numerator: 150, denominator: 10000"], &[1.5]),
            (&["numerator: 5000, denominator: 1000000"], &[0.5]),
            (&["numerator: 0"], &[0.0]),
            (&["numerator: 100"], &[100.0]),
            // One number is drawn for a request: the second gets what it has beyond the first.
            (&["numerator: 10", "numerator: 30"], &[10.0, 20.0]),
            (&["numerator: 30", "numerator: 10"], &[30.0, 0.0]),
        ] {
            let shares = share_of(fractions);
            for (at, percent) in expected.iter().enumerate() {
                let got = f64::from(shares.get(&format!("r{at}")).copied().unwrap_or(0)) / f64::from(ASKED) * 100.0;
                // Six deviations of a share of 200 000 are below 0.7 %.
                let bound = 6.0 * (percent * (100.0 - percent) / f64::from(ASKED)).sqrt();
                assert!((got - percent).abs() <= bound, "{fractions:?}: r{at} has {got} %");
            }
        }
    }
}
