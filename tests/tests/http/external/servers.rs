//! Authorization servers that do what a request's `x-ask` says, and tell what they heard.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use h2::server::{self, SendResponse};
use h2::{Reason, RecvStream};
use http::{HeaderMap, HeaderValue, Request, Response};
use prost::Message;
use tokio::runtime::Handle;
use underpass_tests::Host;

use super::messages::{
    Any, CheckRequest, CheckResponse, Code, DeniedHttpResponse, HttpResponse, Kind, List, OkHttpResponse, Struct,
    fields, header, pair,
};
use crate::endpoint::Heard;

/// Longer than any of these tests lets a server take.
const SLOW: Duration = Duration::from_secs(20);

/// One of HTTP/1.1.
pub(crate) fn http(host: &Host, heard: &Heard) -> SocketAddr {
    let listener = host.listen(9100);
    let address = listener.local_addr().expect("a socket");
    let heard = heard.clone();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let heard = heard.clone();
            thread::spawn(move || while matches!(serve(&stream, &heard), Ok(true)) {});
        }
    });
    address
}

fn serve(stream: &TcpStream, heard: &Heard) -> io::Result<bool> {
    let mut reader = BufReader::with_capacity(1, stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    if line.is_empty() {
        return Ok(false);
    }
    let (mut headers, mut length, mut ask) = (Vec::new(), 0, String::new());
    loop {
        let mut field = String::new();
        reader.read_line(&mut field)?;
        let Some((name, value)) = field.trim_end().split_once(": ") else {
            break;
        };
        let name = name.to_ascii_lowercase();
        match name.as_str() {
            "content-length" => length = value.parse().map_err(io::Error::other)?,
            "x-ask" => ask = value.to_owned(),
            _ => {}
        }
        headers.push(format!("{name}: {value}\n"));
    }
    headers.sort();
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let told = format!(
        "{}\n{}{}",
        line.trim_end(),
        headers.concat(),
        String::from_utf8_lossy(&body)
    );
    heard.lock().expect("no test panics with it").push(told);
    answer(stream, &ask, line.starts_with("HEAD "))
}

/// What an answer by HTTP has that lets a request pass.
const ALLOWED: &str = "x-user: alice\r\nx-allowed: yes\r\nx-other: not to be passed on\r\nx-envoy-auth-headers-to-remove: x-secret, x-gone,,host\r\n";

fn answer(mut stream: &TcpStream, ask: &str, is_head: bool) -> io::Result<bool> {
    let plain = |status: &str, more: &str, body: &str| {
        let length = body.len();
        let body = if is_head { "" } else { body };
        format!("HTTP/1.1 {status} X\r\n{more}content-length: {length}\r\n\r\n{body}")
    };
    let text = match ask {
        "close" => return Ok(false),
        "garbage" => "SSH-2.0-what\r\n\r\n".to_owned(),
        "slow" => {
            thread::sleep(SLOW);
            plain("200", "", "")
        }
        "deny" => plain(
            "403",
            "x-reason: because\r\nx-other: 1\r\nwww-authenticate: Basic\r\n",
            "not you",
        ),
        "login" => plain("302", "location: /login\r\nset-cookie: a=1\r\nset-cookie: b=2\r\n", ""),
        "json" => plain(
            "401",
            "content-type: application/json\r\nx-reason: a\r\nx-reason: b\r\n",
            "{}",
        ),
        "chunked" => {
            "HTTP/1.1 403 X\r\ntransfer-encoding: chunked\r\nx-reason: c\r\n\r\n3\r\nno!\r\n0\r\n\r\n".to_owned()
        }
        "twice" => plain("200", "x-user: a\r\nx-user: b\r\nx-allowed: 1\r\nx-allowed: 2\r\n", ""),
        "bodied" => plain("200", "x-user: c\r\n", "ignored"),
        "long" => plain("403", "x-reason: long\r\n", &"x".repeat(2 << 20)),
        "many" => plain("200", &"x-user-more: 1\r\n".repeat(2000), ""),
        "broken" => "HTTP/1.1 200 X\r\ncontent-length: 100\r\n\r\nshort".to_owned(),
        "204" => "HTTP/1.1 204 X\r\nx-reason: none\r\n\r\n".to_owned(),
        status if status.parse::<u16>().is_ok() => plain(status, "x-reason: said\r\n", "said"),
        _ => plain("200", ALLOWED, ""),
    };
    stream.write_all(text.as_bytes())?;
    Ok(!matches!(ask, "garbage" | "broken"))
}

/// One of gRPC.
pub(crate) fn grpc(runtime: &Handle, host: &Host, heard: &Heard) -> SocketAddr {
    let listener = host.listen(9101);
    let address = listener.local_addr().expect("a socket");
    listener.set_nonblocking(true).expect("a socket");
    let _inside = runtime.enter();
    let listener = tokio::net::TcpListener::from_std(listener).expect("a socket");
    let heard = heard.clone();
    runtime.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let heard = heard.clone();
            tokio::spawn(async move {
                let Ok(mut connection) = server::handshake(stream).await else {
                    return;
                };
                while let Some(Ok((request, respond))) = connection.accept().await {
                    tokio::spawn(check(request, respond, heard.clone()));
                }
            });
        }
    });
    address
}

async fn check(request: Request<RecvStream>, mut respond: SendResponse<Bytes>, heard: Heard) -> Result<(), h2::Error> {
    let (head, mut stream) = request.into_parts();
    let mut body = Vec::new();
    while let Some(bytes) = stream.data().await {
        let bytes = bytes?;
        stream.flow_control().release_capacity(bytes.len())?;
        body.extend_from_slice(&bytes);
    }
    let message = CheckRequest::decode(&body[5..]).expect("a CheckRequest");
    assert_eq!(
        u32::from_be_bytes([body[1], body[2], body[3], body[4]]) as usize,
        body.len() - 5
    );
    let http = message
        .attributes
        .clone()
        .and_then(|attributes| attributes.request?.http)
        .unwrap_or_default();
    let ask = http.headers.get("x-ask").cloned().unwrap_or_default();
    let field = |name: &str| {
        head.headers
            .get(name)
            .map_or("-", |value| value.to_str().expect("a text"))
            .to_owned()
    };
    let told = format!(
        "{} {} {} te={} {}\n{}",
        head.method,
        head.uri.path(),
        head.uri.authority().map_or("-", |authority| authority.as_str()),
        field("te"),
        field("content-type"),
        message.told()
    );
    heard.lock().expect("no test panics with it").push(told);
    let mut response = Response::new(());
    response
        .headers_mut()
        .insert("content-type", HeaderValue::from_static("application/grpc"));
    let status = match &*ask {
        "close" => {
            respond.send_reset(Reason::INTERNAL_ERROR);
            return Ok(());
        }
        "slow" => {
            tokio::time::sleep(SLOW).await;
            "0"
        }
        "unavailable" => {
            response
                .headers_mut()
                .insert("grpc-status", HeaderValue::from_static("14"));
            return respond.send_response(response, true).map(drop);
        }
        "500" => {
            *response.status_mut() = http::StatusCode::INTERNAL_SERVER_ERROR;
            return respond.send_response(response, true).map(drop);
        }
        "late-error" => "13",
        _ => "0",
    };
    let message = match &*ask {
        "garbage" => b"\x0a\xff\xff\xff\xff\x0fnot a message".to_vec(),
        "compressed" | "truncated" | "nothing" => Vec::new(),
        ask => verdict(ask).encode_to_vec(),
    };
    let mut frame = vec![u8::from(ask == "compressed")];
    let more = if ask == "truncated" { 10 } else { 0 };
    frame.extend((message.len() as u32 + more).to_be_bytes());
    frame.extend(message);
    let mut stream = respond.send_response(response, false)?;
    if ask != "nothing" {
        stream.send_data(frame.into(), false)?;
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static(status));
    stream.send_trailers(trailers)
}

/// What is told of a request besides, of every kind.
fn metadata(tenant: &str) -> Struct {
    let list = ["a", tenant].map(|text| Any {
        kind: Some(Kind::Text(text.to_owned())),
    });
    fields([
        ("tenant", Kind::Text(tenant.to_owned())),
        ("level", Kind::Number(3.0)),
        ("ok", Kind::Truth(true)),
        ("in", Kind::Struct(fields([("deep", Kind::Text("x y".to_owned()))]))),
        ("list", Kind::List(List { values: list.to_vec() })),
    ])
}

fn verdict(ask: &str) -> CheckResponse {
    let with = |code, http_response| CheckResponse {
        status: Some(Code { code }),
        http_response,
        dynamic_metadata: None,
    };
    let ok = |told| with(0, Some(HttpResponse::Ok(told)));
    let denied = |status, headers, body: &str| DeniedHttpResponse {
        status: (status > 0).then_some(Code { code: status }),
        headers,
        body: body.to_owned(),
    };
    let there = |action: i32| match action {
        -2 => (Some(true), 0),
        -1 => (Some(false), 0),
        action => (None, action),
    };
    if let Some(action) = ask.strip_prefix("way ").and_then(|way| way.parse().ok()) {
        let (append, action) = there(action);
        return ok(OkHttpResponse {
            headers: vec![
                header("x-there", "2", append, action),
                header("X-New", "n", append, action),
            ],
            response_headers_to_add: vec![
                header("x-endpoint", "changed", append, action),
                header("x-told", "t", append, action),
            ],
            ..OkHttpResponse::default()
        });
    }
    if let Some(action) = ask.strip_prefix("deny-way ").and_then(|way| way.parse().ok()) {
        let (append, action) = there(action);
        let headers = ["1", "2"].map(|value| header("x-why", value, append, action));
        return with(7, Some(HttpResponse::Denied(denied(0, headers.to_vec(), "twice"))));
    }
    if let Some(tenant) = ask.strip_prefix("tenant ") {
        let told = |response: CheckResponse| CheckResponse {
            dynamic_metadata: Some(metadata(tenant)),
            ..response
        };
        return told(match tenant {
            "none" => with(7, None),
            _ => ok(OkHttpResponse::default()),
        });
    }
    match ask {
        "empty" => CheckResponse::default(),
        "remove" => ok(OkHttpResponse {
            headers_to_remove: ["x-secret", "X-There", "host", ":path", "bad name", "x-none"]
                .map(str::to_owned)
                .to_vec(),
            ..OkHttpResponse::default()
        }),
        "query" => ok(OkHttpResponse {
            query_parameters_to_set: vec![pair("b", "new"), pair("added", "1")],
            query_parameters_to_remove: vec!["c".to_owned()],
            ..OkHttpResponse::default()
        }),
        "path" => ok(OkHttpResponse {
            headers: vec![header(":path", "/elsewhere?x=1", None, 2)],
            ..OkHttpResponse::default()
        }),
        "smuggle" => ok(OkHttpResponse {
            headers: vec![header("x-a", "1\r\nx-b: 2", None, 2)],
            ..OkHttpResponse::default()
        }),
        "frame" => ok(OkHttpResponse {
            headers: vec![
                header("transfer-encoding", "chunked", None, 2),
                header("content-length", "1", None, 2),
            ],
            ..OkHttpResponse::default()
        }),
        "many" => ok(OkHttpResponse {
            headers: vec![header("x-many", "1", None, 0); 2000],
            ..OkHttpResponse::default()
        }),
        "many-told" => ok(OkHttpResponse {
            response_headers_to_add: vec![header("x-many", "1", None, 0); 2000],
            ..OkHttpResponse::default()
        }),
        "deny" => with(7, None),
        "unknown" => with(999, None),
        "deny-ok" => with(16, Some(HttpResponse::Ok(OkHttpResponse::default()))),
        "allow-denied" => with(0, Some(HttpResponse::Denied(denied(401, vec![], "no")))),
        "deny-401" => {
            let headers = vec![
                header("www-authenticate", "Basic", None, 0),
                header("x-why", "1", None, 0),
            ];
            with(16, Some(HttpResponse::Denied(denied(401, headers, "who are you?"))))
        }
        "deny-json" => {
            let headers = vec![header("content-type", "application/json", None, 2)];
            with(7, Some(HttpResponse::Denied(denied(422, headers, "{}"))))
        }
        "deny-bare" => {
            let headers = vec![
                header("content-type", "application/json", None, 2),
                header("x-why", "2", None, 2),
            ];
            with(7, Some(HttpResponse::Denied(denied(302, headers, ""))))
        }
        "error" => {
            let headers = vec![header("x-why", "e", None, 2)];
            with(13, Some(HttpResponse::Error(denied(503, headers, "try later"))))
        }
        "long" => with(7, Some(HttpResponse::Denied(denied(403, vec![], &"x".repeat(2 << 20))))),
        _ => ok(OkHttpResponse {
            headers: vec![header("x-user", "alice", None, 2)],
            ..OkHttpResponse::default()
        }),
    }
}
