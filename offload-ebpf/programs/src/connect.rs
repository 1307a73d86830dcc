//! connect(2): from an enrolled pod to the pod's own listener, with a note of where it was going.
//!
//! A socket may be connected again after a failure, or after it was dissolved (`AF_UNSPEC`): each call settles the note anew, and a
//! call that is let through leaves none.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{bpf_sock, bpf_sock_addr};
use aya_ebpf::helpers::generated::{bpf_get_current_cgroup_id, bpf_get_netns_cookie, bpf_set_retval};
use aya_ebpf::programs::SockAddrContext;
use underpass_ebpf_abi::{Counter, DIRECT, Note, ORIGINAL, PodEntry, REFUSING};

use crate::address::{from_v4, from_v6, is_loopback, is_v4, word, words, words_of};
use crate::maps::{self, count};

const SOCK_STREAM: u32 = 1;
const IPPROTO_TCP: u32 = 6;
const ENETUNREACH: i32 = 101;
const ECONNREFUSED: i32 = 111;

/// Return values of the program.
const ALLOW: i32 = 1;
const REFUSE: i32 = 0;

enum Verdict {
    /// As the application asked.
    Allow,
    /// To the pod's listener.
    Capture { address: [u8; 16], port: u16 },
    /// With this error, if the kernel's own (`EPERM`) is not what connect(2) would say.
    Refuse { errno: i32, why: Counter },
}

#[inline(always)]
pub fn v4(ctx: &SockAddrContext) -> i32 {
    if !is_tcp(ctx) {
        return ALLOW;
    }
    let call = ctx.sock_addr;
    let destination = from_v4(word!(call => bpf_sock_addr, user_ip4));
    match decide(ctx, &destination) {
        Verdict::Capture { address, port } => {
            // SAFETY: the context may be written here.
            unsafe {
                (*call).user_ip4 = words_of(&address)[3];
                (*call).user_port = u32::from(port.to_be());
            }
            ALLOW
        }
        other => answer(other),
    }
}

#[inline(always)]
pub fn v6(ctx: &SockAddrContext) -> i32 {
    if !is_tcp(ctx) {
        return ALLOW;
    }
    let call = ctx.sock_addr;
    let destination = from_v6(words!(call => bpf_sock_addr, user_ip6));
    match decide(ctx, &destination) {
        Verdict::Capture { address, port } => {
            let words = words_of(&address);
            // SAFETY: the context may be written here, word by word.
            unsafe {
                core::ptr::write_volatile(&raw mut (*call).user_ip6[0], words[0]);
                core::ptr::write_volatile(&raw mut (*call).user_ip6[1], words[1]);
                core::ptr::write_volatile(&raw mut (*call).user_ip6[2], words[2]);
                core::ptr::write_volatile(&raw mut (*call).user_ip6[3], words[3]);
                (*call).user_port = u32::from(port.to_be());
            }
            ALLOW
        }
        other => answer(other),
    }
}

#[inline(always)]
fn is_tcp(ctx: &SockAddrContext) -> bool {
    let call = ctx.sock_addr;
    word!(call => bpf_sock_addr, type_) == SOCK_STREAM && word!(call => bpf_sock_addr, protocol) == IPPROTO_TCP
}

#[inline(always)]
fn answer(verdict: Verdict) -> i32 {
    let Verdict::Refuse { errno, why } = verdict else {
        return ALLOW;
    };
    count(why);
    // SAFETY: a plain helper; without it the answer would be EPERM.
    unsafe { bpf_set_retval(-errno) };
    REFUSE
}

#[inline(always)]
fn socket(ctx: &SockAddrContext) -> *mut bpf_sock {
    // SAFETY: the context of a sockaddr program always has its socket.
    unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk }
}

#[inline(always)]
fn decide(ctx: &SockAddrContext, destination: &[u8; 16]) -> Verdict {
    // SAFETY: helpers of this kind of program, on its own context.
    let (netns, cgroup) = unsafe { (bpf_get_netns_cookie(ctx.as_ptr()), bpf_get_current_cgroup_id()) };
    let Some(pod) = maps::pod(netns) else {
        return outside_pods(ctx, cgroup, destination);
    };
    if maps::is_exempt(cgroup) {
        // What the proxy has noted on its own socket announces this very connection.
        return Verdict::Allow;
    }
    if is_within(pod, netns, destination) {
        // SAFETY: the context's socket.
        unsafe { maps::remove_note(socket(ctx)) };
        return Verdict::Allow;
    }
    capture(ctx, pod, destination)
}

/// Whether a connection to `destination` does not leave the pod.
#[inline(always)]
fn is_within(pod: &PodEntry, netns: u64, destination: &[u8; 16]) -> bool {
    is_loopback(destination)
        || maps::owner(destination) == Some(netns)
        || (pod.port_v4 != 0 && pod.address_v4 == *destination)
        || (pod.port_v6 != 0 && pod.address_v6 == *destination)
}

#[inline(always)]
fn capture(ctx: &SockAddrContext, pod: &PodEntry, destination: &[u8; 16]) -> Verdict {
    let refuse = |errno, why| Verdict::Refuse { errno, why };
    if pod.flags & REFUSING != 0 {
        return refuse(ECONNREFUSED, Counter::RefusedRefusing);
    }
    let (address, port) = if is_v4(destination) {
        (pod.address_v4, pod.port_v4)
    } else {
        (pod.address_v6, pod.port_v6)
    };
    if port == 0 {
        return refuse(ENETUNREACH, Counter::RefusedFamily);
    }
    if maps::handshakes(pod.slot) >= i64::from(pod.handshake_limit) {
        return refuse(ECONNREFUSED, Counter::RefusedLimit);
    }
    let note = Note {
        kind: ORIGINAL,
        port: destination_port(ctx),
        pad: 0,
        address: *destination,
    };
    // SAFETY: the context's socket.
    if !unsafe { maps::put_note(socket(ctx), &note) } {
        return refuse(ECONNREFUSED, Counter::RefusedStorage);
    }
    count(Counter::Captured);
    Verdict::Capture { address, port }
}

#[inline(always)]
fn destination_port(ctx: &SockAddrContext) -> u16 {
    let call = ctx.sock_addr;
    u16::from_be(word!(call => bpf_sock_addr, user_port) as u16)
}

/// connect(2) in a namespace that is not enrolled. Only the kubelet's, to an enrolled pod, is anything to us: its probes go straight
/// to the application. A socket may also have been connected when its namespace was enrolled.
#[inline(always)]
fn outside_pods(ctx: &SockAddrContext, cgroup: u64, destination: &[u8; 16]) -> Verdict {
    let is_probe = maps::KUBELET.get_ptr(cgroup).is_some() && maps::owner(destination).is_some();
    let note = Note {
        kind: DIRECT,
        port: 0,
        pad: 0,
        address: [0; 16],
    };
    // SAFETY: the context's socket. Without memory for the note the probe is judged like any connection.
    unsafe {
        if !is_probe {
            if !maps::is_exempt(cgroup) {
                maps::remove_note(socket(ctx));
            }
        } else if maps::put_note(socket(ctx), &note) {
            count(Counter::Probes);
        }
    }
    Verdict::Allow
}
