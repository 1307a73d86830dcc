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
use crate::http::intake::MAX_HEAD;

/// What the end of the last stream may take to be written.
const FAREWELL: Duration = Duration::from_secs(5);

/// The connection below: it ends when this is dropped.
#[derive(Debug)]
pub struct Below {
    _alive: oneshot::Sender<()>,
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
    let (sender, mut connection) = builder.handshake(Gathered::new(stream)).await?;
    let settled = tokio::time::timeout(settling, settled(&mut connection)).await;
    settled.unwrap_or(Err(h2::Reason::SETTINGS_TIMEOUT.into()))?;
    if is_extended && !sender.is_extended_connect_protocol_enabled() {
        return Err(Silent::NotExtended);
    }
    let (below, is_over) = oneshot::channel::<()>();
    tokio::spawn(async move {
        let over = async {
            let _ = is_over.await;
            tokio::time::sleep(FAREWELL).await;
        };
        tokio::select! {
            result = connection => if let Err(error) = result {
                tracing::debug!(%error, "the connection below a tunnel ended");
            },
            () = over => {}
        }
    });
    let (response, send) = send(sender, request).await?;
    Ok(Reply {
        response,
        send,
        below: Below { _alive: below },
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
