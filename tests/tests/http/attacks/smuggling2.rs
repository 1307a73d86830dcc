//! Requests of HTTP/2 that would be others if their fields were written as text.

use std::time::Duration;

use super::Place;
use super::frames::{DATA, END_HEADERS, END_STREAM, HEADERS, Peer, block, frame, pseudo};
use crate::client::{ask, get};

const HIDDEN: &str = "\r\n\r\nGET /denied HTTP/1.1\r\nhost: secret.test\r\n\r\n";

type Fields = Vec<(String, String)>;

/// A request to `/PATH` with one more field.
fn with(name: &str, value: &str) -> Fields {
    let mut fields = plain();
    fields.push((name.into(), value.into()));
    fields
}

fn plain() -> Fields {
    let fields = pseudo("POST", "/PATH");
    fields
        .into_iter()
        .map(|(name, value)| (name.into(), value.into()))
        .collect()
}

/// A request whose pseudo-header field `name` is another.
fn instead(name: &str, value: &str) -> Fields {
    let mut fields = plain();
    for field in fields.iter_mut().filter(|field| field.0 == name) {
        field.1 = value.into();
    }
    fields
}

/// Requests that have to go nowhere.
fn refused() -> Vec<Fields> {
    let mut all = Vec::new();
    for (name, value) in [
        ("transfer-encoding", "chunked"),
        ("connection", "close"),
        ("connection", "content-length"),
        ("keep-alive", "5"),
        ("proxy-connection", "close"),
        ("upgrade", "websocket"),
        ("te", "gzip"),
        ("x-a", "b\r\ntransfer-encoding: chunked"),
        ("x-a", "b\ntransfer-encoding: chunked"),
        ("x-a", "b\rc"),
        ("x-a", "b\0c"),
        ("x-a\r\ntransfer-encoding: chunked\r\nx", "b"),
        ("x-a: b\r\nx", "c"),
        ("x a", "b"),
        ("x:a", "b"),
        ("X-Upper", "b"),
        ("", "b"),
        ("x\0", "b"),
        (":status", "200"),
        (":unknown", "x"),
        (":path", "/other"),
        (":method", "GET"),
        (":authority", "secret.test"),
        (":scheme", "https"),
        ("content-length", "+4"),
        ("content-length", "3"),
        ("content-length", "400"),
        ("content-length", "4, 4"),
        ("content-length", "x"),
    ] {
        all.push(with(name, value));
    }
    for (name, value) in [
        (":path", format!("/PATH HTTP/1.1{HIDDEN}")),
        (":path", "/PATH\r\nx: y".into()),
        (":path", "/PATH x".into()),
        (":path", String::new()),
        (":path", "PATH".into()),
        (":path", "\0".into()),
        (":method", format!("GET /x HTTP/1.1{HIDDEN}")),
        (":method", "GET /x".into()),
        (":method", String::new()),
        (":authority", "web.test\r\nx: y".into()),
        (":authority", "web.test@secret.test".into()),
        (":authority", "web.test/secret.test".into()),
        (":authority", "web.test secret.test".into()),
        (":authority", "web.test, secret.test".into()),
        (":scheme", "http://secret.test/x?".into()),
        (":scheme", "http\r\n".into()),
    ] {
        all.push(instead(name, &value));
    }
    // A pseudo-header field behind another field, and missing ones.
    let mut late = plain();
    late.insert(0, ("x-a".into(), "b".into()));
    all.push(late);
    for missing in [":method", ":scheme", ":path"] {
        all.push(plain().into_iter().filter(|(name, _)| name != missing).collect());
    }
    let mut twice = with("content-length", "4");
    twice.push(("content-length".into(), "40".into()));
    all.push(twice);
    all
}

/// Sends a request with a body of four bytes.
fn attack(place: &Place, fields: &Fields, path: &str) {
    let fields: Vec<(String, String)> = fields
        .iter()
        .map(|(n, v)| (n.clone(), v.replace("PATH", path)))
        .collect();
    let borrowed: Vec<(&str, &str)> = fields.iter().map(|(name, value)| (&**name, &**value)).collect();
    let mut peer = Peer::connect(place, &[]);
    let mut frames = frame(HEADERS, END_HEADERS, 1, &block(&borrowed));
    frames.extend(frame(DATA, END_STREAM, 1, b"abcd"));
    let _ = peer.send(&frames);
    peer.end(Duration::from_millis(300));
}

#[test]
fn fields_that_would_be_other_messages_as_text_go_nowhere() {
    let place = Place::new();
    let cases = refused();
    std::thread::scope(|scope| {
        for part in 0..8 {
            let (place, cases) = (&place, &cases);
            scope.spawn(move || {
                for (number, fields) in cases.iter().enumerate().skip(part).step_by(8) {
                    attack(place, fields, &format!("case{number}"));
                    let seen = ask(&place.client, place.at, &get(&format!("/victim{number}"), ""));
                    let told = format!("GET /victim{number} 0");
                    assert_eq!(seen.header("x-told"), Some(&*told), "after {fields:?}");
                }
            });
        }
    });
    let (web, secret) = (place.web.seen(), place.secret.seen());
    assert!(web.offences.is_empty(), "{:#?}", web.offences);
    assert!(secret.offences.is_empty() && secret.arrived.is_empty(), "{secret:#?}");
    for request in web.arrived {
        let Some(number) = request.target.strip_prefix("/case") else {
            assert!(request.target.starts_with("/victim"), "{request:?}");
            continue;
        };
        panic!(
            "{:?} arrived as {request:?}",
            number.parse::<usize>().map(|number| &cases[number])
        );
    }
}

/// `:authority` says whom it is for; `host` beside it decides nothing.
#[test]
fn the_authority_goes_before_the_host() {
    let place = Place::new();
    attack(&place, &with("host", "secret.test"), "authority");
    attack(&place, &instead(":authority", "secret.test"), "secret");
    let (web, secret) = (place.web.seen(), place.secret.seen());
    assert!(
        web.arrived.iter().all(|request| request.headers["host"] == "web.test"),
        "{web:#?}"
    );
    assert!(
        secret.arrived.iter().all(|request| request.target == "/secret"),
        "{secret:#?}"
    );
}
