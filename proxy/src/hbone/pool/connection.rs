//! One connection of the pool: opening streams on it, and driving it until it is gone.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, ThreadId};

use h2::Reason;
use h2::client::SendRequest;
use http::{Request, StatusCode};
use underpass_config::HboneSettings;

use super::super::chunk::Chunk;
use super::super::credentials::Credentials;
use super::super::pings;
use super::super::streams::{StreamPlace, Streams};
use super::super::tunnel::{Ends, Tunnel};
use super::super::windows::{Held, Valve, Window};
use super::Origin;
use super::dial::{Connection, Made};
use super::group::Group;

/// A connection as the pool holds it. When the pool lets go of it, it closes with its last stream.
#[derive(Debug)]
pub(super) struct Pooled {
    sender: SendRequest<Chunk>,
    ends: Ends,
    shared: Arc<Shared>,
    driven_by: ThreadId,
    settings: HboneSettings,
}

/// What also its driver and its streams know.
#[derive(Debug)]
pub(super) struct Shared {
    credentials: Credentials,
    window: Arc<Window>,
    streams: Arc<Streams>,
    /// No stream is to be opened any more: the peer has said so, or it broke.
    is_closing: AtomicBool,
    /// The peer has answered a request. One that has not may have closed because it does not want us: our certificate is judged after our side of
    /// the handshake is done (TLS 1.3).
    has_answered: AtomicBool,
}

/// Whether a connection is as good as when its streams were opened.
#[derive(Clone, Debug)]
pub struct Standing(Arc<Shared>);

impl Standing {
    /// Whether another stream could be opened on it. If not, whoever has one and is to begin something new does so on another connection: the peer is going, or
    /// a certificate no longer stands.
    pub fn is_good(&self) -> bool {
        !self.0.is_closing()
    }
}

impl Shared {
    fn is_closing(&self) -> bool {
        self.is_closing.load(Ordering::Acquire) || self.credentials.check().is_err()
    }
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
    /// A connection that the calling thread [drives](drive), and what it is driven by.
    pub(super) fn new(made: Made, settings: HboneSettings) -> (Self, Driven) {
        let shared = Arc::new(Shared {
            credentials: made.credentials,
            window: made.valve.window().clone(),
            streams: Arc::default(),
            is_closing: AtomicBool::new(false),
            has_answered: AtomicBool::new(false),
        });
        let pooled = Self {
            sender: made.sender,
            ends: made.ends,
            shared: shared.clone(),
            driven_by: thread::current().id(),
            settings,
        };
        let driven = Driven {
            connection: made.connection,
            valve: made.valve,
            shared,
            settings,
        };
        (pooled, driven)
    }

    pub(super) fn is(&self, shared: &Arc<Shared>) -> bool {
        Arc::ptr_eq(&self.shared, shared)
    }

    /// Whether no stream may be opened on it any more. Those that it has go on.
    pub(super) fn is_closing(&self) -> bool {
        self.shared.is_closing()
    }

    pub(super) fn streams(&self) -> usize {
        self.shared.streams.open()
    }

    /// Whether the peer takes another stream now.
    pub(super) fn has_room(&self) -> bool {
        self.streams()
            < self
                .sender
                .current_max_send_streams()
                .min(self.settings.streams as usize)
    }

    /// What the least of is the best for the next stream.
    pub(super) fn rank(&self) -> (usize, bool, usize) {
        let streams = self.streams();
        (
            streams / self.settings.spread as usize,
            self.driven_by != thread::current().id(),
            streams,
        )
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
                let held = Held::new(shared.window.clone());
                let pooled = Some((place, Standing(shared.clone())));
                Ok(Tunnel::new(send, response.into_body(), ends, held, pooled))
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

/// What drives a connection.
pub(super) struct Driven {
    connection: Connection,
    valve: Valve,
    shared: Arc<Shared>,
    settings: HboneSettings,
}

/// Drives a connection until it is gone; then it is in the group no more.
pub(super) async fn drive(driven: Driven, group: &Group, origin: Origin) {
    let Driven {
        mut connection,
        mut valve,
        shared,
        settings,
    } = driven;
    let streams = &shared.streams;
    let mut unanswered = pin!(pings::unanswered(connection.ping_pong(), settings.ping, || streams.busy()));
    let mut given_up = pin!(given_up(&shared, &settings, &origin));
    let mut retired = pin!(retired(&shared, &settings, group));
    let mut is_retired = false;
    loop {
        tokio::select! {
            outcome = &mut connection => {
                if let Err(error) = outcome {
                    tracing::debug!(%error, "an HBONE connection broke");
                }
                break;
            }
            size = valve.changed() => connection.set_target_window_size(size),
            () = &mut retired, if !is_retired => {
                is_retired = true;
                group.let_go(&shared);
                // It closes with its last stream, now that nobody can open another.
            }
            () = &mut unanswered => {
                tracing::info!("an HBONE peer does not answer; its connection is closed");
                break;
            }
            () = &mut given_up => break,
        }
    }
    shared.is_closing.store(true, Ordering::Release);
    group.let_go(&shared);
}

/// Resolves when no more streams are to be opened on a connection.
async fn retired(shared: &Arc<Shared>, settings: &HboneSettings, group: &Group) {
    let unused = async {
        loop {
            shared.streams.unused_for(settings.idle).await;
            if group.let_go_if_idle(shared) {
                return;
            }
        }
    };
    tokio::select! {
        lapsed = shared.credentials.lapsed(|_| true) => {
            tracing::debug!(%lapsed, "no more streams are opened on an HBONE connection");
            shared.is_closing.store(true, Ordering::Release);
        }
        () = unused => {}
    }
}

/// Resolves when a connection is to be closed with all its streams.
async fn given_up(shared: &Shared, settings: &HboneSettings, origin: &Origin) {
    let pod_is_gone = async {
        match origin {
            Origin::Pod(pod) => pod.removed().await,
            Origin::Host => std::future::pending().await,
        }
    };
    tokio::select! {
        () = pod_is_gone => {}
        lapsed = shared.credentials.lapsed(|lapsed| lapsed.resets(settings)) => {
            tracing::info!(%lapsed, "the streams of an HBONE connection are reset");
        }
    }
}
