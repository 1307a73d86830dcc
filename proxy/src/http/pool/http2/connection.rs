//! One connection of HTTP/2 to an endpoint: what its group knows of it, and the task that speaks on it.
//!
//! The task holds nothing that keeps the connection: when the group has let it go and its last request is over, the codec says GOAWAY and closes.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client;
use underpass_config::HbonePing;
use underpass_config::http::{ClusterSettings, ConnectionSettings};

use super::Group;
use super::request::Sender;
use crate::gathered::Gathered;
use crate::hbone::pings;
use crate::http::intake::MAX_HEAD;
use crate::http::pool::stream::Stream;
use crate::http::wire::Pulse;

/// What an endpoint may send of one response before any of it was passed on. Half as much as Envoy holds of one that is not read; with a quarter of this, an endpoint of long answers
/// is woken so often to go on that they come at two thirds of Envoy's rate where it shares a core with its client (`grpc`, 1 MiB, own-core).
pub const STREAM_WINDOW: u32 = 512 << 10;
/// The largest frame that an endpoint may send: what is read at once.
pub const FRAME: u32 = 64 << 10;
/// Streams that an endpoint is taken to allow until it says how many: the least that RFC 9113, section 6.5.2, recommends.
pub const ALLOWED: u32 = 100;
/// What a request may have given to the codec and the codec not to the kernel.
const SEND_BUFFER: usize = 128 << 10;
/// Streams that were reset here, of which the codec knows for a second that frames may yet come. It ends the connection, and all requests on it, after 1024 frames of
/// streams that it had forgotten.
const RESETS_REMEMBERED: usize = 4096;
/// What one stream may always cost, in the codec's reckoning of frames that nobody has read ([`FRAMES_KEPT`](crate::hbone::FRAMES_KEPT)): 128 Ki frames of one
/// byte.
const ONE_STREAM: usize = (128 << 10) * 256;
/// Each stream's share: its window in frames of 64 bytes. All of a connection's may be taken by a client that reads nothing.
const SHARE: usize = STREAM_WINDOW as usize * 4;
/// RFC 9113, section 6.9.1.
const LARGEST_WINDOW: u32 = (1 << 31) - 1;

type Connection = client::Connection<Gathered<Stream>, Bytes>;

/// A connection.
#[derive(Clone, Debug)]
pub struct Shared(pub(super) Arc<SharedState>);

#[derive(Debug)]
pub(super) struct SharedState {
    sender: Mutex<Sender>,
    /// Its own address, if it has a socket of its own.
    pub local: Option<SocketAddr>,
    pub born: Instant,
    pub streams: AtomicU32,
    pub served: AtomicU32,
    /// Streams that the endpoint lets it have.
    room: AtomicU32,
    pub pulse: Pulse,
    /// Requests that it has served while others wanted its place.
    pub served_others: AtomicU32,
    pub is_leaving: AtomicBool,
    /// Whether it has ended, or its endpoint has said that it takes nothing new.
    is_closed: AtomicBool,
    /// Since when it has had none.
    idle_since: Mutex<Instant>,
    /// Where it is told of what its endpoint allows, and of its end.
    pub group: Mutex<Weak<Group>>,
}

/// Makes a connection of a stream, whose endpoint is taken to allow `allowed` streams until it says how many.
///
/// # Errors
/// When the stream breaks.
pub async fn open(mut stream: Stream, settings: &ConnectionSettings, allowed: u32) -> Result<Shared, h2::Error> {
    let (pulse, local) = (stream.pulse(), stream.local_address());
    if let Some(wire) = stream.wire_mut() {
        wire.end_a_turn_later();
    }
    let mut builder = client::Builder::new();
    builder
        .initial_max_send_streams(allowed as usize)
        .initial_window_size(STREAM_WINDOW)
        .max_frame_size(FRAME)
        .max_header_list_size(MAX_HEAD as u32)
        .max_send_buffer_size(SEND_BUFFER)
        .enable_push(false)
        // Frames that were on their way when a stream was reset are of no account as long as it is remembered; others of them end the connection one day.
        .max_concurrent_reset_streams(RESETS_REMEMBERED)
        .data_frame_budget(frames_kept(settings.streams))
        // Responses that nobody reads can't fill it.
        .initial_connection_window_size(settings.streams.saturating_mul(STREAM_WINDOW).min(LARGEST_WINDOW));
    let (sender, mut connection) = builder.handshake(Gathered::new(stream)).await?;
    let state = Arc::new(SharedState {
        sender: Mutex::new(sender),
        local,
        born: Instant::now(),
        streams: AtomicU32::new(0),
        served: AtomicU32::new(0),
        room: AtomicU32::new(allowed),
        pulse,
        served_others: AtomicU32::new(0),
        is_leaving: AtomicBool::new(false),
        is_closed: AtomicBool::new(false),
        idle_since: Mutex::new(Instant::now()),
        group: Mutex::default(),
    });
    let (told, ping) = (Arc::downgrade(&state), settings.ping);
    tokio::spawn(async move {
        let pings = ping.and_then(|_| connection.ping_pong());
        let ping = ping.map_or_else(HbonePing::default, |ping| HbonePing {
            interval: ping.interval,
            timeout: ping.timeout,
        });
        tokio::select! {
            () = drive(connection, &told) => {}
            () = pings::unanswered(pings, ping, || std::future::ready(())) => {
                tracing::debug!("an endpoint does not answer HTTP/2's PING: its connection is closed");
            }
        }
        // By now it is gone, and its place under the cluster's limit another's.
        if let Some(state) = told.upgrade() {
            state.close();
        }
    });
    Ok(Shared(state))
}

/// What the codec may keep of frames that nobody has read. Beyond it the connection ends, for all of its requests: so each stream that
/// there may be has a share, as it has of the window, and a client that reads nothing of small messages leaves the others theirs. One
/// such stream is borne even if its messages have a byte each.
fn frames_kept(streams: u32) -> usize {
    SHARE.saturating_mul(streams as usize).max(ONE_STREAM)
}

/// Speaks on a connection until its end.
async fn drive(connection: Connection, told: &Weak<SharedState>) {
    let mut connection = pin!(connection);
    let running = poll_fn(|cx| {
        let polled = connection.as_mut().poll(cx);
        if let Some(state) = told.upgrade()
            && polled.is_pending()
        {
            state.look(&connection);
        }
        polled
    });
    if let Err(error) = running.await {
        tracing::debug!(%error, "an HTTP/2 connection to an endpoint ended");
    }
}

impl SharedState {
    /// Looks at what the endpoint has said: how many streams it allows, whether it goes.
    fn look(&self, connection: &Pin<&mut Connection>) {
        self.allow(u32::try_from(connection.max_concurrent_send_streams()).unwrap_or(u32::MAX));
        let mut cx = Context::from_waker(Waker::noop());
        let gone = match self
            .sender
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .poll_ready(&mut cx)
        {
            Poll::Ready(ready) => ready.is_err(),
            Poll::Pending => false,
        };
        if gone && !self.is_closed.load(Ordering::Relaxed) {
            self.close();
        }
    }

    /// Notes how many streams the endpoint allows. One that allows none for now is asked to hold what it is sent until it allows some.
    fn allow(&self, streams: u32) {
        let streams = streams.max(1);
        if self.room.swap(streams, Ordering::Relaxed) != streams
            && let Some(group) = self.group()
        {
            group.allow(streams);
        }
    }

    /// It takes no more requests: what it has goes on, as far as there is a connection.
    fn close(&self) {
        self.is_closed.store(true, Ordering::Relaxed);
        if let Some(group) = self.group() {
            group.let_go(self);
        }
    }

    fn group(&self) -> Option<Arc<Group>> {
        self.group.lock().unwrap_or_else(PoisonError::into_inner).upgrade()
    }

    /// Notes that its last request is over.
    pub fn rests(&self) {
        *self.idle_since.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }
}

impl Shared {
    pub fn streams(&self) -> u32 {
        self.0.streams.load(Ordering::Relaxed)
    }

    /// The way to send a request.
    pub fn sender(&self) -> Sender {
        self.0.sender.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn is_closed(&self) -> bool {
        self.0.is_closed.load(Ordering::Relaxed)
    }

    /// Whether it may be given requests. What it has goes on in any case.
    pub fn may_go_on(&self, cluster: &ClusterSettings) -> bool {
        let limits = &cluster.connections;
        !self.is_closed()
            && self.0.pulse.is_good()
            && !self.0.is_leaving.load(Ordering::Relaxed)
            && self.0.served.load(Ordering::Relaxed) < limits.requests
            && limits.lifetime.is_none_or(|lifetime| self.0.born.elapsed() < lifetime)
    }

    pub fn has_room(&self, cluster: &ClusterSettings) -> bool {
        let room = self.0.room.load(Ordering::Relaxed);
        self.streams() < room.min(cluster.connections.streams)
    }

    pub fn idle_since(&self) -> Instant {
        *self.0.idle_since.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn has_idled(&self, limit: Duration) -> bool {
        self.streams() == 0 && self.idle_since().elapsed() >= limit
    }
}
