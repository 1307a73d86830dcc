//! Which pages of other origins may read what a route answers (`extensions.filters.http.cors.v3.CorsPolicy`; the protocol is Fetch's,
//! <https://fetch.spec.whatwg.org/#http-cors-protocol>).

use http::HeaderValue;

use super::TextMatch;

/// A route's policy. A browser asks by it; whoever is none is not kept out.
#[derive(Clone, Debug, Default)]
pub struct Cors {
    /// Any of these.
    pub origins: CorsOrigins,
    /// What a preflight is told of methods (`Access-Control-Allow-Methods`).
    pub methods: CorsList,
    /// What a preflight is told of header fields (`Access-Control-Allow-Headers`).
    pub headers: CorsList,
    /// Fields of the answer that a page may read (`Access-Control-Expose-Headers`).
    pub exposed: Option<HeaderValue>,
    /// Seconds for which a preflight's answer may be kept (`Access-Control-Max-Age`).
    pub max_age: Option<HeaderValue>,
    /// Whether a page may send cookies along (`Access-Control-Allow-Credentials`). Default no.
    pub credentials: bool,
    /// Whether the endpoint is asked by the preflights of origins that are not allowed. If not, the proxy answers them, and allows nothing. Default yes.
    pub forward_unmatched: bool,
}

/// Origins.
#[derive(Clone, Debug, Default)]
pub struct CorsOrigins {
    any: bool,
    matches: Vec<TextMatch>,
}

impl CorsOrigins {
    /// Those that fulfil one of `matches`. One that a star fulfils stands for all, as in Envoy.
    pub fn new(matches: Vec<TextMatch>) -> Self {
        let any = matches.iter().any(|origin| origin.matches("*"));
        Self { any, matches }
    }

    /// Whether `origin` is one of them.
    pub fn has(&self, origin: &str) -> bool {
        self.any || self.matches.iter().any(|matcher| matcher.matches(origin))
    }
}

/// What a preflight is told may be asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum CorsList {
    /// Nothing is said.
    #[default]
    Nothing,
    /// Whatever it asks for (`*`).
    Asked,
    /// These.
    Only(HeaderValue),
}
