//! Programs of others at the same hooks.

use std::net::SocketAddr;
use std::os::fd::AsFd;

use underpass_ebpf::{Capture, doctor};

use crate::needs_root;
use crate::objects::{REWRITER_NAME, Rewriter};
use crate::pod::{Pod, at, connect, enrolled, handshakes};
use crate::site::Site;

const SERVICE: [u8; 4] = [10, 96, 0, 10];
const BACKEND: [u8; 4] = [10, 97, 0, 10];

fn service() -> SocketAddr {
    (SERVICE, 80).into()
}

/// What the proxy learns of a connection to the service.
fn original(capture: &Capture, pod: &Pod) -> SocketAddr {
    let _client = connect(&pod.app, service()).unwrap();
    let (accepted, _) = pod.accept_outbound(false);
    handshakes(capture).original(accepted.as_fd()).unwrap().unwrap()
}

/// What doctor says of the rewriter: whether it is attached to the asked cgroup itself, and whether it runs before ours.
fn doctor_says(site: &Site, cgroup: &std::path::Path, rewriter: &Rewriter) -> (bool, Option<bool>) {
    let foreign = doctor::foreign_programs(cgroup, &site.layout.pin_dir).unwrap();
    let found: Vec<_> = foreign
        .iter()
        .filter(|program| program.id == rewriter.program)
        .collect();
    assert_eq!(found.len(), 1, "{foreign:?}");
    assert_eq!((found[0].hook, found[0].name.as_str()), ("connect4", REWRITER_NAME));
    (found[0].direct, found[0].before_ours)
}

#[test]
fn a_rewriter_that_was_attached_first_at_the_same_cgroup_runs_after_us() {
    needs_root!();
    let site = Site::new();
    let rewriter = Rewriter::attach(&site.layout.cgroup, SERVICE, BACKEND);
    let capture = site.start();
    let pod = Pod::new(&site, 1);
    capture.enrol(&pod.spec()).unwrap();
    let (direct, before_ours) = doctor_says(&site, &site.layout.cgroup, &rewriter);
    assert!(direct);
    // Kernels before 6.17 know only the order of attachment; then doctor must say so.
    let seen = if before_ours == Some(false) { SERVICE } else { BACKEND };
    assert_eq!(original(&capture, &pod), SocketAddr::from((seen, 80)));
    assert_eq!(before_ours, Some(!Rewriter::can_be_in_front(&site.layout.cgroup)));
}

#[test]
fn a_rewriter_at_a_cgroup_above_runs_after_us() {
    needs_root!();
    let mut site = Site::new();
    let above = site.layout.cgroup.clone();
    let rewriter = Rewriter::attach(&above, SERVICE, BACKEND);
    let inner = above.join("inner");
    site.make_cgroup(inner.clone());
    for role in ["pods", "proxy", "kubelet", "agent"] {
        site.make_cgroup(inner.join(role));
    }
    site.layout.cgroup = inner.clone();
    let capture = site.start();
    let pod = Pod::new(&site, 1);
    capture.enrol(&pod.spec()).unwrap();
    assert_eq!(doctor_says(&site, &inner, &rewriter), (false, Some(false)));
    assert_eq!(original(&capture, &pod), service());
}

#[test]
fn doctor_tells_of_a_rewriter_below_that_runs_before_us() {
    needs_root!();
    let site = Site::new();
    let capture = site.start();
    let below = site.cgroup("pods");
    let rewriter = Rewriter::attach(&below, SERVICE, BACKEND);
    let pod = Pod::new(&site, 1);
    capture.enrol(&pod.spec()).unwrap();
    assert_eq!(doctor_says(&site, &below, &rewriter), (true, Some(true)));
    assert_eq!(original(&capture, &pod), SocketAddr::from((BACKEND, 80)));
}

#[test]
fn doctor_finds_nothing_foreign_where_there_is_nothing() {
    needs_root!();
    let (site, _capture, pod) = enrolled();
    let foreign = doctor::foreign_programs(&site.cgroup("pods"), &site.layout.pin_dir).unwrap();
    // Whatever this machine has at its root is above us.
    assert!(
        foreign
            .iter()
            .all(|program| !program.direct && program.before_ours == Some(false)),
        "{foreign:?}"
    );
    let lookups = doctor::foreign_lookups(pod.namespace.handle.as_fd(), pod.cookie, &site.layout.pin_dir).unwrap();
    assert_eq!(lookups, []);
    let elsewhere = doctor::foreign_lookups(pod.namespace.handle.as_fd(), 1, &site.layout.pin_dir).unwrap();
    assert_eq!((elsewhere.len(), elsewhere[0].name.as_str()), (1, "inbound"));
    let _ = at("::", 0);
}

#[test]
fn every_program_loads_on_this_kernel() {
    needs_root!();
    for trial in doctor::trials().unwrap() {
        let failure = trial.failure.as_deref().unwrap_or_default();
        let is_bearable = match trial.name {
            // Without it nothing can be attached to devices; every program loads all the same.
            "tcx" => true,
            // A tracing program may be forbidden, as no other kind is: that is no word of the verifier's.
            "splices" => failure.contains("Operation not permitted"),
            _ => false,
        };
        assert!(failure.is_empty() || is_bearable, "{}: {failure}", trial.name);
    }
}
