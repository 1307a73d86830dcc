//! The byte pump between a socket and a tunnel: the same promises as `crate::relay`, with an HTTP/2 stream as one of the ends.
//!
//! **One idea.** Nothing is read that could not be passed on. The socket is read only when the tunnel has room for what comes, so
//! that TCP holds its sender back; what the tunnel brought is given back to the peer's window only when the socket's kernel has taken it, so that
//! HTTP/2 holds its sender back. While nothing moves neither direction holds a buffer, nor room of the connection.
//!
//! **Ends.** FIN becomes END_STREAM and END_STREAM becomes FIN, each direction for itself. RST becomes RST_STREAM (CONNECT_ERROR,
//! RFC 9113, section 8.5) and RST_STREAM becomes RST; a connection that breaks resets all its streams. What the side that reset had sent before is
//! still delivered. An end that the proxy decides resets both.
//!
//! **Counting.** A byte for the socket is counted when its kernel has taken it, a byte for the tunnel when its connection's send buffer has. The
//! buffer stands for the kernel's: a reset waits for it to be empty (`chunk`), so that what was counted arrives.

mod halves;

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use h2::Reason;
use tokio::time::Sleep;
use underpass_config::NodeSettings;

use super::tunnel::Tunnel;
use crate::ending::Ending;
use crate::flow::Flow;
use crate::offload::{Direction, WhyNot};
use crate::relay::IdleTimer;
use crate::socket;
use crate::stream::Stream;
use halves::{Failed, Half, State};

/// How long a reset waits for its last bytes to be taken by a receiver that is not reading, as in `crate::relay`.
const FLUSH_BEFORE_RESET: Duration = Duration::from_secs(1);

/// Which side of the proxied connection the tunnel is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TunnelIs {
    /// The client came by it.
    Downstream,
    /// The destination is reached by it.
    Upstream,
}

/// An end of the pump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Party {
    Socket,
    Tunnel,
}

/// Relays between `socket` and `tunnel` until both directions have ended, and says how it ended. When it returns, both have been
/// told: dropping them finishes with an end or a reset, as the ending asks.
///
/// `early` are bytes that the socket's peer has sent already.
pub async fn relay(
    socket: &Stream,
    tunnel: &mut Tunnel,
    tunnel_is: TunnelIs,
    flow: &Flow,
    settings: &NodeSettings,
    early: Vec<u8>,
) -> Ending {
    // Its other end is elsewhere.
    flow.offload.set_why_not(WhyNot::NotLocal);
    let mut pump = Pump::new(socket, tunnel, tunnel_is, flow, early);
    let mut idle_timer = IdleTimer::new(settings.timeouts.idle);
    let mut stall_timer = None;
    let mut reset_watch = None;
    let ending = std::future::poll_fn(|cx| {
        if let Poll::Ready(ending) = flow.poll_end(cx) {
            return Poll::Ready(ending);
        }
        if let Poll::Ready(ending) = pump.poll(cx) {
            return Poll::Ready(ending);
        }
        if pump.is_blind_to_socket() {
            let watch = reset_watch.get_or_insert_with(|| Box::pin(socket.failed()));
            if watch.as_mut().poll(cx).is_ready() {
                reset_watch = None;
                pump.note_reset(Party::Socket);
                return pump.poll(cx);
            }
        }
        if pump.is_blind_to_tunnel() && pump.tunnel.poll_gone(cx).is_ready() {
            pump.note_reset(Party::Tunnel);
            return pump.poll(cx);
        }
        if pump
            .poll_stalled(&mut stall_timer, settings.hbone.stalled, cx)
            .is_ready()
        {
            return Poll::Ready(Ending::PeerStalled);
        }
        idle_timer.poll(cx, flow.bytes_moved(), false, || {
            // Accepted sockets have it from their listener.
            if tunnel_is == TunnelIs::Downstream
                && let Err(error) = socket::set_keepalive(socket, &settings.keepalive)
            {
                tracing::debug!(%error, "keepalive could not be set");
            }
        })
    })
    .await;
    let was_reset_by = pump.reset.as_ref().map(|(party, _)| *party);
    if ending.resets() {
        socket::reset_on_close(socket);
        tunnel.reset(match was_reset_by {
            Some(Party::Socket) => Reason::CONNECT_ERROR,
            _ => Reason::CANCEL,
        });
    } else {
        // The FIN is the close of the socket; by either, the connection has been counted and logged.
        tunnel.end_on_drop();
    }
    ending
}

struct Pump<'a> {
    socket: &'a Stream,
    tunnel: &'a mut Tunnel,
    tunnel_is: TunnelIs,
    flow: &'a Flow,
    to_tunnel: halves::ToTunnel,
    to_socket: halves::ToSocket,
    /// The party that was reset, and until when its last bytes may be delivered.
    reset: Option<(Party, Pin<Box<Sleep>>)>,
}

impl<'a> Pump<'a> {
    fn new(socket: &'a Stream, tunnel: &'a mut Tunnel, tunnel_is: TunnelIs, flow: &'a Flow, early: Vec<u8>) -> Self {
        Self {
            socket,
            tunnel,
            tunnel_is,
            flow,
            to_tunnel: halves::ToTunnel::new(early),
            to_socket: halves::ToSocket::default(),
            reset: None,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Ending> {
        if self.reset.is_none() {
            for party in [Party::Socket, Party::Tunnel] {
                if let Poll::Ready(Err(failed)) = self.step(party, cx) {
                    self.note_reset(match failed {
                        Failed::Sender => party,
                        Failed::Receiver => party.other(),
                    });
                    break;
                }
            }
        }
        if self.reset.is_some() {
            return self.poll_last_bytes(cx);
        }
        // What the tunnel's connection has not taken yet is in nobody's account but this flow's.
        let has_ended = self.to_tunnel.state() == State::Closed && self.to_socket.state() == State::Closed;
        if has_ended && self.tunnel.poll_flushed(cx).is_ready() {
            return Poll::Ready(Ending::Completed);
        }
        Poll::Pending
    }

    /// Ready when the socket has ended, and for `patience` the tunnel's peer has not taken what it had sent: nobody but the
    /// peer keeps the stream then.
    fn poll_stalled(&mut self, timer: &mut Option<IdleTimer>, patience: Duration, cx: &mut Context<'_>) -> Poll<()> {
        if timer.is_none() && !self.to_tunnel.is_stuck() && self.to_tunnel.state() != State::Closed {
            return Poll::Pending;
        }
        let moved = self.flow.bytes_moved();
        loop {
            let running = timer.get_or_insert_with(|| IdleTimer::new(patience));
            ready!(running.poll(cx, moved, false, || {}));
            if self.holds_last_bytes(cx) {
                return Poll::Ready(());
            }
            *timer = Some(IdleTimer::new(patience));
        }
    }

    /// Whether all that the socket will ever send is here, or as good as here, and not all of it has gone.
    fn holds_last_bytes(&self, cx: &mut Context<'_>) -> bool {
        match self.to_tunnel.state() {
            State::Closed => self.tunnel.poll_flushed(cx).is_pending(),
            State::Open | State::Ended => self.to_tunnel.is_stuck() && self.socket.peer_has_ended(cx),
        }
    }

    /// Moves what can be moved from `sender` to the other.
    fn step(&mut self, sender: Party, cx: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        let was_reset = self.reset.is_some();
        let (flow, way) = (self.flow, self.way_from(sender));
        let is_last = |other: State| other == State::Closed;
        let mut half = Half {
            socket: self.socket,
            tunnel: &mut *self.tunnel,
            was_reset,
            is_last: false,
            count: &|bytes| flow.count(way, bytes),
        };
        match sender {
            Party::Socket => {
                half.is_last = is_last(self.to_socket.state());
                self.to_tunnel.poll(&mut half, cx)
            }
            Party::Tunnel => {
                half.is_last = is_last(self.to_tunnel.state());
                self.to_socket.poll(&mut half, cx)
            }
        }
    }

    fn way_from(&self, sender: Party) -> Direction {
        match (sender, self.tunnel_is) {
            (Party::Tunnel, TunnelIs::Downstream) | (Party::Socket, TunnelIs::Upstream) => Direction::Out,
            (Party::Socket, TunnelIs::Downstream) | (Party::Tunnel, TunnelIs::Upstream) => Direction::In,
        }
    }

    fn note_reset(&mut self, party: Party) {
        if self.reset.is_none() {
            self.reset = Some((party, Box::pin(tokio::time::sleep(FLUSH_BEFORE_RESET))));
        }
    }

    /// After `party` was reset: deliver what it had sent, then end.
    fn poll_last_bytes(&mut self, cx: &mut Context<'_>) -> Poll<Ending> {
        let Some((party, deadline)) = &mut self.reset else {
            return Poll::Pending;
        };
        let party = *party;
        let expired = deadline.as_mut().poll(cx).is_ready();
        if !expired && !self.receiver_is_gone(party, cx) {
            if self.step(party, cx).is_pending() {
                return Poll::Pending;
            }
            if party == Party::Socket && self.tunnel.poll_flushed(cx).is_pending() {
                return Poll::Pending;
            }
        }
        let is_downstream = (party == Party::Tunnel) == (self.tunnel_is == TunnelIs::Downstream);
        Poll::Ready(match is_downstream {
            true => Ending::DownstreamReset,
            false => Ending::UpstreamReset,
        })
    }

    /// Whether the last bytes of `sender` have nobody left to go to; also registers to be told.
    fn receiver_is_gone(&mut self, sender: Party, cx: &mut Context<'_>) -> bool {
        sender == Party::Socket && self.tunnel.poll_gone(cx).is_ready()
    }

    /// True while a reset of the socket could go unnoticed, because nothing is being read from it.
    fn is_blind_to_socket(&self) -> bool {
        self.reset.is_none()
            && (self.to_tunnel.is_stuck() || self.to_tunnel.state() != State::Open || self.to_socket.is_stuck())
    }

    fn is_blind_to_tunnel(&self) -> bool {
        self.reset.is_none() && (self.to_socket.is_stuck() || self.to_socket.state() != State::Open)
    }
}

impl Party {
    fn other(self) -> Self {
        match self {
            Self::Socket => Self::Tunnel,
            Self::Tunnel => Self::Socket,
        }
    }
}
