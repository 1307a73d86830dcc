//! L4 policy inside an HTTP connection: which endpoints its client may reach.
//!
//! A request is not sent to an endpoint that policy denies its client. What was allowed is *watched*: an entry in the flow table, by which a later
//! denial finds this connection and ends it. As everywhere, the entry is made first and the snapshot looked at second, so that
//! one of the two sees a change (`crate::node`).

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use atomic_waker::AtomicWaker;
use underpass_config::{BalanceMode, Config, Decision, Verdict, Workload};

use crate::authorization::judge;
use crate::ending::Ending;
use crate::flow::FlowFacts;
use crate::flow_table::{FlowGuard, PathEnds};
use crate::node::Snapshot;
use crate::session::Session;

/// What one connection's client may reach.
#[derive(Debug, Default)]
pub struct Permits {
    /// None is forgotten while a request may be on its way there; beyond [`KEPT`] others are, where DNS or updates bring ever new endpoints.
    granted: Mutex<Vec<Granted>>,
    bell: Arc<Bell>,
}

/// What is rung when something was granted or ended: the connection looks only then, however often it is woken and however many endpoints
/// it may reach.
#[derive(Debug, Default)]
struct Bell {
    has_rung: AtomicBool,
    connection: AtomicWaker,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.has_rung.store(true, Ordering::Release);
        self.connection.wake();
    }
}

/// Endpoints that one connection may reach without asking again.
const KEPT: usize = 1024;

#[derive(Debug)]
struct Granted {
    address: SocketAddr,
    generation: u64,
    watch: FlowGuard,
    /// One for each request that may be on its way there, and this.
    users: Arc<()>,
}

/// A way that policy has allowed, for one request: until it is dropped, a later denial ends the connection.
#[derive(Debug)]
pub struct Permit(#[allow(dead_code, reason = "it is counted")] Arc<()>);

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

    /// Asks policy for a way from the session's client to an endpoint, perhaps `by_hbone`.
    ///
    /// # Errors
    /// When it is denied.
    pub fn ask(&self, session: &Session, address: SocketAddr, by_hbone: bool) -> Result<Permit, Denied> {
        loop {
            let snapshot = session.node.snapshot();
            if let Some(answer) = self.ask_by(session, &snapshot, address, by_hbone) {
                return answer;
            }
        }
    }

    /// By one snapshot; nothing if another has taken its place meanwhile.
    fn ask_by(
        &self,
        session: &Session,
        snapshot: &Snapshot,
        address: SocketAddr,
        by_hbone: bool,
    ) -> Option<Result<Permit, Denied>> {
        let destination = match whose(session, &snapshot.config, address, by_hbone) {
            Ok(workload) => workload,
            Err(denied) => return Some(Err(denied)),
        };
        let is_known = |granted: &&Granted| granted.address == address && granted.generation == snapshot.generation;
        if let Some(granted) = self.granted().iter().find(is_known) {
            return Some(Ok(Permit(granted.users.clone())));
        }
        self.judge(session, snapshot, address, destination)
    }

    fn judge(
        &self,
        session: &Session,
        snapshot: &Snapshot,
        address: SocketAddr,
        destination: Option<&Arc<Workload>>,
    ) -> Option<Result<Permit, Denied>> {
        let config = &snapshot.config;
        let source = session.source.refreshed(&config.mesh, &config.node);
        let is_judged_elsewhere = session.entrance.is_waypoint();
        let verdict = match is_judged_elsewhere {
            true => Verdict::allowed(),
            false => judge(config, &source, address, destination.map(|workload| &**workload)),
        };
        let policy = match verdict.decision {
            Decision::Allow { policy } => policy,
            Decision::Deny { why, .. } => return Some(Err(Denied { why: why.to_string() })),
        };
        let ends = PathEnds::new(source.workload(), destination, None, &config.node);
        let facts = FlowFacts {
            listener: session.entrance.name().clone(),
            pod: None,
            source,
            destination: address,
            destination_workload: destination.cloned(),
            service: None,
            policy,
            tunnel: None,
            is_judged_elsewhere,
            chain: None,
        };
        let watch = session.node.flows.watch(session.core, ends, facts, session.started);
        if !session.node.is_current(snapshot) {
            watch.abandon();
            return None;
        }
        let permit = self.grant(address, snapshot.generation, watch);
        self.bell.wake_by_ref();
        Some(Ok(permit))
    }

    fn grant(&self, address: SocketAddr, generation: u64, watch: FlowGuard) -> Permit {
        let mut granted = self.granted();
        let before = granted.iter().position(|known| known.address == address);
        // Those that are on their way there by what was granted before are still.
        let before = before.map(|index| granted.swap_remove(index));
        let users = before.as_ref().map_or_else(Arc::default, |known| known.users.clone());
        let forgotten: Vec<Granted> = match granted.len() >= KEPT {
            true => granted
                .extract_if(.., |known| Arc::strong_count(&known.users) == 1)
                .collect(),
            false => Vec::new(),
        };
        let permit = Permit(users.clone());
        granted.push(Granted {
            address,
            generation,
            watch,
            users,
        });
        drop(granted);
        for known in forgotten.into_iter().chain(before) {
            known.watch.abandon();
        }
        permit
    }

    /// Ready when an endpoint that was allowed is denied.
    pub fn poll_revoked(&self, cx: &mut Context<'_>) -> Poll<Ending> {
        self.bell.connection.register(cx.waker());
        // Rung before this, it is seen; after it, it wakes.
        if !self.bell.has_rung.swap(false, Ordering::Acquire) {
            return Poll::Pending;
        }
        let bell = Waker::from(self.bell.clone());
        let mut watching = Context::from_waker(&bell);
        let mut revoked = None;
        self.granted()
            .retain(|granted| match granted.watch.flow().poll_end(&mut watching) {
                Poll::Pending => true,
                Poll::Ready(Ending::EndpointDrained) => false,
                Poll::Ready(ending) => {
                    revoked = Some(ending);
                    true
                }
            });
        match revoked {
            Some(ending) => {
                // Whoever asks again is told again.
                self.bell.has_rung.store(true, Ordering::Release);
                Poll::Ready(ending)
            }
            None => Poll::Pending,
        }
    }

    /// Forgets all of it, uncounted: what was watched was no connection.
    pub fn forget(&self) {
        for granted in self.granted().drain(..) {
            granted.watch.abandon();
        }
    }
}

/// Whether what is at a service's virtual address is its endpoint (a ServiceEntry whose addresses are not resolved): nobody guards anything behind it.
fn is_its_own_endpoint(config: &Config, address: SocketAddr) -> bool {
    let service = config
        .mesh
        .service_at(&config.node.network, address.ip(), address.port());
    service.is_some_and(|state| state.service().load_balancing.mode == BalanceMode::Passthrough)
}

/// The workload at an endpoint, which is reached perhaps `by_hbone`; none: none that the mesh knows.
///
/// # Errors
/// When nobody may be led there, whoever it is.
pub fn whose<'c>(
    session: &Session,
    config: &'c Config,
    address: SocketAddr,
    by_hbone: bool,
) -> Result<Option<&'c Arc<Workload>>, Denied> {
    let denied = |why: &str| Denied { why: why.into() };
    let network = &config.node.network;
    let destination = match session.node.pods.at(address.ip()) {
        // It has the last word, as in `upstream`.
        Some(pod) => Some(config.mesh.workload(&pod.uid).ok_or_else(|| {
            let why = "the pod there is enrolled as a workload that the mesh does not know";
            denied(why)
        })?),
        None => match config.mesh.workload_at(network, address.ip()) {
            // Whoever guards what is behind it would not see that the way leads there.
            None if config.mesh.is_vip(network, address.ip()) && !is_its_own_endpoint(config, address) => {
                let why = "it is the virtual address of a service: name its endpoints in the cluster";
                return Err(denied(why));
            }
            // Nobody guards it as yet: it is watched by its address.
            workload => workload,
        },
    };
    let tunnel = destination.and_then(|workload| workload.application_tunnel.as_ref());
    if !by_hbone && tunnel.is_some_and(|tunnel| tunnel.proxy_protocol) {
        // As in `upstream`: it would take the client's words for its proxy's. Where HBONE leads, the proxy there writes them.
        let why = "it is told who its client is (PROXY protocol), and is reached over HBONE only";
        return Err(denied(why));
    }
    Ok(destination)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;
    use std::time::{Duration, SystemTime};

    use underpass_config::NodeSettings;

    use super::*;
    use crate::flow_table::FlowTable;
    use crate::source::Source;

    /// Permits to `count` endpoints that have been looked at.
    fn granted(count: u16) -> Permits {
        let (table, settings) = (Arc::new(FlowTable::new(1)), NodeSettings::default());
        let source = Source::unidentified(([127, 0, 0, 1], 1000).into());
        let permits = Permits::default();
        for port in 1..=count {
            let address = ([127, 0, 0, 1], port).into();
            let facts = FlowFacts {
                listener: "test".into(),
                pod: None,
                source: source.clone(),
                destination: address,
                destination_workload: None,
                service: None,
                policy: None,
                tunnel: None,
                is_judged_elsewhere: false,
                chain: None,
            };
            let ends = PathEnds::new(None, None, None, &settings);
            permits.grant(address, 0, table.watch(0, ends, facts, SystemTime::now()));
            permits.bell.wake_by_ref();
        }
        assert!(look(&permits).is_pending());
        permits
    }

    fn look(permits: &Permits) -> Poll<Ending> {
        permits.poll_revoked(&mut Context::from_waker(Waker::noop()))
    }

    /// A connection is woken with each message.
    #[test]
    fn no_endpoint_is_looked_at_while_none_is_revoked() {
        let permits = granted(3);
        thread::scope(|scope| {
            // Whoever looked at them would wait for this.
            let locked = permits.granted();
            let (tell, told) = mpsc::channel();
            let permits = &permits;
            scope.spawn(move || tell.send(look(permits).is_pending()));
            assert_eq!(told.recv_timeout(Duration::from_secs(10)), Ok(true));
            drop(locked);
        });
    }

    #[test]
    fn whatever_is_revoked_wakes_its_connection_and_is_told_as_often_as_it_is_asked_for() {
        struct Woken(AtomicBool);
        impl Wake for Woken {
            fn wake(self: Arc<Self>) {
                self.0.store(true, Ordering::SeqCst);
            }
        }
        for revoked in 0..3 {
            let permits = granted(3);
            let woken = Arc::new(Woken(AtomicBool::new(false)));
            let waker = Waker::from(woken.clone());
            let mut cx = Context::from_waker(&waker);
            assert!(permits.poll_revoked(&mut cx).is_pending());
            assert!(!woken.0.load(Ordering::SeqCst));
            permits.granted()[revoked].watch.flow().end(Ending::PolicyRevoked);
            assert!(woken.0.load(Ordering::SeqCst));
            for _ in 0..2 {
                assert_eq!(permits.poll_revoked(&mut cx), Poll::Ready(Ending::PolicyRevoked));
            }
        }
    }

    /// One that has left the mesh is no denial.
    #[test]
    fn an_endpoint_that_is_gone_is_forgotten() {
        let permits = granted(3);
        permits.granted()[1].watch.flow().end(Ending::EndpointDrained);
        assert!(look(&permits).is_pending());
        assert_eq!(permits.granted().len(), 2);
    }
}
