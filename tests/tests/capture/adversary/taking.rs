//! What belongs to others: the proxy's ports and sockets, other pods' addresses, the node's limits.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use underpass_tests::{Process, Server, wait};

use super::Battle;
use crate::place::{PORT, PROGRAM_DEADLINE, Place, address, ask, inside, round_trip};

#[test]
fn the_proxys_own_sockets_are_of_no_use_to_the_pod() {
    let Some(battle) = Battle::start(false) else { return };
    let place = &battle.place;
    // Everything that listens in the pod's namespace is the agent's: nothing of ours runs there.
    let mut ss = Process::command("ss");
    ss.args(["-Htln"]);
    let said = Process::run(place.node.world(), &place.client, "ss", ss, PROGRAM_DEADLINE);
    let listeners: Vec<SocketAddr> = said
        .lines()
        .filter_map(|line| line.split_whitespace().nth(3))
        .map(|at| at.parse().unwrap_or_else(|e| panic!("{at}: {e}")))
        .collect();
    assert!(listeners.len() >= 4, "outbound and inbound, two families: {said}");
    for listener in &listeners {
        place.assert_refused(&place.client, *listener);
        if !listener.ip().is_loopback() {
            // From elsewhere it is an address like any other, at which no application listens.
            for host in [&*place.other, &place.stranger, &place.remote] {
                place.assert_refused(host, *listener);
            }
        }
    }
    wait::eventually(wait::SOON, "none of it goes round in circles", || {
        place.proxy.connections().is_empty()
    });
    ask(&place.client, battle.servers[0].address()).expect("the pod is still served");
}

#[test]
fn a_pod_that_takes_the_proxys_port_only_harms_itself() {
    let Some(battle) = Battle::start(true) else { return };
    let place = &battle.place;
    for target in battle.targets() {
        for outcome in battle.connect("thief", target) {
            assert!(outcome["echoed"].is_null(), "{target}: {outcome}");
        }
    }
    battle.assert_untouched();
    place.proxy.apply(&place.config(""));
    for server in &battle.servers {
        ask(&place.other, server.address()).expect("the other pod doesn't notice");
    }
    // Its inbound listeners are gone: who is not captured would reach it unchecked.
    let listening = Server::start(&place.client, PORT);
    place.assert_refused(&place.stranger, listening.address());
    assert_eq!(listening.accepted(), 0);
}

#[test]
fn an_application_that_has_the_proxys_port_already_keeps_it() {
    let Some(place) = Place::start(|hosts| hosts.config("")) else {
        return;
    };
    let early = place.node.pod("shop/early");
    place
        .proxy
        .apply(&place.config("").workload_at("shop/early", &early.addresses(), ""));
    let own = [early.at(15001), early.at6(15001)].map(|at| Server::start_at(&early, at));
    place.node.enrol(&early);
    let server = Server::start(&place.server, PORT);
    let stream = ask(&early, server.address()).expect("it is captured, through another port");
    let source = stream.local_addr().expect("open");
    drop(stream);
    assert_eq!(place.proxy.access_line(source).field("src.workload"), "early");
    for application in &own {
        let mut stream = place.client.connect_unbound(application.address()).expect("connect");
        assert_eq!(round_trip(&mut stream).expect("an echo"), application.address());
        ask(&early, application.address()).expect("its own talk with itself");
    }
}

#[test]
fn an_address_that_a_pod_gives_itself_stays_the_other_pods() {
    let Some(mut place) = Place::start(|hosts| hosts.config("")) else {
        return;
    };
    let servers = [place.server.at(PORT), place.server.at6(PORT)].map(|at| Server::start_at(&place.server, at));
    let thief = &place.other;
    thief.ip_command(&format!("addr add {}/32 dev eth0", place.server.ip()));
    thief.ip_command(&format!("addr add {}/128 dev eth0 nodad", place.server.ip6()));
    let traps = [place.server.at(PORT), place.server.at6(PORT)].map(|at| Server::start_at(thief, at));
    let check = |place: &Place, when: &str| {
        for server in &servers {
            let before = server.accepted();
            let stream = ask(&place.client, server.address()).unwrap_or_else(|e| panic!("{when}: {e}"));
            let own = stream.local_addr().expect("open");
            assert_eq!(server.accepted(), before + 1, "{when}");
            assert_eq!(
                server.arrivals().last().expect("one").accepted_from,
                own,
                "{when}: still announced to the server"
            );
        }
        assert_eq!(traps.iter().map(Server::accepted).sum::<usize>(), 0, "{when}");
    };
    check(&place, "at once");
    place.node.enrol(&place.other);
    check(&place, "after the thief is enrolled again");
    place.agent.process().kill();
    place.agent = place.node.start_agent();
    let serves_again = || ask(&place.client, servers[0].address()).is_ok();
    wait::eventually(wait::SOON, "the new agent serves", serves_again);
    check(&place, "after the agent's restart");
}

#[test]
fn an_address_that_a_pod_gives_itself_early_is_not_lost_to_its_owner() {
    let Some(place) = Place::start(|hosts| {
        let config = hosts.config("");
        config.workload_at("nowhere/stranger", &hosts.stranger.addresses(), "")
    }) else {
        return;
    };
    let (thief, owner) = (&place.other, &place.stranger);
    thief.ip_command(&format!("addr add {}/32 dev eth0", owner.ip()));
    thief.ip_command(&format!("addr add {}/128 dev eth0 nodad", owner.ip6()));
    place.node.enrol(thief);
    place.node.enrol(owner);
    for (at, away) in [
        (owner.at(PORT), place.remote.at(PORT)),
        (owner.at6(PORT), place.remote.at6(PORT)),
    ] {
        let server = Server::start_at(owner, at);
        let stream = ask(&place.client, at).unwrap_or_else(|e| panic!("{at}: {e}"));
        let own = stream.local_addr().expect("open");
        assert_eq!(server.arrivals()[0].accepted_from, own, "it is announced to the owner");
        let remote = Server::start_at(&place.remote, away);
        let stream = ask(owner, away).expect("served as itself");
        let own = stream.local_addr().expect("open");
        let seen = remote.arrivals()[0].accepted_from.ip();
        assert!(owner.addresses().contains(&seen), "{seen}");
        drop(stream);
        assert_eq!(place.proxy.access_line(own).field("src.workload"), "stranger");
    }
}

#[test]
fn a_flood_of_connects_is_the_floods_own_problem() {
    let limits = "limits: {connections_per_workload: 500}";
    let Some(place) = Place::start(|hosts| hosts.config("").node(limits)) else {
        return;
    };
    let server = Server::start(&place.server, PORT);
    let blackhole = address("192.0.2.1:80");
    let flood = |how: &str, target: SocketAddr, number: &str| {
        let mut command = inside();
        command.args([how, &target.to_string(), number]);
        Process::start(place.node.world(), &place.other, how, command)
    };
    let before = place.agent.descriptors();
    // More open ones than a workload may have, then some that are dropped at once and some that never get an answer.
    let held = flood("hold", server.address(), "2000");
    wait::eventually(PROGRAM_DEADLINE, "connections are held", || {
        held.output().contains("holds")
    });
    let floods = [server.address(), blackhole].map(|target| flood("flood", target, "2"));
    let mut slowest = Duration::ZERO;
    let enough = |process: &Process| process.output().contains("begun 50000\n");
    wait::eventually(PROGRAM_DEADLINE, "the flood has been going on for long", || {
        let start = Instant::now();
        ask(&place.client, server.address()).expect("another pod is served");
        slowest = slowest.max(start.elapsed());
        floods.iter().all(enough)
    });
    assert!(slowest < Duration::from_secs(5), "another pod waited for {slowest:?}");
    drop((floods, held));
    wait::eventually(wait::SOON, "nothing is left of it", || {
        place.proxy.connections().is_empty() && place.node.map_entries("HANDSHAKES") == 0
    });
    ask(&place.other, server.address()).expect("the pod itself is served again");
    wait::eventually(wait::SOON, "the agent holds no more than before", || {
        place.agent.descriptors() <= before + 2
    });
}

/// As many as a process may have descriptors on the machines that this runs on, and more than a pod may have handshakes under way.
const BEGUN: usize = 16_000;
/// What is under way of one pod, of 262 144 places that all share (`HANDSHAKE_LIMIT` of the agent).
const UNDER_WAY: usize = 8192;

#[test]
fn handshakes_that_a_pod_begins_and_nobody_takes_up_are_limited() {
    let Some(mut place) = Place::start(|hosts| hosts.config("")) else {
        return;
    };
    let server = Server::start(&place.server, PORT);
    // Nobody accepts for a while: handshakes pile up behind the listener's queue.
    place.proxy.process().signal(Signal::SIGSTOP).expect("it runs");
    let mut command = inside();
    command.args(["begin", &server.address().to_string(), &BEGUN.to_string()]);
    let greedy = Process::start(place.node.world(), &place.other, "begin", command);
    let said = wait::some(PROGRAM_DEADLINE, "all are begun", || {
        let output = greedy.output();
        output
            .strip_prefix("refused ")
            .and_then(|number| number.trim().parse::<usize>().ok())
    });
    assert!(said > 0, "none was refused");
    let under_way = place.node.map_entries("HANDSHAKES");
    assert!(
        (1..=UNDER_WAY).contains(&under_way),
        "{under_way} under way, {said} refused"
    );
    let mut waiting = place
        .client
        .connect_unbound(server.address())
        .expect("the other pod's queue is its own");
    place.proxy.process().signal(Signal::SIGCONT).expect("it runs");
    round_trip(&mut waiting).expect("and is served first thing");
    drop((greedy, waiting));
    wait::eventually(wait::SOON, "nothing is left of it", || {
        place.node.map_entries("HANDSHAKES") == 0 && place.proxy.connections().is_empty()
    });
    ask(&place.other, server.address()).expect("served again");
}
