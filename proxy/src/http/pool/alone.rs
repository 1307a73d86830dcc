//! A stream of HTTP/2 that has its connection for itself: a tunnel's.
//!
//! A tunnel lasts, and may stand still with bytes on the way: on a connection of its own it is in nobody's way, and what becomes of its stream is
//! said by whoever runs the tunnel, not by a codec between.

use std::future::poll_fn;
use std::task::{Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{self, Connection, SendRequest};
use h2::{RecvStream, SendStream};
use http::{Request, Response};
use tokio::sync::oneshot;

use super::http2::{FRAME, STREAM_WINDOW};
use super::stream::Stream;
use crate::gathered::Gathered;
use crate::hbone::FRAMES_KEPT;
use crate::http::idle::Activity;
use crate::http::intake::MAX_HEAD;
use crate::http::wire::Pulse;

/// What the reset of a stream may take to be written.
const FAREWELL: Duration = Duration::from_secs(5);
/// How often it is looked whether the tail of a tunnel moves.
const LOOK: Duration = Duration::from_millis(100);

/// The connection below: it ends soon after this is dropped.
#[derive(Debug)]
pub struct Below {
    _alive: oneshot::Sender<()>,
    is_over: oneshot::Receiver<()>,
    pulse: Pulse,
}

impl Below {
    /// Resolves when the connection has ended, as it does by itself when its stream has, and all of it is written. Notes what moves meanwhile.
    pub async fn over(&mut self, activity: &Activity) {
        let mut moved = self.pulse.moved();
        // Who is told that it is over may not be told twice.
        while !self.is_over.is_terminated() {
            tokio::select! {
                biased;
                _ = &mut self.is_over => return,
                () = tokio::time::sleep(LOOK) => {}
            }
            let now = self.pulse.moved();
            if std::mem::replace(&mut moved, now) != now {
                activity.note();
            }
        }
    }
}

/// What an endpoint has answered.
#[derive(Debug)]
pub struct Reply {
    /// The head, and what follows it.
    pub response: Response<RecvStream>,
    /// What is sent to the endpoint.
    pub send: SendStream<Bytes>,
    /// The connection.
    pub below: Below,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Silent {
    /// The stream or the connection broke.
    #[error(transparent)]
    Broke(#[from] h2::Error),
    /// The endpoint does not speak RFC 8441.
    #[error("the endpoint has not said that it takes extended CONNECT (RFC 8441: SETTINGS_ENABLE_CONNECT_PROTOCOL)")]
    NotExtended,
}

/// Sends `request`, a CONNECT, by `stream`, whose endpoint has `settling` to say its settings.
///
/// # Errors
/// When it is not answered.
pub async fn connect(stream: Stream, request: Request<()>, settling: Duration) -> Result<Reply, Silent> {
    let is_extended = request.extensions().get::<h2::ext::Protocol>().is_some();
    let mut builder = client::Builder::new();
    builder
        // None, until the endpoint has said what it allows.
        .initial_max_send_streams(0)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(STREAM_WINDOW)
        .max_frame_size(FRAME)
        .max_header_list_size(MAX_HEAD as u32)
        .data_frame_budget(FRAMES_KEPT)
        .enable_push(false);
    let pulse = stream.pulse();
    let (sender, mut connection) = builder.handshake(Gathered::new(stream)).await?;
    let settled = tokio::time::timeout(settling, settled(&mut connection)).await;
    settled.unwrap_or(Err(h2::Reason::SETTINGS_TIMEOUT.into()))?;
    if is_extended && !sender.is_extended_connect_protocol_enabled() {
        return Err(Silent::NotExtended);
    }
    let (alive, is_left) = oneshot::channel::<()>();
    let (over, is_over) = oneshot::channel::<()>();
    tokio::spawn(async move {
        let _over = over;
        let left = async {
            let _ = is_left.await;
            tokio::time::sleep(FAREWELL).await;
        };
        tokio::select! {
            result = connection => if let Err(error) = result {
                tracing::debug!(%error, "the connection below a tunnel ended");
            },
            () = left => {}
        }
    });
    let (response, send) = send(sender, request).await?;
    Ok(Reply {
        response,
        send,
        below: Below {
            _alive: alive,
            is_over,
            pulse,
        },
    })
}

/// Waits for the endpoint's settings.
async fn settled(connection: &mut Connection<Gathered<Stream>, Bytes>) -> Result<(), h2::Error> {
    poll_fn(|cx| {
        let polled = std::pin::Pin::new(&mut *connection).poll(cx);
        if connection.max_concurrent_send_streams() > 0 {
            return Poll::Ready(Ok(()));
        }
        ready!(polled)?;
        Poll::Ready(Err(h2::Reason::REFUSED_STREAM.into()))
    })
    .await
}

async fn send(
    sender: SendRequest<Bytes>,
    request: Request<()>,
) -> Result<(Response<RecvStream>, SendStream<Bytes>), h2::Error> {
    let mut sender = sender.ready().await?;
    let (response, send) = sender.send_request(request, false)?;
    Ok((response.await?, send))
}
