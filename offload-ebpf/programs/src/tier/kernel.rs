//! The kernel's own structs, read at offsets that the loader has found in the kernel's description of its types.

use core::mem::MaybeUninit;

use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::helpers::bpf_probe_read_kernel;
use aya_ebpf::helpers::generated::bpf_skc_to_tcp_sock;
use underpass_ebpf_abi::tier::Offsets;

/// As `aya_ebpf::Global`, but read member by member.
#[repr(transparent)]
pub struct Constants(MaybeUninit<Offsets>);

// SAFETY: never written while programs run.
unsafe impl Sync for Constants {}

/// Set by the loader.
#[unsafe(no_mangle)]
static OFFSETS: Constants = Constants(MaybeUninit::zeroed());

/// `offset!(field)`: where the field is.
macro_rules! offset {
    ($field:ident $([$index:literal])?) => {
        // SAFETY: the loader has written a value; volatile, so that the compiler does not take it for zero.
        u64::from(unsafe { (&raw const (*$crate::tier::kernel::offsets()).$field$([$index])?).read_volatile() })
    };
}
pub(super) use offset;

#[inline(always)]
pub fn offsets() -> *const Offsets {
    OFFSETS.0.as_ptr()
}

/// The address of a `struct tcp_sock`, which begins with all that it is derived from.
#[derive(Clone, Copy)]
pub struct Socket(pub u64);

impl Socket {
    /// `None` if it is no TCP socket.
    ///
    /// # Safety
    /// `sk` is a socket of the running program.
    #[inline(always)]
    pub unsafe fn of(sk: *mut bpf_sock) -> Option<Self> {
        // SAFETY: as promised.
        let tcp = unsafe { bpf_skc_to_tcp_sock(sk.cast()) };
        (!tcp.is_null()).then_some(Self(tcp as u64))
    }

    /// Reads what is at `offset`; zero if nothing can be read there, which does not happen with a socket's address:
    /// sockets' memory is not given back while programs run, only used for other sockets.
    #[inline(always)]
    pub fn read<T: Copy + Default>(self, offset: u64) -> T {
        read(self.0 + offset)
    }

    #[inline(always)]
    pub fn write_seq(self) -> u32 {
        self.read(offset!(write_seq))
    }

    #[inline(always)]
    pub fn copied_seq(self) -> u32 {
        self.read(offset!(copied_seq))
    }

    /// Bytes in the receive queue and in the queue of what was redirected.
    #[inline(always)]
    pub fn queued(self) -> u32 {
        self.read(offset!(rmem_alloc))
    }

    /// Segments in the queue of what came by TCP, in order and not read.
    #[inline(always)]
    pub fn received(self) -> u32 {
        self.read(offset!(receive_queue_len))
    }

    /// Whether a system call is at work on it.
    #[inline(always)]
    pub fn is_locked(self) -> bool {
        self.read::<i32>(offset!(lock_owned)) != 0
    }

    #[inline(always)]
    pub fn cookie(self) -> u64 {
        self.read(offset!(cookie))
    }

    /// Whether it belongs to a map of sockets, or to somebody else in the kernel.
    #[inline(always)]
    pub fn is_taken(self) -> bool {
        self.read::<u64>(offset!(user_data)) != 0
    }
}

/// Reads at an address of the kernel.
#[inline(always)]
pub fn read<T: Copy + Default>(address: u64) -> T {
    // SAFETY: the helper copes with any address.
    unsafe { bpf_probe_read_kernel(address as *const T) }.unwrap_or_default()
}
