//! The agent with the real kernel, driven as users and proxies drive it: by its commands and its socket.
//!
//! Each test has a run directory, a pin directory and a cgroup of its own. The proxy is a toy in this process that speaks the
//! handover protocol and says one word to whoever is led to it.

#![allow(
    clippy::unwrap_used,
    reason = "clippy takes the helpers of an integration test for something else"
)]

mod harness;
mod toy;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use harness::{Node, Pod, can_run, eventually};
use toy::Toy;

#[test]
fn a_captured_pod_is_served_by_the_proxy_until_it_is_removed() {
    if !can_run() {
        return;
    }
    let node = Node::new();
    let agent = node.agent();
    let pod = Pod::new(&node, "10.9.1.1/24");
    let toy = Toy::connect(&node).unwrap();
    let enrolled = node.ok(&["enrol", "--netns", &pod.path(), "--uid", "shop/a", "--json"]);
    assert!(enrolled.contains(r#""state":"served""#), "{enrolled}");
    assert_eq!(pod.connect(), "toy\n");
    toy.wants_sockets_and_gets(64);
    assert_eq!(node.ok(&["remove", "--uid", "shop/a"]), "removed: shop/a\n");
    eventually("the proxy is told", || toy.pods() == 0);
    assert_ne!(pod.connect(), "toy\n");
    agent.stop();
}

#[test]
fn a_proxy_that_dies_leaves_its_pods_waiting_then_refused_and_its_successor_serves_them() {
    if !can_run() {
        return;
    }
    let node = Node::new();
    let agent = node.agent();
    let pod = Pod::new(&node, "10.9.1.1/24");
    let toy = Toy::connect(&node).unwrap();
    node.enrol(&pod, "shop/a");
    drop(toy);
    node.await_state("waiting");
    node.await_state("refused");
    assert_eq!(pod.connect(), "refused\n");
    let _toy = Toy::connect(&node).unwrap();
    node.await_state("served");
    assert_eq!(pod.connect(), "toy\n");
    agent.stop();
}

#[test]
fn a_successor_that_serves_every_pod_makes_the_older_proxy_drain_without_a_refusal() {
    if !can_run() {
        return;
    }
    let node = Node::new();
    let agent = node.agent();
    let pod = Pod::new(&node, "10.9.1.1/24");
    let first = Toy::connect(&node).unwrap();
    node.enrol(&pod, "shop/a");
    let client = pod.connect_again_and_again();
    client.wait_for(20);
    let second = Toy::connect(&node).unwrap();
    eventually("the first proxy drains", || first.is_drained());
    drop(first);
    client.wait_for(20);
    assert!(!second.is_drained());
    assert_eq!(client.stop(), [] as [String; 0]);
    agent.stop();
}

#[test]
fn a_takeover_by_a_new_agent_refuses_no_connection_and_keeps_the_proxy() {
    if !can_run() {
        return;
    }
    let node = Node::new();
    let old = node.agent();
    let pod = Pod::new(&node, "10.9.1.1/24");
    let toy = Toy::connect(&node).unwrap();
    node.enrol(&pod, "shop/a");
    let client = pod.connect_again_and_again();
    client.wait_for(20);
    let new = node.agent();
    old.await_end();
    client.wait_for(20);
    assert_eq!(client.stop(), [] as [String; 0]);
    toy.wants_sockets_and_gets(3);
    assert!(node.ok(&["pods"]).contains("serves 1 of 1 pods"));
    // The listeners are the new agent's own by now: they outlive the proxy.
    drop(toy);
    let _toy = Toy::connect(&node).unwrap();
    node.await_state("served");
    assert_eq!(pod.connect(), "toy\n");
    new.stop();
}

#[test]
fn a_killed_agent_leaves_its_pods_refused_and_the_next_takes_them_up() {
    if !can_run() {
        return;
    }
    let node = Node::new();
    let pod = Pod::new(&node, "10.9.1.1/24");
    let agent = node.agent();
    node.enrol(&pod, "shop/a");
    agent.kill();
    assert_eq!(pod.connect(), "refused\n");
    let agent = node.agent();
    let _toy = Toy::connect(&node).unwrap();
    node.await_state("served");
    assert_eq!(pod.connect(), "toy\n");
    agent.stop();
    let agent = node.agent();
    assert_eq!(node.ok(&["detach", "--pin-dir", &node.pin_dir()]).lines().count(), 1);
    agent.await_end();
    assert_ne!(pod.connect(), "refused\n");
    assert!(!Path::new(&node.pin_dir()).exists());
    assert!(!node.run_dir().exists());
    let again = node.ok(&["detach", "--pin-dir", &node.pin_dir()]);
    assert!(again.contains("nothing was attached"), "{again}");
}

#[test]
fn a_proxy_in_the_root_cgroup_or_in_the_pods_is_refused() {
    if !can_run() {
        return;
    }
    let node = Node::new();
    let agent = node.agent();
    let pod = Pod::new(&node, "10.9.1.1/24");
    node.enrol(&pod, "shop/a");
    let refused = Toy::refused_in(&node, &harness::cgroup_root());
    assert!(refused.contains("--own-cgroup"), "{refused}");
    let refused = Toy::refused_in(&node, &node.cgroup());
    assert!(refused.contains("--own-cgroup"), "{refused}");
    let _member = pod.sleeper();
    let refused = Toy::refused_in(&node, &node.pods_cgroup());
    assert!(refused.contains("holds process"), "{refused}");
    agent.stop();
}

#[test]
fn a_namespace_that_is_gone_is_let_go_of_within_three_seconds() {
    if !can_run() {
        return;
    }
    let node = Node::new();
    let agent = node.agent();
    let pod = Pod::new(&node, "10.9.1.1/24");
    let toy = Toy::connect(&node).unwrap();
    node.enrol(&pod, "shop/a");
    toy.wants_sockets_and_gets(8);
    let witness = pod.leave_a_witness();
    let since = Instant::now();
    drop(pod);
    // The kernel removes a namespace, with its devices, when nothing holds it any more; then the witness' other half goes too.
    eventually("the namespace is gone", || !witness.is_there());
    assert!(since.elapsed() < Duration::from_secs(3), "{:?}", since.elapsed());
    assert_eq!(toy.pods(), 0);
    agent.stop();
}

#[test]
fn two_hundred_pods_leave_nothing_behind() {
    if !can_run() {
        return;
    }
    let node = Node::new();
    let agent = node.agent();
    let _toy = Toy::connect(&node).unwrap();
    let warm = Pod::new(&node, "10.9.1.1/24");
    node.enrol(&warm, "shop/warm");
    node.ok(&["remove", "--uid", "shop/warm"]);
    let before = agent.open_descriptors();
    let pods: Vec<Pod> = (1..=200).map(|n| Pod::new(&node, &format!("10.10.{n}.1/24"))).collect();
    for (n, pod) in pods.iter().enumerate() {
        node.enrol(pod, &format!("shop/{n}"));
    }
    assert!(agent.open_descriptors() > before + 200);
    assert_eq!(pods[199].connect(), "toy\n");
    // Half of them are removed, half of them vanish.
    for n in 0..100 {
        node.ok(&["remove", "--uid", &format!("shop/{n}")]);
    }
    drop(pods);
    eventually("all pods are gone", || {
        node.ok(&["pods"]).contains("no pods are enrolled")
    });
    eventually("all descriptors are closed", || agent.open_descriptors() <= before);
    assert_eq!(node.pinned_pods(), 0);
    agent.stop();
    // An agent that starts says which pods the kernel knows and the state does not.
    let agent = node.agent();
    assert!(!agent.log().contains("not in the state"), "{}", agent.log());
    agent.stop();
}

#[test]
fn run_serves_its_pods_with_a_proxy_that_is_not_root_and_leaves_nothing() {
    if !can_run() {
        return;
    }
    let node = Node::new();
    let pod = Pod::new(&node, "10.9.1.1/24");
    let run = node.run(&pod, "");
    eventually("the proxy is started", || run.log().contains("a proxy is here"));
    node.await_state("served");
    let first = run.child().unwrap();
    let status = fs::read_to_string(format!("/proc/{first}/status")).unwrap();
    let of = |field: &str| status.lines().find(|line| line.starts_with(field)).unwrap().to_owned();
    assert!(!of("Uid:").contains("\t0"), "{status}");
    assert!(of("CapEff:").ends_with("\t0000000000000000"), "{status}");
    kill(Pid::from_raw(first), Signal::SIGKILL).unwrap();
    eventually("another proxy", || run.child().is_some_and(|next| next != first));
    node.await_state("served");
    run.stop();
    assert!(!Path::new(&node.pin_dir()).exists() && !node.run_dir().exists());
    assert_ne!(pod.connect(), "refused\n");
}

#[test]
fn run_leaves_its_pods_refused_when_it_is_to_keep_them() {
    if !can_run() {
        return;
    }
    let node = Node::new();
    let pod = Pod::new(&node, "10.9.1.1/24");
    let run = node.run(&pod, ", keep: true, proxy_user: root");
    eventually("the proxy is started", || run.log().contains("a proxy is here"));
    node.await_state("served");
    run.stop();
    assert_eq!(pod.connect(), "refused\n");
}

#[test]
fn run_says_why_it_cannot_and_leaves_nothing() {
    if !can_run() {
        return;
    }
    let node = Node::new();
    let pod = Pod::new(&node, "10.9.1.1/24");
    let told = node.run(&pod, ", proxy_user: no-such-user").await_failure();
    assert!(told.contains("there is no user no-such-user"), "{told}");
    let told = node.run_in("/run/netns/no-such-pod", "").await_failure();
    assert!(
        told.contains("capture.pods: workload Kubernetes//Pod/shop/a:") && told.contains("does not exist"),
        "{told}"
    );
    assert!(!Path::new(&node.pin_dir()).exists() && !node.run_dir().exists());
}
