//! What is taken down leaves nothing.

use std::os::fd::AsFd;

use underpass_ebpf::Capture;

use crate::needs_root;
use crate::objects::{Object, all_pinned, open_pin};
use crate::pod::{Pod, at, await_end_of_first, connect, enrolled, serve};
use crate::site::Site;
use crate::wait::eventually;

/// Objects go when the last who uses them has gone, a moment later (RCU).
#[track_caller]
fn assert_gone(objects: &[Object]) {
    let mut left = Vec::new();
    eventually("all objects are gone", || {
        left = objects.iter().filter(|object| object.exists()).copied().collect();
        left.is_empty()
    });
}

#[test]
fn detaching_leaves_no_pin_link_program_or_map() {
    needs_root!();
    let (site, capture, pod) = enrolled();
    connect(&pod.app, at("10.96.0.10", 80)).unwrap();
    let objects = all_pinned(&site.layout.pin_dir);
    // 13 maps; links and programs: 6 at the cgroup, 1 at the pod and, where the kernel has a place for it, its guard.
    let guards = usize::from(capture.is_guarding());
    assert_eq!(objects.len(), 13 + 2 * (7 + guards));
    assert!(objects.iter().all(|object| object.exists()));
    drop(capture);
    let detached = Capture::detach(&site.layout).unwrap();
    assert_eq!((detached.programs, detached.pods, detached.maps), (6, 1, 13));
    assert!(!site.layout.pin_dir.exists());
    assert_gone(&objects);
    assert!(Capture::detach(&site.layout).unwrap().is_empty());

    let node = site.node.place(Some(&site.cgroup("pods")));
    let server = serve(&node, "0.0.0.0:0");
    connect(&pod.app, at("10.9.1.1", server.port)).unwrap();
    server.accept(&node);
}

#[test]
fn detaching_works_while_an_agent_is_running() {
    needs_root!();
    let (site, capture, pod) = enrolled();
    let objects = all_pinned(&site.layout.pin_dir);
    // As an agent may that is just replacing programs.
    let of_pod = site.layout.pin_dir.join("pods").join(pod.cookie.to_string());
    let held: Vec<_> = [site.layout.pin_dir.join("links"), of_pod]
        .iter()
        .flat_map(|directory| std::fs::read_dir(directory).unwrap())
        .map(|entry| open_pin(&entry.unwrap().path()).unwrap())
        .collect();
    assert_eq!(held.len(), 7 + usize::from(capture.is_guarding()));
    Capture::detach(&site.layout).unwrap();
    let node = site.node.place(Some(&site.cgroup("pods")));
    let (server, app) = (serve(&node, "0.0.0.0:0"), pod.serve("0.0.0.0:0"));
    connect(&pod.app, at("10.9.1.1", server.port)).unwrap();
    server.accept(&node);
    connect(&node, pod.v4(app.port)).unwrap();
    app.accept(&pod.app);
    drop(held);
    drop(capture);
    assert_gone(&objects);
}

#[test]
fn a_pod_that_is_withdrawn_is_free_and_others_are_not() {
    needs_root!();
    let site = Site::new();
    let capture = site.start();
    let (pod, other) = (Pod::new(&site, 1), Pod::new(&site, 2));
    let before = all_pinned(&site.layout.pin_dir);
    capture.enrol(&pod.spec()).unwrap();
    let both: Vec<_> = all_pinned(&site.layout.pin_dir);
    let of_pod: Vec<_> = both.iter().filter(|object| !before.contains(object)).copied().collect();
    capture.enrol(&other.spec()).unwrap();

    capture.withdraw(pod.cookie).unwrap();
    let links: Vec<_> = of_pod
        .into_iter()
        .filter(|object| matches!(object, Object::Link(_)))
        .collect();
    assert_gone(&links);
    let node = site.node.place(Some(&site.cgroup("pods")));
    let server = serve(&node, "0.0.0.0:0");
    connect(&pod.app, at("10.9.1.1", server.port)).unwrap();
    server.accept(&node);
    let app = pod.serve("0.0.0.0:0");
    connect(&node, pod.v4(app.port)).unwrap();
    app.accept(&pod.app);

    connect(&other.app, at("10.9.2.1", server.port)).unwrap();
    other.accept_outbound(false);
    assert_eq!(capture.pods().unwrap().len(), 1);
    capture.withdraw(pod.cookie).unwrap();
    // Its slot is free.
    let mut spec = pod.spec();
    spec.slot = 1;
    capture.enrol(&spec).unwrap();
}

#[test]
fn nothing_is_left_of_a_pod_whose_namespace_is_gone() {
    needs_root!();
    let site = Site::new();
    let capture = site.start();
    let before = all_pinned(&site.layout.pin_dir);
    let pod = Pod::new(&site, 1);
    capture.enrol(&pod.spec()).unwrap();
    connect(&pod.app, at("10.96.0.10", 80)).unwrap();
    let of_pod: Vec<_> = all_pinned(&site.layout.pin_dir)
        .into_iter()
        .filter(|it| !before.contains(it))
        .collect();
    let cookie = pod.cookie;
    drop(pod);
    await_end_of_first(&site);
    capture.withdraw(cookie).unwrap();
    assert_gone(
        &of_pod
            .into_iter()
            .filter(|it| matches!(it, Object::Link(_)))
            .collect::<Vec<_>>(),
    );
    assert_eq!(all_pinned(&site.layout.pin_dir), before);
    assert!(capture.pods().unwrap().is_empty() && capture.handshakes().unwrap().is_empty());
}

#[test]
fn a_namespace_is_not_kept_by_being_enrolled() {
    needs_root!();
    let (site, capture, pod) = enrolled();
    drop(pod);
    await_end_of_first(&site);
    assert!(capture.handshakes_fd().as_fd().try_clone_to_owned().is_ok());
}
