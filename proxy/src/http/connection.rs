//! A client's connection of HTTP: accepted and judged as any other, and ended as any other.
//!
//! It is in the flow table under the address that it came to, and under each endpoint that its client was let to (`permit`). What ends one of
//! these ends it. A drain lets the requests that it has finish, and those that were sent before their client could know: `Connection: close` and a little
//! patience, GOAWAY.

use std::convert::Infallible;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::header::UPGRADE;
use http::{Method, Request};
use hyper::body::{Body, Incoming};
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::time::Instant;
use underpass_config::{Decision, NodeSettings, Text, Verdict};

use super::arriving::Arriving;
use super::codec::{Codec, Io, codec_of_http1};
use super::counting::Counting;
use super::detection::detected;
use super::downstream::{Downstream, Way};
use super::exchange;
use super::farewell::linger;
use super::filters::{SettledOnce, judge_connection};
use super::parking::{OpenBodies, Parked};
use super::permit::Permits;
use super::sniff::{Protocol, sniff};
use super::streams::Streams;
use super::tunnel::{Broke, End, Tunnel};
use super::wire::Moved;
use crate::authorization::judge;
use crate::ending::Ending;
use crate::flow::FlowFacts;
use crate::flow_table::{FlowGuard, PathEnds};
use crate::session::Session;
use crate::socket;
use crate::telemetry::RequestCounts;
use crate::upstream::Refused;

/// A client that has asked for nothing when the node drains is waited for so long: a request that is on its way would be lost with the connection, and a client that is
/// answered is told not to come again.
const LAST_WORD: Duration = Duration::from_secs(1);
/// Of the time that a drain has, such a part is for farewells: what came before has its own.
const FAREWELLS: u32 = 4;
/// Of the time that a connection may be idle, so often it is looked at.
const LOOKS: u32 = 8;
/// A connection of HTTP/1.1 by which nothing has come for so long is parked.
const UNUSED: Duration = Duration::from_secs(1);

/// A connection that requests come by.
#[derive(Debug)]
pub struct Connection {
    /// Who opened it.
    pub session: Session,
    /// Where it came to.
    pub local: SocketAddr,
    /// The table that its requests are routed by.
    pub routes: Text,
    /// Which endpoints it may reach.
    pub permits: Permits,
    open: AtomicU32,
    ended: AtomicU32,
    /// While there is one, only the codec knows where it ends: the connection is not parked.
    bodies: OpenBodies,
    switched: Mutex<Option<Switched>>,
    /// Why the proxy has ended it, once it has.
    ending: OnceLock<Ending>,
    counted: Mutex<Vec<([Text; 3], Arc<RequestCounts>)>>,
    /// The same for Istio's metrics.
    pub counting: Counting,
    /// What the filters of its table know of it.
    pub settled: SettledOnce,
}

/// What a connection of HTTP/1.1 becomes.
#[derive(Debug)]
struct Switched {
    downstream: OnUpgrade,
    tunnel: Box<Tunnel>,
}

impl Connection {
    /// Notes that a request came.
    pub fn request_began(&self) {
        self.open.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes that one is over.
    pub fn request_ended(&self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
        self.ended.fetch_add(1, Ordering::Relaxed);
    }

    /// Why the proxy has ended it, if it has.
    pub fn ending(&self) -> Option<Ending> {
        self.ending.get().copied()
    }

    fn switched(&self) -> std::sync::MutexGuard<'_, Option<Switched>> {
        self.switched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The counters of a route and cluster, looked up once for a connection.
    pub fn counts(&self, host: &str, route: &str, cluster: &str) -> Arc<RequestCounts> {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let names = [host, route, cluster];
        if let Some((_, counts)) = counted
            .iter()
            .find(|(known, _)| known.iter().map(|name| &**name).eq(names))
        {
            return counts.clone();
        }
        let names = names.map(Text::from);
        let counts = self
            .session
            .node
            .telemetry
            .requests
            .of(self.session.entrance.name(), &names);
        counted.push((names, counts.clone()));
        counts
    }
}

/// A connection that turned out to speak no HTTP: it has a destination as any other, which `early` is to be sent first.
#[derive(Debug)]
pub struct OfTcp {
    /// Who opened it.
    pub session: Session,
    /// What the client came by.
    pub downstream: Downstream,
    /// What has been read of it.
    pub early: Vec<u8>,
}

/// Serves a client until it is gone. `routes` names the table that its requests are routed by. With a `patience`, whatever
/// does not show itself to be HTTP in that time is given back (zero: in its own time).
pub async fn serve(
    session: Session,
    downstream: Downstream,
    local: SocketAddr,
    routes: Text,
    patience: Option<Duration>,
) -> Option<OfTcp> {
    let settings = session.node.snapshot().config.node.clone();
    let moved = Arc::default();
    let way = Way::new(downstream, &moved);
    let guard = match enter(&session, local, &settings) {
        Ok(guard) => guard,
        Err(refused) => {
            way.reset_on_close();
            session.refuse(&refused);
            return None;
        }
    };
    let detected = match patience {
        None => None,
        Some(patience) => match detected(&session, &guard, &way, &settings, patience).await {
            Ok((Protocol::Neither, early)) => {
                // It is entered anew, as what it is.
                guard.abandon();
                let downstream = way.into_downstream()?;
                // By a tunnel it is led to a chain that has rules of its own.
                if let Downstream::Socket(socket) = &downstream
                    && let Err(why) = judge_connection(&session, local, &routes)
                {
                    socket::reset_on_close(socket);
                    session.refuse(&Refused {
                        detail: Some(why),
                        ..Ending::PolicyDenied.into()
                    });
                    return None;
                }
                return Some(OfTcp {
                    session,
                    downstream,
                    early,
                });
            }
            Ok((protocol, early)) => Some((protocol, early.into())),
            Err(refused) => {
                guard.abandon();
                way.reset_on_close();
                session.refuse(&refused);
                return None;
            }
        },
    };
    let connection = Arc::new(Connection {
        session,
        local,
        routes,
        permits: Permits::default(),
        open: AtomicU32::new(0),
        ended: AtomicU32::new(0),
        bodies: OpenBodies::default(),
        switched: Mutex::default(),
        ending: OnceLock::new(),
        counted: Mutex::default(),
        counting: Counting::default(),
        settled: SettledOnce::default(),
    });
    let serving = Serving {
        connection: &connection,
        guard: &guard,
        way: &way,
        moved,
        settings: &settings,
    };
    if let Err(ending) = serving.run(detected).await {
        tracing::debug!(peer = %connection.session.source.address(), %ending, "an HTTP connection was ended");
        way.reset_on_close();
    }
    // What is still there of a switch holds the connection, which holds it.
    let unfinished = connection.switched().take();
    drop(unfinished);
    connection.permits.forget();
    guard.abandon();
    None
}

/// How long a client that has asked for nothing is waited for when the node drains.
pub fn last_word(settings: &NodeSettings) -> Duration {
    LAST_WORD.min(settings.timeouts.drain / 2)
}

/// Judges a connection to where it came to, and enters it in the table.
fn enter(session: &Session, local: SocketAddr, settings: &NodeSettings) -> Result<FlowGuard, Refused> {
    loop {
        let snapshot = session.node.snapshot();
        let config = &snapshot.config;
        let source = session.source.refreshed(&config.mesh, &config.node);
        let destination = config.mesh.workload_at(&config.node.network, local.ip());
        // A waypoint's clients are judged by its chains; where they are led to judges the waypoint.
        let is_judged_elsewhere = session.entrance.is_waypoint();
        let verdict = match is_judged_elsewhere {
            true => Verdict::allowed(),
            false => judge(config, &source, local, destination.map(|workload| &**workload)),
        };
        let policy = match verdict.decision {
            Decision::Allow { policy } => policy,
            Decision::Deny { why, .. } => {
                return Err(Refused {
                    detail: Some(why.to_string()),
                    ..Ending::PolicyDenied.into()
                });
            }
        };
        let ends = PathEnds::new(source.workload(), destination, None, &config.node);
        let facts = FlowFacts {
            listener: session.entrance.name().clone(),
            pod: None,
            source,
            destination: local,
            destination_workload: destination.cloned(),
            service: None,
            policy,
            tunnel: None,
            is_judged_elsewhere,
            chain: None,
        };
        let guard = session
            .node
            .flows
            .open(session.core, ends, facts, session.started, settings)?;
        if session.node.is_closed() {
            guard.abandon();
            return Err(Ending::Drained.into());
        }
        if session.node.is_current(&snapshot) {
            return Ok(guard);
        }
        guard.abandon();
    }
}

struct Serving<'a> {
    connection: &'a Arc<Connection>,
    guard: &'a FlowGuard,
    way: &'a Way,
    moved: Arc<Moved>,
    settings: &'a NodeSettings,
}

impl Serving<'_> {
    /// Serves it to its end. `detected`: what it speaks, and what was read of it, where that is known.
    ///
    /// # Errors
    /// When it is to be reset.
    async fn run(&self, detected: Option<(Protocol, Bytes)>) -> Result<(), Ending> {
        let timeouts = &self.settings.timeouts;
        let sniffing = async {
            match detected {
                Some(detected) => Some(detected),
                None => sniff(self.way, timeouts.idle, timeouts.handshake).await,
            }
        };
        let sniffed = tokio::select! {
            biased;
            ending = self.ended() => return Err(ending),
            // A request that has come is served, drained or not.
            sniffed = sniffing => sniffed,
            () = self.drained_in_silence() => return Ok(()),
        };
        let Some((protocol, early)) = sniffed else {
            return Ok(());
        };
        self.moved.count_read(early.len());
        let is_in_use = match protocol {
            Protocol::Http1 => self.http1_while_used(early).await?,
            Protocol::Http2 => {
                Box::pin(self.http2(early)).await?;
                false
            }
            Protocol::Neither => {
                tracing::debug!(peer = %self.connection.session.source.address(), "a connection began with what is no HTTP");
                return Ok(());
            }
        };
        let switched = self.connection.switched().take();
        match switched {
            Some(switched) => Box::pin(self.tunnel(switched)).await,
            None => match self.way.socket() {
                // A stream of HBONE sees to that itself.
                Some(socket) if is_in_use => tokio::select! {
                    biased;
                    ending = self.ended() => Err(ending),
                    () = Box::pin(linger(socket, self.hurried())) => Ok(()),
                },
                _ => Ok(()),
            },
        }
    }

    fn io(&self, early: Bytes) -> Io {
        TokioIo::new(self.way.carry(early, &self.moved))
    }

    /// HTTP/1.1, without a codec while nobody asks anything. Whether its end may find the client sending, or reading an answer.
    async fn http1_while_used(&self, mut unread: Bytes) -> Result<bool, Ending> {
        while let Some(parked) = Box::pin(self.http1(unread)).await? {
            if !self.asked_again(parked.since).await? {
                return Ok(false);
            }
            unread = parked.unread;
        }
        Ok(true)
    }

    /// Waits, holding little but the socket, until there is something to read; false: nothing came in the time that it may be idle, or until
    /// the node drained.
    async fn asked_again(&self, idle_since: Instant) -> Result<bool, Ending> {
        let _parked = self.connection.session.node.flows.open_connections().park();
        let end = idle_since + self.settings.timeouts.idle;
        tokio::select! {
            biased;
            ending = self.ended() => Err(ending),
            readable = poll_fn(|cx| self.way.poll_readable(cx)) => Ok(readable.is_ok()),
            () = self.drained_in_silence() => Ok(false),
            () = tokio::time::sleep_until(end) => Ok(false),
        }
    }

    async fn http1(&self, early: Bytes) -> Result<Option<Parked>, Ending> {
        let connection = self.connection.clone();
        let service = service_fn(move |mut request: Request<Incoming>| {
            let may_switch = *request.method() == Method::CONNECT || request.headers().contains_key(UPGRADE);
            let on_upgrade = may_switch.then(|| hyper::upgrade::on(&mut request));
            let connection = connection.clone();
            async move {
                let request = request.map(|body| match body.is_end_stream() {
                    true => Arriving::Nothing,
                    false => Arriving::Asked {
                        body,
                        _open: connection.bodies.one_more(),
                    },
                });
                let served = exchange::serve(connection.clone(), request).await;
                if let (Some(tunnel), Some(downstream)) = (served.tunnel, on_upgrade) {
                    *connection.switched() = Some(Switched { downstream, tunnel });
                }
                Ok::<_, Infallible>(served.response)
            }
        });
        let unread = early.len();
        let codec = codec_of_http1()
            .serve_connection(self.io(early), service)
            .with_upgrades();
        let watch = Watch::new(self, true, unread);
        self.drive(codec, watch).await
    }

    async fn http2(&self, early: Bytes) -> Result<Option<Parked>, Ending> {
        let watch = Watch::new(self, false, 0);
        let carried = self.way.carry(early, &self.moved);
        self.drive(Streams::new(self.connection.clone(), carried), watch).await
    }

    /// Lets a codec work until it is done, has nothing to do (its connection is parked), or is to be reset.
    async fn drive(&self, mut codec: impl Codec, mut watch: Watch<'_>) -> Result<Option<Parked>, Ending> {
        let has_slow_heads = watch.has_slow_heads;
        let drained = async {
            match has_slow_heads {
                // Each answer says from now on that it is the last.
                true => self.drained_in_silence().await,
                // GOAWAY first says only that nothing new is to be begun (RFC 9113, section 6.8).
                false => self.connection.session.node.drain_started().await,
            }
        };
        let mut drained = pin!(drained);
        let mut is_finishing = false;
        loop {
            tokio::select! {
                biased;
                ending = self.ended() => return Err(ending),
                result = poll_fn(|cx| Pin::new(&mut codec).poll_done(cx)) => {
                    if let Err(error) = result {
                        tracing::debug!(peer = %self.connection.session.source.address(), %error, "an HTTP connection broke");
                    }
                    return Ok(None);
                }
                () = &mut drained, if !is_finishing => {
                    is_finishing = true;
                    Pin::new(&mut codec).finish();
                }
                silence = watch.silent() => match silence {
                    Silence::Unused(_) if is_finishing || self.connection.bodies.count() > 0 || self.way.socket().is_none() => {}
                    Silence::Unused(since) => return Ok(codec.into_unread().map(|unread| Parked { unread, since })),
                    Silence::Idle if !is_finishing => {
                        is_finishing = true;
                        Pin::new(&mut codec).finish();
                    }
                    Silence::Idle | Silence::Stuck => return Err(self.end(Ending::IdleTimeout)),
                    Silence::SlowHead => return Err(self.end(Ending::HandshakeFailed)),
                },
            }
        }
    }

    /// Resolves when the node drains and the client has asked for nothing for a while.
    async fn drained_in_silence(&self) {
        let (connection, patience) = (self.connection, last_word(self.settings));
        connection.session.node.drain_started().await;
        let mut before = connection.ended.load(Ordering::Relaxed);
        loop {
            tokio::time::sleep(patience).await;
            let ended = connection.ended.load(Ordering::Relaxed);
            if connection.open.load(Ordering::Relaxed) == 0 && ended == before {
                return;
            }
            before = ended;
        }
    }

    /// Resolves when a drain has waited long enough for a client that has all that it gets.
    async fn hurried(&self) {
        self.connection.session.node.drain_started().await;
        tokio::time::sleep(self.settings.timeouts.drain / FAREWELLS).await;
    }

    async fn tunnel(&self, switched: Switched) -> Result<(), Ending> {
        let running = async {
            let upgraded = switched.downstream.await.map_err(|_| Broke::Client)?;
            let client = End::of_client(upgraded).map_err(|_| Broke::Client)?;
            switched.tunnel.run(client).await
        };
        let result = tokio::select! {
            biased;
            ending = self.ended() => return Err(ending),
            result = running => result,
        };
        result.map_err(|broke| match broke {
            Broke::Client => Ending::DownstreamReset,
            Broke::Endpoint => Ending::UpstreamReset,
            Broke::Idle | Broke::Stalled | Broke::Lasted | Broke::StreamLasted => Ending::IdleTimeout,
        })
    }

    /// Resolves when it has to end: policy, or the drain's deadline.
    async fn ended(&self) -> Ending {
        let ending = poll_fn(|cx| {
            if let Poll::Ready(ending) = self.guard.flow().poll_end(cx) {
                return Poll::Ready(ending);
            }
            self.connection.permits.poll_revoked(cx)
        });
        self.end(ending.await)
    }

    /// Notes why, before what is open is dropped for it: its requests tell the same.
    fn end(&self, ending: Ending) -> Ending {
        *self.connection.ending.get_or_init(|| ending)
    }
}

/// What a connection does that does nothing.
enum Silence {
    /// It has no request, has had one, and nothing has moved since this time; a codec of HTTP/1.1 has nothing to do.
    Unused(Instant),
    /// It has no request.
    Idle,
    /// It has a request, and nothing moves.
    Stuck,
    /// The head of a request has begun, and does not end.
    SlowHead,
}

/// Looks at a connection now and then.
struct Watch<'a> {
    serving: &'a Serving<'a>,
    has_slow_heads: bool,
    moved: u64,
    moved_at: Instant,
    /// The last request's end, and what had been read then.
    ended: u32,
    read: u64,
    began_at: Option<Instant>,
    next: Instant,
}

impl<'a> Watch<'a> {
    /// Looks at a codec that begins now, with bytes that were read and are `unread`.
    fn new(serving: &'a Serving<'a>, has_slow_heads: bool, unread: usize) -> Self {
        let now = Instant::now();
        let read = serving.moved.read();
        let mut watch = Self {
            serving,
            has_slow_heads,
            moved: serving.moved.total(),
            moved_at: now,
            ended: serving.connection.ended.load(Ordering::Relaxed),
            read: read.saturating_sub(unread as u64),
            began_at: Some(now),
            next: now,
        };
        watch.next = now + watch.interval();
        watch
    }

    fn interval(&self) -> Duration {
        let timeouts = &self.serving.settings.timeouts;
        timeouts.idle.min(timeouts.handshake) / LOOKS
    }

    /// Resolves when it has been silent for too long.
    async fn silent(&mut self) -> Silence {
        loop {
            tokio::time::sleep_until(self.next).await;
            let now = Instant::now();
            self.next = now + self.interval();
            if let Some(silence) = self.look(now) {
                return silence;
            }
        }
    }

    fn look(&mut self, now: Instant) -> Option<Silence> {
        let Serving {
            connection,
            moved,
            settings,
            ..
        } = self.serving;
        let open = connection.open.load(Ordering::Relaxed);
        let total = moved.total();
        if total != self.moved {
            self.moved = total;
            self.moved_at = now;
        }
        let ended = connection.ended.load(Ordering::Relaxed);
        if open > 0 || ended != self.ended {
            self.ended = ended;
            self.read = moved.read();
            self.began_at = None;
        } else if self.has_slow_heads && moved.read() > self.read {
            let began_at = *self.began_at.get_or_insert(now);
            if now.duration_since(began_at) >= settings.timeouts.handshake {
                return Some(Silence::SlowHead);
            }
        }
        let silent = now.duration_since(self.moved_at);
        if silent >= settings.timeouts.idle {
            return Some(match open {
                0 => Silence::Idle,
                _ => Silence::Stuck,
            });
        }
        let is_between = ended > 0 && open == 0 && moved.read() == self.read && !moved.is_stuck();
        (self.has_slow_heads && is_between && silent >= UNUSED).then_some(Silence::Unused(self.moved_at))
    }
}
