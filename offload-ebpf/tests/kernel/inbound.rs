//! Connections that an enrolled pod receives.

use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::path::PathBuf;

use socket2::{Domain, Protocol, Socket, Type};
use underpass_ebpf::{Capture, HandshakeKey, Note};

use crate::needs_root;
use crate::pod::{Pod, Server, at, connect, converse, enrolled, handshakes, peer_name};
use crate::site::{Place, Site};
use crate::wait::{eventually, soon};

/// A process of the node in some cgroup.
fn on_node(site: &Site, role: &str) -> Place {
    let cgroup: PathBuf = site.cgroup(role);
    site.node.place(Some(&cgroup))
}

/// A connection to `address` ends at the proxy, which sees it as it is.
#[track_caller]
fn assert_steered(from: &Place, pod: &Pod, address: SocketAddr) {
    let mut client = connect(from, address).unwrap_or_else(|e| panic!("{address}: {e}"));
    let (mut accepted, peer) = pod.accept_inbound(address.is_ipv6() && address.ip().to_canonical().is_ipv6());
    let own = client.local_addr().unwrap();
    assert_eq!((peer.ip(), peer.port()), (own.ip().to_canonical(), own.port()));
    assert_eq!(accepted.local_addr().unwrap().port(), address.port());
    assert_eq!(accepted.local_addr().unwrap().ip(), address.ip().to_canonical());
    assert_eq!(peer_name(&pod.proxy, &accepted), peer);
    converse(&mut client, &mut accepted);
}

#[test]
fn connections_to_a_pod_are_steered_to_the_proxy() {
    needs_root!();
    let (site, _capture, pod) = enrolled();
    let other = Pod::new(&site, 2);
    let server = pod.serve("[::]:0");
    for from in [&on_node(&site, "pods"), &other.app] {
        assert_steered(from, &pod, pod.v4(server.port));
        assert_steered(from, &pod, pod.v6(server.port));
        assert_steered(from, &pod, at("::ffff:10.9.1.2", server.port));
        assert_steered(from, &pod, pod.v4(7));
    }
    server.listener.set_nonblocking(true).unwrap();
    assert!(server.listener.accept().is_err(), "the application saw none of them");
}

#[test]
fn connections_to_a_pod_that_is_not_enrolled_are_left_alone() {
    needs_root!();
    let (site, _capture, _pod) = enrolled();
    let other = Pod::new(&site, 2);
    let server = other.serve("0.0.0.0:0");
    let client = connect(&on_node(&site, "pods"), other.v4(server.port)).unwrap();
    let (_, peer, _) = server.accept(&other.app);
    assert_eq!(peer, client.local_addr().unwrap());
}

/// The proxy's connection to an application, from a namespace of its choice, announced as from `client`.
fn announced(
    capture: &Capture,
    from: &Place,
    pod: &Pod,
    to: SocketAddr,
    client: SocketAddr,
) -> (TcpStream, HandshakeKey) {
    let (handshakes, netns) = (handshakes(capture), pod.cookie);
    let source = from.run(move || {
        // The source that a connection to the pod would have.
        let probe = UdpSocket::bind(at(if to.is_ipv4() { "0.0.0.0" } else { "::" }, 0)).unwrap();
        probe.connect(to).unwrap();
        probe.local_addr().unwrap().ip()
    });
    from.run(move || {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP)).unwrap();
        socket.bind(&SocketAddr::new(source, 0).into()).unwrap();
        let own = socket.local_addr().unwrap().as_socket().unwrap();
        let key = HandshakeKey::new(netns, own, to.port());
        handshakes.expect(key, Note::peer(client)).unwrap();
        socket.connect(&to.into()).unwrap();
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(soon())).unwrap();
        (stream, key)
    })
}

#[test]
fn an_application_sees_the_true_client_of_a_connection_that_the_proxy_makes() {
    needs_root!();
    let (site, capture, pod) = enrolled();
    let other = Pod::new(&site, 2);
    let (v4, dual) = (pod.serve("0.0.0.0:0"), pod.serve("[::]:0"));
    let (client_v4, client_v6) = (at("203.0.113.7", 4711), at("2001:db8::7", 4711));
    let cases = [
        (&v4, pod.v4(v4.port), client_v4, client_v4),
        (&dual, pod.v6(dual.port), client_v6, client_v6),
        (&dual, pod.v4(dual.port), client_v4, at("::ffff:203.0.113.7", 4711)),
    ];
    for (server, to, client, seen) in cases {
        // From the client pod's namespace, as the proxy does, and from the pod's own.
        for from in [&other.proxy, &pod.proxy] {
            let (mut stream, _) = announced(&capture, from, &pod, to, client);
            let (mut accepted, accept_says, peer_name_says) = server.accept(&pod.app);
            assert_eq!(accept_says, seen);
            assert_eq!(peer_name_says, seen);
            assert!(capture.handshakes().unwrap().is_empty(), "an announcement is used once");
            converse(&mut stream, &mut accepted);
        }
    }
    assert!(!pod.proxy_has_work());
}

#[test]
fn a_note_on_the_proxys_socket_announces_its_connection() {
    needs_root!();
    let (site, capture, pod) = enrolled();
    let other = Pod::new(&site, 2);
    capture.enrol(&other.spec()).unwrap();
    let server = pod.serve("[::]:0");
    let clients = [at("203.0.113.7", 4711), at("2001:db8::7", 4711)];
    for (to, client) in [pod.v4(server.port), pod.v6(server.port)].into_iter().zip(clients) {
        let mut stream = noted(&capture, &other.proxy, to, client).unwrap();
        let (mut accepted, accept_says, peer_name_says) = server.accept(&pod.app);
        assert_eq!(accept_says.ip().to_canonical(), client.ip());
        assert_eq!((accept_says.port(), peer_name_says), (client.port(), accept_says));
        assert_eq!(peer_name(&other.proxy, &stream), to, "the proxy is told the truth");
        assert!(capture.handshakes().unwrap().is_empty());
        converse(&mut stream, &mut accepted);
        // Nobody listens there: what was announced ends with the attempt.
        let error = noted(&capture, &other.proxy, SocketAddr::new(to.ip(), 7), client).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ECONNREFUSED));
        assert!(capture.handshakes().unwrap().is_empty());
    }
    assert!(!pod.proxy_has_work());
    assert_eq!(capture.pending_handshakes(other.cookie).unwrap(), 0);
}

/// The proxy's connection to an application, announced by a note on its socket.
fn noted(capture: &Capture, from: &Place, to: SocketAddr, client: SocketAddr) -> std::io::Result<TcpStream> {
    let handshakes = handshakes(capture);
    from.run(move || {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
        handshakes.announce(socket.as_fd(), Note::peer(client))?;
        socket.connect(&to.into())?;
        socket.set_read_timeout(Some(soon()))?;
        Ok(socket.into())
    })
}

#[test]
fn an_application_that_listens_for_mptcp_sees_the_true_client_too() {
    needs_root!();
    let (site, capture, pod) = enrolled();
    let other = Pod::new(&site, 2);
    // As programs in Go do.
    let listener = pod.app.run(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::MPTCP)).ok()?;
        socket.bind(&at("0.0.0.0", 0).into()).unwrap();
        socket.listen(16).unwrap();
        Some(TcpListener::from(socket))
    });
    let Some(listener) = listener else {
        return eprintln!("SKIP: this kernel has no MPTCP");
    };
    let port = listener.local_addr().unwrap().port();
    let server = Server { listener, port };
    let client = at("203.0.113.7", 4711);
    let (mut stream, _) = announced(&capture, &other.proxy, &pod, pod.v4(port), client);
    let (mut accepted, accept_says, peer_name_says) = server.accept(&pod.app);
    assert_eq!((accept_says, peer_name_says), (client, client));
    converse(&mut stream, &mut accepted);
    assert_steered(&other.app, &pod, pod.v4(port));
}

#[test]
fn only_the_announced_tuple_is_let_through() {
    needs_root!();
    let (site, capture, pod) = enrolled();
    let other = Pod::new(&site, 2);
    let server = pod.serve("0.0.0.0:0");
    let handshakes = handshakes(&capture);
    let source = other.v4(40_000);
    let client = at("203.0.113.7", 4711);
    let near_misses = [
        HandshakeKey::new(other.cookie, source, server.port),
        HandshakeKey::new(pod.cookie, source, server.port + 1),
        HandshakeKey::new(pod.cookie, other.v4(40_001), server.port),
        HandshakeKey::new(pod.cookie, at("10.9.2.3", 40_000), server.port),
    ];
    for key in near_misses {
        handshakes.expect(key, Note::peer(client)).unwrap();
    }
    // A note that only the kernel's programs make lets nobody in either.
    let mut captured = Note::peer(client);
    captured.kind = 1;
    handshakes
        .expect(HandshakeKey::new(pod.cookie, source, server.port), captured)
        .unwrap();
    let to = pod.v4(server.port);
    let stream = other.proxy.run(move || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&source.into()).unwrap();
        socket.connect(&to.into()).unwrap();
        TcpStream::from(socket)
    });
    let (_, peer) = pod.accept_inbound(false);
    assert_eq!(peer, stream.local_addr().unwrap());
}

#[test]
fn an_announcement_that_was_used_does_not_let_the_next_one_in() {
    needs_root!();
    let (site, capture, pod) = enrolled();
    let other = Pod::new(&site, 2);
    let server = pod.serve("0.0.0.0:0");
    let (stream, key) = announced(&capture, &other.proxy, &pod, pod.v4(server.port), at("203.0.113.7", 1));
    let (accepted, ..) = server.accept(&pod.app);
    // A reset leaves no TIME_WAIT behind: the same source can be used at once.
    for socket in [stream, accepted] {
        socket2::SockRef::from(&socket)
            .set_linger(Some(std::time::Duration::ZERO))
            .unwrap();
    }
    let (source, to) = (key.remote(), pod.v4(server.port));
    let again = other.app.run(move || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&source.into()).unwrap();
        socket.connect(&to.into()).map(|()| TcpStream::from(socket))
    });
    let _again = again.unwrap();
    assert_eq!(pod.accept_inbound(false).1, source);
}

#[test]
fn datagrams_to_a_pod_are_left_alone() {
    needs_root!();
    let (site, _capture, pod) = enrolled();
    let node = on_node(&site, "pods");
    for (any, to) in [("0.0.0.0", pod.v4(0)), ("::", pod.v6(0))] {
        let server = pod.app.run(move || UdpSocket::bind(at(any, 0)).unwrap());
        server.set_nonblocking(true).unwrap();
        let to = SocketAddr::new(to.ip(), server.local_addr().unwrap().port());
        let client = node.run(move || UdpSocket::bind(at(any, 0)).unwrap());
        // The first ones may be lost while the link comes up.
        eventually("a datagram arrives", || {
            client.send_to(b"ping", to).unwrap();
            server.recv_from(&mut [0; 8]).is_ok_and(|(len, _)| len == 4)
        });
    }
}

#[test]
fn the_kubelets_probes_go_straight_to_the_application() {
    needs_root!();
    let (site, capture, pod) = enrolled();
    let (v4, dual) = (pod.serve("0.0.0.0:0"), pod.serve("[::]:0"));
    let kubelet = on_node(&site, "kubelet");
    let cases = [
        (&v4, pod.v4(v4.port)),
        (&dual, pod.v6(dual.port)),
        (&dual, at("::ffff:10.9.1.2", dual.port)),
    ];
    for (server, to) in cases {
        let mut client = connect(&kubelet, to).unwrap();
        let (mut accepted, peer, _) = server.accept(&pod.app);
        assert_eq!(peer_name(&kubelet, &client), to);
        let own = client.local_addr().unwrap();
        assert_eq!(
            (peer.ip().to_canonical(), peer.port()),
            (own.ip().to_canonical(), own.port())
        );
        converse(&mut client, &mut accepted);
        assert!(capture.handshakes().unwrap().is_empty());
    }
    // To ports where nobody listens, a probe fails as it should, and leaves nothing.
    for to in [pod.v4(7), pod.v6(7)] {
        assert_eq!(
            connect(&kubelet, to).unwrap_err().raw_os_error(),
            Some(libc::ECONNREFUSED)
        );
    }
    assert!(capture.handshakes().unwrap().is_empty());
    // The same node, by the same addresses: not the kubelet.
    assert_steered(&on_node(&site, "pods"), &pod, pod.v4(v4.port));
    assert_steered(&on_node(&site, "pods"), &pod, pod.v6(dual.port));
}

#[test]
fn the_kubelets_cgroup_means_nothing_inside_a_pod() {
    needs_root!();
    let (site, capture, pod) = enrolled();
    let other = Pod::new(&site, 2);
    capture.enrol(&other.spec()).unwrap();
    let impostor = pod.namespace.place(Some(&site.cgroup("kubelet")));
    let _client = connect(&impostor, other.v4(80)).unwrap();
    pod.accept_outbound(false);
    assert!(!other.proxy_has_work());
}
