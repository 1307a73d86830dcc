//! A pod's connection to a service whose waypoint this node is itself: served here, where it was captured, with no tunnel in between.
//!
//! Which of a waypoint's instances a client's node leads to is the node's choice; the nearest is itself. Who comes is known as well as by a certificate: by the
//! network namespace that the connection was captured in.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;

use underpass_config::waypoint::{Chain, Going, Lead};
use underpass_config::{Listener, Text};

use crate::capture::Pod;
use crate::destination;
use crate::entrance::Entrance;
use crate::hbone::route;
use crate::http::{self, Downstream};
use crate::session::Session;
use crate::stream::Stream;

/// Where a connection leads here.
#[derive(Debug)]
pub struct Led {
    /// Where it was going.
    to: SocketAddr,
    /// The table that its requests go through.
    table: Text,
    /// The waypoint's listener, as which it is told of.
    listener: Arc<Listener>,
}

/// Where a captured connection of `pod` leads, if this node's waypoint stands before that and serves it. What it does not serve goes to an instance as it would from
/// any node, and is refused there.
pub fn led(session: &Session, pod: &Pod, downstream: &Stream) -> Option<Led> {
    let snapshot = session.node.snapshot();
    let config = &snapshot.config;
    let listener = config.node.waypoint_listener()?;
    let address = config.node.istiod.as_ref()?.pod_ip;
    let to = pod.original_destination(downstream.as_fd()).ok().flatten()?;
    let resolved = destination::resolve_address(config, to).ok()?;
    let waypoint = route::waypoint(config, &resolved, &session.source)?;
    if !waypoint.is_at(config, address) {
        return None;
    }
    let place = config.http.waypoint.as_ref()?;
    let table = match place.lead(&Going { authority: None, to })? {
        Lead::Chain(name) => name,
        Lead::Protocol { .. } | Lead::Closed(_) => return None,
    };
    let is_for_requests = match config.http.chains.get(table).map(|chain| chain.as_deref()) {
        Some(Ok(Chain::Tcp(_)) | Err(_)) => false,
        Some(Ok(Chain::Http(_))) | None => config.http.tables.contains_key(table),
    };
    is_for_requests.then(|| Led {
        to,
        table: table.clone(),
        listener: Arc::new(listener),
    })
}

/// Serves it until its client is gone.
pub async fn serve(session: Session, downstream: Stream, led: Led) {
    let Led { to, table, listener } = led;
    let session = Session {
        entrance: Entrance::InPlace(listener),
        ..session
    };
    http::serve(session, Downstream::Socket(downstream), to, table, None).await;
}
