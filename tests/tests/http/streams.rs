//! A client that asks by HTTP/2 what others ask by HTTP/1.1.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h2::client;
use http::{HeaderName, HeaderValue, Request, Uri};
use underpass_tests::Host;

use super::cases::Case;
use super::client::Seen;

/// A response that takes longer is a hang.
const DEADLINE: Duration = Duration::from_secs(60);
/// What HTTP/2 does not have.
const OF_HTTP1: [&str; 5] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "transfer-encoding",
    "upgrade",
];

/// What a case is in HTTP/2; nothing if it can't be said in it.
pub(crate) fn request(case: &Case) -> Option<(Request<()>, Bytes)> {
    if case.has("upgrade: websocket") {
        // `tunnels` asks for them as HTTP/2 does.
        return None;
    }
    let (head, body) = case.request.split_once("\r\n\r\n")?;
    let mut lines = head.split("\r\n");
    let mut first = lines.next()?.split(' ');
    let (method, target, version) = (first.next()?, first.next()?, first.next()?);
    if version != "HTTP/1.1" || first.next().is_some() {
        return None;
    }
    let mut fields: Vec<(&str, &str)> = Vec::new();
    for line in lines {
        let (name, value) = line.split_once(':')?;
        fields.push((name, value.trim()));
    }
    let first_of = |wanted: &str| fields.iter().find(|(name, _)| *name == wanted).map(|(_, value)| *value);
    let host = first_of("host")?;
    let is_chunked = first_of("transfer-encoding").is_some();
    let uri = Uri::builder().scheme("http").authority(host).path_and_query(target);
    let mut request = Request::builder().method(method).uri(uri.build().ok()?);
    for (name, value) in &fields {
        let is_said = *name != "host" && !OF_HTTP1.contains(name) && !(*name == "te" && *value != "trailers");
        if is_said {
            request = request.header(HeaderName::try_from(*name).ok()?, HeaderValue::try_from(*value).ok()?);
        }
    }
    let body = match is_chunked {
        true => unchunked(body)?,
        false => body.to_owned(),
    };
    Some((request.body(()).ok()?, body.into()))
}

fn unchunked(mut rest: &str) -> Option<String> {
    let mut body = String::new();
    loop {
        let (size, after) = rest.split_once("\r\n")?;
        let size = usize::from_str_radix(size, 16).ok()?;
        if size == 0 {
            return Some(body);
        }
        body.push_str(after.get(..size)?);
        rest = after.get(size..)?.strip_prefix("\r\n")?;
    }
}

/// Asks on a connection of its own.
pub(crate) async fn ask(from: &Host, at: SocketAddr, request: Request<()>, body: Bytes) -> Seen {
    let in_time = tokio::time::timeout(DEADLINE, exchange(from, at, request, body)).await;
    in_time.expect("it does not hang").unwrap_or_default()
}

async fn exchange(from: &Host, at: SocketAddr, request: Request<()>, body: Bytes) -> Result<Seen, h2::Error> {
    let stream = from.connect(at).expect("the proxy accepts");
    stream.set_nonblocking(true).expect("a socket");
    let stream = tokio::net::TcpStream::from_std(stream).expect("a socket");
    let (sender, connection) = client::handshake(stream).await?;
    tokio::spawn(connection);
    let mut sender = sender.ready().await?;
    let (response, mut send) = sender.send_request(request, body.is_empty())?;
    if !body.is_empty() {
        // One that is answered before it has been read is cut off.
        let _ = send.send_data(body, true);
    }
    let (head, mut stream) = response.await?.into_parts();
    let mut seen = Seen {
        status: head.status.as_u16(),
        ..Seen::default()
    };
    for (name, value) in &head.headers {
        let values = seen.headers.entry(name.to_string()).or_default();
        values.push(String::from_utf8_lossy(value.as_bytes()).into_owned());
    }
    let mut read = BytesMut::new();
    seen.is_whole = true;
    while let Some(bytes) = stream.data().await {
        let Ok(bytes) = bytes else {
            seen.is_whole = false;
            break;
        };
        let _ = stream.flow_control().release_capacity(bytes.len());
        read.extend_from_slice(&bytes);
    }
    seen.body = String::from_utf8_lossy(&read).into_owned();
    Ok(seen)
}
