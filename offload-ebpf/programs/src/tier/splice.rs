//! Readers by splice(2), whom redirected bytes do not reach.
//!
//! `tcp_splice_read` looks at what came by TCP only: poll(2) says that there is something to read, splice(2) says that there is not, and at
//! the end the stream looks complete without it. A program that splices does so from its first byte on, Go's `io.Copy` between
//! connections and HAProxy for instance, so it is noticed before its socket is joined. One that begins later has its flow taken back, and
//! the proxy resets what it could not have read.

use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::programs::FEntryContext;
use underpass_ebpf_abi::tier::{NOT_JOINED, note};

use super::flows::Direction;
use super::join::FOLLOWED;
use super::kernel::{Socket, offset};
use super::ways;

/// At the entry of `tcp_splice_read(struct socket *sock, …)`.
#[inline(always)]
pub fn heed(ctx: &FEntryContext) {
    let (socket, member): (*const u8, _) = (ctx.arg(0), offset!(sk) as usize);
    // SAFETY: the kernel's own argument, and where its type has the member. The verifier knows the type of what is read, as the storage wants it.
    let sk = unsafe { socket.add(member).cast::<*mut bpf_sock>().read() };
    // Others' sockets are none of ours, and get no storage.
    if sk.is_null() || Socket(sk as u64).read::<u8>(offset!(callbacks)) & FOLLOWED == 0 {
        return;
    }
    // SAFETY: a full TCP socket, or there would be nothing to splice from.
    let Some(way) = (unsafe { ways::place(sk) }) else {
        return;
    };
    ways::mark(way, note::SPLICES);
    if way.role != NOT_JOINED
        && let Some(receiving) = Direction::at(way.index, way.direction ^ 1)
    {
        receiving.end(way.generation, note::SPLICES);
    }
}
