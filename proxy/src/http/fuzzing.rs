//! What clients and endpoints of HTTP send, with what must hold of it whatever it is (see [`crate::fuzzing`]).

mod conversation;
mod framing;

use std::net::SocketAddr;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use http::header::{
    CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue, TE, TRAILER,
    TRANSFER_ENCODING, UPGRADE,
};
use http::{Method, Request, StatusCode, Uri, Version};
use underpass_config::Config;
use underpass_config::http::{
    Fact, Facts, Field, Forward, HeaderEdits, RequestView, RetryPolicy, RouteAction, RouteTable, hash_request,
};

use super::arriving::Arriving;
use super::attempt::{for_http1, for_http2};
use super::exchange::rewrite;
use super::forward::status_of_grpc;
use super::intake::{CLAIMS, Intake, MAX_HEADERS, WISHES, check_framing};
use super::switch::Switch;
use super::upload::Upload;
use super::{detection, hygiene, sniff};
pub use conversation::http1;

/// What requests are routed by: each kind of match, of rewrite and of hash policy.
const ROUTES: &str = r#"
http:
  clusters:
  - {name: web, endpoints: ["10.0.0.1:80"]}
  routes:
  - name: t
    virtual_hosts:
    - name: web
      domains: [web.test, "*.web.test", "web.*"]
      request_headers: {remove: [x-gone], set: {x-set: "1"}, add: {x-more: "2"}, default: {x-there: "3"}}
      routes:
      - {match: {connect: true}, forward: {cluster: web, connect: pass}}
      - {match: {path: /exact, case_sensitive: false}, forward: {cluster: web, path_rewrite: /whole}}
      - {match: {segments: /redirect}, redirect: {prefix: /, scheme: https, port: 444}}
      - {match: {segments: /elsewhere}, redirect: {path: /there, host: other.test}}
      - {match: {regex: "/x/[0-9]+(/.*)?"}, forward: {cluster: web, regex_rewrite: {pattern: "^/x/([0-9]+)", substitution: '/y/\1\0'}}}
      - {match: {regex: "/loose/.*"}, forward: {cluster: web, regex_rewrite: {pattern: "/loose/", substitution: ""}}}
      - {match: {prefix: /hash}, forward: {cluster: web, hash: [{cookie: {name: c, ttl: 1h, path: /}}, {query: q, terminal: true}, {header: x-user}, {source_ip: true}]}}
      - {match: {prefix: /, headers: {x-a: {regex: "[a-z]+"}, x-b: {suffix: z, invert: true}}, query: {v: {prefix: "2"}}}, forward: {cluster: web}}
      - match: {prefix: /api}
        forward:
          cluster: web
          prefix_rewrite: /
          host_rewrite: inner.test
          retry: {on: [5xx, retriable-headers, unavailable], headers: {x-again: {prefix: y}}, reset_headers: [{name: retry-after}, {name: x-at, format: unix-timestamp}]}
      - {match: {prefix: /}, forward: {cluster: web, upgrades: [websocket]}}
    - {name: rest, domains: ["*"], routes: [{direct: {status: 200}}]}
"#;

fn table() -> &'static RouteTable {
    static CONFIG: OnceLock<Config> = OnceLock::new();
    let config = CONFIG.get_or_init(|| Config::from_yaml(ROUTES).expect("routes"));
    &config.http.tables["t"]
}

/// The policy of the one route that has one.
fn retry() -> &'static RetryPolicy {
    let routes = table().virtual_hosts().iter().flat_map(|host| &host.routes);
    let mut policies = routes.filter_map(|route| match &route.action {
        RouteAction::Forward(forward) => forward.retry.as_ref(),
        _ => None,
    });
    policies.next().expect("a retry policy")
}

/// Lines of `NAME: VALUE`; those that no codec would let through are left out.
fn fields<'b>(lines: impl Iterator<Item = &'b [u8]>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for line in lines {
        let mut parts = line.splitn(2, |byte| *byte == b':');
        let name = HeaderName::from_bytes(parts.next().unwrap_or_default().trim_ascii());
        let value = HeaderValue::from_bytes(parts.next().unwrap_or_default().trim_ascii());
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    headers
}

/// The head of a request as text: `METHOD TARGET`, perhaps ` HTTP/2` or ` HTTP/2 PROTOCOL` (extended CONNECT), and lines of `NAME: VALUE`. True if it can be routed.
pub fn http_request(bytes: &[u8]) -> bool {
    let mut lines = bytes.split(|byte| *byte == b'\n');
    let mut words = lines.next().unwrap_or_default().split(|byte| *byte == b' ');
    let mut word = || words.next().unwrap_or_default();
    let (method, target, version, protocol) = (word(), word(), word(), word());
    let (Ok(method), Ok(uri)) = (Method::from_bytes(method), Uri::try_from(target)) else {
        return false;
    };
    let mut request = Request::new(());
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    *request.headers_mut() = fields(lines);
    if version == b"HTTP/2" {
        *request.version_mut() = Version::HTTP_2;
        if let (Ok(protocol), false) = (str::from_utf8(protocol), protocol.is_empty()) {
            *request.method_mut() = Method::CONNECT;
            request.extensions_mut().insert(h2::ext::Protocol::from(protocol));
        }
    }
    let before = request.headers().clone();
    match Intake::new(request.into_parts().0) {
        Err(unfit) => {
            assert!(
                unfit.status.is_client_error() || unfit.status.is_server_error(),
                "{unfit:?}"
            );
            false
        }
        Ok(intake) => {
            judge(&intake, &before);
            route(intake);
            true
        }
    }
}

/// A request that can be routed is one, has nothing of its hop left, and is the same for whoever it goes on to.
fn judge(intake: &Intake, before: &HeaderMap) {
    let is_connect = intake.switch == Some(Switch::Connect);
    assert_eq!(intake.target.is_empty(), is_connect, "{intake:?}");
    assert!(is_connect || intake.target.starts_with('/'), "{intake:?}");
    assert!(
        !intake.target.contains(|c: char| c.is_ascii_control() || c == ' '),
        "{intake:?}"
    );
    let authority = intake.authority.to_str().expect("an authority is text");
    assert!(
        !authority.is_empty() && !authority.contains(['@', '/', ' ']),
        "{intake:?}"
    );
    let RequestView { path, query, .. } = intake.view();
    assert!(!path.contains('?'), "{path}");
    let whole = query.map_or(path.to_owned(), |query| format!("{path}?{query}"));
    assert_eq!(whole, intake.target, "path and query are the target");
    assert_of_no_hop(before, &intake.headers);
    for name in [HOST, EXPECT].iter().chain(&WISHES).chain(&CLAIMS) {
        assert!(!intake.headers.contains_key(name), "{name} goes on");
    }
    let lengths = intake.headers.get_all(CONTENT_LENGTH).iter().count();
    assert!(lengths <= usize::from(intake.switch.is_none()), "{intake:?}");
    // Only what a route names is asked for.
    let is_let_to = !matches!(&intake.switch, Some(Switch::Upgrade(protocol)) if protocol != "websocket");
    // What is added here may be more than others take.
    if is_let_to && intake.headers.len() + 4 < MAX_HEADERS {
        goes_on_by_http1(intake);
        goes_on_by_http2(intake);
    }
}

/// Nothing that one hop says to the next is left of it, nor what `Connection` names, but for what others decide by.
fn assert_of_no_hop(before: &HeaderMap, after: &HeaderMap) {
    for name in [CONNECTION, TRANSFER_ENCODING, UPGRADE, TRAILER] {
        assert!(!after.contains_key(&name), "{name} goes on");
    }
    for name in ["keep-alive", "proxy-connection", "http2-settings"] {
        assert!(!after.contains_key(name), "{name} goes on");
    }
    assert!(after.get_all(TE).iter().all(|value| value == "trailers"));
    let names = (before.get_all(CONNECTION).iter()).filter_map(|value| value.to_str().ok());
    for name in names.flat_map(|value| value.split(',')) {
        let name = name.trim().to_ascii_lowercase();
        let is_private = name.starts_with("x-")
            && ["x-forwarded-", "x-envoy-", "x-request-id"]
                .iter()
                .all(|kept| !name.starts_with(kept));
        assert!(!is_private || !after.contains_key(&*name), "{name} goes on");
    }
}

fn nothing() -> Upload {
    Upload::new(Arriving::Nothing, 0, false)
}

/// Another of us would understand what goes on as we have understood what came.
fn goes_on_by_http1(intake: &Intake) {
    let Some(request) = for_http1(intake, nothing().attempt()) else {
        panic!("it can't be written: {intake:?}");
    };
    let again = Intake::new(request.into_parts().0).unwrap_or_else(|unfit| panic!("{unfit:?}: {intake:?}"));
    assert_eq!(again.switch, intake.switch);
    assert_same(&again, intake);
}

fn goes_on_by_http2(intake: &Intake) {
    if intake.switch.is_some() {
        return;
    }
    let Some(request) = for_http2(intake, &nothing().attempt()) else {
        panic!("it can't be written: {intake:?}");
    };
    let again = Intake::new(request.into_parts().0).unwrap_or_else(|unfit| panic!("{unfit:?}: {intake:?}"));
    assert_same(&again, intake);
}

fn assert_same(again: &Intake, intake: &Intake) {
    assert_eq!(
        (&again.method, &again.target, &again.authority),
        (&intake.method, &intake.target, &intake.authority)
    );
    for (name, value) in &again.headers {
        // A method that has content says so, if there is none; a WebSocket is asked for with a key; cookies are put together.
        let is_added = name == CONTENT_LENGTH || name == "sec-websocket-key" || name == COOKIE;
        assert!(
            is_added || intake.headers.get_all(name).iter().any(|known| known == value),
            "{name} was added"
        );
    }
    for name in intake.headers.keys() {
        assert!(again.headers.contains_key(name), "{name} is lost");
    }
}

/// Tells operators nothing but what the request's own fields are.
struct OwnFields;

impl Facts for OwnFields {
    fn tell(&self, fact: &Fact, edited: &HeaderMap, out: &mut Vec<u8>) -> bool {
        let value = match fact {
            Fact::Request(Field::Header(name), _) => edited.get(name),
            _ => None,
        };
        out.extend_from_slice(value.map_or(b"", HeaderValue::as_bytes));
        value.is_some()
    }
}

fn edit(intake: &mut Intake, edits: &HeaderEdits) {
    edits.apply(&mut intake.headers, &OwnFields);
}

/// Wherever a request is led, it goes on with a path, its query, and a cookie that can be written.
fn route(mut intake: Intake) {
    let Some((host, route)) = table().route(&intake.view(), 0) else {
        return;
    };
    let query = intake.view().query.map(str::to_owned);
    match &route.action {
        RouteAction::Forward(forward) => {
            assert_hashed(forward, &intake);
            if rewrite(&mut intake, (host, route, forward), forward.choose(0), edit) {
                let view = intake.view();
                assert!(view.path.is_empty() || view.path.starts_with('/'), "{intake:?}");
                assert_eq!(view.query, query.as_deref(), "{intake:?}");
                // A rewrite may make what is no target; then nothing goes on.
                if let Some(request) = for_http1(&intake, nothing().attempt()) {
                    assert!(!request.uri().to_string().contains([' ', '\r', '\n']), "{request:?}");
                }
            }
        }
        RouteAction::Redirect(redirect) => {
            let location = redirect.location(&route.matches, &intake.view());
            assert!(!location.contains(|c: char| c.is_ascii_control()), "{location:?}");
            assert!(HeaderValue::try_from(location).is_ok());
        }
        RouteAction::Direct(_) => {}
    }
}

/// A request goes to the same endpoint each time, and who is given a cookie comes to where it was sent with it.
fn assert_hashed(forward: &Forward, intake: &Intake) {
    let (source, local) = (
        SocketAddr::from(([10, 0, 0, 9], 4000)),
        SocketAddr::from(([10, 0, 0, 1], 80)),
    );
    let hashed = hash_request(&forward.hash, &intake.view(), source, local);
    assert_eq!(hashed, hash_request(&forward.hash, &intake.view(), source, local));
    let [cookie] = &hashed.cookies[..] else {
        return assert!(hashed.cookies.is_empty(), "one policy gives one");
    };
    let cookie = cookie.to_str().expect("text");
    let (pair, _) = cookie.split_once(';').expect("attributes");
    let mut headers = intake.headers.clone();
    headers.insert(COOKIE, HeaderValue::try_from(pair).expect("text"));
    let view = RequestView {
        headers: &headers,
        ..intake.view()
    };
    let again = hash_request(&forward.hash, &view, source, local);
    assert_eq!((again.hash, again.cookies.len()), (hashed.hash, 0), "{cookie}");
}

/// The head of an endpoint's answer as text: `STATUS`, and lines of `NAME: VALUE`. True if its fields say something of another try.
pub fn http_answer(bytes: &[u8]) -> bool {
    let mut lines = bytes.split(|byte| *byte == b'\n');
    let status = StatusCode::from_bytes(lines.next().unwrap_or_default().trim_ascii());
    let (Ok(status), before) = (status, fields(lines)) else {
        return false;
    };
    let retry = retry();
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let pause = retry.said_pause(&before, now);
    assert!(pause.is_none_or(|pause| pause <= retry.reset_max_interval), "{pause:?}");
    let of_grpc = status_of_grpc(&before);
    assert!(of_grpc.is_none_or(|status| (200..600).contains(&status)), "{of_grpc:?}");
    if check_framing(&before).is_ok() {
        assert!(before.get_all(CONTENT_LENGTH).iter().count() <= 1);
    }
    let mut after = before.clone();
    hygiene::strip_hop_by_hop(&mut after);
    assert_of_no_hop(&before, &after);
    retry.on.of_answer(status, &before) || pause.is_some()
}

/// The first bytes of a connection. True if they are clear.
pub fn http_sniff(bytes: &[u8]) -> bool {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let decided = sniff::decide(bytes);
    let common = bytes
        .iter()
        .zip(PREFACE)
        .take_while(|(one, other)| one == other)
        .count();
    match decided {
        None => assert!(common == bytes.len() && common < PREFACE.len(), "it differs already"),
        Some(sniff::Protocol::Http2) => assert_eq!(common, PREFACE.len()),
        Some(sniff::Protocol::Http1 | sniff::Protocol::Neither) => assert!(common < PREFACE.len().min(bytes.len())),
    }
    if decided == Some(sniff::Protocol::Neither) {
        let mut room = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut request = httparse::Request::new(&mut room);
        assert!(request.parse(bytes).is_err(), "a request is answered as one");
    }
    // What shows itself as HTTP where it has to, is HTTP where it need not.
    let seen = detection::Inspector::default().take(bytes);
    assert!(matches!(seen, None | Some(sniff::Protocol::Neither)) || seen == decided);
    decided.is_some()
}

/// A configuration of HTTP. True if it is one; then its routes take any request.
pub fn http_config(bytes: &[u8]) -> bool {
    let Ok(text) = str::from_utf8(bytes) else {
        return false;
    };
    let config = match Config::from_yaml(text) {
        Ok(config) => config,
        Err(error) => {
            assert!(!error.to_string().is_empty(), "it is said what is wrong");
            return false;
        }
    };
    for table in config.http.tables.values() {
        for (authority, target) in [
            ("web.test", "/x/1/y?q=1"),
            ("WEB.test:81", "/"),
            ("[::1]", "/api"),
            ("a.b", "/\u{e9}"),
        ] {
            let request = Request::get(target)
                .header(HOST, authority)
                .header("cookie", "c=1")
                .body(());
            let Ok(intake) = Intake::new(request.expect("a request").into_parts().0) else {
                panic!("{authority} {target}");
            };
            lead(table, intake);
        }
    }
    !config.http.tables.is_empty()
}

fn lead(table: &RouteTable, mut intake: Intake) {
    let Some((host, route)) = table.route(&intake.view(), 0) else {
        return;
    };
    match &route.action {
        RouteAction::Forward(forward) => {
            let (source, local) = (
                SocketAddr::from(([10, 0, 0, 9], 4000)),
                SocketAddr::from(([10, 0, 0, 1], 80)),
            );
            hash_request(&forward.hash, &intake.view(), source, local);
            rewrite(&mut intake, (host, route, forward), forward.choose(u32::MAX), edit);
            let _ = for_http1(&intake, nothing().attempt());
        }
        RouteAction::Redirect(redirect) => drop(redirect.location(&route.matches, &intake.view())),
        RouteAction::Direct(_) => {}
    }
}
