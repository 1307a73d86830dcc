//! One CONNECT stream to a waypoint: it was opened for a service, whose requests are served as those of a listener are, or whose bytes are carried to an endpoint.
//!
//! The client is the peer that the handshake verified: a node's proxy connects as the workload that it speaks for. Where the stream leads, says the configuration
//! ([`Http::waypoint`](underpass_config::http::Http::waypoint)): what it does not know is refused, and so is what of it is not understood.

mod endpoint;
mod lead;
mod tcp;

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::{Request, Response};
use underpass_config::Text;

use super::chunk::Chunk;
use super::inbound::{Peer, answer_refusal};
use super::tunnel::Tunnel;
use super::windows::Held;
use crate::ending::Ending;
use crate::http::{self as requests, Downstream, OfTcp};
use crate::session::Session;
use lead::{Led, lead};
use tcp::Brought;

/// What is waited for, by what it comes to: the compiler does not look for all that a stream may lead to through the connection that it is one of.
type Erased<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Serves one stream until it is gone.
pub async fn serve(peer: &Arc<Peer>, session: Session, request: Request<RecvStream>, respond: SendResponse<Chunk>) {
    let led = lead(&session.node.snapshot().config, &request);
    let (to, led) = match led {
        Ok(led) => led,
        Err(refused) => {
            session.refuse(&refused);
            return answer_refusal(respond, &refused);
        }
    };
    match led {
        Led::Requests(table) => {
            Box::pin(serve_requests(peer, session, (to, table, None), request, respond)).await;
        }
        Led::Bytes(chain) => {
            let brought = Brought {
                peer: peer.clone(),
                session,
                chain,
                to,
            };
            let serving: Erased<()> = Box::pin(brought.serve(request, respond));
            serving.await;
        }
        Led::Either {
            requests,
            bytes,
            patience,
        } => {
            let whither = (to, requests, Some(patience));
            let of_tcp = Box::pin(serve_requests(peer, session, whither, request, respond)).await;
            let Some(OfTcp {
                session,
                downstream: Downstream::Tunnel(tunnel),
                early,
            }) = of_tcp
            else {
                return;
            };
            let brought = Brought {
                peer: peer.clone(),
                session,
                chain: bytes,
                to,
            };
            let serving: Erased<()> = Box::pin(brought.serve_opened(*tunnel, Bytes::from(early)));
            serving.await;
        }
    }
}

/// Serves requests that go through a table. With a `patience`, what shows itself to be none in that time is given back.
async fn serve_requests(
    peer: &Peer,
    session: Session,
    (to, table, patience): (SocketAddr, Text, Option<Duration>),
    request: Request<RecvStream>,
    mut respond: SendResponse<Chunk>,
) -> Option<OfTcp> {
    let Ok(send) = respond.send_response(Response::new(()), false) else {
        session.refuse(&Ending::DownstreamReset.into());
        return None;
    };
    let held = Held::new(peer.window.clone());
    let tunnel = Tunnel::new(send, request.into_body(), peer.ends, held, None);
    let downstream = Downstream::Tunnel(Box::new(tunnel));
    let serving: Erased<Option<OfTcp>> = Box::pin(requests::serve(session, downstream, to, table, patience));
    tokio::select! {
        biased;
        // What is dropped is reset.
        ending = peer.severing() => {
            tracing::debug!(peer = %peer.ends.peer, %ending, "a stream of a waypoint is reset");
            None
        }
        of_tcp = serving => of_tcp,
    }
}
