//! Requests to compare by: some that were thought of, and any number that were not.

use super::scene::{cors, operators, times};

/// A request, as bytes.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) request: String,
}

impl Case {
    pub(crate) fn new(request: impl Into<String>) -> Self {
        Self {
            request: request.into(),
        }
    }

    pub(crate) fn is_head(&self) -> bool {
        self.request.starts_with("HEAD ")
    }

    pub(crate) fn has(&self, part: &str) -> bool {
        self.request.contains(part)
    }
}

/// Requests that each stand for something; `id` makes the tries of one run its own.
pub(crate) fn thought_of(id: &str) -> Vec<Case> {
    let mut cases = well_formed(id);
    cases.extend(malformed());
    cases
}

/// Those that every peer understands in one way.
pub(crate) fn well_formed(id: &str) -> Vec<Case> {
    let paths = [
        "/",
        "/a?b=c",
        "/direct",
        "/direct?x",
        "/empty",
        "/fraction/none/x",
        "/fraction/all/x",
        "/redirect/path/x?q=1",
        "/redirect/prefix/x?q=1",
        "/redirect/host/y",
        "/rewrite/prefix/x?y=z",
        "/rewrite/prefix",
        "/rewrite/regex/12/abc?q",
        "/rewrite/regex/x",
        "/rewrite/host/a",
        "/segments",
        "/segments/x",
        "/segmentsx",
        "/segments?x",
        "/regex/abc",
        "/regex/ab1",
        "/cAsE/x",
        "/edit/x",
        "/split/x",
        "/void/x",
        "/closed/x",
        "/closed/retried/x",
        "/timeout/x",
        "/retry/5xx/x",
        "/abort/x",
        "/%41%2f..%2f",
        "/a//b/../c",
        "/a/./b",
        "/sp%20ace",
        "/a;b=c",
        "/?",
    ];
    let mut cases: Vec<Case> = Vec::new();
    let mut add = |method: &str, path: &str, host: &str, more: &str, body: &str| {
        let number = cases.len();
        cases.push(Case::new(format!(
            "{method} {path} HTTP/1.1\r\nhost: {host}\r\nx-id: {id}-{number}\r\n{more}\r\n{body}"
        )));
    };
    for path in paths {
        for method in ["GET", "HEAD", "DELETE"] {
            add(method, path, "web.test", "", "");
        }
        add("POST", path, "web.test", "content-length: 5\r\n", "hello");
    }
    for host in [
        "WEB.test",
        "web.test:8080",
        "a.web.test",
        ".web.test",
        "other.example",
        "unknown.test",
        "other.",
    ] {
        add("GET", "/x", host, "", "");
    }
    let headers = [
        "x-canary: yes\r\n",
        "x-canary: yes\r\nx-stage: beta\r\n",
        "x-canary: yes\r\nx-stage: alpha\r\n",
        "x-canary: no\r\n",
        "x-canary: yes\r\nx-canary: yes\r\n",
        "x-canary: no\r\nx-canary: yes\r\n",
        "x-canary: yes\r\nx-canary: no\r\n",
        "x-canary: yes,no\r\n",
        "x-canary: yes\r\nx-stage: alpha\r\nx-stage: beta\r\n",
        "x-canary: yes\r\nx-stage: beta\r\nx-stage: alpha\r\n",
    ];
    for lines in headers {
        add("GET", "/x?v=2", "web.test", lines, "");
        add("GET", "/x?v=3&v=2", "web.test", lines, "");
    }
    for (method, path, lines) in cors::asked() {
        add(method, &path, "web.test", &lines, "");
    }
    for (method, path, lines) in cors::asked_of_host() {
        add(method, &path, "crossed.test", &lines, "");
    }
    for (path, lines) in times::asked().into_iter().chain(operators::asked()) {
        add("GET", &path, "web.test", &lines, "");
    }
    let edited = "x-gone: 1\r\nx-set: old\r\nx-more: a\r\nx-there: kept\r\n";
    add("GET", "/edit/a", "web.test", edited, "");
    let hops = [
        "connection: close\r\n",
        "connection: keep-alive, x-drop\r\nx-drop: 1\r\n",
        "keep-alive: timeout=3\r\n",
        "te: trailers\r\n",
        "te: gzip\r\n",
        "proxy-connection: keep-alive\r\n",
        "x-forwarded-for: 1.2.3.4\r\n",
        "x-forwarded-proto: https\r\n",
        "x-request-id: mine\r\n",
        "x-forwarded-client-cert: By=a;URI=spiffe://forged\r\n",
        "x-envoy-internal: true\r\n",
        "x-envoy-ip-tags: forged\r\n",
        "x-envoy-force-trace: 1\r\n",
        "x-envoy-original-url: http://forged/\r\n",
        "x-envoy-expected-rq-timeout-ms: 1\r\n",
        "x-envoy-upstream-rq-timeout-alt-response: 1\r\n",
        "expect: 100-continue\r\n",
        "upgrade: h2c\r\n",
        "accept: a\r\naccept: b\r\n",
        "cookie: a=1\r\ncookie: b=2\r\n",
        "x-empty:\r\n",
        "x-envoy-upstream-rq-timeout-ms: 100\r\n",
        "content-type: application/grpc\r\n",
    ];
    for lines in hops {
        add("GET", "/hop", "web.test", lines, "");
        add("GET", "/void", "web.test", lines, "");
    }
    let deeds = [
        "chunked",
        "until-close",
        "hop",
        "cookies",
        "none",
        "unmodified",
        "interim",
        "close",
        "garbage",
        "404",
        "503",
        "500",
        "409",
        "418",
        "302",
        "close first 1",
        "503 first 1",
        "503 first 2",
        "500 first 1",
        "409 first 1",
        "418 first 2",
        "404 first 1",
        "again first 1",
        "limited first 1",
        "grpc first 1",
        "wait first 1",
    ];
    for deed in deeds {
        let line = format!("x-do: {deed}\r\n");
        for path in [
            "/do",
            "/retry/5xx",
            "/retry/gateway",
            "/retry/reset",
            "/retry/status",
            "/retry/words",
            "/retry/wait",
            "/edit",
        ] {
            add("GET", path, "web.test", &line, "");
        }
        add("HEAD", "/do", "web.test", &line, "");
        let with_body = format!("{line}content-length: 9\r\n");
        add("POST", "/retry/5xx", "web.test", &with_body, "something");
        let chunked = format!("{line}transfer-encoding: chunked\r\n");
        add(
            "PUT",
            "/retry/reset",
            "web.test",
            &chunked,
            "4\r\nsome\r\n5\r\nthing\r\n0\r\n\r\n",
        );
    }
    add("GET", "/timeout", "web.test", "x-do: slow\r\n", "");
    add("GET", "/try-timeout", "web.test", "x-do: slow\r\n", "");
    add("GET", "/retry/idle", "web.test", "x-do: slow\r\n", "");
    add("GET", "/retry/idle", "web.test", "x-do: slow first 1\r\n", "");
    add("GET", "/try-timeout", "web.test", "x-do: slow first 1\r\n", "");
    add(
        "GET",
        "/ws",
        "web.test",
        "x-do: websocket\r\nconnection: upgrade\r\nupgrade: websocket\r\n",
        "",
    );
    add(
        "GET",
        "/not-ws",
        "web.test",
        "connection: upgrade\r\nupgrade: websocket\r\n",
        "",
    );
    add(
        "GET",
        "/ws",
        "web.test",
        "connection: upgrade\r\nupgrade: websocket\r\n",
        "",
    );
    // Only HTTP/1.1 has to say that there is no body.
    add("POST", "/x", "web.test", "", "");
    add(
        "POST",
        "/big",
        "web.test",
        "content-length: 100000\r\n",
        &"x".repeat(100_000),
    );
    cases
}

fn malformed() -> Vec<Case> {
    let host = "host: web.test\r\n";
    let heads = [
        "GET / HTTP/1.0\r\nhost: web.test\r\n\r\n".to_owned(),
        "GET / HTTP/1.1\r\n\r\n".to_owned(),
        "GET / HTTP/1.1\r\nhost: web.test\r\nhost: web.test\r\n\r\n".to_owned(),
        "GET / HTTP/1.1\r\nhost: web.test\r\nhost: other.test\r\n\r\n".to_owned(),
        "GET / HTTP/1.1\r\nhost: a b\r\n\r\n".to_owned(),
        "GET / HTTP/1.1\r\nhost: \r\n\r\n".to_owned(),
        "GET / HTTP/1.1\r\nhost: user@web.test\r\n\r\n".to_owned(),
        "GET / HTTP/2.0\r\nhost: web.test\r\n\r\n".to_owned(),
        "GET / HTTX/1.1\r\nhost: web.test\r\n\r\n".to_owned(),
        "GET /\r\nhost: web.test\r\n\r\n".to_owned(),
        "GET http://web.test/absolute HTTP/1.1\r\nhost: other.example\r\n\r\n".to_owned(),
        "GET http://other.example/absolute HTTP/1.1\r\nhost: web.test\r\n\r\n".to_owned(),
        "GET relative HTTP/1.1\r\nhost: web.test\r\n\r\n".to_owned(),
        "GET /frag#ment HTTP/1.1\r\nhost: web.test\r\n\r\n".to_owned(),
        "OPTIONS * HTTP/1.1\r\nhost: web.test\r\n\r\n".to_owned(),
        "CONNECT web.test:80 HTTP/1.1\r\nhost: web.test:80\r\n\r\n".to_owned(),
        "G@T / HTTP/1.1\r\nhost: web.test\r\n\r\n".to_owned(),
        format!("GET / HTTP/1.1\r\n{host}no colon here\r\n\r\n"),
        format!("GET / HTTP/1.1\r\n{host}bad name: 1\r\n\r\n"),
        format!("GET / HTTP/1.1\r\n{host}x-a : 1\r\n\r\n"),
        format!("GET / HTTP/1.1\r\n{host}x-a: 1\r\n folded\r\n\r\n"),
        format!("GET / HTTP/1.1\r\n{host}x-a: a\0b\r\n\r\n"),
        format!("GET / HTTP/1.1\r\n{host}x-a: \u{e9}\r\n\r\n"),
        format!("GET / HTTP/1.1\r\n{host}x-long: {}\r\n\r\n", "y".repeat(70_000)),
        format!("GET / HTTP/1.1\r\n{host}{}\r\n", "x-many: 1\r\n".repeat(120)),
        format!("POST / HTTP/1.1\r\n{host}content-length: 5\r\ncontent-length: 5\r\n\r\nhello"),
        format!("POST / HTTP/1.1\r\n{host}content-length: 5\r\ncontent-length: 6\r\n\r\nhello"),
        format!("POST / HTTP/1.1\r\n{host}content-length: 5, 5\r\n\r\nhello"),
        format!("POST / HTTP/1.1\r\n{host}content-length: +5\r\n\r\nhello"),
        format!("POST / HTTP/1.1\r\n{host}content-length: 5x\r\n\r\nhello"),
        format!("POST / HTTP/1.1\r\n{host}content-length: -1\r\n\r\n"),
        format!("POST / HTTP/1.1\r\n{host}content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
        format!("POST / HTTP/1.1\r\n{host}transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n"),
        format!("POST / HTTP/1.1\r\n{host}transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n"),
        format!("POST / HTTP/1.1\r\n{host}transfer-encoding: identity\r\n\r\n"),
        format!("POST / HTTP/1.1\r\n{host}transfer-encoding: xchunked\r\n\r\n0\r\n\r\n"),
        format!("POST / HTTP/1.1\r\n{host}transfer-encoding: Chunked\r\n\r\n1\r\na\r\n0\r\n\r\n"),
        format!("POST / HTTP/1.1\r\n{host}transfer-encoding : chunked\r\n\r\n0\r\n\r\n"),
        format!("POST / HTTP/1.1\r\n{host}transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
        format!("POST / HTTP/1.1\r\n{host}transfer-encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n"),
        format!("POST / HTTP/1.1\r\n{host}transfer-encoding: chunked\r\n\r\n5;ext=1\r\nhello\r\n0\r\n\r\n"),
        format!("POST / HTTP/1.1\r\n{host}transfer-encoding: chunked\r\n\r\n5\r\nhelloXX0\r\n\r\n"),
        "\r\nGET / HTTP/1.1\r\nhost: web.test\r\n\r\n".to_owned(),
    ];
    heads.into_iter().map(Case::new).collect()
}

/// `count` requests made of parts, by `seed`.
pub(crate) fn any(seed: u64, count: usize) -> Vec<Case> {
    let mut random = fastrand::Rng::with_seed(seed);
    (0..count)
        .map(|number| one(&mut random, &format!("{seed}-{number}")))
        .collect()
}

fn one(random: &mut fastrand::Rng, id: &str) -> Case {
    let pick = |random: &mut fastrand::Rng, from: &[&'static str]| from[random.usize(..from.len())];
    let method = pick(
        random,
        &[
            "GET", "GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "PROPFIND",
        ],
    );
    let base = pick(
        random,
        &[
            "/",
            "/direct",
            "/empty",
            "/redirect/path",
            "/redirect/prefix",
            "/redirect/host",
            "/rewrite/prefix",
            "/rewrite/regex",
            "/rewrite/host",
            "/segments",
            "/regex/",
            "/case",
            "/edit",
            "/split",
            "/void",
            "/retry/5xx",
            "/retry/gateway",
            "/retry/reset",
            "/retry/status",
            "/retry/words",
            "/abort",
            "/ws",
            "/closed",
        ],
    );
    let tail = pick(
        random,
        &[
            "",
            "",
            "/x",
            "/12/abc",
            "abc",
            "%2e%2e/",
            "//",
            "/..",
            "/%zz",
            "/a+b",
            "/~!$&'()*,;=:@",
        ],
    );
    let query = pick(random, &["", "", "?", "?v=2", "?v=1&v=2", "?a=%20b", "?x=/y?z"]);
    let host = pick(
        random,
        &[
            "web.test",
            "web.test",
            "web.test",
            "Web.Test:81",
            "a.web.test",
            "other.x",
            "nobody",
        ],
    );
    let mut lines = String::new();
    for _ in 0..random.usize(..4) {
        lines += pick(
            random,
            &[
                "x-canary: yes\r\n",
                "x-stage: beta\r\n",
                "x-gone: 1\r\n",
                "x-set: old\r\n",
                "x-more: a\r\n",
                "connection: x-set\r\n",
                "te: trailers\r\n",
                "accept: */*\r\n",
                "x-forwarded-for: 9.9.9.9\r\n",
                "x-there: t\r\n",
                "x-forwarded-client-cert: By=a\r\n",
                "x-envoy-internal: true\r\n",
                "x-envoy-ip-tags: a\r\n",
                "x-envoy-force-trace: 1\r\n",
                "x-envoy-original-url: /a\r\n",
                "x-envoy-expected-rq-timeout-ms: 1\r\n",
                "x-envoy-upstream-rq-timeout-alt-response: 1\r\n",
                "user-agent: test\r\n",
                "content-type: text/plain\r\n",
                "cookie: a=b\r\n",
                "authorization: Basic eA==\r\n",
                "range: bytes=0-1\r\n",
                "x_under: score\r\n",
                "content-type: application/grpc\r\n",
            ],
        );
    }
    if random.u8(..3) == 0 {
        let deed = pick(
            random,
            &[
                "chunked",
                "hop",
                "cookies",
                "none",
                "unmodified",
                "404",
                "503",
                "409",
                "418",
                "503 first 1",
                "close first 1",
                "until-close",
                "interim",
            ],
        );
        lines += &format!("x-do: {deed}\r\n");
    }
    let length = random.usize(..2000);
    let text: String = std::iter::repeat_with(|| random.alphanumeric()).take(length).collect();
    let takes_body = matches!(method, "POST" | "PUT" | "PATCH");
    let (framing, body) = match random.u8(..3) {
        0 if takes_body => (format!("content-length: {length}\r\n"), text),
        1 if takes_body => {
            let (one, two) = text.split_at(length / 2);
            let chunk = |part: &str| match part.len() {
                0 => String::new(),
                length => format!("{length:x}\r\n{part}\r\n"),
            };
            let body = format!("{}{}0\r\n\r\n", chunk(one), chunk(two));
            ("transfer-encoding: chunked\r\n".to_owned(), body)
        }
        _ => (String::new(), String::new()),
    };
    Case::new(format!(
        "{method} {base}{tail}{query} HTTP/1.1\r\nhost: {host}\r\nx-id: {id}\r\n{lines}{framing}\r\n{body}"
    ))
}
