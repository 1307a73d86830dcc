//! The flows' memory, mapped: the only place here that needs `unsafe`.

use std::io;
use std::mem::{offset_of, size_of};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64};

use underpass_ebpf_abi::tier::{FlowDirection, FlowEntry, MAX_FLOWS};

/// [`FlowDirection`] as memory that others write too.
#[derive(Debug)]
#[repr(C, align(64))]
pub(super) struct DirectionCells {
    pub(super) forwarded: AtomicU64,
    pub(super) armed: AtomicU32,
    pub(super) generation: AtomicU32,
    pub(super) relay_core: AtomicU32,
    pad: [u32; 11],
    pub(super) bypassed_bytes: AtomicU64,
    pub(super) bypassed_messages: AtomicU64,
    pub(super) behind: AtomicU64,
    pub(super) full: AtomicU64,
    pub(super) queued: AtomicU32,
    pub(super) notes: AtomicU32,
    pub(super) waiting: AtomicU32,
    pub(super) hop_waiting: AtomicU32,
    pub(super) busy: AtomicU64,
    pub(super) sender_core: AtomicU32,
    pub(super) room: AtomicU32,
}

const _: () = {
    assert!(size_of::<DirectionCells>() == size_of::<FlowDirection>());
    assert!(offset_of!(DirectionCells, forwarded) == offset_of!(FlowDirection, forwarded));
    assert!(offset_of!(DirectionCells, armed) == offset_of!(FlowDirection, armed));
    assert!(offset_of!(DirectionCells, generation) == offset_of!(FlowDirection, generation));
    assert!(offset_of!(DirectionCells, relay_core) == offset_of!(FlowDirection, relay_core));
    assert!(offset_of!(DirectionCells, bypassed_bytes) == offset_of!(FlowDirection, bypassed_bytes));
    assert!(offset_of!(DirectionCells, bypassed_messages) == offset_of!(FlowDirection, bypassed_messages));
    assert!(offset_of!(DirectionCells, behind) == offset_of!(FlowDirection, behind));
    assert!(offset_of!(DirectionCells, full) == offset_of!(FlowDirection, full));
    assert!(offset_of!(DirectionCells, queued) == offset_of!(FlowDirection, queued));
    assert!(offset_of!(DirectionCells, notes) == offset_of!(FlowDirection, notes));
    assert!(offset_of!(DirectionCells, waiting) == offset_of!(FlowDirection, waiting));
    assert!(offset_of!(DirectionCells, hop_waiting) == offset_of!(FlowDirection, hop_waiting));
    assert!(offset_of!(DirectionCells, busy) == offset_of!(FlowDirection, busy));
    assert!(offset_of!(DirectionCells, sender_core) == offset_of!(FlowDirection, sender_core));
    assert!(offset_of!(DirectionCells, room) == offset_of!(FlowDirection, room));
};

const LEN: usize = MAX_FLOWS as usize * size_of::<FlowEntry>();

/// The map `FLOWS`, mapped for reading and writing.
#[derive(Debug)]
pub(super) struct Mapping {
    base: NonNull<DirectionCells>,
}

// SAFETY: the memory consists of atomic cells, of which only shared references are given out.
#[allow(unsafe_code)]
unsafe impl Send for Mapping {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl Sync for Mapping {}

impl Mapping {
    /// The caller has made sure that `flows` is an array map of [`MAX_FLOWS`] entries of the right size; of a map that
    /// is smaller the kernel refuses to map so much.
    #[allow(unsafe_code)]
    pub(super) fn new(flows: BorrowedFd<'_>) -> io::Result<Self> {
        // SAFETY: a new mapping, wherever the kernel likes.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                LEN,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                flows.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(base.cast())
            .map(|base| Self { base })
            .ok_or_else(|| io::Error::other("mapped at address 0"))
    }

    /// A direction of a flow.
    ///
    /// # Panics
    /// When there is no such flow.
    #[allow(unsafe_code)]
    pub(super) fn direction(&self, flow: u32, direction: usize) -> &DirectionCells {
        assert!(flow < MAX_FLOWS && direction < 2, "flow {flow} direction {direction}");
        // SAFETY: within the mapping, which lasts as long as `self`, is page-aligned, and whose every bit pattern is a
        // value.
        unsafe { self.base.add(flow as usize * 2 + direction).as_ref() }
    }
}

impl Drop for Mapping {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        // SAFETY: made by `new` with this length; no reference outlives `self`.
        unsafe { libc::munmap(self.base.as_ptr().cast(), LEN) };
    }
}
