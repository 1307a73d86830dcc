//! The socket options and calls that no safe wrapper offers.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use libc::{c_int, c_void, socklen_t};

/// The kernel does the handshake when something is sent, with data in the SYN.
pub(crate) fn set_fastopen_connect(socket: impl AsFd) -> io::Result<()> {
    set(socket, libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT, 1)
}

pub(crate) fn set_transparent_v6(socket: impl AsFd) -> io::Result<()> {
    set(socket, libc::IPPROTO_IPV6, libc::IPV6_TRANSPARENT, 1)
}

/// The socket's state is set from outside: connect() sends nothing.
pub(crate) fn set_repair(socket: impl AsFd, on: bool) -> io::Result<()> {
    set(socket, libc::IPPROTO_TCP, libc::TCP_REPAIR, on.into())
}

fn set(socket: impl AsFd, level: c_int, name: c_int, value: c_int) -> io::Result<()> {
    let length = size_of::<c_int>() as socklen_t;
    // SAFETY: the pointer is to a live c_int of this length, and the descriptor is borrowed.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            name,
            (&raw const value).cast::<c_void>(),
            length,
        )
    };
    check(result).map(|_| ())
}

/// Sends a frame (on a SOCK_RAW packet socket) or a packet (SOCK_DGRAM) through the device `index`.
pub(crate) fn send_link(socket: impl AsFd, index: u32, ethertype: u16, mac: [u8; 6], bytes: &[u8]) -> io::Result<()> {
    let mut address = [0; 8];
    address[..6].copy_from_slice(&mac);
    let to = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: ethertype.to_be(),
        sll_ifindex: c_int::try_from(index).expect("a small number"),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: address,
    };
    // SAFETY: both pointers are to live memory of the lengths given, and the descriptor is borrowed.
    let sent = unsafe {
        libc::sendto(
            socket.as_fd().as_raw_fd(),
            bytes.as_ptr().cast(),
            bytes.len(),
            0,
            (&raw const to).cast(),
            size_of::<libc::sockaddr_ll>() as socklen_t,
        )
    };
    check(c_int::try_from(sent).unwrap_or(-1)).map(|_| ())
}

/// The part of `union bpf_attr` that loads a program (include/uapi/linux/bpf.h).
#[repr(C)]
#[derive(Default)]
struct LoadProgram {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

/// The part of `union bpf_attr` that makes a link.
#[repr(C)]
#[derive(Default)]
struct CreateLink {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
}

const BPF_PROG_LOAD: c_int = 5;
const BPF_LINK_CREATE: c_int = 28;
const BPF_PROG_TYPE_CGROUP_SOCK_ADDR: u32 = 18;
const BPF_CGROUP_INET4_CONNECT: u32 = 10;

/// Loads a connect4 program of raw instructions and attaches it to a cgroup, until the answer is closed.
pub(crate) fn attach_connect4(cgroup: impl AsFd, name: &str, instructions: &[u64]) -> io::Result<OwnedFd> {
    let license = c"GPL";
    let mut prog_name = [0; 16];
    prog_name[..name.len()].copy_from_slice(name.as_bytes());
    let load = LoadProgram {
        prog_type: BPF_PROG_TYPE_CGROUP_SOCK_ADDR,
        insn_cnt: u32::try_from(instructions.len()).expect("few"),
        insns: instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
        prog_name,
        expected_attach_type: BPF_CGROUP_INET4_CONNECT,
        ..LoadProgram::default()
    };
    let program = bpf(BPF_PROG_LOAD, &load)?;
    let link = CreateLink {
        prog_fd: u32::try_from(program.as_raw_fd()).expect("a descriptor"),
        target_fd: u32::try_from(cgroup.as_fd().as_raw_fd()).expect("a descriptor"),
        attach_type: BPF_CGROUP_INET4_CONNECT,
        ..CreateLink::default()
    };
    bpf(BPF_LINK_CREATE, &link)
}

/// A command of bpf(2) that answers a descriptor.
fn bpf<A>(command: c_int, attributes: &A) -> io::Result<OwnedFd> {
    // SAFETY: the attributes are a prefix of `union bpf_attr` of the length given, and what they point to outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes as *const A, size_of::<A>()) };
    let descriptor = check(c_int::try_from(result).unwrap_or(-1))?;
    // SAFETY: these commands answer a new descriptor, which nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}
