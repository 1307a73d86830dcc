//! Frames of HTTP/2 that cost nothing to send.

use std::time::Duration;

use super::Place;
use super::frames::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, Ended, HEADERS, PING, PRIORITY, Peer, RST_STREAM, SETTINGS,
    WINDOW_UPDATE, block, frame, pseudo,
};
use super::siege::besieged;

/// RFC 9113, section 7.
const ENHANCE_YOUR_CALM: u32 = 11;
const NO_ERROR: u32 = 0;
const PATIENCE: Duration = Duration::from_secs(5);

/// Frames of each flood.
const MANY: u32 = 200_000;

/// Sends a flood made of `frames`, reading nothing, until all is sent or the proxy has had enough.
fn flood(peer: &mut Peer, frames: impl Iterator<Item = Vec<u8>>) {
    // Who does not read what the proxy answers does not keep it from ending the flood.
    peer.stream.set_write_timeout(Some(PATIENCE)).expect("a socket");
    let mut batch = Vec::new();
    for frame in frames {
        batch.extend(frame);
        if batch.len() > 32 << 10 {
            if peer.send(&batch).is_err() {
                return;
            }
            batch.clear();
        }
    }
    let _ = peer.send(&batch);
}

fn request(stream: u32, path: &str, flags: u8) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | flags, stream, &block(&pseudo("GET", path)))
}

/// CVE-2023-44487.
#[test]
fn streams_that_are_reset_at_once_end_their_connection() {
    let place = Place::new();
    let ended = besieged(&place, "rapid reset", 48, || {
        let mut peer = Peer::connect(&place, &[]);
        let pairs = (0..MANY / 2).map(|n| {
            let stream = 2 * n + 1;
            let mut pair = request(stream, "/reset", END_STREAM);
            pair.extend(frame(RST_STREAM, 0, stream, &8u32.to_be_bytes()));
            pair
        });
        flood(&mut peer, pairs);
        peer.end(PATIENCE)
    });
    assert!(
        matches!(ended, Ended::GoAway(ENHANCE_YOUR_CALM) | Ended::Silently),
        "{ended:?}"
    );
    let arrived = place.web.seen().arrived;
    let reset = arrived.iter().filter(|request| request.target == "/reset").count();
    assert!(reset < 2000, "{reset} of them came to an endpoint");
}

/// CVE-2024-27316 and its like.
#[test]
fn a_head_that_does_not_end_is_not_kept() {
    let place = Place::new();
    let ended = besieged(&place, "CONTINUATION", 16, || {
        let mut peer = Peer::connect(&place, &[]);
        let head = frame(HEADERS, END_STREAM, 1, &block(&pseudo("GET", "/endless")));
        let more = frame(CONTINUATION, 0, 1, &block(&[("x-more", &"y".repeat(1000))]));
        flood(&mut peer, std::iter::once(head).chain((0..MANY).map(|_| more.clone())));
        peer.end(PATIENCE)
    });
    assert!(
        matches!(ended, Ended::GoAway(code) if code != NO_ERROR) || ended == Ended::Silently,
        "{ended:?}"
    );
}

#[test]
fn an_empty_continuation_is_not_waited_behind_for_ever() {
    let place = Place::new();
    let ended = besieged(&place, "empty CONTINUATION", 16, || {
        let mut peer = Peer::connect(&place, &[]);
        let head = frame(HEADERS, END_STREAM, 1, &block(&pseudo("GET", "/endless")));
        let more = frame(CONTINUATION, 0, 1, &[]);
        flood(&mut peer, std::iter::once(head).chain((0..MANY).map(|_| more.clone())));
        peer.end(PATIENCE)
    });
    assert!(
        matches!(ended, Ended::GoAway(code) if code != NO_ERROR) || ended == Ended::Silently,
        "{ended:?}"
    );
}

/// What has to be answered is not answered into memory while its sender does not read.
#[test]
fn answers_that_nobody_reads_are_not_heaped_up() {
    let place = Place::new();
    for (name, frame) in [
        ("PING", frame(PING, 0, 0, &[7; 8])),
        ("SETTINGS", frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 255, 255])),
        ("empty SETTINGS", frame(SETTINGS, 0, 0, &[])),
    ] {
        besieged(&place, name, 16, || {
            let mut peer = Peer::connect(&place, &[]);
            flood(&mut peer, (0..5 * MANY).map(|_| frame.clone()));
        });
    }
}

/// Frames that ask for nothing.
#[test]
fn frames_that_say_nothing_cost_nothing() {
    let place = Place::new();
    besieged(&place, "PRIORITY", 16, || {
        let mut peer = Peer::connect(&place, &[]);
        let priority = |n: u32| frame(PRIORITY, 0, 2 * n + 1, &[0, 0, 0, 0, 16]);
        flood(&mut peer, (0..MANY).map(priority));
    });
    besieged(&place, "WINDOW_UPDATE", 16, || {
        let mut peer = Peer::connect(&place, &[]);
        flood(
            &mut peer,
            (0..MANY).map(|_| frame(WINDOW_UPDATE, 0, 0, &1u32.to_be_bytes())),
        );
    });
    besieged(&place, "unknown frames", 16, || {
        let mut peer = Peer::connect(&place, &[]);
        flood(&mut peer, (0..MANY).map(|_| frame(0xf0, 0, 0, b"nothing")));
    });
}

/// Data in pieces of a byte, or of none, cost more to keep than they are long: an endpoint that does not take them on must not have them heaped up.
#[test]
fn small_pieces_of_a_body_are_not_heaped_up() {
    let place = Place::new();
    for (name, length) in [("DATA of nothing", 0), ("DATA of a byte", 1)] {
        besieged(&place, name, 64, || {
            let mut peer = Peer::connect(&place, &[]);
            let stuck = (0..8).map(|n| frame(HEADERS, END_HEADERS, 2 * n + 1, &block(&pseudo("POST", "/stuck"))));
            flood(&mut peer, stuck);
            let piece = |n: u32| frame(DATA, 0, 2 * (n % 8) + 1, &vec![b'x'; length]);
            flood(&mut peer, (0..5 * MANY).map(piece));
        });
    }
}
