//! The kernel tier, the proxy's half: which flows leave the proxy for the kernel, how they get there, and what is known of them.
//!
//! A flow always begins in the relay. When it has lasted ([`OffloadAfter`](underpass_config::OffloadAfter)), when both its ends are on this
//! node and the settings let it, the relay holds still for a moment and the agent is asked to join the flow's four sockets. From
//! then on each message goes from the sender's socket into the receiver's queue, past the proxy, or comes to the proxy
//! as before: that is the kernel's to decide, for each message, and the relay's part is in `relay`.
//!
//! ```text
//!             due?           nothing stuck, then asked          joined
//! Relayed ──────────> Holding ─────────────────────────> Joined ──────────> ended
//!    ^                   │ not quiet in time, refused         │ armed or not, at any byte: settings, policy, the kernel itself
//!    └── later, and says why ([`WhyNot`])                     └ disarmed, it still goes on by redirect
//! ```
//!
//! **Whatever is in doubt stays in the relay.** No agent, a tier that is off, a socket that the kernel cannot take: the flow goes on as it
//! was, and says why in one word, the same in the admin view and the metrics.

mod blocking;
mod counts;
#[cfg(test)]
pub mod fake;
mod flow;
mod kernel;
mod locality;
mod waiting_room;
mod why_not;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use arc_swap::ArcSwap;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;
use underpass_config::{ByteSize, OffloadSettings};

use crate::handover::Side;
use crate::stream::Stream;
use blocking::Blocking;
pub use blocking::Ends;
pub use counts::{Counts, TierCounts};
pub use flow::FlowOffload;
#[cfg(test)]
pub use kernel::KernelFlow;
pub use kernel::{Direction, InKernel, KernelMemory, Member, Tally, Ticket};
pub use locality::Locality;
#[cfg(test)]
pub use locality::Near;
pub use waiting_room::{Place, WaitingRoom};
pub use why_not::WhyNot;

/// Joins that the agent may be asked for at once. More would wait, holding still; and an agent that hangs holds no more flows than these.
const ASKED_AT_ONCE: u32 = 64;

/// The kernel tier of one node.
#[derive(Debug, Default)]
pub struct Offload {
    agent: ArcSwap<Agency>,
    asked: Arc<AtomicU32>,
    blocking: Blocking,
    /// Where flows wait until a receiver has read.
    pub room: WaitingRoom,
    /// What it has done.
    pub counts: Counts,
}

/// Who could join a flow.
#[derive(Debug, Default)]
pub enum Agency {
    /// Nobody.
    #[default]
    NoAgent,
    /// An agent, which says why it does not.
    Off(String),
    /// An agent that does.
    Joins {
        /// How to ask it.
        agent: UnboundedSender<ToAgent>,
        /// Why programs that read by splice(2) are not noticed on this node, if they are not.
        blind: Option<String>,
    },
}

impl Agency {
    /// The agent that joins, if there is one; `trust_readers` is the setting.
    fn joining(&self, trust_readers: bool) -> Option<&UnboundedSender<ToAgent>> {
        match self {
            Self::Joins { agent, blind } if trust_readers || blind.is_none() => Some(agent),
            _ => None,
        }
    }
}

/// What the agent is to be told.
#[derive(Debug)]
pub enum ToAgent {
    /// Join a flow.
    Join(JoinOrder),
    /// A flow has ended.
    Left(Ticket),
}

/// A wish to have a flow joined.
#[derive(Debug)]
pub struct JoinOrder {
    /// The proxy's socket towards the client.
    pub downstream: OwnedFd,
    /// The proxy's socket towards the destination.
    pub upstream: OwnedFd,
    /// Bytes that may wait at a receiver.
    pub limit: ByteSize,
    /// Who waits for the answer; dropping it without one means that there is no agent any more.
    pub answer: Reply,
}

/// The flow in the kernel, or why it is not there.
pub type JoinAnswer = Result<Arc<InKernel>, Refusal>;

/// Why a flow was not joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub why: WhyNot,
    /// Whose socket is the reason.
    pub side: Option<Side>,
    /// Whether it may be different in a moment.
    pub again: bool,
}

impl From<WhyNot> for Refusal {
    fn from(why: WhyNot) -> Self {
        Self {
            why,
            side: None,
            again: false,
        }
    }
}

/// The place to put the answer to a [`JoinOrder`].
#[derive(Debug)]
pub struct Reply {
    sender: oneshot::Sender<JoinAnswer>,
    _asked: Asked,
}

impl Reply {
    /// Answers. Who asked may have gone; what was joined for it is dropped then, which says so to the agent.
    pub fn send(self, answer: JoinAnswer) {
        let _ = self.sender.send(answer);
    }
}

/// One of [`ASKED_AT_ONCE`].
#[derive(Debug)]
struct Asked(Arc<AtomicU32>);

impl Drop for Asked {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Offload {
    /// Notes who joins flows from now on. Flows that are joined stay so.
    pub fn set_agency(&self, agency: Agency) {
        self.agent.store(Arc::new(agency));
    }

    /// Whether there is a kernel tier, in a word, and the reason if it is off; `trust_readers` is the setting.
    pub fn state(&self, trust_readers: bool) -> (&'static str, Option<String>) {
        match &**self.agent.load() {
            Agency::NoAgent => ("no_agent", None),
            Agency::Off(reason) => ("off", Some(reason.clone())),
            Agency::Joins {
                blind: Some(reason), ..
            } if !trust_readers => {
                let remedy = "set node.offload.trust_readers if no program on this node does that";
                let reason = format!("programs that read by splice(2) would not be noticed ({reason}); {remedy}");
                ("off", Some(reason))
            }
            Agency::Joins { .. } => ("on", None),
        }
    }

    /// Whether flows can be joined now.
    pub fn is_on(&self, settings: &OffloadSettings) -> bool {
        self.agent.load().joining(settings.trust_readers).is_some()
    }

    /// What speaks against moving a flow now.
    pub fn objection(&self, flow: &FlowOffload, ends: &Ends, settings: &OffloadSettings) -> Option<WhyNot> {
        if flow.is_forbidden() {
            return Some(WhyNot::OffBySettings);
        }
        let agency = self.agent.load();
        if matches!(**agency, Agency::NoAgent) {
            return Some(WhyNot::NoAgent);
        }
        if agency.joining(settings.trust_readers).is_none() {
            return Some(WhyNot::TierOff);
        }
        if self.asked.load(Ordering::Relaxed) >= ASKED_AT_ONCE {
            return Some(WhyNot::AgentBusy);
        }
        self.blocking.knows(ends).then_some(WhyNot::Blocking)
    }

    /// Asks the agent to join the flow of two sockets, from which nothing is read, and to which nothing is sent, until the answer is there.
    ///
    /// # Errors
    /// When there is nobody to ask.
    pub fn ask(
        &self,
        downstream: &Stream,
        upstream: &Stream,
        limit: ByteSize,
    ) -> Result<oneshot::Receiver<JoinAnswer>, WhyNot> {
        let agent = self.agent.load();
        let Agency::Joins { agent, .. } = &**agent else {
            return Err(WhyNot::NoAgent);
        };
        let copy = |stream: &Stream| rustix::io::fcntl_dupfd_cloexec(stream, 0).map_err(|_| WhyNot::System);
        let (sender, answer) = oneshot::channel();
        self.asked.fetch_add(1, Ordering::Relaxed);
        let reply = Reply {
            sender,
            _asked: Asked(self.asked.clone()),
        };
        let order = JoinOrder {
            downstream: copy(downstream)?,
            upstream: copy(upstream)?,
            limit,
            answer: reply,
        };
        match agent.send(ToAgent::Join(order)) {
            Ok(()) => Ok(answer),
            Err(_) => Err(WhyNot::NoAgent),
        }
    }

    /// Counts a join.
    pub fn joined(&self, ends: &Ends) {
        self.counts.count_join();
        self.blocking.joined(ends);
    }

    /// Counts a refusal, and remembers what will not change while the application runs.
    pub fn refused(&self, refusal: &Refusal, ends: &Ends) {
        self.counts.count_refusal(refusal.why);
        if let (WhyNot::Blocking, Some(side)) = (refusal.why, refusal.side) {
            self.blocking.remember(ends, side);
        }
    }
}
