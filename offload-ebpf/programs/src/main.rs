//! The eBPF programs of the capture and the kernel tier: how connections of enrolled pods get to the proxy, and how the
//! applications do not notice.
//!
//! ```text
//! connect(2) ─ connect4/6 ─ SYN ─ follow ───────── (pod's own listener) ── follow ── accept(2) by the proxy
//!              rewrites the       announces the                            tells the accepted socket
//!              destination        handshake with                           its original destination
//!                                 the original destination
//! getpeername(2), accept(2) ─ getpeername4/6: the original destination, or the true client
//! SYN to the pod ─ inbound: to the application if announced, else to the proxy's listener
//! setsockopt(2) ─ setsockopt: refused where it would hide packets from guard
//! packet from the pod ─ guard: dropped if it begins a connection that none of the above has seen
//! send(2) on a joined socket ─ gate: into the receiver's queue, or by TCP to the proxy (see `tier`)
//! ```
//!
//! The one idea: what is known of a connection travels with its socket (`NOTES`), and between the two sockets of one
//! connection by the tuple that both see (`HANDSHAKES`), which is there exactly from before the SYN until the listening
//! side has the connection. Nothing is remembered in a table that forgets (LRU), so no pod can make another's
//! connections forgotten; what finds no room is refused.
//!
//! What each program must not do is as important: fail open. Where a decision can't be made for an enrolled pod, the
//! connection is refused.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod address;
mod connect;
mod guard;
mod handshake;
mod inbound;
mod maps;
mod options;
mod peer_name;
mod tier;

use aya_ebpf::bindings::sk_action;
use aya_ebpf::macros::{
    cgroup_sock_addr, cgroup_sockopt, classifier, fentry, sk_lookup, sk_msg, sock_ops, stream_verdict,
};
use aya_ebpf::programs::{
    FEntryContext, SkBuffContext, SkLookupContext, SkMsgContext, SockAddrContext, SockOpsContext, SockoptContext,
    TcContext,
};

/// connect(2) on an `AF_INET` socket.
#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    connect::v4(&ctx)
}

/// connect(2) on an `AF_INET6` socket, also to a v4-mapped address.
#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    connect::v6(&ctx)
}

/// Follows connections from SYN to the end.
#[sock_ops]
pub fn follow(ctx: SockOpsContext) -> u32 {
    handshake::follow(&ctx);
    tier::ends::follow(&ctx);
    // 1 keeps the reply that a foreign program may have given; 0 would turn it into an error.
    1
}

/// getpeername(2) and the address that accept(2) gives, on an `AF_INET` socket.
#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    peer_name::v4(&ctx);
    1
}

/// The same on an `AF_INET6` socket.
#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    peer_name::v6(&ctx);
    1
}

/// Chooses the socket for a connection that arrives in a pod's namespace.
#[sk_lookup]
pub fn inbound(ctx: SkLookupContext) -> u32 {
    inbound::choose(&ctx)
}

/// Keeps a pod from sending packets past `guard`, and sockets out of the kernel tier that would suffer there.
#[cgroup_sockopt(setsockopt)]
pub fn setsockopt(ctx: SockoptContext) -> i32 {
    tier::exclusion::heed(&ctx);
    options::judge(&ctx)
}

/// Looks at the packets that leave a pod.
#[classifier]
pub fn guard(ctx: TcContext) -> i32 {
    guard::judge(&ctx)
}

/// Judges each message of a joined socket. Never fails a send.
#[sk_msg]
pub fn gate(ctx: SkMsgContext) -> u32 {
    tier::gate::judge(&ctx);
    sk_action::SK_PASS
}

/// Lets all bytes pass: its presence has what comes by TCP go through the queue of what is redirected. A FIN without
/// bytes has had its effect by now; in the queue it would look like something unread.
#[stream_verdict]
pub fn through(ctx: SkBuffContext) -> u32 {
    if ctx.len() == 0 {
        return sk_action::SK_DROP;
    }
    sk_action::SK_PASS
}

/// Looks at a socket, and joins it. Run by the agent.
#[classifier]
pub fn join(ctx: TcContext) -> i32 {
    tier::join::run(&ctx);
    0
}

/// Notices who reads by splice(2).
#[fentry(function = "tcp_splice_read")]
pub fn splices(ctx: FEntryContext) -> i32 {
    tier::splice::heed(&ctx);
    0
}

/// Reads the lengths of queues. Run by the proxy.
#[classifier]
pub fn measure(ctx: TcContext) -> i32 {
    tier::measure::run(&ctx);
    0
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // Never reached: the verifier would refuse a program that could get here, as it refuses endless loops.
    loop {}
}

/// The kernel offers some helpers only to programs under its own licence, by this declaration; the source is Apache-2.0
/// too.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
pub static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
