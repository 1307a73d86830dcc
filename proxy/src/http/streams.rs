//! HTTP/2 with a client: a task for each of its streams.
//!
//! The codec is h2's, without hyper between: what a stream becomes (a tunnel, too), how it ends, and with which code it is reset is said here.
//! A task sees its stream's end, and so its connection's, wherever it waits: none outlives them.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use h2::server::{self, Handshake, SendResponse};
use h2::{Reason, RecvStream, SendStream};
use http::header::{CONNECTION, CONTENT_LENGTH, DATE, EXPECT, HeaderValue, TE, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use hyper::body::Body;

use super::arriving::Arriving;
use super::connection::Connection;
use super::download::Download;
use super::intake::MAX_HEAD;
use super::tunnel::{End, Tunnel};
use super::wire::Wire;
use super::{exchange, hygiene};
use crate::gathered::Gathered;
use crate::hbone::FRAMES_KEPT;

/// Requests that a client may have open on one connection.
const STREAMS: u32 = 256;
/// What a client may send of one request's body before any of it was taken on, and of all of them.
const STREAM_WINDOW: u32 = 1 << 18;
const CONNECTION_WINDOW: u32 = 1 << 20;
/// Streams that a client may reset before they were looked at (CVE-2023-44487).
const RESET_UNSEEN: usize = 20;

/// What a stream may have given to the codec and the codec not to the kernel: a client that does not read makes its streams keep no more.
const SEND_BUFFER: usize = 64 << 10;

/// A client's connection.
pub struct Streams {
    owner: Arc<Connection>,
    state: State,
    is_finishing: bool,
}

enum State {
    Begins(Box<Handshake<Gathered<Wire>, Bytes>>),
    Serves(Box<server::Connection<Gathered<Wire>, Bytes>>),
}

impl Streams {
    /// Serves what comes by `wire`.
    pub fn new(owner: Arc<Connection>, wire: Wire) -> Self {
        let mut builder = server::Builder::new();
        builder
            .max_concurrent_streams(STREAMS)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_pending_accept_reset_streams(RESET_UNSEEN)
            .max_header_list_size(MAX_HEAD as u32)
            .max_send_buffer_size(SEND_BUFFER)
            .data_frame_budget(FRAMES_KEPT)
            .enable_connect_protocol();
        Self {
            owner,
            state: State::Begins(Box::new(builder.handshake(Gathered::new(wire)))),
            is_finishing: false,
        }
    }

    /// Lets the streams that there are finish, and takes no others.
    pub fn finish(&mut self) {
        self.is_finishing = true;
        if let State::Serves(connection) = &mut self.state {
            connection.graceful_shutdown();
        }
    }
}

impl Future for Streams {
    type Output = Result<(), h2::Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        loop {
            match &mut this.state {
                State::Begins(handshake) => {
                    let mut connection = ready!(Pin::new(handshake.as_mut()).poll(cx))?;
                    if this.is_finishing {
                        connection.graceful_shutdown();
                    }
                    this.state = State::Serves(Box::new(connection));
                }
                State::Serves(connection) => match ready!(connection.poll_accept(cx)) {
                    None => return Poll::Ready(Ok(())),
                    Some(Err(error)) => return Poll::Ready(Err(error)),
                    Some(Ok((request, respond))) => {
                        tokio::spawn(serve(this.owner.clone(), request, respond));
                    }
                },
            }
        }
    }
}

/// Serves one stream to its end.
async fn serve(owner: Arc<Connection>, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    let (parts, stream) = request.into_parts();
    let is_head = parts.method == Method::HEAD;
    let is_tunnel = parts.method == Method::CONNECT;
    let is_awaited = parts
        .headers
        .get(EXPECT)
        .is_some_and(|wish| wish.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    if is_awaited && !is_tunnel && !stream.is_end_stream() {
        let mut go_on = Response::new(());
        *go_on.status_mut() = StatusCode::CONTINUE;
        // Fails only where the stream is gone, which is noticed below.
        let _ = respond.send_informational(go_on);
    }
    // A tunnel's bytes are no body.
    let (body, mut tunneled) = match is_tunnel {
        true => (Arriving::Nothing, Some(stream)),
        false => (Arriving::of_stream(&parts.headers, stream), None),
    };
    let served = {
        let serving = exchange::serve(owner, Request::from_parts(parts, body));
        let gone = poll_fn(|cx| respond.poll_reset(cx));
        tokio::select! {
            biased;
            _ = gone => return,
            served = serving => served,
        }
    };
    let (head, body) = served.response.into_parts();
    let mut response = Response::from_parts(head, ());
    complete(response.headers_mut(), &body, is_head || served.tunnel.is_some());
    let is_all = served.tunnel.is_none() && body.is_end_stream();
    let mut stream = match respond.send_response(response, is_all) {
        Ok(stream) => stream,
        Err(error) => {
            tracing::debug!(%error, "a response could not be sent");
            return respond.send_reset(Reason::INTERNAL_ERROR);
        }
    };
    match (served.tunnel, tunneled.take()) {
        (Some(tunnel), Some(receive)) => run(tunnel, stream, receive).await,
        // What a client sends beside a refusal is its own.
        _ if is_all => {}
        _ => {
            if let Err(reason) = send(body, &mut stream).await {
                stream.send_reset(reason);
            }
        }
    }
}

async fn run(tunnel: Box<Tunnel>, send: SendStream<Bytes>, receive: RecvStream) {
    if let Err(broke) = tunnel.run(End::stream(send, receive)).await {
        tracing::debug!(%broke, "a tunnel ended before its end");
    }
}

/// Takes off what HTTP/2 does not have, and adds what a response has.
fn complete(headers: &mut HeaderMap, body: &Download, is_without_body: bool) {
    let of_hop = [
        CONNECTION,
        TRANSFER_ENCODING,
        UPGRADE,
        TE,
        hygiene::KEEP_ALIVE,
        hygiene::PROXY_CONNECTION,
    ];
    for name in of_hop {
        headers.remove(name);
    }
    headers.entry(DATE).or_insert_with(now);
    let is_framed = is_without_body || body.is_end_stream() || headers.contains_key(CONTENT_LENGTH);
    if let (false, Some(length)) = (is_framed, body.size_hint().exact()) {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
}

/// Sends a body; an error is what its stream is to be reset with.
async fn send(mut body: Download, stream: &mut SendStream<Bytes>) -> Result<(), Reason> {
    // Of a stream that is reset already, that is no news.
    let gone = |_| Reason::CANCEL;
    loop {
        let frame = poll_fn(|cx| {
            if stream.poll_reset(cx).is_ready() {
                return Poll::Ready(Err(Reason::CANCEL));
            }
            Pin::new(&mut body).poll_frame(cx).map(Ok)
        });
        let frame = match frame.await? {
            None => return stream.send_data(Bytes::new(), true).map_err(gone),
            Some(Err(_)) => return Err(Reason::INTERNAL_ERROR),
            Some(Ok(frame)) => frame,
        };
        match frame.into_data() {
            Ok(bytes) => {
                let is_last = body.is_end_stream();
                if !bytes.is_empty() {
                    // As little as there may be: what is claimed is missing elsewhere, and the codec claims the rest when it has the bytes.
                    stream.reserve_capacity(1);
                    room(stream).await?;
                }
                stream.send_data(bytes, is_last).map_err(gone)?;
                if is_last {
                    return Ok(());
                }
            }
            Err(frame) => {
                if let Ok(trailers) = frame.into_trailers() {
                    stream.reserve_capacity(0);
                    return stream.send_trailers(trailers).map_err(gone);
                }
            }
        }
    }
}

/// Waits until some of what is to be sent may be.
async fn room(stream: &mut SendStream<Bytes>) -> Result<(), Reason> {
    poll_fn(|cx| {
        if stream.poll_reset(cx).is_ready() {
            return Poll::Ready(Err(Reason::CANCEL));
        }
        while stream.capacity() == 0 {
            match ready!(stream.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Poll::Ready(Err(Reason::CANCEL)),
            }
        }
        Poll::Ready(Ok(()))
    })
    .await
}

/// The time as responses have it (RFC 9110, section 6.6.1), written once a second.
fn now() -> HeaderValue {
    thread_local! {
        static WRITTEN: RefCell<(u64, HeaderValue)> = const { RefCell::new((0, HeaderValue::from_static(""))) };
    }
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    WRITTEN.with_borrow_mut(|(second, value)| {
        if *second != since.as_secs() {
            let date = httpdate::fmt_http_date(UNIX_EPOCH + since);
            *value = HeaderValue::try_from(date).unwrap_or(HeaderValue::from_static(""));
            *second = since.as_secs();
        }
        value.clone()
    })
}
