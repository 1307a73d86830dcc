//! `request_authentication:` of a route table: Istio's `RequestAuthentication`, in its own words, compiled as istiod does.
//!
//! All rules of all policies are one filter, in the order of their issuers. A request needs no token (that is for `authorization` to ask), but
//! whatever stands where tokens do has to be one. What istiod does in the rules' place is done in the document's: it asks for keys itself unless
//! it leaves that to the proxy, which `jwks_uri` and `cluster` stand for.

use std::ops::RangeInclusive;
use std::sync::Arc;

use http::uri::{Authority, PathAndQuery, Uri};
use http::{HeaderName, header};
use serde::Deserialize;

use super::super::reading::{Path, Reading, YES_OR_NO};
use super::super::scalar::Scalar;
use super::forward::check_cluster;
use crate::Text;
use crate::http::{
    Audiences, ClaimToHeader, Filter, HeaderLocation, Http, Jwks, JwksSource, Jwt, JwtProvider, JwtRule, Locations,
    RemoteJwks, Requirement, is_editable,
};

/// Istio's `RequestAuthentication`, as far as it says what to do. Its fields may be written as Istio writes them.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AuthenticationShape<'a> {
    #[serde(borrow, alias = "jwtRules")]
    jwt_rules: Vec<RuleShape<'a>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleShape<'a> {
    #[serde(borrow)]
    issuer: Scalar<'a>,
    #[serde(default)]
    audiences: Vec<Scalar<'a>>,
    jwks: Option<Scalar<'a>>,
    #[serde(alias = "jwksUri")]
    jwks_uri: Option<Scalar<'a>>,
    cluster: Option<Scalar<'a>>,
    timeout: Option<Scalar<'a>>,
    cache_duration: Option<Scalar<'a>>,
    #[serde(default, alias = "fromHeaders")]
    from_headers: Vec<HeaderShape<'a>>,
    #[serde(default, alias = "fromParams")]
    from_params: Vec<Scalar<'a>>,
    #[serde(default, alias = "fromCookies")]
    from_cookies: Vec<Scalar<'a>>,
    #[serde(alias = "forwardOriginalToken")]
    forward_original_token: Option<Scalar<'a>>,
    #[serde(alias = "outputPayloadToHeader")]
    output_payload_to_header: Option<Scalar<'a>>,
    #[serde(default, alias = "outputClaimToHeaders")]
    output_claim_to_headers: Vec<ClaimShape<'a>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct HeaderShape<'a> {
    #[serde(borrow)]
    name: Scalar<'a>,
    prefix: Option<Scalar<'a>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ClaimShape<'a> {
    #[serde(borrow)]
    header: Scalar<'a>,
    claim: Scalar<'a>,
}

/// Claims that istiod has rules see as lists: OAuth writes them as texts (RFC 6749, section 3.3).
const SPACE_DELIMITED: [&str; 2] = ["permission", "scope"];
/// Rules of one table: a request may be tried by each.
const MOST_RULES: usize = 64;

/// The filter that policies are, if they say anything.
pub(super) fn compile(
    path: Path<'_>,
    shapes: &[AuthenticationShape<'_>],
    http: &Http,
    reading: &mut Reading,
) -> Option<Filter> {
    let mut providers = Vec::new();
    for (place, shape) in shapes.iter().enumerate() {
        let policy = path.item(place);
        let rules = policy.field("jwt_rules");
        for (index, rule) in shape.jwt_rules.iter().enumerate() {
            providers.extend(rule.compile(rules.item(index), http, reading));
        }
    }
    if providers.len() > MOST_RULES {
        let problem = format!("has more than {MOST_RULES} rules");
        reading.report(path, "", problem, "have one issuer for several of them");
    }
    providers.sort_by(|one, other| one.issuer.cmp(&other.issuer));
    for (place, provider) in providers.iter_mut().enumerate() {
        provider.name = reading.text(&format!("origins-{place}"));
    }
    if providers.is_empty() {
        return None;
    }
    let rule = JwtRule {
        prefix: "/".to_owned(),
        requires: requirement(providers.len()),
    };
    let providers = providers.into_iter().map(Arc::new).collect();
    Some(Filter::Jwt(Jwt::new(providers, vec![rule], true)))
}

/// istiod's: a token of one of them, or of each one or none.
fn requirement(count: usize) -> Requirement {
    let optional = |place| Requirement::Any(vec![Requirement::Provider(place), Requirement::AllowMissing]);
    match count {
        1 => optional(0),
        count => {
            let each = (0..count).map(Requirement::Provider);
            let all = Requirement::All((0..count).map(optional).collect());
            Requirement::Any(each.chain([all]).collect())
        }
    }
}

impl RuleShape<'_> {
    /// Nothing, once a problem was reported without which it would say something else.
    fn compile(&self, path: Path<'_>, http: &Http, reading: &mut Reading) -> Option<JwtProvider> {
        let issuer = reading.text(&self.issuer);
        if issuer.is_empty() {
            let remedy = "write what its tokens have for `iss`";
            reading.report(path.field("issuer"), "", "is empty", remedy);
        }
        for (index, audience) in self.audiences.iter().enumerate() {
            if audience.is_empty() {
                let list = path.field("audiences");
                reading.report(list.item(index), "", "is empty", "write an audience, or remove it");
            }
        }
        let forward = self.forward_original_token.as_ref();
        let forward = reading.choice(path.field("forward_original_token"), forward, &YES_OR_NO);
        let payload = self.output_payload_to_header.as_ref();
        let payload = payload.and_then(|name| output(path.field("output_payload_to_header"), name, reading));
        let claims = self.claims(path, reading);
        let locations = self.locations(path, &issuer, reading);
        let keys = self.keys(path, http, reading)?;
        Some(JwtProvider {
            name: issuer.clone(),
            issuer,
            audiences: Audiences::new(self.audiences.iter().map(|one| &**one)),
            keys,
            locations,
            forward: forward.unwrap_or(false),
            forward_payload_header: payload,
            pads_payload: false,
            claim_to_headers: claims,
            shows_claims: true,
            space_delimited_claims: SPACE_DELIMITED.map(|claim| reading.text(claim)).to_vec(),
            clear_route_cache: true,
            clock_skew_seconds: JwtProvider::CLOCK_SKEW_SECONDS,
        })
    }

    fn claims(&self, path: Path<'_>, reading: &mut Reading) -> Vec<ClaimToHeader> {
        let list = path.field("output_claim_to_headers");
        let shapes = self.output_claim_to_headers.iter().enumerate();
        let claims = shapes.filter_map(|(index, shape)| {
            let path = list.item(index);
            if shape.claim.is_empty() {
                reading.report(path.field("claim"), "", "is empty", "write the name of a claim");
            }
            let header = output(path.field("header"), &shape.header, reading)?;
            let claim = reading.text(&shape.claim);
            Some(ClaimToHeader { header, claim })
        });
        claims.collect()
    }

    fn locations(&self, path: Path<'_>, issuer: &Text, reading: &mut Reading) -> Locations {
        let list = path.field("from_headers");
        let shapes = self.from_headers.iter().enumerate();
        let headers = shapes.filter_map(|(index, shape)| {
            let name = field_name(list.item(index).field("name"), &shape.name, reading)?;
            let prefix = reading.text_or_empty(shape.prefix.as_ref());
            Some(HeaderLocation { name, prefix })
        });
        let headers = headers.collect();
        let mut named = |list: &'static str, shapes: &[Scalar<'_>]| {
            let list = path.field(list);
            let names = shapes.iter().enumerate().map(|(index, name)| {
                if name.is_empty() {
                    reading.report(list.item(index), "", "is empty", "write a name, or remove it");
                }
                reading.text(name)
            });
            names.collect()
        };
        let params = named("from_params", &self.from_params);
        let cookies = named("from_cookies", &self.from_cookies);
        Locations::new(issuer, headers, params, cookies)
    }

    fn keys(&self, path: Path<'_>, http: &Http, reading: &mut Reading) -> Option<JwksSource> {
        let remote = [
            ("cluster", &self.cluster),
            ("timeout", &self.timeout),
            ("cache_duration", &self.cache_duration),
        ];
        match (&self.jwks, &self.jwks_uri) {
            (Some(jwks), None) => {
                // Istio writes a time-out beside keys that it has as well; it says nothing then.
                for (name, value) in remote.into_iter().filter(|(name, _)| *name != "timeout") {
                    if let Some(value) = value {
                        let problem = "is for keys that are asked for";
                        reading.report(path.field(name), value, problem, "remove it, or write `jwks_uri`");
                    }
                }
                match Jwks::parse(jwks.as_bytes()) {
                    Ok(keys) => Some(JwksSource::Inline(Arc::new(keys))),
                    Err(error) => {
                        let remedy = "write a set of keys as RFC 7517 says: '{\"keys\": [{\"kty\": \"RSA\", …}]}'";
                        reading.report(path.field("jwks"), jwks, error.to_string(), remedy);
                        None
                    }
                }
            }
            (None, Some(uri)) => self.remote(path, uri, http, reading).map(JwksSource::Remote),
            (Some(_), Some(uri)) => {
                reading.report(path.field("jwks_uri"), uri, "`jwks` is given too", "remove one");
                None
            }
            (None, None) => {
                let remedy = "write its keys in `jwks`, or where they are in `jwks_uri` and `cluster`";
                reading.report(path, "", "has no keys", remedy);
                None
            }
        }
    }

    fn remote(&self, path: Path<'_>, uri: &Scalar<'_>, http: &Http, reading: &mut Reading) -> Option<RemoteJwks> {
        let asked = parts(uri);
        if asked.is_none() {
            let remedy = "write for example https://issuer.test/keys";
            reading.report(path.field("jwks_uri"), uri, "is not the URI of a set of keys", remedy);
        }
        let cluster = self.cluster.as_ref();
        match cluster {
            Some(name) => check_cluster(path.field("cluster"), name, http, reading),
            None => {
                let remedy = "name the one of `http.clusters` that has them";
                reading.report(path.field("cluster"), "", "is needed beside `jwks_uri`", remedy);
            }
        }
        let times = [
            ("timeout", &self.timeout, RemoteJwks::TIMEOUT),
            ("cache_duration", &self.cache_duration, RemoteJwks::CACHE_DURATION),
        ];
        let [timeout, cache_duration] =
            times.map(|(name, value, default)| reading.duration(path.field(name), value.as_ref(), default));
        let (authority, path) = asked?;
        Some(RemoteJwks {
            cluster: reading.text(cluster?),
            authority,
            path,
            timeout,
            cache_duration,
            failed_refetch: RemoteJwks::FAILED_REFETCH,
        })
    }
}

/// Host and path of a URI of HTTP.
fn parts(uri: &str) -> Option<(Authority, PathAndQuery)> {
    let uri: Uri = uri.parse().ok()?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return None;
    }
    let authority = uri.authority().filter(|authority| !authority.as_str().contains('@'))?;
    let path = uri.path_and_query().cloned();
    Some((authority.clone(), path.unwrap_or(PathAndQuery::from_static("/"))))
}

fn field_name(path: Path<'_>, value: &Scalar<'_>, reading: &mut Reading) -> Option<HeaderName> {
    let name = HeaderName::try_from(&**value).ok();
    if name.is_none() {
        reading.report(
            path,
            value,
            "is not the name of a header field",
            "write for example x-jwt",
        );
    }
    name
}

/// A field that is written, and taken off what comes from clients.
fn output(path: Path<'_>, value: &Scalar<'_>, reading: &mut Reading) -> Option<HeaderName> {
    const LENGTHS: RangeInclusive<usize> = 1..=256;
    let name = field_name(path, value, reading)?;
    if !is_editable(&name) || name == header::COOKIE || !LENGTHS.contains(&name.as_str().len()) {
        let remedy = "write for example x-jwt-payload";
        reading.report(path, value, "is a field that has another meaning", remedy);
    }
    Some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Config;

    const SECRET: &str = r#"{"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}"#;

    fn read(policies: &str) -> Result<Jwt, String> {
        let table = format!("{{name: t, request_authentication: {policies}, virtual_hosts: []}}");
        let yaml = format!("http:\n  clusters: [{{name: issuer}}]\n  routes: [{table}]\n");
        let config = Config::from_yaml(&yaml).map_err(|error| error.to_string())?;
        match config.http.tables["t"].filters.first() {
            Some(Filter::Jwt(jwt)) => Ok(jwt.clone()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn policies_are_one_filter_as_istiod_makes_it() {
        let rule = |issuer: &str| format!("{{issuer: {issuer}, jwks: '{SECRET}', timeout: 5s}}");
        let two = read(&format!(
            "[{{jwtRules: [{}]}}, {{jwt_rules: [{}]}}]",
            rule("b"),
            rule("a")
        ))
        .unwrap();
        let issuers: Vec<(&str, &str)> = two.providers().iter().map(|one| (&*one.name, &*one.issuer)).collect();
        assert_eq!(issuers, [("origins-0", "a"), ("origins-1", "b")]);
        let optional = |place| Requirement::Any(vec![Requirement::Provider(place), Requirement::AllowMissing]);
        let expected = Requirement::Any(vec![
            Requirement::Provider(0),
            Requirement::Provider(1),
            Requirement::All(vec![optional(0), optional(1)]),
        ]);
        assert_eq!(two.required("/x"), &expected);
        let one = read(&format!("[{{jwt_rules: [{}]}}]", rule("a"))).unwrap();
        assert_eq!(one.required("/"), &optional(0));
        assert!(one.bypass_cors_preflight);
    }

    #[test]
    fn keys_may_be_asked_for() {
        let jwt = read("[{jwt_rules: [{issuer: a, jwksUri: 'https://issuer.test:8443/keys?x=1', cluster: issuer}]}]")
            .unwrap();
        let JwksSource::Remote(remote) = &jwt.providers()[0].keys else {
            panic!("{jwt:?}");
        };
        assert_eq!(
            (remote.authority.as_str(), remote.path.as_str()),
            ("issuer.test:8443", "/keys?x=1")
        );
        assert_eq!(remote.timeout, RemoteJwks::TIMEOUT);
    }

    #[test]
    fn what_says_nothing_useful_is_refused_with_a_remedy() {
        for (rule, problem) in [
            ("{issuer: a}", "has no keys"),
            ("{issuer: '', jwks: KEYS}", "issuer: is empty"),
            ("{issuer: a, jwks: '{}'}", "has no list `keys`"),
            ("{issuer: a, jwks: KEYS, jwks_uri: 'http://a/'}", "`jwks` is given too"),
            (
                "{issuer: a, jwks: KEYS, cluster: issuer}",
                "is for keys that are asked for",
            ),
            ("{issuer: a, jwks_uri: 'http://a/'}", "is needed beside `jwks_uri`"),
            (
                "{issuer: a, jwks_uri: 'http://a/', cluster: none}",
                "is not one of `http.clusters`",
            ),
            (
                "{issuer: a, jwks_uri: 'ftp://a/', cluster: issuer}",
                "is not the URI of a set of keys",
            ),
            (
                "{issuer: a, jwks_uri: 'http://user@a/', cluster: issuer}",
                "is not the URI of a set of keys",
            ),
            (
                "{issuer: a, jwks: KEYS, from_headers: [{name: 'a b'}]}",
                "is not the name of a header field",
            ),
            (
                "{issuer: a, jwks: KEYS, output_payload_to_header: content-length}",
                "has another meaning",
            ),
            (
                "{issuer: a, jwks: KEYS, output_claim_to_headers: [{header: host, claim: sub}]}",
                "has another meaning",
            ),
            ("{issuer: a, jwks: KEYS, from_params: ['']}", "from_params[0]: is empty"),
            (
                "{issuer: a, jwks: KEYS, forward_original_token: maybe}",
                "is not a known value",
            ),
        ] {
            let rule = rule.replace("KEYS", &format!("'{SECRET}'"));
            let error = read(&format!("[{{jwt_rules: [{rule}]}}]")).unwrap_err();
            assert!(error.contains(problem), "{rule}: {error}");
        }
    }
}
