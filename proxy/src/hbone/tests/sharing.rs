//! How streams share connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use underpass_certs::ServerTls;
use underpass_config::HboneSettings;

use super::authority::identity;
use super::world::{World, connect, web};
use super::{authority, receive_exactly, send};
use crate::hbone::pool::OpenError;

#[tokio::test]
async fn the_first_connection_is_made_once_however_many_want_it() {
    let world = World::new("").await;
    let peer = world.peer("client").await;
    let open = || peer.open(world.gateway, "127.0.0.2:1");
    let all = tokio::join!(open(), open(), open(), open(), open(), open());
    for outcome in [all.0, all.1, all.2, all.3, all.4, all.5] {
        assert!(outcome.is_err(), "nobody listens there");
    }
    assert_eq!(world.accepted.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn who_fails_to_connect_tells_all_who_wait_and_the_next_tries_again() {
    let world = World::new("").await;
    let peer = world.peer("client").await;
    let nobody = "127.0.0.2:1".parse().unwrap();
    let target = world.target();
    let open = || peer.open(nobody, &target);
    let (one, other) = tokio::join!(open(), open());
    assert!(one.is_err() && other.is_err());
    assert!(open().await.is_err());
    assert_eq!(peer.connections(), 0);
    world.connect(&peer).await;
    assert_eq!(peer.connections(), 1);
}

#[tokio::test]
async fn many_streams_are_spread_and_none_waits_for_anothers_end() {
    let world = World::new("").await;
    let peer = world.peer("client").await;
    let mut open = Vec::new();
    for number in 0..2 * peer.hbone.streams as usize {
        open.push(world.connect(&peer).await);
        if number < 8 {
            assert_eq!(peer.connections(), 1, "{number} streams need no second");
        }
    }
    assert!((3..=8).contains(&peer.connections()), "{}", peer.connections());
    for (tunnel, application) in &mut open {
        send(tunnel, Bytes::from_static(b"x")).await;
        application.read_exact(&mut [0]).await.unwrap();
    }
}

/// A server that serves one stream on its first connection, and says that it will serve no more there; and any on later ones.
async fn leave_after_one_stream(listener: TcpListener, tls: ServerTls) {
    for number in 0.. {
        let (socket, _) = listener.accept().await.unwrap();
        let (stream, _) = tls.accept(socket).await.unwrap();
        let mut connection = h2::server::handshake(stream).await.unwrap();
        tokio::spawn(async move {
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                let send = respond.send_response(Response::new(()), false).unwrap();
                tokio::spawn(echo(request.into_body(), send));
                if number == 0 {
                    connection.graceful_shutdown();
                }
            }
        });
    }
}

async fn echo(mut receive: h2::RecvStream, mut send: h2::SendStream<Bytes>) {
    while let Some(Ok(bytes)) = receive.data().await {
        receive.flow_control().release_capacity(bytes.len()).unwrap();
        send.send_data(bytes, false).unwrap();
    }
}

#[tokio::test]
async fn a_stream_that_a_leaving_peer_did_not_look_at_goes_on_another_connection() {
    let world = World::new("").await;
    let peer = world.peer("client").await;
    let (_server, tls, listener) = server_of_web(&world).await;
    let gateway = listener.local_addr().unwrap();
    tokio::spawn(leave_after_one_stream(listener, tls));
    let mut first = peer.open(gateway, "127.0.0.3:80").await.unwrap();
    let mut second = peer.open(gateway, "127.0.0.3:80").await.unwrap();
    let mut third = peer.open(gateway, "127.0.0.3:80").await.unwrap();
    for tunnel in [&mut first, &mut second, &mut third] {
        send(tunnel, Bytes::from_static(b"there")).await;
        assert_eq!(receive_exactly(tunnel, 5).await, b"there");
    }
    assert!(
        first.connection.local != second.connection.local,
        "the second goes on another connection"
    );
    assert_eq!(second.connection.local, third.connection.local, "which is kept");
}

/// What a server of the pod `web` is made of.
async fn server_of_web(world: &World) -> (authority::Pod, ServerTls, TcpListener) {
    let server = authority::Pod::of(&world.authority, &web()).await;
    let tls = ServerTls::new(server.lease.slot().clone(), world.trust.clone()).unwrap();
    (server, tls, TcpListener::bind("127.0.0.3:0").await.unwrap())
}

/// A server that takes no stream on any connection; how many there were.
async fn take_no_streams(listener: TcpListener, tls: ServerTls, accepted: Arc<AtomicUsize>) {
    loop {
        let (socket, _) = listener.accept().await.unwrap();
        accepted.fetch_add(1, Ordering::SeqCst);
        let (stream, _) = tls.accept(socket).await.unwrap();
        let handshake = h2::server::Builder::new()
            .max_concurrent_streams(0)
            .handshake::<_, Bytes>(stream);
        let mut connection = handshake.await.unwrap();
        tokio::spawn(async move { while connection.accept().await.is_some() {} });
    }
}

#[tokio::test]
async fn a_peer_that_takes_no_streams_is_not_given_one_connection_after_the_other() {
    let world = World::new("").await;
    let peer = world.peer("client").await;
    let (_server, tls, listener) = server_of_web(&world).await;
    let gateway = listener.local_addr().unwrap();
    let accepted = Arc::new(AtomicUsize::new(0));
    tokio::spawn(take_no_streams(listener, tls, accepted.clone()));
    for asked in 1..=5 {
        // Whether it refuses at once or leaves the stream waiting for its turn, is up to when its settings come.
        let opening = tokio::time::timeout(Duration::from_millis(200), peer.open(gateway, "127.0.0.3:80"));
        assert!(!matches!(opening.await, Ok(Ok(_))), "there is no room for a stream");
        let dialled = accepted.load(Ordering::SeqCst);
        assert!(dialled <= 6 * asked, "{dialled} connections for {asked} streams");
        assert!(peer.connections() <= 2, "{} are kept", peer.connections());
    }
}

#[tokio::test]
async fn a_connection_without_streams_is_closed_after_a_while_and_made_anew_when_wanted() {
    let world = World::new("").await;
    let peer = world.peer("client").await;
    drop(world.connect(&peer).await);
    world.until_no_flow().await;
    assert_eq!(peer.connections(), 1);
    let idle = HboneSettings::default().idle;
    tokio::time::pause();
    let gone = async {
        while peer.connections() > 0 {
            tokio::time::sleep(idle / 10).await;
        }
    };
    tokio::time::timeout(2 * idle, gone).await.expect("it is closed");
    tokio::time::resume();
    world.connect(&peer).await;
    assert_eq!(world.accepted.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn what_was_proved_for_one_destination_serves_no_other() {
    let world = World::new("").await;
    let peer = world.peer("client").await;
    let (_tunnel, _application) = world.connect(&peer).await;
    // Same place, same client; but somebody else has to be there.
    let dial = peer.dial(world.gateway, &[identity("shop", "db")]);
    let outcome = peer.pool.open(&dial, &connect(&world.target())).await;
    assert!(matches!(outcome, Err(OpenError::Dial(_))), "{outcome:?}");
    // And another client has a connection of its own, as which policy sees it.
    let mut other = world.peer("other").await;
    other.pool = peer.pool.clone();
    let (_tunnel, _application) = world.connect(&other).await;
    assert_eq!(peer.connections(), 2);
}
