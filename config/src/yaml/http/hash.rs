//! `hash` of a route's `forward`: what of a request decides which endpoint it goes to.

use std::time::Duration;

use serde::Deserialize;

use super::super::reading::{Path, Reading, YES_OR_NO};
use super::super::scalar::Scalar;
use super::matches::field;
use crate::http::{HashCookie, HashPolicy, HashSource};

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct HashShape<'a> {
    #[serde(borrow)]
    header: Option<Scalar<'a>>,
    cookie: Option<CookieShape<'a>>,
    query: Option<Scalar<'a>>,
    source_ip: Option<Scalar<'a>>,
    terminal: Option<Scalar<'a>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CookieShape<'a> {
    #[serde(borrow)]
    name: Scalar<'a>,
    ttl: Option<Scalar<'a>>,
    path: Option<Scalar<'a>>,
}

impl HashShape<'_> {
    pub(super) fn compile(&self, path: Path<'_>, reading: &mut Reading) -> Option<HashPolicy> {
        let mut flag = |name, value: &Option<Scalar<'_>>| {
            let word = reading.choice(path.field(name), value.as_ref(), &YES_OR_NO);
            word.unwrap_or_default()
        };
        let (is_terminal, source_ip) = (flag("terminal", &self.terminal), flag("source_ip", &self.source_ip));
        let header = self.header.as_ref();
        let header = header.and_then(|name| field(path.field("header"), name, reading));
        let cookie = (self.cookie.as_ref()).map(|cookie| cookie.compile(path.field("cookie"), reading));
        let given = [self.header.is_some(), cookie.is_some(), self.query.is_some(), source_ip];
        if given.into_iter().filter(|given| *given).count() != 1 {
            let remedy = "write one of: header, cookie, query, `source_ip: true`";
            reading.report(path, "", "hashes exactly one thing", remedy);
        }
        let source = header
            .map(HashSource::Header)
            .or(cookie.map(HashSource::Cookie))
            .or(self.query.as_ref().map(|name| HashSource::Query(name.to_string())))
            .or(source_ip.then_some(HashSource::SourceIp))?;
        Some(HashPolicy { source, is_terminal })
    }
}

impl CookieShape<'_> {
    fn compile(&self, path: Path<'_>, reading: &mut Reading) -> HashCookie {
        let is_token = |text: &str| {
            !text.is_empty()
                && text
                    .bytes()
                    .all(|b| b.is_ascii_graphic() && !b"()<>@,;:\\\"/[]?={}".contains(&b))
        };
        if !is_token(&self.name) {
            let remedy = "use letters, digits, hyphens and underscores (RFC 6265, section 4.1.1)";
            reading.report(path.field("name"), &self.name, "is not the name of a cookie", remedy);
        }
        let cookie_path = self.path.as_ref().map_or("", |path| path);
        if !cookie_path
            .bytes()
            .all(|b| (b.is_ascii_graphic() || b == b' ') && b != b';')
        {
            let remedy = "write visible ASCII characters without a semicolon, for example /";
            reading.report(path.field("path"), cookie_path, "is not the path of a cookie", remedy);
        }
        let ttl = self.ttl.as_ref();
        HashCookie {
            name: self.name.to_string(),
            ttl: ttl.map(|ttl| reading.duration_or_zero(path.field("ttl"), Some(ttl), Duration::ZERO)),
            path: cookie_path.to_owned(),
        }
    }
}
