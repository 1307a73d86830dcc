//! The endpoint of HTTP requests: HTTP/1.1 and HTTP/2 on hyper, on one thread. The path says how long the answer is.

use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};

use anyhow::Result;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use tokio::runtime;
use tokio_stream::iter;

/// Of a body at a time.
const CHUNK: usize = 64 * 1024;
const GRPC: &str = "application/grpc";

/// Serves what is accepted from `listener`, until standard input ends.
pub(super) fn serve(listener: TcpListener) -> Result<()> {
    listener.set_nonblocking(true)?;
    std::thread::spawn(|| {
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        std::process::exit(0);
    });
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        loop {
            let (stream, _): (_, SocketAddr) = listener.accept().await?;
            stream.set_nodelay(true)?;
            tokio::spawn(async move {
                // A connection that breaks is the client's to report.
                let mut builder = Builder::new(TokioExecutor::new());
                builder.http2().max_concurrent_streams(1024);
                let _ = builder.serve_connection(TokioIo::new(stream), service_fn(answer)).await;
            });
        }
    })
}

type Body =
    http_body_util::Either<http_body_util::Full<Bytes>, http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>>;

async fn answer(request: Request<Incoming>) -> Result<Response<Body>, hyper::Error> {
    let size = request.uri().path().trim_start_matches('/').parse().unwrap_or_default();
    let is_grpc = request.headers().get(CONTENT_TYPE).is_some_and(|kind| kind == GRPC);
    request.into_body().collect().await?;
    let mut response = Response::new(match (is_grpc, size) {
        (false, ..=CHUNK) => Body::Left(Bytes::from_static(&[b'a'; CHUNK]).slice(..size).into()),
        (false, _) => Body::Right(long(size)),
        (true, _) => Body::Right(message(size)),
    });
    if is_grpc {
        response
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static(GRPC));
    }
    Ok(response)
}

/// A body of `size` bytes in chunks.
fn long(size: usize) -> http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible> {
    let chunks = (0..size).step_by(CHUNK).map(move |at| {
        Ok(Frame::data(
            Bytes::from_static(&[b'a'; CHUNK]).slice(..CHUNK.min(size - at)),
        ))
    });
    StreamBody::new(iter(chunks)).boxed_unsync()
}

/// A message of gRPC's with `size` bytes, and the status.
fn message(size: usize) -> http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible> {
    let mut message = vec![0];
    message.extend(u32::try_from(size).unwrap_or_default().to_be_bytes());
    message.resize(5 + size, b'a');
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    StreamBody::new(iter([Ok(Frame::data(message.into())), Ok(Frame::trailers(trailers))])).boxed_unsync()
}
