//! `HttpConnectionManager`: a service that speaks HTTP.

mod action;
mod export;
mod headers;
pub(super) mod logs;
mod matches;
mod overrides;
mod retry;
mod routes;
mod tracing;

use std::sync::Arc;
use std::time::Duration;

use underpass_config::http::{Forward, PathNormalization};
use underpass_config::waypoint::HttpChain;

use super::filters;
use super::refusal::{At, Refused, only_if};
use super::values::{limit, unpack};
pub(super) use headers::{editable as field, edits, header_text};
pub(super) use matches::{header, route_match};

use crate::proto::envoy::config::core::v3::Http2ProtocolOptions;
use crate::proto::envoy::extensions::filters::network::http_connection_manager::v3 as wire;
use crate::proto::envoy::extensions::request_id::uuid::v3::UuidRequestIdConfig;
use wire::http_connection_manager::{
    ForwardClientCertDetails, PathWithEscapedSlashesAction as Slashes, RouteSpecifier, UpgradeConfig,
};

/// What holds for all routes of a chain.
struct Everywhere {
    /// Protocols that connections may change to.
    upgrades: Vec<String>,
    /// How long nothing of a request may move, where its route says nothing.
    idle_timeout: Option<Duration>,
}

pub(super) fn translate(
    wire: &wire::HttpConnectionManager,
    chain: &str,
    left_out: &mut Vec<Refused>,
) -> Result<HttpChain, Refused> {
    let wire::HttpConnectionManager {
        // What Envoy's statistics call it.
        stat_prefix: _,
        route_specifier,
        http_filters,
        tracing,
        http2_protocol_options,
        // Who answers; ours leaves what the endpoint says.
        server_name: _,
        access_log,
        use_remote_address,
        forward_client_cert_details,
        set_current_client_cert_details,
        // Ours answers `Expect: 100-continue` itself.
        proxy_100_continue: _,
        upgrade_configs,
        stream_idle_timeout,
        normalize_path,
        merge_slashes,
        request_id_extension,
        path_with_escaped_slashes_action,
    } = wire;
    // What a client speaks is found out.
    let is_default = http2_protocol_options
        .as_ref()
        .is_none_or(|options| *options == Http2ProtocolOptions::default());
    only_if(is_default, "http2_protocol_options", "is for wiring only")?;
    let trusts = !use_remote_address.unwrap_or(false);
    only_if(
        trusts,
        "use_remote_address",
        "is true: a waypoint's clients say whom they stand for",
    )?;
    let is_taken_off = *forward_client_cert_details == ForwardClientCertDetails::Sanitize as i32;
    only_if(is_taken_off, "forward_client_cert_details", "is for wiring only")?;
    let tells = set_current_client_cert_details.is_some();
    only_if(!tells, "set_current_client_cert_details", "is for wiring only")?;
    // Envoy's default.
    let mut sampled_by_id = true;
    if let Some(wire::RequestIdExtension { typed_config }) = request_id_extension {
        let UuidRequestIdConfig {
            use_request_id_for_trace_sampling,
        } = unpack(typed_config.as_ref()).at("request_id_extension.typed_config")?;
        sampled_by_id = use_request_id_for_trace_sampling.unwrap_or(true);
    }
    let everywhere = Everywhere {
        upgrades: upgrades(upgrade_configs)?,
        idle_timeout: limit(
            "stream_idle_timeout",
            stream_idle_timeout.as_ref(),
            Some(Forward::DEFAULT_IDLE_TIMEOUT),
        )?,
    };
    let Some(RouteSpecifier::RouteConfig(config)) = route_specifier else {
        return Err(Refused::missing("route_config"));
    };
    let mut table = routes::table(config, chain, &everywhere).at("route_config")?;
    table.normalization = normalization(
        normalize_path.unwrap_or(false),
        *merge_slashes,
        *path_with_escaped_slashes_action,
    )?;
    table.tracing = tracing
        .as_ref()
        .and_then(|tracing| tracing::translate(tracing, sampled_by_id, left_out));
    table.logs = logs::translate(access_log, left_out);
    let dynamic = filters::translate(http_filters, &mut table, left_out).at("http_filters")?;
    Ok(HttpChain {
        table: Arc::new(table),
        dynamic,
        destination: None,
    })
}

fn upgrades(configs: &[UpgradeConfig]) -> Result<Vec<String>, Refused> {
    let mut upgrades = Vec::with_capacity(configs.len());
    for UpgradeConfig { upgrade_type } in configs {
        let name = upgrade_type.to_ascii_lowercase();
        only_if(
            name != "connect",
            "upgrade_configs",
            "let CONNECT be, which is for wiring only",
        )?;
        upgrades.push(name);
    }
    Ok(upgrades)
}

/// Istio's `meshConfig.pathNormalization`, as istiod writes it.
fn normalization(is_normal: bool, merges: bool, slashes: i32) -> Result<PathNormalization, Refused> {
    let slashes = Slashes::try_from(slashes).unwrap_or(Slashes::RejectRequest);
    let keeps = matches!(slashes, Slashes::KeepUnchanged | Slashes::ImplementationSpecificDefault);
    match (is_normal, merges, slashes) {
        (false, false, _) if keeps => Ok(PathNormalization::None),
        (true, false, _) if keeps => Ok(PathNormalization::Base),
        (true, true, _) if keeps => Ok(PathNormalization::MergeSlashes),
        (true, true, Slashes::UnescapeAndForward) => Ok(PathNormalization::DecodeAndMergeSlashes),
        _ => {
            let why = "is no normalization of Istio's: NONE, BASE, MERGE_SLASHES or DECODE_AND_MERGE_SLASHES";
            Err(Refused::new("path_with_escaped_slashes_action", why))
        }
    }
}
