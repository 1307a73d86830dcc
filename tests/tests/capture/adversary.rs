//! Root inside an enrolled pod, who does not want to be captured.
//!
//! Whatever it tries is either policed (the server sees who it is, and the proxy has it in its log) or refused; where policy lets nobody
//! through, nothing arrives: no connection, no byte, no SYN. And it never concerns another pod.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::Duration;

use serde_json::Value;
use underpass_tests::{Host, Need, Process, Server, available, wait};

use crate::place::{DENY_ALL, PORT, PROGRAM_DEADLINE, Place, VIP, VIP6, address, ask, is_refusal};

/// Of TCP to a server; `barrier` of what is sent behind a packet that must not arrive.
const WATCH: &str = "table inet watch {
  counter syns { }
  counter segments { }
  counter barrier { }
  chain arriving {
    type filter hook prerouting priority -300
    iif lo accept
    tcp flags & (syn | ack) == syn counter name syns
    meta l4proto tcp counter name segments
    udp dport 9999 counter name barrier
  }
}";

/// A place where an adversary is, and the servers that it wants to get at.
struct Battle {
    place: Place,
    servers: Vec<Server>,
}

impl Battle {
    fn start(policed: bool) -> Option<Self> {
        if !available(&[Need::Program("nft"), Need::Program("ss")]) {
            return None;
        }
        let place = Place::start(|hosts| {
            let config = hosts.config("");
            if policed {
                config.policy("mesh/nothing", DENY_ALL)
            } else {
                config
            }
        })?;
        let servers = [&*place.server, &place.remote]
            .into_iter()
            .flat_map(|host| [host.at(PORT), host.at6(PORT)].map(|at| Server::start_at(host, at)))
            .collect();
        for host in [&*place.server, &place.remote] {
            nft(&place, host, WATCH);
        }
        Some(Self { place, servers })
    }

    fn targets(&self) -> Vec<SocketAddr> {
        let direct = self.servers.iter().map(Server::address);
        direct.chain([VIP, VIP6].map(address)).collect()
    }

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
        // A cgroup where no program of ours is: what a mistake in the node's set-up would look like.
        ways.push(format!("from-cgroup {}", self.place.node.outer_cgroup().display()));
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
    fn connect(&self, way: &str, target: SocketAddr) -> Vec<Value> {
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

    fn accepted(&self) -> usize {
        self.servers.iter().map(Server::accepted).sum()
    }

    /// Nothing has come through, by any account.
    #[track_caller]
    fn assert_untouched(&self) {
        assert_eq!(self.accepted(), 0, "no server has accepted anything");
        assert_eq!(
            self.servers.iter().map(Server::received).sum::<u64>(),
            0,
            "or read a byte"
        );
        for host in [&*self.place.server, &self.place.remote] {
            assert_eq!(counter(&self.place, host, "syns"), 0, "a SYN has reached {}", host.ip());
        }
    }
}

fn inside() -> std::process::Command {
    Process::command(env!("CARGO_BIN_EXE_inside"))
}

fn nft(place: &Place, host: &Host, rules: &str) {
    let mut command = Process::command("nft");
    command.arg(rules);
    Process::run(place.node.world(), host, "nft", command, PROGRAM_DEADLINE);
}

/// Packets counted on a host.
fn counter(place: &Place, host: &Host, name: &str) -> u64 {
    let mut command = Process::command("nft");
    command.args(["-j", "list", "counter", "inet", "watch", name]);
    let said = Process::run(place.node.world(), host, "nft", command, PROGRAM_DEADLINE);
    let list: Value = serde_json::from_str(&said).unwrap_or_else(|e| panic!("{e}: {said}"));
    let counters = list["nftables"].as_array().expect("a list");
    let packets = counters.iter().find_map(|entry| entry["counter"]["packets"].as_u64());
    packets.unwrap_or_else(|| panic!("no counter {name}: {said}"))
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
        for echoed in outcomes
            .iter()
            .map(|outcome| &outcome["echoed"])
            .filter(|echoed| !echoed.is_null())
        {
            let at = |end: &str| address(echoed[end].as_str().expect("an address"));
            let canonical = |at: SocketAddr| SocketAddr::new(at.ip().to_canonical(), at.port());
            let (local, server) = (canonical(at("local")), at("server"));
            eprintln!("{way}: {echoed}");
            let line = battle.place.proxy.access_line(local);
            assert_eq!(line.field("src.workload"), "client", "{way}: {}", line.text);
            let target = way.rsplit(' ').next().expect("a target");
            assert_eq!(canonical(at("peer")), address(target), "{way}: what getpeername said");
            let of = battle
                .servers
                .iter()
                .find(|one| one.address() == server)
                .expect("one of ours");
            // The port differs on another node; an address that isn't the pod's is not shown to anybody.
            let is_local = battle.place.server.addresses().contains(&server.ip());
            let expected = |from: SocketAddr| from == local || !is_local && from.ip() == local.ip();
            let seen = of.arrivals().iter().any(|arrival| expected(arrival.accepted_from));
            assert!(
                seen || !own.contains(&local.ip()),
                "{way}: the server saw {:?}",
                of.arrivals()
            );
            answered += 1;
        }
    }
    // Plainly, marked, in another thread… are ordinary connections.
    assert!(answered >= battle.targets().len() * 8, "{answered} were answered");
    for server in &battle.servers {
        let own = battle.place.client.addresses();
        let others = server
            .arrivals()
            .into_iter()
            .filter(|arrival| !own.contains(&arrival.accepted_from.ip()));
        assert_eq!(
            others.count(),
            0,
            "nobody was seen but the client: {:?}",
            server.arrivals()
        );
    }
}

#[test]
fn packets_made_by_hand_do_not_leave_the_pod() {
    let Some(battle) = Battle::start(false) else { return };
    let place = &battle.place;
    let device = place.node.device_of(&place.client);
    let link = place.node.tool("ip", ["-j", "link", "show", "dev", &device]);
    let link: Value = serde_json::from_str(&link).expect("JSON");
    let mac = link[0]["address"].as_str().expect("a MAC").to_owned();
    let own = |family_of: SocketAddr| {
        if family_of.is_ipv4() {
            place.client.ip()
        } else {
            place.client.ip6()
        }
    };
    for (host, targets) in [(&*place.server, [0, 1]), (&place.remote, [2, 3])] {
        let mut sent = 0;
        for target in targets.map(|n| battle.servers[n].address()) {
            for shape in [
                "raw",
                "hdrincl",
                "link",
                "frame",
                "vlan",
                "fragments",
                "extended",
                "options",
            ] {
                for source in [
                    own(target),
                    if target.is_ipv4() {
                        place.other.ip()
                    } else {
                        place.other.ip6()
                    },
                ] {
                    let mut command = inside();
                    command.args(["packet", shape, &target.to_string(), &source.to_string(), "eth0", &mac]);
                    Process::run(place.node.world(), &place.client, "packet", command, PROGRAM_DEADLINE);
                    sent += 2;
                    wait::eventually(wait::SOON, "what was sent behind the packet has arrived", || {
                        counter(place, host, "barrier") == sent
                    });
                    assert_eq!(
                        counter(place, host, "segments"),
                        0,
                        "{shape} from {source} has reached {target}"
                    );
                }
            }
        }
    }
    assert_eq!(battle.accepted(), 0);
}

#[test]
fn a_namespace_inside_the_pod_does_not_lead_around_it() {
    let Some(battle) = Battle::start(true) else { return };
    let place = &battle.place;
    // A container in the container: connects there are not the pod's, but what it forwards is.
    let script = format!(
        "set -e
        echo 1 >/proc/sys/net/ipv4/ip_forward
        unshare -n sleep 30 & child=$!
        in_child() {{ nsenter -t $child -n \"$@\"; }}
        until [ \"$(readlink /proc/$child/ns/net)\" != \"$(readlink /proc/self/ns/net)\" ]; do :; done
        ip link add inner type veth peer name eth0 netns $child
        ip addr add 192.168.77.1/24 dev inner; ip link set inner up
        in_child ip addr add 192.168.77.2/24 dev eth0; in_child ip link set eth0 up
        in_child ip route add default via 192.168.77.1
        nft 'add table ip nat; add chain ip nat post {{ type nat hook postrouting priority 100 ; }};
            add rule ip nat post oif eth0 masquerade'
        in_child {inside} connect plainly {} & near=$!
        in_child {inside} connect plainly {}
        wait $near; kill $child",
        battle.servers[0].address(),
        battle.servers[2].address(),
        inside = env!("CARGO_BIN_EXE_inside"),
    );
    let mut command = Process::command("sh");
    command.args(["-c", &script]);
    let said = Process::run(place.node.world(), &place.client, "nested", command, PROGRAM_DEADLINE);
    assert_eq!(said.matches("refused").count(), 2, "{said}");
    battle.assert_untouched();
}

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
        assert_eq!(
            crate::place::round_trip(&mut stream).expect("an echo"),
            application.address()
        );
        ask(&early, application.address()).expect("its own talk with itself");
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
        SocketAddr::from(std::net::SocketAddrV6::new(v6, PORT, 0, index))
    };
    let node = place.node.host();
    let outside = Server::start_at(&node, scoped(&node, &device, of_node));
    let inside = Server::start_at(&place.client, scoped(&place.client, "eth0", of_pod));
    let out = ask(&place.client, scoped(&place.client, "eth0", of_node)).expect_err("denied");
    let into = ask(&node, scoped(&node, &device, of_pod)).expect_err("denied");
    for error in [&out, &into] {
        assert!(
            is_refusal(error) || error.kind() == std::io::ErrorKind::NetworkUnreachable,
            "{error}"
        );
    }
    assert_eq!((outside.accepted(), inside.accepted()), (0, 0));
    ask(&place.client, scoped(&place.client, "eth0", of_pod)).expect("its own talk with itself");
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
        let start = std::time::Instant::now();
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
