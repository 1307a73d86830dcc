//! Addresses as the contexts have them (`u32` words in network order) and as the maps have them (16 bytes).

use core::arch::asm;

/// `AF_INET`.
pub const AF_INET: u32 = 2;
/// `AF_INET6`.
pub const AF_INET6: u32 = 10;

/// Reads a word of a context or socket by its constant offset, in one instruction. The verifier wants to see the offset in the
/// instruction itself, but the compiler likes to join the ends of two branches into one load from an address that it computes.
///
/// # Safety
/// There is a word that the program may read at the offset.
#[inline(always)]
pub unsafe fn load_word<T, const OFFSET: usize>(base: *const T) -> u32 {
    let word: u64;
    // SAFETY: as promised.
    unsafe {
        asm!(
            "{word} = *(u32 *)({base} + {offset})",
            word = out(reg) word,
            base = in(reg) base,
            offset = const OFFSET,
            options(pure, readonly, nostack, preserves_flags),
        );
    }
    word as u32
}

/// `word!(pointer => Type, field)`: the field, or the first word of it.
macro_rules! word {
    ($base:expr => $type:ty, $($field:ident).+ $(, $index:literal)?) => {
        // SAFETY: contexts and sockets are valid while the program runs; the verifier checks that this field may be read.
        unsafe {
            $crate::address::load_word::<$type, { core::mem::offset_of!($type, $($field).+) $(+ 4 * $index)? }>($base)
        }
    };
}

/// The same for the four words of an IPv6 address.
macro_rules! words {
    ($base:expr => $type:ty, $field:ident) => {
        [
            $crate::address::word!($base => $type, $field, 0),
            $crate::address::word!($base => $type, $field, 1),
            $crate::address::word!($base => $type, $field, 2),
            $crate::address::word!($base => $type, $field, 3),
        ]
    };
}

pub(crate) use {word, words};

/// The mapped form of an IPv4 address in network order.
#[inline(always)]
pub fn from_v4(address: u32) -> [u8; 16] {
    from_v6([0, 0, MAPPED, address])
}

#[inline(always)]
pub fn from_v6(words: [u32; 4]) -> [u8; 16] {
    // SAFETY: both are 16 plain bytes.
    unsafe { core::mem::transmute(words) }
}

#[inline(always)]
pub fn words_of(address: &[u8; 16]) -> [u32; 4] {
    // SAFETY: both are 16 plain bytes; they may be unaligned on one side only, and are copied.
    unsafe { core::mem::transmute(*address) }
}

/// The third word of a mapped address, `0000:ffff`.
const MAPPED: u32 = 0xffffu32.to_be();

#[inline(always)]
pub fn is_v4(address: &[u8; 16]) -> bool {
    let words = words_of(address);
    words[0] == 0 && words[1] == 0 && words[2] == MAPPED
}

/// Whether a connection to the address stays in the namespace by its nature: loopback, or unspecified (which connect(2) takes for
/// loopback).
#[inline(always)]
pub fn is_loopback(address: &[u8; 16]) -> bool {
    let words = words_of(address);
    if is_v4(address) {
        return address[12] == 127 || words[3] == 0;
    }
    words[0] == 0 && words[1] == 0 && words[2] == 0 && (words[3] == 0 || words[3] == 1u32.to_be())
}
