//! Where an HTTP listener leads what is no HTTP (`tcp_fallback`), and endpoints that are reached by a tunnel (`hbone`).

use std::time::Duration;

use underpass_config::{Config, ListenerProtocol, TcpFallback};

use super::problems;

const TABLE: &str =
    "http: {routes: [{name: t, virtual_hosts: [{name: a, domains: ['*'], routes: [{direct: {status: 200}}]}]}]}
services:
- {name: db, namespace: shop, ports: [{port: 3306}]}";
const CERTIFICATE: &str =
    "{identity: 'spiffe://cluster.local/ns/shop/sa/gateway', chain: /gateway.pem, key: /gateway-key.pem}";

fn listener(fields: &str) -> String {
    format!("node: {{listeners: [{{name: a, address: '127.0.0.1:80', {fields}}}]}}\n{TABLE}")
}

fn cluster(node: &str, hbone: &str) -> String {
    format!("node: {{{node}}}\nhttp: {{clusters: [{{name: web, endpoints: ['10.0.0.1:80'], hbone: {{{hbone}}}}}]}}")
}

fn certificates() -> String {
    format!("identities: {{roots: /roots.pem, certificates: [{CERTIFICATE}]}}")
}

/// The document has exactly one problem: `PATH | VALUE | PART OF THE PROBLEM | PART OF THE REMEDY`.
fn refused(yaml: &str, expected: &str) {
    let parts: Vec<&str> = expected.split('|').map(str::trim).collect();
    let found = problems(yaml);
    let is_it = found.len() == 1
        && (&*found[0].path, &*found[0].value) == (parts[0], parts[1])
        && found[0].problem.contains(parts[2])
        && found[0].remedy.contains(parts[3]);
    assert!(is_it, "{yaml}\nexpected: {expected}\nfound: {found:#?}");
}

#[test]
fn a_fallback_is_a_destination_and_perhaps_a_time() {
    for (timeout, expected) in [
        ("", 5000),
        (", detection_timeout: 100ms", 100),
        (", detection_timeout: 0s", 0),
    ] {
        let fallback = format!("tcp_fallback: {{destination: 'db.shop.svc.cluster.local:3306'{timeout}}}");
        let yaml = listener(&format!("protocol: http, routes: t, {fallback}"));
        let config = Config::from_yaml(&yaml).unwrap_or_else(|error| panic!("{error}"));
        let ListenerProtocol::Http { tcp_fallback, .. } = &config.node.listeners[0].protocol else {
            panic!("another protocol");
        };
        let expected = TcpFallback {
            destination: "db.shop.svc.cluster.local:3306".parse().unwrap(),
            detection_timeout: Duration::from_millis(expected),
        };
        assert_eq!(tcp_fallback.as_ref(), Some(&expected));
    }
    let config = Config::from_yaml(&listener("protocol: http, routes: t")).unwrap();
    let without = serde_json::to_value(&config.node.listeners[0]).unwrap();
    assert!(without.get("tcp_fallback").is_none(), "{without}");
}

#[test]
fn mistakes_in_fallbacks() {
    let http = |fields: &str| listener(&format!("protocol: http, routes: t, {fields}"));
    for (yaml, expected) in [
        (
            http("tcp_fallback: {destination: db}"),
            "node.listeners[0].tcp_fallback.destination | db | has no port | 10.0.0.1:80",
        ),
        (
            http("tcp_fallback: {destination: '127.0.0.1:80'}"),
            "node.listeners[0].tcp_fallback.destination | 127.0.0.1:80 | the listener itself | go round for ever",
        ),
        (
            http("tcp_fallback: {destination: 'db.shop.svc.cluster.local:3307'}"),
            "node.listeners[0].tcp_fallback.destination | db.shop.svc.cluster.local:3307 | has no port 3307 | 3306",
        ),
        (
            http("tcp_fallback: {destination: '10.0.0.1:80', detection_timeout: soon}"),
            "node.listeners[0].tcp_fallback.detection_timeout | soon | is not a duration | 5s",
        ),
        (
            listener("protocol: socks5, tcp_fallback: {destination: '10.0.0.1:80'}"),
            "node.listeners[0].tcp_fallback | | only HTTP listeners | protocol: http",
        ),
        (
            http("destination: '10.0.0.1:80'"),
            "node.listeners[0].destination | 10.0.0.1:80 | the routes of an HTTP listener | tcp_fallback",
        ),
    ] {
        refused(&yaml, expected);
    }
}

#[test]
fn a_tunnel_says_who_opens_it_and_who_may_be_there() {
    let yaml = cluster(
        &certificates(),
        "identity: 'spiffe://cluster.local/ns/shop/sa/gateway', peers: ['spiffe://cluster.local/ns/shop/sa/web']",
    );
    let config = Config::from_yaml(&yaml).unwrap_or_else(|error| panic!("{error}"));
    let hbone = config.http.clusters["web"].settings.transport.hbone.as_ref().unwrap();
    assert_eq!(hbone.client.to_string(), "spiffe://cluster.local/ns/shop/sa/gateway");
    assert_eq!((hbone.peers.len(), hbone.port), (1, 15008));
    assert_eq!(hbone.peers[0].to_string(), "spiffe://cluster.local/ns/shop/sa/web");
    // Another peer is another transport: connections that the one was believed for are not used for the other.
    let (other, _) = config.updated(&yaml.replace("sa/web", "sa/api")).unwrap();
    let (same, _) = config.updated(&format!("{yaml}\n")).unwrap();
    let transport = |config: &Config| config.http.clusters["web"].settings.transport.clone();
    assert!(std::sync::Arc::ptr_eq(&transport(&config), &transport(&same)));
    assert_ne!(transport(&config), transport(&other));
    // Istiod's CA is asked for whatever identity is to be shown.
    let hbone =
        "identity: 'spiffe://cluster.local/ns/a/sa/b', peers: ['spiffe://cluster.local/ns/a/sa/c'], port: 15009";
    let config = Config::from_yaml(&cluster("istiod: {}", hbone)).unwrap_or_else(|error| panic!("{error}"));
    let hbone = config.http.clusters["web"].settings.transport.hbone.as_ref().unwrap();
    assert_eq!(hbone.port, 15009);
}

#[test]
fn mistakes_in_tunnels() {
    let (gateway, web) = (
        "identity: 'spiffe://cluster.local/ns/shop/sa/gateway'",
        "peers: ['spiffe://cluster.local/ns/shop/sa/web']",
    );
    for (node, hbone, expected) in [
        (
            certificates(),
            format!("{gateway}, peers: []"),
            "peers | | nobody would be believed | spiffe://cluster.local/ns/shop/sa/web",
        ),
        (
            certificates(),
            format!("{gateway}, peers: [web]"),
            "peers[0] | web | begins with `spiffe://` | spiffe://cluster.local/ns/shop/sa/web",
        ),
        (
            certificates(),
            format!("identity: gateway, {web}"),
            "identity | gateway | begins with `spiffe://` | spiffe://cluster.local/ns/shop/sa/web",
        ),
        (
            certificates(),
            format!("{gateway}, {web}, port: 0"),
            "port | 0 | is not a port | 1 to 65535",
        ),
        (
            String::new(),
            format!("{gateway}, {web}"),
            "identity | spiffe://cluster.local/ns/shop/sa/gateway | no certificate | node.identities.certificates",
        ),
        (
            certificates(),
            format!("identity: 'spiffe://cluster.local/ns/shop/sa/other', {web}"),
            "identity | spiffe://cluster.local/ns/shop/sa/other | no certificate | node.identities.certificates",
        ),
    ] {
        refused(&cluster(&node, &hbone), &format!("http.clusters[0].hbone.{expected}"));
    }
}
