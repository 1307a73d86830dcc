//! One connection of the pool: opening streams on it, and driving it until it is gone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, ThreadId};

use h2::Reason;
use h2::client::{self, SendRequest};
use http::{Request, StatusCode};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::super::chunk::Chunk;
use super::super::streams::{StreamPlace, Streams};
use super::super::tunnel::{Ends, Tunnel};
use super::super::{STREAMS, pings};
use super::group::Group;
use super::{IDLE, Origin, SPREAD};

/// A connection as the pool holds it. When the pool lets go of it, it closes with its last stream.
#[derive(Debug)]
pub(super) struct Pooled {
    sender: SendRequest<Chunk>,
    ends: Ends,
    shared: Arc<Shared>,
    driven_by: ThreadId,
}

/// What also its driver and its streams know.
#[derive(Debug, Default)]
pub(super) struct Shared {
    streams: Arc<Streams>,
    /// No stream is to be opened any more: the peer has said so, or it broke.
    is_closing: AtomicBool,
    /// The peer has answered a request. One that has not may have closed because it does not want us: our certificate is judged after our side of
    /// the handshake is done (TLS 1.3).
    has_answered: AtomicBool,
}

/// A stream's place on a connection, before the stream is opened.
pub(super) struct Opening {
    sender: SendRequest<Chunk>,
    ends: Ends,
    shared: Arc<Shared>,
    place: StreamPlace,
}

/// Why a stream was not opened.
pub(super) enum RequestError {
    /// The peer has not looked at it.
    Unseen(String),
    Refused(StatusCode),
    Broken(String),
}

impl Pooled {
    /// A connection that the calling thread drives.
    pub(super) fn new(sender: SendRequest<Chunk>, ends: Ends) -> Self {
        Self {
            sender,
            ends,
            shared: Arc::default(),
            driven_by: thread::current().id(),
        }
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub(super) fn is(&self, shared: &Arc<Shared>) -> bool {
        Arc::ptr_eq(&self.shared, shared)
    }

    pub(super) fn is_closing(&self) -> bool {
        self.shared.is_closing.load(Ordering::Acquire)
    }

    pub(super) fn streams(&self) -> usize {
        self.shared.streams.open()
    }

    /// Whether the peer takes another stream now.
    pub(super) fn has_room(&self) -> bool {
        self.streams() < self.sender.current_max_send_streams().min(STREAMS as usize)
    }

    /// What the least of is the best for the next stream.
    pub(super) fn rank(&self) -> (usize, bool, usize) {
        let streams = self.streams();
        (streams / SPREAD, self.driven_by != thread::current().id(), streams)
    }

    pub(super) fn open(&self) -> Opening {
        Opening {
            sender: self.sender.clone(),
            ends: self.ends,
            shared: self.shared.clone(),
            place: self.shared.streams.enter(),
        }
    }
}

impl Opening {
    pub(super) async fn request(self, request: Request<()>) -> Result<Tunnel, RequestError> {
        let Self {
            sender,
            ends,
            shared,
            place,
        } = self;
        let broken = |error: h2::Error| {
            shared.is_closing.store(true, Ordering::Release);
            let is_leave = error.is_go_away() && error.is_remote() && error.reason() == Some(Reason::NO_ERROR);
            match is_leave || shared.has_answered.load(Ordering::Acquire) {
                true => RequestError::Unseen(error.to_string()),
                false => RequestError::Broken(error.to_string()),
            }
        };
        let mut sender = sender.ready().await.map_err(broken)?;
        let (answer, send) = sender.send_request(request, false).map_err(broken)?;
        drop(sender);
        let answer = answer.await;
        shared.has_answered.fetch_or(answer.is_ok(), Ordering::AcqRel);
        match answer {
            Ok(response) if response.status() == StatusCode::OK => {
                Ok(Tunnel::new(send, response.into_body(), ends, Some(place)))
            }
            Ok(response) => Err(RequestError::Refused(response.status())),
            Err(error) if error.is_go_away() || error.is_io() => Err(broken(error)),
            Err(error) if error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM) => {
                Err(RequestError::Unseen(error.to_string()))
            }
            Err(error) => Err(RequestError::Broken(error.to_string())),
        }
    }
}

/// Drives a connection until it is gone; then it is in the group no more.
pub(super) async fn drive(
    connection: client::Connection<TlsStream<TcpStream>, Chunk>,
    shared: Arc<Shared>,
    group: &Group,
    origin: Origin,
) {
    let mut connection = connection;
    let streams = shared.streams.clone();
    let unanswered = pings::unanswered(connection.ping_pong(), || streams.busy());
    let origin_is_gone = async {
        match &origin {
            Origin::Pod(pod) => pod.removed().await,
            #[cfg(test)]
            Origin::Host => std::future::pending().await,
        }
    };
    let unused = async {
        loop {
            streams.idle().await;
            tokio::select! {
                () = tokio::time::sleep(IDLE) => {}
                () = streams.busy() => continue,
            }
            if group.let_go_if_idle(&shared) {
                // It closes now that nobody can open a stream on it.
                std::future::pending::<()>().await;
            }
        }
    };
    tokio::select! {
        outcome = &mut connection => {
            if let Err(error) = outcome {
                tracing::debug!(%error, "an HBONE connection broke");
            }
        }
        () = unanswered => tracing::info!("an HBONE peer does not answer; its connection is closed"),
        () = origin_is_gone => {}
        () = unused => {}
    }
    shared.is_closing.store(true, Ordering::Release);
    group.let_go(&shared);
}
