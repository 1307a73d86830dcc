//! HBONE's two sides against each other and against peers that misbehave, over real sockets, TLS and HTTP/2.

#[allow(dead_code)]
#[path = "../../../certs/tests/certs/authority.rs"]
mod authority;
mod hostile;
mod lapsed;
mod pressure;
mod refusals;
mod sharing;
mod world;

use std::future::poll_fn;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::tunnel::Tunnel;
use world::{SOON, World, policy};

/// Sends as a well-behaved peer does.
async fn send(tunnel: &mut Tunnel, mut bytes: Bytes) {
    while !bytes.is_empty() {
        let room = poll_fn(|cx| tunnel.poll_room(bytes.len(), cx)).await.expect("room");
        tunnel.send(bytes.split_to(room.min(bytes.len()))).expect("sent");
    }
}

/// What comes next; `None` at the end.
async fn receive(tunnel: &mut Tunnel) -> Option<Result<Bytes, h2::Error>> {
    let received = tokio::time::timeout(SOON, poll_fn(|cx| tunnel.poll_receive(cx)));
    let received = received.await.expect("something comes");
    if let Some(Ok(bytes)) = &received {
        tunnel.taken(bytes.len());
    }
    received
}

async fn receive_exactly(tunnel: &mut Tunnel, length: usize) -> Vec<u8> {
    let mut all = Vec::new();
    while all.len() < length {
        all.extend(receive(tunnel).await.expect("no end yet").expect("no reset"));
    }
    all
}

async fn read_to_end(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut all = Vec::new();
    tokio::time::timeout(SOON, stream.read_to_end(&mut all))
        .await
        .expect("an end")?;
    Ok(all)
}

#[tokio::test]
async fn a_stream_goes_both_ways_ends_half_by_half_and_is_told_once() {
    let world = World::new("").await;
    let peer = world.peer("client").await;
    let (mut tunnel, mut application) = world.connect(&peer).await;
    send(&mut tunnel, Bytes::from_static(b"question")).await;
    tunnel.end().unwrap();
    assert_eq!(
        read_to_end(&mut application).await.unwrap(),
        b"question",
        "FIN came as FIN"
    );
    // The other half is open still.
    application.write_all(b"answer").await.unwrap();
    assert_eq!(receive_exactly(&mut tunnel, 6).await, b"answer");
    application.shutdown().await.unwrap();
    assert!(receive(&mut tunnel).await.is_none(), "and back as END_STREAM");
    world.until_no_flow().await;
    let labels = [
        "reporter=\"destination\"",
        "source_principal=\"spiffe://cluster.local/ns/shop/sa/client\"",
        "destination_principal=\"spiffe://cluster.local/ns/shop/sa/web\"",
        "connection_security_policy=\"mutual_tls\"",
        "source_workload=\"client-1\"",
    ];
    for (name, value) in [("opened", 1), ("closed", 1)] {
        let lines = world.metric(&format!("istio_tcp_connections_{name}_total"), &labels);
        assert!(
            matches!(&lines[..], [line] if line.ends_with(&format!(" {value}"))),
            "{lines:?}"
        );
    }
    assert!(world.metric("istio_tcp_received_bytes_total", &labels)[0].ends_with(" 8"));
    assert!(world.metric("istio_tcp_sent_bytes_total", &labels)[0].ends_with(" 6"));
    let of_source = world.metric("istio_tcp_connections_opened_total", &["reporter=\"source\""]);
    assert!(
        of_source.is_empty(),
        "the client's node tells of the client's side: {of_source:?}"
    );
}

/// Through a gateway, or from another cluster: at the client's address is no workload of its identity.
#[tokio::test]
async fn a_client_that_the_mesh_does_not_know_is_labelled_as_it_says_and_judged_as_it_is() {
    let only_other = policy("ALLOW", "{principals: [cluster.local/ns/shop/sa/other]}");
    let world = World::new(&only_other).await;
    let peer = world.peer("other").await;
    let said = "k8s.namespace.name=shop,k8s.deployment.name=shopper,service.name=client,k8s.cluster.name=east";
    let mut request = world::connect(&world.target());
    let fields = request.headers_mut();
    fields.insert("baggage", said.parse().unwrap());
    fields.insert("forwarded", "for=x;host=web.shop.svc.cluster.local".parse().unwrap());
    let dial = peer.dial(world.gateway, &[world::web()]);
    let (tunnel, accepted) = tokio::join!(peer.pool.open(&dial, &request), world.application.accept());
    drop((tunnel.unwrap(), accepted.unwrap()));
    let labels = [
        "source_principal=\"spiffe://cluster.local/ns/shop/sa/other\"",
        "source_workload=\"shopper\"",
        "source_workload_namespace=\"shop\"",
        "source_app=\"client\"",
        "source_cluster=\"east\"",
        "destination_service_name=\"web\"",
    ];
    assert_eq!(world.metric("istio_tcp_connections_opened_total", &labels).len(), 1);
    // Saying that one is another opens nothing.
    let stranger = world.peer("client").await;
    let dial = stranger.dial(world.gateway, &[world::web()]);
    let outcome = stranger.pool.open(&dial, &request).await;
    assert!(
        matches!(outcome, Err(super::pool::OpenError::Refused(_))),
        "{outcome:?}"
    );
}

#[tokio::test]
async fn a_reset_is_a_reset_on_the_other_side_behind_the_last_bytes() {
    let world = World::new("").await;
    let peer = world.peer("client").await;
    let (mut tunnel, mut application) = world.connect(&peer).await;
    // All of it is in the proxy's socket when the reset comes.
    let bytes = Bytes::from(vec![7; 40_000]);
    application.write_all(&bytes).await.unwrap();
    crate::socket::reset_on_close(&application);
    drop(application);
    let mut all = Vec::new();
    let end = loop {
        match receive(&mut tunnel).await {
            Some(Ok(more)) => all.extend(more),
            end => break end,
        }
    };
    assert_eq!(all.len(), bytes.len(), "what came before the reset");
    let error = end.expect("not an end").expect_err("a reset");
    assert_eq!(error.reason(), Some(h2::Reason::CONNECT_ERROR));

    let (mut tunnel, mut application) = world.connect(&peer).await;
    send(&mut tunnel, Bytes::from_static(b"last")).await;
    poll_fn(|cx| tunnel.poll_flushed(cx)).await;
    tunnel.reset(h2::Reason::CANCEL);
    let mut last = [0; 4];
    application.read_exact(&mut last).await.unwrap();
    let error = read_to_end(&mut application).await.expect_err("a reset");
    assert_eq!((&last, error.kind()), (b"last", std::io::ErrorKind::ConnectionReset));
    world.until_no_flow().await;
    let closed = |flag: &str| {
        world.metric(
            "istio_tcp_connections_closed_total",
            &[&format!("response_flags=\"{flag}\"")],
        )
    };
    assert!(closed("UC")[0].ends_with(" 1") && closed("DC")[0].ends_with(" 1"));
}

#[tokio::test]
async fn a_connection_that_breaks_never_looks_complete() {
    let world = World::new("").await;
    let peer = world.peer("client").await;
    let (mut tunnel, mut application) = world.connect(&peer).await;
    send(&mut tunnel, Bytes::from_static(b"half a sen")).await;
    let mut begun = [0; 10];
    application.read_exact(&mut begun).await.unwrap();
    world.pod.remove();
    let error = read_to_end(&mut application).await.expect_err("a reset");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

/// The sender is held back by the windows, all of them, down to the application that does not read.
#[tokio::test]
async fn who_does_not_read_holds_up_its_sender_and_nobody_beside_it() {
    let world = World::new("").await;
    let peer = world.peer("client").await;
    let (mut stuck, mut silent) = world.connect(&peer).await;
    let megabyte = Bytes::from(vec![1; 1 << 20]);
    let mut sent = 0;
    let fill = async {
        loop {
            send(&mut stuck, megabyte.clone()).await;
            sent += megabyte.len();
        }
    };
    let _ = tokio::time::timeout(Duration::from_millis(500), fill).await;
    assert!(sent > 1 << 20 && sent < 64 << 20, "{sent} bytes were taken for nobody");
    let (mut tunnel, mut application) = world.connect(&peer).await;
    assert_eq!(peer.connections(), 1, "they share a connection");
    send(&mut tunnel, megabyte.clone()).await;
    let mut bytes = vec![0; megabyte.len()];
    tokio::time::timeout(SOON, application.read_exact(&mut bytes))
        .await
        .expect("not held up")
        .unwrap();
    // Read, it goes on.
    let reading = async {
        let mut all = 0;
        let mut buffer = vec![0; 1 << 16];
        while all < sent + megabyte.len() {
            all += silent.read(&mut buffer).await.unwrap();
        }
    };
    let writing = async {
        for _ in 0..2 {
            send(&mut stuck, megabyte.clone()).await;
        }
    };
    tokio::time::timeout(SOON, async { tokio::join!(reading, writing) })
        .await
        .expect("it goes on");
}

#[tokio::test]
async fn an_open_stream_that_policy_denies_is_reset() {
    let world = World::new("").await;
    let peer = world.peer("client").await;
    let (mut tunnel, mut application) = world.connect(&peer).await;
    send(&mut tunnel, Bytes::from_static(b"x")).await;
    application.read_exact(&mut [0]).await.unwrap();
    let of_others = policy("DENY", "{principals: [cluster.local/ns/shop/sa/other]}");
    assert_eq!(world.publish(&of_others), 0);
    let of_client = policy("DENY", "{principals: [cluster.local/ns/shop/sa/client]}");
    assert_eq!(world.publish(&of_client), 1);
    let error = receive(&mut tunnel).await.expect("not an end").expect_err("a reset");
    assert_eq!(error.reason(), Some(h2::Reason::CANCEL));
    let error = read_to_end(&mut application).await.expect_err("a reset");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_drain_lets_open_streams_finish_and_opens_no_more() {
    let world = World::new("").await;
    let peer = world.peer("client").await;
    let (mut tunnel, mut application) = world.connect(&peer).await;
    world.node.start_drain();
    send(&mut tunnel, Bytes::from_static(b"on")).await;
    let mut bytes = [0; 2];
    application.read_exact(&mut bytes).await.unwrap();
    tunnel.end().unwrap();
    drop(application);
    assert!(receive(&mut tunnel).await.is_none());
    drop(tunnel);
    let gone = async {
        while peer.connections() > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, gone)
        .await
        .expect("GOAWAY, and closed with its last stream");
}
