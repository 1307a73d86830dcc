//! One CONNECT stream to a pod: the steps of any inbound connection, answered with a status.
//!
//! The client is the peer that the handshake verified, at the address that its connection comes from. Where it wants to go has to be at the pod it
//! came to: what a certificate proves to this pod must not open the way to another.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use h2::RecvStream;
use h2::server::SendResponse;
use http::{Request, Response, StatusCode};
use underpass_certs::VerifiedPeer;
use underpass_config::{Config, Destination};

use super::chunk::Chunk;
use super::connect;
use super::relay::{TunnelIs, relay};
use super::tunnel::{Ends, Tunnel};
use crate::capture::Pod;
use crate::ending::Ending;
use crate::entrance::Entrance;
use crate::node::Node;
use crate::session::Session;
use crate::socket::{self, TcpQuality};
use crate::source::Source;
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
    let requested = match requested(config, &peer.pod, &request) {
        Ok(requested) => requested,
        Err(refused) => {
            session.refuse(&refused);
            return answer_refusal(respond, &refused);
        }
    };
    drop(snapshot);
    let connecting = session.request(NamedBy::Us);
    let connected = match Box::pin(connecting.connect(&Destination::Address(requested))).await {
        Ok(connected) => connected,
        Err(refused) => {
            session.log_refused(&refused);
            return answer_refusal(respond, &refused);
        }
    };
    let Connected {
        upstream: Upstream::Socket(upstream),
        guard,
        load,
    } = connected
    else {
        // What arrives at a pod of this node goes to its socket.
        return;
    };
    let Some(mut tunnel) = accept(respond, request, peer.ends) else {
        socket::reset_on_close(&upstream);
        let flow = guard.finish(Ending::DownstreamReset);
        return session.log_flow(&flow, Ending::DownstreamReset, TcpQuality::default());
    };
    let ending = relay(
        &upstream,
        &mut tunnel,
        TunnelIs::Downstream,
        guard.flow(),
        &settings,
        Vec::new(),
    )
    .await;
    let log_is_on = session.node.telemetry.access_log.is_on();
    let quality = if log_is_on {
        socket::quality(&upstream)
    } else {
        TcpQuality::default()
    };
    drop(load);
    // Logged and counted before socket and stream close, as in `serve`.
    let flow = guard.finish(ending);
    session.log_flow(&flow, ending, quality);
}

/// Where at the pod a request wants to go.
fn requested<B>(config: &Config, pod: &Pod, request: &Request<B>) -> Result<SocketAddr, Refused> {
    let refused = |ending, detail| Refused {
        ending,
        detail: Some(detail),
        target: None,
    };
    let wanted = connect::destination(request).map_err(|why| refused(Ending::HandshakeFailed, why))?;
    let workload = config.mesh.workload(&pod.uid).ok_or(Ending::UnknownDestination)?;
    let not_here = || {
        let detail = format!("{wanted} is not at {}, where the request came", workload.name);
        refused(Ending::UnknownDestination, detail)
    };
    let service = match &wanted {
        Destination::Address(address) if pod.owns(address.ip().to_canonical()) => {
            return Ok(socket::canonical(*address));
        }
        Destination::Address(_) => return Err(not_here()),
        Destination::Host { host, .. } => config.mesh.service_named(host).ok_or_else(not_here)?,
    };
    // A name stands for the service's endpoint here: gateways of other networks do not know its address.
    let Destination::Host { port, .. } = wanted else {
        return Err(not_here());
    };
    let endpoint = service.endpoints().find(|endpoint| endpoint.workload.uid == pod.uid);
    let target = endpoint.and_then(|endpoint| endpoint.target_port(service.service(), port));
    let ip = workload.addresses.iter().find(|ip| pod.owns(**ip));
    match (ip, target) {
        (Some(ip), Some(port)) => Ok(SocketAddr::new(*ip, port)),
        _ => Err(not_here()),
    }
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
