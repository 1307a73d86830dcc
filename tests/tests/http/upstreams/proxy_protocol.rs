//! Endpoints that are told who their client is.

use serde_json::json;
use underpass_tests::{Need, available};

use super::place::{ClusterPair, Place, endpoints};
use super::teller::Teller;
use crate::client::{Client, get};

/// Each client has connections of its own: none is taken for another, and a client's requests share them.
#[test]
fn an_endpoint_is_told_of_each_client_as_by_envoy() {
    if !available(&[Need::Envoy]) {
        return;
    }
    let place = Place::new();
    let teller = || {
        let teller = Teller {
            is_told: true,
            ..Teller::default()
        };
        teller.start(&place.world.host(), 9001)
    };
    let (of_ours, of_envoy) = (teller(), teller());
    let pair = |name, version: &str| ClusterPair {
        name,
        ours: format!("endpoints: ['{}'], proxy_protocol: {version}", of_ours.address),
        envoys: json!({"type": "STATIC", "load_assignment": endpoints(&[of_envoy.address]), "transport_socket": {
            "name": "envoy.transport_sockets.upstream_proxy_protocol", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport",
                "config": {"version": version.to_uppercase()},
                "transport_socket": {"name": "envoy.transport_sockets.raw_buffer", "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer"}}}}}),
    };
    let _both = place.start_both(&[pair("one", "v1"), pair("two", "v2")]);
    for (name, kind) in [("one", "PROXY TCP4"), ("two", "V2 TCP4")] {
        for at in [place.ours(), place.envoys()] {
            let mut connections = Vec::new();
            for _ in 0..2 {
                let mut client = Client::connect(&place.client, at);
                for _ in 0..2 {
                    client.send(get(&format!("/{name}/x"), "").as_bytes());
                    let seen = client.answer(false);
                    let local = client.address();
                    let told = format!("{kind} {} {} {} {}", local.ip(), at.ip(), local.port(), at.port());
                    assert_eq!(seen.header("x-proxy"), Some(&*told), "{name} {at}");
                    connections.push(seen.header("x-connection").map(str::to_owned));
                }
            }
            assert_eq!(
                connections[0], connections[1],
                "a client's requests share its connections"
            );
            assert_ne!(connections[1], connections[2], "clients share none");
        }
    }
}
