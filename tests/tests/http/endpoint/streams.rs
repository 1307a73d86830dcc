//! The same endpoint by HTTP/2.

use std::collections::BTreeMap;

use bytes::Bytes;
use h2::server::{self, SendResponse};
use h2::{Reason, RecvStream};
use http::{HeaderValue, Request, Response};
use tokio::runtime::Handle;
use underpass_tests::Host;

use super::{Endpoint, Got, SLOW, Tries};

/// Starts one.
pub(crate) fn start(runtime: &Handle, host: &Host, port: u16, tries: Tries) -> Endpoint {
    let listener = host.listen(port);
    let address = listener.local_addr().expect("a socket");
    listener.set_nonblocking(true).expect("a socket");
    let _inside = runtime.enter();
    let listener = tokio::net::TcpListener::from_std(listener).expect("a socket");
    runtime.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let tries = tries.clone();
            tokio::spawn(async move {
                let Ok(mut connection) = server::handshake(stream).await else {
                    return;
                };
                while let Some(Ok((request, respond))) = connection.accept().await {
                    tokio::spawn(answer(request, respond, tries.clone()));
                }
            });
        }
    });
    Endpoint { address }
}

async fn read(request: Request<RecvStream>) -> Result<Got, h2::Error> {
    let (parts, mut stream) = request.into_parts();
    let path = parts.uri.path_and_query().map_or("", |path| path.as_str());
    let mut headers: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let authority = parts.uri.authority().map(ToString::to_string);
    headers.insert("host".to_owned(), authority.into_iter().collect());
    for (name, value) in &parts.headers {
        let values = headers.entry(name.to_string()).or_default();
        values.push(String::from_utf8_lossy(value.as_bytes()).into_owned());
    }
    let mut body = Vec::new();
    while let Some(bytes) = stream.data().await {
        let bytes = bytes?;
        stream.flow_control().release_capacity(bytes.len())?;
        body.extend_from_slice(&bytes);
    }
    Ok(Got {
        line: format!("{} {path} HTTP/2", parts.method),
        headers,
        body,
    })
}

async fn answer(request: Request<RecvStream>, mut respond: SendResponse<Bytes>, tries: Tries) -> Result<(), h2::Error> {
    let is_head = request.method() == http::Method::HEAD;
    let got = read(request).await?;
    let attempt = {
        let mut tries = tries.lock().expect("no test panics with it");
        let attempt = tries.entry(got.header("x-id").to_owned()).or_default();
        *attempt += 1;
        *attempt
    };
    let wanted = got.header("x-do");
    let (what, times) = wanted.split_once(" first ").unwrap_or((wanted, "4294967295"));
    let does = attempt <= times.parse().unwrap_or(0);
    let mut response = Response::new(());
    let headers = response.headers_mut();
    let mut body = Bytes::from(got.told(attempt));
    headers.insert("x-endpoint", HeaderValue::from_static("e"));
    match what {
        "close" | "garbage" if does => {
            respond.send_reset(Reason::INTERNAL_ERROR);
            return Ok(());
        }
        "slow" if does => tokio::time::sleep(SLOW).await,
        "cookies" => {
            headers.append("set-cookie", HeaderValue::from_static("a=1"));
            headers.append("set-cookie", HeaderValue::from_static("b=2"));
            headers.insert("server", HeaderValue::from_static("mine"));
        }
        "allows" => {
            headers.insert("access-control-allow-origin", HeaderValue::from_static("*"));
            headers.insert("access-control-allow-credentials", HeaderValue::from_static("false"));
            headers.insert("access-control-expose-headers", HeaderValue::from_static("x-own"));
        }
        "none" => {
            *response.status_mut() = http::StatusCode::NO_CONTENT;
            body = Bytes::new();
        }
        "unmodified" => {
            headers.insert("etag", HeaderValue::from_static("\"a\""));
            *response.status_mut() = http::StatusCode::NOT_MODIFIED;
            body = Bytes::new();
        }
        status if does => {
            if let Some(status) = status
                .parse()
                .ok()
                .and_then(|code| http::StatusCode::from_u16(code).ok())
            {
                *response.status_mut() = status;
            }
        }
        _ => {}
    }
    if !body.is_empty() && what != "chunked" {
        response
            .headers_mut()
            .insert("content-length", HeaderValue::from(body.len()));
    }
    if is_head || body.is_empty() {
        return respond.send_response(response, true).map(drop);
    }
    respond.send_response(response, false)?.send_data(body, true)
}
