//! The mesh moves from one root to another, as operators do it (believe both, sign with the new one, believe it alone), and each step is a restart of
//! istiod, so that the certificate authority is gone for a while too; under continuous traffic and with handshakes all the while.

use std::collections::BTreeSet;

use underpass_tests::capture::CaptureNode;
use underpass_tests::istiod::{Istiod, PluggedIn};
use underpass_tests::load::{Tally, under_load};
use underpass_tests::{Authority, Host, Server, wait};

use super::peer::Peer;
use super::{Nodes, Side, wait_until, web_servers};
use crate::policy::{CLIENT, WEB, policy, rule};

/// Renewed after five to six seconds.
const VALIDITY: &str = "identities: {validity: 12s}";

fn serials(side: &Side) -> BTreeSet<String> {
    side.certificates().into_iter().map(|(_, _, serial)| serial).collect()
}

/// Waits until each certificate of both nodes is another one, and they believe so many roots.
fn wait_for_renewal(nodes: &Nodes, before: &[BTreeSet<String>; 2], roots: u64) {
    for (side, before) in nodes.sides().into_iter().zip(before) {
        wait::eventually(2 * wait::SOON, "every certificate is renewed", || {
            let certificates = side.certificates();
            let valid = certificates.iter().all(|(_, state, _)| state == "valid");
            assert!(valid, "a certificate was not renewed in time: {certificates:?}");
            side.roots() == roots && serials(side).is_disjoint(before)
        });
    }
}

/// istiod goes, and comes again with another authority.
fn step(nodes: &mut Nodes, signer: &Authority, roots: &[&Authority], meanwhile: impl Fn()) {
    let serials = nodes.sides().map(serials);
    nodes.istiod.kill();
    nodes.istiod.plug_in(PluggedIn { signer, roots });
    meanwhile();
    nodes.istiod.start_again();
    wait_for_renewal(nodes, &serials, roots.len() as u64);
    meanwhile();
}

/// Of the lanes, the first two are allowed and the last two denied.
fn assert_all_goes_on(tallies: &[Tally]) {
    for tally in &tallies[..2] {
        tally.wait_for(20);
        tally.assert_none_lost();
    }
    for tally in &tallies[2..] {
        let refused = tally.refused();
        wait::eventually(wait::SOON, "who is denied is denied on", || {
            tally.refused() > refused + 5
        });
        assert_eq!(tally.answered(), 0, "nobody else is let in");
    }
}

#[test]
fn a_mesh_moves_to_another_root_and_no_connection_notices() {
    let directory = tempfile::tempdir().expect("a folder");
    let [old, new, foreign] = ["old", "new", "foreign"].map(|name| Authority::new(&directory.path().join(name)));
    let start = |node: &CaptureNode| {
        let authority = PluggedIn {
            signer: &old,
            roots: &[&old],
        };
        Istiod::start_plugged_in(node.world(), &node.host(), authority)
    };
    let Some(mut nodes) = Nodes::start_with(VALIDITY, start, [&[], &[]]) else {
        return;
    };
    let servers = web_servers(&nodes);
    let only_client = rule(&format!("{WEB},"), "ALLOW", CLIENT);
    nodes.istiod.apply("rule", policy("shop/rule", &only_client));
    wait_until(&nodes.others(), &servers, false);
    wait_until(&nodes.clients(), &servers, true);

    // What the load uses, apart from what the steps change.
    let [clients, others] = [nodes.clients(), nodes.others()].map(|hosts| hosts.map(Host::clone));
    let (outside, web) = (nodes.b.stranger.clone(), nodes.a.web.clone());
    let lanes = [
        (&clients[0], servers[1].address()),
        (&clients[1], servers[0].address()),
        (&others[0], servers[1].address()),
        (&others[1], servers[0].address()),
    ];
    let arrived = || {
        let arrivals = servers.iter().flat_map(Server::arrivals);
        let of_others = arrivals.filter(|arrival| others.iter().any(|other| other.ip() == arrival.peer.ip()));
        of_others.count()
    };
    let before = arrived();
    let of = |authority| Peer::new(authority, &[&old, &new]);
    let (of_old, of_new, impostor) = (of(&old), of(&new), of(&foreign));
    let refused = |peer: &Peer, who: &str| {
        peer.shake_hands(&outside, &web)
            .expect_err(&format!("{who} is not believed"))
    };
    under_load(&lanes, |tallies| {
        let go_on = || {
            assert_all_goes_on(tallies);
            refused(&impostor, "a root that istiod has never told of");
        };
        refused(&of_new, "the new root");
        of_old.shaking_hands(&outside, &web, || step(&mut nodes, &old, &[&old, &new], go_on));
        of_old.shaking_hands(&outside, &web, || {
            of_new.shaking_hands(&outside, &web, || step(&mut nodes, &new, &[&old, &new], go_on));
        });
        of_new.shaking_hands(&outside, &web, || step(&mut nodes, &new, &[&new], go_on));
        refused(&of_old, "the old root");
    });
    assert_eq!(arrived(), before, "no server has seen who is denied");
}
