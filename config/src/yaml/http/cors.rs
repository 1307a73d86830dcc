//! `cors` of a route's `forward`: which pages of other origins may read its answers.

use std::time::Duration;

use http::HeaderValue;
use http::header::HeaderName;
use serde::Deserialize;

use super::super::reading::{Path, Reading, YES_OR_NO};
use super::super::scalar::{Scalar, ScalarOr};
use super::matches::{Conditions, condition};
use crate::http::{Cors, CorsList, CorsOrigins, TextMatch};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CorsShape<'a> {
    #[serde(borrow)]
    allow_origins: Vec<ScalarOr<'a, OriginShape<'a>>>,
    #[serde(default)]
    allow_methods: Vec<Scalar<'a>>,
    #[serde(default)]
    allow_headers: Vec<Scalar<'a>>,
    #[serde(default)]
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
    pub(super) fn compile(&self, path: Path<'_>, reading: &mut Reading) -> Cors {
        let mut flag = |name, value: &Option<Scalar<'_>>, default| {
            let word = reading.choice(path.field(name), value.as_ref(), &YES_OR_NO);
            word.unwrap_or(default)
        };
        let credentials = flag("allow_credentials", &self.allow_credentials, false);
        let forward = "forward_not_matching_preflights";
        let forward_unmatched = flag(forward, &self.forward_not_matching_preflights, true);
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
        if self.allow_origins.is_empty() {
            let remedy = "add one, for example https://shop.example.com, or `\"*\"` for all";
            reading.report(path, "", "allows no origin", remedy);
        }
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
