//! One relayed connection, as the rest of the proxy sees it: what it is, what it has moved, and how to end it.
//!
//! A `Flow` is shared between the task that relays it and everything that looks at it from outside (metrics, the admin
//! view, policy re-evaluation). The task writes the counters, each with a plain add; outsiders read them, and may ask the flow to
//! end. `FlowGuard` is the task's side: dropping it takes the flow out of the table, with its counts, whatever path the
//! task leaves by.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::SystemTime;

use atomic_waker::AtomicWaker;
use underpass_config::{OffloadSettings, PolicyKey, ServiceKey, Text, Workload};

use crate::ending::Ending;
use crate::offload::{Direction, FlowOffload};
use crate::source::Source;

/// Number of a flow, unique in the process for as long as it is open.
pub type FlowId = u64;

/// What a flow is, settled when its endpoint was chosen.
#[derive(Clone, Debug)]
pub struct FlowFacts {
    /// Name of the listener that accepted it.
    pub listener: Text,
    /// Who opened it.
    pub source: Source,
    /// The network namespace of the enrolled pod that its sockets are in, if they are in one.
    pub pod: Option<u64>,
    /// The address that is connected to.
    pub destination: SocketAddr,
    /// The workload at that address, when the mesh knows one.
    pub destination_workload: Option<Arc<Workload>>,
    /// The service it was opened to, if by service.
    pub service: Option<ServiceKey>,
    /// The ALLOW policy that let it in, if one was needed.
    pub policy: Option<PolicyKey>,
    /// The other end of the tunnel that carries it, if one does.
    pub tunnel: Option<SocketAddr>,
    /// Whether it goes to a waypoint, which judges it.
    pub is_judged_elsewhere: bool,
    /// By which of a waypoint's chains it goes, if it does: the rules of that judge it.
    pub chain: Option<ByChain>,
}

/// A waypoint's chain, as one connection was led to it.
#[derive(Clone, Debug)]
pub struct ByChain {
    /// Its name.
    pub name: Text,
    /// Where the connection was going.
    pub to: SocketAddr,
}

impl FlowFacts {
    /// Whether `settings` let it into the kernel.
    pub fn may_offload(&self, settings: &OffloadSettings) -> bool {
        let source = self.source.workload().map(|workload| &**workload);
        settings.allows(source, self.destination_workload.as_deref(), self.destination.port())
    }
}

/// Who denied a connection, and why.
#[derive(Clone, Debug)]
pub struct Denial {
    /// The policy; none when ALLOW policies guard the destination and none of them matched.
    pub policy: Option<PolicyKey>,
    /// Why, in words.
    pub why: String,
}

/// One open connection.
#[derive(Debug)]
pub struct Flow {
    /// What it is.
    pub facts: FlowFacts,
    /// When the client was accepted.
    pub started: SystemTime,
    /// Its standing with the kernel tier.
    pub offload: FlowOffload,
    /// Whether it is no connection, but what a connection may reach (`FlowTable::watch`).
    pub is_watch: bool,
    sent: AtomicU64,
    received: AtomicU64,
    requested_end: AtomicU8,
    established: AtomicBool,
    denial: OnceLock<Box<Denial>>,
    waker: AtomicWaker,
}

impl Flow {
    /// A flow that has moved nothing yet; the settings let it into the kernel or not.
    pub fn new(facts: FlowFacts, started: SystemTime, may_offload: bool) -> Self {
        let offload = FlowOffload::new(may_offload);
        Self {
            facts,
            started,
            offload,
            is_watch: false,
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            requested_end: AtomicU8::new(0),
            established: AtomicBool::new(false),
            denial: OnceLock::new(),
            waker: AtomicWaker::new(),
        }
    }

    /// What is entered only to be found by what comes to deny it.
    pub fn watch(facts: FlowFacts, started: SystemTime) -> Self {
        Self {
            is_watch: true,
            ..Self::new(facts, started, false)
        }
    }

    /// Bytes that the destination's kernel has taken from the client, whichever way they went.
    pub fn sent(&self) -> u64 {
        self.moved(Direction::Out)
    }

    /// Bytes that the client's kernel has taken from the destination, whichever way they went.
    pub fn received(&self) -> u64 {
        self.moved(Direction::In)
    }

    fn moved(&self, direction: Direction) -> u64 {
        self.relayed(direction).wrapping_add(self.offload.bypassed(direction))
    }

    /// Bytes of a direction that went through the proxy.
    pub fn relayed(&self, direction: Direction) -> u64 {
        match direction {
            Direction::Out => self.sent.load(Ordering::Relaxed),
            Direction::In => self.received.load(Ordering::Relaxed),
        }
    }

    /// Bytes moved in both directions.
    pub fn bytes_moved(&self) -> u64 {
        self.sent().wrapping_add(self.received())
    }

    /// Counts bytes that were relayed. Only the relaying task does, so a load and a store are enough: no locked instruction for each chunk.
    pub fn count(&self, direction: Direction, bytes: usize) {
        let counter = match direction {
            Direction::Out => &self.sent,
            Direction::In => &self.received,
        };
        let counted = counter.load(Ordering::Relaxed);
        counter.store(counted.wrapping_add(bytes as u64), Ordering::Relaxed);
    }

    /// Whether the destination has been connected to.
    pub fn is_established(&self) -> bool {
        self.established.load(Ordering::Relaxed)
    }

    /// Notes that the destination has been connected to.
    pub fn establish(&self) {
        self.established.store(true, Ordering::Relaxed);
    }

    /// Asks the flow to end; the first reason given stays. From now on nothing of it passes by the proxy.
    pub fn end(&self, ending: Ending) {
        let _ = self
            .requested_end
            .compare_exchange(0, ending as u8, Ordering::SeqCst, Ordering::Relaxed);
        self.offload.disarm();
        self.waker.wake();
    }

    /// Notes whether the settings let it into the kernel.
    pub fn set_offload_allowed(&self, allowed: bool) {
        self.offload.set_allowed(allowed);
        self.waker.wake();
    }

    /// Asks the flow to end because policy denies it now.
    pub fn deny(&self, denial: Denial) {
        let _ = self.denial.set(Box::new(denial));
        self.end(Ending::PolicyRevoked);
    }

    /// Who denied it while it was open.
    pub fn denial(&self) -> Option<&Denial> {
        self.denial.get().map(|denial| &**denial)
    }

    /// The end that was asked for, if one was.
    pub fn requested_end(&self) -> Option<Ending> {
        Ending::from_discriminant(self.requested_end.load(Ordering::SeqCst))
    }

    /// Ready once an end was asked for.
    pub fn poll_end(&self, cx: &mut Context<'_>) -> Poll<Ending> {
        if let Some(ending) = self.requested_end() {
            return Poll::Ready(ending);
        }
        self.waker.register(cx.waker());
        // Asked for between the look and the registration?
        self.requested_end().map_or(Poll::Pending, Poll::Ready)
    }

    /// Resolves when an end was asked for.
    pub async fn ended(&self) -> Ending {
        std::future::poll_fn(|cx| self.poll_end(cx)).await
    }
}
