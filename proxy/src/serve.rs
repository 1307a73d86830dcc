//! One client connection, from accept to its log line.
//!
//! The steps, each in a room of its own: the handshake learns where the client wants to go (`listener`), `upstream`
//! decides and connects, the client is told, `relay` moves bytes, and the end is counted and logged. Whatever fails, the client
//! gets the answer of its protocol and then a reset, never a silent FIN.

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::SystemTime;

use underpass_config::{Config, Destination, ListenerProtocol};

use crate::capture::Pod;
use crate::ending::Ending;
use crate::entrance::Entrance;
use crate::flow::Flow;
use crate::flow_table::PathEnds;
use crate::listener::{Handshake, http_connect, socks5};
use crate::node::Node;
use crate::offload::{Direction, Locality};
use crate::relay::{Prospect, relay};
use crate::socket::{self, TcpQuality};
use crate::source::Source;
use crate::stream::Stream;
use crate::telemetry::Line;
use crate::upstream::{Connected, Refused, Request};

/// An accepted connection on its way to the core that serves it.
#[derive(Debug)]
pub struct Accepted {
    /// The node.
    pub node: Arc<Node>,
    /// The way it came in by.
    pub entrance: Entrance,
    /// The client's socket, not yet known to any runtime.
    pub socket: OwnedFd,
    /// The client's address.
    pub peer: SocketAddr,
}

/// Serves one client on core `core` until it is gone.
pub async fn serve(accepted: Accepted, core: usize) {
    let started = SystemTime::now();
    let Accepted {
        node,
        entrance,
        socket,
        peer,
    } = accepted;
    let Ok(downstream) = Stream::new(socket) else {
        // The runtime's epoll refused it: closing resets or ends it, there is nothing else to do with it.
        return node.telemetry.count_accept_error();
    };
    let snapshot = node.snapshot();
    let settings = snapshot.config.node.clone();
    let (source, objection) = identify(&entrance, &snapshot.config, peer);
    drop(snapshot);
    let session = Session {
        node,
        entrance,
        source,
        started,
        core,
    };
    let Some(_place) = session.node.flows.open_connections().admit(&settings.limits) else {
        session.refuse_unconnected(&downstream, Ending::ConnectionLimit);
        return;
    };
    if let Some(ending) = objection {
        session.refuse_unconnected(&downstream, ending);
        return;
    }
    let Some(ready) = Box::pin(session.connect(downstream)).await else {
        return;
    };
    let Ready {
        downstream,
        connected,
        early,
    } = ready;
    let Connected {
        stream: upstream,
        guard,
        load,
    } = connected;
    let facts = &guard.flow().facts;
    let (client, destination) = (facts.source.address(), facts.destination);
    let prospect = Prospect {
        offload: &session.node.offload,
        settings: &settings.offload,
        locality: Locality::of(&session.entrance, client, destination, &session.node.pods),
    };
    let ending = relay(&downstream, &upstream, guard.flow(), &settings, early, prospect).await;
    let log_is_on = session.node.telemetry.access_log.is_on();
    let quality = if log_is_on {
        socket::quality(&upstream)
    } else {
        TcpQuality::default()
    };
    drop(load);
    // Logged and counted before the sockets close: whoever sees the end can already see its trace.
    let flow = guard.finish(ending);
    session.log_flow(&flow, ending, quality);
}

/// Who the client is, and what speaks against serving it. A captured client that the mesh does not know (its pod is newer than the
/// configuration, or gone from it) must not be judged as anyone; nor can it be said who may connect to a pod that the mesh does not know.
fn identify(entrance: &Entrance, config: &Config, peer: SocketAddr) -> (Source, Option<Ending>) {
    match entrance {
        Entrance::Plain(_) => (Source::by_address(&config.mesh, &config.node, peer), None),
        Entrance::Inbound(pod) => {
            let is_known = config.mesh.workload(&pod.uid).is_some();
            (
                Source::unidentified(peer),
                (!is_known).then_some(Ending::UnknownDestination),
            )
        }
        Entrance::Outbound(pod) => match Source::captured(&config.mesh, &pod.uid, peer) {
            Some(source) => (source, None),
            None => (Source::unidentified(peer), Some(Ending::UnknownSource)),
        },
    }
}

/// A client that is connected and has been told so.
struct Ready {
    downstream: Stream,
    connected: Connected,
    /// Bytes of the stream that came with the request.
    early: Vec<u8>,
}

struct Session {
    node: Arc<Node>,
    entrance: Entrance,
    source: Source,
    started: SystemTime,
    core: usize,
}

impl Session {
    /// Handshake, decision and connection. None when the client was turned away, which is then logged and done.
    async fn connect(&self, downstream: Stream) -> Option<Ready> {
        let handshake = match self.shake_hands(&downstream).await {
            Ok(handshake) => handshake,
            Err(ending) => {
                self.refuse_unconnected(&downstream, ending);
                return None;
            }
        };
        let request = Request {
            node: &self.node,
            core: self.core,
            entrance: &self.entrance,
            source: &self.source,
            started: self.started,
            named_by: handshake.named_by(),
        };
        match request.connect(&handshake.destination).await {
            Ok(connected) => match handshake.accepted(&downstream, &connected.stream).await {
                Ok(early) => Some(Ready {
                    downstream,
                    connected,
                    early,
                }),
                Err(_) => {
                    self.finish_early(&downstream, connected);
                    None
                }
            },
            Err(refused) => {
                self.log_refused(&refused);
                handshake.refused(&downstream, refused.ending).await;
                socket::reset_on_close(&downstream);
                None
            }
        }
    }

    /// Learns where the client wants to go. While it has not said so, it takes a place of its namespace and workload: one that
    /// opens connections and says nothing uses up its own places only.
    async fn shake_hands(&self, downstream: &Stream) -> Result<Handshake, Ending> {
        let listener = match &self.entrance {
            Entrance::Plain(listener) => listener,
            Entrance::Outbound(pod) => return original_destination(pod, downstream),
            Entrance::Inbound(pod) => return own_destination(pod, downstream),
        };
        if let ListenerProtocol::Fixed { destination } = &listener.protocol {
            return Ok(Handshake::without_request(destination.clone()));
        }
        let settings = self.node.snapshot().config.node.clone();
        let tenant = self
            .node
            .flows
            .open_connections()
            .tenant(self.source.workload().map(|w| &**w));
        let _place = tenant.admit(&settings.limits).ok_or(Ending::ConnectionLimit)?;
        let handshake = async {
            match &listener.protocol {
                ListenerProtocol::Socks5 => socks5::accept(downstream).await,
                _ => http_connect::accept(downstream).await,
            }
        };
        let in_time = tokio::time::timeout(settings.timeouts.handshake, handshake).await;
        in_time.unwrap_or(Err(Ending::HandshakeFailed))
    }

    /// The client went while it was being told of its success.
    fn finish_early(&self, downstream: &Stream, connected: Connected) {
        socket::reset_on_close(downstream);
        socket::reset_on_close(&connected.stream);
        let quality = socket::quality(&connected.stream);
        let flow = connected.guard.finish(Ending::DownstreamReset);
        self.log_flow(&flow, Ending::DownstreamReset, quality);
    }

    fn refuse_unconnected(&self, downstream: &Stream, ending: Ending) {
        socket::reset_on_close(downstream);
        let ends = || {
            let config = &self.node.snapshot().config;
            PathEnds::new(self.source.workload(), None, None, &config.node).refreshed(config)
        };
        self.node.flows.count_refused(self.core, ends, ending);
        self.log_refused(&ending.into());
    }

    fn log_flow(&self, flow: &Flow, ending: Ending, quality: TcpQuality) {
        let facts = &flow.facts;
        let denial = flow.denial().filter(|_| ending == Ending::PolicyRevoked);
        let policy = denial.map_or(facts.policy.as_ref(), |denial| denial.policy.as_ref());
        let line = Line {
            source: facts.source.address(),
            source_workload: facts.source.workload().map(|w| &**w),
            destination: Some(facts.destination),
            destination_workload: facts.destination_workload.as_deref(),
            service: facts.service.as_ref(),
            started: flow.started,
            sent: flow.sent(),
            received: flow.received(),
            by_kernel: (
                flow.offload.bypassed(Direction::Out),
                flow.offload.bypassed(Direction::In),
            ),
            quality,
            entrance: &self.entrance,
            policy,
            ending,
            detail: denial.map(|denial| denial.why.to_string()),
            ended: SystemTime::now(),
        };
        self.node.telemetry.connection_ended(&line, false);
    }

    fn log_refused(&self, refused: &Refused) {
        let target = refused.target.as_deref();
        let line = Line {
            source: self.source.address(),
            source_workload: self.source.workload().map(|w| &**w),
            destination: target.map(|t| t.address),
            destination_workload: target.and_then(|t| t.ends.destination.as_deref()),
            service: target.and_then(|t| t.ends.service.as_ref()).map(|s| &s.key),
            started: self.started,
            sent: 0,
            received: 0,
            by_kernel: (0, 0),
            quality: TcpQuality::default(),
            entrance: &self.entrance,
            policy: target.and_then(|t| t.policy.as_ref()),
            ending: refused.ending,
            detail: refused.detail.clone(),
            ended: SystemTime::now(),
        };
        self.node.telemetry.connection_ended(&line, true);
    }
}

/// Where a captured connection was going when the kernel turned it to us. One that was made to our socket on purpose was going
/// nowhere.
fn original_destination(pod: &Pod, accepted: &Stream) -> Result<Handshake, Ending> {
    match pod.original_destination(accepted.as_fd()) {
        Ok(Some(destination)) => Ok(Handshake::without_request(Destination::Address(destination))),
        Ok(None) => Err(Ending::HandshakeFailed),
        Err(error) => {
            tracing::warn!(uid = %pod.uid, %error, "the original destination of a captured connection cannot be read");
            Err(Ending::HandshakeFailed)
        }
    }
}

/// Where a steered connection was going: its own local address, which has to be one of the pod's.
fn own_destination(pod: &Pod, accepted: &Stream) -> Result<Handshake, Ending> {
    let address = accepted.local_address().map_err(|_| Ending::DownstreamReset)?;
    let address = socket::canonical(address);
    if pod.owns(address.ip()) {
        Ok(Handshake::without_request(Destination::Address(address)))
    } else {
        Err(Ending::UnknownDestination)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size_of_future<A, B, F: Future>(_: fn(A, B) -> F) -> usize {
        size_of::<F>()
    }

    /// What an idle connection costs beside its sockets is mostly this. Raise the bound knowingly.
    #[test]
    fn a_connections_future_stays_small() {
        let size = size_of_future(serve);
        assert!(
            (256..=1536).contains(&size),
            "the future of a connection has {size} bytes"
        );
    }
}
