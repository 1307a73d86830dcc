//! What happens to a node when istiod is not there: nothing, to those it serves.

use std::fs;
use std::net::SocketAddr;

use serde_json::Value;
use underpass_tests::istiod::{Pod as PodObject, Service};
use underpass_tests::load::{ask, under_load};
use underpass_tests::{Config, Listen, Process, Proxy, Server, wait};

use crate::cluster::{address, cluster};
use crate::place::{PORT, Place, config, ip, object};

/// Only the pod `shop/client` may reach `shop/web`.
const ONLY_CLIENT: &str = "---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {namespace: shop, name: only-client}
spec:
  selector: {matchLabels: {app: web}}
  action: ALLOW
  rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/client]}}]}]
";

fn state(proxy: &Proxy) -> Value {
    let status = proxy.status();
    status["istiod"]["state"].clone()
}

/// Killed, started again with the same objects, frozen, and started again with others: under load throughout.
#[test]
fn istiod_may_go_and_come_and_no_connection_notices() {
    let Some(mut place) = Place::start() else { return };
    let server = Server::start(&place.web, PORT);
    let vip: SocketAddr = (ip("10.96.0.10"), 80).into();
    place
        .istiod
        .apply("web", Service::new("shop/web", vip.ip()).port(80, PORT));
    place.istiod.apply("policy", ONLY_CLIENT);
    place.wait_until_answered(&place.client, vip);
    place.wait_until_refused(&place.other, vip);
    let Place {
        proxy,
        istiod,
        client,
        other,
        ..
    } = &mut place;
    let lanes = [
        (&**client, vip),
        (&**client, server.address()),
        (&**other, server.address()),
    ];
    let accepted_of_others = |server: &Server, other: &underpass_tests::Host| {
        server
            .arrivals()
            .iter()
            .filter(|arrival| arrival.peer.ip() == other.ip())
            .count()
    };
    let before = accepted_of_others(&server, other);
    under_load(&lanes, |tallies| {
        let go_on = || {
            for tally in &tallies[..2] {
                tally.wait_for(100);
                tally.assert_none_lost();
            }
            let refused = tallies[2].refused();
            wait::eventually(wait::SOON, "who is denied is denied on", || {
                tallies[2].refused() > refused + 20
            });
            assert_eq!(tallies[2].answered(), 0, "nobody else is let in");
        };
        go_on();
        istiod.kill();
        wait::eventually(wait::SOON, "the loss is noticed", || state(proxy) == "disconnected");
        go_on();
        let ready = proxy.request("GET", "/ready");
        assert_eq!(
            (ready.status, &*ready.body),
            (200, "ready\n"),
            "what it said last is in force"
        );
        istiod.start_again();
        wait::eventually(2 * wait::SOON, "istiod is there again", || state(proxy) == "connected");
        go_on();
        istiod.freeze(true);
        go_on();
        istiod.freeze(false);
        istiod.kill();
        istiod.apply("late", PodObject::new("shop/late", address(9, 9)));
        istiod.start_again();
        wait::eventually(2 * wait::SOON, "what is new is in force", || {
            proxy.status()["mesh"]["workloads"].as_u64() == Some(5)
        });
        go_on();
    });
    assert_eq!(
        accepted_of_others(&server, other),
        before,
        "who is denied is not seen by the server"
    );
    let metrics = proxy.metrics();
    assert!(metrics.sum("underpass_xds_disconnects_total", &[]) >= 2);
    assert_eq!(metrics.sum("underpass_xds_connected", &[]), 1);
}

/// A node whose istiod has never answered has no policies, and so must serve nobody.
#[test]
fn without_a_mesh_nobody_is_served_and_it_is_said_why() {
    let Some((world, mut istiod)) = cluster() else { return };
    let host = world.host();
    let server = Server::start(&world.host(), PORT);
    istiod.kill();
    let listener = host.at(15001);
    let yaml = Config::new()
        .node(istiod.settings(crate::cluster::NODE_TOKEN))
        .listener("relay", listener, Listen::fixed(server.address()))
        .yaml(host.at(15000), &world.directory().join("access.log"));
    let file = world.directory().join("node.yaml");
    fs::write(&file, yaml).unwrap();
    let mut process: Process = Proxy::command(&world, &host, &["run", "--config", &file.display().to_string()]);
    wait::eventually(wait::SOON, "it listens", || host.connect(listener).is_ok());
    let ready = || Proxy::ask_admin(&host, host.at(15000), "/ready").unwrap();
    assert_eq!((ready().status, &*ready().body), (503, "waiting for istiod\n"));
    let mut early = host.connect(listener).unwrap();
    wait::eventually(wait::SOON, "the loss is noticed", || {
        let status = Proxy::ask_admin(&host, host.at(15000), "/status").unwrap();
        status.body.contains("no connection to istiod")
    });
    assert_eq!(server.accepted(), 0, "nobody is let through without a policy");
    istiod.start_again();
    wait::eventually(2 * wait::SOON, "it is ready", || ready().status == 200);
    // Who came early has waited, and is served.
    Server::greeting(&mut early).expect("served");
    assert!(process.exit_status().is_none(), "{}", process.last_output());
}

/// A proxy without a mesh takes no pods from the one that has one, and a proxy of the next release has its mesh first.
#[test]
fn a_successor_takes_over_when_it_has_the_mesh_and_not_before() {
    let Some(mut place) = Place::start() else { return };
    let server = Server::start(&place.web, PORT);
    let config = config(&place.istiod);
    place.istiod.kill();
    let Place {
        istiod, client, node, ..
    } = &mut place;
    let lanes = [(&**client, server.address())];
    let mut successor = None;
    under_load(&lanes, |tallies| {
        let go_on = || {
            tallies[0].wait_for(50);
            tallies[0].assert_none_lost();
        };
        let next = node.launch_proxy(&config);
        wait::eventually(wait::SOON, "the successor knows that there is no istiod", || {
            next.try_request("GET", "/status")
                .is_ok_and(|status| status.body.contains("no connection to istiod"))
        });
        go_on();
        assert_eq!(node.proxies().len(), 1, "it has not asked for pods");
        istiod.start_again();
        successor = Some(next.ready());
        go_on();
    });
    wait::eventually(wait::SOON, "the first one is done", || {
        place.proxy.process().exit_status().is_some()
    });
    ask(&place.client, server.address()).expect("served by the successor");
}

/// Certificates of the node's pods, and what is rejected, are in view.
#[test]
fn status_tells_of_istiod_certificates_and_pods() {
    let Some(place) = Place::start() else { return };
    let identities = |status: &Value| {
        let certificates = status["identities"]["certificates"].as_array().unwrap().clone();
        let valid = certificates.iter().filter(|one| one["state"] == "valid");
        valid
            .map(|one| one["identity"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    let of = |account: &str| format!("spiffe://cluster.local/ns/{account}");
    let expected = vec![of("else/sa/other"), of("shop/sa/client"), of("shop/sa/web")];
    wait::eventually(wait::SOON, "the pods have certificates", || {
        identities(&place.proxy.status()) == expected
    });
    let status = place.proxy.status();
    assert_eq!(status["istiod"]["synced"], true);
    assert_eq!(status["istiod"]["rejected_count"], 0);
    assert!(status["istiod"]["types"]["Address"]["acks"].as_u64().unwrap() > 0);
    assert_eq!(status["pods"].as_array().unwrap().len(), 3);
    let admin = place.proxy.admin().to_string();
    let shown = place.node.program(0, &["status", "--admin", &admin]);
    assert!(shown.status.success(), "{shown:?}");
    for words in [
        "istiod: connected at 127.0.0.1:15012",
        "3 of trust domain cluster.local, 1 roots",
        "23h 59m",
    ] {
        assert!(shown.stdout.contains(words), "{words}: {}", shown.stdout);
    }
    let metrics = place.proxy.metrics();
    assert_eq!(metrics.sum("underpass_certificates", &[("state", "valid")]), 3);
    assert!(
        metrics.sum(
            "underpass_xds_responses_total",
            &[("type", "Address"), ("result", "ack")]
        ) > 0
    );
    assert_eq!(metrics.sum("underpass_xds_responses_total", &[("result", "nack")]), 0);

    // An account that changes is another certificate, and the old one is given up.
    place
        .istiod
        .apply("shop-client", object(&place.client).account("renamed"));
    let expected = vec![of("else/sa/other"), of("shop/sa/renamed"), of("shop/sa/web")];
    wait::eventually(wait::SOON, "the new account's certificate", || {
        identities(&place.proxy.status()) == expected
    });
    place.node.remove(&place.other);
    wait::eventually(wait::SOON, "a pod that is gone needs none", || {
        identities(&place.proxy.status()).len() == 2
    });
}

/// A certificate of ten seconds is renewed after four to five, again and again; with the CA gone it lasts until it expires, and is renewed when
/// there is one again.
#[test]
fn certificates_are_renewed_in_time_and_expire_only_without_a_ca() {
    let Some(mut place) = Place::start_as(|istiod| config(istiod).node("identities: {validity: 10s}")) else {
        return;
    };
    let client = "spiffe://cluster.local/ns/shop/sa/client";
    let certificate = |proxy: &Proxy| -> (String, String) {
        let status = proxy.status();
        let certificates = status["identities"]["certificates"].as_array().unwrap();
        let of_client = certificates.iter().find(|one| one["identity"] == client).unwrap();
        let serial = of_client["serial"].as_str().unwrap_or_default();
        (of_client["state"].as_str().unwrap().to_owned(), serial.to_owned())
    };
    let mut serials = std::collections::BTreeSet::new();
    wait::eventually(wait::SOON, "the first certificate", || {
        certificate(&place.proxy).0 == "valid"
    });
    wait::eventually(2 * wait::SOON, "it is renewed twice, and valid all the time", || {
        let (state, serial) = certificate(&place.proxy);
        assert_eq!(state, "valid");
        serials.insert(serial);
        serials.len() == 3
    });
    place.istiod.kill();
    wait::eventually(2 * wait::SOON, "without a CA it expires", || {
        certificate(&place.proxy).0 == "expired"
    });
    assert!(
        place
            .proxy
            .metrics()
            .sum("underpass_certificates", &[("state", "expired")])
            >= 1
    );
    let failure = place.proxy.status()["identities"]["certificates"][0]["last_error"].clone();
    assert!(
        failure.as_str().unwrap().contains("istiod") || failure.as_str().unwrap().contains("CA"),
        "{failure}"
    );
    place.istiod.start_again();
    wait::eventually(6 * wait::SOON, "with one it is renewed", || {
        certificate(&place.proxy).0 == "valid"
    });
}
