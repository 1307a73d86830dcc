//! From the establishment of a connection to its end: what `follow` adds for sockets that are or may be joined.
//!
//! A direction is closed in the kernel, before the FIN or RST of its hop leaves, so that the death of the proxy ends
//! the stream for the receiver and nothing comes after.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{
    BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_RTT_CB,
    BPF_SOCK_OPS_RTT_CB_FLAG, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG, BPF_TCP_CLOSE, BPF_TCP_CLOSE_WAIT,
    BPF_TCP_ESTABLISHED, bpf_sock, bpf_sock_ops,
};
use aya_ebpf::helpers::generated::{
    bpf_get_socket_cookie, bpf_map_delete_elem, bpf_setsockopt, bpf_sock_ops_cb_flags_set,
};
use aya_ebpf::programs::SockOpsContext;
use underpass_ebpf_abi::tier::{APPLICATION, CLIENT, HOP, OUT, SERVER, VERDICT, Way, key, note};
use underpass_ebpf_abi::{ORIGINAL, PEER};

use super::flows::Direction;
use super::kernel::Socket;
use super::{patience, ways};
use crate::address::{is_loopback, word};
use crate::handshake::{local_address, remote_address, socket};
use crate::maps::{self, SOCKS, SOCKS_VERDICT};

const IPPROTO_TCP: i32 = 6;
const TCP_NOTSENT_LOWAT: i32 = 25;
/// `TCP_RTO_MAX_MS` (linux/tcp.h; Linux 6.15).
const TCP_RTO_MAX_MS: i32 = 44;
/// `TCP_BPF_RTO_MIN` (linux/bpf.h), in microseconds.
const TCP_BPF_RTO_MIN: i32 = 1004;

#[inline(always)]
pub fn follow(ctx: &SockOpsContext) {
    let Some(sk) = socket(ctx) else { return };
    let ops = ctx.ops;
    match word!(ops => bpf_sock_ops, op) {
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => established(ctx, sk, ORIGINAL),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => established(ctx, sk, PEER),
        BPF_SOCK_OPS_STATE_CB => {
            let [from, to] = [
                word!(ops => bpf_sock_ops, __bindgen_anon_1.args, 0),
                word!(ops => bpf_sock_ops, __bindgen_anon_1.args, 1),
            ];
            changes_state(sk, from, to);
        }
        BPF_SOCK_OPS_RTT_CB => measured(ctx, sk),
        _ => {}
    }
}

/// Any connection may come to be joined; only those that are followed can be. `kind` is the note that applications'
/// sockets have.
#[inline(always)]
fn established(ctx: &SockOpsContext, sk: *mut bpf_sock, kind: u32) {
    // SAFETY: the context's socket.
    let is_application = unsafe { maps::note(sk) }.is_some_and(|note| note.kind == kind);
    let remote = remote_address(ctx);
    let is_local = is_application || is_loopback(&remote) || remote == local_address(ctx);
    let callbacks = BPF_SOCK_OPS_STATE_CB_FLAG | if is_local { BPF_SOCK_OPS_RTT_CB_FLAG } else { 0 };
    set_callbacks(ctx, callbacks, 0);
    // Makes the cookie, by which the gate knows its receiver.
    // SAFETY: a helper of this kind of program, on its own context.
    unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
}

#[inline(always)]
fn set_callbacks(ctx: &SockOpsContext, add: u32, remove: u32) {
    let ops = ctx.ops;
    let flags = (word!(ops => bpf_sock_ops, bpf_sock_ops_cb_flags) | add) & !remove;
    // A socket that could not be followed will not be joined.
    // SAFETY: a helper of this kind of program, on its own context.
    unsafe { bpf_sock_ops_cb_flags_set(ops, flags.cast_signed()) };
}

/// Told before the state changes, and before the FIN or RST that the change means is sent.
#[inline(always)]
fn changes_state(sk: *mut bpf_sock, from: u32, to: u32) {
    // SAFETY: the context's socket.
    let Some(way) = (unsafe { ways::joined(sk) }) else {
        return;
    };
    // SAFETY: the context's socket.
    let Some(socket) = (unsafe { Socket::of(sk) }) else {
        return;
    };
    if !may_send(to) && !cfg!(mutant = "ends") {
        let why = if way.role == APPLICATION {
            note::SENDER_ENDED
        } else {
            note::HOP_ENDED
        };
        if let Some(sending) = Direction::sending(way) {
            sending.end(way.generation, why);
        }
    }
    if way.role == HOP && to == BPF_TCP_CLOSE {
        closes_as_hop(socket, way, from);
    }
    if way.role == APPLICATION
        && let Some(receiving) = Direction::at(way.index, way.direction ^ 1)
    {
        changes_as_receiver(socket, way, receiving, to);
    }
}

#[inline(always)]
fn may_send(state: u32) -> bool {
    state == BPF_TCP_ESTABLISHED || state == BPF_TCP_CLOSE_WAIT
}

/// Before the hop's reset leaves.
#[inline(always)]
fn closes_as_hop(hop: Socket, way: &Way, from: u32) {
    let receiver = Socket(way.receiver);
    if receiver.cookie() != way.receiver_cookie {
        return;
    }
    // A system call closes it, or the end of its process; not what has come from the receiver, nor a timer.
    let is_aborted = may_send(from) && hop.is_locked();
    if is_aborted && let Some(sending) = Direction::sending(way) {
        cut_off(receiver, way, sending);
    }
    // What comes for a socket while a system call is at work on it, the kernel does not keep if its queue is long (tcp_add_backlog); and a
    // reset comes once. The proxy waits for that; this is for its death.
    patience::until_free(receiver);
}

/// The end comes from the hop alone: the proxy has died, or has put an end to the flow. A message that the gate let through before may still be on
/// its way to the receiver's queue: its sender holds nothing that the end would have to wait for (`tcp_bpf_send_verdict` lets go of the sender's
/// lock, and `bpf_tcp_ingress` sleeps until it gets the receiver's). Out of the map the receiver gets no more than what is
/// on its way already, and belongs to the map's kind until the last who is at it has left (`sk_psock_put`). So the reset leaves after all
/// that was let through: what waits in the queue goes with it, which a reset may do to a stream.
#[inline(always)]
fn cut_off(receiver: Socket, way: &Way, sending: Direction) {
    if !is_alone(sending.notes(way.generation)) || cfg!(mutant = "late") {
        return;
    }
    sending.end(way.generation, note::CUT_OFF);
    take_out(way.receiver_key, way.variant);
    if !cfg!(mutant = "between") {
        patience::until_left(receiver, way.receiver_cookie);
    }
}

#[inline(always)]
fn is_alone(notes: u32) -> bool {
    notes & note::HOP_ENDED != 0 && notes & note::SENDER_ENDED == 0
}

#[inline(always)]
fn changes_as_receiver(socket: Socket, way: &Way, receiving: Direction, state: u32) {
    // Only close(2) takes a socket out of the maps before its state changes (sock_map_close); then what waits in its
    // queue is lost. The kernel empties the queue of TCP before it changes the state, so that all that still counts was
    // redirected. Where there is something in it, it is no close that changes the state but a FIN that has come during
    // or after one: it waits in the queue itself, and is no byte.
    let notes = receiving.notes(way.generation);
    if !socket.is_taken() {
        let is_closing = (socket.received() == 0 && notes & note::CUT_OFF == 0) || cfg!(mutant = "fin");
        if is_closing && socket.queued() > 0 {
            receiving.end(way.generation, note::UNREAD_CLOSE);
        }
        return;
    }
    // An end of the hop's alone that no system call has brought, or that looks orderly. No message that comes later shall be read after it; what
    // waits in the queue goes too, which a reset may do to a stream, but an end that looks orderly may not.
    let is_reset = state == BPF_TCP_CLOSE;
    if is_alone(notes) && (is_reset || socket.queued() == 0) && !cfg!(mutant = "late") {
        let which = if way.direction == OUT { CLIENT } else { SERVER };
        take_out(key(way.index, way.generation, which), way.variant);
    }
}

/// Takes an application's socket out of the map of its variant.
#[inline(always)]
fn take_out(key: u64, variant: u32) {
    let map = if variant == VERDICT {
        core::ptr::from_ref(&SOCKS_VERDICT).cast_mut().cast()
    } else {
        core::ptr::from_ref(&SOCKS).cast_mut().cast()
    };
    // SAFETY: a key, as the map wants it.
    unsafe { bpf_map_delete_elem(map, core::ptr::from_ref(&key).cast()) };
}

/// A round trip was measured, so something went by TCP. The first time after the join: from now on the application's
/// send shall block as soon as something of it is unsent, because the proxy has left it unread. And what finds no room in
/// the small buffer at the other end comes again soon: between two processes of one node nothing is on its way for long.
#[inline(always)]
fn measured(ctx: &SockOpsContext, sk: *mut bpf_sock) {
    // SAFETY: the context's socket.
    let Some(way) = (unsafe { ways::joined(sk) }) else {
        return;
    };
    if way.role == APPLICATION {
        set_option(ctx, TCP_NOTSENT_LOWAT, 1);
        set_option(ctx, TCP_BPF_RTO_MIN, 4_000);
        set_option(ctx, TCP_RTO_MAX_MS, 1_000);
    }
    set_callbacks(ctx, 0, BPF_SOCK_OPS_RTT_CB_FLAG);
}

/// A kernel that does not know the option goes on without.
#[inline(always)]
fn set_option(ctx: &SockOpsContext, option: i32, mut value: i32) {
    let value = core::ptr::from_mut(&mut value).cast();
    // SAFETY: the helper reads four bytes.
    unsafe { bpf_setsockopt(ctx.as_ptr(), IPPROTO_TCP, option, value, 4) };
}
