//! Services as istiod sends them: which endpoint a captured client gets, and what happens when they come and go under load.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use underpass_tests::capture::Pod;
use underpass_tests::istiod::{Pod as PodObject, Service};
use underpass_tests::load::{Tally, ask, round_trip, under_load};
use underpass_tests::{AccessLine, Host, Listen, Server, Target, Way, open, wait};

use crate::place::{PORT, Place, config, ip, object};

/// Connections that are enough to see every endpoint that is chosen at all: with two alike, one stays unseen once in 2^40 times.
const MANY: usize = 40;

const VIP: &str = "10.96.0.10";

pub(crate) fn vip() -> SocketAddr {
    (ip(VIP), 80).into()
}

pub(crate) fn web() -> Service {
    Service::new("shop/web", ip(VIP)).port(80, PORT)
}

/// The servers that answer `host` at `to`.
#[track_caller]
pub(crate) fn answerers(host: &Host, to: SocketAddr) -> BTreeSet<SocketAddr> {
    let answer = |_| {
        let mut stream = host.connect_unbound(to).unwrap_or_else(|e| panic!("{to}: {e}"));
        round_trip(&mut stream).unwrap_or_else(|e| panic!("{to}: {e}"))
    };
    (0..MANY).map(answer).collect()
}

/// Waits until exactly these servers answer.
#[track_caller]
pub(crate) fn wait_for_answerers(host: &Host, to: SocketAddr, expected: &[&Server]) {
    let expected: BTreeSet<SocketAddr> = expected.iter().map(|server| server.address()).collect();
    let what = format!("{to} is {expected:?}");
    wait::eventually(wait::SOON, &what, || {
        ask(host, to).is_ok() && {
            let found: Option<BTreeSet<SocketAddr>> = (0..MANY)
                .map(|_| {
                    host.connect_unbound(to)
                        .and_then(|mut stream| round_trip(&mut stream))
                        .ok()
                })
                .collect();
            found.as_ref() == Some(&expected)
        }
    });
}

/// `shop/web` on this node (zone a), `shop/near` on this node too, and `shop/far` on the other (zone b), all endpoints of services.
struct Three {
    place: Place,
    near: Pod,
    servers: [Server; 3],
}

impl Three {
    fn start() -> Option<Self> {
        let place = Place::start()?;
        let near = place.node.pod("shop/near");
        place.istiod.apply("near", object(&near).labels("app: web"));
        place.node.enrol(&near);
        // Not of the mesh, so that it is reached by plain TCP.
        let far = PodObject::new("shop/far", place.remote.ip())
            .labels("app: web")
            .on("node-b");
        place.istiod.apply("far", far.uncaptured());
        for name in ["shop/near", "shop/far"] {
            place.wait_for_workload(name);
        }
        let servers = [&*place.web, &*near, &place.remote].map(|host| Server::start(host, PORT));
        Some(Self { place, near, servers })
    }
}

#[test]
fn traffic_distribution_decides_which_endpoints_are_chosen() {
    let Some(three) = Three::start() else { return };
    let [web_server, near, far] = &three.servers;
    let place = &three.place;
    for (name, service, expected) in [
        ("anywhere", web(), vec![web_server, near, far]),
        (
            "same node",
            web().spec("trafficDistribution: PreferSameNode"),
            vec![web_server, near],
        ),
        (
            "same zone",
            web().spec("trafficDistribution: PreferSameZone"),
            vec![web_server, near],
        ),
        (
            "close",
            web().spec("trafficDistribution: PreferClose"),
            vec![web_server, near],
        ),
        (
            "annotated",
            web().annotated("networking.istio.io/traffic-distribution: PreferSameNode"),
            vec![web_server, near],
        ),
        (
            "local",
            web().spec("internalTrafficPolicy: Local"),
            vec![web_server, near],
        ),
    ] {
        eprintln!("{name}");
        place.istiod.apply("web", service);
        wait_for_answerers(&place.client, vip(), &expected);
    }
    // With nobody near, a preference goes further, and `Local` nowhere.
    place.istiod.apply("shop-web", object(&place.web).labels("app: gone"));
    place.istiod.apply("near", object(&three.near).labels("app: gone"));
    place.wait_until_refused(&place.client, vip());
    place
        .istiod
        .apply("web", web().spec("trafficDistribution: PreferSameNode"));
    wait_for_answerers(&place.client, vip(), &[far]);
}

#[test]
fn a_pod_that_is_not_ready_gets_no_new_connections_and_keeps_its_open_ones() {
    let Some(three) = Three::start() else { return };
    let [web_server, near, far] = &three.servers;
    let place = &three.place;
    place.istiod.apply("web", web());
    wait_for_answerers(&place.client, vip(), &[web_server, near, far]);
    let mut open = ask(&place.client, web_server.address()).expect("ready");
    place.istiod.apply("shop-web", object(&place.web).unready());
    wait_for_answerers(&place.client, vip(), &[near, far]);
    Server::echo(&mut open, b"still here").expect("an open connection goes on");
    place.istiod.apply("web", web().spec("publishNotReadyAddresses: true"));
    wait_for_answerers(&place.client, vip(), &[web_server, near, far]);
}

#[test]
fn a_headless_service_is_its_pods() {
    let Some(three) = Three::start() else { return };
    let [web_server, near, far] = &three.servers;
    let place = &three.place;
    place.istiod.apply(
        "headless",
        Service::headless("shop/headless")
            .selecting("app: web")
            .port(PORT, PORT),
    );
    // By the pods' own addresses from a captured pod, by its name from a listener.
    for server in [web_server, near, far] {
        assert_eq!(
            answerers(&place.client, server.address()),
            BTreeSet::from([server.address()])
        );
    }
    let listener = place.node.host().loopback().at(15001);
    place
        .proxy
        .apply(&config(&place.istiod).listener("connect", listener, Listen::Connect));
    let name = "headless.shop.svc.cluster.local";
    let mut found = BTreeSet::new();
    wait::eventually(
        wait::SOON,
        "all pods of the headless service answer by its name",
        || {
            let host = place.node.host().loopback();
            if let Ok(mut stream) = open(&host, Way::Connect(listener), Target::Name(name, PORT)) {
                found.extend(round_trip(&mut stream));
            }
            found.len() == 3
        },
    );
}

/// ServiceEntry with its `spec` in YAML.
pub(crate) fn service_entry(name: &str, spec: &str) -> String {
    format!(
        "---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{namespace: shop, name: {name}}}
spec: {{{spec}}}
"
    )
}

#[test]
fn a_service_entry_brings_what_is_not_of_the_cluster() {
    let Some(three) = Three::start() else { return };
    let [_, _, far] = &three.servers;
    let place = &three.place;
    let address = place.remote.ip();
    let ports = format!("ports: [{{number: 80, name: tcp, protocol: TCP, targetPort: {PORT}}}]");
    let fixed = format!(
        "hosts: [static.example.com], addresses: [10.96.0.50], location: MESH_EXTERNAL, resolution: STATIC, {ports}, \
         endpoints: [{{address: {address}}}]"
    );
    place.istiod.apply("static", service_entry("static", &fixed));
    wait_for_answerers(&place.client, "10.96.0.50:80".parse().unwrap(), &[far]);
    place.istiod.delete("static");
    place.wait_until_refused(&place.client, "10.96.0.50:80".parse().unwrap());
}

/// `localhost` is a name that every machine's resolver knows, and the proxy's own host a client that may go there.
#[test]
fn an_endpoint_that_is_a_name_is_asked_of_dns() {
    let Some(place) = Place::start() else { return };
    let ports = format!("ports: [{{number: 80, name: tcp, protocol: TCP, targetPort: {PORT}}}]");
    let here = Server::start(&place.node.host().loopback(), PORT);
    let dns = format!(
        "hosts: [dns.example.com], addresses: [10.96.0.51], location: MESH_EXTERNAL, resolution: DNS, {ports}, \
         endpoints: [{{address: localhost}}]"
    );
    place.istiod.apply("dns", service_entry("dns", &dns));
    let listener = place.node.host().loopback().at(15001);
    place
        .proxy
        .apply(&config(&place.istiod).listener("connect", listener, Listen::Connect));
    wait::eventually(wait::SOON, "the name of the entry is resolved", || {
        let host = place.node.host().loopback();
        let stream = open(&host, Way::Connect(listener), Target::Name("dns.example.com", 80));
        stream.is_ok_and(|mut stream| round_trip(&mut stream).ok() == Some(here.address()))
    });
    let line = wait::some(wait::SOON, "the log names the service", || {
        let lines = place.proxy.access_lines();
        lines
            .into_iter()
            .find(|line| line.field("dst.service") == "dns.example.com")
    });
    assert_eq!(
        (line.field("dst.addr"), line.field("dst.workload")),
        (&*here.address().to_string(), "dns")
    );
    // A captured pod must not get at what listens on the node's loopback, by whatever name.
    place.wait_until_refused(&place.client, "10.96.0.51:80".parse().unwrap());
    let accepted = here.accepted();
    assert!(ask(&place.client, "10.96.0.51:80".parse().unwrap()).is_err());
    assert_eq!(here.accepted(), accepted);
    place.istiod.apply(
        "dns",
        service_entry("dns", &dns.replace("localhost", "no-such-host.invalid")),
    );
    let host = place.node.host().loopback();
    wait::eventually(wait::SOON, "a name that nobody has is nobody", || {
        open(&host, Way::Connect(listener), Target::Name("dns.example.com", 80)).is_err()
    });
}

/// Endpoints and services come and go; what stays is never disturbed, and what goes ends as it should.
#[test]
fn services_change_under_load_and_no_connection_that_could_be_made_is_lost() {
    let Some(three) = Three::start() else { return };
    let place = &three.place;
    place.istiod.apply("web", web());
    wait_for_answerers(&place.client, vip(), &three.servers.each_ref());
    let go_on = |tallies: &[Tally]| {
        for tally in tallies {
            tally.wait_for(30);
            tally.assert_none_lost();
        }
    };
    let lanes = [
        (&*place.client, vip()),
        (&*place.other, vip()),
        (&*place.client, three.servers[0].address()),
    ];
    let added: SocketAddr = (ip("10.96.0.11"), 80).into();
    let another = Service::new("shop/another", added.ip()).port(80, PORT);
    under_load(&lanes, |tallies| {
        for round in 0..3 {
            go_on(tallies);
            // Added, scaled to zero, and up again.
            for labels in ["app: web", "app: none", "app: web"] {
                place.istiod.apply("another", another.clone().selecting(labels));
                match labels {
                    "app: web" => place.wait_until_answered(&place.other, added),
                    _ => place.wait_until_refused(&place.other, added),
                }
                go_on(tallies);
            }
            place.istiod.apply("near", object(&three.near).labels("app: gone"));
            wait_for_answerers(&place.other, added, &[&three.servers[0], &three.servers[2]]);
            go_on(tallies);
            place.istiod.apply("near", object(&three.near).labels("app: web"));
            wait_for_answerers(&place.other, added, &three.servers.each_ref());
            place.istiod.delete("another");
            place.wait_until_refused(&place.other, added);
            go_on(tallies);
            eprintln!(
                "round {round}: {:?}",
                tallies.iter().map(Tally::answered).collect::<Vec<_>>()
            );
        }
    });
}

#[test]
fn a_service_scaled_to_zero_refuses_and_comes_back() {
    let Some(place) = Place::start() else { return };
    let server = Server::start(&place.web, PORT);
    place.istiod.apply("web", web());
    wait_for_answerers(&place.client, vip(), &[&server]);
    let mut open = ask(&place.client, vip()).expect("served");
    place.istiod.apply("shop-web", object(&place.web).labels("app: gone"));
    place.wait_until_refused(&place.client, vip());
    let says_why =
        |line: &AccessLine| (line.field("reason"), line.field("response_flags")) == ("no_healthy_endpoint", "UH");
    wait::eventually(wait::SOON, "the log says why", || {
        place.proxy.access_lines().iter().any(says_why)
    });
    // An open connection to an endpoint that has left has the drain's time.
    Server::echo(&mut open, b"still here").expect("not cut at once");
    place.istiod.apply("shop-web", object(&place.web));
    wait_for_answerers(&place.client, vip(), &[&server]);
}
