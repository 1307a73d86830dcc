//! Connections to port 15008 of an enrolled pod.
//!
//! The kernel steers them to the pod's inbound listener like any other; that they are for HBONE says the port that they were made to. TLS is
//! the pod's own: a peer that connects to this pod is shown this pod's certificate, and none of another.
//!
//! **Ends.** When the node drains, and when the pod is no longer enrolled, the peer is told to open no further streams (GOAWAY); a connection whose last stream
//! has ended closes. Flows are told to end by those who end them; what a connection that breaks leaves behind is reset.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use h2::Reason;
use h2::server::{Builder, Connection};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use underpass_certs::{Lease, ServerTls, Trust, VerifiedPeer};

use super::chunk::Chunk;
use super::inbound::{self, Peer};
use super::streams::Streams;
use super::tunnel::Ends;
use super::{CONNECTION_WINDOW, FRAME, HEADERS, SEND_BUFFER, STREAM_WINDOW, STREAMS, pings};
use crate::capture::Pod;
use crate::ending::Ending;
use crate::entrance::Entrance;
use crate::node::Node;
use crate::session::Session;
use crate::socket;
use crate::source::Source;
use crate::upstream::Refused;

/// Streams that the peer has reset before we looked at them: clients that give up do so in bursts; HTTP/2's rapid resets are far more.
const RESET_UNSEEN: usize = 2 * STREAMS as usize;

/// Streams of a connection that are being served. A stream that its peer has reset is no longer one of the [`STREAMS`] that it may have open, but is served
/// until its connection to the application is made and closed: who opens and resets without end must not make us connect without end.
pub const SERVED: usize = 2 * STREAMS as usize;

/// From the end of the drain until a connection that has not closed is closed.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A connection as it was accepted.
#[derive(Debug)]
pub struct Arrival {
    /// The node.
    pub node: Arc<Node>,
    /// The pod that was connected to.
    pub pod: Arc<Pod>,
    /// The socket, not yet known to any runtime.
    pub socket: OwnedFd,
    /// The peer's address.
    pub peer: SocketAddr,
    /// Where it connected to.
    pub local: SocketAddr,
    /// The core that serves it.
    pub core: usize,
}

type Http2 = Connection<TlsStream<TcpStream>, Chunk>;

/// Serves one connection until it is gone. `tls` is the pod's certificate, and whom it believes; none while the mesh does not know the pod.
pub async fn serve(arrival: Arrival, tls: Option<(Arc<Lease>, Arc<Trust>)>) {
    let Arrival {
        node,
        pod,
        socket,
        peer,
        local,
        core,
    } = arrival;
    let session = Session {
        node: node.clone(),
        entrance: Entrance::Hbone(pod.clone()),
        source: Source::unidentified(peer),
        started: SystemTime::now(),
        core,
    };
    let limits = node.snapshot().config.node.limits;
    let open = node.flows.open_connections();
    let _place = open.admit(&limits);
    // Whoever has shown no certificate takes a place of those that are nobody.
    let handshaking = open.tenant(None).admit(&limits);
    if _place.is_none() || handshaking.is_none() {
        return refuse(&session, &socket, Ending::ConnectionLimit.into());
    }
    let patience = node.snapshot().config.node.timeouts.handshake;
    let (connection, verified) = match shake_hands(socket, tls, patience).await {
        Ok(ready) => ready,
        Err(detail) => {
            return session.refuse(&Refused {
                ending: Ending::HandshakeFailed,
                detail: Some(detail),
                target: None,
            });
        }
    };
    drop((session, handshaking));
    let peer = Peer {
        node,
        pod,
        verified,
        ends: Ends { local, peer },
        core,
    };
    serve_streams(Arc::new(peer), connection).await;
}

fn refuse(session: &Session, socket: &OwnedFd, refused: Refused) {
    socket::reset_on_close(socket);
    session.refuse(&refused);
}

/// TLS and the beginning of HTTP/2, in time.
async fn shake_hands(
    socket: OwnedFd,
    tls: Option<(Arc<Lease>, Arc<Trust>)>,
    patience: Duration,
) -> Result<(Http2, VerifiedPeer), String> {
    let (certificate, trust) = tls.ok_or("no_certificate: the mesh does not know who this pod is")?;
    let handshake = async {
        let ready = certificate.ready(patience).await;
        ready.map_err(|unavailable| format!("no_certificate: {unavailable}"))?;
        let tls = ServerTls::new(certificate.slot().clone(), trust).map_err(|error| format!("tls: {error}"))?;
        let stream = TcpStream::from_std(socket.into()).map_err(|error| format!("handshake_io: {error}"))?;
        let (stream, verified) = tls
            .accept(stream)
            .await
            .map_err(|error| format!("{}: {error}", error.reason()))?;
        let connection = settings()
            .handshake(stream)
            .await
            .map_err(|error| format!("http2: {error}"))?;
        Ok((connection, verified))
    };
    let in_time = tokio::time::timeout(patience, handshake).await;
    in_time.unwrap_or_else(|_| Err("handshake_timeout: the peer took too long".into()))
}

/// How a server of HBONE speaks HTTP/2.
pub fn settings() -> Builder {
    let mut settings = Builder::new();
    settings
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME)
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(HEADERS)
        .max_send_buffer_size(SEND_BUFFER)
        .max_pending_accept_reset_streams(RESET_UNSEEN);
    settings
}

async fn serve_streams(peer: Arc<Peer>, mut connection: Http2) {
    let streams = Arc::new(Streams::default());
    let mut unanswered = pin!(pings::unanswered(connection.ping_pong(), || streams.busy()));
    let mut ended = pin!(told_to_end(&peer));
    let mut deadline = pin!(tokio::time::sleep(Duration::MAX));
    let mut is_ending = false;
    loop {
        tokio::select! {
            accepted = connection.accept() => match accepted {
                Some(Ok((_, mut respond))) if streams.open() >= SERVED => respond.send_reset(Reason::ENHANCE_YOUR_CALM),
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
            patience = &mut ended, if !is_ending => {
                is_ending = true;
                connection.graceful_shutdown();
                deadline.set(tokio::time::sleep(patience));
            }
            () = &mut deadline, if is_ending => return,
            () = &mut unanswered => {
                tracing::info!(peer = %peer.ends.peer, "an HBONE peer does not answer; its connection is closed");
                return;
            }
        }
    }
}

/// Resolves when there are to be no further streams, with how long those that are open have.
async fn told_to_end(peer: &Peer) -> Duration {
    tokio::select! {
        () = peer.node.drain_started() => peer.node.snapshot().config.node.timeouts.drain + LAST_WORDS,
        // Its flows have been told to end by then.
        () = peer.pod.removed() => LAST_WORDS,
    }
}
