//! What is stored on joined sockets, and on those that shall not be joined.

use core::arch::asm;
use core::ffi::c_void;
use core::mem::offset_of;

use aya_ebpf::bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock};
use aya_ebpf::helpers::generated::bpf_sk_storage_get;
use underpass_ebpf_abi::tier::{NOT_JOINED, Way};

use crate::maps::WAYS;

#[inline(always)]
unsafe fn get(sk: *mut bpf_sock, flags: u64) -> Option<&'static mut Way> {
    let map = core::ptr::from_ref(&WAYS).cast_mut().cast::<c_void>();
    // SAFETY: as the callers promise. The kernel keeps the value until the program ends (RCU).
    unsafe {
        bpf_sk_storage_get(map, sk.cast(), core::ptr::null_mut(), flags)
            .cast::<Way>()
            .as_mut()
    }
}

/// The way of a socket, if it is joined.
///
/// # Safety
/// `sk` is a full socket of the running program.
#[inline(always)]
pub unsafe fn joined(sk: *mut bpf_sock) -> Option<&'static mut Way> {
    // SAFETY: as promised.
    unsafe { get(sk, 0) }.filter(|way| way.role != NOT_JOINED)
}

/// The place for a socket's way; `None` when there is no memory for it.
///
/// # Safety
/// As [`joined`].
#[inline(always)]
pub unsafe fn place(sk: *mut bpf_sock) -> Option<&'static mut Way> {
    // SAFETY: as promised.
    unsafe { get(sk, BPF_SK_STORAGE_GET_F_CREATE.into()) }
}

/// Adds marks and returns those that were there before. A full barrier: either the one who joins the socket sees the
/// mark, or the one who marks it sees that it is joined.
#[inline(always)]
pub fn mark(way: &mut Way, marks: u32) -> u32 {
    let mut value = u64::from(marks);
    // SAFETY: the word is the way's own.
    unsafe {
        asm!(
            "w2 = atomic_fetch_or((u32 *)({way} + {offset}), w2)",
            inout("r2") value,
            way = in(reg) core::ptr::from_mut(way),
            offset = const offset_of!(Way, marks),
        );
    }
    value as u32
}
