//! Pods come and go: nothing of them stays behind.

use std::thread;
use std::time::Instant;

use underpass_tests::capture::Pod;
use underpass_tests::{Process, Server, wait};

use crate::place::{ONLY_CLIENT, PORT, Place, ask, inside};
use underpass_tests::load::under_load;

/// Issue 4: so many pods, enrolled and removed in a loop.
const PODS: usize = 200;
/// Of them at a time.
const AT_ONCE: usize = 8;

#[test]
fn a_container_that_is_restarted_stays_captured() {
    let Some(place) = Place::start(|hosts| hosts.config("shop/rule").policy("shop/rule", ONLY_CLIENT)) else {
        return;
    };
    let server = Server::start(&place.server, PORT);
    for number in 0..3 {
        // Another cgroup, other processes, the same namespace.
        for (pod, may) in [(&place.client, true), (&place.other, false)] {
            let container = pod.container(&format!("restart-{number}"));
            assert_eq!(
                ask(&container, server.address()).is_ok(),
                may,
                "{} after restart {number}",
                pod.name()
            );
        }
        let before = server.accepted();
        drop(server_in(&place, number));
        assert_eq!(server.accepted(), before);
    }
}

/// A server in a new container of the server's pod is reached by who may, and by nobody else.
fn server_in(place: &Place, number: usize) -> Server {
    let container = place.server.container(&format!("restart-{number}"));
    let server = Server::start(&container, PORT + 1);
    ask(&place.client, server.address()).expect("allowed");
    place.assert_refused(&place.other, server.address());
    place.assert_refused(&place.stranger, server.address());
    assert_eq!(server.accepted(), 1);
    server
}

/// A proxy's stock of sockets grows with what its pods need of them, up to this (`MAX_DESCRIPTORS`, for each family). No test looks
/// for fewer connections than that, and a socket of a pod that is gone would keep its namespace.
const STOCK: usize = 2 * 64;

/// What a node with so many pods costs, at rest.
#[derive(Debug)]
struct Footprint {
    kernel_objects: usize,
    pins: usize,
    addresses: usize,
    descriptors_of_agent: usize,
    sockets_of_proxy: usize,
    others_of_proxy: usize,
}

impl Place {
    /// Waits until the node serves `pods` pods and nothing is going on.
    fn rest(&self, pods: usize) -> Footprint {
        wait::eventually(wait::SOON, "the pods that are gone are forgotten", || {
            self.node.pods().len() == pods && self.node.map_entries("PODS") == pods
        });
        wait::eventually(wait::SOON, "nothing is open", || {
            self.proxy.connections().is_empty() && self.node.map_entries("HANDSHAKES") == 0
        });
        // The enrolled ones, and the stranger.
        wait::eventually(wait::SOON, "their namespaces are gone", || self.veths() == pods + 1);
        self.footprint()
    }

    fn footprint(&self) -> Footprint {
        let kernel_objects = self.node.kernel_objects(&[self.agent.pid(), self.proxy.pid()]);
        Footprint {
            kernel_objects: kernel_objects.len(),
            pins: self.node.pins().len(),
            addresses: self.node.map_entries("ADDRESSES"),
            descriptors_of_agent: self.agent.descriptors(),
            sockets_of_proxy: self.proxy.sockets(),
            others_of_proxy: self.proxy.descriptors() - self.proxy.sockets(),
        }
    }

    fn veths(&self) -> usize {
        self.node.tool("ip", ["-br", "link"]).matches("pod").count()
    }

    /// Waits until the node costs no more than it did.
    #[track_caller]
    fn assert_costs(&self, before: &Footprint, pods: usize) {
        let mut now = self.rest(pods);
        let end = Instant::now() + wait::soon();
        while !now.is_at_most(before) && Instant::now() < end {
            now = self.footprint();
        }
        assert!(now.is_at_most(before), "before: {before:?}, now: {now:?}");
    }
}

impl Footprint {
    fn is_at_most(&self, before: &Self) -> bool {
        let kernel = |one: &Self| (one.kernel_objects, one.pins, one.addresses);
        kernel(self) == kernel(before)
            && self.descriptors_of_agent <= before.descriptors_of_agent
            && self.others_of_proxy <= before.others_of_proxy
            && self.sockets_of_proxy <= before.sockets_of_proxy + STOCK
    }
}

#[test]
fn a_pod_that_is_deleted_under_traffic_leaves_nothing() {
    let Some(place) = Place::start(|hosts| hosts.config("")) else {
        return;
    };
    let server = Server::start(&place.server, PORT);
    // The first one shows what is made once, in pools and caches.
    deleted_under_traffic(&place, &server, 0);
    let before = place.rest(3);
    for round in 1..4 {
        deleted_under_traffic(&place, &server, round);
        ask(&place.client, server.address()).expect("others are served");
    }
    place.assert_costs(&before, 3);
}

/// A pod that dies while it connects and is connected to.
fn deleted_under_traffic(place: &Place, server: &Server, round: usize) {
    let pod = place.node.pod(&format!("brief/pod-{round}"));
    let config = place.config("").workload_at(pod.name(), &pod.addresses(), "");
    place.proxy.apply(&config);
    place.node.enrol(&pod);
    let serving = Server::start(&pod, PORT);
    let mut command = inside();
    command.args(["load", &server.address().to_string()]);
    let out = Process::start(place.node.world(), &pod, "load", command);
    let into = serving.address();
    under_load(&[(&place.client, into), (&place.stranger, into)], |tallies| {
        for tally in tallies {
            tally.wait_for(20);
        }
        wait::eventually(wait::SOON, "the pod connects too", || {
            out.output().contains("answered 20")
        });
        place.node.kill_processes_of(&pod);
        drop(serving);
    });
    drop(out);
    place.node.delete(pod);
}

#[test]
fn two_hundred_pods_come_and_go_without_a_leak() {
    let Some(place) = Place::start(|hosts| hosts.config("")) else {
        return;
    };
    let server = Server::start(&place.server, PORT);
    ask(&place.client, server.address()).expect("served");
    // One round first: what is made once for all pods is no leak.
    brief_lives(&place, &server, 0);
    let before = place.rest(3);
    for round in 1..PODS / AT_ONCE {
        brief_lives(&place, &server, round);
    }
    place.assert_costs(&before, 3);
    ask(&place.client, server.address()).expect("the others are served");
}

/// Pods are made, enrolled, used, and removed or just deleted, some at once.
fn brief_lives(place: &Place, server: &Server, round: usize) {
    let pods: Vec<Pod> = (0..AT_ONCE)
        .map(|n| place.node.pod(&format!("brief/pod-{round}-{n}")))
        .collect();
    thread::scope(|scope| {
        for (number, pod) in pods.iter().enumerate() {
            scope.spawn(move || {
                place.node.enrol(pod);
                // The mesh doesn't know it: what it connects to is refused, by whom it is captured.
                place.assert_refused(pod, server.address());
                if number.is_multiple_of(2) {
                    place.node.remove(pod);
                    ask(pod, place.remote.at(PORT)).expect_err("nobody listens there");
                }
            });
        }
    });
    for pod in pods {
        place.node.delete(pod);
    }
}
