//! Stock Envoy as the client and as the server of a tunnel.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;

use underpass_tests::conversation::Pattern;
use underpass_tests::load::{ask, is_refusal};
use underpass_tests::{Need, Server, available, wait};

use crate::envoy::Envoy;
use crate::place::{PORT, Place};

const HBONE: u16 = 15008;
/// What goes each way; several windows of both sides.
const BYTES: usize = 24 << 20;
const ONLY_ENVOY: &str = "scope: WORKLOAD_SELECTOR, action: ALLOW, \
     groups: [{rules: [{matches: [{principals: [cluster.local/ns/shop/sa/envoy]}]}]}]";

/// Streams both ways at once, and ends half by half: what was sent comes back, and then the end.
fn converse(mut stream: TcpStream) {
    let pattern = Pattern::new(7);
    let mut sending = stream.try_clone().expect("dup");
    let sender = thread::spawn(move || {
        let mut chunk = vec![0; 100_003];
        let mut sent = 0;
        while sent < BYTES {
            let length = chunk.len().min(BYTES - sent);
            pattern.fill(sent as u64, &mut chunk[..length]);
            sending.write_all(&chunk[..length]).expect("taken");
            sent += length;
        }
        sending.shutdown(Shutdown::Write).expect("FIN");
    });
    stream.set_read_timeout(Some(wait::SOON)).expect("a time-out");
    let mut received = 0;
    let mut buffer = vec![0; 1 << 16];
    loop {
        let length = match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => length,
            // A read with a time-out may be interrupted for no reason of ours.
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => panic!("from byte {received}: {error}"),
        };
        assert_eq!(
            pattern.mismatch(received as u64, &buffer[..length]),
            None,
            "from byte {received}"
        );
        received += length;
    }
    sender.join().expect("the sender");
    assert_eq!(received, BYTES, "all of it came back before the end");
}

#[test]
fn envoy_is_a_client_whose_identity_policy_sees() {
    if !available(&[Need::Capture, Need::Envoy]) {
        return;
    }
    let Some(place) = Place::start(|hosts| hosts.mesh("shop/only-envoy").policy("shop/only-envoy", ONLY_ENVOY)) else {
        return;
    };
    let listening = Server::start_at(&place.server, place.server.at(PORT));
    let roots = place.authority.roots().display().to_string();
    let world = place.far.node.world();
    let gateway = place.server.at(HBONE);
    let web = "spiffe://cluster.local/ns/shop/sa/web";
    let start = |account: &str, port| {
        let certificate = place.authority.issue(account);
        let listen = place.envoy.at(port);
        Envoy::client(
            world,
            &place.envoy,
            (&certificate, &roots),
            listen,
            gateway,
            place.server.at(PORT),
            web,
        )
    };
    let envoy = start("shop/envoy", 10_000);
    let stream = ask(&place.envoy, place.envoy.at(10_000)).expect("by Envoy's tunnel");
    stream.set_read_timeout(None).expect("no time-out");
    converse(stream);
    let line = wait::some(wait::SOON, "it is logged", || {
        let mut lines = place.far.proxy.access_lines().into_iter();
        lines.rfind(|line| line.number("sent_bytes") > BYTES as u64)
    });
    line.assert_reason("completed", "-");
    assert_eq!(line.field("src.identity"), "spiffe://cluster.local/ns/shop/sa/envoy");
    assert_eq!(
        (line.field("listener"), line.field("connection_security_policy")),
        ("hbone", "mutual_tls")
    );
    drop(envoy);
    let _other = start("shop/other", 10_001);
    let before = listening.arrivals().len();
    assert!(ask(&place.envoy, place.envoy.at(10_001)).is_err(), "not let in");
    let denied = wait::some(wait::SOON, "it is logged", || {
        let mut lines = place.far.proxy.access_lines().into_iter();
        lines.rfind(|line| line.field("reason") == "policy_denied")
    });
    assert_eq!(denied.field("src.identity"), "spiffe://cluster.local/ns/shop/sa/other");
    assert_eq!(listening.arrivals().len(), before);
}

#[test]
fn envoy_is_a_server_that_pods_reach_by_tunnel() {
    if !available(&[Need::Capture, Need::Envoy]) {
        return;
    }
    let Some(place) = Place::start(|hosts| hosts.mesh("")) else {
        return;
    };
    let _application = Server::start_at(&place.envoy, place.envoy.at(PORT));
    let roots = place.authority.roots().display().to_string();
    let world = place.far.node.world();
    let (certificate, client) = (
        place.authority.issue("shop/envoy"),
        "spiffe://cluster.local/ns/shop/sa/client",
    );
    let (listen, application) = (place.envoy.at(HBONE), place.envoy.at(PORT));
    let _envoy = Envoy::server(world, &place.envoy, (&certificate, &roots), listen, application, client);
    let stream = ask(&place.client, place.envoy.at(PORT)).expect("by tunnel to Envoy");
    let source = stream.local_addr().expect("open");
    stream.set_read_timeout(None).expect("no time-out");
    converse(stream);
    let line = place.near.proxy.access_line(source);
    line.assert_reason("completed", "-");
    assert_eq!(line.field("hbone.peer"), listen.to_string());
    // Whom Envoy does not know it does not let in.
    let error = ask(&place.other, place.envoy.at(PORT)).expect_err("not let in");
    assert!(is_refusal(&error), "{error}");
}

/// Its certificate is good, but the mesh says that somebody else is there.
#[test]
fn an_envoy_that_is_not_who_the_mesh_says_is_not_spoken_to() {
    if !available(&[Need::Capture, Need::Envoy]) {
        return;
    }
    let Some(place) = Place::start(|hosts| hosts.mesh("")) else {
        return;
    };
    let application = Server::start_at(&place.envoy, place.envoy.at(PORT));
    let roots = place.authority.roots().display().to_string();
    let world = place.far.node.world();
    let (certificate, client) = (
        place.authority.issue("shop/impostor"),
        "spiffe://cluster.local/ns/shop/sa/client",
    );
    let (listen, at) = (place.envoy.at(HBONE), place.envoy.at(PORT));
    let _envoy = Envoy::server(world, &place.envoy, (&certificate, &roots), listen, at, client);
    let error = ask(&place.client, at).expect_err("not spoken to");
    assert!(is_refusal(&error), "{error}");
    let line = wait::some(wait::SOON, "it is logged", || {
        place.near.proxy.access_lines().into_iter().last()
    });
    line.assert_reason("connect_failed", "UF");
    assert!(line.field("detail").contains("peer_identity"), "{}", line.text);
    assert_eq!(application.accepted(), 0);
}
