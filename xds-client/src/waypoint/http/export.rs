//! How collectors of spans and of logs are told: `GrpcService` and `HttpService`.

use http::{HeaderName, HeaderValue};
use underpass_config::{Batching, Export, ExportProtocol};

use super::super::refusal::{At, Refused, each, only_if};
use super::super::values::{field_value, said};
use super::field;
use crate::proto::envoy::config::core::v3 as base;
use base::grpc_service::{EnvoyGrpc, TargetSpecifier};
use base::header_value_option::HeaderAppendAction;
use base::http_uri::HttpUpstreamType;

fn export(
    cluster: &str,
    protocol: ExportProtocol,
    authority: HeaderValue,
    timeout: Option<&prost_types::Duration>,
    batching: Batching,
) -> Result<Export, Refused> {
    let timeout = said("timeout", timeout)?.filter(|time| !time.is_zero());
    Ok(Export {
        cluster: cluster.into(),
        protocol,
        authority,
        headers: Vec::new(),
        timeout: timeout.unwrap_or(Export::DEFAULT_TIMEOUT),
        batching,
    })
}

fn header(wire: &base::HeaderValue) -> Result<(HeaderName, HeaderValue), Refused> {
    let base::HeaderValue { key, value } = wire;
    Ok((field(key).at("key")?, field_value(value).at("value")?))
}

/// One that is told by gRPC.
pub(super) fn by_grpc(wire: &base::GrpcService, batching: Batching) -> Result<Export, Refused> {
    let base::GrpcService {
        timeout,
        target_specifier,
        initial_metadata,
    } = wire;
    let Some(TargetSpecifier::EnvoyGrpc(EnvoyGrpc {
        cluster_name,
        authority,
    })) = target_specifier
    else {
        return Err(Refused::missing("envoy_grpc"));
    };
    let authority = match authority.as_str() {
        // Envoy's: the name of the cluster, if that can be one.
        "" => Export::host(cluster_name).unwrap_or(Export::ANY_HOST),
        authority => Export::host(authority)
            .ok_or_else(|| Refused::new("envoy_grpc.authority", format!("is `{authority}`, which is no host")))?,
    };
    let export = export(
        cluster_name,
        ExportProtocol::Grpc,
        authority,
        timeout.as_ref(),
        batching,
    )?;
    Ok(Export {
        headers: each("initial_metadata", initial_metadata, header)?,
        ..export
    })
}

/// One that is told by HTTP.
pub(super) fn by_http(wire: &base::HttpService, batching: Batching) -> Result<Export, Refused> {
    let base::HttpService {
        http_uri,
        request_headers_to_add,
    } = wire;
    let base::HttpUri {
        uri,
        http_upstream_type,
        timeout,
    } = http_uri.as_ref().ok_or_else(|| Refused::missing("http_uri"))?;
    let Some(HttpUpstreamType::Cluster(cluster)) = http_upstream_type else {
        return Err(Refused::missing("http_uri.cluster"));
    };
    // Envoy's `extractHostPathFromUri`: it may begin with a scheme.
    let rest = uri.split_once("://").map_or(&**uri, |(_, rest)| rest);
    let (host, path) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, "/"),
    };
    let host = Export::host(host).filter(|_| Export::is_path(path));
    let host = host.ok_or_else(|| Refused::new("http_uri.uri", format!("is `{uri}`, which is no host and path")))?;
    let protocol = ExportProtocol::Http(path.to_owned());
    let export = export(cluster, protocol, host, timeout.as_ref(), batching).at("http_uri")?;
    Ok(Export {
        headers: each("request_headers_to_add", request_headers_to_add, added)?,
        ..export
    })
}

fn added(wire: &base::HeaderValueOption) -> Result<(HeaderName, HeaderValue), Refused> {
    let base::HeaderValueOption {
        header: wire,
        append_action,
    } = wire;
    // Of what there is not yet, all others come to the same.
    let is_added = *append_action != HeaderAppendAction::OverwriteIfExists as i32;
    only_if(
        is_added,
        "append_action",
        "is for what is there already, and nothing is",
    )?;
    header(wire.as_ref().ok_or_else(|| Refused::missing("header"))?).at("header")
}
