//! What endpoints speak, and how their connections are kept (`extensions.upstreams.http.v3.HttpProtocolOptions`).

use std::collections::BTreeMap;

use prost_types::Any;
use underpass_config::http::{Ping, UpstreamProtocol};

use super::super::refusal::{At, Refused, only_if};
use super::super::values::{limit, said, unpack};
use super::{AskedNames, Protocol};
use crate::proto::envoy::config::core::v3 as base;
use crate::proto::envoy::extensions::upstreams::http::v3 as wire;
use wire::http_protocol_options::explicit_http_config::ProtocolConfig;
use wire::http_protocol_options::{
    AutoHttpConfig, ExplicitHttpConfig, UpstreamProtocolOptions as Options, UseDownstreamHttpConfig,
};

const KEY: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
const FIELD: &str = "typed_extension_protocol_options";

pub(super) fn translate(options: &BTreeMap<String, Any>) -> Result<Protocol, Refused> {
    if let Some(other) = options.keys().find(|key| *key != KEY) {
        return Err(Refused::unsupported(FIELD, format!("for `{other}`")));
    }
    match options.get(KEY) {
        None => Ok(Protocol::default()),
        Some(any) => unpack(Some(any)).and_then(|wire| said_by(&wire)).at(FIELD),
    }
}

fn said_by(wire: &wire::HttpProtocolOptions) -> Result<Protocol, Refused> {
    let wire::HttpProtocolOptions {
        common_http_protocol_options,
        upstream_http_protocol_options,
        upstream_protocol_options,
    } = wire;
    let mut protocol = Protocol::default();
    if let Some(common) = common_http_protocol_options {
        let base::HttpProtocolOptions {
            idle_timeout,
            max_connection_duration,
            max_stream_duration,
            max_requests_per_connection,
        } = common;
        let idle = said("idle_timeout", idle_timeout.as_ref()).at("common_http_protocol_options")?;
        only_if(
            idle.is_none_or(|idle| !idle.is_zero()),
            "common_http_protocol_options.idle_timeout",
            "is 0: connections without an end are not kept here",
        )?;
        protocol.idle_timeout = idle;
        protocol.connections.lifetime = limit("max_connection_duration", max_connection_duration.as_ref(), None)?;
        protocol.max_stream_duration = limit("max_stream_duration", max_stream_duration.as_ref(), None)?;
        protocol.connections.requests = match max_requests_per_connection {
            None | Some(0) => u32::MAX,
            Some(count) => *count,
        };
    }
    if let Some(upstream) = upstream_http_protocol_options {
        let base::UpstreamHttpProtocolOptions {
            auto_sni,
            auto_san_validation,
        } = upstream;
        protocol.names = AskedNames {
            are_asked_for: *auto_sni,
            are_verified: *auto_san_validation,
        };
    }
    let http2 = match upstream_protocol_options {
        None => return Err(Refused::missing("upstream_protocol_options")),
        Some(Options::ExplicitHttpConfig(ExplicitHttpConfig { protocol_config })) => match protocol_config {
            Some(ProtocolConfig::HttpProtocolOptions(base::Http1ProtocolOptions {})) => None,
            Some(ProtocolConfig::Http2ProtocolOptions(http2)) => {
                protocol.speaks = UpstreamProtocol::Http2;
                Some(http2)
            }
            None => return Err(Refused::missing("explicit_http_config.protocol_config")),
        },
        Some(Options::UseDownstreamProtocolConfig(config)) => {
            let UseDownstreamHttpConfig {
                http_protocol_options: _,
                http2_protocol_options,
            } = config;
            only_if(
                http2_protocol_options.is_some(),
                "use_downstream_protocol_config.http2_protocol_options",
                "is missing: HTTP/2 can't be kept from endpoints here",
            )?;
            protocol.speaks = UpstreamProtocol::AsDownstream;
            http2_protocol_options.as_ref()
        }
        Some(Options::AutoConfig(config)) => {
            let AutoHttpConfig {
                http_protocol_options: _,
                http2_protocol_options,
            } = config;
            protocol.speaks = UpstreamProtocol::Negotiated;
            http2_protocol_options.as_ref()
        }
    };
    if let Some(http2) = http2 {
        of_http2(http2, &mut protocol)?;
    }
    Ok(protocol)
}

fn of_http2(wire: &base::Http2ProtocolOptions, protocol: &mut Protocol) -> Result<(), Refused> {
    let base::Http2ProtocolOptions {
        max_concurrent_streams,
        allow_connect,
        connection_keepalive,
    } = wire;
    only_if(
        !allow_connect,
        "http2_protocol_options.allow_connect",
        "is for wiring only",
    )?;
    if let Some(streams) = max_concurrent_streams {
        only_if(*streams > 0, "http2_protocol_options.max_concurrent_streams", "is 0")?;
        protocol.connections.streams = *streams;
    }
    if let Some(base::KeepaliveSettings { interval, timeout }) = connection_keepalive {
        let field = "http2_protocol_options.connection_keepalive";
        protocol.connections.ping = match limit("interval", interval.as_ref(), None).at(field)? {
            None => None,
            Some(interval) => Some(Ping {
                interval,
                timeout: said("timeout", timeout.as_ref()).at(field)?.unwrap_or(Ping::TIMEOUT),
            }),
        };
    }
    Ok(())
}
