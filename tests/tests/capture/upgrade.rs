//! Proxies and agents are replaced under a constant load of new connections: none is refused, none is lost.

use std::net::{Ipv6Addr, SocketAddr};

use underpass_tests::{Config, Server, wait};

use crate::place::{AWAY_VIP, Hosts, PORT, Place, VIP, address, ask, is_refusal};
use underpass_tests::load::{Lane, Tally, under_load};

/// Round trips on each lane before and after each change.
const SOME: u64 = 50;

fn config(hosts: &Hosts) -> Config {
    // Connections may take as long as they like to end, and to begin while there is no agent: under emulation its start takes longer than the default (5 s).
    hosts.config("").node("timeouts: {drain: 1h, connect: 1m}")
}

/// The ends of the load: captured on both sides, by a virtual address, to another node, and into a pod from outside.
fn lanes(place: &Place) -> [Lane<'_>; 5] {
    [
        (&place.client, place.server.at(PORT)),
        (&place.other, place.server.at6(PORT)),
        (&place.client, address(VIP)),
        (&place.other, address(AWAY_VIP)),
        (&place.stranger, place.server.at(PORT)),
    ]
}

fn servers(place: &Place) -> [Server; 2] {
    let everything = SocketAddr::from((Ipv6Addr::UNSPECIFIED, PORT));
    [
        Server::start_at(&place.server, everything),
        Server::start(&place.remote, PORT),
    ]
}

fn go_on(tallies: &[Tally]) {
    for tally in tallies {
        tally.wait_for(SOME);
        tally.assert_none_lost();
    }
}

/// Every connection that a client believes to have had, a server had too; `others` are not of the load.
#[track_caller]
fn assert_accounts(tallies: &[Tally], servers: &[Server], others: u64) {
    let answered: u64 = tallies.iter().map(Tally::answered).sum();
    let accepted: usize = servers.iter().map(Server::accepted).sum();
    assert_eq!(accepted as u64, answered + others, "accepted, answered");
}

#[test]
fn a_proxy_is_replaced_by_its_successor() {
    let Some(mut place) = Place::start(config) else { return };
    let servers = servers(&place);
    let mut held = ask(&place.client, place.server.at(PORT)).expect("served");
    let mut successors = Vec::new();
    let tallies = under_load(&lanes(&place), |tallies| {
        for _ in 0..3 {
            go_on(tallies);
            successors.push(place.node.start_proxy(&config(&place)));
        }
        go_on(tallies);
    });
    assert_accounts(&tallies, &servers, 1);
    let last = successors.pop();
    for mut successor in successors {
        let ended = successor.process().wait(wait::SOON);
        assert!(
            ended.success(),
            "replaced itself, it ends: {ended}\n{}",
            successor.log()
        );
    }
    Server::echo(&mut held, b"still here").expect("an open connection goes on");
    assert!(
        place.proxy.process().exit_status().is_none(),
        "the first waits for its last connection"
    );
    drop(held);
    let ended = place.proxy.process().wait(wait::SOON);
    assert!(ended.success(), "{ended}\n{}", place.proxy.log());
    ask(&place.client, place.server.at(PORT)).expect("served by the last");
    drop(last);
}

#[test]
fn an_agent_is_replaced_by_its_successor() {
    let Some(mut place) = Place::start(config) else { return };
    let servers = servers(&place);
    let mut held = ask(&place.client, place.server.at(PORT)).expect("served");
    let mut agents = Vec::new();
    let tallies = under_load(&lanes(&place), |tallies| {
        for _ in 0..3 {
            go_on(tallies);
            agents.push(place.node.start_agent());
        }
        go_on(tallies);
    });
    assert_accounts(&tallies, &servers, 1);
    let last = agents.pop();
    for agent in agents.iter_mut().chain([&mut place.agent]) {
        let ended = agent.process().wait(wait::SOON);
        assert!(ended.success(), "replaced, it ends: {ended}\n{}", agent.log());
    }
    Server::echo(&mut held, b"still here").expect("an open connection goes on");
    // The last one is in charge, of the proxy too.
    assert_eq!(place.node.pods().len(), 3);
    place.node.enrol(&place.stranger);
    let stream = ask(&place.stranger, place.server.at(PORT)).expect_err("a workload that the mesh doesn't know");
    assert!(is_refusal(&stream), "{stream}");
    drop(last);
}

#[test]
fn a_killed_agent_is_restarted_while_the_proxy_serves() {
    let Some(mut place) = Place::start(config) else { return };
    let servers = servers(&place);
    let mut held = ask(&place.client, place.server.at(PORT)).expect("served");
    let mut agent = None;
    let hosts = [&place.client, &place.other, &place.stranger].map(|pod| (**pod).clone());
    let lanes = [
        (&hosts[0], place.server.at(PORT)),
        (&hosts[1], address(AWAY_VIP)),
        (&hosts[2], place.server.at6(PORT)),
    ];
    let (mut successor, tallies) = {
        let mut successor = None;
        let tallies = under_load(&lanes, |tallies| {
            for _ in 0..3 {
                go_on(tallies);
                // Until there is an agent again the proxy has few sockets of the pods left: connections wait, and none is lost.
                agent.as_mut().unwrap_or(&mut place.agent).process().kill();
                agent = Some(place.node.start_agent());
                go_on(tallies);
            }
            // The new agent hands the pods to a new proxy as if it had always been there.
            successor = Some(place.node.start_proxy(&config(&place)));
            go_on(tallies);
        });
        (successor.expect("started"), tallies)
    };
    assert_accounts(&tallies, &servers, 1);
    Server::echo(&mut held, b"still here").expect("an open connection goes on");
    drop(held);
    let ended = place.proxy.process().wait(wait::SOON);
    assert!(ended.success(), "{ended}\n{}", place.proxy.log());
    assert!(successor.process().exit_status().is_none());
    ask(&place.client, place.server.at(PORT)).expect("served by the new proxy");
}
