//! HTTP/1.1: a connection carries one request, then waits for another on a stack.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::client::conn::http1;
use tokio::task::AbortHandle;
use underpass_config::http::{ClusterEndpoint, ClusterSettings, Held};

use super::SERVED_WHILE_WANTED;
use crate::http::idle::Activity;
use crate::http::upload::Attempt;
use crate::http::wire::{Kept, Pulse};

/// What the task of a connection that waits may take to see that its last exchange is over.
const READY_PATIENCE: Duration = Duration::from_millis(10);

/// The codec's end of a connection.
pub type Sender = http1::SendRequest<Attempt>;

/// A connection.
#[derive(Debug)]
pub struct Carrier {
    /// The way to send a request by it.
    pub sender: Sender,
    /// Its own address, if it has a socket of its own.
    pub local: Option<SocketAddr>,
    pulse: Pulse,
    /// Its socket, while it has a request.
    kept: Option<Kept>,
    born: Instant,
    served: u32,
    served_others: u32,
    _codec: Codec,
}

/// The task that speaks on a connection. It ends with its carrier: one that still waits for the rest of a request would else keep the connection, and its place
/// under the cluster's limit. A connection that was upgraded is its task's no more.
#[derive(Debug)]
pub struct Codec(AbortHandle);

impl Codec {
    /// Ends `task` when it is dropped.
    pub fn new(task: AbortHandle) -> Self {
        Self(task)
    }
}

impl Drop for Codec {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Carrier {
    /// One that has carried nothing.
    pub fn new(sender: Sender, local: Option<SocketAddr>, pulse: Pulse, codec: Codec) -> Self {
        Self {
            _codec: codec,
            sender,
            local,
            pulse,
            kept: None,
            born: Instant::now(),
            served: 0,
            served_others: 0,
        }
    }

    /// Notes that it is given a request.
    pub fn begin(&mut self) {
        self.served = self.served.saturating_add(1);
        // TLS writes of its own only in handshakes: what is acknowledged from now on is the request's.
        self.kept = self.pulse.keep();
    }

    /// Has a request move with what of its body is taken.
    pub fn moves(&self, activity: &Activity) {
        activity.follow(self.pulse.socket());
    }

    /// Whether somebody waits for a connection of its cluster to go.
    pub fn is_wanted(&self) -> bool {
        self.pulse.is_wanted()
    }

    /// Whether it has served enough requests while others wanted its place.
    pub fn has_served_enough(&self) -> bool {
        self.served_others >= SERVED_WHILE_WANTED
    }

    /// Notes that it is given to somebody who waited.
    pub fn hand_on(&mut self) {
        self.served_others += 1;
    }

    /// Whether nothing of its request has come to the endpoint, as when that has closed it before.
    pub fn was_not_received(&self) -> bool {
        self.kept.as_ref().is_some_and(Kept::was_not_received)
    }

    /// Whether it may carry another, as far as its cluster is concerned.
    pub fn may_go_on(&self, cluster: &ClusterSettings) -> bool {
        let limits = &cluster.connections;
        !self.sender.is_closed()
            && self.pulse.is_good()
            && self.served < limits.requests
            && limits.lifetime.is_none_or(|lifetime| self.born.elapsed() < lifetime)
    }
}

/// A connection that waits.
#[derive(Debug)]
pub struct Idle {
    /// The connection.
    pub carrier: Carrier,
    since: Instant,
    idle_timeout: Duration,
    ends_at: Option<Instant>,
    endpoint: Arc<ClusterEndpoint>,
    _rest: Held,
}

impl Idle {
    /// It waits from now on.
    pub fn new(mut carrier: Carrier, cluster: &ClusterSettings, endpoint: &Arc<ClusterEndpoint>) -> Self {
        carrier.kept = None;
        let lifetime = cluster.connections.lifetime;
        Self {
            ends_at: lifetime.and_then(|lifetime| carrier.born.checked_add(lifetime)),
            since: Instant::now(),
            idle_timeout: cluster.idle_timeout,
            _rest: endpoint.rest(),
            endpoint: endpoint.clone(),
            carrier,
        }
    }

    /// Since when it waits.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// How many wait for work of its endpoint, on all cores.
    pub fn of_endpoint(&self) -> u32 {
        self.endpoint.idle()
    }

    /// Whether it is neither closed, nor has waited or lived too long.
    pub fn is_alive(&self) -> bool {
        !self.carrier.sender.is_closed()
            && self.carrier.pulse.is_good()
            && self.since.elapsed() < self.idle_timeout
            && self.ends_at.is_none_or(|end| Instant::now() < end)
    }

    /// Whether it can be used: its task is done with the exchange before, and has seen no end.
    pub async fn is_usable(&mut self) -> bool {
        self.is_alive()
            && matches!(
                tokio::time::timeout(READY_PATIENCE, self.carrier.sender.ready()).await,
                Ok(Ok(()))
            )
    }
}
