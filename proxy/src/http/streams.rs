//! HTTP/2 with a client: a task for each of its streams.
//!
//! The codec is h2's, without hyper between: what a stream becomes (a tunnel, too), how it ends, and with which code it is reset is said here.
//! A task sees its stream's end, and so its connection's, wherever it waits: none outlives them.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use h2::server::{self, Handshake, SendResponse};
use h2::{Reason, RecvStream, SendStream};
use http::header::{CONNECTION, CONTENT_LENGTH, DATE, EXPECT, HeaderValue, TE, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use hyper::body::Body;

use super::Broken;
use super::arriving::Arriving;
use super::connection::Connection;
use super::download::Download;
use super::intake::MAX_HEAD;
use super::parking::OpenBodies;
use super::tunnel::{End, Tunnel};
use super::tunnelled::Carried;
use super::{exchange, hygiene};
use crate::gathered::Gathered;
use crate::hbone::FRAMES_KEPT;
use crate::room::poll_room;

/// Requests that a client may have open on one connection.
const STREAMS: u32 = 256;
/// What a client may send of one request's body before any of it was taken on.
const STREAM_WINDOW: u32 = 1 << 18;
/// And of all of them, beside what each that has a body may: bodies that stand still hold up none beside them.
const CONNECTION_WINDOW: u32 = 1 << 20;
/// But no more than this, of which Envoy grants half as much again (`initial_connection_window_size`).
const LARGEST_WINDOW: u32 = 1 << 24;
/// Streams that a client may reset before they were looked at (CVE-2023-44487).
const RESET_UNSEEN: usize = 20;

/// What a stream may have given to the codec and the codec not to the kernel: a client that does not read makes its streams keep no more.
const SEND_BUFFER: usize = 64 << 10;

/// A client's connection.
pub struct Streams {
    owner: Arc<Connection>,
    state: State,
    is_finishing: bool,
    /// Streams that the client may send by.
    senders: OpenBodies,
    window: u32,
}

enum State {
    Begins(Box<Handshake<Gathered<Carried>, Bytes>>),
    Serves(Box<server::Connection<Gathered<Carried>, Bytes>>),
}

impl Streams {
    /// Serves what comes by `carried`.
    pub fn new(owner: Arc<Connection>, carried: Carried) -> Self {
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
            state: State::Begins(Box::new(builder.handshake(Gathered::new(carried)))),
            is_finishing: false,
            senders: OpenBodies::default(),
            window: CONNECTION_WINDOW,
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
                State::Serves(connection) => {
                    let window = window(this.senders.count());
                    if window != this.window {
                        this.window = window;
                        connection.set_target_window_size(window);
                    }
                    match ready!(connection.poll_accept(cx)) {
                        None => return Poll::Ready(Ok(())),
                        Some(Err(error)) => return Poll::Ready(Err(error)),
                        Some(Ok((request, respond))) => {
                            let sends = (!request.body().is_end_stream()).then(|| this.senders.one_more());
                            // Made where it stays: a task's future is moved whole, from one hand to the next, and when it has ended.
                            let (owner, place) = (this.owner.clone(), Box::new_uninit());
                            let serving = Box::into_pin(Box::write(place, serve(owner, request, respond)));
                            tokio::spawn(async move {
                                serving.await;
                                drop(sends);
                            });
                        }
                    }
                }
            }
        }
    }
}

/// The connection's window while so many streams may send.
fn window(senders: u32) -> u32 {
    let of_streams = senders.saturating_mul(STREAM_WINDOW);
    CONNECTION_WINDOW.saturating_add(of_streams).min(LARGEST_WINDOW)
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
        let serving = pin!(exchange::serve(owner.clone(), Request::from_parts(parts, body)));
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
        (Some(tunnel), Some(receive)) => Box::pin(run(tunnel, stream, receive)).await,
        // What a client sends beside a refusal is its own.
        _ if is_all => {}
        _ => {
            let patience = owner.session.node.snapshot().config.node.timeouts.idle;
            if let Err(reason) = send(body, &mut stream, patience).await {
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

/// Why a body is sent no further.
enum Stopped {
    /// The client has reset its stream, or is gone.
    Gone,
    /// It takes nothing, and is waited for no more.
    GivenUp(Broken),
    /// The body broke off, which is on its account.
    Broken,
}

/// Sends a body, within `patience` for each piece that its client has no window for; an error is what its stream is to be reset with.
async fn send(mut body: Download, stream: &mut SendStream<Bytes>, patience: Duration) -> Result<(), Reason> {
    match send_all(&mut body, stream, patience).await {
        Ok(()) => Ok(()),
        Err(Stopped::Broken) => Err(Reason::INTERNAL_ERROR),
        Err(Stopped::GivenUp(why)) => {
            body.is_cut_short(Some(why));
            Err(Reason::INTERNAL_ERROR)
        }
        Err(Stopped::Gone) => {
            body.is_cut_short(None);
            // Of a stream that is reset already, that is no news.
            Err(Reason::CANCEL)
        }
    }
}

async fn send_all(body: &mut Download, stream: &mut SendStream<Bytes>, patience: Duration) -> Result<(), Stopped> {
    let gone = |_| Stopped::Gone;
    loop {
        let frame = poll_fn(|cx| {
            if stream.poll_reset(cx).is_ready() {
                return Poll::Ready(Err(Stopped::Gone));
            }
            Pin::new(&mut *body).poll_frame(cx).map(Ok)
        });
        let frame = match frame.await? {
            None => return stream.send_data(Bytes::new(), true).map_err(gone),
            Some(Err(_)) => return Err(Stopped::Broken),
            Some(Ok(frame)) => frame,
        };
        match frame.into_data() {
            Ok(bytes) => {
                let is_last = body.is_end_stream();
                send_bytes(bytes, is_last, body, stream, patience).await?;
                if is_last {
                    return Ok(());
                }
            }
            Err(frame) => {
                if let Ok(mut trailers) = frame.into_trailers() {
                    hygiene::strip_hop_by_hop(&mut trailers);
                    stream.reserve_capacity(0);
                    return stream.send_trailers(trailers).map_err(gone);
                }
            }
        }
    }
}

/// Sends `bytes` of `body` as the client has a window for them: what the codec is given beyond that nobody would see again.
async fn send_bytes(
    mut bytes: Bytes,
    is_last: bool,
    body: &mut Download,
    stream: &mut SendStream<Bytes>,
    patience: Duration,
) -> Result<(), Stopped> {
    let gone = |_| Stopped::Gone;
    while !bytes.is_empty() {
        stream.reserve_capacity(bytes.len());
        let room = match stream.capacity() {
            0 => {
                let in_time = tokio::time::timeout(patience, room(stream, bytes.len(), body)).await;
                in_time.unwrap_or(Err(Stopped::GivenUp(Broken::Idle)))?
            }
            room => room,
        };
        let piece = bytes.split_to(room.min(bytes.len()));
        let ends = is_last && bytes.is_empty();
        stream.send_data(piece, ends).map_err(gone)?;
        body.moves();
        if ends {
            return Ok(());
        }
    }
    match is_last {
        true => stream.send_data(Bytes::new(), true).map_err(gone),
        false => Ok(()),
    }
}

/// Waits until some of what is to be sent may be, and says how much. The body it is of may be taken away meanwhile.
async fn room(stream: &mut SendStream<Bytes>, wanted: usize, body: &mut Download) -> Result<usize, Stopped> {
    poll_fn(|cx| {
        if stream.poll_reset(cx).is_ready() {
            return Poll::Ready(Err(Stopped::Gone));
        }
        if let Poll::Ready(why) = body.poll_given_up(cx) {
            return Poll::Ready(Err(Stopped::GivenUp(why)));
        }
        poll_room(stream, wanted, cx).map(|room| room.ok_or(Stopped::Gone))
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
