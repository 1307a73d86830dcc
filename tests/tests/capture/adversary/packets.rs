//! Past the socket layer: packets made by hand, forwarded, or rewritten on their way out.

use serde_json::Value;
use underpass_tests::{Host, Need, Process, Server, available, wait};

use super::{Battle, arrived, nft};
use crate::place::{PORT, PROGRAM_DEADLINE, Place, ask, inside};

/// How a segment is sent, see `inside packet`.
const SHAPES: [&str; 12] = [
    "raw",
    "hdrincl",
    "link",
    "frame",
    "bypass",
    "xdp",
    "vlan",
    "fragments",
    "extended",
    "options",
    "raw-data",
    "link-data",
];

#[test]
fn packets_made_by_hand_do_not_leave_the_pod() {
    if !available(&[Need::Guard]) {
        return;
    }
    let Some(battle) = Battle::start(false) else { return };
    let place = &battle.place;
    let device = place.node.device_of(&place.client);
    let link = place.node.tool("ip", ["-j", "link", "show", "dev", &device]);
    let link: Value = serde_json::from_str(&link).expect("JSON");
    let gateway = link[0]["address"].as_str().expect("a MAC");
    for (host, targets) in [(&*place.server, [0, 1]), (&place.remote, [2, 3])] {
        let mut barrier = 0;
        for target in targets.map(|n| battle.servers[n].address()) {
            let of_family = |pod: &Host| if target.is_ipv4() { pod.ip() } else { pod.ip6() };
            let sources = [&place.client, &place.other].map(|pod| of_family(pod).to_string());
            for shape in SHAPES {
                let mut command = inside();
                command
                    .args(["packet", shape, &target.to_string(), "eth0", gateway])
                    .args(&sources);
                Process::run(place.node.world(), &place.client, "packet", command, PROGRAM_DEADLINE);
                barrier += 2;
                let what = "what was sent behind the packets has arrived";
                let arrived = wait::some(wait::SOON, what, || {
                    Some(arrived(place, host)).filter(|arrived| arrived.barrier == barrier)
                });
                assert_eq!(arrived.segments, 0, "{shape} has reached {target}");
            }
        }
    }
    assert_eq!(battle.accepted(), 0);
}

/// Begins a script: a namespace of the pod's own making, and a way to run things there.
const CHILD: &str = "set -e
    echo 1 >/proc/sys/net/ipv4/ip_forward
    unshare -n sleep 30 & child=$!
    in_child() { nsenter -t $child -n \"$@\"; }
    until [ \"$(readlink /proc/$child/ns/net)\" != \"$(readlink /proc/self/ns/net)\" ]; do :; done
    ";

#[test]
fn a_namespace_inside_the_pod_does_not_lead_around_it() {
    if !available(&[Need::Guard]) {
        return;
    }
    let Some(battle) = Battle::start(true) else { return };
    let place = &battle.place;
    let gateway = place.node.host().ip();
    let own = place.client.ip();
    let spare = place.other.ip();
    // Connects in such a namespace are not those of the pod. But what they send leaves by the pod's device.
    let forwarded = "ip link add inner type veth peer name eth0 netns $child
        ip addr add 192.168.77.1/24 dev inner; ip link set inner up
        in_child ip addr add 192.168.77.2/24 dev eth0; in_child ip link set eth0 up
        in_child ip route add default via 192.168.77.1
        nft 'add table ip nat; add chain ip nat post { type nat hook postrouting priority 100 ; };
            add rule ip nat post oif eth0 masquerade'"
        .to_owned();
    let beside = format!(
        "ip link add link eth0 name beside type macvlan mode bridge
        ip link set beside netns $child name eth0
        in_child ip addr add {spare}/32 dev eth0; in_child ip link set eth0 up
        in_child ip route add {gateway} dev eth0; in_child ip route add default via {gateway}"
    );
    let moved = format!(
        "ip link set eth0 netns $child
        in_child ip addr add {own}/32 dev eth0; in_child ip link set eth0 up
        in_child ip route add {gateway} dev eth0; in_child ip route add default via {gateway}"
    );
    for (how, set_up) in [("forwarded", forwarded), ("beside", beside), ("moved", moved)] {
        let script = format!(
            "{CHILD} {set_up}
            in_child {inside} connect plainly {} & near=$!
            in_child {inside} connect plainly {}
            wait $near; kill $child",
            battle.servers[0].address(),
            battle.servers[2].address(),
            inside = env!("CARGO_BIN_EXE_inside"),
        );
        let mut command = Process::command("sh");
        command.args(["-c", &script]);
        let said = Process::run(place.node.world(), &place.client, how, command, PROGRAM_DEADLINE);
        assert_eq!(said.matches("refused").count(), 2, "{how}: {said}");
        battle.assert_untouched();
    }
}

/// What the node would do for the pod if it were asked to, done by the pod to packets of the proxy in its namespace.
#[test]
fn what_the_pod_translates_does_not_lead_from_where_it_may_to_where_it_may_not() {
    if !available(&[Need::Guard]) {
        return;
    }
    let deny_client = "scope: NAMESPACE, action: DENY, groups: [{rules: [{matches: [{principals: ['*/sa/client']}]}]}]";
    let Some(place) = Place::start(|hosts| {
        let config = hosts.config("").node("timeouts: {connect: 1s}");
        config.policy("else/rule", deny_client).policy("away/rule", deny_client)
    }) else {
        return;
    };
    let allowed = Server::start(&place.server, PORT);
    for host in [&*place.other, &place.remote] {
        let denied = Server::start(host, PORT);
        place.assert_refused(&place.client, denied.address());
        let rules = format!(
            "add table ip nat; add chain ip nat out {{ type nat hook output priority -100 ; }};
            add rule ip nat out ip daddr {} tcp dport {PORT} dnat to {}",
            allowed.address().ip(),
            denied.address()
        );
        nft(&place, &place.client, &rules);
        let outcome = ask(&place.client, allowed.address());
        assert_eq!(denied.accepted(), 0, "translated to {}: {outcome:?}", denied.address());
        nft(&place, &place.client, "delete table ip nat");
    }
    ask(&place.client, allowed.address()).expect("untranslated it is allowed");
}
