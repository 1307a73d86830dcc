//! One CONNECT stream to a pod: the steps of any inbound connection, answered with a status.
//!
//! The client is the peer that the handshake verified, at the address that its connection comes from. Where it may go says [`target`].

use std::sync::Arc;
use std::time::SystemTime;

use h2::RecvStream;
use h2::server::SendResponse;
use http::{Request, Response, StatusCode};
use underpass_certs::VerifiedPeer;
use underpass_config::{Destination, NodeSettings};

use super::chunk::Chunk;
use super::relay::{TunnelIs, relay};
use super::target::{self, Target};
use super::tunnel::{Ends, Tunnel};
use super::{connect, proxy_protocol};
use crate::capture::Pod;
use crate::ending::Ending;
use crate::entrance::Entrance;
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
    /// The pod that was connected to.
    pub pod: Arc<Pod>,
    /// Who connected.
    pub verified: VerifiedPeer,
    /// From where to where.
    pub ends: Ends,
    /// The core that serves the connection.
    pub core: usize,
}

/// Serves one stream until it is gone.
pub async fn serve(peer: Arc<Peer>, request: Request<RecvStream>, respond: SendResponse<Chunk>) {
    let snapshot = peer.node.snapshot();
    let (config, settings) = (&snapshot.config, snapshot.config.node.clone());
    let session = Session {
        node: peer.node.clone(),
        entrance: Entrance::Hbone(peer.pod.clone()),
        source: Source::verified(&config.mesh, &config.node, &peer.verified, peer.ends.peer),
        started: SystemTime::now(),
        core: peer.core,
    };
    let Some(_place) = peer.node.flows.open_connections().admit(&settings.limits) else {
        let refused = Ending::ConnectionLimit.into();
        session.refuse(&refused);
        return answer_refusal(respond, &refused);
    };
    let target = match target::of(config, &peer.pod, &request) {
        Ok(target) => target,
        Err(refused) => {
            session.refuse(&refused);
            return answer_refusal(respond, &refused);
        }
    };
    drop(snapshot);
    let connecting = session.request(NamedBy::Us);
    let connected = match Box::pin(connecting.connect(&Destination::Address(target.address))).await {
        Ok(connected) => connected,
        Err(refused) => {
            session.log_refused(&refused);
            return answer_refusal(respond, &refused);
        }
    };
    Box::pin(carry(
        &session,
        &settings,
        connected,
        target,
        (request, respond),
        peer.ends,
    ))
    .await;
}

/// Tells the client that it is connected, moves its bytes, and tells of its end.
async fn carry(
    session: &Session,
    settings: &NodeSettings,
    connected: Connected,
    target: Target,
    (request, respond): (Request<RecvStream>, SendResponse<Chunk>),
    ends: Ends,
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
        accept(respond, request, ends),
    ) {
        (true, Some(mut tunnel)) => {
            let flow = guard.flow();
            let ending = relay(&upstream, &mut tunnel, TunnelIs::Downstream, flow, settings, Vec::new()).await;
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
fn accept(mut respond: SendResponse<Chunk>, request: Request<RecvStream>, ends: Ends) -> Option<Tunnel> {
    let send = respond.send_response(Response::new(()), false).ok()?;
    Some(Tunnel::new(send, request.into_body(), ends, None))
}

fn answer_refusal(mut respond: SendResponse<Chunk>, refused: &Refused) {
    let status: StatusCode = connect::status_of(refused);
    let mut response = Response::new(());
    *response.status_mut() = status;
    // Fails for a client that is not there any more.
    let _ = respond.send_response(response, true);
}
