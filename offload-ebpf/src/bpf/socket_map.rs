//! Maps of sockets: the programs of their members, and which keys they have.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use super::{Map, bpf};

const MAP_GET_NEXT_KEY: i32 = 4;
const PROG_ATTACH: i32 = 8;

/// `enum bpf_attach_type`, as far as used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum MemberProgram {
    StreamVerdict = 5,
    MessageVerdict = 7,
}

/// Gives a program to the members that a map will have; those that it has keep theirs.
#[allow(unsafe_code)]
pub(crate) fn attach(map: &Map, program: BorrowedFd<'_>, kind: MemberProgram) -> io::Result<()> {
    let mut attribute: [u32; 5] = [
        map.as_fd().as_raw_fd() as u32,
        program.as_raw_fd() as u32,
        kind as u32,
        0,
        0,
    ];
    // SAFETY: no pointers; the members are target_fd, attach_bpf_fd, attach_type, attach_flags, replace_bpf_fd.
    unsafe { bpf(PROG_ATTACH, &mut attribute) }.map(drop)
}

/// The keys of a map whose keys are numbers of 64 bits. Those that come or go meanwhile may be among them or not, or
/// twice.
#[allow(unsafe_code)]
pub(crate) fn keys(map: &Map) -> io::Result<Vec<u64>> {
    #[repr(C)]
    struct NextKey {
        map: u32,
        pad: u32,
        key: u64,
        next: u64,
    }
    if map.info().key_size as usize != size_of::<u64>() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut keys: Vec<u64> = Vec::new();
    // When the key that it stands at goes, the kernel begins anew; it cannot do so for ever.
    while keys.len() <= 2 * map.info().max_entries as usize {
        let (last, mut next) = (keys.last(), 0u64);
        let mut attribute = NextKey {
            map: map.as_fd().as_raw_fd() as u32,
            pad: 0,
            key: last.map_or(0, |key| std::ptr::from_ref(key) as u64),
            next: std::ptr::from_mut(&mut next) as u64,
        };
        // SAFETY: the keys are of the map's key size.
        match unsafe { bpf(MAP_GET_NEXT_KEY, &mut attribute) } {
            Ok(_) => keys.push(next),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(keys)
}
