//! Questions to a socket that no safe wrapper offers.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// See the public function of the same name.
#[allow(unsafe_code)]
pub(crate) fn netns_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut cookie = 0u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes, the size of a u64, to `cookie`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            std::ptr::from_mut(&mut cookie).cast(),
            &mut len,
        )
    };
    if result == 0 {
        Ok(cookie)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The network namespace of a socket.
#[allow(unsafe_code)]
pub(crate) fn netns(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    /// linux/sockios.h.
    const SIOCGSKNS: libc::c_ulong = 0x894c;
    // SAFETY: the call has no argument and answers with a new descriptor.
    let fd = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCGSKNS as _) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Has sends wait while more than `bytes` of what was given to the socket are unsent.
#[allow(unsafe_code)]
pub(crate) fn set_notsent_lowat(socket: &impl AsRawFd, bytes: i32) -> io::Result<()> {
    let (value, len) = (std::ptr::from_ref(&bytes).cast(), size_of::<i32>() as libc::socklen_t);
    // SAFETY: the kernel reads `len` bytes at `value`.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_NOTSENT_LOWAT,
            value,
            len,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The kind of the network device `name` in the namespace of `socket` (`ARPHRD_…`).
///
/// # Errors
/// `ENODEV` when there is no such device.
#[allow(unsafe_code)]
pub(crate) fn hardware_type(socket: BorrowedFd<'_>, name: &str) -> io::Result<u16> {
    // SAFETY: all zeroes is a value of this struct of numbers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    // SAFETY: SIOCGIFHWADDR reads the name, which ends with a zero, and writes the address into the same struct.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFHWADDR as _, &mut request) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: this is the member of the union that the call has written.
    Ok(unsafe { request.ifr_ifru.ifru_hwaddr }.sa_family)
}
