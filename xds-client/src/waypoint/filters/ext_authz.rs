//! `ExtAuthz`: someone else is asked (Istio's CUSTOM action).

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, StatusCode};
use underpass_config::http::{
    AppendAction, AuthzBody, AuthzProvider, AuthzService, ExtAuthz, Forward, HeaderEdit, HeaderEdits, HttpAuthz,
    Labels, Rbac, ShadowMatch, Stage, TextMatch, WeightedCluster,
};

use super::super::http::{field, header_text};
use super::super::refusal::{At, Refused, each, only_if};
use super::super::values::{field_value, said, status, text_match};
use super::jwt::parts;
use crate::proto::envoy::config::core::v3 as base;
use crate::proto::envoy::extensions::filters::http::ext_authz::v3 as wire;
use crate::proto::envoy::r#type::matcher::v3 as matcher;
use base::grpc_service::TargetSpecifier;
use matcher::metadata_matcher::path_segment::Segment;
use matcher::value_matcher::MatchPattern;
use wire::ext_authz::Services;

/// Where rules leave which policy would have matched.
const RBAC: &str = "envoy.filters.http.rbac";
/// How istiod begins the names of those policies; the provider's name follows.
const ASKED: &str = "istio-ext-authz-";
/// Envoy's (`ext_authz.cc`), where nothing is said.
const DEFAULT_TIMEOUT: Duration = Duration::from_millis(200);
/// Each request holds so much of its body at most.
const BODY: u32 = 16 << 20;

pub(super) fn translate(wire: &wire::ExtAuthz) -> Result<ExtAuthz, Refused> {
    let wire::ExtAuthz {
        services,
        failure_mode_allow,
        with_request_body,
        clear_route_cache,
        status_on_error,
        transport_api_version,
        // What Envoy's statistics call it.
        stat_prefix: _,
        filter_enabled_metadata,
        allowed_headers,
    } = wire;
    let is_v3 = *transport_api_version == base::ApiVersion::V3 as i32;
    only_if(is_v3, "transport_api_version", "is not V3")?;
    let enabled_by = filter_enabled_metadata
        .as_ref()
        .map(shadow)
        .transpose()
        .at("filter_enabled_metadata")?;
    let allowed = allowed_headers.as_ref().map(names).transpose().at("allowed_headers")?;
    let (asked, service) = match services {
        Some(Services::GrpcService(wire)) => of_grpc(wire).at("grpc_service")?,
        Some(Services::HttpService(wire)) => of_http(wire).at("http_service")?,
        None => return Err(Refused::missing("services")),
    };
    let by_http = matches!(service, AuthzService::Http(_));
    let of_error = match status_on_error {
        None => AuthzProvider::DEFAULT_STATUS_ON_ERROR,
        Some(told) => error_status(told.code)?,
    };
    let named = enabled_by
        .as_ref()
        .and_then(|enabled| enabled.prefix.strip_prefix(ASKED));
    let provider = AuthzProvider {
        name: named.map_or_else(|| asked.clusters()[0].cluster.clone(), Into::into),
        forward: asked,
        service,
        // By HTTP no more than is said, by gRPC all.
        allowed_headers: match allowed {
            None if by_http => Some(Vec::new()),
            allowed => allowed,
        },
        request_body: with_request_body
            .as_ref()
            .map(body)
            .transpose()
            .at("with_request_body")?,
        failure_mode_allow: *failure_mode_allow,
        status_on_error: of_error,
        clear_route_cache: *clear_route_cache,
    };
    Ok(ExtAuthz {
        provider: Arc::new(provider),
        enabled_by,
    })
}

fn error_status(code: i32) -> Result<StatusCode, Refused> {
    let code = u32::try_from(code).map_err(|_| Refused::unsupported("status_on_error.code", code))?;
    status(code).at("status_on_error.code")
}

fn asked(cluster: &str, timeout: Option<Duration>) -> Result<Forward, Refused> {
    let only = WeightedCluster {
        cluster: cluster.into(),
        weight: 1,
        labels: Labels::default(),
        request_headers: HeaderEdits::default(),
        response_headers: HeaderEdits::default(),
    };
    let mut forward = Forward::new(vec![only]).ok_or_else(|| Refused::missing("cluster"))?;
    forward.timeout = Some(timeout.filter(|time| !time.is_zero()).unwrap_or(DEFAULT_TIMEOUT));
    Ok(forward)
}

fn of_grpc(wire: &base::GrpcService) -> Result<(Forward, AuthzService), Refused> {
    let base::GrpcService {
        timeout,
        target_specifier,
        initial_metadata,
    } = wire;
    only_if(
        initial_metadata.is_empty(),
        "initial_metadata",
        "is there, which is not supported",
    )?;
    let Some(TargetSpecifier::EnvoyGrpc(base::grpc_service::EnvoyGrpc {
        cluster_name,
        authority,
    })) = target_specifier
    else {
        return Err(Refused::missing("envoy_grpc"));
    };
    let authority = match authority.as_str() {
        // Names of clusters that are no hosts have one nevertheless.
        "" => HeaderValue::from_static("ext-authz"),
        authority => field_value(authority).at("envoy_grpc.authority")?,
    };
    let forward = asked(cluster_name, said("timeout", timeout.as_ref())?)?;
    Ok((forward, AuthzService::Grpc(authority)))
}

fn of_http(wire: &wire::HttpService) -> Result<(Forward, AuthzService), Refused> {
    let wire::HttpService {
        server_uri,
        path_prefix,
        authorization_request,
        authorization_response,
    } = wire;
    let server = server_uri.as_ref().ok_or_else(|| Refused::missing("server_uri"))?;
    let base::HttpUri {
        uri,
        http_upstream_type,
        timeout,
    } = server;
    // Whom it is asked as is the request's host, as with Envoy; but a URI it has to be.
    only_if(parts(uri).is_some(), "server_uri.uri", "is no URI of HTTP")?;
    let Some(base::http_uri::HttpUpstreamType::Cluster(cluster)) = http_upstream_type else {
        return Err(Refused::missing("server_uri.cluster"));
    };
    let mut service = HttpAuthz {
        path_prefix: path_prefix.clone(),
        ..HttpAuthz::default()
    };
    if let Some(wire::AuthorizationRequest { headers_to_add }) = authorization_request {
        service.headers_to_add.edits = each("headers_to_add", headers_to_add, added).at("authorization_request")?;
    }
    if let Some(wire::AuthorizationResponse {
        allowed_upstream_headers,
        allowed_client_headers,
        allowed_client_headers_on_success,
    }) = authorization_response
    {
        let list = |field: &str, list: &Option<matcher::ListStringMatcher>| {
            list.as_ref()
                .map_or(Ok(Vec::new()), names)
                .at(field)
                .at("authorization_response")
        };
        service.allowed_upstream_headers = list("allowed_upstream_headers", allowed_upstream_headers)?;
        service.allowed_client_headers = list("allowed_client_headers", allowed_client_headers)?;
        service.allowed_client_headers_on_success =
            list("allowed_client_headers_on_success", allowed_client_headers_on_success)?;
    }
    let forward = asked(cluster, said("server_uri.timeout", timeout.as_ref())?)?;
    Ok((forward, AuthzService::Http(service)))
}

fn added(wire: &base::HeaderValue) -> Result<HeaderEdit, Refused> {
    let base::HeaderValue { key, value } = wire;
    Ok(HeaderEdit {
        name: field(key).at("key")?,
        value: header_text(Stage::Request, value).at("value")?,
        action: AppendAction::Set,
    })
}

fn names(wire: &matcher::ListStringMatcher) -> Result<Vec<TextMatch>, Refused> {
    let matcher::ListStringMatcher { patterns } = wire;
    each("patterns", patterns, text_match)
}

fn body(wire: &wire::BufferSettings) -> Result<AuthzBody, Refused> {
    let wire::BufferSettings {
        max_request_bytes,
        allow_partial_message,
        pack_as_bytes,
    } = wire;
    only_if(
        (1..=BODY).contains(max_request_bytes),
        "max_request_bytes",
        "is 0, or above 16 MiB",
    )?;
    Ok(AuthzBody {
        max_request_bytes: *max_request_bytes as usize,
        allow_partial_message: *allow_partial_message,
        pack_as_bytes: *pack_as_bytes,
    })
}

/// Which requests it is asked about: those for which rules have told that a policy would have matched.
fn shadow(wire: &matcher::MetadataMatcher) -> Result<ShadowMatch, Refused> {
    let matcher::MetadataMatcher { filter, path, value } = wire;
    only_if(
        filter == RBAC,
        "filter",
        &format!("is `{filter}`, which leaves nothing here"),
    )?;
    let key = match &path[..] {
        [
            matcher::metadata_matcher::PathSegment {
                segment: Some(Segment::Key(key)),
            },
        ] if **key == *Rbac::shadow_key(Rbac::ASKING_PREFIX) => key,
        _ => return Err(Refused::unsupported("path", "another than rules write")),
    };
    let prefix = match value.as_ref().and_then(|value| value.match_pattern.as_ref()) {
        Some(MatchPattern::StringMatch(matcher::StringMatcher {
            match_pattern: Some(matcher::string_matcher::MatchPattern::Prefix(prefix)),
            ignore_case: false,
        })) => prefix,
        _ => return Err(Refused::unsupported("value", "not a prefix")),
    };
    Ok(ShadowMatch {
        key: key.as_str().into(),
        prefix: prefix.as_str().into(),
    })
}
