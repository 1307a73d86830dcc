//! Envoy's HBONE, as its documentation sets it up: an internal listener puts a stream into a CONNECT (or takes it out) behind the listener that has it.
//! (Envoy's `configs/encapsulate_in_http2_connect.yaml`, `terminate_http2_connect.yaml`, `internal_listener_proxy.yaml`.)

use std::net::SocketAddr;

use serde_json::{Value, json};
use underpass_tests::{Host, Issued, Process, World, envoy};

/// A running Envoy.
pub(crate) struct Envoy {
    _process: Process,
}

impl Envoy {
    /// Takes connections at `listen` to `authority` by HBONE at `gateway`, where `expected` has to be.
    pub(crate) fn client(
        world: &World,
        host: &Host,
        tls: (&Issued, &str),
        listen: SocketAddr,
        gateway: SocketAddr,
        authority: SocketAddr,
        expected: &str,
    ) -> Self {
        let into_tunnel = json!({
            "stat_prefix": "into_tunnel", "cluster": "gateway",
            "tunneling_config": {"hostname": authority.to_string()},
        });
        let gateway = json!({
            "name": "gateway", "type": "STATIC", "connect_timeout": "5s",
            "typed_extension_protocol_options": http2(),
            "load_assignment": endpoint(envoy::address(gateway)),
            "transport_socket": transport("Upstream", tls, expected),
        });
        let listeners = json!([
            tcp_listener(
                listen,
                json!([tcp_proxy(json!({"stat_prefix": "in", "cluster": "internal"}))]),
                None
            ),
            internal_listener(json!([tcp_proxy(into_tunnel)])),
        ]);
        Self::start(world, host, listeners, json!([to_internal(), gateway]), listen)
    }

    /// Serves HBONE at `listen`, with an application at `application`; clients have to be `expected`.
    pub(crate) fn server(
        world: &World,
        host: &Host,
        tls: (&Issued, &str),
        listen: SocketAddr,
        application: SocketAddr,
        expected: &str,
    ) -> Self {
        let out_of_tunnel = json!({
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "out_of_tunnel",
            "codec_type": "HTTP2",
            "http2_protocol_options": {"allow_connect": true},
            "upgrade_configs": [{"upgrade_type": "CONNECT"}],
            "http_filters": [{
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
            }],
            "route_config": {"virtual_hosts": [{
                "name": "all", "domains": ["*"],
                "routes": [{
                    "match": {"connect_matcher": {}},
                    "route": {
                        "cluster": "internal", "timeout": "0s",
                        "upgrade_configs": [{"upgrade_type": "CONNECT", "connect_config": {}}],
                    },
                }],
            }]},
        });
        let filter = json!({"name": "envoy.filters.network.http_connection_manager", "typed_config": out_of_tunnel});
        let to_application = json!({
            "name": "application", "type": "STATIC", "connect_timeout": "5s",
            "load_assignment": endpoint(envoy::address(application)),
        });
        let listeners = json!([
            tcp_listener(listen, json!([filter]), Some(transport("Downstream", tls, expected))),
            internal_listener(json!([tcp_proxy(
                json!({"stat_prefix": "to_application", "cluster": "application"})
            )])),
        ]);
        Self::start(world, host, listeners, json!([to_internal(), to_application]), listen)
    }

    fn start(world: &World, host: &Host, listeners: Value, clusters: Value, ready_at: SocketAddr) -> Self {
        let config = json!({
            "static_resources": {"listeners": listeners, "clusters": clusters},
            "bootstrap_extensions": [{
                "name": "envoy.bootstrap.internal_listener",
                "typed_config": {"@type": "type.googleapis.com/envoy.extensions.bootstrap.internal_listener.v3.InternalListener"},
            }],
        });
        Self {
            _process: envoy::start(world, host, &config, ready_at),
        }
    }
}

fn endpoint(address: Value) -> Value {
    json!({"cluster_name": "x", "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}]})
}

fn to_internal() -> Value {
    let raw = json!({
        "name": "envoy.transport_sockets.raw_buffer",
        "typed_config": {"@type": "type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer"},
    });
    json!({
        "name": "internal", "connect_timeout": "5s",
        "load_assignment": endpoint(json!({"envoy_internal_address": {"server_listener_name": "internal"}})),
        "transport_socket": {
            "name": "envoy.transport_sockets.internal_upstream",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport",
                "transport_socket": raw,
            },
        },
    })
}

fn internal_listener(filters: Value) -> Value {
    json!({"name": "internal", "internal_listener": {}, "filter_chains": [{"filters": filters}]})
}

fn tcp_listener(at: SocketAddr, filters: Value, transport: Option<Value>) -> Value {
    let mut chain = json!({"filters": filters});
    if let Some(transport) = transport {
        chain["transport_socket"] = transport;
    }
    json!({"name": "outer", "address": envoy::address(at), "filter_chains": [chain]})
}

fn tcp_proxy(mut fields: Value) -> Value {
    fields["@type"] = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy".into();
    json!({"name": "envoy.filters.network.tcp_proxy", "typed_config": fields})
}

fn http2() -> Value {
    json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}},
    }})
}

/// TLS with a certificate and the roots of this file, for a peer of this identity.
fn transport(side: &str, (certificate, roots): (&Issued, &str), expected: &str) -> Value {
    let mut context = json!({
        "@type": format!("type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{side}TlsContext"),
        "common_tls_context": {
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
            "alpn_protocols": ["h2"],
            "tls_certificates": [{
                "certificate_chain": {"filename": certificate.chain},
                "private_key": {"filename": certificate.key},
            }],
            "validation_context": {
                "trusted_ca": {"filename": roots},
                "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": expected}}],
            },
        },
    });
    if side == "Downstream" {
        context["require_client_certificate"] = true.into();
    }
    json!({"name": "envoy.transport_sockets.tls", "typed_config": context})
}
