//! The rest of the node's network: what a network policy drops stays dropped, and programs of others on the same hooks are found.

use std::time::Instant;

use underpass_tests::capture::{Agent, CaptureNode};
use underpass_tests::{Need, Process, Server, available, wait};

use crate::place::{DENY_ALL, Hosts, ONLY_CLIENT, PORT, Place, VIP, address, ask, inside, is_refusal};

/// A network policy as network plugins write it: of the forward hook of the node.
fn forward(node: &CaptureNode, rule: &str) {
    let _ = node.run({
        let mut flush = Process::command("nft");
        flush.args(["delete", "table", "inet", "network-policy"]);
        flush
    });
    let rules = format!(
        "add table inet network-policy
        add counter inet network-policy seen
        add chain inet network-policy forward {{ type filter hook forward priority 0 ; }}
        add rule inet network-policy forward {rule}"
    );
    node.tool("nft", [rules]);
}

fn seen(node: &CaptureNode) -> bool {
    let said = node.tool("nft", ["list", "counter", "inet", "network-policy", "seen"]);
    !said.contains("packets 0 ")
}

#[test]
fn a_drop_on_the_way_between_two_pods_is_honoured() {
    if !available(&[Need::Program("nft")]) {
        return;
    }
    let Some(place) = Place::start(|hosts| hosts.config("").node("timeouts: {connect: 500ms}")) else {
        return;
    };
    let node = &place.node;
    let (client, server) = (place.client.ip(), place.server.ip());
    let listening = Server::start(&place.server, PORT);
    // First only counted: the connection between the pods crosses both veths, with their own addresses.
    let way = format!("ip saddr {client} ip daddr {server} tcp dport {PORT}");
    forward(node, &format!("{way} counter name seen"));
    ask(&place.client, listening.address()).expect("allowed");
    assert!(
        seen(node),
        "the node's forward hook sees the connection as that of the client"
    );
    let (of_client, of_server) = (node.device_of(&place.client), node.device_of(&place.server));
    for (device, rule) in [
        (&of_client, format!("iifname {of_client} {way} counter name seen drop")),
        (&of_server, format!("oifname {of_server} {way} counter name seen drop")),
    ] {
        forward(node, &rule);
        let before = listening.accepted();
        let start = Instant::now();
        for to in [listening.address(), address(VIP)] {
            let error = ask(&place.client, to).expect_err("dropped");
            assert!(is_refusal(&error), "{device}: {error}");
        }
        assert!(start.elapsed() < wait::SOON, "within the configured time-out");
        assert_eq!(listening.accepted(), before);
        assert!(seen(node), "{device}");
        place.wait_for_refusal("connect_timeout", "UF");
        ask(&place.other, listening.address()).expect("another pod is not meant");
    }
    forward(node, &format!("{way} reject with tcp reset"));
    place.assert_refused(&place.client, listening.address());
    forward(node, "counter name seen");
    ask(&place.client, listening.address()).expect("allowed again");
}

/// A service load balancer on the cgroup, as Cilium's: it rewrites a virtual address to a backend, here the server.
pub(crate) fn rewriter(node: &CaptureNode, cgroup: &str, from: &str, to: &str) -> Process {
    let mut command = inside();
    command.args(["rewrite", cgroup, from, to]);
    let process = Process::start(node.world(), &node.host(), "rewriter", command);
    wait::eventually(wait::SOON, "the foreign program is attached", || {
        process.output().contains("attached")
    });
    process
}

/// Starts an agent where a program that rewrites connects is attached. None, having seen that it says why, where the kernel lets nobody be in front of
/// it (before Linux 6.17): then it does not start.
pub(crate) fn agent_beside_rewriter(node: &CaptureNode) -> Option<Agent> {
    let mut agent = node.launch_agent(&[]);
    let answers = wait::some(wait::SOON, "the agent answers, or ends", || {
        let has_ended = agent.process().exit_status().is_some();
        (has_ended || node.underpass(&["pods"]).status.success()).then_some(!has_ended)
    });
    let log = agent.log();
    assert!(answers || log.contains("runs before ours"), "{log}");
    if !answers {
        println!("this kernel has no order among the programs of a cgroup: {log}");
    }
    answers.then_some(agent)
}

/// Where a foreign program is attached, seen from ours.
#[derive(Clone, Copy, Debug)]
enum At {
    /// The cgroup above: runs after ours.
    Above,
    /// The same cgroup, and first.
    Same,
}

#[test]
fn a_foreign_program_that_rewrites_destinations_does_not_open_a_way_round_policy() {
    for at in [At::Above, At::Same] {
        let Some(node) = crate::place::node() else { return };
        let hosts = Hosts::new(&node);
        let cgroup = match at {
            At::Above => node.outer_cgroup(),
            At::Same => node.cgroup(""),
        };
        let cgroup = cgroup.display().to_string();
        let endpoint = hosts.server.at(PORT).to_string();
        let _foreign = rewriter(&node, &cgroup, VIP, &endpoint);
        let Some(agent) = agent_beside_rewriter(&node) else {
            assert!(matches!(at, At::Same), "programs of cgroups above come after ours");
            continue;
        };
        let guarded = |policy: &str| hosts.config("shop/rule").policy("shop/rule", policy);
        let proxy = node.start_proxy(&guarded(ONLY_CLIENT));
        for pod in [&hosts.client, &hosts.other, &hosts.server] {
            node.enrol(pod);
        }
        let server = Server::start(&hosts.server, PORT);
        // Whether the service or only its backend is seen, who connects is known and judged.
        let stream = ask(&hosts.client, address(VIP)).unwrap_or_else(|e| panic!("{at:?}: {e}\n{}", agent.log()));
        let source = stream.local_addr().expect("open");
        drop(stream);
        let line = proxy.access_line(source);
        assert_eq!(
            (line.field("src.workload"), line.field("dst.workload")),
            ("client", "web-1")
        );
        if matches!(at, At::Above) {
            assert_eq!(
                line.field("dst.service"),
                "web.shop.svc.cluster.local",
                "ours comes first, and sees the service"
            );
        }
        assert!(ask(&hosts.other, address(VIP)).is_err(), "{at:?}");
        proxy.apply(&guarded(ONLY_CLIENT).policy("mesh/nothing", DENY_ALL));
        assert!(ask(&hosts.client, address(VIP)).is_err(), "{at:?}");
        assert_eq!(server.accepted(), 1, "{at:?}");
    }
}
