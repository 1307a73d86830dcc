//! getpeername(2), and the address that accept(2) gives: who the application believes, and shall believe, to talk to.

use aya_ebpf::helpers::generated::bpf_get_current_cgroup_id;
use aya_ebpf::programs::SockAddrContext;
use underpass_ebpf_abi::{Note, ORIGINAL, PEER};

use crate::address::{is_v4, words_of};
use crate::maps;

#[inline(always)]
pub fn v4(ctx: &SockAddrContext) {
    if let Some(note) = note(ctx)
        && is_v4(&note.address)
    {
        // SAFETY: the context may be written here.
        unsafe {
            (*ctx.sock_addr).user_ip4 = words_of(&note.address)[3];
            (*ctx.sock_addr).user_port = u32::from(note.port.to_be());
        }
    }
}

#[inline(always)]
pub fn v6(ctx: &SockAddrContext) {
    if let Some(note) = note(ctx) {
        let words = words_of(&note.address);
        let name = ctx.sock_addr;
        // SAFETY: the context may be written here, word by word.
        unsafe {
            core::ptr::write_volatile(&raw mut (*name).user_ip6[0], words[0]);
            core::ptr::write_volatile(&raw mut (*name).user_ip6[1], words[1]);
            core::ptr::write_volatile(&raw mut (*name).user_ip6[2], words[2]);
            core::ptr::write_volatile(&raw mut (*name).user_ip6[3], words[3]);
            (*name).user_port = u32::from(note.port.to_be());
        }
    }
}

/// The note on the socket, if the caller shall be told what it says: the proxy has a note on its side of a captured connection
/// too, and is told the truth.
#[inline(always)]
fn note(ctx: &SockAddrContext) -> Option<&'static Note> {
    // SAFETY: a plain helper.
    if maps::is_exempt(unsafe { bpf_get_current_cgroup_id() }) {
        return None;
    }
    // SAFETY: the context's socket.
    let note = unsafe { maps::note((*ctx.sock_addr).__bindgen_anon_1.sk) }?;
    (note.kind == ORIGINAL || note.kind == PEER).then_some(note)
}
