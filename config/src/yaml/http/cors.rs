//! `cors` of a virtual host, and of a route's `forward`: which pages of other origins may read its answers.

use std::time::Duration;

use http::HeaderValue;
use http::header::HeaderName;
use serde::Deserialize;

use super::super::reading::{Path, Reading, YES_OR_NO};
use super::super::scalar::{Scalar, ScalarOr};
use super::matches::{Conditions, condition};
use crate::http::{Cors, CorsList, CorsOrigins, TextMatch};

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct CorsShape<'a> {
    #[serde(borrow)]
    allow_origins: Vec<ScalarOr<'a, OriginShape<'a>>>,
    allow_methods: Vec<Scalar<'a>>,
    allow_headers: Vec<Scalar<'a>>,
    expose_headers: Vec<Scalar<'a>>,
    max_age: Option<Scalar<'a>>,
    allow_credentials: Option<Scalar<'a>>,
    forward_not_matching_preflights: Option<Scalar<'a>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct OriginShape<'a> {
    #[serde(borrow)]
    exact: Option<Scalar<'a>>,
    prefix: Option<Scalar<'a>>,
    suffix: Option<Scalar<'a>>,
    contains: Option<Scalar<'a>>,
    regex: Option<Scalar<'a>>,
}

impl CorsShape<'_> {
    /// `wider`: what the virtual host says, of one of whose routes this is.
    pub(super) fn compile(&self, path: Path<'_>, wider: Option<&Cors>, reading: &mut Reading) -> Cors {
        if self.allow_origins.is_empty() && wider.is_none() {
            let remedy = "add one, for example https://shop.example.com, or `\"*\"` for all";
            reading.report(path.field("allow_origins"), "", "allows no origin", remedy);
        }
        let own = self.own(path, reading);
        match wider {
            Some(wider) => own.within(wider),
            None => own,
        }
    }

    fn own(&self, path: Path<'_>, reading: &mut Reading) -> Cors {
        let mut flag = |name, value: &Option<Scalar<'_>>| reading.choice(path.field(name), value.as_ref(), &YES_OR_NO);
        let credentials = flag("allow_credentials", &self.allow_credentials);
        let forward = "forward_not_matching_preflights";
        let forward_unmatched = flag(forward, &self.forward_not_matching_preflights);
        let max_age = self.max_age.as_ref();
        let max_age = max_age.map(|age| reading.duration_or_zero(path.field("max_age"), Some(age), Duration::ZERO));
        Cors {
            origins: self.origins(path.field("allow_origins"), reading),
            methods: list(path.field("allow_methods"), &self.allow_methods, reading),
            headers: list(path.field("allow_headers"), &self.allow_headers, reading),
            exposed: joined(path.field("expose_headers"), &self.expose_headers, reading),
            max_age: max_age.map(|age| HeaderValue::from(age.as_secs())),
            credentials,
            forward_unmatched,
        }
    }

    fn origins(&self, path: Path<'_>, reading: &mut Reading) -> CorsOrigins {
        let origins = self.allow_origins.iter().enumerate();
        let origins = origins.filter_map(|(index, shape)| match shape {
            ScalarOr::Scalar(exact) => Some(TextMatch::Exact(exact.to_string())),
            ScalarOr::Mapping(shape) => shape.compile(path.item(index), reading),
        });
        CorsOrigins::new(origins.collect())
    }
}

impl OriginShape<'_> {
    fn compile(&self, path: Path<'_>, reading: &mut Reading) -> Option<TextMatch> {
        let given = Conditions {
            exact: self.exact.as_ref(),
            prefix: self.prefix.as_ref(),
            suffix: self.suffix.as_ref(),
            contains: self.contains.as_ref(),
            regex: self.regex.as_ref(),
        };
        condition(path, given, reading)
    }
}

fn list(path: Path<'_>, names: &[Scalar<'_>], reading: &mut Reading) -> CorsList {
    if names.len() == 1 && &*names[0] == "*" {
        return CorsList::Asked;
    }
    joined(path, names, reading).map_or(CorsList::Nothing, CorsList::Only)
}

/// Names of methods or header fields, which are written alike (RFC 9110, section 5.6.2), in one value; or a star among them.
fn joined(path: Path<'_>, names: &[Scalar<'_>], reading: &mut Reading) -> Option<HeaderValue> {
    for (index, name) in names.iter().enumerate() {
        if &**name != "*" && HeaderName::try_from(&**name).is_err() {
            let remedy = "use letters, digits and hyphens, one name for each item of the list";
            reading.report(path.item(index), name, "is not a name", remedy);
        }
    }
    let names: Vec<&str> = names.iter().map(|name| &**name).collect();
    let value = Some(names.join(",")).filter(|value| !value.is_empty())?;
    HeaderValue::try_from(value).ok()
}
