//! The harness's own promises, without capture: what a test finds wrong should be the product's.

use std::fs;
use std::process::Command;

use underpass_tests::capture::{CaptureNode, cgroup2_mount};
use underpass_tests::{Families, Need, Process, Server, available, wait};

use crate::place::{PORT, ask, node};

#[test]
fn pods_that_are_not_captured_reach_each_other_in_both_families() {
    let Some(node) = node() else { return };
    let (client, server, remote) = (node.pod("a/client"), node.pod("a/server"), node.elsewhere());
    let only6 = node.pod_with("a/six", Families::V6);
    for host in [&*server, &remote] {
        for address in [host.at(PORT), host.at6(PORT)] {
            let listening = Server::start_at(host, address);
            let stream = ask(&client, address).expect("an echo");
            let arrival = listening.arrivals()[0];
            assert_eq!(arrival.accepted_from, stream.local_addr().expect("open"));
            assert_eq!((arrival.peer, arrival.local), (arrival.accepted_from, address));
            assert_eq!(listening.received(), 5);
        }
    }
    let _listening = Server::start_at(&server, server.at6(PORT));
    ask(&only6, server.at6(PORT)).expect("an echo");
    assert!(ask(&only6, server.at(PORT)).is_err(), "it has no IPv4");
}

#[test]
fn sockets_and_programs_of_a_pod_begin_in_its_cgroup() {
    let Some(node) = node() else { return };
    let pod = node.pod("a/pod");
    let said = Process::run(
        node.world(),
        &pod,
        "cat",
        {
            let mut cat = Process::command("cat");
            cat.arg("/proc/self/cgroup");
            cat
        },
        wait::SOON,
    );
    let below = pod
        .cgroup()
        .strip_prefix(cgroup2_mount().expect("a mount"))
        .expect("below")
        .display();
    assert!(said.contains(&format!("0::/{below}")), "{said} should name {below}");
    // ss shows the cgroup of a socket (INET_DIAG_CGROUP_ID).
    let _listener = pod.listen(PORT);
    let mut ss = Process::command("ss");
    ss.args(["-tln", "--cgroup"]);
    let said = Process::run(node.world(), &pod, "ss", ss, wait::SOON);
    assert!(said.contains(&format!("/{below}")), "{said} should name {below}");
}

#[test]
fn a_deleted_pod_takes_its_veth_with_it() {
    let Some(node) = node() else { return };
    let pod = node.pod("a/pod");
    let path = pod.path().to_owned();
    let devices = || node.tool("ip", ["-br", "link"]).matches("pod").count();
    assert_eq!(devices(), 1);
    node.delete(pod);
    wait::eventually(wait::SOON, "the namespace is gone", || devices() == 0);
    assert!(!path.exists());
}

/// The test that is killed is this one's binary, run again with the name of the test below.
#[test]
fn a_killed_test_leaves_nothing_behind() {
    if !available(&[Need::Capture]) {
        return;
    }
    let mut victim = Command::new(std::env::current_exe().expect("own path"))
        .args(["--exact", "node::victim", "--ignored", "--nocapture"])
        .spawn()
        .expect("start the test's own binary");
    let prefix = format!("underpass-test-{}-", victim.id());
    let cgroups = || -> Vec<_> {
        let mount = cgroup2_mount().expect("a mount");
        let names = fs::read_dir(mount).expect("read").flatten();
        names
            .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
            .collect()
    };
    let folder = std::env::temp_dir().join(format!("{prefix}folder"));
    let lived = wait::some(wait::SOON, "the victim has started its pod", || {
        fs::read_to_string(&folder).ok()
    });
    assert_eq!(cgroups().len(), 1);
    victim.kill().expect("kill");
    victim.wait().expect("wait");
    wait::eventually(wait::SOON, "cgroups, folder and processes are gone", || {
        let sleeping = fs::metadata(format!("/proc/{}", lived.lines().nth(1).expect("a pid"))).is_ok();
        cgroups().is_empty() && fs::metadata(lived.lines().next().expect("a path")).is_err() && !sleeping
    });
    fs::remove_file(folder).expect("remove");
}

#[test]
#[ignore = "is killed by a_killed_test_leaves_nothing_behind"]
fn victim() {
    let node = CaptureNode::new();
    let pod = node.pod("a/pod");
    let mut sleep = Command::new("sleep");
    sleep.arg("1000");
    let sleeping = Process::start(node.world(), &pod, "sleep", sleep);
    let folder = std::env::temp_dir().join(format!("underpass-test-{}-folder", std::process::id()));
    let next = folder.with_extension("next");
    let said = format!("{}\n{}\n", node.world().directory().display(), sleeping.pid());
    fs::write(&next, said).expect("write");
    fs::rename(&next, &folder).expect("rename");
    std::thread::sleep(wait::SOON);
}
