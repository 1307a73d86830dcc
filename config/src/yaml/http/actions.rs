//! What a route does by itself: `redirect`, `direct`; and the values that these share with `forward`.

use std::ops::RangeInclusive;

use http::{HeaderValue, StatusCode};
use serde::Deserialize;

use super::super::reading::{Path, Reading};
use super::super::scalar::Scalar;
use super::headers::header_value;
use crate::http::{DirectResponse, Redirect};

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RedirectShape<'a> {
    #[serde(borrow)]
    status: Option<Scalar<'a>>,
    scheme: Option<Scalar<'a>>,
    host: Option<Scalar<'a>>,
    port: Option<Scalar<'a>>,
    path: Option<Scalar<'a>>,
    prefix: Option<Scalar<'a>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DirectShape<'a> {
    #[serde(borrow)]
    status: Scalar<'a>,
    body: Option<Scalar<'a>>,
}

/// What may be asked to be answered by the proxy itself (`DirectResponseAction.status`).
const STATUSES: RangeInclusive<u32> = 200..=599;

/// A path to send on: visible ASCII from `/` on.
pub(super) fn path_value(path: Path<'_>, value: &Scalar<'_>, reading: &mut Reading) -> String {
    let is_path = value.starts_with('/') && value.bytes().all(|b| b.is_ascii_graphic() && b != b'#' && b != b'?');
    if !is_path {
        let remedy = "write visible ASCII characters from `/` on, without a query";
        reading.report(path, value, "is not a path", remedy);
    }
    value.to_string()
}

pub(super) fn host_value(path: Path<'_>, value: &Scalar<'_>, reading: &mut Reading) -> Option<HeaderValue> {
    let is_authority =
        !value.is_empty() && value.parse::<http::uri::Authority>().is_ok() && !value.contains(['@', '%']);
    if !is_authority {
        let remedy = "write a host, perhaps with a port: web.example.com:8080";
        reading.report(path, value, "is not a host", remedy);
        return None;
    }
    header_value(path, value, reading)
}

pub(super) fn status(path: Path<'_>, value: &Scalar<'_>, reading: &mut Reading) -> Option<StatusCode> {
    let code = reading.count(path, value, STATUSES)?;
    u16::try_from(code)
        .ok()
        .and_then(|code| StatusCode::from_u16(code).ok())
}

impl RedirectShape<'_> {
    pub(super) fn compile(&self, path: Path<'_>, reading: &mut Reading) -> Redirect {
        const REDIRECTS: [(&str, StatusCode); 5] = [
            ("301", StatusCode::MOVED_PERMANENTLY),
            ("302", StatusCode::FOUND),
            ("303", StatusCode::SEE_OTHER),
            ("307", StatusCode::TEMPORARY_REDIRECT),
            ("308", StatusCode::PERMANENT_REDIRECT),
        ];
        const SCHEMES: [(&str, &str); 2] = [("http", "http"), ("https", "https")];
        if self.path.is_some()
            && let Some(prefix) = &self.prefix
        {
            reading.report(path.field("prefix"), prefix, "`path` is given too", "remove one");
        }
        let status = reading.choice(path.field("status"), self.status.as_ref(), &REDIRECTS);
        let scheme = reading.choice(path.field("scheme"), self.scheme.as_ref(), &SCHEMES);
        let host = self.host.as_ref();
        let port = self.port.as_ref();
        Redirect {
            status: status.unwrap_or(StatusCode::MOVED_PERMANENTLY),
            scheme: scheme.map(str::to_owned),
            host: host
                .filter(|host| host_value(path.field("host"), host, reading).is_some())
                .map(|host| host.to_string()),
            port: port.and_then(|port| reading.port(path.field("port"), port)),
            path: (self.path.as_ref()).map(|value| location_path(path.field("path"), value, reading)),
            prefix: (self.prefix.as_ref()).map(|value| path_value(path.field("prefix"), value, reading)),
        }
    }
}

/// As [`path_value`], perhaps with a query.
fn location_path(path: Path<'_>, value: &Scalar<'_>, reading: &mut Reading) -> String {
    if !value.starts_with('/') || !value.bytes().all(|b| b.is_ascii_graphic()) {
        reading.report(
            path,
            value,
            "is not a path",
            "write visible ASCII characters from `/` on",
        );
    }
    value.to_string()
}

impl DirectShape<'_> {
    pub(super) fn compile(&self, path: Path<'_>, reading: &mut Reading) -> DirectResponse {
        DirectResponse {
            status: status(path.field("status"), &self.status, reading).unwrap_or_default(),
            body: self.body.as_ref().map_or_else(String::new, |body| body.to_string()),
        }
    }
}
