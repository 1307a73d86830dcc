//! The maps, whose meaning is told in `underpass-ebpf-abi` and whose shapes the loader checks.

use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, BPF_SK_STORAGE_GET_F_CREATE, bpf_sock};
use aya_ebpf::btf_maps::{Array, HashMap, PerCpuArray, SkStorage, SockHash, SockMap};
use aya_ebpf::helpers::generated::{bpf_sk_storage_delete, bpf_sk_storage_get};
use aya_ebpf::macros::btf_map;
use core::arch::asm;
use underpass_ebpf_abi::tier::{FlowEntry, MAX_FLOWS, SOCKETS_PER_FLOW, Way};
use underpass_ebpf_abi::{
    Counter, HandshakeKey, MAX_ADDRESSES, MAX_CGROUPS, MAX_HANDSHAKES, MAX_PODS, Note, PodEntry, Slot,
};

const NO_PREALLOC: usize = BPF_F_NO_PREALLOC as usize;

/// Enrolled pods, by the cookie of their network namespace. Not allocated ahead, as all hash maps here: an entry that is replaced while
/// a program looks at it would at once become another pod's; so it stays what it is until the program has ended.
#[btf_map]
pub static PODS: HashMap<u64, PodEntry, { MAX_PODS as usize }, NO_PREALLOC> = HashMap::new();

/// What belongs to each slot.
#[btf_map]
pub static SLOTS: Array<Slot, { MAX_PODS as usize }> = Array::new();

/// Whose address it is: the cookie of the pod's network namespace.
#[btf_map]
pub static ADDRESSES: HashMap<[u8; 16], u64, { MAX_ADDRESSES as usize }, NO_PREALLOC> = HashMap::new();

/// Ids of the cgroups whose connections are the mesh's own.
#[btf_map]
pub static EXEMPT: HashMap<u64, u32, { MAX_CGROUPS as usize }, NO_PREALLOC> = HashMap::new();

/// Ids of the cgroups whose connections from the host are probes.
#[btf_map]
pub static KUBELET: HashMap<u64, u32, { MAX_CGROUPS as usize }, NO_PREALLOC> = HashMap::new();

/// What the listening side shall know of connections on their way.
#[btf_map]
pub static HANDSHAKES: HashMap<HandshakeKey, Note, { MAX_HANDSHAKES as usize }, NO_PREALLOC> = HashMap::new();

/// What is known of a socket.
#[btf_map]
pub static NOTES: SkStorage<Note> = SkStorage::new();

/// The listeners to which connections to pods are steered: for each slot one for IPv4 and one for IPv6.
#[btf_map]
pub static LISTENERS: SockMap<{ MAX_PODS as usize * 2 }> = SockMap::new();

/// See [`Counter`].
#[btf_map]
pub static COUNTERS: PerCpuArray<u64, { Counter::ALL.len() }> = PerCpuArray::new();

/// The flows of the kernel tier, in memory that the proxy maps.
#[btf_map]
pub static FLOWS: Array<FlowEntry, { MAX_FLOWS as usize }, { BPF_F_MMAPABLE as usize }> = Array::new();

/// What is known of a joined socket.
#[btf_map]
pub static WAYS: SkStorage<Way> = SkStorage::new();

/// Joined sockets: the proxy's, and applications' that are joined without a verdict.
#[btf_map]
pub static SOCKS: SockHash<u64, { (MAX_FLOWS * SOCKETS_PER_FLOW) as usize }> = SockHash::new();

/// Joined applications' sockets whose every byte goes through a verdict.
#[btf_map]
pub static SOCKS_VERDICT: SockHash<u64, { (MAX_FLOWS * 2) as usize }> = SockHash::new();

#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(count) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: the value is this processor's own.
        unsafe { *count += 1 }
    }
}

#[inline(always)]
pub fn pod(netns: u64) -> Option<&'static PodEntry> {
    // SAFETY: the agent replaces entries whole; one that is replaced meanwhile is as good as a call that came earlier.
    unsafe { PODS.get(netns) }
}

/// Whether `address` belongs to the pod.
#[inline(always)]
pub fn owner(address: &[u8; 16]) -> Option<u64> {
    // SAFETY: a number, read once.
    unsafe { ADDRESSES.get(address) }.copied()
}

#[inline(always)]
pub fn is_exempt(cgroup: u64) -> bool {
    EXEMPT.get_ptr(cgroup).is_some()
}

/// The pod that has the slot: the cookie of its network namespace.
#[inline(always)]
pub fn netns_of(slot: u32) -> u64 {
    SLOTS.get(slot).map_or(0, |slot| slot.netns)
}

/// Handshakes of the pod under way. Signed, like the rest of the arithmetic: never wrong by more than the processors.
#[inline(always)]
pub fn handshakes(slot: u32) -> i64 {
    let Some(slot) = SLOTS.get_ptr(slot) else {
        return i64::MAX;
    };
    // SAFETY: array entries stay.
    unsafe { (&raw const (*slot).handshakes).read_volatile() }.cast_signed()
}

#[inline(always)]
pub fn handshake_begins(slot: u32) {
    add(slot, 1);
}

#[inline(always)]
pub fn handshake_ends(slot: u32) {
    add(slot, -1);
}

/// By the oldest of the kernel's atomic instructions, which the Rust library does not offer on this target.
#[inline(always)]
fn add(slot: u32, change: i64) {
    if let Some(slot) = SLOTS.get_ptr_mut(slot) {
        // SAFETY: array entries stay, and the programs only ever add to this part of them.
        unsafe {
            asm!(
                "lock *(u64 *)({slot} + {handshakes}) += {change}",
                slot = in(reg) slot,
                handshakes = const core::mem::offset_of!(Slot, handshakes),
                change = in(reg) change,
            );
        }
    }
}

// aya's `SkStorage` takes the context of a sockaddr program; these take any program's socket.

#[inline(always)]
fn notes() -> *mut core::ffi::c_void {
    core::ptr::from_ref(&NOTES).cast_mut().cast()
}

/// The note on a socket.
///
/// # Safety
/// `sk` is a full socket of the running program's context.
#[inline(always)]
pub unsafe fn note(sk: *mut bpf_sock) -> Option<&'static mut Note> {
    // SAFETY: as promised. The kernel keeps the value until the program ends (RCU).
    unsafe {
        bpf_sk_storage_get(notes(), sk.cast(), core::ptr::null_mut(), 0)
            .cast::<Note>()
            .as_mut()
    }
}

/// Puts a note on a socket, over what may be there; false when there is no memory for it.
///
/// # Safety
/// As [`note`].
#[inline(always)]
pub unsafe fn put_note(sk: *mut bpf_sock, note: &Note) -> bool {
    // SAFETY: as promised.
    let place = unsafe {
        bpf_sk_storage_get(
            notes(),
            sk.cast(),
            core::ptr::null_mut(),
            BPF_SK_STORAGE_GET_F_CREATE.into(),
        )
        .cast::<Note>()
    };
    if place.is_null() {
        return false;
    }
    // SAFETY: the storage is of this type.
    unsafe { *place = *note };
    true
}

/// Removes a note; there may be none.
///
/// # Safety
/// As [`note`].
#[inline(always)]
pub unsafe fn remove_note(sk: *mut bpf_sock) {
    // SAFETY: as promised.
    unsafe { bpf_sk_storage_delete(notes(), sk.cast()) };
}
