//! One CONNECT stream: the steps of any inbound connection, answered with a status.
//!
//! The client is the peer that the handshake verified, at the address that its connection comes from. Where it may go says [`target`].

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::SystemTime;

use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{Request, Response, StatusCode};
use tokio::sync::watch;
use underpass_config::{Config, Destination, NodeSettings};

use super::backlog::Backlog;
use super::chunk::Chunk;
use super::credentials::Credentials;
use super::host::Host;
use super::relay::{TunnelIs, relay};
use super::target::{self, Target};
use super::tunnel::{Ends, Tunnel};
use super::windows::{Held, Window};
use super::{connect, proxy_protocol, waypoint};
use crate::ending::Ending;
use crate::node::Node;
use crate::session::Session;
use crate::socket::{self, TcpQuality};
use crate::source::Source;
use crate::stream::Stream;
use crate::upstream::{Connected, NamedBy, Refused, Upstream};

/// What the streams of a connection have in common.
#[derive(Debug)]
pub struct Peer {
    /// The node.
    pub node: Arc<Node>,
    /// What was connected to.
    pub host: Host,
    /// Who connected, and what both have shown.
    pub credentials: Credentials,
    /// The connection's window.
    pub window: Arc<Window>,
    /// Why its streams are to end, once they are.
    pub severed: watch::Sender<Option<Ending>>,
    /// From where to where.
    pub ends: Ends,
    /// The core that serves the connection.
    pub core: usize,
}

impl Peer {
    /// What is told of one of its streams.
    pub fn session(&self, config: &Config) -> Session {
        let verified = self.credentials.peer();
        Session {
            node: self.node.clone(),
            entrance: self.host.entrance(),
            source: Source::verified(&config.mesh, &config.node, verified, self.ends.peer),
            started: SystemTime::now(),
            core: self.core,
        }
    }

    /// Has all its streams end.
    pub fn sever(&self, ending: Ending) {
        self.severed.send_replace(Some(ending));
    }

    /// Resolves when its streams are to end.
    pub async fn severing(&self) -> Ending {
        let mut severed = self.severed.subscribe();
        // The sender lives as long as the peer, so this waits for the value.
        let ending = severed.wait_for(Option::is_some).await.ok().and_then(|ending| *ending);
        ending.unwrap_or(Ending::DownstreamReset)
    }
}

/// Serves one stream until it is gone.
pub async fn serve(peer: Arc<Peer>, request: Request<RecvStream>, mut respond: SendResponse<Chunk>) {
    let snapshot = peer.node.snapshot();
    let (config, settings) = (&snapshot.config, snapshot.config.node.clone());
    let mut session = peer.session(config);
    let descriptions = &peer.node.flows.open_connections().tunnels().descriptions;
    let identity = peer.credentials.peer().identity();
    let described = descriptions.of(request.headers(), identity, &peer.host, config);
    session.source = session.source.with_description(described);
    if let Err(lapsed) = peer.credentials.check() {
        session.refuse(&refused(Ending::HandshakeFailed, lapsed.to_string()));
        // It was not looked at: who is still who he was asks again, on a new connection.
        return respond.send_reset(Reason::REFUSED_STREAM);
    }
    let Some(_place) = peer.node.flows.open_connections().admit(&settings.limits) else {
        let refused = Ending::ConnectionLimit.into();
        session.refuse(&refused);
        return answer_refusal(respond, &refused);
    };
    match &peer.host {
        Host::Waypoint(_) => {
            drop(snapshot);
            Box::pin(waypoint::serve(&peer, session, request, respond)).await;
        }
        Host::Pod(pod) => {
            let target = target::of(config, pod, &request);
            drop(snapshot);
            to_pod(&peer, (session, &settings), target, request, respond).await;
        }
    }
}

/// Connects to an application of the pod that the stream came to, and carries its bytes.
async fn to_pod(
    peer: &Peer,
    (session, settings): (Session, &NodeSettings),
    target: Result<Target, Refused>,
    request: Request<RecvStream>,
    respond: SendResponse<Chunk>,
) {
    let target = match target {
        Ok(target) => target,
        Err(refused) => {
            session.refuse(&refused);
            return answer_refusal(respond, &refused);
        }
    };
    let connecting = session.request(NamedBy::Us);
    let (mut request, mut early) = (request, Early::new(peer.window.clone()));
    let destination = Destination::Address(target.address);
    let connecting = Box::pin(connecting.connect(&destination));
    let connected = match early.read_while(connecting, request.body_mut()).await {
        Ok(connected) => connected,
        Err(refused) => {
            session.log_refused(&refused);
            return answer_refusal(respond, &refused);
        }
    };
    let stream = (request.into_body(), respond, early);
    Box::pin(carry(&session, settings, connected, target, stream, peer)).await;
}

/// What a client sends before it knows that it is connected.
pub(super) struct Early {
    bytes: Backlog,
    held: Held,
}

impl Early {
    pub(super) fn new(window: Arc<Window>) -> Self {
        Self {
            bytes: Backlog::default(),
            held: Held::new(window),
        }
    }

    /// Waits for `connecting`, and reads meanwhile what comes, as a relay whose receiver does not read does.
    pub(super) async fn read_while<T>(
        &mut self,
        mut connecting: Pin<Box<impl Future<Output = T>>>,
        body: &mut RecvStream,
    ) -> T {
        let mut is_open = true;
        poll_fn(|cx| {
            while is_open {
                match body.poll_data(cx) {
                    Poll::Ready(Some(Ok(bytes))) => {
                        self.held.received(bytes.len());
                        self.bytes.push(bytes);
                        self.bytes.keep();
                    }
                    // Its end, or that it has none, is there to be found by the relay.
                    Poll::Ready(_) => is_open = false,
                    Poll::Pending => break,
                }
            }
            connecting.as_mut().poll(cx)
        })
        .await
    }
}

/// Tells the client that it is connected, moves its bytes, and tells of its end.
async fn carry(
    session: &Session,
    settings: &NodeSettings,
    connected: Connected,
    target: Target,
    (body, respond, early): (RecvStream, SendResponse<Chunk>, Early),
    peer: &Peer,
) {
    let Connected {
        upstream: Upstream::Socket(upstream),
        guard,
        load: _load,
    } = connected
    else {
        // What arrives at a pod of this node goes to its socket.
        return;
    };
    let ending = match (
        introduce(&upstream, session, target).await,
        accept(respond, body, early, peer.ends),
    ) {
        (true, Some(mut tunnel)) => {
            let flow = guard.flow();
            let relaying = relay(&upstream, &mut tunnel, TunnelIs::Downstream, flow, settings, Vec::new());
            let severing = async {
                flow.end(peer.severing().await);
                std::future::pending().await
            };
            let ending = tokio::select! {
                ending = relaying => ending,
                never = severing => never,
            };
            let log_is_on = session.node.telemetry.access_log.is_on();
            let quality = log_is_on.then(|| socket::quality(&upstream));
            // Logged and counted before socket and stream close, as in `serve`.
            let flow = guard.finish(ending);
            return session.log_flow(&flow, ending, quality.unwrap_or_default());
        }
        (false, _) => Ending::UpstreamReset,
        (true, None) => Ending::DownstreamReset,
    };
    socket::reset_on_close(&upstream);
    let flow = guard.finish(ending);
    session.log_flow(&flow, ending, TcpQuality::default());
}

/// Tells an application that wants it for whom its new connection is. `false` when it is gone already.
async fn introduce(upstream: &Stream, session: &Session, target: Target) -> bool {
    let Some(announced) = target.announced else {
        return true;
    };
    let header = proxy_protocol::header(session.source.address(), announced, session.source.identity());
    upstream.send_all(&header).await.is_ok()
}

/// Tells the client that it is connected. `None` when it has gone meanwhile.
pub(super) fn accept(mut respond: SendResponse<Chunk>, body: RecvStream, early: Early, ends: Ends) -> Option<Tunnel> {
    let send = respond.send_response(Response::new(()), false).ok()?;
    let mut tunnel = Tunnel::new(send, body, ends, early.held, None);
    tunnel.put_back(early.bytes);
    Some(tunnel)
}

/// Turned away for a reason that has more to it.
pub fn refused(ending: Ending, detail: String) -> Refused {
    Refused {
        ending,
        detail: Some(detail),
        target: None,
    }
}

pub(super) fn answer_refusal(mut respond: SendResponse<Chunk>, refused: &Refused) {
    let status: StatusCode = connect::status_of(refused);
    let mut response = Response::new(());
    *response.status_mut() = status;
    // Fails for a client that is not there any more.
    let _ = respond.send_response(response, true);
}
