//! What a client of HTTP/1.1 sends, through the codec, and from there to an endpoint that reads strictly: what goes on is one message, each time.

use std::cell::RefCell;
use std::convert::Infallible;
use std::rc::Rc;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1::handshake;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::task::{LocalSet, spawn_local};

use super::framing::{self, Read};
use crate::fuzzing::Wire;
use crate::http::arriving::Arriving;
use crate::http::attempt::for_http1;
use crate::http::codec::codec_of_http1;
use crate::http::intake::Intake;
use crate::http::upload::{Attempt, Upload};

/// What is on the way between us and the endpoint, in bytes.
const PIPE: usize = 4096;

/// The bytes of a client of HTTP/1.1. True if a request reached the endpoint.
pub fn http1(bytes: &[u8]) -> bool {
    let wire = Wire::new(bytes.to_vec().into());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let arrived = Rc::new(RefCell::new(Vec::new()));
    let seen = arrived.clone();
    let service = service_fn(move |request| {
        let seen = seen.clone();
        async move { Ok::<_, Infallible>(forward(request, &seen).await) }
    });
    let codec = codec_of_http1().serve_connection(TokioIo::new(wire), service);
    LocalSet::new().block_on(&runtime.expect("a runtime"), async {
        // A client that breaks off is none of the codec's mistakes.
        let _ = codec.await;
    });
    let arrived = arrived.borrow();
    let lengths: usize = arrived.iter().map(|read: &Read| read.body.len()).sum();
    assert!(lengths <= bytes.len(), "more has gone on than came");
    !arrived.is_empty()
}

/// Sends a request on, by a connection of its own.
async fn forward(request: Request<Incoming>, arrived: &Rc<RefCell<Vec<Read>>>) -> Response<Empty<Bytes>> {
    let (parts, body) = request.into_parts();
    let Ok(intake) = Intake::new(parts) else {
        return status(StatusCode::BAD_REQUEST);
    };
    // Where a tunnel begins, there are no messages any more.
    if intake.switch.is_some() {
        return status(StatusCode::FORBIDDEN);
    }
    let upload = Upload::new(Arriving::Read(body), 0, false);
    let Some(onward) = for_http1(&intake, upload.attempt()) else {
        return status(StatusCode::INTERNAL_SERVER_ERROR);
    };
    let (near, far) = duplex(PIPE);
    let endpoint = spawn_local(endpoint(far));
    let answer = async {
        let (mut sender, connection) = handshake::<_, Attempt>(TokioIo::new(near)).await.ok()?;
        spawn_local(connection);
        let answer = sender.send_request(onward).await.ok()?;
        let status = answer.status();
        answer.into_body().collect().await.ok()?;
        Some(status)
    };
    let answered = answer.await;
    let read = endpoint
        .await
        .unwrap_or_else(|panicked| std::panic::resume_unwind(panicked.into_panic()));
    if let Some(read) = &read {
        assert_eq!(
            (read.line.0.as_str(), read.line.1.as_str()),
            (intake.method.as_str(), intake.target.as_str())
        );
        assert!(intake.method != Method::CONNECT);
    }
    let is_whole = read.is_some();
    arrived.borrow_mut().extend(read);
    status(match (answered, is_whole) {
        (Some(status), true) => status,
        _ => StatusCode::BAD_GATEWAY,
    })
}

/// Reads one request, answers it, and reads on to the end of the connection: nothing may follow.
async fn endpoint(mut stream: DuplexStream) -> Option<Read> {
    let (mut bytes, mut read) = (Vec::new(), None);
    loop {
        let mut part = [0; 1024];
        let length = stream.read(&mut part).await.unwrap_or(0);
        bytes.extend_from_slice(&part[..length]);
        if read.is_none() {
            read = framing::read(&bytes);
            if read.is_some() {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
            }
        }
        if let Some(read) = &read {
            assert_eq!(bytes.len(), read.length, "something follows the message: {bytes:?}");
        }
        if length == 0 {
            return read;
        }
    }
}

fn status(status: StatusCode) -> Response<Empty<Bytes>> {
    let mut response = Response::new(Empty::new());
    *response.status_mut() = status;
    response
}
