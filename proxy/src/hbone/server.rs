//! Connections of HBONE: to port 15008 of an enrolled pod, or to a waypoint's listener.
//!
//! The kernel steers those of a pod to the pod's inbound listener like any other; that they are for HBONE says the port that they were made to. TLS is
//! its own: a peer that connects to this pod is shown this pod's certificate, and none of another; so it is with a waypoint.
//!
//! **Limits.** A connection has a place among the node's, and one among those of its peer to this pod; its window is cut from the node's budget
//! ([`super::windows`]).
//!
//! **Ends.** A connection that had no streams for a while, or whose certificates no longer stand ([`super::credentials`]), takes no more. When the node drains, and when the pod is no longer enrolled, the peer is told to open no further streams (GOAWAY); a connection whose last stream
//! has ended closes. Flows are told to end by those who end them; what a connection that breaks leaves behind is reset.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use h2::Reason;
use h2::server::{Builder, Connection};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::server::TlsStream;
use underpass_certs::{Lease, ServerTls, Trust};
use underpass_config::HboneSettings;

use super::chunk::Chunk;
use super::credentials::Credentials;
use super::host::Host;
use super::inbound::{self, Peer};
use super::paced::Paced;
use super::streams::Streams;
use super::tunnel::Ends;
use super::windows::{Budget, Valve, Window};
use super::{FRAME, FRAMES_KEPT, HEADERS, SEALED, SEND_BUFFER, pings, windows};
use crate::ending::Ending;
use crate::node::Node;
use crate::session::Session;
use crate::socket;
use crate::source::Source;
use crate::upstream::Refused;

/// For each stream that a connection may have open: those that the peer has reset before we looked at them. Clients that give up do so in bursts; HTTP/2's
/// rapid resets are far more.
const RESET_UNSEEN: usize = 2;

/// For each stream that a connection may have open: those that are being served. One that its peer has reset is no longer open, but is served
/// until its connection to the application is made and closed: who opens and resets without end must not make us connect without end.
pub const SERVED: usize = 2;

/// From the end of the drain until a connection that has not closed is closed.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How long a connection that takes no more streams, and has none, may take to close.
const UNUSED_WORDS: Duration = Duration::from_secs(5);

/// A connection as it was accepted.
#[derive(Debug)]
pub struct Arrival {
    /// The node.
    pub node: Arc<Node>,
    /// What was connected to.
    pub host: Host,
    /// The socket, not yet known to any runtime.
    pub socket: OwnedFd,
    /// The peer's address.
    pub peer: SocketAddr,
    /// Where it connected to.
    pub local: SocketAddr,
    /// The core that serves it.
    pub core: usize,
}

type Http2 = Connection<Paced<TlsStream<TcpStream>>, Chunk>;

/// A connection that may carry streams.
struct Ready {
    connection: Http2,
    credentials: Credentials,
    valve: Valve,
}

/// Serves one connection until it is gone. `tls` is the host's certificate, and whom it believes; none while it is not known who it is.
pub async fn serve(arrival: Arrival, tls: Option<(Arc<Lease>, Arc<Trust>)>) {
    let Arrival {
        node,
        host,
        socket,
        peer,
        local,
        core,
    } = arrival;
    let session = Session {
        node: node.clone(),
        entrance: host.entrance(),
        source: Source::unidentified(peer),
        started: SystemTime::now(),
        core,
    };
    let snapshot = node.snapshot();
    let (limits, hbone) = (snapshot.config.node.limits, snapshot.config.node.hbone);
    let patience = snapshot.config.node.timeouts.handshake;
    drop(snapshot);
    let open = node.flows.open_connections();
    let _place = open.admit(&limits);
    // Whoever has shown no certificate takes a place of those that are nobody.
    let handshaking = open.tenant(None).admit(&limits);
    if _place.is_none() || handshaking.is_none() {
        return refuse(&session, &socket, Ending::ConnectionLimit.into());
    }
    let ready = match shake_hands(socket, tls, patience, &open.tunnels().budget, &hbone).await {
        Ok(ready) => ready,
        Err((ending, detail)) => return session.refuse(&inbound::refused(ending, detail)),
    };
    drop((session, handshaking));
    let peer = Peer {
        ends: Ends { local, peer },
        window: ready.valve.window().clone(),
        credentials: ready.credentials,
        severed: watch::Sender::default(),
        node,
        host,
        core,
    };
    let identity = peer.credentials.peer().identity();
    let tunnels = peer.node.flows.open_connections().tunnels();
    match tunnels
        .peers
        .admit(peer.host.key(), identity, hbone.connections_per_peer)
    {
        Some(_place) => serve_streams(Arc::new(peer), ready.connection, ready.valve, &hbone).await,
        None => turn_away(&peer, ready.connection, &hbone).await,
    }
}

fn refuse(session: &Session, socket: &OwnedFd, refused: Refused) {
    socket::reset_on_close(socket);
    session.refuse(&refused);
}

/// Ends the connection of a peer that has all it may have.
async fn turn_away(peer: &Peer, mut connection: Http2, hbone: &HboneSettings) {
    let identity = peer.credentials.peer().identity();
    let detail = format!(
        "node.hbone.connections_per_peer: {identity} has {} to {}",
        hbone.connections_per_peer,
        peer.host.word(),
    );
    let session = peer.session(&peer.node.snapshot().config);
    session.refuse(&inbound::refused(Ending::ConnectionLimit, detail));
    connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
    let _ = tokio::time::timeout(LAST_WORDS, poll_fn(|cx| connection.poll_closed(cx))).await;
}

/// TLS and the beginning of HTTP/2, which take `patience` at most, and as much again where our own certificate is yet to come.
async fn shake_hands(
    socket: OwnedFd,
    tls: Option<(Arc<Lease>, Arc<Trust>)>,
    patience: Duration,
    budget: &Arc<Budget>,
    hbone: &HboneSettings,
) -> Result<Ready, (Ending, String)> {
    let failed = |detail: String| (Ending::HandshakeFailed, detail);
    let (certificate, trust) =
        tls.ok_or_else(|| failed("no_certificate: it is not known who is connected to".into()))?;
    // Our own lack of one is not the peer's slowness: each has its time.
    let own = certificate.ready(patience).await;
    let own = own.map_err(|unavailable| failed(format!("no_certificate: {unavailable}")))?;
    let handshake = async {
        let slot = certificate.slot().clone();
        let tls = ServerTls::new(slot.clone(), trust.clone()).map_err(|error| failed(format!("tls: {error}")))?;
        let stream = TcpStream::from_std(socket.into()).map_err(|error| failed(format!("handshake_io: {error}")))?;
        let (mut stream, verified) = tls
            .accept(stream)
            .await
            .map_err(|error| failed(format!("{}: {error}", error.reason())))?;
        stream.get_mut().1.set_buffer_limit(Some(SEALED));
        // Of a peer that is known: nobody else gets anything of the budget.
        let window = Window::new(budget, hbone, verified.identity())
            .map_err(|spent| (Ending::ConnectionLimit, spent.to_string()))?;
        let connection = settings(hbone)
            .handshake(Paced::new(stream))
            .await
            .map_err(|error| failed(format!("http2: {error}")))?;
        Ok(Ready {
            connection,
            credentials: Credentials::new(verified, own, slot, trust),
            valve: Valve::new(window),
        })
    };
    let in_time = tokio::time::timeout(patience, handshake).await;
    in_time.unwrap_or_else(|_| Err(failed("handshake_timeout: the peer took too long".into())))
}

/// How a server of HBONE speaks HTTP/2.
pub fn settings(hbone: &HboneSettings) -> Builder {
    let mut settings = Builder::new();
    settings
        .initial_window_size(hbone.stream_window.0)
        .initial_connection_window_size(windows::LEAST)
        .max_frame_size(FRAME)
        .max_concurrent_streams(hbone.streams)
        .max_header_list_size(HEADERS)
        .max_send_buffer_size(SEND_BUFFER)
        .data_frame_budget(FRAMES_KEPT)
        .max_pending_accept_reset_streams(RESET_UNSEEN * hbone.streams as usize);
    settings
}

async fn serve_streams(peer: Arc<Peer>, mut connection: Http2, mut valve: Valve, hbone: &HboneSettings) {
    let streams = Arc::new(Streams::default());
    let most = SERVED * hbone.streams as usize;
    let mut unanswered = pin!(pings::unanswered(connection.ping_pong(), hbone.ping, || streams.busy()));
    let mut retired = pin!(retired(&peer, &streams, hbone));
    let mut severed = pin!(peer.credentials.lapsed(|lapsed| lapsed.resets(hbone)));
    let mut ended = pin!(told_to_end(&peer));
    let mut deadline = pin!(tokio::time::sleep(Duration::MAX));
    let (mut is_retired, mut is_ending, mut is_severed) = (false, false, false);
    loop {
        tokio::select! {
            accepted = connection.accept() => match accepted {
                Some(Ok((_, mut respond))) if streams.open() >= most => respond.send_reset(Reason::ENHANCE_YOUR_CALM),
                Some(Ok((request, respond))) => {
                    let (peer, place) = (peer.clone(), streams.enter());
                    tokio::spawn(async move {
                        inbound::serve(peer, request, respond).await;
                        drop(place);
                    });
                }
                Some(Err(error)) => {
                    tracing::debug!(peer = %peer.ends.peer, %error, "an HBONE connection broke");
                    return;
                }
                None => return,
            },
            size = valve.changed() => connection.set_target_window_size(size),
            why = &mut retired, if !is_retired => {
                tracing::debug!(peer = %peer.ends.peer, why, "an HBONE connection takes no more streams");
                is_retired = true;
                connection.graceful_shutdown();
            }
            lapsed = &mut severed, if !is_severed => {
                tracing::info!(peer = %peer.ends.peer, %lapsed, "the streams of an HBONE connection are reset");
                is_severed = true;
                peer.sever(Ending::CertificateLapsed);
                connection.graceful_shutdown();
                deadline.set(tokio::time::sleep(LAST_WORDS));
            }
            patience = &mut ended, if !is_ending => {
                is_ending = true;
                connection.graceful_shutdown();
                if !is_severed {
                    deadline.set(tokio::time::sleep(patience));
                }
            }
            () = &mut deadline, if is_ending || is_severed => return,
            // It closes by itself, unless its peer ignores what it is told.
            () = streams.unused_for(UNUSED_WORDS), if is_retired => return,
            () = &mut unanswered => {
                tracing::info!(peer = %peer.ends.peer, "an HBONE peer does not answer; its connection is closed");
                return;
            }
        }
    }
}

/// Resolves when a connection is to take no further streams, but those that it has may go on, with the reason.
async fn retired(peer: &Peer, streams: &Streams, hbone: &HboneSettings) -> String {
    tokio::select! {
        lapsed = peer.credentials.lapsed(|_| true) => lapsed.to_string(),
        () = streams.unused_for(hbone.idle) => "it had none for node.hbone.idle".to_owned(),
    }
}

/// Resolves when there are to be no further streams, with how long those that are open have.
async fn told_to_end(peer: &Peer) -> Duration {
    tokio::select! {
        () = peer.node.drain_started() => peer.node.snapshot().config.node.timeouts.drain + LAST_WORDS,
        // Its flows have been told to end by then.
        () = peer.host.removed() => LAST_WORDS,
    }
}
