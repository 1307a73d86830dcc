//! Peers that make this node hold what it must not be made to hold without end: bytes, messages, connections, streams.

use std::future::poll_fn;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use underpass_certs::ClientTls;
use underpass_config::ByteSize;

use super::refusals::connection;
use super::send;
use super::world::{Peer, SOON, World, connect, web};
use crate::hbone::tunnel::Tunnel;

/// Sends until the socket of a receiver that does not read takes no more, and the proxy holds some; returns what was sent.
async fn fill(world: &World, tunnel: &mut Tunnel, number: usize) -> u64 {
    const PART: usize = 64 << 10;
    let (mut sent, mut quiet) = (0_u64, 0);
    let taken = || {
        world
            .node
            .flows
            .flows()
            .iter()
            .map(|(_, flow)| flow.sent())
            .nth(number)
            .unwrap()
    };
    // A kernel that is full finds some more room for a while.
    while quiet < 120 {
        let before = taken();
        if sent < before + PART as u64 {
            send(tunnel, Bytes::from(vec![1; PART])).await;
            sent += PART as u64;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
        quiet = if taken() == before && sent > before {
            quiet + 1
        } else {
            0
        };
    }
    sent
}

/// The codec would end the connection, and with it whatever else it carries.
#[tokio::test]
async fn tiny_messages_to_who_does_not_read_end_nobody_beside_it() {
    const MESSAGES: usize = 40_000;
    let world = World::new("").await;
    let peer = world.peer("client").await;
    let (mut beside, mut application) = world.connect(&peer).await;
    let mut stuck = Vec::new();
    for number in 1..=3 {
        let (mut tunnel, silent) = world.connect(&peer).await;
        fill(&world, &mut tunnel, number).await;
        for _ in 0..MESSAGES {
            send(&mut tunnel, Bytes::from_static(b"!")).await;
        }
        poll_fn(|cx| tunnel.poll_flushed(cx)).await;
        stuck.push((tunnel, silent));
    }
    assert_eq!(peer.connections(), 1, "they share a connection");
    send(&mut beside, Bytes::from_static(b"on")).await;
    let mut bytes = [0; 2];
    tokio::time::timeout(SOON, application.read_exact(&mut bytes))
        .await
        .expect("not ended")
        .unwrap();
    // And each of those arrives, in the end.
    let (mut tunnel, mut silent) = stuck.pop().unwrap();
    tunnel.end().unwrap();
    let mut last = Vec::new();
    silent.read_to_end(&mut last).await.unwrap();
    assert!(last.ends_with(&[b'!'; MESSAGES]));
}

/// Opens a stream on a connection that knows no windows but its own, and sends so many messages of one byte without waiting for the answer.
async fn send_early(world: &World, messages: usize) -> h2::client::ResponseFuture {
    let peer = world.peer("client").await;
    let sender = connection(world, &peer).await;
    let mut ready = sender.clone().ready().await.unwrap();
    let (answer, mut stream) = ready.send_request(connect(&world.target()), false).unwrap();
    for number in 0..messages {
        let is_last = number == messages - 1;
        stream.send_data(Bytes::from_static(b"!"), is_last).unwrap();
    }
    answer
}

#[tokio::test]
async fn what_comes_before_there_is_a_connection_arrives() {
    const MESSAGES: usize = 30_000;
    let world = World::new("").await;
    let answer = send_early(&world, MESSAGES).await;
    let both = async { tokio::join!(answer, world.application.accept()) };
    let (answer, accepted) = tokio::time::timeout(SOON, both).await.expect("it is connected");
    assert_eq!(answer.unwrap().status(), StatusCode::OK);
    let mut all = Vec::new();
    accepted.unwrap().0.read_to_end(&mut all).await.unwrap();
    assert_eq!(all.len(), MESSAGES);
}

#[tokio::test]
async fn what_comes_before_there_is_a_connection_does_not_end_others() {
    let world = World::stalled().await;
    let answer = tokio::time::timeout(SOON, send_early(&world, 30_000).await);
    let answer = answer.await.expect("an answer").expect("not the end of the connection");
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
}

/// As many streams as fit, each with as much as it takes.
async fn send_all_that_is_taken(world: &World, peer: &Peer, streams: usize) -> (u64, Vec<(Tunnel, TcpStream)>) {
    let mut open = Vec::new();
    for _ in 0..streams {
        open.push(world.connect(peer).await);
    }
    let mut sent = 0;
    let mut quiet = 0;
    while quiet < 50 {
        quiet += 1;
        for (tunnel, _) in &mut open {
            let room = poll_fn(|cx| std::task::Poll::Ready(tunnel.poll_room(1 << 16, cx))).await;
            if let std::task::Poll::Ready(Ok(room)) = room {
                tunnel.send(Bytes::from(vec![1; room])).unwrap();
                sent += room as u64;
                quiet = 0;
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    (sent, open)
}

#[tokio::test]
async fn all_that_a_peer_makes_us_hold_is_within_the_buffer() {
    const BUFFER: u64 = 16 << 20;
    let world = World::kept("buffer: 16MiB").await;
    let mut peer = world.peer("client").await;
    peer.hbone.idle = Duration::from_millis(100);
    let (sent, open) = send_all_that_is_taken(&world, &peer, 40).await;
    let taken: u64 = world.node.flows.flows().iter().map(|(_, flow)| flow.sent()).sum();
    let unsent = 40 * crate::hbone::SEND_BUFFER as u64; // what waits on the peer's side, in its kernel too
    let held = sent - taken;
    assert!(held <= BUFFER / 4 + unsent, "{held} bytes are held");
    let budget = &world.node.flows.open_connections().tunnels().budget;
    assert!(budget.reserved() <= BUFFER / 4 + (1 << 20), "{}", budget.reserved());
    assert!(budget.held_back() > 0);
    // Others go on.
    let mut other = world.peer("other").await;
    other.hbone.idle = Duration::from_millis(100);
    let (mut tunnel, mut application) = world.connect(&other).await;
    send(&mut tunnel, Bytes::from_static(b"on")).await;
    application.read_exact(&mut [0; 2]).await.unwrap();
    // And when it is gone, so is what it held.
    drop((open, peer, tunnel, other));
    let gone = async {
        while budget.reserved() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(SOON, gone).await.expect("all is given back");
}

#[tokio::test]
async fn a_connection_for_which_there_is_no_room_is_refused_and_says_so() {
    let world = World::kept("buffer: 1MiB").await;
    let mut peers = Vec::new();
    let refused = loop {
        let peer = world.peer("client").await;
        let outcome = peer.open(world.gateway, &world.target()).await;
        if outcome.is_err() {
            break world.refusal(0).await;
        }
        peers.push((peer, outcome));
        assert!(peers.len() < 20, "nobody is refused");
    };
    assert_eq!(refused["reason"], "connection_limit");
    assert!(
        refused["detail"]
            .as_str()
            .unwrap()
            .contains("node.hbone.buffer is spent")
    );
}

#[tokio::test]
async fn an_accepted_connection_without_streams_is_closed_after_a_while() {
    let world = World::kept("idle: 300ms").await;
    let peer = world.peer("client").await;
    let (slot, trust) = (peer.pod.lease.slot().clone(), peer.trust.clone());
    let tls = ClientTls::new(slot, trust, [web()].into()).unwrap();
    let socket = TcpStream::connect(world.gateway).await.unwrap();
    let (stream, _) = tls.connect(socket, world.gateway.ip()).await.unwrap();
    let (sender, driven) = h2::client::handshake(stream).await.unwrap();
    tokio::time::timeout(SOON, driven).await.expect("it is closed").unwrap();
    drop(sender);
    let open = world.node.flows.open_connections();
    let closed = async {
        while open.total() > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, closed)
        .await
        .expect("its place is given back");
    // One with a stream is not.
    let (mut tunnel, mut application) = world.connect(&peer).await;
    tokio::time::sleep(Duration::from_millis(900)).await;
    send(&mut tunnel, Bytes::from_static(b"on")).await;
    application.read_exact(&mut [0; 2]).await.unwrap();
}

#[tokio::test]
async fn who_has_all_the_connections_that_an_identity_may_have_gets_no_more() {
    let world = World::kept("connections_per_peer: 2").await;
    let peers = [world.peer("client").await, world.peer("client").await];
    let _open = [world.connect(&peers[0]).await, world.connect(&peers[1]).await];
    let third = world.peer("client").await;
    assert!(third.open(world.gateway, &world.target()).await.is_err());
    let refusal = world.refusal(0).await;
    assert_eq!(refusal["reason"], "connection_limit");
    let detail = refusal["detail"].as_str().unwrap();
    assert!(
        detail.contains("node.hbone.connections_per_peer") && detail.contains("/sa/client has 2"),
        "{detail}"
    );
    // Another identity has its own.
    let other = world.peer("other").await;
    world.connect(&other).await;
    assert!(world.accepted.load(Ordering::SeqCst) >= 4);
}

/// An application that has said all and closed, and a client that takes nothing.
#[tokio::test]
async fn what_a_peer_does_not_take_of_an_application_that_has_gone_is_given_up() {
    let world = World::kept("stalled: 1s").await;
    let mut peer = world.peer("client").await;
    peer.hbone.stream_window = ByteSize(64 << 10);
    let (_deaf, mut gone) = world.connect(&peer).await;
    let (_patient, mut there) = world.connect(&peer).await;
    for application in [&mut gone, &mut there] {
        // More than the peer takes, and no more than the proxy's socket does.
        application.write_all(&[1; 100 << 10]).await.unwrap();
    }
    drop(gone);
    let given_up = async {
        while world
            .metric("istio_tcp_connections_closed_total", &["response_flags=\"SI\""])
            .is_empty()
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(SOON, given_up).await.expect("it is given up");
    assert_eq!(
        world.node.flows.flows().len(),
        1,
        "one whose application is there waits"
    );
}
