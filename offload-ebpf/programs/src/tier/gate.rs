//! On each message that a joined socket sends: into the receiver's queue, or by TCP to the proxy.
//!
//! A message may go straight to the receiver only if everything that its sender gave to TCP before has been handed on
//! by the proxy, the direction is alive, and the receiver has room. That the receiver's queue has one order, is the
//! business of those who join sockets and of the hops, which redirect whatever they send. Where anything is in doubt
//! the message takes TCP: that is always right.
//!
//! **Two short waits**, in the sender's own send, for what is about to be done on another core (`patience`): for the
//! proxy to have handed on the sender's last bytes, and for the receiver's lock. A stream needs both. Whoever is not
//! waited for is waited for by a whole message, and by those that follow it; and the redirect would wait for the lock
//! asleep, which costs two wake-ups for each message, and however long the receiver is kept from giving the lock back.

use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::bindings::sk_action::SK_PASS;
use aya_ebpf::bindings::{BPF_F_INGRESS, sk_msg_md};
use aya_ebpf::programs::SkMsgContext;
use underpass_ebpf_abi::tier::{HOP, VERDICT, Way, cost};

use super::flows::Direction;
use super::kernel::Socket;
use super::{patience, ways};
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
    if !is_hop && !is_alive(way, direction) {
        return;
    }
    let receiver = Socket(way.receiver);
    let queued = receiver.queued();
    let waiting = waiting(way, direction, queued);
    direction.set_waiting(way, waiting);
    if !is_hop && !may_pass(sk, way, direction, queued) {
        return;
    }
    let is_free = patience::until_free(receiver);
    if !is_hop && !is_free && !cfg!(mutant = "locked") {
        direction.count_busy();
        return;
    }
    // It may have been closed while we waited.
    if !is_hop && !is_alive(way, direction) {
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

/// Whether the direction is open, and the receiver still who it was.
#[inline(always)]
fn is_alive(way: &Way, direction: Direction) -> bool {
    direction.is_open(way.generation) && Socket(way.receiver).cookie() == way.receiver_cookie
}

/// Whether an application's message may go to a receiver with `queued` bytes in its queue: there is room, and all that
/// the sender sent before has been handed on.
#[inline(always)]
fn may_pass(sk: *mut bpf_sock, way: &mut Way, direction: Direction, queued: u32) -> bool {
    // SAFETY: the context's socket.
    let Some(sender) = (unsafe { Socket::of(sk) }) else {
        return false;
    };
    let has_room = has_room(way, direction, queued);
    if !patience::until_next(sender, way, direction, has_room) && !cfg!(mutant = "behind") {
        direction.count_behind();
        return false;
    }
    if !has_room {
        direction.count_full();
        return false;
    }
    true
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
