//! On each message that a joined socket sends: into the receiver's queue, or by TCP to the proxy.
//!
//! A message may go straight to the receiver only if everything that its sender gave to TCP before has been handed on
//! by the proxy, the direction is alive, and the receiver has room. That the receiver's queue has one order, is the
//! business of those who join sockets and of the hops, which redirect whatever they send. Where anything is in doubt
//! the message takes TCP: that is always right.

use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::bindings::sk_action::SK_PASS;
use aya_ebpf::bindings::{BPF_F_INGRESS, sk_msg_md};
use aya_ebpf::programs::SkMsgContext;
use underpass_ebpf_abi::tier::{HOP, VERDICT, Way, cost};

use super::flows::Direction;
use super::kernel::Socket;
use super::ways;
use crate::address::word;
use crate::maps::{SOCKS, SOCKS_VERDICT};

#[inline(always)]
pub fn judge(ctx: &SkMsgContext) {
    // SAFETY: a member of the context.
    let sk = unsafe { (*ctx.msg).__bindgen_anon_3.sk };
    if sk.is_null() {
        return;
    }
    // SAFETY: the context's socket.
    let Some(way) = (unsafe { ways::joined(sk) }) else {
        return;
    };
    let Some(direction) = Direction::sending(way) else {
        return;
    };
    // The receiver gets what the proxy sends by redirect only. One that is no longer in the map will not read any more.
    let is_hop = way.role == HOP;
    if is_hop && cfg!(mutant = "hop") {
        return;
    }
    if !is_hop && !is_next(sk, way, direction) {
        return;
    }
    let queued = Socket(way.receiver).queued();
    let waiting = waiting(way, direction, queued);
    direction.set_waiting(way, waiting);
    if !is_hop && !has_room(way, direction, queued) {
        direction.count_full();
        return;
    }
    let message = ctx.msg;
    let bytes = word!(message => sk_msg_md, size);
    if redirect(ctx, way) {
        count_redirected(way, bytes);
        direction.set_waiting(way, waiting.wrapping_add(1));
        if !is_hop {
            direction.count_bypassed(bytes);
        }
    }
}

/// Learns what the receiver has read of this sender's messages, and says how many may still wait. The kernel does not
/// count them; but when of the bytes sent since some moment as many or more have been sent as wait now, all from before
/// that moment has been read.
#[inline(always)]
fn waiting(way: &mut Way, direction: Direction, queued: u32) -> u32 {
    if queued == 0 || direction.waiting_of(way.role) == 0 {
        way.read = way.redirected;
        way.next = way.redirected;
    } else if way.redirected.bytes.wrapping_sub(way.next.bytes) >= queued {
        way.read = way.next;
        way.next = way.redirected;
    }
    way.redirected.messages.wrapping_sub(way.read.messages)
}

#[inline(always)]
fn count_redirected(way: &mut Way, bytes: u32) {
    way.redirected.bytes = way.redirected.bytes.wrapping_add(bytes);
    way.redirected.messages = way.redirected.messages.wrapping_add(1);
}

/// Whether the direction is open, and all that the sender sent before has been handed on to its receiver.
#[inline(always)]
fn is_next(sk: *mut bpf_sock, way: &Way, direction: Direction) -> bool {
    // SAFETY: the context's socket.
    let Some(sender) = (unsafe { Socket::of(sk) }) else {
        return false;
    };
    // First of all that the decision rests on: what the proxy did before it counted has then been done.
    let (forwarded, given_to_tcp) = if cfg!(mutant = "order") {
        let given_to_tcp = sender.write_seq().wrapping_sub(way.first);
        (direction.forwarded(), given_to_tcp)
    } else {
        let forwarded = direction.forwarded();
        (forwarded, sender.write_seq().wrapping_sub(way.first))
    };
    if !direction.is_open(way.generation) {
        return false;
    }
    // Modulo 2^32, as sequence numbers are: far more than can be on the way.
    if given_to_tcp != forwarded as u32 && !cfg!(mutant = "behind") {
        direction.count_behind();
        return false;
    }
    Socket(way.receiver).cookie() == way.receiver_cookie
}

/// An empty queue has room for any message.
#[inline(always)]
fn has_room(way: &Way, direction: Direction, queued: u32) -> bool {
    let messages = if cfg!(mutant = "messages") {
        0
    } else {
        direction.waiting()
    };
    queued == 0 || cost(queued, messages) <= way.limit || cfg!(mutant = "room")
}

/// False if the receiver is not in the map. The helper's answer to that would fail the send; `judge` never gives it
/// back.
#[inline(always)]
fn redirect(ctx: &SkMsgContext, way: &Way) -> bool {
    let mut key = way.receiver_key;
    let flags = u64::from(BPF_F_INGRESS);
    let verdict = if way.variant == VERDICT {
        SOCKS_VERDICT.redirect_msg(SkMsgContext::new(ctx.msg), &mut key, flags)
    } else {
        SOCKS.redirect_msg(SkMsgContext::new(ctx.msg), &mut key, flags)
    };
    verdict == i64::from(SK_PASS)
}
