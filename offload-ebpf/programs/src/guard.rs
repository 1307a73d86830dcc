//! What leaves a pod: nothing that begins a connection past the other programs.
//!
//! connect(2) is the only way to begin a TCP connection that the other programs see. There are others: raw and packet sockets, MPTCP, a
//! forwarded packet. They all need a SYN to leave the pod, and captured connections never do, since their
//! listener is in the pod. So a SYN leaves only if its socket is the mesh's own.
//!
//! Where headers cannot be read, and nothing but a TCP socket could have a reason to write them so, they are taken for the attempt to
//! hide a SYN. The kernel's own TCP neither fragments nor sends what is refused here.

use aya_ebpf::Global;
use aya_ebpf::bindings::{__sk_buff, bpf_sock};
use aya_ebpf::helpers::generated::{bpf_sk_fullsock, bpf_skb_cgroup_id, bpf_skb_load_bytes};
use aya_ebpf::programs::TcContext;
use underpass_ebpf_abi::Counter;

use crate::address::{AF_INET, AF_INET6, from_v6, word, words};
use crate::maps::{self, count};

/// Length of the device's link-layer header: 14 (Ethernet) or 0.
#[unsafe(no_mangle)]
static LINK_HEADER: Global<u32> = Global::new(14);

/// `enum tcx_action_base` (linux/bpf.h): leave it to the next program; drop.
const TCX_NEXT: i32 = -1;
const TCX_DROP: i32 = 2;

const SOCK_STREAM: u32 = 1;
const IPPROTO_TCP: u8 = 6;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_SERVICE_VLAN: u16 = 0x88a8;

/// IPv6 extension headers (RFC 8200 section 4), as far as something can come after them.
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;
/// More than any sender has a use for.
const MAX_EXTENSION_HEADERS: u32 = 6;

const FIN_SYN_RST: u8 = 0b0000_0111;
const SYN: u8 = 0b0000_0010;
const ACK: u8 = 0b0001_0000;
const SHORTEST_TCP_HEADER: u32 = 20;

/// Who made the packet.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sender {
    /// A TCP socket, or the kernel on behalf of one that is about to be or has been (then there is no full socket).
    Tcp,
    /// A raw socket; also the kernel's own, by which it answers what belongs to no socket.
    Raw,
    /// A packet socket.
    Packet,
}

/// What a packet is, as far as its headers tell.
enum Kind {
    Other,
    /// TCP whose header begins at this offset.
    Tcp(u32),
    /// A fragment of what is, or may be, TCP.
    Fragment {
        header: Option<u32>,
    },
    /// What cannot be told.
    Hidden,
}

#[inline(always)]
pub fn judge(ctx: &TcContext) -> i32 {
    match verdict(ctx) {
        None => TCX_NEXT,
        Some(why) => {
            count(why);
            TCX_DROP
        }
    }
}

/// Why the packet is to be dropped, if it is.
#[inline(always)]
fn verdict(ctx: &TcContext) -> Option<Counter> {
    let sender = sender(ctx);
    match kind(ctx, sender) {
        Kind::Other => None,
        Kind::Tcp(header) => tcp(ctx, sender, header),
        Kind::Fragment { .. } if sender != Sender::Tcp => Some(Counter::GuardedForged),
        Kind::Fragment { header: Some(header) } => tcp(ctx, sender, header),
        Kind::Fragment { header: None } => None,
        Kind::Hidden => Some(Counter::GuardedHidden),
    }
}

#[inline(always)]
fn sender(ctx: &TcContext) -> Sender {
    let skb = ctx.skb.skb;
    // SAFETY: a member of the context; null if the packet has no socket.
    let sk: *mut bpf_sock = unsafe { (*skb).__bindgen_anon_2.sk };
    if sk.is_null() {
        return Sender::Tcp;
    }
    // SAFETY: not null.
    let sk = unsafe { bpf_sk_fullsock(sk) };
    if sk.is_null() {
        return Sender::Tcp;
    }
    let family = word!(sk => bpf_sock, family);
    if family != AF_INET && family != AF_INET6 {
        return Sender::Packet;
    }
    if word!(sk => bpf_sock, type_) == SOCK_STREAM {
        Sender::Tcp
    } else {
        Sender::Raw
    }
}

/// Reads bytes of the packet; `None` beyond its end.
#[inline(always)]
fn load<const N: usize>(ctx: &TcContext, offset: u32) -> Option<[u8; N]> {
    let mut bytes = [0u8; N];
    // SAFETY: the helper writes N bytes or fails.
    let failed = unsafe { bpf_skb_load_bytes(ctx.skb.skb.cast(), offset, bytes.as_mut_ptr().cast(), N as u32) };
    (failed == 0).then_some(bytes)
}

#[inline(always)]
fn kind(ctx: &TcContext, sender: Sender) -> Kind {
    let start = LINK_HEADER.load();
    if start != 0 {
        // As the other end will read it: `skb->protocol` is what the sender of a packet socket says it is.
        let Some(ethertype) = load::<2>(ctx, 12) else {
            return Kind::Hidden;
        };
        match u16::from_be_bytes(ethertype) {
            ETHERTYPE_IPV4 | ETHERTYPE_IPV6 => {}
            // A VLAN device has a guard of its own; a packet socket may write a tag itself.
            ETHERTYPE_VLAN | ETHERTYPE_SERVICE_VLAN if sender == Sender::Packet => return Kind::Hidden,
            _ => return Kind::Other,
        }
    }
    let Some([first]) = load::<1>(ctx, start) else {
        return Kind::Hidden;
    };
    match first >> 4 {
        4 => ipv4(ctx, start, first),
        6 => ipv6(ctx, start),
        _ => Kind::Other,
    }
}

#[inline(always)]
fn ipv4(ctx: &TcContext, start: u32, first: u8) -> Kind {
    let Some(header) = load::<20>(ctx, start) else {
        return Kind::Hidden;
    };
    if header[9] != IPPROTO_TCP {
        return Kind::Other;
    }
    let fragmentation = u16::from_be_bytes([header[6], header[7]]);
    let (more, offset) = (fragmentation & 0x2000 != 0, fragmentation & 0x1fff);
    let tcp = start + u32::from(first & 0x0f) * 4;
    match (more, offset) {
        (false, 0) => Kind::Tcp(tcp),
        (true, 0) => Kind::Fragment { header: Some(tcp) },
        _ => Kind::Fragment { header: None },
    }
}

#[inline(always)]
fn ipv6(ctx: &TcContext, start: u32) -> Kind {
    let Some([mut next]) = load::<1>(ctx, start + 6) else {
        return Kind::Hidden;
    };
    let mut offset = start + 40;
    let mut is_fragment = false;
    for _ in 0..MAX_EXTENSION_HEADERS {
        match next {
            IPPROTO_TCP if is_fragment => return Kind::Fragment { header: Some(offset) },
            IPPROTO_TCP => return Kind::Tcp(offset),
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS | AUTHENTICATION | FRAGMENT => {}
            _ => return Kind::Other,
        }
        let Some(header) = load::<4>(ctx, offset) else {
            return Kind::Hidden;
        };
        let length = match next {
            FRAGMENT => {
                // What the first fragment holds, later ones need not say: whether they are TCP is not known.
                if u16::from_be_bytes([header[2], header[3]]) & 0xfff8 != 0 {
                    return later_fragment(header[0]);
                }
                is_fragment = true;
                8
            }
            AUTHENTICATION => (u32::from(header[1]) + 2) * 4,
            _ => (u32::from(header[1]) + 1) * 8,
        };
        next = header[0];
        offset += length;
    }
    Kind::Hidden
}

#[inline(always)]
fn later_fragment(next: u8) -> Kind {
    match next {
        IPPROTO_TCP | HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS | AUTHENTICATION | FRAGMENT => {
            Kind::Fragment { header: None }
        }
        _ => Kind::Other,
    }
}

#[inline(always)]
fn tcp(ctx: &TcContext, sender: Sender, offset: u32) -> Option<Counter> {
    if sender == Sender::Packet {
        return Some(Counter::GuardedForged);
    }
    let Some([data_offset, flags]) = load::<2>(ctx, offset + 12) else {
        return Some(Counter::GuardedHidden);
    };
    if sender == Sender::Raw {
        let end = offset + u32::from(data_offset >> 4) * 4;
        let skb = ctx.skb.skb;
        // The kernel answers through a raw socket what belongs to no connection: resets and bare acknowledgements.
        let is_bare = word!(skb => __sk_buff, len) <= end.max(offset + SHORTEST_TCP_HEADER);
        let is_answer = flags & FIN_SYN_RST == 0b100 || (flags & FIN_SYN_RST == 0 && flags & ACK != 0);
        return (!(is_bare && is_answer)).then_some(Counter::GuardedForged);
    }
    if flags & (SYN | ACK) != SYN {
        return None;
    }
    // SAFETY: a helper of this kind of program, on its own context; 0, which no cgroup has, if the packet has no socket.
    let cgroup = unsafe { bpf_skb_cgroup_id(ctx.skb.skb) };
    if !maps::is_exempt(cgroup) {
        return Some(Counter::GuardedSyn);
    }
    (!is_as_sent(ctx, offset)).then_some(Counter::GuardedTranslated)
}

/// Whether the packet goes where its socket was connected to. The pod's own address translation (nftables in its namespace) would
/// have led it elsewhere than policy was asked about.
#[inline(always)]
fn is_as_sent(ctx: &TcContext, offset: u32) -> bool {
    let skb = ctx.skb.skb;
    // SAFETY: a member of the context; null if the packet has no socket.
    let sk: *mut bpf_sock = unsafe { (*skb).__bindgen_anon_2.sk };
    if sk.is_null() {
        return false;
    }
    // SAFETY: not null.
    let sk = unsafe { bpf_sk_fullsock(sk) };
    if sk.is_null() {
        return false;
    }
    let start = LINK_HEADER.load();
    let (Some([first]), Some([source_high, source_low, port_high, port_low])) =
        (load::<1>(ctx, start), load::<4>(ctx, offset))
    else {
        return false;
    };
    let source_port = u32::from(u16::from_be_bytes([source_high, source_low]));
    let port = u16::from_be_bytes([port_high, port_low]);
    if word!(sk => bpf_sock, src_port) != source_port || u16::from_be(word!(sk => bpf_sock, dst_port) as u16) != port {
        return false;
    }
    if first >> 4 == 4 {
        let Some(addresses) = load::<8>(ctx, start + 12) else {
            return false;
        };
        let word =
            |at: usize| u32::from_ne_bytes([addresses[at], addresses[at + 1], addresses[at + 2], addresses[at + 3]]);
        return word!(sk => bpf_sock, src_ip4) == word(0) && word!(sk => bpf_sock, dst_ip4) == word(4);
    }
    let (Some(source), Some(destination)) = (load::<16>(ctx, start + 8), load::<16>(ctx, start + 24)) else {
        return false;
    };
    from_v6(words!(sk => bpf_sock, src_ip6)) == source && from_v6(words!(sk => bpf_sock, dst_ip6)) == destination
}
