//! A joined flow, as the relay and whoever looks at a flow see it.
//!
//! Behind two traits, so that the relay can be tested against a kernel that does what the test says.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use tokio::sync::mpsc::UnboundedSender;
pub use underpass_ebpf::tier::{Direction, Tally, Ticket};
use underpass_ebpf::tier::{FlowMemory, JoinedFlow, note};

use super::{ToAgent, WhyNot};

/// What the kernel does for one joined flow; see [`JoinedFlow`].
pub trait KernelFlow: Send + Sync + fmt::Debug {
    /// Lets messages go past the proxy.
    fn arm(&self, direction: Direction);
    /// Has the next message come to the proxy.
    fn disarm(&self, direction: Direction);
    /// Whether messages may go past the proxy.
    fn is_armed(&self, direction: Direction) -> bool;
    /// Tells that `bytes` more were handed on, after they were.
    fn handed_on(&self, direction: Direction, bytes: u64);
    /// Bytes in the receiver's queue, as last measured.
    fn queued(&self, direction: Direction) -> u32;
    /// Bytes that may wait at the receiver, and 64 KiB more, before it might miss a reset.
    fn room(&self, direction: Direction) -> u32;
    /// What was counted since the join.
    fn tally(&self, direction: Direction) -> Tally;
    /// The core on which the sender was when it last outran the relay.
    fn sender_core(&self, direction: Direction) -> u32;
    /// Its name in [`KernelMemory::measure`].
    fn ticket(&self) -> Ticket;
}

/// The memory that flows are in.
pub trait KernelMemory: Send + Sync + fmt::Debug {
    /// Measures the queues of these flows.
    ///
    /// # Errors
    /// When the kernel refuses to.
    fn measure(&self, tickets: &[Ticket]) -> io::Result<()>;
}

impl KernelMemory for FlowMemory {
    fn measure(&self, tickets: &[Ticket]) -> io::Result<()> {
        FlowMemory::measure(self, tickets)
    }
}

/// A flow that the agent joined. Dropping it tells the agent that its place is free.
#[derive(Debug)]
pub struct Member {
    // First: dropping it disarms, and what it writes to is somebody else's afterwards.
    flow: JoinedFlow,
    _seat: Seat,
}

#[derive(Debug)]
struct Seat {
    ticket: Ticket,
    agent: UnboundedSender<ToAgent>,
}

impl Member {
    /// The flow with this ticket.
    pub fn new(memory: &Arc<FlowMemory>, ticket: Ticket, agent: UnboundedSender<ToAgent>) -> Self {
        Self {
            flow: memory.flow(ticket),
            _seat: Seat { ticket, agent },
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        // Without anybody to tell there is no agent whose place it could be.
        let _ = self.agent.send(ToAgent::Left(self.ticket));
    }
}

impl KernelFlow for Member {
    fn arm(&self, direction: Direction) {
        self.flow.arm(direction);
    }

    fn disarm(&self, direction: Direction) {
        self.flow.disarm(direction);
    }

    fn is_armed(&self, direction: Direction) -> bool {
        self.flow.is_armed(direction)
    }

    fn handed_on(&self, direction: Direction, bytes: u64) {
        self.flow.handed_on(direction, bytes);
    }

    fn queued(&self, direction: Direction) -> u32 {
        self.flow.queued(direction)
    }

    fn room(&self, direction: Direction) -> u32 {
        self.flow.room(direction)
    }

    fn tally(&self, direction: Direction) -> Tally {
        self.flow.tally(direction)
    }

    fn sender_core(&self, direction: Direction) -> u32 {
        self.flow.sender_core(direction)
    }

    fn ticket(&self) -> Ticket {
        self.flow.ticket()
    }
}

/// A flow's part in the kernel: shared between its relay, the waiting room, and those who look at it from outside.
#[derive(Debug)]
pub struct InKernel {
    flow: Box<dyn KernelFlow>,
    memory: Arc<dyn KernelMemory>,
    /// What was counted in the end, after which the memory may be another flow's.
    settled: OnceLock<[Tally; 2]>,
    parked: [AtomicBool; 2],
}

impl InKernel {
    /// A flow in `memory`.
    pub fn new(flow: Box<dyn KernelFlow>, memory: Arc<dyn KernelMemory>) -> Self {
        Self {
            flow,
            memory,
            settled: OnceLock::new(),
            parked: Default::default(),
        }
    }

    /// The kernel's side.
    pub fn flow(&self) -> &dyn KernelFlow {
        &*self.flow
    }

    /// Where it is.
    pub fn memory(&self) -> &Arc<dyn KernelMemory> {
        &self.memory
    }

    /// Has every message come to the proxy from now on.
    pub fn disarm(&self) {
        for direction in Direction::ALL {
            self.flow.disarm(direction);
        }
    }

    /// What went past the proxy in a direction, and what did not.
    pub fn tally(&self, direction: Direction) -> Tally {
        match self.settled.get() {
            Some(settled) => settled[direction as usize],
            None => self.flow.tally(direction),
        }
    }

    /// Counts no further: the flow has ended. (Where it ended in order both ends have said so, and nothing was left to count.)
    pub fn settle(&self) {
        self.disarm();
        self.settled
            .get_or_init(|| Direction::ALL.map(|direction| self.flow.tally(direction)));
    }

    /// Measures how long its receivers' queues are.
    ///
    /// # Errors
    /// When the kernel refuses to.
    pub fn measure(&self) -> io::Result<()> {
        self.memory.measure(&[self.flow.ticket()])
    }

    /// Whether the receiver was closed with bytes unread, which without a proxy resets the sender.
    pub fn was_closed_unread(&self, direction: Direction) -> bool {
        self.flow.tally(direction).notes & note::UNREAD_CLOSE != 0
    }

    /// Whether its sender is kept waiting for a receiver that does not read.
    pub fn is_parked(&self, direction: Direction) -> bool {
        self.parked[direction as usize].load(Ordering::Relaxed)
    }

    /// Notes whether it is.
    pub fn set_parked(&self, direction: Direction, parked: bool) {
        self.parked[direction as usize].store(parked, Ordering::Relaxed);
    }

    /// Why the kernel lets nothing past the proxy any more in a direction, although it was joined.
    pub fn why_closed(&self, direction: Direction) -> Option<WhyNot> {
        let reasons = [
            (note::ASKED_ZEROCOPY, WhyNot::Zerocopy),
            (note::ASKED_LOWAT, WhyNot::Lowat),
            (note::ASKED_ULP, WhyNot::Ulp),
            (note::ASKED_REPAIR, WhyNot::Repair),
            (note::SPLICES, WhyNot::Splices),
            (note::DETACHED, WhyNot::Detached),
        ];
        let notes = self.tally(direction).notes;
        let known = reasons.into_iter().find(|(bit, _)| notes & bit != 0);
        known.map(|(_, why)| why).or((notes != 0).then_some(WhyNot::Ending))
    }
}
