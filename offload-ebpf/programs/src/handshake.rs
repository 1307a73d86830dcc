//! From the SYN to the accepted socket: how the listening side of a connection learns what its beginning knew.
//!
//! The connecting socket is followed until it is closed, not only until it believes to be connected: with a full accept queue the
//! listener has not yet taken a connection that the other side already holds for established, and the entry is still needed. It
//! must be gone before the address is used again; the state change is told before the kernel frees the port (tcp_set_state).

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{
    BPF_ANY, BPF_NOEXIST, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG,
    BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_TCP_CLOSE, bpf_sock, bpf_sock_ops,
};
use aya_ebpf::helpers::generated::{bpf_get_netns_cookie, bpf_sock_ops_cb_flags_set};
use aya_ebpf::programs::SockOpsContext;
use underpass_ebpf_abi::{Counter, DIRECT, HandshakeKey, Note, ORIGINAL, PEER};

use crate::address::{AF_INET, from_v4, from_v6, word, words};
use crate::maps::{self, HANDSHAKES, count};

#[inline(always)]
pub fn follow(ctx: &SockOpsContext) {
    let ops = ctx.ops;
    match word!(ops => bpf_sock_ops, op) {
        BPF_SOCK_OPS_TCP_CONNECT_CB => begins(ctx),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => accepted(ctx),
        BPF_SOCK_OPS_STATE_CB if word!(ops => bpf_sock_ops, __bindgen_anon_1.args, 1) == BPF_TCP_CLOSE => ends(ctx),
        _ => {}
    }
}

#[inline(always)]
pub fn socket(ctx: &SockOpsContext) -> Option<*mut bpf_sock> {
    // SAFETY: a member of the context; null when there is no full socket.
    let sk = unsafe { (*ctx.ops).__bindgen_anon_2.sk };
    (!sk.is_null()).then_some(sk)
}

#[inline(always)]
fn netns(ctx: &SockOpsContext) -> u64 {
    // SAFETY: a helper of this kind of program, on its own context.
    unsafe { bpf_get_netns_cookie(ctx.as_ptr()) }
}

/// Of a dual-stack socket on its way to an IPv4 address the mapped form: the kernel keeps it beside the other (sk_rcv_saddr_set).
#[inline(always)]
pub fn local_address(ctx: &SockOpsContext) -> [u8; 16] {
    let ops = ctx.ops;
    if word!(ops => bpf_sock_ops, family) == AF_INET {
        return from_v4(word!(ops => bpf_sock_ops, local_ip4));
    }
    from_v6(words!(ops => bpf_sock_ops, local_ip6))
}

#[inline(always)]
pub fn remote_address(ctx: &SockOpsContext) -> [u8; 16] {
    let ops = ctx.ops;
    if word!(ops => bpf_sock_ops, family) == AF_INET {
        return from_v4(word!(ops => bpf_sock_ops, remote_ip4));
    }
    from_v6(words!(ops => bpf_sock_ops, remote_ip6))
}

/// In network order in the upper half of the word (sock_ops_convert_ctx_access).
#[inline(always)]
fn remote_port(ctx: &SockOpsContext) -> u16 {
    let ops = ctx.ops;
    u32::from_be(word!(ops => bpf_sock_ops, remote_port)) as u16
}

#[inline(always)]
fn local_port(ctx: &SockOpsContext) -> u16 {
    let ops = ctx.ops;
    word!(ops => bpf_sock_ops, local_port) as u16
}

/// As the listening side sees the connection that this socket makes.
#[inline(always)]
fn key_of_connecting(ctx: &SockOpsContext, note: &Note) -> Option<HandshakeKey> {
    let netns = match note.kind {
        ORIGINAL => netns(ctx),
        // Made by the proxy or the kubelet, and announced to the pod that it goes to.
        DIRECT | PEER => maps::owner(&remote_address(ctx))?,
        _ => return None,
    };
    Some(HandshakeKey {
        netns,
        remote_address: local_address(ctx),
        remote_port: local_port(ctx),
        local_port: remote_port(ctx),
        pad: 0,
    })
}

/// Only captured connections count against the pod's limit.
#[inline(always)]
fn slot(netns: u64, note: &Note) -> Option<u32> {
    if note.kind != ORIGINAL {
        return None;
    }
    maps::pod(netns).map(|pod| pod.slot)
}

#[inline(always)]
fn begins(ctx: &SockOpsContext) {
    let Some(sk) = socket(ctx) else { return };
    // SAFETY: the context's socket.
    let Some(note) = (unsafe { maps::note(sk) }) else {
        return;
    };
    let Some(key) = key_of_connecting(ctx, note) else {
        return;
    };
    let ops = ctx.ops;
    let flags = word!(ops => bpf_sock_ops, bpf_sock_ops_cb_flags) | BPF_SOCK_OPS_STATE_CB_FLAG;
    // Without the callback nothing would delete the entry, so that there may be none.
    // SAFETY: a helper of this kind of program, on its own context.
    if unsafe { bpf_sock_ops_cb_flags_set(ops, flags.cast_signed()) } != 0 {
        return count(Counter::HandshakesFull);
    }
    // Counted before it is there, because its end may be counted as soon as it is.
    let slot = slot(key.netns, note);
    if let Some(slot) = slot {
        maps::handshake_begins(slot);
    }
    if HANDSHAKES.insert(&key, &*note, BPF_NOEXIST.into()).is_ok() {
        return;
    }
    if let Some(slot) = slot {
        maps::handshake_ends(slot);
    }
    // An entry that nobody ended: it is overwritten, and counts once.
    if HANDSHAKES.insert(&key, &*note, BPF_ANY.into()).is_err() {
        count(Counter::HandshakesFull);
    }
}

#[inline(always)]
fn ends(ctx: &SockOpsContext) {
    let Some(sk) = socket(ctx) else { return };
    // SAFETY: the context's socket.
    let Some(note) = (unsafe { maps::note(sk) }) else {
        return;
    };
    if let Some(key) = key_of_connecting(ctx, note) {
        remove(&key, note);
    }
}

#[inline(always)]
fn remove(key: &HandshakeKey, note: &Note) {
    if HANDSHAKES.remove(key).is_ok()
        && let Some(slot) = slot(key.netns, note)
    {
        maps::handshake_ends(slot);
    }
}

#[inline(always)]
fn accepted(ctx: &SockOpsContext) {
    let Some(sk) = socket(ctx) else { return };
    let key = HandshakeKey {
        netns: netns(ctx),
        remote_address: remote_address(ctx),
        remote_port: remote_port(ctx),
        local_port: local_port(ctx),
        pad: 0,
    };
    // SAFETY: copied before the entry is removed.
    let Some(note) = (unsafe { HANDSHAKES.get(&key) }).copied() else {
        return;
    };
    remove(&key, &note);
    // SAFETY: the context's socket.
    if note.kind != DIRECT && !unsafe { maps::put_note(sk, &note) } {
        count(Counter::NoteLost);
    }
}
