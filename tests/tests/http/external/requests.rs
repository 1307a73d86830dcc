//! Requests that servers are asked about, made of parts.

use super::Table;

/// What a server of HTTP, and of gRPC, is asked to say.
const HTTP_ASKS: [&str; 15] = [
    "", "allow", "deny", "login", "json", "chunked", "twice", "bodied", "404", "204", "201", "500", "503", "close",
    "garbage",
];
const GRPC_ASKS: [&str; 25] = [
    "",
    "empty",
    "remove",
    "query",
    "path",
    "deny",
    "unknown",
    "deny-ok",
    "allow-denied",
    "deny-401",
    "deny-json",
    "deny-bare",
    "error",
    "unavailable",
    "500",
    "late-error",
    "close",
    "way -2",
    "way -1",
    "way 0",
    "way 1",
    "way 2",
    "way 3",
    "deny-way 0",
    "deny-way 2",
];

/// A request, named so that its lines in the logs are found.
pub(super) fn any(id: usize, table: &Table, random: &mut fastrand::Rng) -> String {
    let pick = |random: &mut fastrand::Rng, of: &[&'static str]| of[random.usize(..of.len())];
    let asks: &[&'static str] = if table.is_grpc { &GRPC_ASKS } else { &HTTP_ASKS };
    // Each is asked once, and then at random.
    let ask = asks.get(id).copied().unwrap_or_else(|| pick(random, asks));
    let path = match id < asks.len() {
        true => "/protected/a?b=1&c=2",
        false => pick(
            random,
            &[
                "/protected/a?b=1&c=2",
                "/protected/",
                "/protected/x/denied",
                "/free",
                "/nowhere-else",
                "/protected/%7ba?c&b=x",
                "/protected//y?",
            ],
        ),
    };
    let host = if random.u8(..12) == 0 {
        "unknown.test"
    } else {
        "web.test"
    };
    let mut request = String::new();
    let method = pick(random, &["GET", "GET", "HEAD", "POST", "PUT", "DELETE"]);
    request += &format!(
        "{method} {path} HTTP/1.1\r\nhost: {host}\r\nx-id: {}-{id}\r\n",
        table.name
    );
    if !ask.is_empty() {
        request += &format!("x-ask: {ask}\r\n");
    }
    for line in [
        "x-there: 1\r\n",
        "x-there: 1\r\nx-there: 3\r\n",
        "x-user: mallory\r\n",
        "x-secret: s\r\n",
        "cookie: a=b\r\ncookie: c=d\r\n",
        "authorization: Bearer x\r\n",
        "x-ext-authz: please\r\n",
        "x-envoy-auth-partial-body: forged\r\n",
        "te: trailers\r\n",
    ] {
        if random.u8(..4) == 0 {
            request += line;
        }
    }
    if random.u8(..6) == 0 {
        request += "content-type: application/grpc\r\n";
    }
    let body = match method {
        "GET" | "HEAD" | "DELETE" => "",
        _ => pick(
            random,
            &[
                "",
                "hello",
                "0123456789012345678901234567890123456789012345678901234567890123",
                "p\u{e4}rtial-0123456789012345678901234567890123456789012345678901234567890123",
            ],
        ),
    };
    match random.bool() || body.is_empty() {
        true if body.is_empty() && method != "POST" => request + "\r\n",
        true => format!("{request}content-length: {}\r\n\r\n{body}", body.len()),
        false => format!(
            "{request}transfer-encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
            body.len()
        ),
    }
}
