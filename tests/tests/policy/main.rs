//! Policy on a node with pods: who may connect, what the others see, and how fast a change reaches connections that are open.
//!
//! The proxy runs on node 0, clients in pods there, the server in a pod of node 1. Nothing but the source address says who a
//! client is.

mod place;
mod revocation;

use std::net::SocketAddr;

use underpass_tests::{Host, Listen, Refused, Server, Target, Way, open};

use crate::place::{DENY_CLIENT, ONLY_CLIENT, Place};

#[test]
fn only_the_allowed_client_reaches_the_server() {
    let Some(place) = Place::start(|place| {
        place
            .config("[shop/only-client]")
            .policy("shop/only-client", ONLY_CLIENT)
    }) else {
        return;
    };
    let server = Server::start(&place.server, 8080);
    for way in place.ways() {
        let mut stream = open(&place.client, way, place.service()).unwrap_or_else(|e| panic!("{way:?}: {e:?}"));
        assert_eq!(Server::greeting(&mut stream).expect("a greeting"), server.address());
        Server::echo(&mut stream, b"allowed").expect("an echo");
        let source = stream.local_addr().expect("connected");
        drop(stream);
        let line = place.proxy.access_line(source);
        line.assert_reason("completed", "-");
        assert_eq!(line.field("src.identity"), "spiffe://cluster.local/ns/shop/sa/client");
        assert_eq!(line.field("dst.addr"), server.address().to_string());
        assert_eq!(line.field("dst.service"), "web.shop.svc.cluster.local");
        assert_eq!(line.field("policy"), "shop/only-client");
    }
    let before = server.accepted();
    for way in place.ways() {
        place.assert_denied(&place.other, way);
        place.assert_denied(&place.stranger, way);
    }
    assert_eq!(
        server.accepted(),
        before,
        "no denied client made a connection to the server"
    );
}

#[test]
fn a_port_in_a_policy_is_the_endpoints_not_the_services() {
    let deny = |port| {
        format!("scope: NAMESPACE, action: DENY, groups: [{{rules: [{{matches: [{{destination_ports: [{port}]}}]}}]}}]")
    };
    let Some(place) = Place::start(|place| place.config("[]").policy("shop/deny-port", deny(80))) else {
        return;
    };
    let _server = Server::start(&place.server, 8080);
    for way in place.ways() {
        let mut stream = open(&place.client, way, place.service()).unwrap_or_else(|e| panic!("{way:?}: {e:?}"));
        Server::greeting(&mut stream).expect("a greeting");
    }
    place
        .proxy
        .apply(&place.config("[]").policy("shop/deny-port", deny(8080)));
    for way in place.ways() {
        place.assert_denied(&place.client, way);
    }
}

#[test]
fn an_ipv6_client_is_the_same_workload() {
    let v6 = |host: &Host, port| SocketAddr::from((host.ip6(), port));
    let Some(place) = Place::start(|place| {
        place
            .config("[shop/only-client]")
            .policy("shop/only-client", ONLY_CLIENT)
            .listener("socks6", v6(&place.node, 1080), Listen::Socks5)
            .listener("connect6", v6(&place.node, 3128), Listen::Connect)
    }) else {
        return;
    };
    let server = Server::start_at(&place.server, v6(&place.server, 8080));
    let target = Target::Address(server.address());
    for way in [Way::Socks5(v6(&place.node, 1080)), Way::Connect(v6(&place.node, 3128))] {
        let mut stream = open(&place.client, way, target).unwrap_or_else(|e| panic!("{way:?}: {e:?}"));
        assert_eq!(Server::greeting(&mut stream).expect("a greeting"), server.address());
        assert!(
            matches!(
                open(&place.other, way, target),
                Err(Refused::Socks(2) | Refused::Http(403))
            ),
            "{way:?}"
        );
    }
    assert_eq!(server.accepted(), 2);
}

#[test]
fn a_dry_run_policy_is_counted_and_decides_nothing() {
    let Some(place) = Place::start(|place| {
        place
            .config("[]")
            .policy("shop/trial", format!("scope: NAMESPACE, dry_run: true, {DENY_CLIENT}"))
    }) else {
        return;
    };
    let _server = Server::start(&place.server, 8080);
    for host in [&place.client, &place.other] {
        let mut stream = open(host, place.ways()[0], place.service()).expect("a dry-run policy denies nothing");
        Server::greeting(&mut stream).expect("a greeting");
    }
    let metrics = place.proxy.metrics();
    let matched = [("policy", "shop/trial")];
    assert_eq!(
        metrics.sum("underpass_authorization_dry_run_total", &matched),
        1,
        "it matches the client only"
    );
}
