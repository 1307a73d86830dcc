//! A waypoint: tunnels to its listener are for services, and their requests are served as those of a listener of HTTP.
//!
//! The near node's proxy opens a tunnel for each request's endpoint, as a mesh's nodes do for services that have a waypoint; the waypoint, in a pod of the far node that nobody
//! captures, opens another to the node of the endpoint.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::thread;

use underpass_tests::{Config, Host, Listen, Proxy, wait};

use crate::http::{Endpoint, assert_breaks_off, get, id, logged};
use crate::place::{GATEWAY, PORT, Place, address};

/// Where the near proxy takes requests.
const LISTEN: &str = "127.0.0.1:8000";
const HBONE: u16 = 15008;
const WAYPOINT: &str = "shop/waypoint";
/// The service's port; its address is the waypoint's own here.
const SERVICE: u16 = 80;

struct Mesh {
    place: Place,
    waypoint: Proxy,
    client: Host,
    _endpoint: Endpoint,
}

/// Routes and clusters of the waypoint: `/1/...` is for whoever is the gateway, `/2/...` for nobody.
fn served(service: SocketAddr, endpoint: SocketAddr) -> String {
    format!(
        "services: [{{address: '{service}', hostname: web.shop.svc.cluster.local, routes: web}}], \
         clusters: [{{name: web, endpoints: ['{endpoint}'], hbone: {{identity: '{}', peers: ['{}']}}}}], \
         routes: [{{name: web, \
         authorization: [{{name: ones, namespace: shop, rules: [{{from: [{{source: {{principals: ['{}']}}}}], to: [{{operation: {{paths: [/1/*]}}}}]}}]}}, \
         {{name: twos, namespace: shop, rules: [{{from: [{{source: {{principals: ['cluster.local/ns/shop/sa/other']}}}}]}}]}}], \
         virtual_hosts: [{{name: all, domains: ['*'], routes: [{{forward: {{cluster: web, upgrades: [websocket]}}}}]}}]}}]",
        id(WAYPOINT),
        id("shop/web"),
        id(GATEWAY).trim_start_matches("spiffe://"),
    )
}

/// What the near proxy's requests are led to: the service `at` the waypoint.
fn led(at: SocketAddr) -> String {
    format!(
        "clusters: [{{name: w, endpoints: ['{at}'], hbone: {{identity: '{}', peers: ['{}']}}}}], \
         routes: [{{name: t, virtual_hosts: [{{name: all, domains: ['*'], routes: [{{forward: {{cluster: w, upgrades: [websocket]}}}}]}}]}}]",
        id(GATEWAY),
        id(WAYPOINT)
    )
}

impl Mesh {
    fn start() -> Option<Self> {
        let place = Place::start_with(
            |hosts| hosts.mesh("").access_log_format("json"),
            |near, hosts| {
                near.listener("web", address(LISTEN), Listen::Http("t"))
                    .http(led(hosts.envoy.at(SERVICE)))
            },
        )?;
        let endpoint = Endpoint::start(&place.server);
        let host: &Host = &place.envoy;
        let config = Config::new()
            .access_log_format("json")
            .node(format!("identities: {}", place.authority.identities(&[WAYPOINT])))
            .listener("mesh", host.at(HBONE), Listen::Hbone(id(WAYPOINT)))
            .http(served(host.at(SERVICE), place.server.at(PORT)));
        let waypoint = Proxy::start(place.far.node.world(), host, &config);
        let client = place.near.node.host();
        Some(Self {
            place,
            waypoint,
            client,
            _endpoint: endpoint,
        })
    }

    fn get(&self, path: &str) -> (String, bool) {
        get(&self.client, address(LISTEN), path)
    }
}

#[test]
fn requests_go_through_the_waypoint_and_on_to_the_endpoints_node() {
    let Some(mesh) = Mesh::start() else { return };
    for _ in 0..3 {
        let answer = mesh.get("/1/whole");
        assert!(
            answer.0.starts_with("HTTP/1.1 200") && answer.0.ends_with("whole"),
            "{answer:?}"
        );
    }
    let line = logged(&mesh.waypoint, "/1/whole");
    for part in [
        format!("\"src.identity\":\"{}\"", id(GATEWAY)),
        "\"listener\":\"mesh\"".to_owned(),
        format!("\"upstream_host\":\"{}\"", mesh.place.server.at(PORT)),
    ] {
        assert!(line.contains(&part), "{part}: {line}");
    }
    // The endpoint's node sees the waypoint, which is who asks there.
    let far = wait::some(wait::SOON, "a tunnel at the far node", || {
        let tunnels = mesh.place.far.proxy.connections();
        tunnels
            .into_iter()
            .map(|line| line.to_string())
            .find(|line| line.contains(&id(WAYPOINT)))
    });
    assert!(far.contains("hbone"), "{far}");
    let metrics = mesh.waypoint.request("GET", "/metrics").body;
    let counted = metrics.lines().find(|line| {
        line.starts_with("istio_requests_total")
            && line.contains("connection_security_policy=\"mutual_tls\"")
            && line.contains("response_code=\"200\"")
    });
    assert!(counted.is_some_and(|line| line.ends_with(" 3")), "{counted:?}");
}

/// Mutant: a session whose source is not the verified peer (`Peer::session`).
#[test]
fn policies_of_the_waypoint_decide_by_the_certificate_of_the_client() {
    let Some(mesh) = Mesh::start() else { return };
    let answer = mesh.get("/2/whole");
    assert!(
        answer.0.starts_with("HTTP/1.1 403") && answer.0.ends_with("RBAC: access denied"),
        "{answer:?}"
    );
    assert!(mesh.get("/1/whole").0.ends_with("whole"));
}

#[test]
fn what_the_waypoint_does_not_serve_is_refused() {
    let Some(mesh) = Mesh::start() else { return };
    let text = mesh.place.near.proxy.config_text();
    let elsewhere = text.replace(
        &mesh.place.envoy.at(SERVICE).to_string(),
        &mesh.place.envoy.at(SERVICE + 1).to_string(),
    );
    let before = mesh.place.near.proxy.config_updates("applied");
    mesh.place.near.proxy.replace_file(&elsewhere);
    wait::eventually(wait::SOON, "the configuration is applied", || {
        mesh.place.near.proxy.config_updates("applied") > before
    });
    let answer = mesh.get("/1/whole");
    assert!(answer.0.starts_with("HTTP/1.1 503"), "{answer:?}");
    let lines = wait::some(wait::SOON, "the refusal is logged", || {
        let mut lines = mesh.waypoint.access_lines().into_iter();
        lines.find(|line| line.text.contains("does not serve"))
    });
    assert!(lines.text.contains(&id(GATEWAY)), "{}", lines.text);
}

#[test]
fn an_answer_that_breaks_off_is_broken_for_the_client_too() {
    let Some(mut mesh) = Mesh::start() else { return };
    let Mesh { client, waypoint, .. } = &mut mesh;
    assert_breaks_off(client, || waypoint.process().kill());
}

/// Mutant: `Tunnelled::reset_on_drop` that does nothing, and a drop that ends what was not ended: with both the client sees an end.
#[test]
fn bytes_that_break_off_do_not_look_complete() {
    let Some(mesh) = Mesh::start() else { return };
    let mut stream = mesh.client.connect_unbound(address(LISTEN)).expect("the proxy accepts");
    stream.set_read_timeout(Some(wait::soon())).expect("a socket");
    let request =
        "GET /1/upgrade-and-reset HTTP/1.1\r\nhost: web.test\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    stream.write_all(request.as_bytes()).expect("sent");
    let mut all = Vec::new();
    let ended = stream.read_to_end(&mut all);
    assert!(all.starts_with(b"HTTP/1.1 101"), "{}", all.escape_ascii());
    assert!(ended.is_err(), "an end after {}", all.escape_ascii());
}

#[test]
fn a_drain_loses_no_request() {
    let Some(mut mesh) = Mesh::start() else { return };
    let client = mesh.place.near.node.host();
    let asking = thread::spawn(move || {
        let answers = (0..200).map(|_| get(&client, address(LISTEN), "/1/whole"));
        answers.take_while(|answer| answer.0.ends_with("whole")).count()
    });
    wait::eventually(wait::SOON, "requests are served", || {
        mesh.waypoint.access_lines().len() > 20
    });
    let status = mesh.waypoint.terminate(wait::SOON);
    assert!(status.success(), "{status}");
    let before = asking.join().expect("the client");
    let served = mesh.waypoint.access_lines();
    let whole = served.iter().filter(|line| line.text.contains("\"response_code\":200"));
    assert!(before > 20 && whole.count() >= before, "{before} of {}", served.len());
}
