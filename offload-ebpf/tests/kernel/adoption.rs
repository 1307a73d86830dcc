//! An agent that follows another one.

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::thread::UnshareFlags;
use underpass_ebpf::{Capture, Error, Layout};

use crate::needs_root;
use crate::objects::{Object, all_pinned, pin_strange_map, pinned};
use crate::pod::{Pod, accept, at, connect, enrolled, handshakes};
use crate::site::Site;

/// Has the next agent believe that the programs are of another version.
pub fn pretend_another_version(pins: &Path) {
    let identity = pins.join("object");
    std::fs::remove_file(&identity).unwrap();
    std::os::unix::fs::symlink("another", &identity).unwrap();
}

fn programs(pins: &Path) -> Vec<Object> {
    all_pinned(pins)
        .into_iter()
        .filter(|object| matches!(object, Object::Program(_)))
        .collect()
}

fn others(pins: &Path) -> Vec<Object> {
    all_pinned(pins)
        .into_iter()
        .filter(|object| !matches!(object, Object::Program(_)))
        .collect()
}

#[test]
fn a_pod_stays_captured_while_no_agent_runs() {
    needs_root!();
    let (site, capture, pod) = enrolled();
    drop(capture);
    connect(&pod.app, at("10.96.0.10", 80)).unwrap();
    pod.accept_outbound(false);
    connect(&site.node.place(None), pod.v4(80)).unwrap();
    pod.accept_inbound(false);
}

#[test]
fn an_agent_of_the_same_version_adopts_everything() {
    needs_root!();
    let (site, capture, pod) = enrolled();
    capture.set_refusing(pod.cookie, true).unwrap();
    let before = pinned(&site.layout.pin_dir);
    let pods = capture.pods().unwrap();
    drop(capture);
    let capture = site.start();
    assert_eq!(pinned(&site.layout.pin_dir), before);
    assert_eq!(capture.pods().unwrap(), pods);
    assert_eq!(capture.exempted().unwrap().len(), 2);
    assert_eq!(capture.kubelets().unwrap().len(), 1);
    capture.enrol(&pod.spec()).unwrap();
    assert_eq!(pinned(&site.layout.pin_dir), before);
}

#[test]
fn an_agent_of_another_version_replaces_the_programs_and_nothing_else() {
    needs_root!();
    let (site, capture, _pod) = enrolled();
    let pins = &site.layout.pin_dir;
    let (old_programs, old_others) = (programs(pins), others(pins));
    drop(capture);
    pretend_another_version(pins);
    let capture = site.start();
    assert_eq!(others(pins), old_others);
    assert!(programs(pins).iter().all(|program| !old_programs.contains(program)));
    crate::wait::eventually("the old programs are gone", || {
        old_programs.iter().all(|program| !program.exists())
    });
    let settled = pinned(pins);
    drop(capture);
    site.start();
    assert_eq!(pinned(pins), settled, "the next one finds its own version");
}

/// Runs `change` while the pod connects, and is connected to, again and again; each connection must reach the proxy.
fn without_a_gap(site: &Site, pod: &Pod, change: impl FnOnce()) {
    let [stop, drained] = std::array::from_fn(|_| Arc::new(AtomicBool::new(false)));
    let node = site.node.place(Some(&site.cgroup("pods")));
    let inbound = pod.v4(80);
    let hammer = |place: &crate::site::Place, to| {
        let stop = stop.clone();
        place.begin(move || {
            let mut count = 0u32;
            while !stop.load(Ordering::Relaxed) {
                // Nobody is there but the proxy: a connection past it fails.
                let stream = std::net::TcpStream::connect(to).unwrap_or_else(|e| panic!("connection {count}: {e}"));
                socket2::SockRef::from(&stream)
                    .set_linger(Some(std::time::Duration::ZERO))
                    .unwrap();
                count += 1;
            }
            count
        })
    };
    let drains = [&pod.outbound_v4, &pod.inbound_v4].map(|listener| {
        let (listener, drained) = (listener.try_clone().unwrap(), drained.clone());
        std::thread::spawn(move || {
            listener.set_nonblocking(true).unwrap();
            while !drained.load(Ordering::Relaxed) {
                let _ = listener.accept();
            }
        })
    });
    let hammers = [hammer(&pod.app, at("10.96.0.10", 80)), hammer(&node, inbound)];
    change();
    stop.store(true, Ordering::Relaxed);
    for hammer in hammers {
        assert!(hammer.end() > 0);
    }
    drained.store(true, Ordering::Relaxed);
    for drain in drains {
        drain.join().unwrap();
    }
}

#[test]
fn programs_are_replaced_and_pods_enrolled_again_without_a_gap() {
    needs_root!();
    let (site, capture, pod) = enrolled();
    without_a_gap(&site, &pod, || {
        for _ in 0..10 {
            pretend_another_version(&site.layout.pin_dir);
            let capture = site.start();
            capture.enrol(&pod.spec()).unwrap();
        }
    });
    assert!(capture.handshakes().unwrap().is_empty());
    assert_eq!(capture.pending_handshakes(pod.cookie).unwrap(), 0);
}

#[test]
fn a_pod_enrolled_again_has_its_new_listeners() {
    needs_root!();
    let (site, capture, pod) = enrolled();
    let agent = pod.namespace.place(Some(&site.cgroup("agent")));
    let [outbound, inbound] =
        agent.run(|| ["10.9.1.2:0", "127.0.0.1:0"].map(|at| std::net::TcpListener::bind(at).unwrap()));
    let mut spec = pod.spec();
    spec.v4 = Some((crate::pod::address_v4(1), outbound.local_addr().unwrap().port()));
    spec.inbound_v4 = Some(inbound.as_fd());
    capture.enrol(&spec).unwrap();
    let service = at("10.96.0.10", 80);
    connect(&pod.app, service).unwrap();
    let (accepted, _) = accept(&pod.proxy, &outbound);
    assert_eq!(handshakes(&capture).original(accepted.as_fd()).unwrap(), Some(service));
    connect(&site.node.place(None), pod.v4(80)).unwrap();
    accept(&pod.proxy, &inbound);
}

#[test]
fn addresses_that_a_pod_no_longer_has_are_forgotten() {
    needs_root!();
    let site = Site::new();
    let capture = site.start();
    let pod = Pod::new(&site, 1);
    let mut spec = pod.spec();
    let service = at("10.96.0.10", 80);
    // As many as it takes to be read in several goes.
    spec.addresses
        .extend((0..3000u16).map(|n| std::net::IpAddr::from([10, 96, n.to_be_bytes()[0], n.to_be_bytes()[1]])));
    assert!(spec.addresses.contains(&service.ip()));
    capture.enrol(&spec).unwrap();
    // It counts as the pod's own, so it is not captured; and nobody is there.
    pod.namespace.ip("route add unreachable 10.96.0.0/16");
    assert!(connect(&pod.app, service).is_err());
    capture.enrol(&pod.spec()).unwrap();
    for n in 0..3000u16 {
        let [high, low] = n.to_be_bytes();
        connect(&pod.app, at(&format!("10.96.{high}.{low}"), 80)).unwrap();
        pod.accept_outbound(false);
    }
}

#[test]
fn maps_of_another_layout_are_not_adopted() {
    needs_root!();
    let site = Site::new();
    drop(site.start());
    let pin = site.layout.pin_dir.join("maps/PODS");
    std::fs::remove_file(&pin).unwrap();
    pin_strange_map(&pin);
    let error = site.try_start(&site.layout).unwrap_err();
    assert!(matches!(error, Error::Incompatible { .. }), "{error}");
    assert!(error.to_string().contains("underpass detach"), "{error}");
    Capture::detach(&site.layout).unwrap();
    site.start();
}

#[test]
fn an_agent_told_to_attach_elsewhere_moves_the_programs() {
    needs_root!();
    let mut site = Site::new();
    let capture = site.start();
    let pod = Pod::new(&site, 1);
    capture.enrol(&pod.spec()).unwrap();
    let inner = site.layout.cgroup.join("inner");
    site.make_cgroup(inner.clone());
    for role in ["pods", "proxy", "kubelet", "agent"] {
        site.make_cgroup(inner.join(role));
    }
    let old_links: Vec<_> = all_pinned(&site.layout.pin_dir.join("links"));
    site.layout.cgroup = inner;
    let capture = site.start();
    crate::wait::eventually("the old links are gone", || {
        old_links.iter().all(|object| !object.exists())
    });
    // A process that is not under the new cgroup is not captured any more; one that is, is.
    assert!(connect_by_nowhere(&pod).is_err());
    let app = pod.namespace.place(Some(&site.cgroup("pods")));
    connect(&app, at("10.96.0.10", 80)).unwrap();
    drop(capture);
}

fn connect_by_nowhere(pod: &Pod) -> std::io::Result<std::net::TcpStream> {
    pod.namespace.ip("route add unreachable 10.96.0.10");
    connect(&pod.app, at("10.96.0.10", 80))
}

#[test]
fn an_agent_mounts_bpffs_where_it_is_missing() {
    needs_root!();
    let site = Site::new();
    let layout = site.layout.clone();
    let agent = site.node.place(Some(&site.cgroup("agent")));
    agent.run(move || {
        use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount};
        // SAFETY: the thread gets its own view of the mounts, and of its working directory.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS) }.unwrap();
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
        while unmount("/sys/fs/bpf", UnmountFlags::DETACH).is_ok() {}
        let capture = Capture::start(&layout).unwrap();
        assert!(capture.pods().unwrap().is_empty());
        assert_eq!(Capture::detach(&layout).unwrap().maps, 13);

        let elsewhere = Layout {
            pin_dir: std::env::temp_dir().join("underpass-pins"),
            ..layout
        };
        let error = Capture::start(&elsewhere).unwrap_err();
        assert!(matches!(error, Error::NoBpffs { .. }), "{error}");
    });
}
