//! Whose tokens requests may come with, and what becomes of what they claim (`extensions.filters.http.jwt_authn.v3.JwtAuthentication`; tokens
//! are JWTs of RFC 7519, signed as RFC 7515 says, their keys are sets of RFC 7517).
//!
//! **One idea.** A provider says which tokens are its own: who issues them, where they stand in a request, by which keys they are signed. A
//! requirement is a tree of providers; a rule asks the paths under a prefix for it.

mod audiences;
mod certificates;
mod json;
mod keys;
mod locations;

use std::time::Duration;

pub use audiences::Audiences;
use http::HeaderName;
use http::uri::{Authority, PathAndQuery};
pub use json::{claim_at, json_object};
pub use keys::{BadKeys, Curve, Jwk, JwkMaterial, Jwks};
pub use locations::{HeaderLocation, Issuers, Located, Locations};

use std::sync::Arc;

use crate::Text;

/// One filter of tokens.
#[derive(Clone, Debug)]
pub struct Jwt {
    providers: Vec<Arc<JwtProvider>>,
    /// The first that a request's path is under says what is asked of it; of one that is under none, nothing is.
    pub rules: Vec<JwtRule>,
    /// Whether what a browser asks before it asks (a preflight of Fetch's CORS), which never has a token, passes without.
    pub bypass_cors_preflight: bool,
    /// Where tokens stand that any of the providers takes.
    pub everywhere: Locations,
    written: Vec<HeaderName>,
}

/// What is asked of the paths under a prefix.
#[derive(Clone, Debug)]
pub struct JwtRule {
    /// The prefix.
    pub prefix: String,
    /// What is asked.
    pub requires: Requirement,
}

/// What is asked of a request's tokens. Providers are told by their place in their filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Requirement {
    /// Nothing.
    Nothing,
    /// All that stand where this provider's do are its own, and valid, and there is one.
    Provider(usize),
    /// The same, and they are for these audiences instead of the provider's.
    ProviderAndAudiences(usize, Audiences),
    /// One of these holds, the first that does.
    Any(Vec<Requirement>),
    /// All of these hold.
    All(Vec<Requirement>),
    /// All that stand where any provider's do are valid; there may be none. In [`Requirement::Any`]: whoever else is asked for found none.
    AllowMissing,
    /// Whatever stands there. What is valid is used.
    AllowMissingOrFailed,
}

/// Whose tokens, and what becomes of them (`JwtProvider`). Equal ones are one: they share keys, and what was verified by them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct JwtProvider {
    /// By which metrics tell it.
    pub name: Text,
    /// Who has to have issued them (`iss`); empty: anybody.
    pub issuer: Text,
    /// For whom one of them has to be (`aud`).
    pub audiences: Audiences,
    /// The keys that sign them.
    pub keys: JwksSource,
    /// Where they stand.
    pub locations: Locations,
    /// Whether a valid one goes on to the endpoint. If not, its field or parameter is taken off (a cookie stays, as with Envoy).
    pub forward: bool,
    /// The field that tells an endpoint the payload, as it was encoded.
    pub forward_payload_header: Option<HeaderName>,
    /// Whether that is padded with `=`.
    pub pads_payload: bool,
    /// Fields that tell it single claims.
    pub claim_to_headers: Vec<ClaimToHeader>,
    /// Whether rules see what a token claims (`payload_in_metadata`).
    pub shows_claims: bool,
    /// Claims that rules see as lists, where they are texts: of what blanks part.
    pub space_delimited_claims: Vec<Text>,
    /// Whether a request that got a field of `claim_to_headers` is routed anew.
    pub clear_route_cache: bool,
    /// How far the issuer's clock may be from ours, in seconds.
    pub clock_skew_seconds: u64,
}

/// A field that tells an endpoint a claim.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ClaimToHeader {
    /// The field.
    pub header: HeaderName,
    /// The claim; what is within another behind a dot: `realm.role`.
    pub claim: Text,
}

/// Where a provider's keys come from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum JwksSource {
    /// The configuration.
    Inline(Arc<Jwks>),
    /// A server.
    Remote(RemoteJwks),
}

/// Keys that are asked for (`RemoteJwks`), by the proxy itself and before anybody needs them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RemoteJwks {
    /// The cluster whose endpoints have them. Whether they are asked by TLS is what it says, whatever the URI's scheme is, as with Envoy.
    pub cluster: Text,
    /// The host that they are asked as.
    pub authority: Authority,
    /// What they are asked for.
    pub path: PathAndQuery,
    /// How long an answer may take, and how long a request waits for the first keys.
    pub timeout: Duration,
    /// For how long an answer holds, before the next is asked for. Until that has come, and be it never, it still holds.
    pub cache_duration: Duration,
    /// After an answer that brought no keys, the next is asked for so much later, give or take a half.
    pub failed_refetch: Duration,
}

impl RemoteJwks {
    /// Envoy's `cache_duration` (`DefaultCacheExpirationSec` of its `jwks_async_fetcher.cc`).
    pub const CACHE_DURATION: Duration = Duration::from_secs(600);
    /// Envoy's `failed_refetch_duration`.
    pub const FAILED_REFETCH: Duration = Duration::from_secs(1);
    /// What istiod says where nobody does.
    pub const TIMEOUT: Duration = Duration::from_secs(5);
}

impl JwtProvider {
    /// Envoy's `clock_skew_seconds`.
    pub const CLOCK_SKEW_SECONDS: u64 = 60;

    /// The fields by which an endpoint is told of its tokens.
    pub fn written(&self) -> impl Iterator<Item = &HeaderName> {
        let claims = self.claim_to_headers.iter().map(|one| &one.header);
        self.forward_payload_header.iter().chain(claims)
    }
}

impl Jwt {
    /// A filter of these providers. A requirement that names another is one that nobody fulfils.
    pub fn new(providers: Vec<Arc<JwtProvider>>, rules: Vec<JwtRule>, bypass_cors_preflight: bool) -> Self {
        let mut everywhere = Locations::default();
        let mut written: Vec<HeaderName> = Vec::new();
        for provider in &providers {
            everywhere.extend(&provider.locations);
            written.extend(provider.written().cloned());
        }
        written.sort_unstable_by(|one, other| one.as_str().cmp(other.as_str()));
        written.dedup();
        Self {
            providers,
            rules,
            bypass_cors_preflight,
            everywhere,
            written,
        }
    }

    /// The providers, in their order.
    pub fn providers(&self) -> &[Arc<JwtProvider>] {
        &self.providers
    }

    /// The place of the one whose tokens `issuer` issues: the first that names it, or else the first that names none.
    pub fn issued_by(&self, issuer: &str) -> Option<usize> {
        let place = |issuer: &str| self.providers.iter().position(|one| &*one.issuer == issuer);
        place(issuer).or_else(|| place(""))
    }

    /// The fields by which endpoints are told of tokens: from a client they are claims of its own.
    pub fn written(&self) -> &[HeaderName] {
        &self.written
    }

    /// What is asked of a path.
    pub fn required(&self, path: &str) -> &Requirement {
        let rule = self.rules.iter().find(|rule| path.starts_with(&rule.prefix));
        rule.map_or(&Requirement::Nothing, |rule| &rule.requires)
    }
}
