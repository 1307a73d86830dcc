//! Endpoints that say themselves how they are reached, as istiod tells it of each: who has to be at a tunnel's other end, the mesh says. And endpoints that nobody has
//! listed: where a connection was going.

use std::net::SocketAddr;
use std::sync::OnceLock;
use std::thread;

use underpass_tests::{Config, Host, Listen, Proxy, wait};

use crate::http::{Endpoint, get, id, logged};
use crate::place::{GATEWAY, Hosts, PORT, Place, address};

/// Where the near proxy takes requests.
const LISTEN: &str = "127.0.0.1:8000";
const HBONE: u16 = 15008;
/// An address that nobody has.
const NOWHERE: &str = "10.96.0.77:80";
/// The waypoint: the mesh knows that it is in the pod that nobody captures.
const WAYPOINT: &str = "shop/envoy";

/// `http:` with all requests for one endpoint, with more said of that.
fn led(endpoint: SocketAddr, more: &str) -> String {
    format!(
        "client: '{}', clusters: [{{name: c, connect_timeout: 20s, endpoints: [{{address: '{endpoint}', reach: hbone{more}}}]}}], \
         routes: [{{name: t, virtual_hosts: [{{name: all, domains: ['*'], routes: [{{forward: {{cluster: c}}}}]}}]}}]",
        id(GATEWAY)
    )
}

/// Two nodes, of which the near one takes requests for the server.
fn place() -> Option<(Place, Host)> {
    let place = Place::start_with(
        |hosts| hosts.mesh("").access_log_format("json"),
        |near, hosts| {
            near.listener("web", address(LISTEN), Listen::Http("t"))
                .http(led(hosts.server.at(PORT), ""))
        },
    )?;
    let client = place.near.node.host();
    Some((place, client))
}

fn replace(proxy: &Proxy, text: &str) {
    let before = proxy.config_updates("applied");
    proxy.replace_file(text);
    wait::eventually(wait::SOON, "the configuration is applied", || {
        proxy.config_updates("applied") > before
    });
}

fn assert_whole(answer: &(String, bool)) {
    assert!(
        answer.0.starts_with("HTTP/1.1 200") && answer.0.ends_with("whole"),
        "{answer:?}"
    );
}

#[test]
fn the_mesh_says_who_has_to_be_at_an_endpoint() {
    let Some((place, client)) = place() else { return };
    let endpoint = Endpoint::start(&place.server);
    let proxy = &place.near.proxy;
    assert_whole(&get(&client, address(LISTEN), "/whole"));
    let far = wait::some(wait::SOON, "a tunnel at the far node", || {
        let tunnels = place.far.proxy.connections();
        let mut lines = tunnels.into_iter().map(|line| line.to_string());
        lines.find(|line| line.contains(&id(GATEWAY)))
    });
    assert!(far.contains("hbone"), "{far}");
    let right = proxy.config_text();
    // Whoever has a certificate of the trust domain would be there still.
    let wrong = right.replace("service_account: web,", "service_account: other,");
    assert_ne!(right, wrong);
    replace(proxy, &wrong);
    let answer = get(&client, address(LISTEN), "/wrong/whole");
    assert!(answer.0.starts_with("HTTP/1.1 503"), "{answer:?}");
    let line = logged(proxy, "/wrong/whole");
    assert!(
        line.contains("\"response_flags\":\"UF\"") && line.contains("peer_identity"),
        "{line}"
    );
    assert_eq!(endpoint.accepted(), 1);
    replace(proxy, &right);
    assert_whole(&get(&client, address(LISTEN), "/whole"));
}

/// The mesh as istiod may have told it when it has told of endpoints already: without the server.
fn mesh_without_server(hosts: &Hosts) -> Config {
    Config::new()
        .workload_at(
            "shop/client",
            &hosts.client.addresses(),
            "service_account: client, node: node-a",
        )
        .workload_at(
            "else/other",
            &hosts.other.addresses(),
            "service_account: other, node: node-a",
        )
        .access_log_format("json")
}

#[test]
fn a_request_waits_until_the_mesh_knows_who_is_at_its_endpoint() {
    let place = Place::start_with(
        |hosts| hosts.mesh("").access_log_format("json"),
        |_, hosts| {
            mesh_without_server(hosts)
                .listener("web", address(LISTEN), Listen::Http("t"))
                .http(led(hosts.server.at(PORT), ""))
        },
    );
    let Some(place) = place else { return };
    let (client, endpoint) = (place.near.node.host(), Endpoint::start(&place.server));
    let proxy = &place.near.proxy;
    let without = proxy.config_text();
    let server = place.server.addresses();
    let known = format!(
        "workloads:\n- {{name: web-1, namespace: shop, addresses: ['{}'], service_account: web, node: node-b, tunnel_protocol: hbone}}\n",
        server[0]
    );
    let asking = thread::spawn(move || get(&client, address(LISTEN), "/whole"));
    wait::eventually(wait::SOON, "it has come", || !proxy.connections().is_empty());
    replace(proxy, &without.replacen("workloads:\n", &known, 1));
    assert_whole(&asking.join().expect("the client"));
    // It is not waited for without end, and nobody else is let in.
    replace(proxy, &without.replace("connect_timeout: 20s", "connect_timeout: 1s"));
    let answer = get(&place.near.node.host(), address(LISTEN), "/unknown/whole");
    assert!(answer.0.starts_with("HTTP/1.1 503"), "{answer:?}");
    let line = logged(proxy, "/unknown/whole");
    assert!(line.contains("the mesh has no workload at"), "{line}");
    assert_eq!(endpoint.accepted(), 1);
}

/// A waypoint in the pod that nobody captures, which serves one address by one cluster; the near node's requests are led there by it.
struct Led {
    place: Place,
    waypoint: Proxy,
    client: Host,
}

impl Led {
    fn start(to: impl Fn(&Hosts) -> SocketAddr, from: &str) -> Option<Self> {
        let asked = OnceLock::new();
        let place = Place::start_with(
            |hosts| hosts.mesh("").access_log_format("json"),
            |near, hosts| {
                let via = format!(", via: '{}'", hosts.envoy.at(HBONE));
                near.listener("web", address(LISTEN), Listen::Http("t"))
                    .http(led(*asked.get_or_init(|| to(hosts)), &via))
            },
        )?;
        let asked = asked.into_inner().expect("the near node's configuration has it");
        let host: &Host = &place.envoy;
        let config = Config::new()
            .access_log_format("json")
            .node(format!("identities: {}", place.authority.identities(&[WAYPOINT])))
            .listener("mesh", host.at(HBONE), Listen::Hbone(id(WAYPOINT)))
            .workload_at("shop/web-1", &place.server.addresses(), "service_account: web, node: node-b, tunnel_protocol: hbone")
            .http(format!(
                "client: '{}', services: [{{address: '{asked}', hostname: a.test, routes: t}}], \
                 clusters: [{{name: c, endpoints_from: {from}}}], \
                 routes: [{{name: t, virtual_hosts: [{{name: all, domains: ['*'], routes: [{{forward: {{cluster: c}}}}]}}]}}]",
                id(WAYPOINT)
            ));
        let waypoint = Proxy::start(place.far.node.world(), host, &config);
        let client = place.near.node.host();
        Some(Self {
            place,
            waypoint,
            client,
        })
    }

    fn get(&self, path: &str) -> (String, bool) {
        get(&self.client, address(LISTEN), path)
    }
}

/// As what a workload's own waypoint does with its connections (Istio's cluster `encap`).
#[test]
fn a_workloads_connections_go_on_to_it_by_a_tunnel() {
    let Some(led) = Led::start(|hosts| hosts.server.at(PORT), "workload") else {
        return;
    };
    let _endpoint = Endpoint::start(&led.place.server);
    assert_whole(&led.get("/whole"));
    assert_whole(&led.get("/whole"));
    let line = logged(&led.waypoint, "/whole");
    for part in [
        format!("\"src.identity\":\"{}\"", id(GATEWAY)),
        format!("\"upstream_host\":\"{}\"", led.place.server.at(PORT)),
    ] {
        assert!(line.contains(&part), "{part}: {line}");
    }
    let far = wait::some(wait::SOON, "a tunnel at the far node", || {
        let tunnels = led.place.far.proxy.connections();
        let mut lines = tunnels.into_iter().map(|line| line.to_string());
        lines.find(|line| line.contains(&id(WAYPOINT)))
    });
    assert!(far.contains("hbone"), "{far}");
}

#[test]
fn a_connection_goes_on_to_where_it_was_going() {
    let Some(led) = Led::start(|hosts| hosts.envoy.at(PORT), "connection") else {
        return;
    };
    let _endpoint = Endpoint::start(&led.place.envoy);
    assert_whole(&led.get("/whole"));
    let line = logged(&led.waypoint, "/whole");
    let host = format!("\"upstream_host\":\"{}\"", led.place.envoy.at(PORT));
    assert!(line.contains(&host), "{line}");
}

#[test]
fn nobody_is_let_onto_the_waypoints_own_node() {
    for own in ["127.0.0.1:15000", "127.0.0.1:8080"] {
        let Some(led) = Led::start(|_| address(own), "connection") else {
            return;
        };
        let answer = led.get("/whole");
        assert!(answer.0.starts_with("HTTP/1.1 403"), "{own}: {answer:?}");
    }
    let Some(led) = Led::start(|_| address(NOWHERE), "workload") else {
        return;
    };
    let text = led.waypoint.config_text();
    replace(
        &led.waypoint,
        &text.replace(
            "endpoints_from: workload",
            "connect_timeout: 1s, endpoints_from: workload",
        ),
    );
    let answer = led.get("/whole");
    assert!(answer.0.starts_with("HTTP/1.1 503"), "{answer:?}");
}
