//! The proxy's view of joined flows.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use rustix::thread::sched_getcpu;
use underpass_ebpf_abi::tier::{FlowEntry, FlowId, MAX_FLOWS, MEASURED_AT_ONCE};

use super::memory::{DirectionCells, Mapping};
use super::{Direction, Ticket};
use crate::bpf::test_run;
use crate::bpf::{Map, map_type};

/// The memory that the proxy shares with the kernel's programs, and the program by which it asks how long queues are.
/// Both were handed to it by the agent; no capability is needed to use them.
#[derive(Debug)]
pub struct FlowMemory {
    mapping: Mapping,
    measure: OwnedFd,
}

/// What the kernel counted in one direction of a flow since the join.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Bytes that went past the proxy.
    pub bypassed_bytes: u64,
    /// Messages that did.
    pub bypassed_messages: u64,
    /// Messages left to the proxy because earlier ones were still on their way.
    pub behind: u64,
    /// Messages left to the proxy because the receiver's queue was at the limit.
    pub full: u64,
    /// Messages left to TCP because a system call was at work on the receiver's socket for too long.
    pub busy: u64,
    /// Why the direction will not be armed again: bits of [`super::note`].
    pub notes: u32,
}

impl FlowMemory {
    /// From the descriptors of the map `FLOWS` and the program `measure`.
    ///
    /// # Errors
    /// When the first is not that map, or cannot be mapped.
    pub fn from_fds(flows: OwnedFd, measure: OwnedFd) -> io::Result<Self> {
        let map = Map::new(flows)?;
        let info = map.info();
        let found = (info.kind, info.value_size as usize, info.max_entries);
        if found != (map_type::ARRAY, size_of::<FlowEntry>(), MAX_FLOWS) {
            return Err(io::Error::other(format!("not the map of flows: {info:?}")));
        }
        Ok(Self {
            mapping: Mapping::new(map.as_fd())?,
            measure,
        })
    }

    /// Has the kernel look how long the receivers' queues are now ([`JoinedFlow::queued`]), in as few calls as it
    /// takes.
    ///
    /// # Errors
    /// When the program cannot be run.
    pub fn measure(&self, tickets: &[Ticket]) -> io::Result<()> {
        for tickets in tickets.chunks(MEASURED_AT_ONCE) {
            let mut ids = [FlowId::default(); MEASURED_AT_ONCE];
            for (id, ticket) in ids.iter_mut().zip(tickets) {
                *id = ticket.id();
            }
            test_run::ask(self.measure.as_fd(), &ids[..tickets.len()])?;
        }
        Ok(())
    }

    /// The flow of a ticket. Both directions are unarmed.
    ///
    /// # Panics
    /// When there is no such place.
    pub fn flow(self: &Arc<Self>, ticket: Ticket) -> JoinedFlow {
        assert!(ticket.index < MAX_FLOWS, "{ticket:?}");
        JoinedFlow {
            memory: self.clone(),
            ticket,
        }
    }
}

/// A joined flow. Dropping it disarms both directions, if its place is still its own.
#[derive(Debug)]
pub struct JoinedFlow {
    memory: Arc<FlowMemory>,
    ticket: Ticket,
}

impl JoinedFlow {
    fn cells(&self, direction: Direction) -> &DirectionCells {
        self.memory.mapping.direction(self.ticket.index, direction.index())
    }

    /// Lets messages go past the proxy, as soon as nothing of the sender's is on its way and the receiver has room.
    /// Without effect once the kernel has closed the direction for good ([`Tally::notes`]).
    pub fn arm(&self, direction: Direction) {
        self.cells(direction).armed.store(1, Release);
    }

    /// Has the next message come to the proxy.
    pub fn disarm(&self, direction: Direction) {
        self.cells(direction).armed.store(0, Release);
    }

    /// Whether messages may go past the proxy.
    pub fn is_armed(&self, direction: Direction) -> bool {
        let cells = self.cells(direction);
        cells.armed.load(Acquire) != 0 && cells.notes.load(Acquire) == 0
    }

    /// Tells the kernel that the proxy has handed on `bytes` more, on this core. To be called after the send has
    /// returned, never before.
    pub fn handed_on(&self, direction: Direction, bytes: u64) {
        let DirectionCells {
            forwarded, relay_core, ..
        } = self.cells(direction);
        relay_core.store(sched_getcpu() as u32 + 1, Relaxed);
        // One writer: the task that relays the direction.
        forwarded.store(forwarded.load(Relaxed) + bytes, Release);
    }

    /// What waits at the receiver, as [`FlowMemory::measure`] last found it: its bytes, and for each message that may
    /// be among them what it costs the kernel beyond its bytes. 0 only when all has been read.
    pub fn queued(&self, direction: Direction) -> u32 {
        self.cells(direction).queued.load(Acquire)
    }

    /// Bytes that may wait at the receiver, and 64 KiB more: with a longer queue it might miss a reset that comes while it reads.
    pub fn room(&self, direction: Direction) -> u32 {
        self.cells(direction).room.load(Acquire)
    }

    /// What the kernel has counted.
    pub fn tally(&self, direction: Direction) -> Tally {
        let cells = self.cells(direction);
        Tally {
            bypassed_bytes: cells.bypassed_bytes.load(Acquire),
            bypassed_messages: cells.bypassed_messages.load(Acquire),
            behind: cells.behind.load(Acquire),
            full: cells.full.load(Acquire),
            busy: cells.busy.load(Acquire),
            notes: cells.notes.load(Acquire),
        }
    }

    /// The core on which the sender was when it last sent a message that was [`Tally::behind`].
    pub fn sender_core(&self, direction: Direction) -> u32 {
        self.cells(direction).sender_core.load(Relaxed)
    }

    /// The flow's ticket.
    pub fn ticket(&self) -> Ticket {
        self.ticket
    }
}

impl Drop for JoinedFlow {
    fn drop(&mut self) {
        for direction in Direction::ALL {
            // The place may be another flow's by now.
            if self.cells(direction).generation.load(Acquire) == self.ticket.generation {
                self.disarm(direction);
            }
        }
    }
}
