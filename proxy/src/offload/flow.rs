//! What a flow knows of its place in the kernel, for its relay and for whoever looks at it from outside.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};

use super::{Direction, InKernel, WhyNot};

/// A flow's standing with the kernel tier.
#[derive(Debug)]
pub struct FlowOffload {
    forbidden: AtomicBool,
    why_not: AtomicU8,
    kernel: OnceLock<Arc<InKernel>>,
}

impl FlowOffload {
    /// A flow that has moved nothing yet, which the settings allow into the kernel or not.
    pub fn new(allowed: bool) -> Self {
        Self {
            forbidden: AtomicBool::new(!allowed),
            why_not: AtomicU8::new(WhyNot::TooYoung as u8),
            kernel: OnceLock::new(),
        }
    }

    /// Whether settings keep it out.
    pub fn is_forbidden(&self) -> bool {
        self.forbidden.load(Ordering::SeqCst)
    }

    /// Notes what the settings say. One that may no longer be in the kernel is taken back at once; the relay, which arms, looks at this after it
    /// has armed.
    pub fn set_allowed(&self, allowed: bool) {
        self.forbidden.store(!allowed, Ordering::SeqCst);
        if !allowed {
            self.disarm();
        }
    }

    /// Has every message come to the proxy from now on, if it is joined.
    pub fn disarm(&self) {
        if let Some(kernel) = self.kernel() {
            kernel.disarm();
        }
    }

    /// Its part in the kernel, once it was joined.
    pub fn kernel(&self) -> Option<&Arc<InKernel>> {
        self.kernel.get()
    }

    /// Notes that it was joined, which happens once.
    pub fn joined(&self, kernel: Arc<InKernel>) {
        let _ = self.kernel.set(kernel);
    }

    /// Why it is not in the kernel, or no longer. None while messages may go past the proxy.
    pub fn why_not(&self) -> Option<WhyNot> {
        if self.is_forbidden() {
            return Some(WhyNot::OffBySettings);
        }
        match self.kernel() {
            None => Some(WhyNot::from_discriminant(self.why_not.load(Ordering::Relaxed))),
            Some(kernel) if Direction::ALL.into_iter().any(|d| kernel.flow().is_armed(d)) => None,
            Some(kernel) => {
                let closed = Direction::ALL.into_iter().find_map(|d| kernel.why_closed(d));
                Some(closed.unwrap_or(WhyNot::Ending))
            }
        }
    }

    /// Notes why it is not in the kernel. True if that is another reason than before.
    pub fn set_why_not(&self, why: WhyNot) -> bool {
        self.why_not.swap(why as u8, Ordering::Relaxed) != why as u8
    }

    /// Bytes of a direction that went past the proxy.
    pub fn bypassed(&self, direction: Direction) -> u64 {
        self.kernel().map_or(0, |kernel| kernel.tally(direction).bypassed_bytes)
    }
}
