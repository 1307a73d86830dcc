//! Envoy with the routes of the scene.

use std::net::SocketAddr;

use serde_json::{Value, json};
use underpass_tests::envoy::{self, address};
use underpass_tests::{Host, Process, World};

use super::scene;

/// Starts it at `listen`, and waits until it serves. `web`: the endpoints, and whether they speak HTTP/2.
pub(crate) fn start(
    world: &World,
    host: &Host,
    listen: SocketAddr,
    (web, is_http2): (&[SocketAddr], bool),
    closed: SocketAddr,
) -> Process {
    let manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "in",
        "codec_type": "AUTO",
        "upgrade_configs": [{"upgrade_type": "websocket", "enabled": false}],
        "http_filters": [
            {"name": "envoy.filters.http.fault", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault"}},
            {"name": "envoy.filters.http.cors", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors"}},
            {"name": "envoy.filters.http.router", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}},
        ],
        "route_config": {"ignore_port_in_host_matching": true, "virtual_hosts": scene::envoys()},
    });
    let mut web = cluster("web", web);
    if is_http2 {
        web["typed_extension_protocol_options"] = json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {}},
        }});
    }
    let filter = json!({"name": "envoy.filters.network.http_connection_manager", "typed_config": manager});
    let config = json!({"static_resources": {
        "listeners": [{"name": "in", "address": address(listen), "filter_chains": [{"filters": [filter]}]}],
        "clusters": [web, cluster("void", &[]), cluster("closed", &[closed])],
    }});
    envoy::start(world, host, &config, listen)
}

fn cluster(name: &str, endpoints: &[SocketAddr]) -> Value {
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|at| json!({"endpoint": {"address": address(*at)}}))
        .collect();
    json!({
        "name": name, "type": "STATIC", "connect_timeout": "5s", "lb_policy": "ROUND_ROBIN",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]},
    })
}
