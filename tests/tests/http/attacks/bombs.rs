//! What is short on the wire and long in memory, or has no end.

use std::time::{Duration, Instant};

use super::Place;
use super::frames::{CONTINUATION, END_HEADERS, END_STREAM, HEADERS, Peer, block, frame, pseudo};
use super::siege::besieged;
use crate::client::{Client, ask, get};

/// More than any head may have.
const LONG: usize = 1 << 20;

/// Sends `head`, then `more` again and again, `times`, and says what status that was answered with (0: none).
fn endless(place: &Place, head: &str, more: &str, times: usize) -> u16 {
    let mut client = Client::connect(&place.client, place.at);
    client.send(head.as_bytes());
    let batch = more.repeat(64);
    for _ in 0..times.div_ceil(64) {
        client.send(batch.as_bytes());
    }
    client.answer(false).status
}

#[test]
fn heads_without_an_end_are_refused() {
    let place = Place::new();
    let head = "GET /bomb HTTP/1.1\r\nhost: web.test\r\n";
    let statuses = besieged(&place, "heads", 24, || {
        [
            endless(&place, head, "x-y: z\r\n", LONG / 8),
            endless(&place, &format!("{head}x-long: "), &"y".repeat(1024), LONG / 1024),
            endless(&place, head, &format!("{}: z\r\n", "x".repeat(1024)), LONG / 1024),
            endless(&place, "GET /", &"y".repeat(1024), LONG / 1024),
            endless(&place, "", &"Y".repeat(1024), LONG / 1024),
        ]
    });
    for status in statuses {
        // One that goes on sending may see the connection reset instead of the answer.
        assert!(matches!(status, 0 | 400 | 414 | 431), "{status}");
    }
    let arrived = place.web.seen().arrived;
    assert!(arrived.iter().all(|request| !request.target.contains("bomb")));
}

#[test]
fn chunks_that_are_mostly_something_else_are_refused() {
    let place = Place::new();
    let head = "POST /bomb HTTP/1.1\r\nhost: web.test\r\ntransfer-encoding: chunked\r\n\r\n";
    besieged(&place, "chunks", 24, || {
        endless(&place, &format!("{head}1;"), &"x".repeat(1024), LONG / 1024);
        endless(&place, head, &format!("1;{}\r\ny\r\n", "x".repeat(1000)), LONG / 1024);
        endless(&place, &format!("{head}0\r\n"), "x-y: z\r\n", LONG / 8);
        endless(&place, &format!("{head}0\r\nx: "), &"y".repeat(1024), LONG / 1024);
    });
    assert!(place.web.seen().arrived.iter().all(|request| request.target != "/bomb"));
    assert!(place.web.seen().offences.is_empty());
}

/// A table entry of 4000 bytes, named by one byte again and again (CVE-2016-6581).
#[test]
fn a_compressed_head_is_as_long_as_it_is_unpacked() {
    let place = Place::new();
    besieged(&place, "HPACK", 48, || {
        let peers: Vec<Peer> = (0..4)
            .map(|_| {
                let mut peer = Peer::connect(&place, &[]);
                for n in 0..64 {
                    let mut bomb = block(&pseudo("GET", "/bomb"));
                    if n == 0 {
                        let entry = block(&[("x-bomb", &"y".repeat(3800))]);
                        bomb.push(0x40);
                        bomb.extend(&entry[1..]);
                    }
                    // The entry that came last has index 62.
                    bomb.extend(vec![0x80 | 62; 10_000]);
                    let stream = 2 * n + 1;
                    let (first, rest) = bomb.split_at(bomb.len() / 2);
                    let mut frames = frame(HEADERS, END_STREAM, stream, first);
                    frames.extend(frame(CONTINUATION, END_HEADERS, stream, rest));
                    if peer.send(&frames).is_err() {
                        break;
                    }
                }
                peer
            })
            .collect();
        std::thread::sleep(Duration::from_millis(500));
        drop(peers);
    });
    assert!(place.web.seen().arrived.iter().all(|request| request.target != "/bomb"));
}

/// Expressions of routes are matched in a time that grows with the text only.
#[test]
fn no_path_keeps_an_expression_busy() {
    let place = Place::new();
    let path = format!("/regex/{}", "a".repeat(50_000));
    let began = Instant::now();
    for _ in 0..10 {
        assert_eq!(ask(&place.client, place.at, &get(&path, "")).status, 200);
    }
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}
