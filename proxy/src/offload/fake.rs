//! A kernel that does what a test says.

use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::{Direction, InKernel, KernelFlow, KernelMemory, Tally, Ticket};

/// One flow, or a memory that holds it alone.
#[derive(Debug, Default)]
pub struct FakeKernel {
    number: u32,
    /// The receivers' queues as they are; what has been measured is another matter.
    pub queues: [AtomicU32; 2],
    measured: [AtomicU32; 2],
    armed: [AtomicU32; 2],
    handed_on: [AtomicU64; 2],
    tallies: Mutex<[Tally; 2]>,
    /// Times that somebody asked.
    pub measurements: AtomicUsize,
}

impl FakeKernel {
    /// A flow of its own.
    pub fn new(number: u32) -> Arc<Self> {
        Arc::new(Self {
            number,
            ..Self::default()
        })
    }

    /// The flow as the proxy has it.
    pub fn joined(self: &Arc<Self>) -> Arc<InKernel> {
        Arc::new(InKernel::new(Box::new(self.clone()), self.clone()))
    }

    /// Sets the receiver's queue.
    pub fn set_queue(&self, direction: Direction, bytes: u32) {
        self.queues[direction as usize].store(bytes, Ordering::SeqCst);
    }

    /// Changes what the kernel has counted.
    pub fn count(&self, direction: Direction, change: impl FnOnce(&mut Tally)) {
        change(&mut self.tallies.lock().unwrap()[direction as usize]);
    }

    /// What the proxy said it has handed on.
    pub fn handed_on(&self, direction: Direction) -> u64 {
        self.handed_on[direction as usize].load(Ordering::SeqCst)
    }

    /// Which directions are armed.
    pub fn armed(&self) -> [bool; 2] {
        [0, 1].map(|direction: usize| self.armed[direction].load(Ordering::SeqCst) == 1)
    }
}

impl KernelFlow for Arc<FakeKernel> {
    fn arm(&self, direction: Direction) {
        self.armed[direction as usize].store(1, Ordering::SeqCst);
    }

    fn disarm(&self, direction: Direction) {
        self.armed[direction as usize].store(0, Ordering::SeqCst);
    }

    fn is_armed(&self, direction: Direction) -> bool {
        self.armed[direction as usize].load(Ordering::SeqCst) == 1
    }

    fn handed_on(&self, direction: Direction, bytes: u64) {
        self.handed_on[direction as usize].fetch_add(bytes, Ordering::SeqCst);
    }

    fn queued(&self, direction: Direction) -> u32 {
        self.measured[direction as usize].load(Ordering::SeqCst)
    }

    fn room(&self, _direction: Direction) -> u32 {
        u32::MAX
    }

    fn tally(&self, direction: Direction) -> Tally {
        self.tallies.lock().unwrap()[direction as usize]
    }

    fn sender_core(&self, _direction: Direction) -> u32 {
        0
    }

    fn ticket(&self) -> Ticket {
        Ticket {
            index: self.number,
            generation: 1,
        }
    }
}

impl KernelMemory for FakeKernel {
    fn measure(&self, tickets: &[Ticket]) -> io::Result<()> {
        assert!(tickets.iter().all(|ticket| ticket.index == self.number), "{tickets:?}");
        self.measurements.fetch_add(1, Ordering::SeqCst);
        for direction in Direction::ALL {
            let queue = self.queues[direction as usize].load(Ordering::SeqCst);
            self.measured[direction as usize].store(queue, Ordering::SeqCst);
        }
        Ok(())
    }
}
