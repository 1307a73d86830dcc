//! What applications are told: the same as without a proxy.

use std::io;
use std::net::{Ipv6Addr, SocketAddr, TcpStream, UdpSocket};

use socket2::{Domain, Protocol, SockAddr, Type};
use underpass_tests::{Families, Host, Server, wait};

use crate::place::{
    AWAY_VIP, DENY_ALL, Hosts, ONLY_CLIENT, PORT, Place, VIP, VIP6, address, ask, connect_by_program, opened, quiet,
    round_trip,
};

/// `::ffff:a.b.c.d`: IPv4 as IPv6 sockets say it.
fn mapped(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) => (v4.ip().to_ipv6_mapped(), v4.port()).into(),
        v6 => v6,
    }
}

/// Connects a socket of `domain` without binding it first.
fn connect_as(host: &Host, domain: Domain, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = host.socket_of(domain, Type::STREAM);
    socket.connect_timeout(&SockAddr::from(to), wait::soon())?;
    Ok(socket.into())
}

fn open_place() -> Option<Place> {
    Place::start(|hosts| hosts.config(""))
}

#[test]
fn both_ends_see_each_other_as_without_a_proxy() {
    let Some(place) = open_place() else { return };
    let server = &place.server;
    for (domain, to) in [
        (Domain::IPV4, server.at(PORT)),
        (Domain::IPV6, server.at6(PORT)),
        (Domain::IPV6, mapped(server.at(PORT))),
    ] {
        let direct = SocketAddr::new(to.ip().to_canonical(), PORT);
        let listening = Server::start_at(server, direct);
        let mut stream = connect_as(&place.client, domain, to).unwrap_or_else(|e| panic!("{to}: {e}"));
        assert_eq!(round_trip(&mut stream).expect("an echo"), direct, "{to}");
        assert_eq!(stream.peer_addr().expect("open"), to, "getpeername of the client");
        let own = stream.local_addr().expect("open");
        let of_client = place.client.addresses();
        assert!(
            of_client.contains(&own.ip().to_canonical()),
            "{to}: getsockname of the client: {own}"
        );
        assert_eq!(
            own.is_ipv4(),
            domain == Domain::IPV4,
            "{to}: {own} in the socket's family"
        );

        let arrival = listening.arrivals()[0];
        let seen = SocketAddr::new(own.ip().to_canonical(), own.port());
        assert_eq!(arrival.accepted_from, seen, "{to}: accept of the server");
        assert_eq!(arrival.peer, seen, "{to}: getpeername of the server");
        assert_eq!(arrival.local, direct, "{to}: getsockname of the server");

        drop(stream);
        let line = place.proxy.access_line(seen);
        line.assert_reason("completed", "-");
        assert_eq!(line.field("dst.addr"), direct.to_string());
        assert_eq!(line.field("src.identity"), "spiffe://cluster.local/ns/shop/sa/client");
        assert_eq!(
            (line.number("sent_bytes"), line.number("received_bytes")),
            (5, 5 + 1 + direct.to_string().len() as u64)
        );
    }
    assert_eq!(place.opened(), 3, "each was counted, once");
}

#[test]
fn a_server_that_listens_on_everything_sees_its_clients_too() {
    let Some(place) = open_place() else { return };
    let everything = SocketAddr::from((Ipv6Addr::UNSPECIFIED, PORT));
    let listening = Server::start_at(&place.server, everything);
    for to in [place.server.at(PORT), place.server.at6(PORT)] {
        let stream = ask(&place.client, to).unwrap_or_else(|e| panic!("{to}: {e}"));
        let arrival = *listening.arrivals().last().expect("one");
        let client = mapped(stream.local_addr().expect("open"));
        assert_eq!(
            (arrival.accepted_from, arrival.peer, arrival.local),
            (client, client, mapped(to))
        );
    }
}

/// What Go's net/http listens on by default.
#[test]
fn a_server_that_listens_for_multipath_tcp_sees_its_clients_too() {
    let Some(place) = open_place() else { return };
    for to in [place.server.at(PORT), place.server.at6(PORT)] {
        let domain = Domain::for_address(to);
        let Ok(socket) = place.server.try_socket(domain, Type::STREAM, Some(Protocol::MPTCP)) else {
            return;
        };
        socket.bind(&to.into()).expect("bind");
        socket.listen(128).expect("listen");
        let listening = Server::serve_on(socket, to);
        for (client, is_captured) in [(&place.client, true), (&place.stranger, false)] {
            let stream = ask(client, to).unwrap_or_else(|e| panic!("{to}: {e}"));
            let own = stream.local_addr().expect("open");
            let arrival = *listening.arrivals().last().expect("one");
            assert_eq!(
                (arrival.accepted_from, arrival.peer),
                (own, own),
                "captured: {is_captured}"
            );
        }
    }
}

#[test]
fn a_server_on_another_node_sees_the_pods_address() {
    let Some(place) = open_place() else { return };
    for to in [place.remote.at(PORT), place.remote.at6(PORT)] {
        let listening = Server::start_at(&place.remote, to);
        let stream = ask(&place.client, to).unwrap_or_else(|e| panic!("{to}: {e}"));
        assert_eq!(stream.peer_addr().expect("open"), to);
        let own = stream.local_addr().expect("open");
        assert_eq!(listening.arrivals()[0].accepted_from.ip(), own.ip());
        assert!(place.client.addresses().contains(&own.ip()), "{own}");
    }
    assert_eq!(place.opened(), 2);
}

#[test]
fn a_virtual_address_works_although_only_the_configuration_knows_it() {
    let Some(place) = open_place() else { return };
    let everything = SocketAddr::from((Ipv6Addr::UNSPECIFIED, PORT));
    let (near, far) = (
        Server::start_at(&place.server, everything),
        Server::start(&place.remote, PORT),
    );
    for (vip, endpoint) in [(VIP, &near), (VIP6, &near), (AWAY_VIP, &far)] {
        let before = endpoint.accepted();
        let stream = ask(&place.client, address(vip)).unwrap_or_else(|e| panic!("{vip}: {e}"));
        assert_eq!(
            stream.peer_addr().expect("open"),
            address(vip),
            "getpeername tells the service"
        );
        assert_eq!(endpoint.accepted(), before + 1, "{vip}");
        let arrival = *endpoint.arrivals().last().expect("one");
        let own = stream.local_addr().expect("open");
        assert_eq!(arrival.accepted_from.ip().to_canonical(), own.ip(), "{vip}");
        drop(stream);
        let service = place.proxy.access_line(own).field("dst.service").to_owned();
        assert!(service.starts_with("web."), "{vip}: {service}");
    }
    // A mapped one, and a port that the service doesn't have.
    let stream = connect_as(&place.client, Domain::IPV6, mapped(address(VIP))).expect("connect");
    assert_eq!(stream.peer_addr().expect("open"), mapped(address(VIP)));
    place.assert_refused(&place.client, SocketAddr::new(address(VIP).ip(), 81));
}

#[test]
fn single_stack_pods_are_captured() {
    let Some(place) = open_place() else { return };
    let make = |name: &str, families| place.node.pod_with(name, families);
    let only4 = [make("four/client", Families::V4), make("four/server", Families::V4)];
    let only6 = [make("six/client", Families::V6), make("six/server", Families::V6)];
    let mut config = place.config("");
    for pod in only4.iter().chain(&only6) {
        config = config.workload_at(pod.name(), &pod.addresses(), "");
        place.node.enrol(pod);
    }
    place.proxy.apply(&config);
    for [client, server] in [&only4, &only6] {
        let listening = Server::start(server, PORT);
        let stream = ask(client, server.at(PORT)).unwrap_or_else(|e| panic!("{}: {e}", client.name()));
        let own = stream.local_addr().expect("open");
        assert_eq!(stream.peer_addr().expect("open"), server.at(PORT));
        assert_eq!((own.ip(), listening.arrivals()[0].accepted_from), (client.ip(), own));
        drop(stream);
        let line = place.proxy.access_line(own);
        assert_eq!(line.field("src.workload"), "client", "{}", line.text);
    }
    let across = [(&only4[0], place.server.at6(PORT)), (&only6[0], place.server.at(PORT))];
    for (client, to) in across {
        let error = ask(client, to).expect_err("there is no such family here");
        let expected = [io::ErrorKind::NetworkUnreachable, io::ErrorKind::ConnectionRefused];
        assert!(expected.contains(&error.kind()), "{} to {to}: {error}", client.name());
    }
}

#[test]
fn a_pods_talk_with_itself_is_not_touched() {
    let Some(place) = Place::start(|hosts| hosts.config("").policy("mesh/nothing", DENY_ALL)) else {
        return;
    };
    let server = &place.server;
    let everything = SocketAddr::from((Ipv6Addr::UNSPECIFIED, PORT));
    let listening = Server::start_at(server, everything);
    let own =
        ["127.0.0.1", "127.8.8.8", "::1", "0.0.0.0"].map(|ip| SocketAddr::new(ip.parse().expect("an address"), PORT));
    let addresses = [
        server.at(PORT),
        server.at6(PORT),
        mapped(server.at(PORT)),
        mapped(address("127.0.0.1:8080")),
    ];
    for to in own.into_iter().chain(addresses) {
        let stream = ask(server, to).unwrap_or_else(|e| panic!("{to}: {e}"));
        let arrival = *listening.arrivals().last().expect("one");
        assert_eq!(
            arrival.accepted_from,
            mapped(stream.local_addr().expect("open")),
            "{to}"
        );
        if to.ip().is_unspecified() {
            continue;
        }
        assert_eq!(stream.peer_addr().expect("open"), to);
    }
    assert_eq!(place.opened(), 0, "the proxy has seen none of it");
    assert!(place.proxy.access_lines().is_empty());
    // A socket that was captured once and is used again for a talk with itself.
    place.proxy.apply(&place.config(""));
    let remote = Server::start(&place.remote, PORT);
    let socket = server.socket_of(Domain::IPV4, Type::STREAM);
    socket.connect(&remote.address().into()).expect("captured");
    disconnect(&socket);
    socket.connect(&address("127.0.0.1:8080").into()).expect("untouched");
    assert_eq!(
        TcpStream::from(socket).peer_addr().expect("open"),
        address("127.0.0.1:8080")
    );
}

#[test]
fn a_socket_that_is_connected_again_is_captured_again() {
    let Some(place) = open_place() else { return };
    let (near, far) = (Server::start(&place.server, PORT), Server::start(&place.remote, PORT));
    let socket = place.client.socket_of(Domain::IPV4, Type::STREAM);
    for server in [&near, &far, &near] {
        let to = server.address();
        socket.connect(&to.into()).unwrap_or_else(|e| panic!("{to}: {e}"));
        let mut stream = TcpStream::from(socket.try_clone().expect("dup"));
        assert_eq!(round_trip(&mut stream).expect("an echo"), to);
        assert_eq!(stream.peer_addr().expect("open"), to);
        disconnect(&socket);
    }
}

/// connect(2) to AF_UNSPEC: the socket is as new.
fn disconnect(socket: &socket2::Socket) {
    rustix::net::connect_unspec(socket).expect("disconnect");
}

#[test]
fn udp_is_not_touched() {
    let Some(place) = Place::start(|hosts| hosts.config("").policy("mesh/nothing", DENY_ALL)) else {
        return;
    };
    let udp = |host: &Host, at: SocketAddr| -> UdpSocket {
        let socket = host.socket_of(Domain::for_address(at), Type::DGRAM);
        socket.bind(&at.into()).expect("bind");
        let socket = UdpSocket::from(socket);
        socket.set_read_timeout(Some(wait::soon())).expect("SO_RCVTIMEO");
        socket
    };
    let mut buffer = [0; 8];
    for (from, to) in [
        (place.client.at(0), place.server.at(PORT)),
        (place.client.at6(0), place.server.at6(PORT)),
    ] {
        let (client, server) = (udp(&place.client, from), udp(&place.server, to));
        let own = client.local_addr().expect("bound");
        client.send_to(b"first", to).expect("send");
        assert_eq!(server.recv_from(&mut buffer).expect("arrives"), (5, own));
        client.connect(to).expect("connect");
        assert_eq!(client.peer_addr().expect("connected"), to);
        client.send(b"second").expect("send");
        assert_eq!(server.recv_from(&mut buffer).expect("arrives"), (6, own));
        server.send_to(b"back", own).expect("send");
        assert_eq!(client.recv_from(&mut buffer).expect("arrives"), (4, to));
    }
}

#[test]
fn pods_that_are_not_enrolled_are_not_touched() {
    let Some(place) = Place::start(|hosts| hosts.config("").policy("mesh/nothing", DENY_ALL)) else {
        return;
    };
    let neighbour = place.node.pod("nowhere/neighbour");
    let node = place.node.host();
    for (from, to) in [
        (&*place.stranger, &*neighbour),
        (&place.stranger, &place.remote),
        (&node, &neighbour),
    ] {
        let listening = Server::start(to, PORT);
        let stream = ask(from, to.at(PORT)).expect("an echo");
        assert_eq!(
            listening.arrivals()[0].accepted_from,
            stream.local_addr().expect("open")
        );
    }
    assert!(place.proxy.access_lines().is_empty());
}

#[test]
fn a_client_that_is_not_enrolled_is_let_in_as_nobody() {
    let allow_namespace =
        "scope: WORKLOAD_SELECTOR, action: ALLOW, groups: [{rules: [{matches: [{namespaces: [shop]}]}]}]";
    let guarded = |hosts: &Hosts, policy: &str| hosts.config("shop/rule").policy("shop/rule", policy);
    let Some(place) = open_place() else { return };
    let listening = Server::start(&place.server, PORT);
    // Without policy anybody may connect, and the server sees who.
    for host in [&*place.stranger, &place.remote, &place.node.host()] {
        let stream = ask(host, place.server.at(PORT)).expect("an echo");
        let own = stream.local_addr().expect("open");
        assert_eq!(listening.arrivals().last().expect("one").accepted_from, own);
        drop(stream);
        let line = place.proxy.access_line(own);
        assert_eq!(
            (line.field("src.identity"), line.field("direction")),
            ("-", "INBOUND"),
            "{}",
            line.text
        );
    }
    // An identity that was not captured is none: neither the stranger's nor the remote workload's, whose address is in the configuration.
    quiet(&listening);
    let before = listening.accepted();
    for policy in [ONLY_CLIENT, allow_namespace] {
        place.proxy.apply(&guarded(&place, policy));
        for host in [&*place.stranger, &place.remote, &place.node.host()] {
            place.assert_refused(host, place.server.at(PORT));
        }
        ask(&place.client, place.server.at(PORT)).expect("who is captured may");
    }
    assert_eq!(listening.accepted(), before + 2);
}

#[test]
fn a_pod_that_the_mesh_does_not_know_is_refused_both_ways() {
    let Some(place) = open_place() else { return };
    let (inside, outside) = (Server::start(&place.stranger, PORT), Server::start(&place.remote, PORT));
    place.node.enrol(&place.stranger);
    place.assert_refused(&place.stranger, outside.address());
    for host in [&*place.client, &place.remote] {
        place.assert_refused(host, inside.address());
    }
    assert_eq!((inside.accepted(), outside.accepted()), (0, 0));
    // The mesh learns of it later: nothing has to be enrolled again.
    let known = place
        .config("")
        .workload_at("nowhere/stranger", &place.stranger.addresses(), "");
    place.proxy.apply(&known);
    ask(&place.stranger, outside.address()).expect("known by now");
    ask(&place.client, inside.address()).expect("known by now");
}

#[test]
fn an_unknown_destination_is_passed_or_denied_as_configured() {
    let config = |hosts: &Hosts, rule: &str| hosts.config("").node(format!("unknown_destination: {rule}"));
    let Some(place) = Place::start(|hosts| config(hosts, "allow")) else {
        return;
    };
    let unknown = Server::start(&place.stranger, PORT);
    let stream = ask(&place.client, unknown.address()).expect("passed on");
    assert_eq!(unknown.arrivals()[0].accepted_from.ip(), place.client.ip());
    drop(stream);
    place.proxy.apply(&config(&place, "deny"));
    place.assert_refused(&place.client, unknown.address());
    assert_eq!(unknown.accepted(), 1);
    place.wait_for_refusal("unknown_destination", "NR");
}

#[test]
fn the_kubelets_probes_reach_a_pod_that_nobody_may_reach() {
    let Some(node) = crate::place::node() else { return };
    let hosts = Hosts::new(&node);
    let kubelet = node.host_in("kubelet");
    let of_node = node.host_in("system");
    let cgroup = node.cgroup("kubelet").display().to_string();
    let _agent = node.start_agent_with(&["--kubelet-cgroup", &cgroup]);
    let proxy = node.start_proxy(&hosts.config("").policy("mesh/nothing", DENY_ALL));
    node.enrol(&hosts.server);
    let everything = SocketAddr::from((Ipv6Addr::UNSPECIFIED, PORT));
    let listening = Server::start_at(&hosts.server, everything);
    // Capture goes by the process that connects: so it is a program that probes, not this test on a socket of its.
    let probe = |host: &Host, to: SocketAddr| connect_by_program(&node, host, &["plainly"], to);
    for to in [hosts.server.at(PORT), hosts.server.at6(PORT)] {
        let said = probe(&kubelet, to);
        let own = said["echoed"]["local"]
            .as_str()
            .unwrap_or_else(|| panic!("{to}: {said}"));
        assert_eq!(
            listening.arrivals().last().expect("one").accepted_from,
            mapped(address(own))
        );
    }
    assert_eq!(opened(&proxy.metrics()), 0, "a probe is not a connection of the mesh");
    quiet(&listening);
    // Others of the node have the same address and are not the kubelet.
    for host in [&of_node, &node.host(), &hosts.stranger] {
        let said = probe(host, hosts.server.at(PORT));
        assert!(!said["refused"].is_null(), "{said}");
    }
    assert_eq!(listening.accepted(), 2);
}
