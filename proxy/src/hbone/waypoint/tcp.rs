//! One tunnel to a waypoint for a service of which nothing is known above TCP: its bytes go to an endpoint as they are.
//!
//! The client is told that it is connected when an endpoint has answered; one that can't be led on gets a status that says so. Where what it speaks had to be found out, it
//! was told before, and what says no is a reset.
//!
//! **The end is TCP's.** END_STREAM and the endpoint's FIN stand for each other, each way for itself, and so do resets, behind the last bytes of the side that
//! broke off (`crate::http::tunnel`). Whatever else ends it (policy, a drain's deadline, a certificate that no longer stands, a limit of the chain) resets both.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::Request;
use tokio::time::Instant;
use underpass_config::waypoint::{Chain, TcpChain};
use underpass_config::{RequestLog, Text};

use super::endpoint::{Connected, Onward};
use crate::ending::Ending;
use crate::flow::Flow;
use crate::hbone::chunk::Chunk;
use crate::hbone::inbound::{Early, Peer, accept, answer_refusal};
use crate::hbone::tunnel::Tunnel;
use crate::http::Carried;
use crate::http::tunnel::{Account, Broke, End, Terms, carry};
use crate::offload::{Direction, WhyNot};
use crate::session::Session;
use crate::socket;
use crate::upstream::Refused;

/// A tunnel, and who opened it.
#[derive(Debug)]
pub struct Brought {
    /// Its connection.
    pub peer: Arc<Peer>,
    /// Its client.
    pub session: Session,
    /// The chain that leads on from here.
    pub chain: Text,
    /// Where it was going.
    pub to: SocketAddr,
}

impl Brought {
    /// Serves one that its client waits to be told of, until it is gone.
    pub async fn serve(self, request: Request<RecvStream>, respond: SendResponse<Chunk>) {
        let began = Instant::now();
        let (mut request, mut early) = (request, Early::new(self.peer.window.clone()));
        let connecting = Box::pin(async { self.onward().connect().await });
        let connected = match early.read_while(connecting, request.body_mut()).await {
            Ok(connected) => connected,
            Err(refused) => {
                self.log_refused(&refused);
                return answer_refusal(respond, &refused);
            }
        };
        match accept(respond, request.into_body(), early, self.peer.ends) {
            Some(tunnel) => self.carry(End::tunnel(tunnel, Bytes::new()), connected, began).await,
            None => self.lost(connected),
        }
    }

    /// The same for one that its client takes for connected, of which `early` was read, and given back to its window.
    pub async fn serve_opened(self, tunnel: Tunnel, early: Bytes) {
        let began = Instant::now();
        let mut client = End::tunnel(tunnel, early);
        let connected = {
            let onward = self.onward();
            let mut connecting = pin!(onward.connect());
            let connected = poll_fn(|cx| {
                client.gather(cx);
                connecting.as_mut().poll(cx)
            });
            tokio::select! {
                biased;
                // A client's reset is seen when it is to be told that it is connected.
                ending = self.peer.severing() => Err(Refused::from(ending)),
                connected = connected => connected,
            }
        };
        match connected {
            Ok(connected) => self.carry(client, connected, began).await,
            // What is dropped is reset.
            Err(refused) => self.log_refused(&refused),
        }
    }

    fn onward(&self) -> Onward<'_> {
        Onward {
            session: &self.session,
            chain: &self.chain,
            to: self.to,
        }
    }

    /// Its client went while it was being told.
    fn lost(&self, connected: Connected) {
        let Connected { stream, guard, .. } = connected;
        let endpoint = End::connection(stream);
        let flow = guard.finish(Ending::DownstreamReset);
        self.log(&flow, Ending::DownstreamReset, &endpoint);
    }

    /// Moves its bytes, and tells of its end.
    async fn carry(&self, mut client: End, connected: Connected, began: Instant) {
        let Connected {
            stream,
            guard,
            idle_timeout,
            max_duration,
            load: _load,
        } = connected;
        let terms = Terms {
            idle_timeout,
            lasts_until: max_duration.and_then(|limit| began.checked_add(limit)),
            stream_until: None,
            stalled: Some(self.session.node.snapshot().config.node.hbone.stalled),
            reason: Reason::CANCEL,
        };
        let flow = guard.flow().clone();
        let mut endpoint = End::connection(stream);
        flow.offload.set_why_not(WhyNot::NotLocal);
        let severing = async {
            flow.end(self.peer.severing().await);
            std::future::pending().await
        };
        let mut account = OfFlow(&flow);
        let ending = tokio::select! {
            biased;
            ending = flow.ended() => ending,
            carried = carry(&mut client, &mut endpoint, &terms, &mut account) => ending_of(carried),
            never = severing => never,
        };
        if ending == Ending::UpstreamReset {
            // RFC 9113, section 8.5.
            client.reset_with(Reason::CONNECT_ERROR);
        }
        // Logged and counted before what is left is reset.
        let flow = guard.finish(ending);
        self.log(&flow, ending, &endpoint);
    }

    fn log(&self, flow: &Flow, ending: Ending, endpoint: &End) {
        let log_is_on = self.session.node.telemetry.access_log.is_on();
        let socket = endpoint.socket().filter(|_| log_is_on);
        let quality = socket.as_ref().map(|socket| socket::quality(&**socket));
        self.session.log_flow(flow, ending, quality.unwrap_or_default());
        let denial = flow.denial().filter(|_| ending == Ending::PolicyRevoked);
        self.log_of_chain(ending, |carried, own| {
            let carried = Carried {
                endpoint: Some(flow.facts.destination),
                endpoint_local: endpoint.socket().and_then(|socket| socket.local_address().ok()),
                attempts: 1,
                received: flow.sent(),
                sent: flow.received(),
                detail: denial.as_ref().map(|denial| &*denial.why),
                ..carried
            };
            carried.log(own);
        });
    }

    /// Tells of one that was not connected.
    fn log_refused(&self, refused: &Refused) {
        self.session.log_refused(refused);
        self.log_of_chain(refused.ending, |carried, own| {
            let carried = Carried {
                endpoint: refused.target.as_ref().map(|target| target.address),
                attempts: u32::from(refused.target.is_some()),
                detail: refused.detail.as_deref(),
                ..carried
            };
            carried.log(own);
        });
    }

    /// Has it told in the logs that the chain has of its own, if it has some.
    fn log_of_chain(&self, ending: Ending, tell: impl FnOnce(Carried<'_>, &Arc<Vec<RequestLog>>)) {
        let snapshot = self.session.node.snapshot();
        let Some(Ok(chain)) = snapshot.config.http.chains.get(&self.chain) else {
            return;
        };
        let Chain::Tcp(TcpChain {
            clusters,
            logs: Some(own),
            ..
        }) = &**chain
        else {
            return;
        };
        let carried = Carried {
            session: &self.session,
            local: self.to,
            // Of several, nobody remembers which it was.
            cluster: match &clusters[..] {
                [only] => Some(&only.cluster),
                _ => None,
            },
            endpoint: None,
            endpoint_local: None,
            attempts: 0,
            received: 0,
            sent: 0,
            ending,
            detail: None,
            ended: SystemTime::now(),
        };
        tell(carried, own);
    }
}

fn ending_of(carried: Result<(), Broke>) -> Ending {
    match carried {
        Ok(()) => Ending::Completed,
        Err(Broke::Client) => Ending::DownstreamReset,
        Err(Broke::Endpoint) => Ending::UpstreamReset,
        Err(Broke::Idle) => Ending::IdleTimeout,
        Err(Broke::Stalled) => Ending::PeerStalled,
        Err(Broke::Lasted | Broke::StreamLasted) => Ending::DurationTimeout,
    }
}

/// Bytes are counted in the flow.
struct OfFlow<'f>(&'f Flow);

impl Account for OfFlow<'_> {
    fn up(&mut self, bytes: usize) {
        self.0.count(Direction::Out, bytes);
    }

    fn down(&mut self, bytes: usize) {
        self.0.count(Direction::In, bytes);
    }
}
