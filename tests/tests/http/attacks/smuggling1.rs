//! Requests of HTTP/1.1 that two readers could see end at two places, or be for two hosts. Each goes on as the one that RFC 9112 says it is, or not at all.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use underpass_tests::wait;

use super::Place;
use super::strict::Arrived;
use crate::client::{Client, ask, get};

/// What some reader would take for a request of its own.
const HIDDEN: &str = "GET /denied HTTP/1.1\r\nhost: secret.test\r\nx-hidden: 1\r\n\r\n";

/// What may arrive at the endpoint for `web.test` of the bytes that a client sends.
enum Arrives {
    /// Nothing.
    Nothing,
    /// A request with this body.
    Body(Vec<u8>),
    /// Either.
    Perhaps(Vec<u8>),
}

struct Case {
    name: &'static str,
    bytes: Vec<u8>,
    arrives: Arrives,
}

/// `lines` end with CRLF each. The path, which names the case, is put in later.
fn post(lines: &str, body: &str) -> Vec<u8> {
    format!("POST /PATH HTTP/1.1\r\nhost: web.test\r\n{lines}\r\n{body}").into_bytes()
}

/// A body that ends, read as chunks, before what is hidden; as `Content-Length` says, after it.
fn hidden_behind_chunks() -> String {
    format!("0\r\n\r\n{HIDDEN}")
}

/// A length that covers what is hidden.
fn covering() -> String {
    format!("content-length: {}\r\n", hidden_behind_chunks().len())
}

/// Codings that are none, or not the last, beside a length: some see chunks, some don't.
const CODINGS: &[&str] = &[
    "transfer-encoding: xchunked",
    "transfer-encoding: chunked, identity",
    "transfer-encoding: identity, chunked",
    "transfer-encoding: identity",
    "transfer-encoding: chunked\r\ntransfer-encoding: x",
    "transfer-encoding: x\r\ntransfer-encoding: chunked",
    "transfer-encoding: chunked\r\ntransfer-encoding: chunked",
    "transfer-encoding: \"chunked\"",
    "transfer-encoding: chunked;q=1",
    "transfer-encoding: \x0bchunked",
    "transfer-encoding: chunked\x0b",
    "transfer-encoding: chunked\0",
    "transfer-encoding: ,chunked",
    "transfer-encoding: chunked,",
    "transfer-encoding: chunked, chunked",
    "transfer-encoding:",
    "transfer-encoding : chunked",
    "transfer-encoding\t: chunked",
    "transfer-encoding\r\n : chunked",
    "transfer-encoding:\r\n chunked",
    "transfer-encoding:\r\n\tchunked",
    " transfer-encoding: chunked",
    "x: y\r\n transfer-encoding: chunked",
    "x: y\rtransfer-encoding: chunked",
    "transfer-encoding\0: chunked",
    "transfer encoding: chunked",
    "transfer-encoding: chunked\r\nx\u{80}: y",
];

/// Lengths that are none, or two.
const LENGTHS: &[&str] = &[
    "content-length: 5\r\ncontent-length: 40",
    "content-length: 40\r\ncontent-length: 5",
    "content-length: 5, 40",
    "content-length: +5",
    "content-length: -5",
    "content-length: 0x5",
    "content-length: 5 5",
    "content-length: 5e0",
    "content-length: 5.0",
    "content-length:",
    "content-length: 18446744073709551621",
    "content-length: 99999999999999999999999999999999999999",
    "content-length: five",
    "content-length : 5",
    "content-length\r\n : 5",
    "content-length: 5\x0b",
    "content-length: \x0c5",
    "content-length: 5\0",
];

/// Chunks that some read and some don't; each is followed by what is hidden.
const CHUNKS: &[&str] = &[
    "0x0\r\n\r\n",
    "+0\r\n\r\n",
    "-0\r\n\r\n",
    "g\r\n\r\n",
    "\r\n0\r\n\r\n",
    "5\nabcde\r\n0\r\n\r\n",
    "5\rabcde\r\n0\r\n\r\n",
    "5\r\r\nabcde\r\n0\r\n\r\n",
    "5\r\nabcde0\r\n\r\n",
    "5\r\nabcde\n0\r\n\r\n",
    "5\r\nabcde\r0\r\n\r\n",
    "5\r\nabcdeXX0\r\n\r\n",
    "5;a\nabcde\r\n0\r\n\r\n",
    "5;a\rb\r\nabcde\r\n0\r\n\r\n",
    "10000000000000005\r\nabcde\r\n0\r\n\r\n",
    "fffffffffffffffff\r\nabcde\r\n0\r\n\r\n",
    "5\r\nabcde\r\n0\n\n",
    "0\r\nx y: z\r\n\r\n",
    "0\r\nx: y\nz\r\n\r\n",
    "5 6\r\nabcde\r\n0\r\n\r\n",
];

/// Heads that are none.
const HEADS: &[&str] = &[
    " POST /PATH HTTP/1.1\r\nhost: web.test\r\n\r\n",
    "POST  /PATH HTTP/1.1\r\nhost: web.test\r\n\r\n",
    "POST\t/PATH\tHTTP/1.1\r\nhost: web.test\r\n\r\n",
    "POST /PATH HTTP/1.1 HTTP/1.1\r\nhost: web.test\r\n\r\n",
    "POST /PATH x HTTP/1.1\r\nhost: web.test\r\n\r\n",
    "POST /PATH\r\nhost: web.test\r\n\r\n",
    "POST /PATH HTTP/2.0\r\nhost: web.test\r\n\r\n",
    "POST /PATH HTTP/1.2\r\nhost: web.test\r\n\r\n",
    "POST /PATH HTTP/1.1x\r\nhost: web.test\r\n\r\n",
    "POST /PATH http/1.1\r\nhost: web.test\r\n\r\n",
    "POST /PATH HTTP/1.0\r\nhost: web.test\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "POST /PATH\0 HTTP/1.1\r\nhost: web.test\r\n\r\n",
    "POST /PATH\r HTTP/1.1\r\nhost: web.test\r\n\r\n",
    "POST PATH HTTP/1.1\r\nhost: web.test\r\n\r\n",
    "P(ST /PATH HTTP/1.1\r\nhost: web.test\r\n\r\n",
    "POST /PATH HTTP/1.1\r\n host: web.test\r\n\r\n",
    "POST /PATH HTTP/1.1\r\nhost: web.test\r\nhost: secret.test\r\n\r\n",
    "POST /PATH HTTP/1.1\r\n\r\n",
    "POST /PATH HTTP/1.1\r\nhost : web.test\r\n\r\n",
    "POST /PATH HTTP/1.1\r\nhost: web.test\0.secret.test\r\n\r\n",
    "POST /PATH HTTP/1.1\r\nhost: web.test, secret.test\r\n\r\n",
    "POST /PATH HTTP/1.1\r\nhost: web.test@secret.test\r\n\r\n",
    "POST /PATH HTTP/1.1\r\nhost: web.test/secret.test\r\n\r\n",
    "POST /PATH HTTP/1.1\r\nhost: web.test:80:80\r\n\r\n",
    "POST /PATH HTTP/1.1\r\nhost: web.test\r\n[x]: y\r\n\r\n",
    "POST /PATH HTTP/1.1\r\nhost: web.test\r\n: y\r\n\r\n",
    "POST /PATH HTTP/1.1\r\nhost: web.test\r\nx y: z\r\n\r\n",
    "POST /PATH HTTP/1.1\r\nhost: web.test\r\nno colon\r\n\r\n",
    "POST /PATH HTTP/1.1\r\nhost: web.test\r\nx: a\0b\r\n\r\n",
    "POST http://web.test@secret.test/PATH HTTP/1.1\r\nhost: web.test\r\n\r\n",
    "POST web.test/PATH HTTP/1.1\r\nhost: web.test\r\n\r\n",
    "CONNECT secret.test:80 HTTP/1.1\r\nhost: web.test\r\n\r\n",
    "PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
];

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |name, bytes, arrives| cases.push(Case { name, bytes, arrives });
    for coding in CODINGS {
        let lines = format!("{}{coding}\r\n", covering());
        add(*coding, post(&lines, &hidden_behind_chunks()), Arrives::Nothing);
        let lines = format!("{coding}\r\n{}", covering());
        add(*coding, post(&lines, &hidden_behind_chunks()), Arrives::Nothing);
    }
    // Both: the coding counts, and nothing more is read of the connection (RFC 9112, section 6.1).
    for lines in [
        format!("{}transfer-encoding: chunked\r\n", covering()),
        format!("transfer-encoding: chunked\r\n{}", covering()),
        format!(
            "transfer-encoding: chunked\r\n{}connection: transfer-encoding\r\n",
            covering()
        ),
    ] {
        add(
            "CL and TE",
            post(&lines, &hidden_behind_chunks()),
            Arrives::Perhaps(vec![]),
        );
    }
    let chunk = format!("{:x}\r\n{HIDDEN}\r\n0\r\n\r\n", HIDDEN.len());
    let both = "transfer-encoding: chunked\r\ncontent-length: 4\r\n";
    add("TE and CL", post(both, &chunk), Arrives::Perhaps(HIDDEN.into()));
    // Something else is something else.
    for line in [
        "transfer_encoding: chunked",
        "x-transfer-encoding: chunked",
        "content_length: 3",
    ] {
        let lines = format!("{}{line}\r\n", covering());
        let body = hidden_behind_chunks();
        add(line, post(&lines, &body), Arrives::Body(body.into()));
    }
    for lengths in LENGTHS {
        add(
            *lengths,
            post(&format!("{lengths}\r\n"), &format!("abcde{HIDDEN}")),
            Arrives::Nothing,
        );
    }
    // The same twice may be taken for one (RFC 9110, section 8.6), and zeros before it say nothing.
    let twice = "content-length: 5\r\ncontent-length: 5\r\n";
    add(
        "the same length twice",
        post(twice, "abcde"),
        Arrives::Perhaps("abcde".into()),
    );
    add(
        "5, 5",
        post("content-length: 5, 5\r\n", "abcde"),
        Arrives::Perhaps("abcde".into()),
    );
    add(
        "005",
        post("content-length: 005\r\n", "abcde"),
        Arrives::Perhaps("abcde".into()),
    );
    for chunks in CHUNKS {
        let body = format!("{chunks}{HIDDEN}");
        add(*chunks, post("transfer-encoding: chunked\r\n", &body), Arrives::Nothing);
    }
    for (chunks, body) in [
        // The line without a name makes all that follows trailers that are none: they are dropped.
        (
            "5\r\nabcde\r\n0\r\n\nGET /denied HTTP/1.1\r\nhost: secret.test\r\n\r\n",
            "abcde",
        ),
        ("5;a=b\r\nabcde\r\n0\r\n\r\n", "abcde"),
        ("5;a=\"\\\"\"\r\nabcde\r\n0;x\r\n\r\n", "abcde"),
        ("5 \r\nabcde\r\n0\r\n\r\n", "abcde"),
        ("0005\r\nabcde\r\n000\r\n\r\n", "abcde"),
        (
            "5\r\nabcde\r\n0\r\ncontent-length: 40\r\nhost: secret.test\r\ntransfer-encoding: x\r\n\r\n",
            "abcde",
        ),
    ] {
        add(
            chunks,
            post("transfer-encoding: chunked\r\n", chunks),
            Arrives::Perhaps(body.into()),
        );
    }
    for head in HEADS {
        add(*head, format!("{head}{HIDDEN}").into_bytes(), Arrives::Nothing);
    }
    // One LF may end a line (RFC 9112, section 2.2): then the next is a line too, for whoever comes next.
    let bare = "POST /PATH HTTP/1.1\nhost: web.test\ncontent-length: 5\n\nabcde";
    add("bare LF", bare.into(), Arrives::Perhaps("abcde".into()));
    let bare = format!("x: y\ntransfer-encoding: chunked\r\n{}", covering());
    add(
        "a coding behind a bare LF",
        post(&bare, &hidden_behind_chunks()),
        Arrives::Perhaps(vec![]),
    );
    // An empty line before a request is ignored (section 2.2).
    let empty = "\r\nPOST /PATH HTTP/1.1\r\nhost: web.test\r\ncontent-length: 5\r\n\r\nabcde";
    add("an empty line before", empty.into(), Arrives::Perhaps("abcde".into()));
    // What `Connection` names is no way to have the framing taken off.
    for named in ["content-length", "host", "content-length, close", "transfer-encoding"] {
        let body = hidden_behind_chunks();
        let lines = format!("{}connection: {named}\r\n", covering());
        add(named, post(&lines, &body), Arrives::Body(body.into()));
    }
    // The body of a method that seldom has one is a body.
    for method in ["GET", "DELETE", "HEAD", "OPTIONS", "PROPFIND"] {
        let body = hidden_behind_chunks();
        let request = post(&covering(), &body);
        let text = String::from_utf8_lossy(&request).replacen("POST", method, 1);
        add(method, text.into_bytes(), Arrives::Body(body.into()));
    }
    // The target goes before the host.
    let absolute = "POST http://web.test/PATH HTTP/1.1\r\nhost: secret.test\r\ncontent-length: 0\r\n\r\n";
    add("absolute-form", absolute.into(), Arrives::Body(vec![]));
    // An upgrade that is refused is none: what follows is a request, and for `/denied` the proxy answers itself.
    for lines in [
        "connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\ncontent-length: 0\r\n",
        "connection: upgrade\r\nupgrade: websocket\r\ncontent-length: 0\r\n",
    ] {
        let next = HIDDEN.replace("secret.test", "web.test");
        add("an upgrade", post(lines, &next), Arrives::Perhaps(vec![]));
        let ws = String::from_utf8_lossy(&post(lines, &next)).replace("/PATH", "/ws/PATH");
        add("an upgrade where one may be", ws.into_bytes(), Arrives::Perhaps(vec![]));
    }
    let waits = format!("{}expect: 100-continue\r\n", covering());
    let body = hidden_behind_chunks();
    add("expectation", post(&waits, &body), Arrives::Body(body.clone().into()));
    add(
        "another expectation",
        post(&waits.replace("100-continue", "200-ok"), &body),
        Arrives::Perhaps(body.into()),
    );
    cases
}

/// Sends a case and waits until the proxy has had its say: what it has to answer is waited for, what it may wait for the rest of is not.
fn attack(place: &Place, bytes: &[u8], arrives: &Arrives) {
    let mut stream: TcpStream = place.client.connect(place.at).expect("the proxy accepts");
    let patience = match arrives {
        Arrives::Body(_) => wait::soon(),
        Arrives::Nothing | Arrives::Perhaps(_) => Duration::from_secs(2),
    };
    stream.set_read_timeout(Some(patience)).expect("a socket");
    let _ = stream.write_all(bytes);
    let mut scrap = [0; 4096];
    while matches!(stream.read(&mut scrap), Ok(length) if length > 0) {
        stream
            .set_read_timeout(Some(Duration::from_millis(100)))
            .expect("a socket");
    }
}

/// What arrived, by the name of its case.
fn by_case(arrived: Vec<Arrived>) -> BTreeMap<String, Vec<Arrived>> {
    let mut cases: BTreeMap<String, Vec<Arrived>> = BTreeMap::new();
    for request in arrived {
        let name = request.target.trim_start_matches("/ws").to_owned();
        cases.entry(name).or_default().push(request);
    }
    cases
}

#[test]
fn no_request_arrives_that_its_client_did_not_make() {
    let place = Place::new();
    let cases = cases();
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                let take = || {
                    let number = next.fetch_add(1, Ordering::SeqCst);
                    cases.get(number).map(|case| (number, case))
                };
                while let Some((number, case)) = take() {
                    let text: Vec<u8> = replace(&case.bytes, b"PATH", format!("case{number}").as_bytes());
                    attack(&place, &text, &case.arrives);
                    // Whoever comes next gets their own answer.
                    let seen = ask(&place.client, place.at, &get(&format!("/victim{number}"), ""));
                    assert_eq!(
                        seen.header("x-told"),
                        Some(&*format!("GET /victim{number} 0")),
                        "after {}",
                        case.name
                    );
                }
            });
        }
    });
    let (web, secret) = (place.web.seen(), place.secret.seen());
    assert!(web.offences.is_empty(), "{:#?}", web.offences);
    assert!(secret.offences.is_empty() && secret.arrived.is_empty(), "{secret:#?}");
    let mut arrived = by_case(web.arrived);
    let mut wrong = Vec::new();
    for (number, case) in cases.iter().enumerate() {
        let came = arrived.remove(&format!("/case{number}")).unwrap_or_default();
        let bodies: Vec<&[u8]> = came.iter().map(|request| &*request.body).collect();
        let is_right = match &case.arrives {
            Arrives::Nothing => bodies.is_empty(),
            Arrives::Body(body) => bodies == [&**body],
            Arrives::Perhaps(body) => bodies.is_empty() || bodies == [&**body],
        };
        if !is_right {
            wrong.push(format!("{number} {:?}: {came:?}", case.name));
        }
    }
    arrived.retain(|name, _| !name.starts_with("/victim"));
    assert!(
        wrong.is_empty() && arrived.is_empty(),
        "{wrong:#?}\nof no case: {arrived:#?}"
    );
    println!("{} cases", cases.len());
}

/// All of `what` in `bytes`, replaced.
fn replace(bytes: &[u8], what: &[u8], by: &[u8]) -> Vec<u8> {
    let mut replaced = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some(at) = rest.windows(what.len()).position(|window| window == what) {
        replaced.extend_from_slice(&rest[..at]);
        replaced.extend_from_slice(by);
        rest = &rest[at + what.len()..];
    }
    replaced.extend_from_slice(rest);
    replaced
}

/// Where a lenient reader sees the end of a body before the last line of its trailers, what follows is a request to it, and to us a trailer. So nothing that follows is
/// answered: of two answers the second would be taken for another's.
#[test]
fn nothing_is_answered_behind_a_body_that_may_have_ended_before() {
    let place = Place::new();
    let next = "GET /next HTTP/1.1\r\nhost: web.test\r\n\r\n";
    for end in [
        "0\r\n\nGET /hidden HTTP/1.1\r\nhost: web.test\r\n\r\n",
        "0\r\nx: y\n\nGET /hidden HTTP/1.1\r\nhost: web.test\r\n\r\n",
        "0\r\nx: y\r\n\r\n",
    ] {
        let mut client = Client::connect(&place.client, place.at);
        client.send(&post(
            "transfer-encoding: chunked\r\n",
            &format!("5\r\nabcde\r\n{end}{next}"),
        ));
        client.answer(false);
        assert!(client.is_closed(), "{end:?}");
    }
    // What ends plainly is followed by another.
    let mut client = Client::connect(&place.client, place.at);
    for _ in 0..3 {
        client.send(&post("transfer-encoding: chunked\r\n", "5\r\nabcde\r\n0\r\n\r\n"));
        assert_eq!(client.answer(false).status, 200);
    }
    assert!(place.web.seen().arrived.iter().all(|request| request.target == "/PATH"));
}
