//! Connections to endpoints, each core's own.
//!
//! HTTP/1: a connection that has done its work waits on top of a stack; the one used last is used next, so that those which a quieter time
//! doesn't need grow old at the bottom. HTTP/2: a request goes to the connection with the fewest of them, and when all have
//! [`STREAMS`], to a new one: no endpoint is reached over one hot connection.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use foldhash::quality::RandomState;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;
use underpass_config::Text;
use underpass_config::http::ClusterSettings;

use super::intake::MAX_HEADERS;
use super::upload::{Attempt, Sent};
use super::wire::{Moved, Wire};
use crate::node::Node;
use crate::socket::{self, Connecting};

/// Requests on one HTTP/2 connection before another is opened, while the endpoint may have more.
const STREAMS: u32 = 64;
/// HTTP/2 connections of one core to one endpoint.
const HTTP2_CONNECTIONS: usize = 16;
/// What an endpoint may send of one response before any of it was passed on.
const STREAM_WINDOW: u32 = 128 << 10;
/// And of all on one connection: responses that nobody reads can't fill it.
const CONNECTION_WINDOW: u32 = STREAMS * STREAM_WINDOW;
/// What the task of a connection that waits may take to see that its last exchange is over.
const READY_PATIENCE: Duration = Duration::from_millis(10);
/// How often old connections are looked for.
const SWEEP: Duration = Duration::from_secs(10);

type Http1 = http1::SendRequest<Attempt>;
type Http2 = http2::SendRequest<Attempt>;

/// The pools of all cores. A core locks its own only.
#[derive(Debug)]
pub struct Pools(Box<[Mutex<Pool>]>);

#[derive(Debug, Default)]
struct Pool {
    http1: HashMap<Key, Vec<Idle>, RandomState>,
    http2: HashMap<Key, Arc<Group>, RandomState>,
    is_swept: bool,
}

/// Which connections are as good as each other.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    cluster: Text,
    address: SocketAddr,
}

#[derive(Debug)]
struct Idle {
    sender: Http1,
    since: Instant,
    limit: Duration,
}

#[derive(Debug, Default)]
struct Group {
    connections: Mutex<Vec<Shared>>,
    dialing: tokio::sync::Mutex<()>,
}

/// An HTTP/2 connection.
#[derive(Clone, Debug)]
struct Shared {
    sender: Http2,
    streams: Arc<AtomicU32>,
    /// Streams that the endpoint lets it have.
    room: Arc<AtomicU32>,
}

/// Why there is no connection.
#[derive(Debug)]
pub enum NotConnected {
    /// It was refused, or there is no way.
    Failed(io::Error),
    /// The endpoint did not answer in time.
    TimedOut,
}

impl Pools {
    /// For `cores` cores.
    pub fn new(cores: usize) -> Self {
        Self((0..cores).map(|_| Mutex::default()).collect())
    }

    fn pool(&self, core: usize) -> MutexGuard<'_, Pool> {
        self.0[core].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One request's hold on a connection.
#[derive(Debug)]
pub struct Lease {
    node: Arc<Node>,
    core: usize,
    key: Key,
    limit: Duration,
    /// None once it is given back.
    connection: Option<Held>,
    sent: Sent,
    /// Whether others have used it before.
    pub is_reused: bool,
}

#[derive(Debug)]
enum Held {
    Http1(Http1),
    Http2(Shared),
}

/// Where a connection is wanted to.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// The node.
    pub node: &'a Arc<Node>,
    /// The core that asks.
    pub core: usize,
    /// The cluster.
    pub cluster: &'a ClusterSettings,
    /// Its endpoint.
    pub address: SocketAddr,
    /// Whether to speak HTTP/2.
    pub is_http2: bool,
}

impl Wanted<'_> {
    fn key(&self) -> Key {
        Key {
            cluster: self.cluster.name.clone(),
            address: self.address,
        }
    }

    fn lease(&self, connection: Held, is_reused: bool) -> Lease {
        Lease {
            node: self.node.clone(),
            core: self.core,
            key: self.key(),
            limit: self.cluster.idle_timeout,
            connection: Some(connection),
            sent: Sent::default(),
            is_reused,
        }
    }

    /// A connection: one that waits, or a new one.
    ///
    /// # Errors
    /// When the endpoint can't be connected to.
    pub async fn connection(&self) -> Result<Lease, NotConnected> {
        match self.is_http2 {
            true => self.http2().await,
            false => self.http1().await,
        }
    }

    async fn http1(&self) -> Result<Lease, NotConnected> {
        while let Some(mut idle) = self.take_idle() {
            if idle.is_usable().await {
                return Ok(self.lease(Held::Http1(idle.sender), true));
            }
        }
        let wire = self.dial().await?;
        let mut builder = http1::Builder::new();
        builder.max_headers(MAX_HEADERS);
        let (sender, connection) = builder.handshake(TokioIo::new(wire)).await.map_err(failed)?;
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "an HTTP/1 connection to an endpoint ended");
            }
        });
        Ok(self.lease(Held::Http1(sender), false))
    }

    fn take_idle(&self) -> Option<Idle> {
        self.node.http.pool(self.core).http1.get_mut(&self.key())?.pop()
    }

    async fn http2(&self) -> Result<Lease, NotConnected> {
        let group = self
            .node
            .http
            .pool(self.core)
            .http2
            .entry(self.key())
            .or_default()
            .clone();
        if let Some(shared) = group.least_busy(false) {
            return Ok(self.lease(Held::Http2(shared), true));
        }
        // One at a time: those who wait may find room on what the first has opened.
        let _dialing = group.dialing.lock().await;
        if let Some(shared) = group.least_busy(false) {
            return Ok(self.lease(Held::Http2(shared), true));
        }
        let opened = match group.is_full() {
            true => None,
            false => Some(self.open_http2().await),
        };
        match opened {
            Some(Ok(shared)) => {
                shared.streams.fetch_add(1, Ordering::Relaxed);
                group.connections().push(shared.clone());
                self.sweep_later();
                Ok(self.lease(Held::Http2(shared), false))
            }
            Some(Err(error)) => Err(error),
            None => match group.least_busy(true) {
                Some(shared) => Ok(self.lease(Held::Http2(shared), true)),
                None => Err(NotConnected::Failed(io::ErrorKind::ConnectionAborted.into())),
            },
        }
    }

    async fn open_http2(&self) -> Result<Shared, NotConnected> {
        let wire = self.dial().await?;
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW);
        let (sender, connection) = builder.handshake(TokioIo::new(wire)).await.map_err(failed)?;
        let room = Arc::new(AtomicU32::new(STREAMS));
        let told = room.clone();
        tokio::spawn(async move {
            let mut connection = std::pin::pin!(connection);
            let running = std::future::poll_fn(|cx| {
                let polled = connection.as_mut().poll(cx);
                let streams = u32::try_from(connection.current_max_send_streams()).unwrap_or(u32::MAX);
                // An endpoint that allows none for now is asked to hold what it is sent until it allows some.
                told.store(streams.max(1), Ordering::Relaxed);
                polled
            });
            if let Err(error) = running.await {
                tracing::debug!(%error, "an HTTP/2 connection to an endpoint ended");
            }
        });
        Ok(Shared {
            sender,
            streams: Arc::default(),
            room,
        })
    }

    async fn dial(&self) -> Result<Wire, NotConnected> {
        let socket = socket::tcp_socket(self.address).map_err(NotConnected::Failed)?;
        if let Some(pod) = self.node.pods.at(self.address.ip()) {
            // Many clients' requests go by it: its application sees the proxy.
            use std::os::fd::AsFd;
            pod.announce(socket.as_fd(), None).map_err(NotConnected::Failed)?;
        }
        let connecting = async {
            match socket::start_connect(socket, self.address)? {
                Connecting::Done(stream) => Ok(stream),
                Connecting::Underway(stream) => socket::finish_connect(stream).await,
            }
        };
        let connected = tokio::time::timeout(self.cluster.connect_timeout, connecting).await;
        let stream = connected
            .map_err(|_| NotConnected::TimedOut)?
            .map_err(NotConnected::Failed)?;
        let keepalive = self.node.snapshot().config.node.keepalive;
        if let Err(error) = socket::set_keepalive(&stream, &keepalive) {
            tracing::debug!(%error, "keepalive could not be set");
        }
        let stream = TcpStream::from_std(stream.into_socket().into()).map_err(NotConnected::Failed)?;
        Ok(Wire::new(Arc::new(stream), Default::default(), Arc::<Moved>::default()))
    }

    fn sweep_later(&self) {
        sweep_later(self.node, self.core);
    }
}

fn failed(error: hyper::Error) -> NotConnected {
    NotConnected::Failed(io::Error::other(error))
}

impl Group {
    fn connections(&self) -> MutexGuard<'_, Vec<Shared>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection with the fewest streams, if it has room for one more (or `anyway`), which is then taken.
    fn least_busy(&self, anyway: bool) -> Option<Shared> {
        let mut connections = self.connections();
        connections.retain(|shared| !shared.sender.is_closed());
        let least = connections
            .iter()
            .min_by_key(|shared| shared.streams.load(Ordering::Relaxed))?;
        let room = STREAMS.min(least.room.load(Ordering::Relaxed));
        if least.streams.load(Ordering::Relaxed) >= room && !anyway {
            return None;
        }
        least.streams.fetch_add(1, Ordering::Relaxed);
        Some(least.clone())
    }

    fn is_full(&self) -> bool {
        self.connections().len() >= HTTP2_CONNECTIONS
    }
}

impl Idle {
    /// Whether it is young, and its task done with the exchange before.
    async fn is_usable(&mut self) -> bool {
        self.since.elapsed() < self.limit
            && matches!(
                tokio::time::timeout(READY_PATIENCE, self.sender.ready()).await,
                Ok(Ok(()))
            )
    }
}

impl Lease {
    /// Notes what tells whether its request was sent whole.
    pub fn sends(&mut self, sent: Sent) {
        self.sent = sent;
    }

    /// The way to send a request by it.
    pub fn sender(&mut self) -> Option<Sender<'_>> {
        self.connection.as_mut().map(|connection| match connection {
            Held::Http1(sender) => Sender::Http1(sender),
            Held::Http2(shared) => Sender::Http2(&mut shared.sender),
        })
    }

    /// Lets others use it: its request is answered whole. One that is answered before it was sent whole takes its connection with it.
    pub fn give_back(mut self) {
        if let Some(Held::Http1(_)) = &self.connection
            && self.sent.is_whole()
            && let Some(Held::Http1(sender)) = self.connection.take()
            && !sender.is_closed()
        {
            let idle = Idle {
                sender,
                since: Instant::now(),
                limit: self.limit,
            };
            let mut pool = self.node.http.pool(self.core);
            pool.http1.entry(self.key.clone()).or_default().push(idle);
            drop(pool);
            sweep_later(&self.node, self.core);
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(Held::Http2(shared)) = &self.connection {
            shared.streams.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// The way to send a request.
pub enum Sender<'a> {
    /// As HTTP/1.1.
    Http1(&'a mut Http1),
    /// As HTTP/2.
    Http2(&'a mut Http2),
}

/// Starts to look for old connections now and then, for as long as there are any.
fn sweep_later(node: &Arc<Node>, core: usize) {
    if std::mem::replace(&mut node.http.pool(core).is_swept, true) {
        return;
    }
    let node = Arc::downgrade(node);
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(SWEEP).await;
            let Some(node) = node.upgrade() else { return };
            let mut pool = node.http.pool(core);
            pool.sweep(&node);
            if pool.http1.is_empty() && pool.http2.is_empty() {
                pool.is_swept = false;
                return;
            }
        }
    });
}

impl Pool {
    /// Closes what is too old, what its peer has closed, and what leads to an endpoint that is no more.
    fn sweep(&mut self, node: &Node) {
        let snapshot = node.snapshot();
        let is_endpoint = |key: &Key| {
            let cluster = snapshot.config.http.cluster(&key.cluster);
            cluster.is_some_and(|cluster| {
                cluster
                    .endpoints()
                    .iter()
                    .any(|endpoint| endpoint.settings.address == key.address)
            })
        };
        self.http1.retain(|key, waiting| {
            let is_endpoint = is_endpoint(key);
            waiting.retain(|idle| is_endpoint && !idle.sender.is_closed() && idle.since.elapsed() < idle.limit);
            !waiting.is_empty()
        });
        self.http2.retain(|key, group| {
            let is_endpoint = is_endpoint(key);
            group.connections().retain(|shared| {
                let is_busy = shared.streams.load(Ordering::Relaxed) > 0;
                !shared.sender.is_closed() && (is_endpoint || is_busy)
            });
            !group.connections().is_empty() || Arc::strong_count(group) > 1
        });
    }
}
