//! setsockopt(2): what an application asks of its socket that redirected bytes cannot give keeps the socket out, or
//! takes its flow out.

use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::programs::SockoptContext;
use underpass_ebpf_abi::tier::{IN, NOT_JOINED, OUT, note};

use super::flows::Direction;
use super::ways;
use crate::address::word;

const IPPROTO_TCP: u32 = 6;
const SOL_SOCKET: i32 = 1;
const SO_RCVLOWAT: i32 = 18;
const SO_ZEROCOPY: i32 = 60;
const SOL_TCP: i32 = 6;
const TCP_REPAIR: i32 = 19;
const TCP_ULP: i32 = 31;

#[inline(always)]
pub fn heed(ctx: &SockoptContext) {
    // SAFETY: members of the context.
    let (level, name) = unsafe { ((*ctx.sockopt).level, (*ctx.sockopt).optname) };
    let (mark, harmless_up_to) = match (level, name) {
        (SOL_SOCKET, SO_ZEROCOPY) => (note::ASKED_ZEROCOPY, 0),
        (SOL_SOCKET, SO_RCVLOWAT) => (note::ASKED_LOWAT, 1),
        (SOL_TCP, TCP_REPAIR) => (note::ASKED_REPAIR, 0),
        (SOL_TCP, TCP_ULP) => (note::ASKED_ULP, i32::MIN),
        _ => return,
    };
    if value(ctx).is_some_and(|value| value <= harmless_up_to) {
        return;
    }
    // SAFETY: a member of the context.
    let sk = unsafe { (*ctx.sockopt).__bindgen_anon_1.sk };
    if sk.is_null() || word!(sk => bpf_sock, protocol) != IPPROTO_TCP {
        return;
    }
    exclude(sk, mark);
}

/// The option's value, if it is a number.
#[inline(always)]
fn value(ctx: &SockoptContext) -> Option<i32> {
    // SAFETY: members of the context; the bounds are compared before the value is read.
    unsafe {
        let start = (*ctx.sockopt).__bindgen_anon_2.optval as usize;
        let end = (*ctx.sockopt).__bindgen_anon_3.optval_end as usize;
        (start + size_of::<i32>() <= end).then(|| *(start as *const i32))
    }
}

#[inline(always)]
fn exclude(sk: *mut bpf_sock, mark: u32) {
    // Without memory for the mark the flow's own check at the join is what is left.
    // SAFETY: the context's socket.
    let Some(way) = (unsafe { ways::place(sk) }) else {
        return;
    };
    ways::mark(way, mark);
    if way.role == NOT_JOINED {
        return;
    }
    for direction in [OUT, IN] {
        if let Some(direction) = Direction::at(way.index, direction) {
            direction.end(way.generation, mark);
        }
    }
}
