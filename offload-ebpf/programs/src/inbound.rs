//! Which socket gets a connection that arrives in a pod's namespace.
//!
//! One loaded instance for each pod: a lookup has no other way to tell the namespace that it happens in.

use aya_ebpf::Global;
use aya_ebpf::bindings::bpf_sk_lookup;
use aya_ebpf::programs::SkLookupContext;
use underpass_ebpf_abi::{Counter, DIRECT, HandshakeKey, PEER, REFUSING};

use crate::address::{AF_INET, from_v4, from_v6, is_loopback, word, words};
use crate::maps::{self, HANDSHAKES, LISTENERS, count};

/// The pod's slot.
#[unsafe(no_mangle)]
static POD_SLOT: Global<u32> = Global::new(0);

const IPPROTO_TCP: u32 = 6;

/// Return values of the program.
const PASS: u32 = 1;
const DROP: u32 = 0;

struct Arrival {
    is_v4: bool,
    remote: [u8; 16],
    local: [u8; 16],
    remote_port: u16,
    local_port: u16,
}

#[inline(always)]
fn arrival(ctx: &SkLookupContext) -> Arrival {
    let lookup = ctx.lookup;
    let is_v4 = word!(lookup => bpf_sk_lookup, family) == AF_INET;
    let (remote, local) = if is_v4 {
        (
            from_v4(word!(lookup => bpf_sk_lookup, remote_ip4)),
            from_v4(word!(lookup => bpf_sk_lookup, local_ip4)),
        )
    } else {
        (
            from_v6(words!(lookup => bpf_sk_lookup, remote_ip6)),
            from_v6(words!(lookup => bpf_sk_lookup, local_ip6)),
        )
    };
    Arrival {
        is_v4,
        remote,
        local,
        // 16 bits, which may be read as a word.
        remote_port: u16::from_be(word!(lookup => bpf_sk_lookup, remote_port) as u16),
        local_port: word!(lookup => bpf_sk_lookup, local_port) as u16,
    }
}

#[inline(always)]
pub fn choose(ctx: &SkLookupContext) -> u32 {
    let lookup = ctx.lookup;
    if word!(lookup => bpf_sk_lookup, protocol) != IPPROTO_TCP {
        return PASS;
    }
    let slot = POD_SLOT.load();
    let (netns, arrival) = (maps::netns_of(slot), arrival(ctx));
    if is_from_within(netns, &arrival) {
        return PASS;
    }
    if is_announced(netns, &arrival) {
        count(Counter::Announced);
        return PASS;
    }
    let is_served = maps::pod(netns).is_some_and(|pod| pod.flags & REFUSING == 0);
    let index = slot * 2 + u32::from(!arrival.is_v4);
    if is_served && LISTENERS.redirect_sk_lookup(ctx, index, 0).is_ok() {
        count(Counter::Steered);
        return PASS;
    }
    count(Counter::Unsteerable);
    DROP
}

/// Whether the pod talks to itself. The ingress device says nothing: over loopback to the pod's own address it is the pod's device. From
/// outside nobody can come with the pod's own address: the answer would never leave the pod.
#[inline(always)]
fn is_from_within(netns: u64, arrival: &Arrival) -> bool {
    arrival.remote == arrival.local || is_loopback(&arrival.remote) || maps::owner(&arrival.remote) == Some(netns)
}

#[inline(always)]
fn is_announced(netns: u64, arrival: &Arrival) -> bool {
    let key = HandshakeKey {
        netns,
        remote_address: arrival.remote,
        remote_port: arrival.remote_port,
        local_port: arrival.local_port,
        pad: 0,
    };
    // SAFETY: a number, read once.
    unsafe { HANDSHAKES.get(&key) }.is_some_and(|note| note.kind == PEER || note.kind == DIRECT)
}
