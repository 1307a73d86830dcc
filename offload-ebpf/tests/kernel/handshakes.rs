//! Handshakes that fail, hang or are too many.

use std::net::{SocketAddr, TcpListener, TcpStream};

use socket2::{Domain, Socket, Type};
use underpass_ebpf::{Capture, HandshakeKey, Note};

use crate::needs_root;
use crate::pod::{Pod, address_v4, at, connect, enrolled, handshakes};
use crate::site::Site;
use crate::wait::eventually;

const SERVICE: &str = "10.96.0.10";

fn service(port: u16) -> SocketAddr {
    at(SERVICE, port)
}

/// Nothing is left of any handshake.
#[track_caller]
fn assert_all_ended(capture: &Capture, pod: &Pod) {
    eventually("no handshake is left", || capture.handshakes().unwrap().is_empty());
    assert_eq!(capture.pending_handshakes(pod.cookie).unwrap(), 0);
}

/// A listener in the place of the pod's outbound one, whose queue is full after `BACKLOG + 1` connections.
fn crowded(capture: &Capture, pod: &Pod, limit: u32) -> TcpListener {
    let listener = pod.proxy.run(move || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&at("10.9.1.2", 16001).into()).unwrap();
        socket.listen(BACKLOG).unwrap();
        TcpListener::from(socket)
    });
    let mut spec = pod.spec();
    spec.v4 = Some((address_v4(1), 16001));
    spec.handshake_limit = limit;
    capture.enrol(&spec).unwrap();
    listener
}

const BACKLOG: i32 = 2;

/// Begins a connection and leaves it to itself.
fn begin(pod: &Pod, to: SocketAddr) -> std::io::Result<TcpStream> {
    pod.app.run(move || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        match socket.connect(&to.into()) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
            _ => Ok(TcpStream::from(socket)),
        }
    })
}

#[test]
fn nothing_is_left_of_a_handshake_that_succeeded() {
    needs_root!();
    let (_site, capture, pod) = enrolled();
    let clients: Vec<_> = (1..=20).map(|port| connect(&pod.app, service(port)).unwrap()).collect();
    assert_all_ended(&capture, &pod);
    for _ in &clients {
        pod.accept_outbound(false);
    }
}

#[test]
fn nothing_is_left_of_a_handshake_that_was_refused() {
    needs_root!();
    let site = Site::new();
    let capture = site.start();
    let pod = Pod::new(&site, 1);
    let mut spec = pod.spec();
    spec.v4 = Some((address_v4(1), 1));
    capture.enrol(&spec).unwrap();
    for port in 1..=20 {
        let error = connect(&pod.app, service(port)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ECONNREFUSED));
    }
    assert_all_ended(&capture, &pod);
}

#[test]
fn nothing_is_left_of_handshakes_that_were_given_up() {
    needs_root!();
    let (_site, capture, pod) = enrolled();
    let listener = crowded(&capture, &pod, 1024);
    let clients: Vec<_> = (1..=50).map(|port| begin(&pod, service(port)).unwrap()).collect();
    assert!(
        capture.pending_handshakes(pod.cookie).unwrap() > 0,
        "the queue should be full"
    );
    drop(clients);
    // What the listener has not taken when it closes never was a connection.
    drop(listener);
    assert_all_ended(&capture, &pod);
}

#[test]
fn a_pod_with_too_many_handshakes_is_refused_until_some_end_and_others_are_not() {
    needs_root!();
    let site = Site::new();
    let capture = site.start();
    let pod = Pod::new(&site, 1);
    let other = Pod::new(&site, 2);
    capture.enrol(&pod.spec()).unwrap();
    capture.enrol(&other.spec()).unwrap();
    let _listener = crowded(&capture, &pod, 10);
    let mut clients = Vec::new();
    let refused = loop {
        match begin(&pod, service(80)) {
            Ok(client) => clients.push(client),
            Err(error) => break error,
        }
        assert!(clients.len() < 100);
    };
    assert_eq!(refused.raw_os_error(), Some(libc::ECONNREFUSED));
    assert_eq!(capture.pending_handshakes(pod.cookie).unwrap(), 10);
    let mut spec = pod.spec();
    spec.v4 = Some((address_v4(1), 16001));
    spec.handshake_limit = 10;
    capture.enrol(&spec).unwrap();
    assert_eq!(
        capture.pending_handshakes(pod.cookie).unwrap(),
        10,
        "enrolling again forgets none"
    );
    connect(&other.app, service(80)).unwrap();
    other.accept_outbound(false);
    // The first ones are in the queue; the last one is not.
    drop(clients.pop());
    let client = begin(&pod, service(80)).unwrap();
    drop((clients, client));
    assert_eq!(capture.pending_handshakes(pod.cookie).unwrap(), 0);
    assert_eq!(
        capture.counters().unwrap().get(underpass_ebpf::Counter::RefusedLimit),
        1
    );
}

#[test]
fn a_pod_enrolled_anew_starts_with_no_handshakes_and_old_sockets_do_not_count() {
    needs_root!();
    let (_site, capture, pod) = enrolled();
    let _listener = crowded(&capture, &pod, 1024);
    let clients: Vec<_> = (1..=20).map(|port| begin(&pod, service(port)).unwrap()).collect();
    capture.withdraw(pod.cookie).unwrap();
    assert!(capture.handshakes().unwrap().is_empty());
    capture.enrol(&pod.spec()).unwrap();
    assert_eq!(capture.pending_handshakes(pod.cookie).unwrap(), 0);
    drop(clients);
    assert_all_ended(&capture, &pod);
    let mut spec = pod.spec();
    spec.handshake_limit = 1;
    capture.enrol(&spec).unwrap();
    connect(&pod.app, service(80)).unwrap();
}

#[test]
fn announcements_of_a_proxy_that_died_are_swept_and_captured_connections_are_not() {
    needs_root!();
    let site = Site::new();
    let capture = site.start();
    let (pod, other) = (Pod::new(&site, 1), Pod::new(&site, 2));
    capture.enrol(&pod.spec()).unwrap();
    capture.enrol(&other.spec()).unwrap();
    let _listener = crowded(&capture, &pod, 1024);
    let _clients: Vec<_> = (1..=20).map(|port| begin(&pod, service(port)).unwrap()).collect();
    let captured = capture.handshakes().unwrap().len();
    assert!(captured > 0);
    let proxy = handshakes(&capture);
    let announce = |netns| {
        let key = HandshakeKey::new(netns, at("10.9.9.9", 1234), 80);
        proxy.expect(key, Note::peer(at("10.9.9.9", 99))).unwrap();
        key
    };
    announce(pod.cookie);
    announce(other.cookie);
    capture.sweep_handshakes(Some(pod.cookie)).unwrap();
    assert_eq!(capture.handshakes().unwrap().len(), captured + 1);
    capture.sweep_handshakes(None).unwrap();
    assert_eq!(capture.handshakes().unwrap().len(), captured);
    let key = announce(pod.cookie);
    proxy.forget(&key);
    proxy.forget(&key);
    assert_eq!(capture.handshakes().unwrap().len(), captured);
}

#[test]
fn a_flood_of_short_connections_leaves_nothing_behind() {
    needs_root!();
    let (site, capture, pod) = enrolled();
    let places: Vec<_> = (0..4)
        .map(|_| pod.namespace.place(Some(&site.cgroup("pods"))))
        .collect();
    let floods: Vec<_> = places
        .iter()
        .map(|place| place.begin(|| (0..500).filter(|_| TcpStream::connect(at(SERVICE, 80)).is_ok()).count()))
        .collect();
    let listener = pod.outbound_v4.try_clone().unwrap();
    let drain = std::thread::spawn(move || for _ in listener.incoming().take(2000) {});
    let connected: usize = floods.into_iter().map(crate::site::Underway::end).sum();
    assert_eq!(connected, 2000);
    drain.join().unwrap();
    assert_all_ended(&capture, &pod);
}
