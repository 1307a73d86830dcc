//! One CONNECT stream to a waypoint: it was opened for a service, whose requests are served as those of a listener are.
//!
//! The client is the peer that the handshake verified: a node's proxy connects as the workload that it speaks for. Where the stream leads, says the configuration
//! ([`Http::waypoint`](underpass_config::http::Http::waypoint)): what it does not know is refused, and so is what of it is not understood.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use h2::RecvStream;
use h2::server::SendResponse;
use http::{Request, Response};
use underpass_config::waypoint::{Going, Lead};
use underpass_config::{Config, Destination, Text};

use super::chunk::Chunk;
use super::connect;
use super::inbound::{Peer, answer_refusal, refused};
use super::tunnel::Tunnel;
use super::windows::Held;
use crate::ending::Ending;
use crate::http::{self as requests, Downstream};
use crate::session::Session;
use crate::socket;
use crate::upstream::Refused;

/// Serves one stream until it is gone.
pub async fn serve(peer: &Arc<Peer>, session: Session, request: Request<RecvStream>, mut respond: SendResponse<Chunk>) {
    let led = lead(&peer.node.snapshot().config, &request);
    let (to, table) = match led {
        Ok(led) => led,
        Err(refused) => {
            session.refuse(&refused);
            return answer_refusal(respond, &refused);
        }
    };
    let Ok(send) = respond.send_response(Response::new(()), false) else {
        return session.refuse(&Ending::DownstreamReset.into());
    };
    let held = Held::new(peer.window.clone());
    let tunnel = Tunnel::new(send, request.into_body(), peer.ends, held, None);
    let serving = requests::serve(session, Downstream::Tunnel(Box::new(tunnel)), to, table, None);
    tokio::select! {
        biased;
        // What is dropped is reset.
        ending = peer.severing() => tracing::debug!(peer = %peer.ends.peer, %ending, "a stream of a waypoint is reset"),
        _ = serving => {}
    }
}

/// The address that a stream is for, and the table that its requests go through.
fn lead<B>(config: &Config, request: &Request<B>) -> Result<(SocketAddr, Text), Refused> {
    let wanted = connect::destination(request).map_err(|why| refused(Ending::HandshakeFailed, why))?;
    let to = address(config, &wanted);
    let authority = request
        .uri()
        .authority()
        .map(|authority| authority.as_str().to_ascii_lowercase());
    let going = Going {
        authority: authority.as_deref(),
        to,
    };
    let lead = (config.http.waypoint.as_ref()).and_then(|place| place.lead(&going));
    let nowhere = || {
        refused(
            Ending::UnknownDestination,
            format!("this waypoint does not serve {wanted}"),
        )
    };
    let table = match lead.ok_or_else(nowhere)? {
        Lead::Closed(why) => {
            let detail = format!("what this waypoint was told of {wanted} is not understood: {why}");
            return Err(refused(Ending::UnknownDestination, detail));
        }
        Lead::Protocol { http, .. } => http.ok_or_else(nowhere)?,
        Lead::Chain(table) => table,
    };
    match config.http.tables.contains_key(table) {
        true => Ok((to, table.clone())),
        false => Err(nowhere()),
    }
}

/// A name stands for its service's first address; one that the mesh does not know is told apart by itself.
fn address(config: &Config, wanted: &Destination) -> SocketAddr {
    match wanted {
        Destination::Address(address) => socket::canonical(*address),
        Destination::Host { host, port } => {
            let service = config.mesh.service_named(host);
            let vip = service.and_then(|service| service.service().vips.first().map(|vip| vip.address));
            SocketAddr::new(vip.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)), *port)
        }
    }
}
