//! L4 policy inside an HTTP connection: which endpoints its client may reach.
//!
//! A request is not sent to an endpoint that policy denies its client. What was allowed is *watched*: an entry in the flow table, by which a later
//! denial finds this connection and ends it. As everywhere, the entry is made first and the snapshot looked at second, so that
//! one of the two sees a change (`crate::node`).

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use atomic_waker::AtomicWaker;
use underpass_config::{Decision, Workload};

use crate::authorization::judge;
use crate::ending::Ending;
use crate::flow::FlowFacts;
use crate::flow_table::{FlowGuard, PathEnds};
use crate::node::Snapshot;
use crate::session::Session;

/// Endpoints that are watched at once for one connection. One that uses more forgets the oldest, and asks again when it comes back to it.
const WATCHED: usize = 64;

/// What one connection's client may reach.
#[derive(Debug, Default)]
pub struct Permits {
    granted: Mutex<Vec<Granted>>,
    changed: AtomicWaker,
}

#[derive(Debug)]
struct Granted {
    address: SocketAddr,
    generation: u64,
    watch: FlowGuard,
}

/// Policy denies it, or the node serves nobody any more.
#[derive(Debug)]
pub struct Denied {
    /// Why, in words for the log.
    pub why: String,
}

impl Permits {
    fn granted(&self) -> MutexGuard<'_, Vec<Granted>> {
        self.granted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks policy for a way from the session's client to an endpoint.
    ///
    /// # Errors
    /// When it is denied.
    pub fn ask(&self, session: &Session, address: SocketAddr) -> Result<(), Denied> {
        loop {
            let snapshot = session.node.snapshot();
            if let Some(answer) = self.ask_by(session, &snapshot, address) {
                return answer;
            }
        }
    }

    /// By one snapshot; nothing if another has taken its place meanwhile.
    fn ask_by(&self, session: &Session, snapshot: &Snapshot, address: SocketAddr) -> Option<Result<(), Denied>> {
        let config = &snapshot.config;
        let destination = match session.node.pods.at(address.ip()) {
            // It has the last word, as in `upstream`.
            Some(pod) => match config.mesh.workload(&pod.uid) {
                Some(workload) => workload,
                None => {
                    let why = "the pod there is enrolled as a workload that the mesh does not know";
                    return Some(Err(Denied { why: why.into() }));
                }
            },
            None => match config.mesh.workload_at(&config.node.network, address.ip()) {
                Some(workload) => workload,
                // Nobody guards it.
                None => return Some(Ok(())),
            },
        };
        let is_known = |granted: &Granted| granted.address == address && granted.generation == snapshot.generation;
        if self.granted().iter().any(is_known) {
            return Some(Ok(()));
        }
        self.judge(session, snapshot, address, destination)
    }

    fn judge(
        &self,
        session: &Session,
        snapshot: &Snapshot,
        address: SocketAddr,
        destination: &Arc<Workload>,
    ) -> Option<Result<(), Denied>> {
        let config = &snapshot.config;
        let source = session.source.refreshed(&config.mesh, &config.node);
        if destination
            .application_tunnel
            .is_some_and(|tunnel| tunnel.proxy_protocol)
        {
            // As in `upstream`: it would take the client's words for its proxy's.
            let why = "it is told who its client is (PROXY protocol), and is reached over HBONE only";
            return Some(Err(Denied { why: why.into() }));
        }
        let verdict = judge(config, &source, address, Some(destination));
        let policy = match verdict.decision {
            Decision::Allow { policy } => policy,
            Decision::Deny { why, .. } => return Some(Err(Denied { why: why.to_string() })),
        };
        let ends = PathEnds::new(source.workload(), Some(destination), None, &config.node);
        let facts = FlowFacts {
            listener: session.entrance.name().clone(),
            pod: None,
            source,
            destination: address,
            destination_workload: Some(destination.clone()),
            service: None,
            policy,
            tunnel: None,
            is_judged_elsewhere: false,
        };
        let watch = session.node.flows.watch(session.core, ends, facts, session.started);
        if !session.node.is_current(snapshot) {
            watch.abandon();
            return None;
        }
        let mut granted = self.granted();
        granted.retain(|known| known.address != address);
        if granted.len() == WATCHED {
            granted.remove(0);
        }
        granted.push(Granted {
            address,
            generation: snapshot.generation,
            watch,
        });
        drop(granted);
        self.changed.wake();
        Some(Ok(()))
    }

    /// Ready when an endpoint that was allowed is denied.
    pub fn poll_revoked(&self, cx: &mut Context<'_>) -> Poll<Ending> {
        self.changed.register(cx.waker());
        let mut revoked = None;
        self.granted()
            .retain(|granted| match granted.watch.flow().poll_end(cx) {
                Poll::Pending => true,
                Poll::Ready(Ending::EndpointDrained) => false,
                Poll::Ready(ending) => {
                    revoked = Some(ending);
                    true
                }
            });
        revoked.map_or(Poll::Pending, Poll::Ready)
    }

    /// Forgets all of it, uncounted: what was watched was no connection.
    pub fn forget(&self) {
        for granted in self.granted().drain(..) {
            granted.watch.abandon();
        }
    }
}
