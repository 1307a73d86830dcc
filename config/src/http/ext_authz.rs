//! Who is asked whether a request may pass (`extensions.filters.http.ext_authz.v3.ExtAuthz`; Istio's CUSTOM action).

use std::sync::Arc;

use http::{HeaderValue, StatusCode};

use super::{Forward, HeaderEdits, TextMatch};
use crate::Text;

/// One filter: an authorization server, and which requests it is asked about.
#[derive(Clone, Debug)]
pub struct ExtAuthz {
    /// Who is asked, and how.
    pub provider: Arc<AuthzProvider>,
    /// Only requests for which shadow rules have told this (`filter_enabled_metadata`); none: all.
    pub enabled_by: Option<ShadowMatch>,
}

/// What shadow rules have to have told of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShadowMatch {
    /// The name under which it is told, prefix and all.
    pub key: Text,
    /// How the name of the policy that matched begins.
    pub prefix: Text,
}

impl ShadowMatch {
    /// Whether `shadow`, by name and in the order in which it was told, says so. What was told last under a name is what counts.
    pub fn holds(&self, shadow: &[(Text, Text)]) -> bool {
        let told = shadow.iter().rev().find(|(key, _)| *key == self.key);
        told.is_some_and(|(_, policy)| policy.starts_with(&*self.prefix))
    }
}

/// An authorization server (Istio's `extensionProviders`).
#[derive(Debug)]
pub struct AuthzProvider {
    /// Its name, which metrics tell.
    pub name: Text,
    /// How it is reached: one cluster, and how long an answer may take.
    pub forward: Forward,
    /// What it speaks.
    pub service: AuthzService,
    /// What it is told of the client's header fields, by their names; none: all, but by HTTP only `authorization` (`allowed_headers`).
    pub allowed_headers: Option<Vec<TextMatch>>,
    /// What it is told of the body; none: nothing.
    pub request_body: Option<AuthzBody>,
    /// Whether requests pass that it could not be asked about, or has not answered for (`failure_mode_allow`). Default no.
    pub failure_mode_allow: bool,
    /// What else such requests are answered with. Default 403.
    pub status_on_error: StatusCode,
    /// Whether a request that it has changed is routed anew. Default no.
    pub clear_route_cache: bool,
}

impl AuthzProvider {
    /// Default of [`AuthzProvider::status_on_error`].
    pub const DEFAULT_STATUS_ON_ERROR: StatusCode = StatusCode::FORBIDDEN;
}

/// What an authorization server speaks.
#[derive(Clone, Debug)]
pub enum AuthzService {
    /// `envoy.service.auth.v3.Authorization`, asked for by this authority.
    Grpc(HeaderValue),
    /// HTTP: it is sent a copy of the request, and lets it pass by 200.
    Http(HttpAuthz),
}

/// How an authorization server is asked by HTTP, and what becomes of its answer.
#[derive(Clone, Debug, Default)]
pub struct HttpAuthz {
    /// Before the request's path.
    pub path_prefix: String,
    /// What it is told beside what the client says.
    pub headers_to_add: HeaderEdits,
    /// Fields of an answer that lets a request pass which replace the request's (`allowed_upstream_headers`).
    pub allowed_upstream_headers: Vec<TextMatch>,
    /// Fields of an answer that refuses it which the client gets; empty: all (`allowed_client_headers`).
    pub allowed_client_headers: Vec<TextMatch>,
    /// Fields of an answer that lets it pass which the client gets beside the response's own.
    pub allowed_client_headers_on_success: Vec<TextMatch>,
}

/// What an authorization server is told of a body (`BufferSettings`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuthzBody {
    /// At most so much of it, in bytes.
    pub max_request_bytes: usize,
    /// Whether the beginning of a longer one will do. If not, a longer one is answered 413.
    pub allow_partial_message: bool,
    /// Whether it is told as bytes, to a server of gRPC: text has to be UTF-8.
    pub pack_as_bytes: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_told_last_decides_who_is_asked() {
        let asks = ShadowMatch {
            key: "istio_ext_authz_shadow_effective_policy_id".into(),
            prefix: "istio-ext-authz-a-ns[".into(),
        };
        let told = |policy: &str| (asks.key.clone(), Text::from(policy));
        let mine = told("istio-ext-authz-a-ns[x]-policy[y]-rule[0]");
        let others = told("istio-ext-authz-ab-ns[x]-policy[y]-rule[0]");
        let elsewhere = ("istio_dry_run_deny_shadow_effective_policy_id".into(), mine.1.clone());
        assert!(asks.holds(std::slice::from_ref(&mine)));
        assert!(asks.holds(&[others.clone(), mine.clone()]));
        assert!(!asks.holds(&[mine, others]));
        assert!(!asks.holds(&[elsewhere]));
        assert!(!asks.holds(&[]));
    }
}
