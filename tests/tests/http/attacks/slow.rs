//! Who says little, and slowly, and who does not read.

use std::future::poll_fn;
use std::io;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::SendStream;
use http::Request;
use tokio::runtime::Runtime;
use underpass_tests::wait;

use super::Place;
use super::frames::{
    DATA, END_HEADERS, END_STREAM, HEADERS, PING, Peer, RST_STREAM, WINDOW_UPDATE, block, frame, pseudo,
};
use super::siege::besieged;
use crate::client::{Client, get};

/// Clients of each attack.
const CLIENTS: usize = 500;

#[test]
fn heads_and_bodies_that_come_slowly_hold_little_and_end() {
    let place = Place::with_timeouts("handshake: 4s, idle: 6s");
    besieged(&place, "slow heads", 48, || {
        let mut clients: Vec<Client> = (0..CLIENTS).map(|_| Client::connect(&place.client, place.at)).collect();
        for (n, client) in clients.iter_mut().enumerate() {
            client.send(
                match n % 3 {
                    0 => "GET /slow HTTP/1.1\r\nhost: web.test\r\nx-slow: ",
                    1 => "G",
                    _ => "PRI * HTT",
                }
                .as_bytes(),
            );
        }
        for _ in 0..10 {
            std::thread::sleep(Duration::from_millis(500));
            for client in clients.iter_mut().step_by(3) {
                client.send(b"y");
            }
        }
        for client in &mut clients {
            assert!(client.ends(), "it may take its time for ever");
        }
    });
    besieged(&place, "slow bodies", 48, || {
        let head = get("/slow", "content-length: 1000\r\n").replacen("GET", "POST", 1);
        let mut clients: Vec<Client> = (0..CLIENTS).map(|_| Client::connect(&place.client, place.at)).collect();
        clients.iter_mut().for_each(|client| client.send(head.as_bytes()));
        for client in &mut clients {
            assert!(client.ends(), "a body of which nothing comes is waited for for ever");
        }
    });
}

/// Windows that are never opened: what endpoints say is not kept here.
#[test]
fn what_clients_do_not_read_is_not_heaped_up() {
    let place = Place::with_timeouts("handshake: 4s, idle: 6s");
    besieged(&place, "stalled windows", 64, || {
        // SETTINGS_INITIAL_WINDOW_SIZE 0, and a connection that may have anything.
        let mut peers: Vec<Peer> = (0..8).map(|_| Peer::connect(&place, &[0, 4, 0, 0, 0, 0])).collect();
        for peer in &mut peers {
            peer.send(&frame(WINDOW_UPDATE, 0, 0, &0x7fff_0000u32.to_be_bytes()))
                .expect("the proxy reads");
            for n in 0..50 {
                let fields = [pseudo("GET", "/big"), vec![("x-big", "4000000")]].concat();
                let head = frame(HEADERS, END_HEADERS | END_STREAM, 2 * n + 1, &block(&fields));
                peer.send(&head).expect("the proxy reads");
            }
        }
        std::thread::sleep(Duration::from_secs(2));
    });
    besieged(&place, "slow readers", 96, || {
        let big = get("/big", "x-big: 40000000\r\n");
        let mut clients: Vec<Client> = (0..CLIENTS / 2)
            .map(|_| Client::connect(&place.client, place.at))
            .collect();
        clients.iter_mut().for_each(|client| client.send(big.as_bytes()));
        std::thread::sleep(Duration::from_secs(2));
    });
}

/// Asks by HTTP/2 with windows of `window` bytes and takes what comes, but grants nothing more, and shows that it is there. Says how many bytes of the body came before
/// the stream was reset.
fn starved(place: &Place, window: u8, path: &str, big: &str) -> usize {
    let mut peer = Peer::connect(place, &[0, 4, 0, 0, 0, window]);
    let fields = [pseudo("GET", path), vec![("x-big", big)]].concat();
    let head = frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(&fields));
    peer.send(&head).expect("the proxy reads");
    peer.stream
        .set_read_timeout(Some(Duration::from_millis(200)))
        .expect("a socket");
    let (end, mut came) = (Instant::now() + wait::soon(), 0);
    while Instant::now() < end {
        match peer.frame() {
            Ok((RST_STREAM, _, 1, _)) => return came,
            Ok((DATA, _, 1, payload)) => came += payload.len(),
            Ok(_) => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                peer.send(&frame(PING, 0, 0, &[0; 8])).expect("the proxy reads");
            }
            Err(error) => panic!("{path}: {error}"),
        }
    }
    panic!("{path}: a stream whose client takes nothing goes on");
}

/// Whoever gives no window holds nothing for longer than the route, or the node, says: neither an endpoint that has more to send, nor what has come whole.
#[test]
fn a_client_without_a_window_does_not_outlive_the_time_of_its_request() {
    let place = Place::with_timeouts("handshake: 2s, idle: 3s");
    for (path, big, flag) in [
        ("/hasty", "4000000", "UT"),
        ("/idle", "4000000", "SI"),
        ("/idle?whole", "1000", "SI"),
        ("/said", "0", "SI"),
    ] {
        for window in [0, 3] {
            let path = match path {
                "/said" => path.to_owned(),
                _ => format!("{path}{}window={window}", if path.contains('?') { "&" } else { "?" }),
            };
            assert_eq!(starved(&place, window, &path, big), usize::from(window), "{path}");
            let line = place.line(&path);
            assert!(line.contains(&format!("\"response_flags\":\"{flag}\"")), "{line}");
        }
    }
}

/// Sends until nothing more is taken for a while.
async fn fill(stream: &mut SendStream<Bytes>) {
    let filling = async {
        loop {
            stream.reserve_capacity(64 << 10);
            poll_fn(|cx| stream.poll_capacity(cx))
                .await
                .expect("a stream")
                .expect("a stream");
            let room = stream.capacity();
            stream.send_data(vec![7; room].into(), false).expect("a stream");
        }
    };
    let _: Result<(), _> = tokio::time::timeout(Duration::from_secs(2), filling).await;
}

/// Bodies that their endpoints don't read fill their own windows, not the connection's.
#[test]
fn bodies_that_stand_still_hold_up_none_beside_them() {
    let place = Place::new();
    Runtime::new().expect("a runtime").block_on(async {
        let stream = place.client.connect(place.at).expect("the proxy accepts");
        stream.set_nonblocking(true).expect("a socket");
        let stream = tokio::net::TcpStream::from_std(stream).expect("a socket");
        let (mut sender, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
        tokio::spawn(connection);
        let mut stuck = Vec::new();
        for _ in 0..8 {
            sender = sender.ready().await.expect("room");
            let request = Request::post("http://web.test/stuck").body(()).expect("a request");
            let (answer, mut stream) = sender.send_request(request, false).expect("a stream");
            fill(&mut stream).await;
            stuck.push((answer, stream));
        }
        sender = sender.ready().await.expect("room");
        let request = Request::post("http://web.test/moves").body(()).expect("a request");
        let (answer, mut stream) = sender.send_request(request, false).expect("a stream");
        let sending = async {
            let mut left = Bytes::from(vec![7; 1_000_000]);
            while !left.is_empty() {
                stream.reserve_capacity(left.len());
                poll_fn(|cx| stream.poll_capacity(cx))
                    .await
                    .expect("a stream")
                    .expect("a stream");
                let piece = left.split_to(stream.capacity().min(left.len()));
                stream.send_data(piece, left.is_empty()).expect("a stream");
            }
            answer.await.expect("an answer")
        };
        let answer = tokio::time::timeout(wait::soon(), sending).await;
        let answer = answer.expect("it is not held up by the others");
        assert_eq!(answer.headers()["x-told"], "POST /moves 1000000");
    });
}
