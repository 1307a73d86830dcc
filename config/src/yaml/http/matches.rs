//! What a route asks of a request.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::super::reading::{Path, Reading, YES_OR_NO};
use super::super::scalar::{Scalar, ScalarOr};
use super::headers::header_name;
use super::regex;
use crate::http::{Field, Fraction, HeaderMatch, PathMatch, QueryMatch, RouteMatch, TextMatch};

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct MatchShape<'a> {
    #[serde(borrow)]
    path: Option<Scalar<'a>>,
    prefix: Option<Scalar<'a>>,
    segments: Option<Scalar<'a>>,
    regex: Option<Scalar<'a>>,
    connect: Option<Scalar<'a>>,
    case_sensitive: Option<Scalar<'a>>,
    method: Option<Scalar<'a>>,
    headers: BTreeMap<Scalar<'a>, ScalarOr<'a, TextShape<'a>>>,
    query: BTreeMap<Scalar<'a>, ScalarOr<'a, TextShape<'a>>>,
    runtime_fraction: Option<FractionShape<'a>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FractionShape<'a> {
    #[serde(borrow)]
    numerator: Scalar<'a>,
    denominator: Option<Scalar<'a>>,
}

/// Envoy's `HUNDRED`, which is the default, `TEN_THOUSAND` and `MILLION`.
const DENOMINATORS: [(&str, u32); 3] = [("100", 100), ("10000", 10_000), ("1000000", 1_000_000)];

/// A condition on a text: itself, or one of these.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct TextShape<'a> {
    #[serde(borrow)]
    exact: Option<Scalar<'a>>,
    prefix: Option<Scalar<'a>>,
    suffix: Option<Scalar<'a>>,
    contains: Option<Scalar<'a>>,
    regex: Option<Scalar<'a>>,
    present: Option<Scalar<'a>>,
    invert: Option<Scalar<'a>>,
    missing_is_empty: Option<Scalar<'a>>,
}

impl MatchShape<'_> {
    pub(super) fn compile(&self, path: Path<'_>, reading: &mut Reading) -> RouteMatch {
        let case_sensitive = reading.choice(path.field("case_sensitive"), self.case_sensitive.as_ref(), &YES_OR_NO);
        let mut headers = Vec::with_capacity(self.headers.len());
        if let Some(method) = &self.method {
            headers.push(HeaderMatch {
                field: Field::Method,
                value: Some(TextMatch::Exact(method.to_string())),
                invert: false,
                missing_is_empty: false,
            });
        }
        for (name, shape) in &self.headers {
            let fields = path.field("headers");
            headers.extend(header(fields.key(name), name, shape, reading));
        }
        let mut query = Vec::with_capacity(self.query.len());
        for (name, shape) in &self.query {
            let parameters = path.field("query");
            let (value, _) = text(parameters.key(name), shape, reading);
            query.push(QueryMatch {
                name: name.to_string(),
                value,
            });
        }
        RouteMatch {
            path: self.path_match(path, reading),
            case_sensitive: case_sensitive.unwrap_or(true),
            headers,
            query,
            fraction: (self.runtime_fraction.as_ref())
                .map(|fraction| fraction.compile(path.field("runtime_fraction"), reading)),
        }
    }

    /// Exactly one of the ways to say it; every path if there is none.
    fn path_match(&self, path: Path<'_>, reading: &mut Reading) -> PathMatch {
        let ways = [
            ("path", &self.path),
            ("prefix", &self.prefix),
            ("segments", &self.segments),
            ("regex", &self.regex),
            ("connect", &self.connect),
        ];
        let mut given = ways.iter().filter_map(|(name, value)| Some((*name, value.as_ref()?)));
        let first = given.next();
        if let (Some((first, _)), Some((second, value))) = (first, given.next()) {
            let problem = format!("`{first}` is given too");
            reading.report(
                path.field(second),
                value,
                problem,
                "a route looks at the path once: remove one",
            );
        }
        let Some((way, value)) = first else {
            return PathMatch::Prefix("/".to_owned());
        };
        let path = path.field(way);
        if way == "regex" {
            let regex = regex(path, value, true, reading);
            return regex.map_or(PathMatch::Exact(String::new()), PathMatch::Regex);
        }
        if way == "connect" {
            reading.choice(path, Some(value), &[("true", ())]);
            return PathMatch::Connect;
        }
        if !value.starts_with('/') || value.contains(['?', '#']) {
            let remedy = "write a path from `/` on, without a query";
            reading.report(path, value, "is not a path", remedy);
        }
        match way {
            "path" => PathMatch::Exact(value.to_string()),
            "prefix" => PathMatch::Prefix(value.to_string()),
            // `/` has no segment: all paths are in it.
            _ => PathMatch::Segments(value.trim_end_matches('/').to_owned()),
        }
    }
}

impl FractionShape<'_> {
    fn compile(&self, path: Path<'_>, reading: &mut Reading) -> Fraction {
        let denominator = reading.choice(path.field("denominator"), self.denominator.as_ref(), &DENOMINATORS);
        let denominator = denominator.unwrap_or(DENOMINATORS[0].1);
        let numerator = reading.count(path.field("numerator"), &self.numerator, 0..=denominator);
        Fraction {
            numerator: numerator.unwrap_or(0),
            denominator,
        }
    }
}

/// A field by its name, which may be one of HTTP/2's own.
pub(super) fn field(path: Path<'_>, name: &str, reading: &mut Reading) -> Option<Field> {
    let field = Field::named(name);
    if field.is_none() {
        // It says why.
        header_name(path, name, reading);
    }
    field
}

pub(super) fn header(
    path: Path<'_>,
    name: &str,
    shape: &ScalarOr<'_, TextShape<'_>>,
    reading: &mut Reading,
) -> Option<HeaderMatch> {
    let field = field(path, name, reading)?;
    let (value, present) = text(path, shape, reading);
    let mut flag = |field, value: fn(&TextShape<'_>) -> Option<String>| {
        let ScalarOr::Mapping(shape) = shape else {
            return false;
        };
        let value = value(shape);
        match value.as_deref() {
            None | Some("false") => false,
            Some("true") => true,
            Some(other) => {
                reading.report(path.field(field), other, "is not a known value", "write true or false");
                false
            }
        }
    };
    let invert = flag("invert", |shape| shape.invert.as_ref().map(|v| v.to_string()));
    let missing_is_empty = flag("missing_is_empty", |shape| {
        shape.missing_is_empty.as_ref().map(|v| v.to_string())
    });
    Some(HeaderMatch {
        field,
        value,
        invert: invert != (present == Some(false)),
        missing_is_empty,
    })
}

/// The condition, and what `present` says. Exactly one of both is given.
fn text(
    path: Path<'_>,
    shape: &ScalarOr<'_, TextShape<'_>>,
    reading: &mut Reading,
) -> (Option<TextMatch>, Option<bool>) {
    let shape = match shape {
        ScalarOr::Scalar(exact) => return (Some(TextMatch::Exact(exact.to_string())), None),
        ScalarOr::Mapping(shape) => shape,
    };
    let present = reading.choice(path.field("present"), shape.present.as_ref(), &YES_OR_NO);
    let given = Conditions {
        exact: shape.exact.as_ref(),
        prefix: shape.prefix.as_ref(),
        suffix: shape.suffix.as_ref(),
        contains: shape.contains.as_ref(),
        regex: shape.regex.as_ref(),
    };
    let mut found = conditions(path, given, reading);
    if found.len() + usize::from(shape.present.is_some()) != 1 {
        let remedy = "write one of: exact, prefix, suffix, contains, regex, present";
        reading.report(path, "", "needs exactly one condition", remedy);
    }
    (found.pop(), present)
}

/// The one condition of `given`; a report when there is none, or more.
pub(super) fn condition(path: Path<'_>, given: Conditions<'_, '_>, reading: &mut Reading) -> Option<TextMatch> {
    let mut found = conditions(path, given, reading);
    if found.len() != 1 {
        let remedy = "write one of: exact, prefix, suffix, contains, regex";
        reading.report(path, "", "needs exactly one condition", remedy);
    }
    found.pop()
}

/// The conditions on a text that a mapping may hold.
pub(super) struct Conditions<'s, 'a> {
    pub(super) exact: Option<&'s Scalar<'a>>,
    pub(super) prefix: Option<&'s Scalar<'a>>,
    pub(super) suffix: Option<&'s Scalar<'a>>,
    pub(super) contains: Option<&'s Scalar<'a>>,
    pub(super) regex: Option<&'s Scalar<'a>>,
}

/// Those of `given` that are there.
fn conditions(path: Path<'_>, given: Conditions<'_, '_>, reading: &mut Reading) -> Vec<TextMatch> {
    type Kind = fn(String) -> TextMatch;
    let plain: [(Option<&Scalar<'_>>, Kind); 4] = [
        (given.exact, TextMatch::Exact),
        (given.prefix, TextMatch::Prefix),
        (given.suffix, TextMatch::Suffix),
        (given.contains, TextMatch::Contains),
    ];
    let plain = plain
        .into_iter()
        .filter_map(|(value, kind)| Some(kind(value?.to_string())));
    let mut found: Vec<TextMatch> = plain.collect();
    if let Some(value) = given.regex {
        // One that is none is reported, and stands for something meanwhile.
        let regex = regex(path.field("regex"), value, true, reading);
        found.push(regex.map_or(TextMatch::Exact(String::new()), TextMatch::Regex));
    }
    found
}
