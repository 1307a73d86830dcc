//! Node to node.

use std::io::Read;

use underpass_tests::load::{ask, is_refusal};
use underpass_tests::{Server, is_reset, wait};

use crate::place::{ONLY_CLIENT, PORT, Place, STRICT, VIP, address};

#[test]
fn pods_of_two_nodes_speak_by_tunnel_and_know_nothing_of_it() {
    let Some(place) = Place::start(|hosts| hosts.mesh("")) else {
        return;
    };
    let listening = Server::start_at(&place.server, place.server.at(PORT));
    for to in [place.server.at(PORT), address(VIP)] {
        let stream = ask(&place.client, to).unwrap_or_else(|e| panic!("{to}: {e}"));
        assert_eq!(stream.peer_addr().expect("open"), to);
        let source = stream.local_addr().expect("open");
        let arrival = *listening.arrivals().last().expect("one");
        assert_eq!(
            arrival.accepted_from.ip(),
            source.ip(),
            "the application sees the client's pod"
        );
        assert_eq!(arrival.local, place.server.at(PORT));
        let tunnels = place.near.proxy.request("GET", "/tunnels").body;
        assert!(tunnels.contains("sa/client") && tunnels.contains(":15008"), "{tunnels}");
        drop(stream);
        let near = place.near.proxy.access_line(source);
        near.assert_reason("completed", "-");
        for (field, expected) in [
            ("src.identity", "spiffe://cluster.local/ns/shop/sa/client"),
            ("dst.identity", "spiffe://cluster.local/ns/shop/sa/web"),
            ("connection_security_policy", "mutual_tls"),
            ("listener", "outbound"),
        ] {
            assert_eq!(near.field(field), expected, "{}", near.text);
        }
        assert_eq!(near.field("hbone.peer"), format!("{}:15008", place.server.ip()));
        assert_eq!(near.field("dst.addr"), place.server.at(PORT).to_string());
        let far = wait::some(wait::SOON, "the other node's line", || {
            place.far.proxy.access_lines().into_iter().last()
        });
        assert_eq!(
            (far.field("listener"), far.field("src.identity")),
            ("hbone", near.field("src.identity"))
        );
        let bytes = |line: &underpass_tests::AccessLine| (line.number("sent_bytes"), line.number("received_bytes"));
        assert_eq!(bytes(&near), bytes(&far), "both count the same");
    }
    let tls = ("connection_security_policy", "mutual_tls");
    for (side, mine, others) in [
        (&place.near, "source", "destination"),
        (&place.far, "destination", "source"),
    ] {
        let metrics = side.proxy.metrics();
        let opened = |reporter| metrics.sum("istio_tcp_connections_opened_total", &[("reporter", reporter), tls]);
        assert_eq!(
            (opened(mine), opened(others)),
            (2, 0),
            "each node tells of its own side"
        );
    }
}

#[test]
fn policy_at_the_destination_sees_the_clients_certificate() {
    let Some(place) = Place::start(|hosts| hosts.mesh("shop/only-client").policy("shop/only-client", ONLY_CLIENT))
    else {
        return;
    };
    let listening = Server::start_at(&place.server, place.server.at(PORT));
    ask(&place.client, address(VIP)).expect("allowed");
    let error = ask(&place.other, address(VIP)).expect_err("denied");
    assert!(is_refusal(&error), "{error}");
    assert_eq!(
        listening.arrivals().len(),
        1,
        "the application has seen the allowed one only"
    );
}

/// The destination's word counts where the client's node knows of no policy.
#[test]
fn what_only_the_destinations_node_denies_is_refused_with_its_reason() {
    let Some(place) = Place::start(|hosts| hosts.mesh("")) else {
        return;
    };
    let listening = Server::start_at(&place.server, place.server.at(PORT));
    let mut open = ask(&place.client, address(VIP)).expect("allowed");
    let text = place.far.proxy.config_text();
    let deny = "authorization_policies:\n- {name: p, namespace: shop, scope: NAMESPACE, action: DENY, \
                groups: [{rules: [{matches: [{principals: [cluster.local/ns/shop/sa/client]}]}]}]}\n";
    place.far.proxy.replace_file(&(text + deny));
    let error = open.read(&mut [0; 64]).expect_err("revoked");
    assert!(is_reset(&error), "{error}");
    let error = ask(&place.client, address(VIP)).expect_err("denied");
    assert!(is_refusal(&error), "{error}");
    let refused = wait::some(wait::SOON, "it is logged", || {
        let mut lines = place.near.proxy.access_lines().into_iter();
        lines.rfind(|line| line.field("reason") == "policy_denied")
    });
    assert_eq!(refused.field("response_flags"), "DENY");
    assert!(refused.field("detail").contains("401"), "{}", refused.text);
    wait::eventually(wait::SOON, "the other node logs both", || {
        let far = place.far.proxy.access_lines();
        let count = |reason| far.iter().filter(|line| line.field("reason") == reason).count();
        (count("policy_revoked"), count("policy_denied")) == (1, 1)
    });
    ask(&place.other, address(VIP)).expect("another is not concerned");
    assert_eq!(listening.arrivals().len(), 2);
}

#[test]
fn strict_lets_tunnels_in_and_plain_tcp_not() {
    let Some(place) = Place::start(|hosts| hosts.mesh("").policy("istio-system/strict", STRICT)) else {
        return;
    };
    let listening = Server::start_at(&place.server, place.server.at(PORT));
    ask(&place.client, place.server.at(PORT)).expect("by tunnel");
    let stranger = place.near.node.pod("nowhere/stranger");
    let error = ask(&stranger, place.server.at(PORT)).expect_err("in plain text");
    assert!(is_refusal(&error), "{error}");
    assert_eq!(listening.arrivals().len(), 1);
}

#[test]
fn a_destination_that_is_gone_is_as_gone_as_without_a_tunnel() {
    let Some(place) = Place::start(|hosts| hosts.mesh("")) else {
        return;
    };
    let error = ask(&place.client, place.server.at(PORT)).expect_err("nobody listens");
    assert!(is_refusal(&error), "{error}");
    let line = wait::some(wait::SOON, "it is logged", || {
        place.near.proxy.access_lines().into_iter().last()
    });
    line.assert_reason("connect_failed", "UF");
    assert!(line.field("detail").contains("503"), "{}", line.text);
}
