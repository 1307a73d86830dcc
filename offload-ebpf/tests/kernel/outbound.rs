//! Connections that an enrolled pod makes.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};

use rustix::net::{SendFlags, sendto};
use rustix::process::{Gid, Uid};
use socket2::{Domain, Protocol, Socket, Type};
use underpass_ebpf::Capture;

use crate::needs_root;
use crate::pod::{OUTBOUND, Pod, accept, at, connect, converse, enrolled, handshakes, peer_name, serve};
use crate::site::Place;
use crate::wait::{eventually, soon};

/// A destination that nobody has.
const SERVICE: &str = "10.96.0.10";
const SERVICE_V6: &str = "fd96::10";

/// Makes a socket at `place`, lets `begin` connect it, and returns the connection.
fn connected_by(
    place: &Place,
    domain: Domain,
    begin: impl FnOnce(&Socket) -> io::Result<()> + Send + 'static,
) -> io::Result<TcpStream> {
    place.run(move || {
        let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
        begin(&socket)?;
        let stream = TcpStream::from(socket);
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(soon()))?;
        Ok(stream)
    })
}

/// The client believes to talk to `destination`, and the proxy learns it.
#[track_caller]
fn assert_captured(capture: &Capture, pod: &Pod, client: &mut TcpStream, destination: SocketAddr) {
    let own = client.local_addr().unwrap();
    // A dual-stack socket arrives at the IPv4 listener too.
    let (mut accepted, from) = pod.accept_outbound(!own.ip().to_canonical().is_ipv4());
    let canonical = SocketAddr::new(destination.ip().to_canonical(), destination.port());
    assert_eq!(handshakes(capture).original(accepted.as_fd()).unwrap(), Some(canonical));
    assert_eq!(peer_name(&pod.app, client), destination);
    assert_eq!(
        from.ip(),
        own.ip().to_canonical(),
        "the source is what it would have been"
    );
    assert_eq!(peer_name(&pod.proxy, &accepted), from, "the proxy is told the truth");
    converse(client, &mut accepted);
}

#[test]
fn an_ipv4_connection_is_captured_and_shows_its_original_destination() {
    needs_root!();
    let (_site, capture, pod) = enrolled();
    let service = at(SERVICE, 80);
    let mut client = connect(&pod.app, service).unwrap();
    assert_captured(&capture, &pod, &mut client, service);
}

#[test]
fn an_ipv6_connection_is_captured_and_shows_its_original_destination() {
    needs_root!();
    let (_site, capture, pod) = enrolled();
    let service = at(SERVICE_V6, 80);
    let mut client = connect(&pod.app, service).unwrap();
    assert_captured(&capture, &pod, &mut client, service);
}

#[test]
fn a_dual_stack_socket_that_connects_to_ipv4_is_captured_as_such() {
    needs_root!();
    let (_site, capture, pod) = enrolled();
    let service = at(&format!("::ffff:{SERVICE}"), 80);
    let mut client = connected_by(&pod.app, Domain::IPV6, move |socket| socket.connect(&service.into())).unwrap();
    assert_captured(&capture, &pod, &mut client, service);
}

#[test]
fn a_nonblocking_connect_is_captured() {
    needs_root!();
    let (_site, capture, pod) = enrolled();
    for (domain, service) in [(Domain::IPV4, at(SERVICE, 80)), (Domain::IPV6, at(SERVICE_V6, 80))] {
        let mut client = connected_by(&pod.app, domain, move |socket| {
            socket.set_nonblocking(true)?;
            let begun = socket.connect(&service.into()).unwrap_err();
            assert_eq!(begun.raw_os_error(), Some(libc::EINPROGRESS));
            eventually("connected", || socket.peer_addr().is_ok());
            Ok(())
        })
        .unwrap();
        assert_captured(&capture, &pod, &mut client, service);
    }
}

#[test]
fn a_connection_begun_by_sending_is_captured() {
    needs_root!();
    let (_site, capture, pod) = enrolled();
    for (domain, service) in [(Domain::IPV4, at(SERVICE, 80)), (Domain::IPV6, at(SERVICE_V6, 80))] {
        let mut client = connected_by(&pod.app, domain, move |socket| {
            let flags = SendFlags::from_bits_retain(libc::MSG_FASTOPEN as u32);
            Ok(sendto(socket, b"", flags, &service).map(drop)?)
        })
        .unwrap();
        assert_captured(&capture, &pod, &mut client, service);
    }
}

#[test]
fn a_connection_put_off_until_the_first_write_is_captured() {
    needs_root!();
    let (_site, capture, pod) = enrolled();
    // Client, and without a cookie from an earlier connection.
    pod.namespace.sysctl("ipv4/tcp_fastopen", "5");
    for (domain, service) in [(Domain::IPV4, at(SERVICE, 80)), (Domain::IPV6, at(SERVICE_V6, 80))] {
        let mut client = connected_by(&pod.app, domain, move |socket| {
            set_fastopen_connect(socket);
            socket.connect(&service.into())
        })
        .unwrap();
        assert!(!pod.proxy_has_work(), "nothing has been sent yet");
        client.write_all(b"first").unwrap();
        let (mut accepted, _) = pod.accept_outbound(domain == Domain::IPV6);
        let mut first = [0; 5];
        accepted.read_exact(&mut first).unwrap();
        assert_eq!(&first, b"first");
        assert_eq!(handshakes(&capture).original(accepted.as_fd()).unwrap(), Some(service));
        assert_eq!(peer_name(&pod.app, &client), service);
    }
}

fn set_fastopen_connect(socket: &Socket) {
    let on = 1i32;
    // SAFETY: the option is an int.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_FASTOPEN_CONNECT,
            (&raw const on).cast(),
            size_of::<i32>() as u32,
        )
    };
    assert_eq!(result, 0);
}

#[test]
fn a_connection_bound_to_the_pods_device_is_captured() {
    needs_root!();
    let (_site, capture, pod) = enrolled();
    for (domain, service) in [(Domain::IPV4, at(SERVICE, 80)), (Domain::IPV6, at(SERVICE_V6, 80))] {
        let mut client = connected_by(&pod.app, domain, move |socket| {
            socket.bind_device(Some(b"eth0"))?;
            socket.connect(&service.into())
        })
        .unwrap();
        assert_captured(&capture, &pod, &mut client, service);
    }
}

#[test]
fn the_original_destination_can_be_read_without_privileges() {
    needs_root!();
    let (_site, capture, pod) = enrolled();
    let handshakes = handshakes(&capture);
    let service = at(SERVICE, 80);
    let _client = connect(&pod.app, service).unwrap();
    let (accepted, _) = pod.accept_outbound(false);
    // The system calls, unlike those of the C library, change the calling thread only.
    let nobody = std::thread::spawn(move || {
        rustix::thread::set_thread_groups(&[]).unwrap();
        rustix::thread::set_thread_res_gid(Gid::from_raw(65534), Gid::from_raw(65534), Gid::from_raw(65534)).unwrap();
        rustix::thread::set_thread_res_uid(Uid::from_raw(65534), Uid::from_raw(65534), Uid::from_raw(65534)).unwrap();
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        assert!(status.contains("CapEff:\t0000000000000000"), "{status}");
        handshakes.original(accepted.as_fd()).unwrap()
    });
    assert_eq!(nobody.join().unwrap(), Some(service));
}

#[test]
fn a_socket_that_was_not_captured_has_no_original_destination() {
    needs_root!();
    let (_site, capture, pod) = enrolled();
    let _client = connect(&pod.app, pod.v4(OUTBOUND)).unwrap();
    let (accepted, _) = pod.accept_outbound(false);
    assert_eq!(handshakes(&capture).original(accepted.as_fd()).unwrap(), None);
}

#[test]
fn a_pod_that_talks_to_itself_is_left_alone() {
    needs_root!();
    let (_site, _capture, pod) = enrolled();
    let servers = [pod.serve("0.0.0.0:0"), pod.serve("[::]:0")];
    for address in ["127.0.0.1", "127.8.8.8", "0.0.0.0", "10.9.1.2"] {
        assert_untouched(&pod.app, &pod.app, &servers[0].listener, at(address, servers[0].port));
    }
    for address in ["::1", "::", "fd09:1::2", "::ffff:127.0.0.1", "::ffff:10.9.1.2"] {
        assert_untouched(&pod.app, &pod.app, &servers[1].listener, at(address, servers[1].port));
    }
    assert!(!pod.proxy_has_work());
}

#[test]
fn a_pod_that_talks_from_one_of_its_addresses_to_another_is_left_alone() {
    needs_root!();
    let (_site, capture, pod) = enrolled();
    pod.namespace.ip("addr add 10.9.1.3/24 dev eth0");
    let (from, to) = (pod.v4(0), at("10.9.1.3", 0));
    let mut spec = pod.spec();
    spec.addresses.push(to.ip());
    capture.enrol(&spec).unwrap();
    let server = pod.serve("0.0.0.0:0");
    let to = SocketAddr::new(to.ip(), server.port);
    let client = connected_by(&pod.app, Domain::IPV4, move |socket| {
        socket.bind(&from.into())?;
        socket.connect(&to.into())
    })
    .unwrap();
    assert_eq!(server.accept(&pod.app).1, client.local_addr().unwrap());
}

#[test]
fn the_listeners_own_address_is_never_captured() {
    needs_root!();
    let (_site, capture, pod) = enrolled();
    let mut spec = pod.spec();
    spec.addresses.clear();
    capture.enrol(&spec).unwrap();
    for to in [pod.v4(OUTBOUND), pod.v6(OUTBOUND)] {
        connect(&pod.app, to).unwrap();
    }
    assert_eq!(capture.counters().unwrap().get(underpass_ebpf::Counter::Captured), 0);
    // Nor steered, though the pod is not known to have the address.
    let server = pod.serve("0.0.0.0:0");
    assert_untouched(&pod.app, &pod.app, &server.listener, pod.v4(server.port));
}

/// A connection from one place to another arrives as it is.
#[track_caller]
fn assert_untouched(from: &Place, to: &Place, listener: &std::net::TcpListener, destination: SocketAddr) {
    let mut client = connect(from, destination).unwrap_or_else(|e| panic!("{destination}: {e}"));
    let (mut accepted, peer) = accept(to, listener);
    let own = client.local_addr().unwrap();
    assert_eq!(
        (peer.ip().to_canonical(), peer.port()),
        (own.ip().to_canonical(), own.port())
    );
    converse(&mut client, &mut accepted);
}

#[test]
fn what_exempt_cgroups_and_other_namespaces_connect_to_is_left_alone() {
    needs_root!();
    let (site, _capture, pod) = enrolled();
    let other = Pod::new(&site, 2);
    let node = site.node.place(Some(&site.cgroup("pods")));
    let server = serve(&node, "[::]:0");
    for gateway in ["10.9.1.1", "fd09:1::1"] {
        assert_untouched(&pod.proxy, &node, &server.listener, at(gateway, server.port));
    }
    for gateway in ["10.9.2.1", "fd09:2::1"] {
        assert_untouched(&other.app, &node, &server.listener, at(gateway, server.port));
    }
    let loopback = at("127.0.0.1", server.port);
    assert_untouched(&node, &node, &server.listener, loopback);
}

#[test]
fn a_socket_belongs_to_the_namespace_that_made_it_whoever_connects_it() {
    needs_root!();
    let (site, capture, pod) = enrolled();
    let node = site.node.place(Some(&site.cgroup("pods")));
    let server = serve(&node, "0.0.0.0:0");
    let gateway = at("10.9.1.1", server.port);
    let of_pod = pod.app.run(|| Socket::new(Domain::IPV4, Type::STREAM, None).unwrap());
    let of_node = node.run(|| Socket::new(Domain::IPV4, Type::STREAM, None).unwrap());

    let mut client = node
        .run(move || of_pod.connect(&gateway.into()).map(|()| TcpStream::from(of_pod)))
        .unwrap();
    client.set_read_timeout(Some(soon())).unwrap();
    assert_captured(&capture, &pod, &mut client, gateway);

    let local = at("127.0.0.1", server.port);
    let client = pod
        .app
        .run(move || of_node.connect(&local.into()).map(|()| TcpStream::from(of_node)))
        .unwrap();
    let (_, peer, _) = server.accept(&node);
    assert_eq!(peer, client.local_addr().unwrap());
}

#[test]
fn datagrams_are_left_alone() {
    needs_root!();
    let (site, capture, pod) = enrolled();
    let node = site.node.place(Some(&site.cgroup("pods")));
    for (any, gateway) in [("0.0.0.0", "10.9.1.1"), ("::", "fd09:1::1")] {
        let server = node.run(move || UdpSocket::bind(at(any, 0)).unwrap());
        let to = at(gateway, server.local_addr().unwrap().port());
        let client = pod.app.run(move || {
            let client = UdpSocket::bind(at(any, 0)).unwrap();
            client.connect(to).unwrap();
            assert_eq!(client.peer_addr().unwrap(), to);
            client
        });
        server.set_nonblocking(true).unwrap();
        // The first ones may be lost while the link comes up.
        eventually("a datagram arrives", || {
            client.send(b"ping").unwrap();
            let received = server.recv_from(&mut [0; 8]);
            received.is_ok_and(|received| received == (4, client.local_addr().unwrap()))
        });
    }
    assert_eq!(capture.counters().unwrap().get(underpass_ebpf::Counter::Captured), 0);
}

#[test]
fn a_socket_connected_again_is_known_by_its_last_destination() {
    needs_root!();
    let (_site, capture, pod) = enrolled();
    let (first, second) = (at(SERVICE, 80), at(SERVICE, 81));
    // The first attempt is sent to a port where nobody listens.
    let mut spec = pod.spec();
    spec.v4 = Some((crate::pod::address_v4(1), 1));
    capture.enrol(&spec).unwrap();
    let socket = pod.app.run(move || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let error = socket.connect(&first.into()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ECONNREFUSED));
        socket
    });
    capture.enrol(&pod.spec()).unwrap();
    let mut client = pod
        .app
        .run(move || socket.connect(&second.into()).map(|()| TcpStream::from(socket)))
        .unwrap();
    client.set_read_timeout(Some(soon())).unwrap();
    assert_captured(&capture, &pod, &mut client, second);
    assert_eq!(capture.pending_handshakes(pod.cookie).unwrap(), 0);
}

#[test]
fn a_socket_that_was_dissolved_and_used_otherwise_does_not_lie() {
    needs_root!();
    let (_site, capture, pod) = enrolled();
    let server = pod.serve("127.0.0.1:0");
    let local = server.listener.local_addr().unwrap();
    let socket = pod.app.run(move || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.connect(&at(SERVICE, 80).into()).unwrap();
        dissolve(&socket);
        socket.connect(&local.into()).unwrap();
        socket
    });
    drop(pod.accept_outbound(false));
    let (_, peer, _) = server.accept(&pod.app);
    let client = TcpStream::from(socket);
    assert_eq!(peer, client.local_addr().unwrap());
    assert_eq!(peer_name(&pod.app, &client), local);
    assert_eq!(capture.pending_handshakes(pod.cookie).unwrap(), 0);
}

/// connect(AF_UNSPEC).
fn dissolve(socket: &Socket) {
    let address = libc::sockaddr {
        sa_family: libc::AF_UNSPEC as u16,
        sa_data: [0; 14],
    };
    // SAFETY: a socket address and its length.
    let result = unsafe { libc::connect(socket.as_raw_fd(), &address, size_of::<libc::sockaddr>() as u32) };
    assert_eq!(result, 0);
}

#[test]
fn a_socket_that_was_captured_and_then_listens_does_not_lie() {
    needs_root!();
    let (_site, _capture, pod) = enrolled();
    let listener = pod.app.run(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.connect(&at(SERVICE, 80).into()).unwrap();
        dissolve(&socket);
        socket.bind(&at("127.0.0.1", 0).into()).unwrap();
        socket.listen(1).unwrap();
        std::net::TcpListener::from(socket)
    });
    let address = listener.local_addr().unwrap();
    assert_untouched(&pod.app, &pod.app, &listener, address);
}
