//! Ways to connect: marks, cgroups, socket options, other kinds of sockets.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::thread;

use serde_json::Value;
use underpass_tests::capture::can_guard;
use underpass_tests::{Host, Process, Server};

use super::Battle;
use crate::place::{DENY_ALL, PORT, PROGRAM_DEADLINE, Place, address, ask, inside, is_refusal};

impl Battle {
    /// The adversary's ways to `target`, with what each needs to know.
    fn ways(&self, target: SocketAddr) -> Vec<String> {
        let (pod, other) = (&self.place.client, &self.place.other);
        let of_family = |host: &Host| if target.is_ipv4() { host.ip() } else { host.ip6() };
        let (own, another) = (of_family(pod), of_family(other));
        let (nowhere, loopback) = if target.is_ipv4() {
            ("192.0.2.1", "127.0.0.1")
        } else {
            ("2001:db8::1", "::1")
        };
        let mut ways: Vec<String> = [
            "plainly",
            "marked",
            "from-own-cgroup",
            "non-blocking",
            "mapped",
            "fastopen-message",
            "fastopen-connect",
            "forked",
            "threads",
            "mptcp",
            "repaired",
            "on-device eth0",
            "on-device lo",
        ]
        .map(str::to_owned)
        .into();
        for source in [
            nowhere.to_owned(),
            another.to_string(),
            own.to_string(),
            target.ip().to_string(),
        ] {
            ways.push(format!("freebind {source}"));
            ways.push(format!("transparent {source}"));
        }
        ways.push(format!("bound {loopback}"));
        ways.push(format!(
            "again {}",
            SocketAddr::new(loopback.parse().expect("an address"), PORT)
        ));
        ways.push(format!("again {}", SocketAddr::new(another, PORT)));
        // A cgroup where no program of ours is: what a mistake in the node's set-up would look like. The guard makes up for it.
        if can_guard() {
            ways.push(format!("from-cgroup {}", self.place.node.outer_cgroup().display()));
        }
        ways
    }

    /// Tries every way to every target, many at once; answers what came of each, with its way.
    fn try_all(&self) -> BTreeMap<String, Vec<Value>> {
        let mut results = BTreeMap::new();
        for target in self.targets() {
            let ways = self.ways(target);
            thread::scope(|scope| {
                let tries: Vec<_> = ways
                    .iter()
                    .map(|way| scope.spawn(move || (way, self.connect(way, target))))
                    .collect();
                for attempt in tries {
                    let (way, outcome) = attempt.join().expect("no attempt panics");
                    results.insert(format!("{way} to {target}"), outcome);
                }
            });
        }
        results
    }

    /// `inside connect WAY`, in the pod of `client`.
    pub(super) fn connect(&self, way: &str, target: SocketAddr) -> Vec<Value> {
        let mut words = way.split(' ');
        let how = words.next().expect("a way");
        let mut command = inside();
        command.args(["connect", how, &target.to_string()]).args(words);
        let said = Process::run(
            self.place.node.world(),
            &self.place.client,
            how,
            command,
            PROGRAM_DEADLINE,
        );
        let outcomes = said.lines().filter_map(|line| serde_json::from_str(line).ok());
        outcomes.collect()
    }
}

#[test]
fn no_way_to_connect_leads_past_a_policy_that_denies() {
    let Some(battle) = Battle::start(true) else { return };
    for (way, outcomes) in battle.try_all() {
        assert!(!outcomes.is_empty(), "{way}: no outcome");
        let answered = outcomes.iter().any(|outcome| !outcome["echoed"].is_null());
        assert!(!answered, "{way}: {outcomes:?}");
    }
    battle.assert_untouched();
}

#[test]
fn every_way_to_connect_is_policed_or_refused() {
    let Some(battle) = Battle::start(false) else { return };
    let own = battle.place.client.addresses();
    let mut answered = 0;
    for (way, outcomes) in battle.try_all() {
        let echoed = outcomes.iter().map(|outcome| &outcome["echoed"]);
        for echoed in echoed.filter(|echoed| !echoed.is_null()) {
            battle.assert_policed(&way, echoed);
            answered += 1;
        }
    }
    // Plainly, marked, in another thread… are ordinary connections.
    assert!(answered >= battle.targets().len() * 8, "{answered} were answered");
    for server in &battle.servers {
        let arrivals = server.arrivals();
        let others = arrivals
            .iter()
            .filter(|arrival| !own.contains(&arrival.accepted_from.ip()));
        assert_eq!(others.count(), 0, "nobody was seen but the client: {arrivals:?}");
    }
}

impl Battle {
    /// The proxy knows a connection that was answered, and both ends were told the truth.
    #[track_caller]
    fn assert_policed(&self, way: &str, echoed: &Value) {
        let at = |end: &str| {
            let at = address(echoed[end].as_str().expect("an address"));
            SocketAddr::new(at.ip().to_canonical(), at.port())
        };
        let (local, server, own) = (at("local"), at("server"), self.place.client.addresses());
        // An address that isn't the pod's is not believed by anybody: the pod's own is in its place.
        let of_family = own
            .iter()
            .find(|ip| ip.is_ipv4() == local.is_ipv4())
            .expect("dual stack");
        let is_own = own.contains(&local.ip());
        let believed = SocketAddr::new(if is_own { local.ip() } else { *of_family }, local.port());
        let line = self.place.proxy.access_line(believed);
        assert_eq!(line.field("src.workload"), "client", "{way}: {}", line.text);
        let target = way.rsplit(' ').next().expect("a target");
        // Known: the note is on MPTCP's subflow, and getpeername(2) asks the socket above it, which is told the pod's own listener.
        if !way.starts_with("mptcp") {
            assert_eq!(at("peer"), address(target), "{way}: what getpeername said");
        }
        let of = self
            .servers
            .iter()
            .find(|one| one.address() == server)
            .expect("one of ours");
        // On another node only the address is the client's, not the port.
        let is_here = self.place.server.addresses().contains(&server.ip());
        let expected = |from: SocketAddr| from == local || !is_here && from.ip() == local.ip();
        let arrivals = of.arrivals();
        let seen = arrivals.iter().any(|arrival| expected(arrival.accepted_from));
        assert!(seen || !is_own, "{way}: the server saw {arrivals:?}");
    }
}

#[test]
fn link_local_addresses_are_policed_too() {
    let Some(battle) = Battle::start(true) else { return };
    let place = &battle.place;
    let device = place.node.device_of(&place.client);
    let link_local = |said: String| -> IpAddr {
        let words: Vec<&str> = said.split_whitespace().collect();
        let address = words.iter().position(|word| *word == "inet6").map(|at| words[at + 1]);
        address
            .and_then(|net| net.split('/').next())
            .expect("an address")
            .parse()
            .expect("an address")
    };
    let show = ["-6", "-o", "addr", "show", "scope", "link", "dev"];
    let of_node = link_local(place.node.tool("ip", show.iter().copied().chain([device.as_str()])));
    let mut command = Process::command("ip");
    command.args(show).arg("eth0");
    let of_pod = link_local(Process::run(
        place.node.world(),
        &place.client,
        "ip",
        command,
        PROGRAM_DEADLINE,
    ));
    let scoped = |host: &Host, device: &str, ip: IpAddr| {
        let index = host.device_index(device);
        let IpAddr::V6(v6) = ip else {
            panic!("{ip} is not of IPv6")
        };
        SocketAddr::from(SocketAddrV6::new(v6, PORT, 0, index))
    };
    let node = place.node.host();
    let outside = Server::start_at(&node, scoped(&node, &device, of_node));
    let inside = Server::start_at(&place.client, scoped(&place.client, "eth0", of_pod));
    let out = ask(&place.client, scoped(&place.client, "eth0", of_node)).expect_err("denied");
    let into = ask(&node, scoped(&node, &device, of_pod)).expect_err("denied");
    for error in [&out, &into] {
        assert!(
            is_refusal(error) || error.kind() == ErrorKind::NetworkUnreachable,
            "{error}"
        );
    }
    assert_eq!((outside.accepted(), inside.accepted()), (0, 0));
    ask(&place.client, scoped(&place.client, "eth0", of_pod)).expect("its own talk with itself");
}

#[test]
fn connections_from_before_enrolment_are_ended() {
    let Some(place) = Place::start(|hosts| {
        let known = hosts
            .config("")
            .workload_at("nowhere/stranger", &hosts.stranger.addresses(), "");
        known.policy("mesh/nothing", DENY_ALL)
    }) else {
        return;
    };
    let pod = &place.stranger;
    let (inside, outside) = (Server::start(pod, PORT), Server::start(&place.remote, PORT));
    let mut own = ask(pod, inside.address()).expect("with itself");
    let mut streams = [
        ask(pod, outside.address()).expect("not captured yet"),
        ask(&place.remote, inside.address()).expect("not captured yet"),
    ];
    place.node.enrol(pod);
    for stream in &mut streams {
        assert!(Server::echo(stream, b"still there?").is_err(), "{stream:?}");
    }
    Server::echo(&mut own, b"still there?").expect("a talk with itself goes on");
    let before = (inside.accepted(), outside.accepted());
    place.assert_refused(pod, outside.address());
    place.assert_refused(&place.remote, inside.address());
    assert_eq!((inside.accepted(), outside.accepted()), before);
}
