//! The flows' entries, which the proxy writes too.

use core::arch::asm;
use core::mem::{offset_of, size_of};

use aya_ebpf::helpers::generated::bpf_get_smp_processor_id;
use underpass_ebpf_abi::tier::{FlowDirection, HOP, Way};

use crate::maps::FLOWS;

/// One direction of a flow.
#[derive(Clone, Copy)]
pub struct Direction(*mut FlowDirection);

impl Direction {
    /// The direction `which` of the flow at `index`, whosever it is now.
    #[inline(always)]
    pub fn at(index: u32, which: u32) -> Option<Self> {
        let entry = FLOWS.get_ptr_mut(index)?.cast::<u8>();
        // By an offset that the verifier sees the bounds of.
        let offset = (which & 1) as usize * size_of::<FlowDirection>();
        // SAFETY: an entry has two directions.
        Some(Self(unsafe { entry.add(offset) }.cast()))
    }

    /// The direction in which the socket sends.
    #[inline(always)]
    pub fn sending(way: &Way) -> Option<Self> {
        Self::at(way.index, way.direction)
    }

    /// Of the sender's bytes, those that the proxy has handed on. An atomic fetch is a full barrier: whatever is read
    /// after it is as new as the answer.
    #[inline(always)]
    pub fn forwarded(self) -> u64 {
        let mut forwarded: u64 = 0;
        // SAFETY: array entries stay. Adding nothing changes nothing.
        unsafe {
            asm!(
                "{value} = atomic_fetch_add((u64 *)({direction} + {offset}), {value})",
                value = inout(reg) forwarded,
                direction = in(reg) self.0,
                offset = const offset_of!(FlowDirection, forwarded),
            );
        }
        forwarded
    }

    /// Whether the proxy last handed something on on this core: then it does not go on while we wait.
    #[inline(always)]
    pub fn is_relayed_here(self) -> bool {
        // SAFETY: array entries stay; asks for the number of this core.
        let (relay, here) = unsafe {
            (
                (&raw const (*self.0).relay_core).read_volatile(),
                bpf_get_smp_processor_id(),
            )
        };
        relay == here.wrapping_add(1)
    }

    /// Whether messages may pass the proxy by, in this generation of the entry.
    #[inline(always)]
    pub fn is_open(self, generation: u32) -> bool {
        // SAFETY: array entries stay; each word is read once.
        let (now, armed, notes) = unsafe {
            (
                (&raw const (*self.0).generation).read_volatile(),
                (&raw const (*self.0).armed).read_volatile(),
                (&raw const (*self.0).notes).read_volatile(),
            )
        };
        let is_same = now == generation || cfg!(mutant = "generation");
        let is_armed = (armed != 0 && notes == 0) || cfg!(mutant = "armed");
        is_same && is_armed
    }

    /// Closes the direction for good, if the entry is still the flow's.
    #[inline(always)]
    pub fn end(self, generation: u32, note: u32) {
        // SAFETY: array entries stay.
        unsafe {
            if (&raw const (*self.0).generation).read_volatile() != generation {
                return;
            }
            asm!(
                "lock *(u32 *)({direction} + {notes}) |= w2",
                direction = in(reg) self.0,
                notes = const offset_of!(FlowDirection, notes),
                in("r2") u64::from(note),
            );
            (&raw mut (*self.0).armed).write_volatile(0);
        }
    }

    /// What has closed the direction, if the entry is still the flow's.
    #[inline(always)]
    pub fn notes(self, generation: u32) -> u32 {
        // SAFETY: array entries stay.
        unsafe {
            if (&raw const (*self.0).generation).read_volatile() == generation {
                (&raw const (*self.0).notes).read_volatile()
            } else {
                0
            }
        }
    }

    #[inline(always)]
    pub fn set_queued(self, generation: u32, queued: u32) {
        // SAFETY: array entries stay.
        unsafe {
            if (&raw const (*self.0).generation).read_volatile() == generation {
                (&raw mut (*self.0).queued).write_volatile(queued);
            }
        }
    }

    /// How many messages may wait at the receiver: of the sender, and of the hop.
    #[inline(always)]
    pub fn waiting(self) -> u32 {
        // SAFETY: array entries stay.
        unsafe {
            let (sender, hop) = (&raw const (*self.0).waiting, &raw const (*self.0).hop_waiting);
            sender.read_volatile().saturating_add(hop.read_volatile())
        }
    }

    /// The same of the senders of a role only.
    #[inline(always)]
    pub fn waiting_of(self, role: u32) -> u32 {
        // SAFETY: array entries stay.
        unsafe {
            if role == HOP {
                (&raw const (*self.0).hop_waiting).read_volatile()
            } else {
                (&raw const (*self.0).waiting).read_volatile()
            }
        }
    }

    /// Nothing waits. A message that was sent since somebody looked is not counted then.
    #[inline(always)]
    pub fn forget_waiting(self, generation: u32) {
        // SAFETY: array entries stay.
        unsafe {
            if (&raw const (*self.0).generation).read_volatile() == generation {
                (&raw mut (*self.0).waiting).write_volatile(0);
                (&raw mut (*self.0).hop_waiting).write_volatile(0);
            }
        }
    }

    #[inline(always)]
    pub fn set_waiting(self, way: &Way, messages: u32) {
        // SAFETY: array entries stay.
        unsafe {
            if (&raw const (*self.0).generation).read_volatile() != way.generation {
                return;
            }
            if way.role == HOP {
                (&raw mut (*self.0).hop_waiting).write_volatile(messages);
            } else {
                (&raw mut (*self.0).waiting).write_volatile(messages);
            }
        }
    }

    #[inline(always)]
    pub fn count_bypassed(self, bytes: u32) {
        self.add::<{ offset_of!(FlowDirection, bypassed_bytes) }>(bytes.into());
        self.add::<{ offset_of!(FlowDirection, bypassed_messages) }>(1);
    }

    #[inline(always)]
    pub fn count_behind(self) {
        // SAFETY: array entries stay; asks for the number of this core.
        unsafe {
            (&raw mut (*self.0).sender_core).write_volatile(bpf_get_smp_processor_id());
        }
        self.add::<{ offset_of!(FlowDirection, behind) }>(1);
    }

    #[inline(always)]
    pub fn count_full(self) {
        self.add::<{ offset_of!(FlowDirection, full) }>(1);
    }

    #[inline(always)]
    pub fn count_busy(self) {
        self.add::<{ offset_of!(FlowDirection, busy) }>(1);
    }

    #[inline(always)]
    fn add<const OFFSET: usize>(self, change: u64) {
        // SAFETY: array entries stay; the offsets are those of counters.
        unsafe {
            asm!(
                "lock *(u64 *)({direction} + {offset}) += {change}",
                direction = in(reg) self.0,
                offset = const OFFSET,
                change = in(reg) change,
            );
        }
    }
}
