//! `JwtAuthentication`: whose tokens requests may come with.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use http::header::{COOKIE, HeaderName};
use http::uri::{Authority, PathAndQuery};
use underpass_config::http::{
    Audiences, ClaimToHeader, HeaderLocation, Jwks, JwksSource, Jwt, JwtProvider, JwtRule, Locations, PathMatch,
    RemoteJwks, Requirement, is_editable,
};

use super::super::http::route_match;
use super::super::refusal::{At, Refused, each, only_if};
use super::super::values::{field_name, said};
use super::rbac::PAYLOAD;
use crate::proto::envoy::config::core::v3 as base;
use crate::proto::envoy::extensions::filters::http::jwt_authn::v3 as wire;
use wire::jwt_provider::JwksSourceSpecifier;
use wire::jwt_requirement::RequiresType;
use wire::requirement_rule::RequirementType;

/// Providers of one filter: a request may be tried by each.
const MOST: usize = 64;
/// Levels of a requirement; istiod's have four.
const DEEPEST: usize = 16;

/// Providers by name, at their places.
type Places<'w> = BTreeMap<&'w str, usize>;

pub(super) fn translate(wire: &wire::JwtAuthentication) -> Result<Jwt, Refused> {
    let wire::JwtAuthentication {
        providers,
        rules,
        bypass_cors_preflight,
    } = wire;
    only_if(providers.len() <= MOST, "providers", "are more than 64")?;
    let places: Places<'_> = providers
        .keys()
        .enumerate()
        .map(|(place, name)| (name.as_str(), place))
        .collect();
    let mut translated = Vec::with_capacity(providers.len());
    for (name, wire) in providers {
        translated.push(Arc::new(provider(name, wire).at(&format!("providers[{name}]"))?));
    }
    let rules = each("rules", rules, |wire| rule(wire, &places))?;
    Ok(Jwt::new(translated, rules, *bypass_cors_preflight))
}

fn provider(name: &str, wire: &wire::JwtProvider) -> Result<JwtProvider, Refused> {
    let wire::JwtProvider {
        issuer,
        audiences,
        jwks_source_specifier,
        forward,
        from_headers,
        from_params,
        forward_payload_header,
        payload_in_metadata,
        clock_skew_seconds,
        pad_forward_payload_header,
        from_cookies,
        claim_to_headers,
        clear_route_cache,
        normalize_payload_in_metadata,
    } = wire;
    let shows = match payload_in_metadata.as_str() {
        "" => false,
        PAYLOAD => true,
        other => return Err(Refused::unsupported("payload_in_metadata", format!("`{other}`"))),
    };
    let issuer = issuer.as_str().into();
    let headers = each("from_headers", from_headers, |wire: &wire::JwtHeader| {
        let wire::JwtHeader { name, value_prefix } = wire;
        Ok(HeaderLocation {
            name: field_name(name).at("name")?,
            prefix: value_prefix.as_str().into(),
        })
    })?;
    let texts = |list: &[String]| list.iter().map(|text| text.as_str().into()).collect();
    let claims = each("claim_to_headers", claim_to_headers, |wire: &wire::JwtClaimToHeader| {
        let wire::JwtClaimToHeader {
            header_name,
            claim_name,
        } = wire;
        Ok(ClaimToHeader {
            header: written(header_name).at("header_name")?,
            claim: claim_name.as_str().into(),
        })
    })?;
    let lists = normalize_payload_in_metadata.as_ref();
    Ok(JwtProvider {
        name: name.into(),
        audiences: Audiences::new(audiences.iter().map(String::as_str)),
        keys: keys(jwks_source_specifier.as_ref())?,
        locations: Locations::new(&issuer, headers, texts(from_params), texts(from_cookies)),
        issuer,
        forward: *forward,
        forward_payload_header: match forward_payload_header.as_str() {
            "" => None,
            name => Some(written(name).at("forward_payload_header")?),
        },
        pads_payload: *pad_forward_payload_header,
        claim_to_headers: claims,
        shows_claims: shows,
        space_delimited_claims: lists.map_or_else(Vec::new, |lists| texts(&lists.space_delimited_claims)),
        clear_route_cache: *clear_route_cache,
        clock_skew_seconds: match clock_skew_seconds {
            0 => JwtProvider::CLOCK_SKEW_SECONDS,
            seconds => u64::from(*seconds),
        },
    })
}

/// A field that an endpoint is told of tokens by.
fn written(name: &str) -> Result<HeaderName, Refused> {
    let name = field_name(name)?;
    let has_no_meaning = is_editable(&name) && name != COOKIE;
    only_if(has_no_meaning, "", &format!("is `{name}`, which has another meaning"))?;
    Ok(name)
}

fn keys(specified: Option<&JwksSourceSpecifier>) -> Result<JwksSource, Refused> {
    match specified {
        Some(JwksSourceSpecifier::LocalJwks(source)) => {
            let text = match &source.specifier {
                Some(base::data_source::Specifier::InlineString(text)) => text.as_bytes(),
                Some(base::data_source::Specifier::InlineBytes(bytes)) => bytes,
                _ => return Err(Refused::unsupported("local_jwks", "not in the configuration")),
            };
            let keys = Jwks::parse(text).map_err(|why| Refused::new("local_jwks", why.to_string()))?;
            Ok(JwksSource::Inline(Arc::new(keys)))
        }
        Some(JwksSourceSpecifier::RemoteJwks(wire)) => remote(wire).map(JwksSource::Remote).at("remote_jwks"),
        None => Err(Refused::missing("local_jwks")),
    }
}

fn remote(wire: &wire::RemoteJwks) -> Result<RemoteJwks, Refused> {
    let wire::RemoteJwks {
        http_uri,
        cache_duration,
        async_fetch,
    } = wire;
    let asked = http_uri.as_ref().ok_or_else(|| Refused::missing("http_uri"))?;
    let base::HttpUri {
        uri,
        http_upstream_type,
        timeout,
    } = asked;
    let Some(base::http_uri::HttpUpstreamType::Cluster(cluster)) = http_upstream_type else {
        return Err(Refused::missing("http_uri.cluster"));
    };
    let parts =
        parts(uri).ok_or_else(|| Refused::new("http_uri.uri", format!("is `{uri}`, which is no URI of HTTP")))?;
    let (authority, path) = parts;
    let mut failed = None;
    if let Some(wire::JwksAsyncFetch {
        // Ours asks before anybody needs them, and nobody waits for that.
        fast_listener: _,
        failed_refetch_duration,
    }) = async_fetch
    {
        failed = said("async_fetch.failed_refetch_duration", failed_refetch_duration.as_ref())?;
    }
    let or = |time: Option<Duration>, default: Duration| time.filter(|time| !time.is_zero()).unwrap_or(default);
    Ok(RemoteJwks {
        cluster: cluster.as_str().into(),
        authority,
        path,
        timeout: or(said("http_uri.timeout", timeout.as_ref())?, RemoteJwks::TIMEOUT),
        cache_duration: or(
            said("cache_duration", cache_duration.as_ref())?,
            RemoteJwks::CACHE_DURATION,
        ),
        failed_refetch: or(failed, RemoteJwks::FAILED_REFETCH),
    })
}

/// Host and path of a URI of HTTP.
pub(super) fn parts(uri: &str) -> Option<(Authority, PathAndQuery)> {
    let uri: Uri = uri.parse().ok()?;
    let is_http = matches!(uri.scheme_str(), Some("http" | "https"));
    let authority = uri
        .authority()
        .filter(|authority| is_http && !authority.as_str().contains('@'))?;
    let path = uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
    Some((authority.clone(), path))
}

fn rule(wire: &wire::RequirementRule, places: &Places<'_>) -> Result<JwtRule, Refused> {
    let wire::RequirementRule {
        r#match: matched,
        requirement_type,
    } = wire;
    let matched = matched.as_ref().ok_or_else(|| Refused::missing("match"))?;
    let matched = route_match(matched).at("match")?;
    let is_plain = matched.headers.is_empty() && matched.query.is_empty() && matched.fraction.is_none();
    only_if(
        is_plain && matched.case_sensitive,
        "match",
        "is more than a prefix, which is not supported",
    )?;
    let PathMatch::Prefix(prefix) = matched.path else {
        return Err(Refused::unsupported("match", "not a prefix"));
    };
    Ok(JwtRule {
        prefix,
        requires: match requirement_type {
            None => Requirement::Nothing,
            Some(RequirementType::Requires(wire)) => requirement(wire, places, 0).at("requires")?,
        },
    })
}

fn requirement(wire: &wire::JwtRequirement, places: &Places<'_>, depth: usize) -> Result<Requirement, Refused> {
    only_if(depth < DEEPEST, "", "has too many levels")?;
    let place = |name: &str| {
        let place = places.get(name).copied();
        place.ok_or_else(|| Refused::new("provider_name", format!("is `{name}`, and there is none of that name")))
    };
    let all = |list: &[wire::JwtRequirement]| each("requirements", list, |wire| requirement(wire, places, depth + 1));
    match &wire.requires_type {
        None => Ok(Requirement::Nothing),
        Some(RequiresType::ProviderName(name)) => place(name).map(Requirement::Provider),
        Some(RequiresType::ProviderAndAudiences(wire)) => {
            let wire::ProviderWithAudiences {
                provider_name,
                audiences,
            } = wire;
            let audiences = Audiences::new(audiences.iter().map(String::as_str));
            Ok(Requirement::ProviderAndAudiences(place(provider_name)?, audiences))
        }
        Some(RequiresType::RequiresAny(list)) => all(&list.requirements).map(Requirement::Any).at("requires_any"),
        Some(RequiresType::RequiresAll(list)) => all(&list.requirements).map(Requirement::All).at("requires_all"),
        Some(RequiresType::AllowMissing(())) => Ok(Requirement::AllowMissing),
        Some(RequiresType::AllowMissingOrFailed(())) => Ok(Requirement::AllowMissingOrFailed),
    }
}
