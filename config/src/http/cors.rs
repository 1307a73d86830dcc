//! Which pages of other origins may read what a route answers (`extensions.filters.http.cors.v3.CorsPolicy`; the protocol is Fetch's,
//! <https://fetch.spec.whatwg.org/#http-cors-protocol>).

use http::HeaderValue;

use super::TextMatch;

/// What a route, or its virtual host, says of that. A browser asks by it; whoever is none is not kept out.
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
    /// Whether a page may send cookies along (`Access-Control-Allow-Credentials`).
    pub credentials: Option<bool>,
    /// Whether the endpoint is asked by the preflights of origins that are not allowed.
    pub forward_unmatched: Option<bool>,
}

impl Cors {
    /// A route's, where its virtual host says `wider`: that holds for each field of which the route says nothing (as in Envoy's filter).
    #[must_use]
    pub fn within(self, wider: &Cors) -> Self {
        Self {
            origins: match self.origins.is_empty() {
                true => wider.origins.clone(),
                false => self.origins,
            },
            methods: self.methods.or(&wider.methods),
            headers: self.headers.or(&wider.headers),
            exposed: self.exposed.or_else(|| wider.exposed.clone()),
            max_age: self.max_age.or_else(|| wider.max_age.clone()),
            credentials: self.credentials.or(wider.credentials),
            forward_unmatched: self.forward_unmatched.or(wider.forward_unmatched),
        }
    }

    /// Whether a page may send cookies along. Default no.
    pub fn lets_credentials(&self) -> bool {
        self.credentials.unwrap_or(false)
    }

    /// Whether the endpoint is asked by the preflights of origins that are not allowed. If not, the proxy answers them, and allows nothing. Default yes.
    pub fn forwards_unmatched(&self) -> bool {
        self.forward_unmatched.unwrap_or(true)
    }
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

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.matches.is_empty()
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

impl CorsList {
    fn or(self, other: &Self) -> Self {
        match self {
            Self::Nothing => other.clone(),
            said => said,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::RouteAction;
    use super::*;
    use crate::Config;

    /// The policy of a route with this `forward.cors`, if any, in a virtual host with this one, if any.
    fn policy(of_host: &str, of_route: &str) -> Option<Arc<Cors>> {
        let route = format!("{{forward: {{cluster: a{of_route}}}}}");
        let host = format!("{{name: h, domains: ['*']{of_host}, routes: [{route}]}}");
        let yaml = format!("http: {{clusters: [{{name: a}}], routes: [{{name: t, virtual_hosts: [{host}]}}]}}");
        let config = Config::from_yaml(&yaml).unwrap_or_else(|error| panic!("{error}\n{yaml}"));
        let RouteAction::Forward(forward) = &config.http.tables["t"].virtual_hosts()[0].routes[0].action else {
            panic!("the route forwards");
        };
        forward.cors.clone()
    }

    #[test]
    fn a_route_says_what_its_virtual_host_does_not_or_says_otherwise() {
        let host = ", cors: {allow_origins: [a], allow_methods: [GET], max_age: 9s, allow_credentials: true}";
        let route = ", cors: {allow_origins: [b], expose_headers: [x], allow_credentials: false}";
        assert!(policy("", "").is_none());
        for (of_host, of_route, origin, methods, age, credentials, exposes) in [
            (host, "", "a", Some("GET"), Some("9"), true, false),
            ("", route, "b", None, None, false, true),
            (host, route, "b", Some("GET"), Some("9"), false, true),
            (host, ", cors: {}", "a", Some("GET"), Some("9"), true, false),
            (
                host,
                ", cors: {allow_methods: [PUT], max_age: 0s}",
                "a",
                Some("PUT"),
                Some("0"),
                true,
                false,
            ),
        ] {
            let found = policy(of_host, of_route).unwrap();
            let said = |other: &str| found.origins.has(origin) && !found.origins.has(other);
            assert!(said(if origin == "a" { "b" } else { "a" }), "{of_host} {of_route}");
            let methods = methods.map_or(CorsList::Nothing, |list| CorsList::Only(HeaderValue::from_static(list)));
            assert_eq!(found.methods, methods, "{of_host} {of_route}");
            assert_eq!(found.max_age, age.map(HeaderValue::from_static), "{of_host} {of_route}");
            assert_eq!(
                (
                    found.lets_credentials(),
                    found.exposed.is_some(),
                    found.forwards_unmatched()
                ),
                (credentials, exposes, true),
                "{of_host} {of_route}"
            );
        }
    }
}
