//! SOCKS5 and HTTP CONNECT as clients really speak them: in one piece, byte by byte, with data right behind the request, wrongly,
//! or not at all.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use underpass_tests::{Config, Host, Listen, Proxy, Refused, Server, Target, Way, World, open, wait};

#[test]
fn data_right_behind_the_request_reaches_the_destination() {
    let place = Place::start("timeouts: {handshake: 5s}");
    for (listener, request, answer) in place.requests() {
        let mut stream = place.client.connect(listener).expect("connect");
        let mut text = request;
        text.extend(b"early");
        stream.write_all(&text).expect("write");
        place.expect_echo(&mut stream, answer, b"early");
    }
}

#[test]
fn a_request_that_trickles_in_is_understood() {
    let place = Place::start("timeouts: {handshake: 5s}");
    for (listener, request, answer) in place.requests() {
        let mut stream = place.client.connect(listener).expect("connect");
        for byte in request.iter().chain(b"slow") {
            stream.write_all(&[*byte]).expect("write");
        }
        place.expect_echo(&mut stream, answer, b"slow");
    }
}

#[test]
fn a_malformed_request_is_refused_and_logged() {
    let place = Place::start("timeouts: {handshake: 5s}");
    let long_header = format!(
        "CONNECT {} HTTP/1.1\r\nX: {}\r\n\r\n",
        place.server.address(),
        "x".repeat(1 << 20)
    );
    let cases: [(SocketAddr, &[u8]); 7] = [
        (place.socks, b"\x04\x01\x00\x50\x7f\x00\x00\x01\x00"),
        (place.socks, b"GET / HTTP/1.1\r\n\r\n"),
        (place.socks, b"\x05\x00"),
        (place.connect, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
        (place.connect, b"CONNECT nonsense HTTP/1.1\r\n\r\n"),
        (place.connect, b"\x05\x01\x00\r\n\r\n"),
        (place.connect, long_header.as_bytes()),
    ];
    for (listener, request) in cases {
        let mut stream = place.client.connect(listener).expect("connect");
        let source = stream.local_addr().expect("connected");
        // The proxy may refuse before it has read all of it.
        let _ = stream.write_all(request);
        place.proxy.access_line(source).assert_reason("handshake_failed", "DPE");
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(
            !answer.starts_with(b"HTTP/1.1 200"),
            "{}",
            String::from_utf8_lossy(&answer)
        );
    }
    assert_eq!(place.server.accepted(), 0);
}

#[test]
fn a_client_that_never_finishes_its_request_is_ended() {
    let place = Place::start("timeouts: {handshake: 300ms}");
    for (listener, request, _) in place.requests() {
        let mut stream = place.client.connect(listener).expect("connect");
        stream.write_all(&request[..request.len() - 1]).expect("write");
        let source = stream.local_addr().expect("connected");
        place.proxy.access_line(source).assert_reason("handshake_failed", "DPE");
    }
    assert_eq!(place.server.accepted(), 0);
}

#[test]
fn a_destination_that_refuses_or_is_unknown_is_said_in_the_protocol() {
    let place = Place::start("unknown_destination: allow");
    let (socks, connect) = (Way::Socks5(place.socks), Way::Connect(place.connect));
    let refusing = Target::Address(place.nobody);
    match open(&place.client, socks, refusing) {
        Err(Refused::Socks(5)) => {}
        other => panic!("SOCKS5 connection refused (RFC 1928: 5), not {other:?}"),
    }
    match open(&place.client, connect, refusing) {
        Err(Refused::Http(502 | 503)) => {}
        other => panic!("502 or 503, not {other:?}"),
    }
    let unknown = Target::Name("no-such-service.shop.svc.cluster.local", 80);
    match open(&place.client, socks, unknown) {
        Err(Refused::Socks(1 | 4)) => {}
        other => panic!("SOCKS5 host unreachable (RFC 1928: 4), not {other:?}"),
    }
    match open(&place.client, connect, unknown) {
        Err(Refused::Http(404 | 502 | 503)) => {}
        other => panic!("a refusal, not {other:?}"),
    }
}

/// What listens on the proxy's own addresses would take the connection to be the node's own; its own listeners would make a loop.
#[test]
fn a_client_is_not_let_into_the_proxys_own_sockets() {
    let place = Place::start("unknown_destination: allow");
    for own in [place.admin, place.socks, place.connect] {
        for way in [Way::Socks5(place.socks), Way::Connect(place.connect)] {
            let answer = open(&place.client, way, Target::Address(own));
            assert!(
                matches!(answer, Err(Refused::Socks(_) | Refused::Http(_))),
                "{way:?} to {own}: {answer:?}"
            );
        }
    }
    assert!(place.proxy.connections().is_empty());
}

#[test]
fn socks5_commands_and_address_types_that_are_not_offered_are_answered_by_their_codes() {
    let place = Place::start("timeouts: {handshake: 5s}");
    for (request, code) in [
        (b"\x05\x02\x00\x01\x7f\x00\x00\x01\x00\x50", 7),
        (b"\x05\x01\x00\x09\x7f\x00\x00\x01\x00\x50", 8),
    ] {
        let mut stream = place.client.connect(place.socks).expect("connect");
        stream.set_read_timeout(Some(wait::soon())).expect("SO_RCVTIMEO");
        stream.write_all(b"\x05\x01\x00").expect("write");
        stream.write_all(request).expect("write");
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).expect("an answer");
        assert_eq!(answer, [5, 0, 5, code], "method, then reply");
    }
}

#[test]
fn a_socks5_client_that_insists_on_authentication_is_told_no() {
    let place = Place::start("timeouts: {handshake: 5s}");
    let mut stream = place.client.connect(place.socks).expect("connect");
    stream.set_read_timeout(Some(wait::soon())).expect("SO_RCVTIMEO");
    stream.write_all(b"\x05\x01\x02").expect("write");
    let mut answer = [0; 2];
    stream.read_exact(&mut answer).expect("an answer");
    assert_eq!(answer, [5, 0xff], "RFC 1928, section 3: no acceptable methods");
}

struct Place {
    client: Host,
    socks: SocketAddr,
    connect: SocketAddr,
    admin: SocketAddr,
    nobody: SocketAddr,
    server: Server,
    proxy: Proxy,
    _world: World,
}

impl Place {
    fn start(node_setting: &str) -> Self {
        let world = World::loopback();
        let [proxy_host, client, server_host] = [(); 3].map(|()| world.host());
        let (socks, connect) = (proxy_host.at(1080), proxy_host.at(3128));
        let config = Config::new()
            .node(node_setting)
            .listener("socks", socks, Listen::Socks5)
            .listener("connect", connect, Listen::Connect);
        let proxy = Proxy::start(&world, &proxy_host, &config);
        let server = Server::start(&server_host, 9000);
        Self {
            client,
            socks,
            connect,
            admin: proxy_host.at(15000),
            nobody: server_host.at(9),
            server,
            proxy,
            _world: world,
        }
    }

    /// For each protocol: its listener, a whole request for the server, and the length of the answer (0: to an empty line).
    fn requests(&self) -> [(SocketAddr, Vec<u8>, usize); 2] {
        let address = self.server.address();
        let SocketAddr::V4(v4) = address else {
            panic!("loopback worlds are IPv4")
        };
        let ip: Ipv4Addr = *v4.ip();
        let socks = [
            &b"\x05\x01\x00\x05\x01\x00\x01"[..],
            &ip.octets(),
            &v4.port().to_be_bytes(),
        ]
        .concat();
        let connect = format!("CONNECT {address} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: test\r\n\r\n");
        [(self.socks, socks, 2 + 10), (self.connect, connect.into_bytes(), 0)]
    }

    /// Reads the protocol's answer, the server's greeting, and the echo of `message`.
    fn expect_echo(&self, stream: &mut TcpStream, answer: usize, message: &[u8]) {
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .expect("SO_RCVTIMEO");
        let mut head = Vec::new();
        while if answer > 0 {
            head.len() < answer
        } else {
            !head.ends_with(b"\r\n\r\n")
        } {
            let mut byte = [0];
            stream
                .read_exact(&mut byte)
                .unwrap_or_else(|e| panic!("{e} after {:?}", String::from_utf8_lossy(&head)));
            head.push(byte[0]);
        }
        let accepted = if answer > 0 {
            head.starts_with(&[5, 0, 5, 0])
        } else {
            head.starts_with(b"HTTP/1.1 200")
        };
        assert!(accepted, "{:?}", String::from_utf8_lossy(&head));
        assert_eq!(Server::greeting(stream).expect("a greeting"), self.server.address());
        let mut echo = vec![0; message.len()];
        stream.read_exact(&mut echo).expect("an echo");
        assert_eq!(echo, message);
    }
}
