//! Closed, not open: what happens while nobody serves a pod.

use std::net::SocketAddr;

use underpass_ebpf::{Counter, Error, Layout};

use crate::needs_root;
use crate::pod::{Pod, at, connect, enrolled, handshakes};
use crate::site::{Place, Site};
use crate::wait;

const SERVICE: &str = "10.96.0.10";
const SERVICE_V6: &str = "fd96::10";

#[track_caller]
fn assert_fails(place: &Place, to: SocketAddr, errno: i32) {
    let error = connect(place, to).expect_err("it should be refused");
    assert_eq!(error.raw_os_error(), Some(errno), "{to}: {error}");
}

#[test]
fn a_pod_set_to_refuse_is_refused_until_it_is_served_again() {
    needs_root!();
    let (site, capture, pod) = enrolled();
    let node = site.node.place(Some(&site.cgroup("pods")));
    let server = pod.serve("[::]:0");
    capture.set_refusing(pod.cookie, true).unwrap();
    for to in [
        at(SERVICE, 80),
        at(SERVICE_V6, 80),
        at(&format!("::ffff:{SERVICE}"), 80),
    ] {
        assert_fails(&pod.app, to, libc::ECONNREFUSED);
    }
    for to in [pod.v4(server.port), pod.v6(server.port)] {
        assert_fails(&node, to, libc::ECONNREFUSED);
    }
    // Within the pod, and for its probes, nothing has changed.
    connect(&pod.app, at("127.0.0.1", server.port)).unwrap();
    server.accept(&pod.app);
    connect(&site.node.place(Some(&site.cgroup("kubelet"))), pod.v4(server.port)).unwrap();
    server.accept(&pod.app);
    assert!(!pod.proxy_has_work());
    assert_eq!(capture.counters().unwrap().get(Counter::RefusedRefusing), 3);

    // Enrolling again does not end it; that is for the agent to say.
    capture.enrol(&pod.spec()).unwrap();
    assert_fails(&pod.app, at(SERVICE, 80), libc::ECONNREFUSED);
    capture.set_refusing(pod.cookie, false).unwrap();
    connect(&pod.app, at(SERVICE, 80)).unwrap();
    pod.accept_outbound(false);
    connect(&node, pod.v4(server.port)).unwrap();
    pod.accept_inbound(false);
}

#[test]
fn a_family_without_listener_is_refused() {
    needs_root!();
    let (site, capture, pod) = enrolled();
    let node = site.node.place(Some(&site.cgroup("pods")));
    let server = pod.serve("[::]:0");
    let mut spec = pod.spec();
    (spec.v6, spec.inbound_v6) = (None, None);
    capture.enrol(&spec).unwrap();
    assert_fails(&pod.app, at(SERVICE_V6, 80), libc::ENETUNREACH);
    assert_fails(&node, pod.v6(server.port), libc::ECONNREFUSED);
    connect(&pod.app, at(SERVICE, 80)).unwrap();
    connect(&node, pod.v4(server.port)).unwrap();
    let mut spec = pod.spec();
    (spec.v4, spec.inbound_v4) = (None, None);
    capture.enrol(&spec).unwrap();
    assert_fails(&pod.app, at(SERVICE, 80), libc::ENETUNREACH);
    assert_fails(&pod.app, at(&format!("::ffff:{SERVICE}"), 80), libc::ENETUNREACH);
    assert_fails(&node, pod.v4(server.port), libc::ECONNREFUSED);
    connect(&pod.app, at(SERVICE_V6, 80)).unwrap();
    connect(&node, pod.v6(server.port)).unwrap();
}

#[test]
fn a_pod_whose_listeners_are_gone_is_closed_both_ways() {
    needs_root!();
    let (site, capture, pod) = enrolled();
    let node = site.node.place(Some(&site.cgroup("pods")));
    let server = pod.serve("[::]:0");
    let app = pod.namespace.place(Some(&site.cgroup("pods")));
    let (v4, v6) = (pod.v4(server.port), pod.v6(server.port));
    let Pod {
        outbound_v4,
        outbound_v6,
        inbound_v4,
        inbound_v6,
        cookie,
        ..
    } = pod;
    drop((outbound_v4, outbound_v6, inbound_v4, inbound_v6));
    // A program that another test starts just now has them open too, until it is executed.
    wait::eventually("the listeners are closed", || {
        let outward = [at(SERVICE, 80), at(SERVICE_V6, 80)].map(|to| connect(&app, to).is_err());
        let inward = [v4, v6].map(|to| connect(&node, to).is_err());
        outward == [true; 2] && inward == [true; 2]
    });
    for to in [at(SERVICE, 80), at(SERVICE_V6, 80)] {
        assert_fails(&app, to, libc::ECONNREFUSED);
    }
    for to in [v4, v6] {
        assert_fails(&node, to, libc::ECONNREFUSED);
    }
    assert_eq!(capture.pending_handshakes(cookie).unwrap(), 0);
    assert!(capture.handshakes().unwrap().is_empty());
    assert!(handshakes(&capture).fds().len() == 2);
}

#[test]
fn two_pods_cannot_have_one_slot() {
    needs_root!();
    let (site, capture, _pod) = enrolled();
    let other = Pod::new(&site, 2);
    let mut spec = other.spec();
    spec.slot = 1;
    assert!(matches!(capture.enrol(&spec), Err(Error::SlotTaken { slot: 1, .. })));
    spec.slot = 4096;
    assert!(matches!(capture.enrol(&spec), Err(Error::NoSuchSlot { .. })));
    assert_eq!(capture.pods().unwrap().len(), 1);
}

#[test]
fn a_pod_that_cannot_be_enrolled_whole_is_not_enrolled_at_all() {
    needs_root!();
    let (site, capture, _pod) = enrolled();
    let other = Pod::new(&site, 2);
    let mut spec = other.spec();
    // Not a network namespace: the lookup program cannot be attached.
    let file = std::fs::File::open("/proc/self/ns/uts").unwrap();
    spec.netns = std::os::fd::AsFd::as_fd(&file);
    capture.enrol(&spec).unwrap_err();
    assert_eq!(capture.pods().unwrap().len(), 1);
    assert!(!site.layout.pin_dir.join("pods").join(other.cookie.to_string()).exists());
    let node = site.node.place(Some(&site.cgroup("pods")));
    let server = crate::pod::serve(&node, "0.0.0.0:0");
    connect(&other.app, at("10.9.2.1", server.port)).unwrap();
}

#[test]
fn an_agent_outside_the_cgroup_it_would_attach_to_is_told() {
    needs_root!();
    let site = Site::new();
    let layout = Layout {
        cgroup: site.cgroup("pods"),
        ..site.layout.clone()
    };
    let error = site.try_start(&layout).unwrap_err();
    assert!(matches!(error, Error::OutsideCgroup { .. }), "{error}");
}
