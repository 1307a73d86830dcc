//! Connections that outlive the certificates that they were made with.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use underpass_certs::ClientTls;

use super::authority::{self, HOUR, Paper, identity};
use super::hostile::{self, HEADERS, PREFACE};
use super::refusals::connection;
use super::world::{Peer, SOON, World, connect, web};
use super::{receive, send};
use crate::hbone::tunnel::Tunnel;

/// Serial numbers that nobody else has.
const SERIAL: u64 = 7;

/// A client with a certificate that is valid for so long.
async fn client(world: &World, life: Duration) -> Peer {
    let client = identity("shop", "client");
    let paper = Paper {
        serial: SERIAL,
        ..Paper::of(&client, SystemTime::now(), life)
    };
    let certificate = world.authority.issue(&client, &paper);
    // Its own clock is behind: it goes on using its connections.
    let began = || SystemTime::now() - HOUR;
    world.peer_with(authority::Pod::with(&client, certificate, began).await)
}

/// Has the server know that the client's certificate was revoked.
fn revoke(world: &World) {
    let trust = world.node.identities.as_ref().unwrap().trust();
    let roots = vec![world.authority.root.clone()];
    trust.configure(roots, &[world.authority.revoke(SERIAL)]).unwrap();
}

async fn assert_goes_on(tunnel: &mut Tunnel, application: &mut TcpStream) {
    send(tunnel, Bytes::from_static(b"on")).await;
    let mut bytes = [0; 2];
    let arrived = tokio::time::timeout(SOON, application.read_exact(&mut bytes));
    arrived.await.expect("in time").expect("it goes on");
}

/// Whether a stream is refused on a connection that knows nothing of pools.
async fn is_refused(world: &World, sender: &h2::client::SendRequest<Bytes>) -> bool {
    let Ok(mut ready) = sender.clone().ready().await else {
        return true; // the connection has been told that there are to be no more
    };
    let Ok((answer, _stream)) = ready.send_request(connect(&world.target()), false) else {
        return true;
    };
    answer.await.is_err()
}

#[tokio::test]
async fn an_expired_peer_opens_no_more_streams_and_those_that_it_has_go_on() {
    let world = World::new("").await;
    let peer = client(&world, Duration::from_secs(2)).await;
    let (mut tunnel, mut application) = world.connect(&peer).await;
    let raw = connection(&world, &peer).await;
    assert!(!is_refused(&world, &raw).await);
    let expired = async {
        while !is_refused(&world, &raw).await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(SOON, expired).await.expect("it is refused");
    assert_goes_on(&mut tunnel, &mut application).await;
    // Nor does a new connection help.
    let outcome = peer.open(world.gateway, &world.target()).await;
    assert!(outcome.is_err(), "{outcome:?}");
    let told = world.node.telemetry.refusals();
    let is_told = told
        .iter()
        .any(|line| line["detail"].as_str().unwrap().starts_with("peer_expired"));
    assert!(is_told, "{told:?}");
    assert_goes_on(&mut tunnel, &mut application).await;
}

#[tokio::test]
async fn streams_end_with_the_certificate_where_the_settings_say_so() {
    let world = World::kept("expired: reset").await;
    let peer = client(&world, Duration::from_secs(2)).await;
    let (mut tunnel, _application) = world.connect(&peer).await;
    let error = receive(&mut tunnel).await.expect("not an end").expect_err("a reset");
    assert_eq!(error.reason(), Some(h2::Reason::CANCEL));
    assert_one_denied(&world).await;
}

/// The metric says that one connection ended so.
async fn assert_one_denied(world: &World) {
    let closed = || world.metric("istio_tcp_connections_closed_total", &["response_flags=\"DENY\""]);
    let told = async {
        while !matches!(&closed()[..], [line] if line.ends_with(" 1")) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(SOON, told).await.expect("the metric says so");
}

#[tokio::test]
async fn streams_of_a_revoked_certificate_are_reset_and_no_more_are_opened() {
    let world = World::new("").await;
    let (peer, other) = (client(&world, HOUR).await, world.peer("other").await);
    let (mut tunnel, _application) = world.connect(&peer).await;
    let (mut kept, mut beside) = world.connect(&other).await;
    let raw = connection(&world, &peer).await;
    revoke(&world);
    let error = receive(&mut tunnel).await.expect("not an end").expect_err("a reset");
    assert_eq!(error.reason(), Some(h2::Reason::CANCEL));
    assert_one_denied(&world).await;
    assert!(is_refused(&world, &raw).await);
    assert_goes_on(&mut kept, &mut beside).await;
}

#[tokio::test]
async fn streams_of_a_revoked_certificate_go_on_where_the_settings_say_so() {
    let world = World::kept("revoked: keep").await;
    let peer = client(&world, HOUR).await;
    let (mut tunnel, mut application) = world.connect(&peer).await;
    let raw = connection(&world, &peer).await;
    revoke(&world);
    assert!(is_refused(&world, &raw).await);
    assert_goes_on(&mut tunnel, &mut application).await;
}

#[tokio::test]
async fn the_pool_gives_up_a_connection_whose_peer_is_believed_no_more() {
    let world = World::new("").await;
    let peer = world.peer("client").await;
    let (mut tunnel, mut application) = world.connect(&peer).await;
    // The root of the server's certificate goes, as at the end of a rotation.
    peer.trust
        .configure(vec![authority::Authority::new().root], &[])
        .unwrap();
    let outcome = peer.open(world.gateway, &world.target()).await;
    assert!(outcome.is_err(), "no stream on the old connection: {outcome:?}");
    assert_eq!(peer.connections(), 0);
    assert_goes_on(&mut tunnel, &mut application).await;
    // And is found again when the server's root is believed again.
    peer.trust.configure(vec![world.authority.root.clone()], &[]).unwrap();
    world.connect(&peer).await;
}

#[tokio::test]
async fn the_pool_resets_streams_to_a_server_whose_certificate_was_revoked() {
    let world = World::new("").await;
    let peer = world.peer("client").await;
    let (mut tunnel, _application) = world.connect(&peer).await;
    let roots = vec![world.authority.root.clone()];
    peer.trust.configure(roots, &[world.authority.revoke(1)]).unwrap();
    let broken = receive(&mut tunnel).await;
    assert!(matches!(broken, Some(Err(_))), "{broken:?}");
}

#[tokio::test]
async fn the_pool_opens_no_streams_as_one_whose_own_certificate_has_expired() {
    let world = World::new("").await;
    let own = identity("shop", "client");
    let paper = Paper::of(&own, SystemTime::now(), Duration::from_secs(2));
    let certificate = world.authority.issue(&own, &paper);
    let peer = world.peer_with(authority::Pod::with(&own, certificate, SystemTime::now).await);
    let (mut tunnel, mut application) = world.connect(&peer).await;
    let retired = async {
        while peer.connections() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(SOON, retired).await.expect("it is given no more");
    assert_goes_on(&mut tunnel, &mut application).await;
}

/// The next frame of one of these types (RFC 9113, section 6), and its payload.
async fn next_frame(stream: &mut (impl AsyncRead + Unpin), kinds: &[u8]) -> (u8, Vec<u8>) {
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await.expect("a frame");
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        stream.read_exact(&mut payload).await.expect("its payload");
        if kinds.contains(&head[3]) {
            return (head[3], payload);
        }
    }
}

/// GOAWAY is a request; who doesn't heed it is refused stream by stream.
#[tokio::test]
async fn a_lapsed_peer_that_opens_streams_all_the_same_is_refused_and_it_is_said_why() {
    const RST_STREAM: u8 = 3;
    const SETTINGS: u8 = 4;
    const GOAWAY: u8 = 7;
    const REFUSED_STREAM: [u8; 4] = [0, 0, 0, 7];
    let world = World::kept("revoked: keep").await;
    let peer = client(&world, HOUR).await;
    let (slot, trust) = (peer.pod.lease.slot().clone(), peer.trust.clone());
    let tls = ClientTls::new(slot, trust, [web()].into()).unwrap();
    let socket = TcpStream::connect(world.gateway).await.unwrap();
    let (mut stream, _) = tls.connect(socket, world.gateway.ip()).await.unwrap();
    stream.write_all(PREFACE).await.unwrap();
    stream.flush().await.unwrap();
    // Its handshake is done when it says something.
    next_frame(&mut stream, &[SETTINGS]).await;
    revoke(&world);
    next_frame(&mut stream, &[GOAWAY]).await;
    let fields = hostile::connect(&world.target());
    let mut frame = vec![0, 0, fields.len() as u8, HEADERS, 4, 0, 0, 0, 1];
    frame.extend(fields);
    stream.write_all(&frame).await.unwrap();
    stream.flush().await.unwrap();
    let answer = tokio::time::timeout(SOON, next_frame(&mut stream, &[HEADERS, RST_STREAM]));
    assert_eq!(answer.await.unwrap(), (RST_STREAM, REFUSED_STREAM.to_vec()));
    let refusal = world.refusal(0).await;
    assert_eq!(refusal["reason"], "handshake_failed");
    assert!(
        refusal["detail"].as_str().unwrap().starts_with("peer_revoked"),
        "{refusal}"
    );
}

#[tokio::test]
async fn streams_to_a_pod_whose_own_certificate_was_revoked_are_reset() {
    let world = World::new("").await;
    let peer = client(&world, HOUR).await;
    let (mut tunnel, _application) = world.connect(&peer).await;
    let trust = world.node.identities.as_ref().unwrap().trust();
    let roots = vec![world.authority.root.clone()];
    trust.configure(roots, &[world.authority.revoke(1)]).unwrap();
    let error = receive(&mut tunnel).await.expect("not an end").expect_err("a reset");
    assert_eq!(error.reason(), Some(h2::Reason::CANCEL));
}
