//! AuthorizationPolicy and PeerAuthentication as istiod sends them, with real traffic of captured pods.

use std::io::{ErrorKind, Read};
use std::net::TcpStream;

use underpass_tests::istiod::Pod as PodObject;
use underpass_tests::load::{ask, under_load};
use underpass_tests::{Host, Server, is_reset, wait};

use crate::place::{PORT, Place, object};

/// A second port of the server.
const OTHER_PORT: u16 = 9090;

/// An AuthorizationPolicy of `namespace/name` with its `spec` in YAML.
pub(crate) fn policy(name: &str, spec: &str) -> String {
    let (namespace, name) = name.split_once('/').expect("namespace/name");
    format!(
        "---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{namespace: {namespace}, name: {name}}}
spec: {{{spec}}}
"
    )
}

pub(crate) fn peer_authentication(name: &str, spec: &str) -> String {
    policy(name, spec).replace("AuthorizationPolicy", "PeerAuthentication")
}

pub(crate) const WEB: &str = "selector: {matchLabels: {app: web}}";
pub(crate) const CLIENT: &str = "principals: [cluster.local/ns/shop/sa/client]";

pub(crate) fn rule(scope: &str, action: &str, source: &str) -> String {
    format!("{scope} action: {action}, rules: [{{from: [{{source: {{{source}}}}}]}}]")
}

#[test]
fn a_denial_resets_the_open_connections_that_it_concerns_and_no_others() {
    let Some(place) = Place::start() else { return };
    let server = Server::start(&place.web, PORT);
    let mut denied = ask(&place.client, server.address()).expect("allowed so far");
    let mut spared = ask(&place.other, server.address()).expect("allowed so far");
    place
        .istiod
        .apply("rule", policy("shop/rule", &rule("", "DENY", CLIENT)));
    assert_reset(&mut denied);
    wait::eventually(wait::SOON, "the server has seen it too", || server.resets() == 1);
    Server::echo(&mut spared, b"still here").expect("the other pod's connection goes on");
    let source = denied.local_addr().expect("bound");
    place.proxy.access_line(source).assert_reason("policy_revoked", "DENY");
}

#[track_caller]
pub(crate) fn assert_reset(stream: &mut TcpStream) {
    stream.set_read_timeout(Some(wait::SOON)).expect("SO_RCVTIMEO");
    let end = loop {
        match stream.read(&mut [0]).expect_err("a reset") {
            // A test that is stopped and goes on is not at the end of its wait.
            interrupted if interrupted.kind() == ErrorKind::Interrupted => {}
            end => break end,
        }
    };
    assert!(is_reset(&end), "{end}");
}

/// A pod that is not of the mesh speaks plain text, and so has no identity.
#[test]
fn strict_mtls_keeps_plain_text_out_and_lets_the_meshs_pods_in() {
    let Some(place) = Place::start() else { return };
    let (server, other) = (Server::start(&place.web, PORT), Server::start(&place.web, OTHER_PORT));
    // One that istiod does not know, and one whose address istiod says is a pod of the same account as the server's own client.
    let far = PodObject::new("shop/far", place.remote.ip())
        .account("client")
        .on("node-b");
    place.istiod.apply("far", far.uncaptured());
    place.wait_for_workload("shop/far");
    let outside: [&Host; 2] = [&place.stranger, &place.remote];
    for host in outside {
        place.wait_until_answered(host, server.address());
    }
    place
        .istiod
        .apply("mtls", peer_authentication("shop/default", "mtls: {mode: STRICT}"));
    for host in outside {
        place.wait_until_refused(host, server.address());
    }
    let before = server.accepted();
    for host in outside {
        assert!(ask(host, server.address()).is_err());
    }
    assert_eq!(server.accepted(), before, "who is refused is not seen by the server");
    ask(&place.client, server.address()).expect("the mesh's own");
    ask(&place.other, server.address()).expect("the mesh's own");

    let but_for = format!("{WEB}, mtls: {{mode: STRICT}}, portLevelMtls: {{{OTHER_PORT}: {{mode: PERMISSIVE}}}}");
    place.istiod.apply("mtls", peer_authentication("shop/web", &but_for));
    place.wait_until_answered(&place.stranger, other.address());
    place.wait_until_refused(&place.stranger, server.address());
    place.istiod.apply(
        "mtls",
        peer_authentication("istio-system/default", "mtls: {mode: STRICT}"),
    );
    place.wait_until_refused(&place.stranger, other.address());
    place.istiod.delete("mtls");
    for host in outside {
        place.wait_until_answered(host, server.address());
    }
}

/// The identity that policy sees is that of the account the pod runs as, also when that changes.
#[test]
fn a_pod_that_gets_another_account_is_somebody_else() {
    let Some(place) = Place::start() else { return };
    let server = Server::start(&place.web, PORT);
    place
        .istiod
        .apply("rule", policy("shop/rule", &rule(&format!("{WEB},"), "ALLOW", CLIENT)));
    place.wait_until_refused(&place.other, server.address());
    ask(&place.client, server.address()).expect("allowed");
    let demoted: PodObject = object(&place.client).account("nobody");
    place.istiod.apply("shop-client", demoted);
    place.wait_until_refused(&place.client, server.address());
    place.istiod.apply("shop-client", object(&place.client));
    place.wait_until_answered(&place.client, server.address());
}

/// istiod tells of the pods that a new policy selects before it tells of the policy, and a pod that refers to a policy that is not there
/// refuses everybody. Nobody may notice.
#[test]
fn a_policy_that_comes_and_goes_refuses_nobody_whom_it_allows() {
    let Some(place) = Place::start() else { return };
    let server = Server::start(&place.web, PORT);
    let allow = policy("shop/rule", &rule(&format!("{WEB},"), "ALLOW", CLIENT));
    let lanes = [(&*place.client, server.address())];
    under_load(&lanes, |tallies| {
        for _ in 0..10 {
            place.istiod.apply("rule", &allow);
            place.wait_until_refused(&place.other, server.address());
            tallies[0].wait_for(20);
            place.istiod.apply("rule", "");
            place.wait_until_answered(&place.other, server.address());
            tallies[0].wait_for(20);
            tallies[0].assert_none_lost();
        }
    });
}
