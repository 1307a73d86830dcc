//! Requests for what policy denies, written in other ways: none arrives, as whoever reads it most kindly would read it.

use std::time::Duration;

use underpass_tests::wait;

use super::Place;
use super::frames::{DATA, END_HEADERS, END_STREAM, HEADERS, Peer, block, frame};
use super::strict::Arrived;
use crate::client::{Client, ask, get};

const POLICIES: &str = "    path_normalization: decode-and-merge-slashes
    authorization:
    - {name: no-admin, action: DENY, rules: [{to: [{operation: {paths: [/admin, /admin/*]}}]}]}
    - {name: no-host, action: DENY, rules: [{to: [{operation: {hosts: [hidden.test]}}]}]}
    - {name: no-delete, action: DENY, rules: [{to: [{operation: {methods: [DELETE]}}]}]}
    - {name: no-role, action: DENY, rules: [{when: [{key: 'request.headers[x-role]', values: [admin]}]}]}
";

/// Writings of a path of `/admin`, as some server or other reads it.
const PATHS: &[&str] = &[
    "/admin",
    "/admin?x",
    "/admin/",
    "/admin/x",
    "//admin",
    "///admin",
    "/./admin",
    "/.//admin",
    "/x/../admin",
    "/x/y/../../admin",
    "/x/..//admin",
    "/../admin",
    "/../../admin",
    "/%61dmin",
    "/%61%64%6d%69%6e",
    "/adm%69n/x",
    "/%2fadmin",
    "/%2Fadmin",
    "%2fadmin",
    "/%2e/admin",
    "/%2E%2Fadmin",
    "/x/%2e%2e/admin",
    "/x/.%2e/admin",
    "/x/%2e./admin",
    "/x%2f..%2fadmin",
    "/x/..%2fadmin",
    "/x/%2e%2e%2fadmin",
    "/x\\..\\admin",
    "/x/..\\admin",
    "/\\admin",
    "\\admin",
    "/%5cadmin",
    "/x%5c..%5cadmin",
    "/x/..;/admin",
    "/x/..;a=b/admin",
    "/.;/admin",
    "/admin%2f",
    "/admin%2fx",
    "/admin\\x",
    "/admin/./x",
    "/admin/x/..",
    "/admin/..;/admin",
    "/admin#x",
    "/admin#/../x",
    "/x#/../../admin",
    "/admin%00",
    "/admin%00.html",
    "/admin%0a",
    "/admin%20",
    "http://web.test/admin",
    "http://web.test//admin",
    "http://web.test/x/../admin",
    "http://web.test/%61dmin?x",
    "HTTP://web.test/admin",
    "http://web.test\\admin",
    "http:/admin",
    "//web.test/admin",
    "/http://web.test/admin",
    "?/admin",
    "*/admin",
    "admin",
];

/// Lines beside the host's, of requests for `/plain`.
const FIELDS: &[&str] = &[
    "x-role: admin",
    "X-ROLE: admin",
    "x-role:admin",
    "x-role: \tadmin \t",
    "x-role: user\r\nx-role: admin",
    "x-role: admin\r\nx-role: user",
    "x-role:\r\nx-role: admin",
    "x-role : admin",
    "x-role\t: admin",
    " x-role: admin",
    "x-a: b\r\n x-role: admin",
    "x-role: \r\n admin",
    "x-a: b\rx-role: admin",
    "x-a: b\nx-role: admin",
    "x-a: b\0\r\nx-role: admin",
    "connection: x-role\r\nx-role: admin",
    "connection: x-role, close\r\nx-role: admin",
];

/// Whole requests.
const REQUESTS: &[&str] = &[
    "DELETE /plain HTTP/1.1\r\nhost: web.test\r\n\r\n",
    "delete /plain HTTP/1.1\r\nhost: web.test\r\n\r\n",
    "Delete /plain HTTP/1.1\r\nhost: web.test\r\n\r\n",
    " DELETE /plain HTTP/1.1\r\nhost: web.test\r\n\r\n",
    "DELETE  /plain HTTP/1.1\r\nhost: web.test\r\n\r\n",
    "DELETE\t/plain HTTP/1.1\r\nhost: web.test\r\n\r\n",
    "DELETE /plain HTTP/1.0\r\nhost: web.test\r\n\r\n",
    "DELETE /plain\r\n\r\n",
    "GET /plain HTTP/1.1\r\nhost: hidden.test\r\n\r\n",
    "GET /plain HTTP/1.1\r\nhost: HIDDEN.test\r\n\r\n",
    "GET /plain HTTP/1.1\r\nhost: web.test\r\nhost: hidden.test\r\n\r\n",
    "GET /plain HTTP/1.1\r\nhost: hidden.test\r\nhost: web.test\r\n\r\n",
    "GET http://hidden.test/plain HTTP/1.1\r\nhost: web.test\r\n\r\n",
    "GET http://HIDDEN.test/plain HTTP/1.1\r\nhost: web.test\r\n\r\n",
    "GET http://web.test@hidden.test/plain HTTP/1.1\r\nhost: web.test\r\n\r\n",
    "GET http://web.test/plain HTTP/1.1\r\nhost: hidden.test\r\n\r\n",
    "GET /plain HTTP/1.1\r\nhost: user@hidden.test\r\n\r\n",
    "GET /plain HTTP/1.1\r\nhost: web.test, hidden.test\r\n\r\n",
    "GET /plain HTTP/1.1\r\nhost : hidden.test\r\n\r\n",
    "POST /plain HTTP/1.1\r\nhost: web.test\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /admin HTTP/1.1\r\nhost: web.test\r\n\r\n",
    "POST /plain HTTP/1.1\r\nhost: web.test\r\ntransfer-encoding: xchunked\r\ncontent-length: 44\r\n\r\n0\r\n\r\nGET /admin HTTP/1.1\r\nhost: web.test\r\n\r\n",
    "POST /plain HTTP/1.1\r\nhost: web.test\r\ncontent-length: 0\r\n\r\nGET /admin HTTP/1.1\r\nhost: web.test\r\n\r\n",
    "GET /plain HTTP/1.1\r\nhost: web.test\r\n\r\nGET /x/../admin HTTP/1.1\r\nhost: web.test\r\n\r\n",
    "CONNECT web.test:80 HTTP/1.1\r\nhost: web.test:80\r\n\r\nGET /admin HTTP/1.1\r\nhost: web.test\r\n\r\n",
    "GET /plain HTTP/1.1\r\nhost: web.test\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n\r\nGET /admin HTTP/1.1\r\nhost: web.test\r\n\r\n",
    "GET /plain HTTP/1.1\r\nhost: web.test\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\nGET /admin HTTP/1.1\r\nhost: web.test\r\n\r\n",
];

/// Of HTTP/2: the fields of `GET /plain`, some of them others, some more than once.
fn streams() -> Vec<Vec<(&'static str, &'static str)>> {
    let plain = [
        (":method", "GET"),
        (":scheme", "http"),
        (":authority", "web.test"),
        (":path", "/plain"),
    ];
    let instead = |name: &'static str, value: &'static str| {
        let fields = plain.map(|(own, of_plain)| if own == name { (own, value) } else { (own, of_plain) });
        fields.to_vec()
    };
    let with = |name: &'static str, value: &'static str| plain.into_iter().chain([(name, value)]).collect::<Vec<_>>();
    let mut all: Vec<_> = PATHS.iter().map(|path| instead(":path", path)).collect();
    all.extend(["DELETE", "delete", "dELETE", " DELETE", "DELETE "].map(|method| instead(":method", method)));
    all.extend(
        ["hidden.test", "HIDDEN.TEST", "web.test@hidden.test", "hidden.test\t"].map(|host| instead(":authority", host)),
    );
    for (name, value) in [
        (":path", "/admin"),
        (":method", "DELETE"),
        (":authority", "hidden.test"),
        ("host", "hidden.test"),
        ("x-role", "admin"),
        ("x-role", " admin"),
        ("x-role", "admin "),
        ("X-Role", "admin"),
        ("x-role", "admin\0"),
        ("x-a", "b\r\nx-role: admin"),
    ] {
        all.push(with(name, value));
        // In front of them, too.
        all.push([(name, value)].into_iter().chain(plain).collect());
    }
    all.push(vec![
        (":method", "GET"),
        (":scheme", "http"),
        ("host", "hidden.test"),
        (":path", "/plain"),
    ]);
    all.push(vec![
        (":method", "CONNECT"),
        (":authority", "web.test:80"),
        (":path", "/admin"),
        (":scheme", "http"),
    ]);
    all.push(vec![
        ("x-role", "user"),
        (":method", "GET"),
        (":scheme", "http"),
        (":authority", "web.test"),
        (":path", "/admin"),
    ]);
    all
}

/// What the kindest of readers makes of a path: escapes are undone, backslashes are slashes, parameters of dot segments are none, several slashes
/// are one, dot segments resolved, and what comes behind a NUL is not read.
fn kindly(target: &str) -> String {
    let path = target.split(['?', '#']).next().unwrap_or_default().as_bytes();
    let (mut plain, mut at) = (Vec::new(), 0);
    while at < path.len() {
        let digits = path.get(at + 1..at + 3).and_then(|two| std::str::from_utf8(two).ok());
        let escaped = digits.and_then(|two| u8::from_str_radix(two, 16).ok());
        match escaped.filter(|_| path[at] == b'%') {
            Some(escaped) => {
                plain.push(escaped);
                at += 3;
            }
            None => {
                plain.push(path[at]);
                at += 1;
            }
        }
    }
    let plain = String::from_utf8_lossy(&plain).replace('\\', "/");
    let read = plain.split('\0').next().unwrap_or_default();
    let mut segments: Vec<&str> = Vec::new();
    for segment in read.split('/') {
        match segment.split(';').next() {
            Some("." | "") if segment.is_empty() || segment.starts_with('.') => {}
            Some("..") => drop(segments.pop()),
            _ => segments.push(segment),
        }
    }
    format!("/{}", segments.join("/"))
}

#[test]
fn the_kindest_of_readers_reads_kindly() {
    for path in [
        "/admin",
        "//x/..;a/%61dmin/",
        "/x\\..\\admin%00.html",
        "/x%2f%2e%2e/admin?y",
    ] {
        assert_eq!(kindly(path), "/admin");
    }
    assert_eq!(kindly("/x/admin"), "/x/admin");
}

fn is_denied(arrived: &Arrived) -> bool {
    let path = kindly(&arrived.target);
    let is_admin = path == "/admin" || path.starts_with("/admin/");
    let header = |name: &str| arrived.headers.get(name).map_or("", |value| value.trim());
    let host = header("host").to_ascii_lowercase();
    let has_role = header("x-role").split(',').any(|role| role.trim() == "admin");
    is_admin || host.contains("hidden") || arrived.method.eq_ignore_ascii_case("DELETE") || has_role
}

/// Panics if something has arrived that policy denies.
fn assert_kept_out(place: &Place) {
    let seen = place.web.seen();
    let arrived: Vec<_> = seen.arrived.iter().filter(|request| is_denied(request)).collect();
    assert!(arrived.is_empty(), "policy denies it, and it arrived: {arrived:#?}");
    assert!(seen.offences.is_empty(), "{:#?}", seen.offences);
}

/// Sends it, and something that ends the connection behind it, and waits until that has ended.
fn send(place: &Place, request: &str) {
    let mut client = Client::connect(&place.client, place.at);
    client.send(request.as_bytes());
    client.send(get("/plain", "connection: close\r\n").as_bytes());
    while client.answer(false).status != 0 {}
}

#[test]
fn what_policy_denies_arrives_in_no_other_writing() {
    let place = Place::with("drain: 10s", POLICIES);
    for path in PATHS {
        for method in ["GET", "POST"] {
            send(
                &place,
                &format!("{method} {path} HTTP/1.1\r\nhost: web.test\r\ncontent-length: 0\r\n\r\n"),
            );
        }
    }
    for fields in FIELDS {
        send(
            &place,
            &format!("GET /plain HTTP/1.1\r\nhost: web.test\r\n{fields}\r\n\r\n"),
        );
    }
    REQUESTS.iter().for_each(|request| send(&place, request));
    assert_kept_out(&place);
    // And what it does not deny arrives.
    for path in ["/plain", "/x/admin", "/administer", "/x?/../admin", "/admi"] {
        assert_eq!(
            ask(&place.client, place.at, &get(path, "x-role: user\r\n")).status,
            200,
            "{path}"
        );
    }
    for path in ["/admin", "/x/../admin"] {
        assert_eq!(ask(&place.client, place.at, &get(path, "")).body, "RBAC: access denied");
    }
}

#[test]
fn what_policy_denies_arrives_in_no_writing_of_http2() {
    let place = Place::with("drain: 10s", POLICIES);
    let cases = streams();
    std::thread::scope(|scope| {
        for part in 0..8 {
            let (place, cases) = (&place, &cases);
            scope.spawn(move || {
                for fields in cases.iter().skip(part).step_by(8) {
                    let mut peer = Peer::connect(place, &[]);
                    let mut frames = frame(HEADERS, END_HEADERS, 1, &block(fields));
                    frames.extend(frame(DATA, END_STREAM, 1, b""));
                    let _ = peer.send(&frames);
                    peer.end(Duration::from_millis(200));
                }
            });
        }
    });
    assert_kept_out(&place);
    assert!(
        !place.web.seen().arrived.is_empty(),
        "some of them are nothing that is denied"
    );
}

/// A connection that was let in is asked by the policies that are in force when it asks.
#[test]
fn a_policy_that_comes_later_holds_for_connections_that_are_open() {
    const OTHER: &str =
        "    authorization: [{name: other, action: DENY, rules: [{to: [{operation: {paths: [/other]}}]}]}]\n";
    let place = Place::with("drain: 10s", OTHER);
    let mut client = Client::connect(&place.client, place.at);
    let mut status = |path: &str| {
        let role = if path == "/role" { "x-role: admin\r\n" } else { "" };
        client.send(get(path, role).as_bytes());
        client.answer(false).status
    };
    assert_eq!(["/admin", "/role", "/other"].map(&mut status), [200, 200, 403]);
    let open = place.proxy.config_text();
    let closed = open.replace(OTHER, POLICIES);
    for (yaml, expected) in [
        (&closed, [403, 403, 200]),
        (&open, [200, 200, 403]),
        (&closed, [403, 403, 200]),
    ] {
        let before = place.proxy.config_updates("applied");
        place.proxy.replace_file(yaml);
        wait::eventually(wait::SOON, "the policy is in force", || {
            place.proxy.config_updates("applied") > before
        });
        assert_eq!(["/admin", "/role", "/other"].map(&mut status), expected);
    }
}
