//! Asking by HTTP: a copy of the request, without its body or with the beginning of it. 200 lets it pass, a status of 5xx says nothing, and any other is what
//! the client gets.

use std::collections::HashSet;

use ::http::header::{AUTHORIZATION, CONTENT_LENGTH, HOST, HeaderName, HeaderValue, LOCATION, WWW_AUTHENTICATE};
use ::http::{HeaderMap, StatusCode};
use bytes::Bytes;
use serde_json::Map;
use underpass_config::http::{AuthzProvider, HttpAuthz, TextMatch};

use super::changes::{Changes, Mutation, Way};
use super::{Denial, PARTIAL_BODY, Passing, Unasked, Verdict, told_body, told_headers};
use crate::http::facts::Known;
use crate::http::hygiene;
use crate::http::inquiry::Told;
use crate::http::intake::Intake;
use crate::http::switch::Switch;

/// By this field a server says which of the request's are to go.
const REMOVE: &str = "x-envoy-auth-headers-to-remove";

/// The request that asks.
pub(super) fn question(
    provider: &AuthzProvider,
    service: &HttpAuthz,
    passing: &mut Passing<'_>,
    beginning: Option<&Bytes>,
) -> Result<(Intake, Bytes), Unasked> {
    let intake = &*passing.intake;
    if intake.switch == Some(Switch::Connect) {
        // It has no path that could be asked for.
        return Err(Unasked::Unaskable);
    }
    let allowed = provider.allowed_headers.as_deref().unwrap_or_default();
    let may_be_told = |name: &str| name == AUTHORIZATION.as_str() || is_one_of(allowed, name);
    let mut headers = HeaderMap::new();
    for (name, value) in told_headers(&intake.headers, may_be_told) {
        let name = HeaderName::try_from(name).map_err(|_| Unasked::Unaskable)?;
        let value = HeaderValue::try_from(value).map_err(|_| Unasked::Unaskable)?;
        headers.insert(name, value);
    }
    hygiene::strip_hop_by_hop(&mut headers);
    let mut body = Bytes::new();
    if let Some(beginning) = beginning {
        let (told, is_cut) = told_body(provider, beginning);
        headers.insert(PARTIAL_BODY, HeaderValue::from_static(is_cut));
        body = told;
    }
    headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    if let Some(patience) = provider.forward.timeout {
        let millis = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
        headers.insert("x-envoy-expected-rq-timeout-ms", HeaderValue::from(millis));
    }
    let target = format!("{}{}", service.path_prefix, intake.target);
    let method = intake.method.clone();
    let mut question = Intake::of_the_proxy(method, target, intake.authority.clone(), headers, intake.version);
    let (headers, known) = Known::for_request(&mut question, passing.record);
    service.headers_to_add.apply(headers, &known);
    Ok((question, body))
}

fn is_one_of(matches: &[TextMatch], name: &str) -> bool {
    matches.iter().any(|one| one.matches(name))
}

/// What an answer says.
pub(super) fn verdict(service: &HttpAuthz, told: Told) -> Verdict {
    let (status, mut headers) = (told.head.status, told.head.headers);
    if status.is_server_error() {
        return Verdict::Failed(None);
    }
    let removed: Vec<HeaderValue> = headers.get_all(REMOVE).iter().cloned().collect();
    headers.remove(REMOVE);
    hygiene::strip_hop_by_hop(&mut headers);
    if status != StatusCode::OK {
        let is_for_client = |name: &HeaderName| match &service.allowed_client_headers[..] {
            [] => *name != HOST,
            allowed => [WWW_AUTHENTICATE, LOCATION].contains(name) || is_one_of(allowed, name.as_str()),
        };
        return Verdict::Denied(Denial {
            status: Some(status),
            headers: replacing(&headers, is_for_client),
            body: told.body,
            metadata: Map::new(),
        });
    }
    let chosen = |allowed: &[TextMatch], way| {
        let fields = headers.iter().filter(|(name, _)| is_one_of(allowed, name.as_str()));
        fields.map(move |(name, value)| mutation(name, value, way)).collect()
    };
    let names = removed
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    let names = names.filter_map(|name| std::str::from_utf8(name).ok()).map(str::trim);
    Verdict::Allowed(Changes {
        request: chosen(&service.allowed_upstream_headers, Way::Set),
        response: chosen(&service.allowed_client_headers_on_success, Way::Add),
        remove: names.map(str::to_owned).collect(),
        ..Changes::default()
    })
}

fn mutation(name: &HeaderName, value: &HeaderValue, way: Way) -> Mutation {
    Mutation {
        name: name.to_string(),
        value: Bytes::copy_from_slice(value.as_bytes()),
        way,
    }
}

/// The fields that are `wanted`, with all their values in place of what is there.
fn replacing(headers: &HeaderMap, wanted: impl Fn(&HeaderName) -> bool) -> Vec<Mutation> {
    let mut seen = HashSet::new();
    let fields = headers.iter().filter(|(name, _)| wanted(name));
    let mutations = fields.map(|(name, value)| {
        let way = if seen.insert(name) { Way::Set } else { Way::Add };
        mutation(name, value, way)
    });
    mutations.collect()
}
