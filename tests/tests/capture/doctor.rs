//! `underpass doctor`: what an operator learns of a node before and while pods are captured on it.

use serde_json::Value;
use underpass_tests::capture::CaptureNode;

use crate::network::{agent_beside_rewriter, rewriter};
use crate::place::{Hosts, PORT, VIP, address, ask, node};
use underpass_tests::Server;

/// The findings of `underpass doctor --json`.
fn findings(node: &CaptureNode) -> (bool, Vec<Value>) {
    let (cgroup, pins) = (
        node.cgroup("").display().to_string(),
        node.pin_directory().display().to_string(),
    );
    let outcome = node.program(0, &["doctor", "--json", "--cgroup", &cgroup, "--pin-dir", &pins]);
    let report: Value = serde_json::from_str(&outcome.stdout).unwrap_or_else(|e| panic!("{e}: {outcome:?}"));
    let capture = report["capture"].as_bool().expect("a verdict");
    assert_eq!(outcome.status.success(), capture, "{outcome:?}");
    (capture, report["findings"].as_array().expect("a list").clone())
}

fn of<'a>(findings: &'a [Value], subject: &str) -> Vec<&'a Value> {
    let about = |finding: &&Value| finding["subject"].as_str().is_some_and(|text| text.contains(subject));
    findings.iter().filter(about).collect()
}

#[test]
fn it_says_what_there_is_and_whether_capture_is_in_force() {
    let Some(node) = node() else { return };
    let (capture, before) = findings(&node);
    assert!(capture, "{before:?}");
    let said =
        |findings: &[Value], subject: &str| of(findings, subject)[0]["text"].as_str().expect("a text").to_owned();
    assert!(
        said(&before, "cgroup2").contains(&node.cgroup("").display().to_string()),
        "{before:?}"
    );
    assert!(said(&before, "bpffs").contains("/sys/fs/bpf"), "{before:?}");
    for program in ["connect4", "connect6", "inbound", "guard"] {
        assert!(!of(&before, program).is_empty(), "{program} is tried: {before:?}");
    }
    assert!(said(&before, "capture").contains("not in force"), "{before:?}");
    let hosts = Hosts::new(&node);
    let _agent = node.start_agent();
    let _proxy = node.start_proxy(&hosts.config(""));
    node.enrol(&hosts.client);
    let (capture, during) = findings(&node);
    assert!(capture && said(&during, "capture").contains("1 pod"), "{during:?}");
    let text = node.program(0, &["doctor"]);
    assert!(
        text.stdout.contains("bpffs") && text.stdout.contains("cgroup2"),
        "{text:?}"
    );
}

#[test]
fn it_names_a_foreign_program_and_says_whether_that_matters() {
    for above in [true, false] {
        let Some(node) = node() else { return };
        let hosts = Hosts::new(&node);
        let cgroup = if above { node.outer_cgroup() } else { node.cgroup("") };
        let cgroup = cgroup.display().to_string();
        let _foreign = rewriter(&node, &cgroup, VIP, &hosts.server.at(PORT).to_string());
        let agent = agent_beside_rewriter(&node);
        let (_, findings) = findings(&node);
        let names = |f: &&Value| f["text"].as_str().is_some_and(|text| text.contains("cil_sock4"));
        let named: Vec<&Value> = findings.iter().filter(names).collect();
        assert_eq!(named.len(), 1, "{findings:?}");
        let matters = named[0]["grade"] != "good";
        if agent.is_none() {
            assert!(!above, "programs of cgroups above come after ours");
            continue;
        }
        // What it says is what happens: a service is seen as such, or its backend.
        let proxy = node.start_proxy(&hosts.config(""));
        node.enrol(&hosts.client);
        node.enrol(&hosts.server);
        let _server = Server::start(&hosts.server, PORT);
        let source = ask(&hosts.client, address(VIP))
            .expect("served")
            .local_addr()
            .expect("open");
        let sees_the_service = proxy.access_line(source).field("dst.service").starts_with("web.");
        assert_eq!(sees_the_service, !matters, "{}", named[0]);
        assert!(sees_the_service || !above, "programs of cgroups above come after ours");
    }
}

#[test]
fn it_says_what_is_missing() {
    let Some(node) = node() else { return };
    let outcome = node.program(65_534, &["doctor"]);
    assert!(!outcome.status.success(), "{outcome:?}");
    for word in ["CAP_BPF", "CAP_NET_ADMIN", "root"] {
        assert!(outcome.stdout.contains(word), "{word}: {outcome:?}");
    }
    let wrong = node.program(0, &["doctor", "--cgroup", "/etc"]);
    assert!(
        !wrong.status.success() && wrong.stdout.contains("--cgroup"),
        "{wrong:?}"
    );
}
