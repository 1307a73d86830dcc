//! A request on a connection of HTTP/2.
//!
//! Until it is answered, whoever asks sends its body too. What is left to send then is a task of its own, which belongs to the answer: it ends with it, and its
//! stream is reset, as Envoy does. So no upload outlives the account, the limits and the time-outs of its request.

use std::future::poll_fn;
use std::pin::{Pin, pin};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream, client};
use http::{Request, Response};
use hyper::body::Body;

use crate::http::hygiene;
use crate::http::pool::http1::Codec;
use crate::http::upload::Attempt;
use crate::room::poll_room;

/// The codec's end of a connection.
pub type Sender = client::SendRequest<Bytes>;

/// A request that has no answer.
#[derive(Debug)]
pub struct Unanswered {
    /// Whether nothing was sent.
    pub is_unsent: bool,
    /// What went wrong.
    pub error: h2::Error,
}

/// Sends a request and waits for the head of its response. What then is still sending the request's body ends when it is dropped.
///
/// # Errors
/// When no response comes.
pub async fn ask(
    sender: Sender,
    request: Request<()>,
    body: Attempt,
) -> Result<(Response<RecvStream>, Option<Codec>), Unanswered> {
    let unsent = |error| Unanswered { is_unsent: true, error };
    let mut sender = sender.ready().await.map_err(unsent)?;
    let is_whole = body.is_end_stream();
    let (response, stream) = sender.send_request(request, is_whole).map_err(unsent)?;
    drop(sender);
    let mut uploading = (!is_whole).then(|| Box::pin(upload(body, stream)));
    let mut response = pin!(response);
    let response = poll_fn(|cx| {
        if let Some(going_on) = &mut uploading
            && going_on.as_mut().poll(cx).is_ready()
        {
            uploading = None;
        }
        response.as_mut().poll(cx)
    });
    let response = response.await.map_err(|error| Unanswered {
        is_unsent: false,
        error,
    })?;
    let uploading = uploading.map(|going_on| Codec::new(tokio::spawn(going_on).abort_handle()));
    Ok((response, uploading))
}

/// Sends a request's body; one that breaks off has its stream reset.
async fn upload(mut body: Attempt, mut stream: SendStream<Bytes>) {
    if let Err(reason) = send(&mut body, &mut stream).await {
        stream.send_reset(reason);
    }
}

async fn send(body: &mut Attempt, stream: &mut SendStream<Bytes>) -> Result<(), Reason> {
    // Of a stream that is reset already, that is no news.
    let gone = |_| Reason::CANCEL;
    loop {
        let frame = poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await;
        let frame = match frame {
            None => return stream.send_data(Bytes::new(), true).map_err(gone),
            Some(Err(_)) => return Err(Reason::CANCEL),
            Some(Ok(frame)) => frame,
        };
        match frame.into_data() {
            Ok(bytes) => {
                let is_last = body.is_end_stream();
                send_bytes(bytes, is_last, body, stream).await?;
                if is_last {
                    return Ok(());
                }
            }
            Err(frame) => {
                if let Ok(mut trailers) = frame.into_trailers() {
                    hygiene::strip_hop_by_hop(&mut trailers);
                    return stream.send_trailers(trailers).map_err(gone);
                }
            }
        }
    }
}

/// Sends `bytes` of `body` as the endpoint takes them.
async fn send_bytes(
    mut bytes: Bytes,
    is_last: bool,
    body: &Attempt,
    stream: &mut SendStream<Bytes>,
) -> Result<(), Reason> {
    let gone = |_| Reason::CANCEL;
    while !bytes.is_empty() {
        let room = poll_fn(|cx| poll_room(stream, bytes.len(), cx)).await;
        let room = room.ok_or(Reason::CANCEL)?;
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
