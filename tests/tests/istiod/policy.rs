//! AuthorizationPolicy and PeerAuthentication as istiod sends them, with real traffic of captured pods.

use std::io::Read;
use std::net::TcpStream;

use underpass_tests::istiod::Pod as PodObject;
use underpass_tests::load::{ask, under_load};
use underpass_tests::{Host, Server, is_reset, wait};

use crate::place::{PORT, Place, object};

/// A second port of the server.
const OTHER_PORT: u16 = 9090;

/// An AuthorizationPolicy of `namespace/name` with its `spec` in YAML.
fn policy(name: &str, spec: &str) -> String {
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

fn peer_authentication(name: &str, spec: &str) -> String {
    policy(name, spec).replace("AuthorizationPolicy", "PeerAuthentication")
}

const WEB: &str = "selector: {matchLabels: {app: web}}";
const CLIENT: &str = "principals: [cluster.local/ns/shop/sa/client]";

/// The world of a scenario: who may reach the server under a policy, and who may not.
struct Scenario {
    name: &'static str,
    policy: String,
    client_may: bool,
    other_may: bool,
}

fn scenario(name: &'static str, policy: String, client_may: bool, other_may: bool) -> Scenario {
    Scenario {
        name,
        policy,
        client_may,
        other_may,
    }
}

fn rule(scope: &str, action: &str, source: &str) -> String {
    format!("{scope} action: {action}, rules: [{{from: [{{source: {{{source}}}}}]}}]")
}

/// Each scope and each matcher of a source, one after the other, on one node.
#[test]
fn a_policy_of_each_scope_decides_who_reaches_a_server() {
    let Some(place) = Place::start() else { return };
    let server = Server::start(&place.web, PORT);
    let to = server.address();
    let selected = format!("{WEB},");
    let client_ip = format!("ipBlocks: [{}]", place.client.ip());
    let scenarios = [
        scenario(
            "selector, principal",
            policy("shop/rule", &rule(&selected, "ALLOW", CLIENT)),
            true,
            false,
        ),
        scenario(
            "selector, namespace",
            policy("shop/rule", &rule(&selected, "ALLOW", "namespaces: [else]")),
            false,
            true,
        ),
        scenario(
            "namespace, principal",
            policy("shop/rule", &rule("", "DENY", CLIENT)),
            false,
            true,
        ),
        scenario(
            "namespace, not of it",
            policy("shop/rule", &rule("", "DENY", "notNamespaces: [shop]")),
            true,
            false,
        ),
        scenario(
            "namespace, address",
            policy("shop/rule", &rule("", "DENY", &client_ip)),
            false,
            true,
        ),
        scenario(
            "mesh, namespace",
            policy("istio-system/rule", &rule("", "DENY", "namespaces: [else]")),
            true,
            false,
        ),
        scenario(
            "mesh, account by suffix",
            policy("istio-system/rule", &rule("", "DENY", "principals: ['*/sa/client']")),
            false,
            true,
        ),
        scenario(
            "another namespace's",
            policy("else/rule", &rule("", "DENY", CLIENT)),
            true,
            true,
        ),
        scenario(
            "another pod's",
            policy(
                "shop/rule",
                &rule("selector: {matchLabels: {app: client}},", "DENY", CLIENT),
            ),
            true,
            true,
        ),
        scenario(
            "an allowance of nothing",
            policy("shop/rule", &format!("{selected} action: ALLOW")),
            false,
            false,
        ),
        // What is left of it at L4 denies everybody (recorded in 02-l4-policy).
        scenario(
            "a denial by method",
            policy(
                "shop/rule",
                &format!("{selected} action: DENY, rules: [{{to: [{{operation: {{methods: [GET]}}}}]}}]"),
            ),
            false,
            false,
        ),
    ];
    for Scenario {
        name,
        policy,
        client_may,
        other_may,
    } in scenarios
    {
        // From a state that is unlike both.
        place.istiod.apply("rule", "");
        for host in [&*place.client, &*place.other] {
            place.wait_until_answered(host, to);
        }
        place.istiod.apply("rule", &policy);
        if client_may && other_may {
            place.wait_for_policy(if policy.contains("else") {
                "else/rule"
            } else {
                "shop/rule"
            });
        }
        for (host, may) in [(&place.client, client_may), (&place.other, other_may)] {
            eprintln!("{name}: {} may: {may}", host.name());
            if may {
                place.wait_until_answered(host, to);
            } else {
                place.wait_until_refused(host, to);
            }
        }
        // Both at once are as they should be.
        assert_eq!(
            (ask(&place.client, to).is_ok(), ask(&place.other, to).is_ok()),
            (client_may, other_may),
            "{name}"
        );
    }
}

#[test]
fn a_policy_of_ports_decides_by_the_port_of_the_pod() {
    let Some(place) = Place::start() else { return };
    let (open, closed) = (Server::start(&place.web, PORT), Server::start(&place.web, OTHER_PORT));
    place.wait_until_answered(&place.client, closed.address());
    let deny = format!("{WEB}, action: DENY, rules: [{{to: [{{operation: {{ports: ['{OTHER_PORT}']}}}}]}}]");
    place.istiod.apply("ports", policy("shop/ports", &deny));
    place.wait_until_refused(&place.client, closed.address());
    ask(&place.client, open.address()).expect("the other port is not meant");
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
fn assert_reset(stream: &mut TcpStream) {
    stream.set_read_timeout(Some(wait::SOON)).expect("SO_RCVTIMEO");
    let end = stream.read(&mut [0]).expect_err("a reset");
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
