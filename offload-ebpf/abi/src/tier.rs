//! What the kernel tier's programs, the agent and the proxy agree on.
//!
//! A joined flow has two directions: OUT, from the client's socket to the server's, and IN, back. A direction has a
//! *sender* and a *receiver*, both of applications, and between them the proxy's *hop*, the socket by which the proxy
//! sends what it has read.
//!
//! Two kinds of memory, by who may write it. [`FlowEntry`] is mapped by the proxy, so the programs believe it only as
//! far as the flow's own bytes go: it holds no key and no address. [`Way`] is storage on the socket that only the
//! programs write.

/// Flows that can be joined at once.
pub const MAX_FLOWS: u32 = 16_384;
/// Sockets of a flow.
pub const SOCKETS_PER_FLOW: u32 = 4;
/// Flows that one run of `measure` looks at.
pub const MEASURED_AT_ONCE: usize = 64;

/// Index of the direction from client to server.
pub const OUT: u32 = 0;
/// Index of the direction from server to client.
pub const IN: u32 = 1;

/// One direction of a flow. What the proxy writes and what the programs write lie on cache lines of their own.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowDirection {
    /// Bytes of the sender that the proxy has handed on since the join. The proxy stores it *after* its send has
    /// returned; the gate loads it before anything else.
    pub forwarded: u64,
    /// Not 0: the sender's messages may go to the receiver. Programs only ever clear it.
    pub armed: u32,
    /// Which of the flows that have had this entry it is; never 0 for a flow.
    pub generation: u32,
    /// One more than the number of the core on which the proxy last handed something on; 0 before it has.
    pub relay_core: u32,
    /// Always 0.
    pub pad: [u32; 11],
    /// Bytes that went from sender to receiver, past the proxy.
    pub bypassed_bytes: u64,
    /// Messages that did.
    pub bypassed_messages: u64,
    /// Messages left to TCP because the proxy had not yet handed on what was sent before.
    pub behind: u64,
    /// Messages left to TCP because the receiver's queue was at the limit.
    pub full: u64,
    /// What waits in the receiver's queue, as last measured: its bytes, and [`MESSAGE_COST`] for each message. All ones
    /// when a system call was at work on the receiver, whose lock a sender would have to wait for.
    pub queued: u32,
    /// Why the direction will not be armed again: bits of [`note`].
    pub notes: u32,
    /// How many of the sender's messages may wait at the receiver, when it last sent one.
    pub waiting: u32,
    /// The same of the hop's.
    pub hop_waiting: u32,
    /// Messages left to TCP because a system call was at work on the receiver's socket for too long.
    pub busy: u64,
    /// The core on which the sender was when it last sent a message that counts in `behind`.
    pub sender_core: u32,
    /// Bytes that may wait at the receiver without its being deaf to a reset ([`JoinCall::room`]). Set by the agent when all is joined.
    pub room: u32,
}

impl FlowDirection {
    /// As a flow's direction begins.
    pub const fn new(generation: u32) -> Self {
        Self {
            forwarded: 0,
            armed: 0,
            generation,
            relay_core: 0,
            pad: [0; 11],
            bypassed_bytes: 0,
            bypassed_messages: 0,
            behind: 0,
            full: 0,
            queued: 0,
            notes: 0,
            waiting: 0,
            hop_waiting: 0,
            busy: 0,
            sender_core: 0,
            room: 0,
        }
    }
}

/// A flow: the value of the map `FLOWS`, which the proxy maps.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowEntry {
    /// [`OUT`], [`IN`].
    pub directions: [FlowDirection; 2],
}

/// Why a direction is closed for good to the kernel's way: bits of [`FlowDirection::notes`].
pub mod note {
    /// The proxy's sending socket has left the states in which it may send.
    pub const HOP_ENDED: u32 = 1 << 0;
    /// The sender has closed, or shut down its side.
    pub const SENDER_ENDED: u32 = 1 << 1;
    /// The receiver was closed with bytes unread: a plain connection would have been reset.
    pub const UNREAD_CLOSE: u32 = 1 << 2;
    /// One of the applications asked for SO_ZEROCOPY.
    pub const ASKED_ZEROCOPY: u32 = 1 << 3;
    /// One of the applications asked for an SO_RCVLOWAT of more than one byte.
    pub const ASKED_LOWAT: u32 = 1 << 4;
    /// One of the applications asked for an upper layer protocol (TLS).
    pub const ASKED_ULP: u32 = 1 << 5;
    /// One of the applications asked for TCP_REPAIR.
    pub const ASKED_REPAIR: u32 = 1 << 6;
    /// The capture was removed.
    pub const DETACHED: u32 = 1 << 7;
    /// The receiver reads by splice(2), which does not see what was redirected.
    pub const SPLICES: u32 = 1 << 8;
    /// The proxy's sending socket was closed with a reset before the sender's end: the receiver is in no map any more, and what it had not
    /// read is gone.
    pub const CUT_OFF: u32 = 1 << 9;
}

/// Storage on a socket: the value of the map `WAYS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Way {
    /// The receiver's key in the map of sockets ([`key`]).
    pub receiver_key: u64,
    /// Address of the receiver's `struct sock`, of an application's socket; to be believed only while the cookie is the
    /// same.
    pub receiver: u64,
    /// The receiver's cookie.
    pub receiver_cookie: u64,
    /// Place of the flow in `FLOWS`.
    pub index: u32,
    /// Of the flow.
    pub generation: u32,
    /// [`NOT_JOINED`], [`APPLICATION`] or [`HOP`].
    pub role: u32,
    /// The direction that the socket sends in: [`OUT`] or [`IN`].
    pub direction: u32,
    /// Of an application's socket: the sequence number of its first byte that counts in `forwarded`.
    pub first: u32,
    /// Of an application's socket: a message passes by only if what waits at the receiver is no more than this.
    pub limit: u32,
    /// [`PLAIN`] or [`VERDICT`]: which map the receiver is in.
    pub variant: u32,
    /// What the application asked of the socket that keeps it out: the `ASKED_` bits of [`note`].
    pub marks: u32,
    /// What the socket has had redirected until now.
    pub redirected: Progress,
    /// Where it was at a moment up to which the receiver has read everything.
    pub read: Progress,
    /// Where it was at a later moment.
    pub next: Progress,
    /// How often in a row the sender has waited for the proxy in vain.
    pub failures: u32,
    /// So many messages it does not wait now.
    pub impatience: u32,
}

/// How far a sender's redirected messages have come. Both counts may wrap.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Their bytes.
    pub bytes: u32,
    /// Their number.
    pub messages: u32,
}

/// What a message costs the kernel beyond its bytes while it waits, and is not accounted to anybody: `struct sk_msg`
/// (712 bytes on Linux 6.18) from an allocation of this size.
pub const MESSAGE_COST: u32 = 1024;

/// What waits at a receiver, in bytes of the kernel's memory.
pub const fn cost(bytes: u32, messages: u32) -> u32 {
    bytes.saturating_add(messages.saturating_mul(MESSAGE_COST))
}

/// Role in a [`Way`]: of a socket that has only marks.
pub const NOT_JOINED: u32 = 0;
/// Role in a [`Way`]: the socket is an application's.
pub const APPLICATION: u32 = 1;
/// Role in a [`Way`]: the socket is the proxy's.
pub const HOP: u32 = 2;

/// The receivers are in `SOCKS`.
pub const PLAIN: u32 = 0;
/// The receivers are in `SOCKS_VERDICT`.
pub const VERDICT: u32 = 1;

/// Which socket of a flow a key stands for: the application of the client.
pub const CLIENT: u32 = 0;
/// The application of the server.
pub const SERVER: u32 = 1;
/// The proxy's socket towards the client.
pub const DOWNSTREAM: u32 = 2;
/// The proxy's socket towards the server.
pub const UPSTREAM: u32 = 3;

/// The key of a socket in `SOCKS` and `SOCKS_VERDICT`. An index that is used again never finds an older flow's socket.
pub const fn key(index: u32, generation: u32, which: u32) -> u64 {
    (generation as u64) << 32 | (index * SOCKETS_PER_FLOW + which) as u64
}

/// Index and generation of the flow that a [`key`] belongs to.
pub const fn flow_of(key: u64) -> (u32, u32) {
    (key as u32 / SOCKETS_PER_FLOW, (key >> 32) as u32)
}

/// A flow, as `measure` is told of it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowId {
    /// Place in `FLOWS`.
    pub index: u32,
    /// Of the flow.
    pub generation: u32,
}

/// What `join` is asked and answers. It is run in the socket's network namespace, on a packet that is this struct
/// behind [`CALL_OFFSET`] bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JoinCall {
    /// Answer: address of the `struct sock`.
    pub socket: u64,
    /// Answer: its cookie. To [`INSERT`]: the cookie that the socket must have.
    pub cookie: u64,
    /// The socket's own address.
    pub local: [u8; 16],
    /// Its peer's.
    pub remote: [u8; 16],
    /// The socket's own port.
    pub local_port: u16,
    /// Its peer's.
    pub remote_port: u16,
    /// [`CHECK`] or [`INSERT`].
    pub action: u32,
    /// To [`INSERT`]: the socket's own key.
    pub key: u64,
    /// Of an application's socket: the sequence number up to which it must have read.
    pub read_up_to: u32,
    /// Answer: an [`Outcome`].
    pub outcome: u32,
    /// Answer: sequence number of the next byte that the socket will send.
    pub write_seq: u32,
    /// Answer: sequence number of the next byte that will be read from the socket.
    pub copied_seq: u32,
    /// Answer: the error of the map, for [`Outcome::MapRefused`].
    pub errno: u32,
    /// Answer: bytes that may wait at the socket, and 64 KiB more, without its being deaf to the end of the connection.
    pub room: u32,
    /// The socket's role, and to [`INSERT`] all that it shall have.
    pub way: Way,
}

/// Where a [`JoinCall`] or the [`FlowId`]s begin in the packet: it must begin with an Ethernet header.
pub const CALL_OFFSET: u32 = 14;
/// Action of a [`JoinCall`]: look at the socket.
pub const CHECK: u32 = 0;
/// Action of a [`JoinCall`]: look at the socket again, and if all is well give it its way and put it into the map.
pub const INSERT: u32 = 1;

/// What came of a [`JoinCall`].
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The program did not come to an end.
    Unknown,
    /// All is well.
    Done,
    /// There is no such socket in the namespace.
    NotFound,
    /// The connection is not established, or no longer.
    NotEstablished,
    /// The connection is older than the capture, or its process outside the capture's cgroup: nothing would notice its
    /// end.
    NotFollowed,
    /// accept(2) has not yet returned the socket.
    NotAccepted,
    /// The application's descriptor is blocking.
    Blocking,
    /// There is an upper layer protocol (TLS) on the socket.
    Ulp,
    /// The connection is an MPTCP subflow.
    Mptcp,
    /// The application uses SO_ZEROCOPY.
    Zerocopy,
    /// The application uses SO_RCVLOWAT.
    Lowat,
    /// The socket is, or was, being repaired.
    Repair,
    /// Another program has the socket in a map of its own.
    Busy,
    /// The application has not yet read everything.
    NotQuiet,
    /// No memory for the way.
    NoMemory,
    /// The map did not take the socket.
    MapRefused,
    /// The application reads by splice(2).
    Splices,
}

impl Outcome {
    /// All outcomes in the order of their numbers.
    pub const ALL: [Self; 17] = [
        Self::Unknown,
        Self::Done,
        Self::NotFound,
        Self::NotEstablished,
        Self::NotFollowed,
        Self::NotAccepted,
        Self::Blocking,
        Self::Ulp,
        Self::Mptcp,
        Self::Zerocopy,
        Self::Lowat,
        Self::Repair,
        Self::Busy,
        Self::NotQuiet,
        Self::NoMemory,
        Self::MapRefused,
        Self::Splices,
    ];

    /// The outcome of a number; [`Outcome::Unknown`] for one that has none.
    pub fn of(number: u32) -> Self {
        Self::ALL.get(number as usize).copied().unwrap_or(Self::Unknown)
    }
}

/// Where things are in the running kernel's structs, in bytes; read from its BTF before the programs are loaded.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offsets {
    /// `tcp_sock.write_seq`.
    pub write_seq: u32,
    /// `tcp_sock.copied_seq`.
    pub copied_seq: u32,
    /// `tcp_sock.bpf_sock_ops_cb_flags`, one byte.
    pub callbacks: u32,
    /// The byte with the bit `tcp_sock.repair`, and the bit as a mask.
    pub repair: [u32; 2],
    /// `tcp_sock.is_mptcp`, one byte; 0 in a kernel without MPTCP.
    pub is_mptcp: u32,
    /// `inet_connection_sock.icsk_ulp_ops`.
    pub ulp_ops: u32,
    /// `sock.sk_backlog.rmem_alloc`.
    pub rmem_alloc: u32,
    /// `sock.sk_receive_queue.qlen`.
    pub receive_queue_len: u32,
    /// `sock.sk_socket`.
    pub socket: u32,
    /// `socket.sk`.
    pub sk: u32,
    /// `socket.file`.
    pub file: u32,
    /// `file.f_flags`.
    pub file_flags: u32,
    /// `sock.__sk_common.skc_flags`.
    pub sock_flags: u32,
    /// The bit `SOCK_ZEROCOPY` of them, by its number.
    pub zerocopy_bit: u32,
    /// `sock.sk_rcvlowat`.
    pub rcvlowat: u32,
    /// `sock.sk_rcvbuf`.
    pub rcvbuf: u32,
    /// `sock.sk_sndbuf`.
    pub sndbuf: u32,
    /// `sock.sk_user_data`.
    pub user_data: u32,
    /// `sock.__sk_common.skc_cookie`.
    pub cookie: u32,
    /// `sock.sk_lock.owned`, an `int`.
    pub lock_owned: u32,
}

#[cfg(test)]
mod tests {
    use core::mem::{align_of, offset_of, size_of};

    use super::*;

    #[test]
    fn layouts_are_those_of_the_pinned_maps() {
        assert_eq!((size_of::<FlowEntry>(), align_of::<FlowEntry>()), (256, 64));
        assert_eq!(offset_of!(FlowDirection, forwarded), 0);
        assert_eq!(offset_of!(FlowDirection, armed), 8);
        assert_eq!(offset_of!(FlowDirection, generation), 12);
        assert_eq!(offset_of!(FlowDirection, bypassed_bytes), 64);
        assert_eq!(offset_of!(FlowDirection, bypassed_messages), 72);
        assert_eq!(offset_of!(FlowDirection, behind), 80);
        assert_eq!(offset_of!(FlowDirection, full), 88);
        assert_eq!(offset_of!(FlowDirection, queued), 96);
        assert_eq!(offset_of!(FlowDirection, notes), 100);
        assert_eq!(offset_of!(FlowDirection, waiting), 104);
        assert_eq!(offset_of!(FlowDirection, hop_waiting), 108);
        assert_eq!(offset_of!(FlowDirection, busy), 112);

        assert_eq!((size_of::<Way>(), align_of::<Way>()), (88, 8));
        assert_eq!(offset_of!(Way, receiver), 8);
        assert_eq!(offset_of!(Way, receiver_cookie), 16);
        assert_eq!(offset_of!(Way, index), 24);
        assert_eq!(offset_of!(Way, generation), 28);
        assert_eq!(offset_of!(Way, role), 32);
        assert_eq!(offset_of!(Way, direction), 36);
        assert_eq!(offset_of!(Way, first), 40);
        assert_eq!(offset_of!(Way, limit), 44);
        assert_eq!(offset_of!(Way, variant), 48);
        assert_eq!(offset_of!(Way, marks), 52);
        assert_eq!(offset_of!(Way, redirected), 56);
        assert_eq!(offset_of!(Way, read), 64);
        assert_eq!(offset_of!(Way, next), 72);
        assert_eq!(offset_of!(Way, failures), 80);
        assert_eq!(offset_of!(Way, impatience), 84);
        assert_eq!(offset_of!(Progress, messages), 4);
    }

    #[test]
    fn calls_have_no_padding_and_fit_on_the_stack() {
        assert_eq!((size_of::<JoinCall>(), align_of::<JoinCall>()), (176, 8));
        assert_eq!(offset_of!(JoinCall, way) + size_of::<Way>(), 176);
        assert_eq!(size_of::<FlowId>(), 8);
        assert_eq!(size_of::<Offsets>(), 21 * 4);
    }

    #[test]
    fn keys_tell_flows_sockets_and_generations_apart() {
        let last = MAX_FLOWS - 1;
        assert_ne!(key(0, 1, CLIENT), key(0, 2, CLIENT));
        assert_ne!(key(0, 1, UPSTREAM), key(1, 1, CLIENT));
        assert_eq!(flow_of(key(last, u32::MAX, UPSTREAM)), (last, u32::MAX));
        assert_eq!(flow_of(key(0, 1, CLIENT)), (0, 1));
    }

    #[test]
    fn outcomes_are_listed_at_their_number() {
        for (number, outcome) in Outcome::ALL.iter().enumerate() {
            assert_eq!(*outcome as usize, number);
        }
        assert_eq!(Outcome::of(1000), Outcome::Unknown);
    }
}
