//! Reads how much waits in the queues of receivers, for a proxy that waits for room.
//!
//! Run by the unprivileged proxy: it learns the length of a queue of a flow whose generation it can name, and writes it
//! to where the proxy could write anyway.

use core::ffi::c_void;
use core::mem::size_of;

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::{bpf_loop, bpf_map_lookup_elem, bpf_sk_release};
use aya_ebpf::programs::TcContext;
use underpass_ebpf_abi::tier::{CALL_OFFSET, CLIENT, FlowId, IN, MEASURED_AT_ONCE, OUT, SERVER, cost, key};

use super::flows::Direction;
use super::kernel::Socket;
use super::patience;
use crate::maps::{SOCKS, SOCKS_VERDICT};

#[inline(always)]
pub fn run(ctx: &TcContext) {
    let mut skb = ctx.skb.skb;
    let (each, packet) = (measure_flow as *mut c_void, core::ptr::from_mut(&mut skb).cast());
    // The kernel's own loop (Linux 5.17): the verifier looks at one turn. In a loop of ours that of 6.1 follows each turn
    // with whatever those before it may have found, and gives up.
    // SAFETY: a function that takes what it is given here, and a place that outlives the call.
    unsafe { bpf_loop(MEASURED_AT_ONCE as u32, each, packet, 0) };
}

/// Measures the flow with this number in the packet; 1 when there is none, which ends the loop.
unsafe extern "C" fn measure_flow(number: u32, packet: *mut c_void) -> i64 {
    // SAFETY: `run` gives where its packet is.
    let (data, end) = unsafe {
        let skb = packet.cast::<*mut __sk_buff>().read();
        ((*skb).data as usize, (*skb).data_end as usize)
    };
    // A number that the verifier knows the bounds of.
    let offset = CALL_OFFSET as usize + (number as usize & (MEASURED_AT_ONCE - 1)) * size_of::<FlowId>();
    let place = data + offset;
    if place + size_of::<FlowId>() > end {
        return 1;
    }
    // SAFETY: within the packet; any bytes are a value.
    let flow = unsafe { (place as *const FlowId).read_unaligned() };
    measure(flow, OUT, SERVER);
    measure(flow, IN, CLIENT);
    0
}

#[inline(always)]
fn measure(flow: FlowId, direction: u32, receiver: u32) {
    let Some(direction) = Direction::at(flow.index, direction) else {
        return;
    };
    let key = key(flow.index, flow.generation, receiver);
    let plain = queued(core::ptr::from_ref(&SOCKS).cast_mut().cast(), &key);
    let queued = plain.or_else(|| queued(core::ptr::from_ref(&SOCKS_VERDICT).cast_mut().cast(), &key));
    let cost = match queued {
        // All has been read, whatever was counted; and a receiver that is gone keeps nobody waiting.
        None | Some(0) => {
            direction.forget_waiting(flow.generation);
            0
        }
        Some(bytes) => cost(bytes, direction.waiting()),
    };
    direction.set_queued(flow.generation, cost);
}

#[inline(always)]
fn queued(map: *mut c_void, key: &u64) -> Option<u32> {
    // SAFETY: the map's key type; the socket is released below.
    let sk = unsafe { bpf_map_lookup_elem(map, core::ptr::from_ref(key).cast()) };
    if sk.is_null() {
        return None;
    }
    // SAFETY: the map holds full sockets.
    let queued = unsafe { Socket::of(sk.cast()) }.map(|receiver| {
        // Who sends to a socket on which a system call is at work, sleeps until that ends: for the proxy it has no room.
        if patience::until_free(receiver) { receiver.queued() } else { u32::MAX }
    });
    // SAFETY: not used any more.
    unsafe { bpf_sk_release(sk) };
    queued
}
