//! One client connection, from accept to its log line.
//!
//! The steps, each in a room of its own: the handshake learns where the client wants to go (`listener`), `upstream`
//! decides and connects, the client is told, `relay` moves bytes, and the end is counted and logged. Whatever fails, the client
//! gets the answer of its protocol and then a reset, never a silent FIN.

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::SystemTime;

use underpass_certs::{Lease, Trust};
use underpass_config::{Config, Destination, Listener, ListenerProtocol};

use crate::capture::Pod;
use crate::ending::Ending;
use crate::entrance::Entrance;
use crate::hbone::host::Host;
use crate::hbone::relay::{TunnelIs, relay as through_tunnel};
use crate::hbone::server::{self, Arrival};
use crate::http;
use crate::in_place;
use crate::listener::{Handshake, http_connect, socks5};
use crate::node::Node;
use crate::offload::Locality;
use crate::relay::{Prospect, relay};
use crate::session::Session;
use crate::socket::{self, TcpQuality};
use crate::source::Source;
use crate::stream::Stream;
use crate::upstream::{Connected, Upstream};

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
    if let Some((host, local)) = tunnelled_to(&accepted) {
        let node = accepted.node.clone();
        let tls = credentials_of(&host, &node);
        let arrival = Arrival {
            node,
            host,
            socket: accepted.socket,
            peer: accepted.peer,
            local,
            core,
        };
        return Box::pin(server::serve(arrival, tls)).await;
    }
    let started = SystemTime::now();
    let Accepted {
        node,
        entrance,
        socket,
        peer,
    } = accepted;
    let Ok(mut downstream) = Stream::new(socket) else {
        // The runtime's epoll refused it: closing resets or ends it, there is nothing else to do with it.
        return node.telemetry.count_accept_error();
    };
    let snapshot = node.snapshot();
    let settings = snapshot.config.node.clone();
    let (source, objection) = identify(&entrance, &snapshot.config, peer);
    drop(snapshot);
    let mut session = Session {
        node,
        entrance,
        source,
        started,
        core,
    };
    let Some(_place) = session.node.flows.open_connections().admit(&settings.limits) else {
        return refuse_unconnected(&session, &downstream, Ending::ConnectionLimit);
    };
    if let Some(ending) = objection {
        return refuse_unconnected(&session, &downstream, ending);
    }
    if let Entrance::Outbound(pod) = &session.entrance
        && let Some(led) = in_place::led(&session, pod, &downstream)
    {
        return Box::pin(in_place::serve(session, downstream, led)).await;
    }
    let mut known = None;
    if let Entrance::Plain(listener) = &session.entrance
        && let ListenerProtocol::Http { .. } = &listener.protocol
    {
        let listener = listener.clone();
        let Some(of_tcp) = Box::pin(serve_http(session, downstream, listener)).await else {
            return;
        };
        (session, downstream, known) = of_tcp;
    }
    let Some(ready) = Box::pin(connect(&session, downstream, known)).await else {
        return;
    };
    let Ready {
        downstream,
        connected,
        early,
    } = ready;
    let Connected { upstream, guard, load } = connected;
    let (mut upstream, facts) = (upstream, &guard.flow().facts);
    let (ending, quality) = match &mut upstream {
        Upstream::Socket(upstream) => {
            let (client, destination) = (facts.source.address(), facts.destination);
            let prospect = Prospect {
                offload: &session.node.offload,
                settings: &settings.offload,
                locality: Locality::of(&session.entrance, client, destination, &session.node.pods),
            };
            let ending = relay(&downstream, upstream, guard.flow(), &settings, early, prospect).await;
            let log_is_on = session.node.telemetry.access_log.is_on();
            let quality = log_is_on.then(|| socket::quality(upstream));
            (ending, quality.unwrap_or_default())
        }
        Upstream::Tunnel(tunnel) => {
            let relaying = through_tunnel(&downstream, tunnel, TunnelIs::Upstream, guard.flow(), &settings, early);
            (Box::pin(relaying).await, TcpQuality::default())
        }
    };
    drop(load);
    // Logged and counted before the sockets close: whoever sees the end can already see its trace.
    let flow = guard.finish(ending);
    session.log_flow(&flow, ending, quality);
}

/// Serves a client of HTTP until it is gone. One that turns out to speak something else, where the listener says what becomes of it, goes on as if that were all
/// that the listener is for.
async fn serve_http(
    session: Session,
    downstream: Stream,
    listener: Arc<Listener>,
) -> Option<(Session, Stream, Option<Handshake>)> {
    let ListenerProtocol::Http { routes, tcp_fallback } = &listener.protocol else {
        return None;
    };
    let Ok(local) = downstream.local_address() else {
        socket::reset_on_close(&downstream);
        session.refuse(&Ending::DownstreamReset.into());
        return None;
    };
    let (came_by, local) = (http::Downstream::Socket(downstream), socket::canonical(local));
    let patience = tcp_fallback.as_ref().map(|fallback| fallback.detection_timeout);
    let of_tcp = http::serve(session, came_by, local, routes.clone(), patience).await?;
    let http::OfTcp {
        session,
        downstream: http::Downstream::Socket(downstream),
        early,
    } = of_tcp
    else {
        return None;
    };
    let destination = tcp_fallback.as_ref()?.destination.clone();
    let known = Handshake::without_request(destination).with_early(early);
    Some((session, downstream, Some(known)))
}

/// What a connection came to, and its address, if HBONE is spoken there.
fn tunnelled_to(accepted: &Accepted) -> Option<(Host, SocketAddr)> {
    let local = || {
        let address = rustix::net::getsockname(&accepted.socket).ok()?;
        Some(socket::canonical(SocketAddr::try_from(address).ok()?))
    };
    match &accepted.entrance {
        Entrance::Inbound(pod) if accepted.node.identities.is_some() => {
            let local = local().filter(|address| address.port() == crate::hbone::PORT)?;
            Some((Host::Pod(pod.clone()), local))
        }
        Entrance::Plain(listener) if matches!(listener.protocol, ListenerProtocol::Hbone { .. }) => {
            Some((Host::Waypoint(listener.clone()), local()?))
        }
        _ => None,
    }
}

/// The certificate that is shown there, and whom it believes; none while it is not known who it is.
fn credentials_of(host: &Host, node: &Node) -> Option<(Arc<Lease>, Arc<Trust>)> {
    let identities = node.identities.as_ref()?;
    let lease = match host {
        Host::Pod(pod) => identities.of_pod(pod.cookie)?,
        Host::Waypoint(listener) => match &listener.protocol {
            ListenerProtocol::Hbone { identity } => node.http.leases.of(identity)?,
            _ => return None,
        },
    };
    Some((lease, identities.trust().clone()))
}

/// Who the client is, and what speaks against serving it. A captured client that the mesh does not know (its pod is newer than the
/// configuration, or gone from it) must not be judged as anyone; nor can it be said who may connect to a pod that the mesh does not know.
fn identify(entrance: &Entrance, config: &Config, peer: SocketAddr) -> (Source, Option<Ending>) {
    match entrance {
        Entrance::Plain(_) | Entrance::Waypoint(_) | Entrance::InPlace(_) => {
            (Source::by_address(&config.mesh, &config.node, peer), None)
        }
        Entrance::Inbound(pod) | Entrance::Hbone(pod) => {
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

/// Handshake, unless it is `known` where the client wants to go, decision and connection. None when the client was turned away, which is then logged and done.
async fn connect(session: &Session, downstream: Stream, known: Option<Handshake>) -> Option<Ready> {
    let shaken = match known {
        Some(known) => Ok(known),
        None => shake_hands(session, &downstream).await,
    };
    let handshake = match shaken {
        Ok(handshake) => handshake,
        Err(ending) => {
            refuse_unconnected(session, &downstream, ending);
            return None;
        }
    };
    let request = session.request(handshake.named_by());
    match request.connect(&handshake.destination).await {
        Ok(connected) => match handshake.accepted(&downstream, &connected.upstream).await {
            Ok(early) => Some(Ready {
                downstream,
                connected,
                early,
            }),
            Err(_) => {
                finish_early(session, &downstream, connected);
                None
            }
        },
        Err(refused) => {
            session.log_refused(&refused);
            handshake.refused(&downstream, refused.ending).await;
            socket::reset_on_close(&downstream);
            None
        }
    }
}

/// Learns where the client wants to go. While it has not said so, it takes a place of its namespace and workload: one that
/// opens connections and says nothing uses up its own places only.
async fn shake_hands(session: &Session, downstream: &Stream) -> Result<Handshake, Ending> {
    let listener = match &session.entrance {
        Entrance::Plain(listener) | Entrance::Waypoint(listener) | Entrance::InPlace(listener) => listener,
        Entrance::Outbound(pod) => return original_destination(pod, downstream),
        Entrance::Inbound(pod) | Entrance::Hbone(pod) => return own_destination(pod, downstream),
    };
    if let ListenerProtocol::Fixed { destination } = &listener.protocol {
        return Ok(Handshake::without_request(destination.clone()));
    }
    let settings = session.node.snapshot().config.node.clone();
    let tenant = session
        .node
        .flows
        .open_connections()
        .tenant(session.source.workload().map(|w| &**w));
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
fn finish_early(session: &Session, downstream: &Stream, connected: Connected) {
    socket::reset_on_close(downstream);
    let quality = match &connected.upstream {
        Upstream::Socket(upstream) => {
            socket::reset_on_close(upstream);
            socket::quality(upstream)
        }
        // Resets when it is dropped.
        Upstream::Tunnel(_) => TcpQuality::default(),
    };
    let flow = connected.guard.finish(Ending::DownstreamReset);
    session.log_flow(&flow, Ending::DownstreamReset, quality);
}

fn refuse_unconnected(session: &Session, downstream: &Stream, ending: Ending) {
    socket::reset_on_close(downstream);
    session.refuse(&ending.into());
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
