//! Looks at a socket in the thread's network namespace, and puts it into the map.
//!
//! The only program that sees foreign sockets: whether one is fit is judged here, at once before it is inserted, and
//! nowhere else.

use core::mem::size_of;

use aya_ebpf::bindings::{BPF_NOEXIST, bpf_sock, bpf_sock_tuple};
use aya_ebpf::helpers::generated::{
    bpf_map_update_elem, bpf_sk_lookup_tcp, bpf_sk_release, bpf_skb_load_bytes, bpf_skb_store_bytes,
};
use aya_ebpf::programs::TcContext;
use underpass_ebpf_abi::tier::{APPLICATION, CALL_OFFSET, INSERT, JoinCall, NOT_JOINED, Outcome, VERDICT, note};

use super::kernel::{Socket, offset, read};
use super::ways;
use crate::address::{is_v4, word, words_of};
use crate::maps::{SOCKS, SOCKS_VERDICT};

/// `enum tcp_state` (net/tcp_states.h).
const TCP_ESTABLISHED: u32 = 1;
/// `O_NONBLOCK` (asm-generic/fcntl.h).
const O_NONBLOCK: u32 = 0o4000;
/// `BPF_SOCK_OPS_STATE_CB_FLAG`, which `follow` sets on connections.
pub const FOLLOWED: u8 = 1 << 2;
/// `BPF_F_CURRENT_NETNS`: the namespace of the thread that runs the program.
const CURRENT_NETNS: u64 = u64::MAX;
const EBUSY: i64 = 16;

#[inline(always)]
pub fn run(ctx: &TcContext) {
    let skb = ctx.skb.skb;
    let mut call = JoinCall::default();
    let place = core::ptr::from_mut(&mut call).cast();
    // SAFETY: the helper writes a `JoinCall`, of which any bytes are a value.
    if unsafe { bpf_skb_load_bytes(skb.cast(), CALL_OFFSET, place, size_of::<JoinCall>() as u32) } != 0 {
        return;
    }
    call.outcome = act(ctx, &mut call) as u32;
    let answer = core::ptr::from_ref(&call).cast();
    // SAFETY: the helper reads a `JoinCall`.
    unsafe { bpf_skb_store_bytes(skb, CALL_OFFSET, answer, size_of::<JoinCall>() as u32, 0) };
}

#[inline(always)]
fn act(ctx: &TcContext, call: &mut JoinCall) -> Outcome {
    let sk = look_up(ctx, call);
    if sk.is_null() {
        return Outcome::NotFound;
    }
    let outcome = judge_and_insert(sk, call);
    // SAFETY: looked up above, and not used any more.
    unsafe { bpf_sk_release(sk.cast()) };
    outcome
}

/// The socket to which a packet from its peer would go.
#[inline(always)]
fn look_up(ctx: &TcContext, call: &JoinCall) -> *mut bpf_sock {
    // SAFETY: numbers only.
    let mut tuple: bpf_sock_tuple = unsafe { core::mem::zeroed() };
    let (local, remote) = (words_of(&call.local), words_of(&call.remote));
    let size = if is_v4(&call.local) {
        let v4 = unsafe { &mut tuple.__bindgen_anon_1.ipv4 };
        (v4.saddr, v4.daddr) = (remote[3], local[3]);
        (v4.sport, v4.dport) = (call.remote_port.to_be(), call.local_port.to_be());
        12
    } else {
        let v6 = unsafe { &mut tuple.__bindgen_anon_1.ipv6 };
        (v6.saddr, v6.daddr) = (remote, local);
        (v6.sport, v6.dport) = (call.remote_port.to_be(), call.local_port.to_be());
        36
    };
    // SAFETY: the tuple is as long as said.
    unsafe { bpf_sk_lookup_tcp(ctx.skb.skb.cast(), &mut tuple, size, CURRENT_NETNS, 0) }
}

#[inline(always)]
fn judge_and_insert(sk: *mut bpf_sock, call: &mut JoinCall) -> Outcome {
    // SAFETY: looked up by the caller.
    let Some(socket) = (unsafe { Socket::of(sk) }) else {
        return Outcome::NotFound;
    };
    let is_another = call.action == INSERT && call.cookie != socket.cookie();
    call.socket = socket.0;
    call.cookie = socket.cookie();
    call.write_seq = socket.write_seq();
    call.copied_seq = socket.copied_seq();
    call.room = room(socket);
    if is_another || word!(sk => bpf_sock, state) != TCP_ESTABLISHED {
        return Outcome::NotEstablished;
    }
    if let Some(why) = unfitness(socket, call) {
        return why;
    }
    if call.action == INSERT {
        return insert(sk, call);
    }
    Outcome::Done
}

/// With more than this in its queue, the kernel drops what arrives while the socket is being read (tcp_add_backlog),
/// were it a reset; and a reset comes once.
#[inline(always)]
fn room(socket: Socket) -> u32 {
    socket.read::<u32>(offset!(rcvbuf)) + socket.read::<u32>(offset!(sndbuf)) / 2
}

/// Why the socket should not be joined, if so.
#[inline(always)]
fn unfitness(socket: Socket, call: &JoinCall) -> Option<Outcome> {
    let is_application = call.way.role == APPLICATION;
    if is_application && let Some(why) = unfitness_of_application(socket) {
        return Some(why);
    }
    // The cookie is made by `follow` too, so that it is there.
    if socket.read::<u8>(offset!(callbacks)) & FOLLOWED == 0 || call.cookie == 0 {
        return Some(Outcome::NotFollowed);
    }
    if socket.is_taken() {
        return Some(Outcome::Busy);
    }
    let has_read_all = call.copied_seq == call.read_up_to && socket.received() == 0;
    if is_application && !has_read_all && !cfg!(mutant = "quiet") {
        return Some(Outcome::NotQuiet);
    }
    None
}

#[inline(always)]
fn unfitness_of_application(socket: Socket) -> Option<Outcome> {
    let owner: u64 = socket.read(offset!(socket));
    let file: u64 = if owner == 0 { 0 } else { read(owner + offset!(file)) };
    if file == 0 {
        return Some(Outcome::NotAccepted);
    }
    if read::<u32>(file + offset!(file_flags)) & O_NONBLOCK == 0 && !cfg!(mutant = "blocking") {
        return Some(Outcome::Blocking);
    }
    if socket.read::<u64>(offset!(ulp_ops)) != 0 {
        return Some(Outcome::Ulp);
    }
    let is_mptcp = offset!(is_mptcp);
    if is_mptcp != 0 && socket.read::<u8>(is_mptcp) != 0 {
        return Some(Outcome::Mptcp);
    }
    if socket.read::<u64>(offset!(sock_flags)) >> (offset!(zerocopy_bit) & 63) & 1 != 0 {
        return Some(Outcome::Zerocopy);
    }
    if socket.read::<i32>(offset!(rcvlowat)) > 1 {
        return Some(Outcome::Lowat);
    }
    if u64::from(socket.read::<u8>(offset!(repair[0]))) & offset!(repair[1]) != 0 {
        return Some(Outcome::Repair);
    }
    None
}

#[inline(always)]
fn insert(sk: *mut bpf_sock, call: &mut JoinCall) -> Outcome {
    // SAFETY: looked up by the caller.
    let Some(way) = (unsafe { ways::place(sk) }) else {
        return Outcome::NoMemory;
    };
    // All but the marks, which others may be setting.
    way.receiver_key = call.way.receiver_key;
    way.receiver = call.way.receiver;
    way.receiver_cookie = call.way.receiver_cookie;
    way.index = call.way.index;
    way.generation = call.way.generation;
    way.direction = call.way.direction;
    way.first = call.way.first;
    way.limit = call.way.limit;
    way.variant = call.way.variant;
    way.redirected = call.way.redirected;
    way.read = call.way.read;
    way.next = call.way.next;
    way.role = call.way.role;
    let marks = ways::mark(way, 0);
    if marks != 0 && call.way.role == APPLICATION {
        way.role = NOT_JOINED;
        return unfitness_by(marks);
    }
    let is_in_verdict = call.way.role == APPLICATION && call.way.variant == VERDICT;
    let map = if is_in_verdict {
        core::ptr::from_ref(&SOCKS_VERDICT).cast_mut().cast()
    } else {
        core::ptr::from_ref(&SOCKS).cast_mut().cast()
    };
    let (key, flags) = (core::ptr::from_ref(&call.key).cast_mut().cast(), u64::from(BPF_NOEXIST));
    // SAFETY: a key and a socket, as the map wants them.
    let answer = unsafe { bpf_map_update_elem(map, key, sk.cast(), flags) };
    if answer == 0 {
        return Outcome::Done;
    }
    way.role = NOT_JOINED;
    call.errno = -answer as u32;
    if answer == -EBUSY {
        Outcome::Busy
    } else {
        Outcome::MapRefused
    }
}

#[inline(always)]
fn unfitness_by(marks: u32) -> Outcome {
    if marks & note::ASKED_ULP != 0 {
        Outcome::Ulp
    } else if marks & note::ASKED_ZEROCOPY != 0 {
        Outcome::Zerocopy
    } else if marks & note::ASKED_LOWAT != 0 {
        Outcome::Lowat
    } else if marks & note::SPLICES != 0 {
        Outcome::Splices
    } else {
        Outcome::Repair
    }
}
