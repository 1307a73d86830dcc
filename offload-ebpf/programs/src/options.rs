//! setsockopt(2): the ways to send packets that `guard` would not see are closed to enrolled pods.
//!
//! A packet socket with `PACKET_QDISC_BYPASS` and an `AF_XDP` socket hand their packets to the device itself (`dev_direct_xmit`), past
//! the place where `guard` looks. Both have to be asked for by a socket option.

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::generated::{bpf_get_current_cgroup_id, bpf_get_netns_cookie};
use aya_ebpf::programs::SockoptContext;
use underpass_ebpf_abi::Counter;

use crate::maps::{self, count};

const SOL_PACKET: i32 = 263;
const PACKET_QDISC_BYPASS: i32 = 20;
const SOL_XDP: i32 = 283;

/// Return values of the program.
const ALLOW: i32 = 1;
/// The call fails with EPERM.
const REFUSE: i32 = 0;

#[inline(always)]
pub fn judge(ctx: &SockoptContext) -> i32 {
    // SAFETY: members of the context.
    let (level, name) = unsafe { ((*ctx.sockopt).level, (*ctx.sockopt).optname) };
    let bypasses = level == SOL_XDP || (level == SOL_PACKET && name == PACKET_QDISC_BYPASS);
    if !bypasses {
        return ALLOW;
    }
    // SAFETY: helpers of this kind of program, on its own context.
    let (netns, cgroup) = unsafe { (bpf_get_netns_cookie(ctx.as_ptr()), bpf_get_current_cgroup_id()) };
    if maps::pod(netns).is_none() || maps::is_exempt(cgroup) {
        return ALLOW;
    }
    count(Counter::RefusedBypass);
    REFUSE
}
