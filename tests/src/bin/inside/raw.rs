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

/// What a packet socket sends goes to the driver without any queueing discipline, and so without what is attached there.
pub(crate) fn set_queue_bypass(socket: impl AsFd) -> io::Result<()> {
    set(socket, libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, 1)
}

fn set(socket: impl AsFd, level: c_int, name: c_int, value: c_int) -> io::Result<()> {
    set_value(socket, level, name, &value)
}

fn set_value<V>(socket: impl AsFd, level: c_int, name: c_int, value: &V) -> io::Result<()> {
    let (value, length) = (value as *const V, size_of::<V>() as socklen_t);
    // SAFETY: the pointer is to a live value of this length, and the descriptor is borrowed.
    let result = unsafe { libc::setsockopt(socket.as_fd().as_raw_fd(), level, name, value.cast::<c_void>(), length) };
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

/// Memory shared with the kernel, until dropped.
struct Shared {
    start: *mut u8,
    length: usize,
}

impl Shared {
    fn map(socket: Option<&OwnedFd>, length: usize, offset: i64) -> io::Result<Self> {
        let (flags, descriptor) = match socket {
            Some(socket) => (libc::MAP_SHARED | libc::MAP_POPULATE, socket.as_raw_fd()),
            None => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1),
        };
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                flags,
                descriptor,
                offset,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            start: start.cast(),
            length,
        })
    }

    fn write<T>(&self, offset: u64, value: T) {
        let offset = usize::try_from(offset).expect("small");
        assert!(offset + size_of::<T>() <= self.length, "inside the mapping");
        // SAFETY: inside the mapping, as just asserted; the kernel looks at it only when it is told to, by sendto().
        unsafe { self.start.add(offset).cast::<T>().write_unaligned(value) }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: a whole mapping of our own, which nobody uses any more.
        unsafe { libc::munmap(self.start.cast(), self.length) };
    }
}

/// Size of a frame of an AF_XDP socket's memory, and of a mapping that holds a short ring.
const XDP_FRAME: u32 = 4096;
const XDP_RING: u32 = 2;

/// Sends one frame by an AF_XDP socket on queue 0 of the device `index`, without any program (net/xdp/xsk.c).
pub(crate) fn send_by_xdp(index: u32, frame: &[u8]) -> io::Result<()> {
    let socket = OwnedFd::from(socket2::Socket::new(libc::AF_XDP.into(), socket2::Type::RAW, None)?);
    let memory = Shared::map(None, (XDP_FRAME * XDP_RING) as usize, 0)?;
    for (at, byte) in (0u64..).zip(frame) {
        memory.write(at, *byte);
    }
    let umem = libc::xdp_umem_reg {
        addr: memory.start as u64,
        len: u64::from(XDP_FRAME * XDP_RING),
        chunk_size: XDP_FRAME,
        headroom: 0,
        flags: 0,
        tx_metadata_len: 0,
    };
    set_value(&socket, libc::SOL_XDP, libc::XDP_UMEM_REG, &umem)?;
    for ring in [
        libc::XDP_UMEM_FILL_RING,
        libc::XDP_UMEM_COMPLETION_RING,
        libc::XDP_TX_RING,
    ] {
        set_value(&socket, libc::SOL_XDP, ring, &XDP_RING)?;
    }
    let offsets = ring_offsets(&socket)?.tx;
    let ring = Shared::map(Some(&socket), XDP_FRAME as usize, libc::XDP_PGOFF_TX_RING)?;
    bind_to_queue(&socket, index)?;
    let descriptor = libc::xdp_desc {
        addr: 0,
        len: u32::try_from(frame.len()).expect("short"),
        options: 0,
    };
    ring.write(offsets.desc, descriptor);
    ring.write(offsets.producer, 1u32);
    // SAFETY: a call without memory.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            std::ptr::null(),
            0,
            libc::MSG_DONTWAIT,
            std::ptr::null(),
            0,
        )
    };
    check(c_int::try_from(sent).unwrap_or(-1)).map(|_| ())
}

fn bind_to_queue(socket: &OwnedFd, index: u32) -> io::Result<()> {
    let address = libc::sockaddr_xdp {
        sxdp_family: u16::try_from(libc::AF_XDP).expect("small"),
        sxdp_flags: libc::XDP_COPY,
        sxdp_ifindex: index,
        sxdp_queue_id: 0,
        sxdp_shared_umem_fd: 0,
    };
    let length = size_of::<libc::sockaddr_xdp>() as socklen_t;
    // SAFETY: the pointer is to a live address of this length.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) }).map(|_| ())
}

fn ring_offsets(socket: impl AsFd) -> io::Result<libc::xdp_mmap_offsets> {
    let mut length = size_of::<libc::xdp_mmap_offsets>() as socklen_t;
    // SAFETY: plain numbers, for which zeros are a value.
    let mut offsets: libc::xdp_mmap_offsets = unsafe { std::mem::zeroed() };
    // SAFETY: the pointers are to live memory of the length given.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_XDP,
            libc::XDP_MMAP_OFFSETS,
            (&raw mut offsets).cast(),
            &raw mut length,
        )
    };
    check(result)?;
    Ok(offsets)
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
