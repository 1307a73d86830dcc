//! Waits, by looking again and again: the gate's in the sender's send, and the one of a hop that is closed.
//!
//! The gate's two are for what another core does in less time than it takes to put a thread to sleep and to wake it up. Who is
//! waited for may as well be the next on this very core, or be kept from running: so a wait is short, and a sender that
//! has waited for the proxy in vain waits again only after some messages, each time after more.
//!
//! The hop's is for a sender between the gate and the receiver's queue who waits for a core. It is rare, and costs only who closes
//! the hop; so it is as long as a busy machine takes to give everybody a turn. But a receiver that is stuck in its read can make
//! any such wait one in vain: after one nobody waits so long for a while.

use core::cell::UnsafeCell;
use core::ffi::c_void;

use aya_ebpf::helpers::generated::{bpf_ktime_get_ns, bpf_loop};
use underpass_ebpf_abi::tier::Way;

use super::flows::Direction;
use super::kernel::Socket;

/// Nanoseconds to wait for the proxy: in as many it has read and sent 64 KiB on, and a receiver on its core has read them.
const FOR_PROXY: u64 = 100_000;
/// Nanoseconds to wait for the receiver's lock: in as many it reads 512 KiB.
const FOR_LOCK: u64 = 100_000;
/// Nanoseconds to wait for a sender on its way to the receiver's queue: a dozen others have had their turns of 4 ms.
const FOR_SENDER: u64 = 50_000_000;
/// So many nanoseconds after such a wait in vain the next is no longer than one for a lock.
const PAUSE: u64 = 1_000_000_000;
/// Looks, at most: each takes some 50 ns.
const LOOKS: u32 = 4_000;
/// `BPF_MAX_LOOPS` (linux/bpf_verifier.h): the clock is what ends a long wait.
const MOST_LOOKS: u32 = 1 << 23;
/// A sender that has waited in vain so often waits after 2 to this power messages again.
const MOST_FAILURES: u32 = 2;

/// When waiting ends; the clock is asked only by who has to wait.
#[derive(Clone, Copy)]
struct Deadline {
    length: u64,
    at: u64,
}

impl Deadline {
    const fn after(length: u64) -> Self {
        Self { length, at: 0 }
    }

    #[inline(always)]
    fn has_come(&mut self) -> bool {
        // SAFETY: reads a clock.
        let now = unsafe { bpf_ktime_get_ns() };
        if self.at == 0 {
            self.at = now + self.length;
        }
        now >= self.at
    }
}

struct Behind {
    direction: Direction,
    sender: Socket,
    first: u32,
    may_wait: bool,
    is_next: bool,
    deadline: Deadline,
}

/// Whether all that `sender` gave to TCP has been handed on by the proxy. Waits for it where that is `worthwhile`.
#[inline(always)]
pub fn until_next(sender: Socket, way: &mut Way, direction: Direction, worthwhile: bool) -> bool {
    let mut behind = Behind {
        direction,
        sender,
        first: way.first,
        may_wait: worthwhile && way.impatience == 0 && !direction.is_relayed_here(),
        is_next: false,
        deadline: Deadline::after(FOR_PROXY),
    };
    // SAFETY: the function takes what it is given here.
    unsafe { bpf_loop(LOOKS, look_behind as *mut c_void, (&raw mut behind).cast(), 0) };
    let has_waited = behind.deadline.at != 0;
    if behind.is_next {
        way.failures = if has_waited { 0 } else { way.failures };
        way.impatience = 0;
    } else if has_waited {
        way.failures = (way.failures + 1).min(MOST_FAILURES);
        way.impatience = 1 << (way.failures & 7);
    } else if way.impatience > 0 {
        way.impatience -= 1;
    }
    behind.is_next
}

unsafe extern "C" fn look_behind(_look: u32, behind: *mut c_void) -> i64 {
    // SAFETY: `until_next` gives it.
    let behind = unsafe { &mut *behind.cast::<Behind>() };
    // First of all that the decision rests on: what the proxy did before it counted has then been done.
    let (forwarded, given_to_tcp) = if cfg!(mutant = "order") {
        let given_to_tcp = behind.sender.write_seq().wrapping_sub(behind.first);
        (behind.direction.forwarded(), given_to_tcp)
    } else {
        let forwarded = behind.direction.forwarded();
        (forwarded, behind.sender.write_seq().wrapping_sub(behind.first))
    };
    // Modulo 2^32, as sequence numbers are: far more than can be on the way.
    behind.is_next = given_to_tcp == forwarded as u32;
    i64::from(behind.is_next || !behind.may_wait || behind.deadline.has_come())
}

struct Locked {
    receiver: Socket,
    is_free: bool,
    deadline: Deadline,
}

/// Whether no system call is at work on `receiver`, or soon none is.
#[inline(always)]
pub fn until_free(receiver: Socket) -> bool {
    let mut locked = Locked {
        receiver,
        is_free: false,
        deadline: Deadline::after(FOR_LOCK),
    };
    // SAFETY: the function takes what it is given here.
    unsafe { bpf_loop(LOOKS, look_at_lock as *mut c_void, (&raw mut locked).cast(), 0) };
    locked.is_free
}

unsafe extern "C" fn look_at_lock(_look: u32, locked: *mut c_void) -> i64 {
    // SAFETY: `until_free` gives it.
    let locked = unsafe { &mut *locked.cast::<Locked>() };
    locked.is_free = !locked.receiver.is_locked();
    i64::from(locked.is_free || locked.deadline.has_come())
}

/// A moment that all programs know.
#[repr(transparent)]
struct Moment(UnsafeCell<u64>);

// SAFETY: one word, read and written whole.
unsafe impl Sync for Moment {}

/// When a whole wait for a sender was in vain; 0 before the first. (BTF has its name: unmangled, it does not say where the crate lies.)
#[unsafe(no_mangle)]
static IN_VAIN: Moment = Moment(UnsafeCell::new(0));

struct Leaving {
    receiver: Socket,
    cookie: u64,
    has_left: bool,
    deadline: Deadline,
}

/// Waits until nobody is on the way to the queue of `receiver`, which is no longer in the map. The kernel counts who is
/// (`sk_psock.refcnt`), and takes away what makes the socket one of a map with the last of them.
#[inline(always)]
pub fn until_left(receiver: Socket, cookie: u64) {
    // SAFETY: see `Moment`; reads a clock.
    let (in_vain, now) = unsafe { (IN_VAIN.0.get().read_volatile(), bpf_ktime_get_ns()) };
    let is_wary = in_vain != 0 && now.wrapping_sub(in_vain) < PAUSE && !cfg!(mutant = "wary");
    let mut leaving = Leaving {
        receiver,
        cookie,
        has_left: false,
        deadline: Deadline::after(if is_wary { FOR_LOCK } else { FOR_SENDER }),
    };
    // SAFETY: the function takes what it is given here.
    unsafe { bpf_loop(MOST_LOOKS, look_at_map as *mut c_void, (&raw mut leaving).cast(), 0) };
    if !leaving.has_left && !is_wary {
        // SAFETY: see `Moment`.
        unsafe { IN_VAIN.0.get().write_volatile(leaving.deadline.at) };
    }
}

unsafe extern "C" fn look_at_map(_look: u32, leaving: *mut c_void) -> i64 {
    // SAFETY: `until_left` gives it.
    let leaving = unsafe { &mut *leaving.cast::<Leaving>() };
    leaving.has_left = !leaving.receiver.is_taken() || leaving.receiver.cookie() != leaving.cookie;
    i64::from(leaving.has_left || leaving.deadline.has_come())
}
