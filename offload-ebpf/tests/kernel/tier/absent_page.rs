//! A page of memory that is not there: whoever touches it waits, in the kernel too, until it is given.

use std::io::Read;
use std::net::TcpStream;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// `UFFDIO_API`, `UFFDIO_REGISTER`, `UFFDIO_ZEROPAGE` (linux/userfaultfd.h).
const API: libc::c_ulong = 0xc018_aa3f;
const REGISTER: libc::c_ulong = 0xc020_aa00;
const ZEROPAGE: libc::c_ulong = 0xc020_aa04;
/// `UFFDIO_REGISTER_MODE_MISSING`.
const MISSING: u64 = 1;
/// Its bytes.
pub(crate) const PAGE: usize = 4096;

/// A page that is not there until it is given.
pub(crate) struct AbsentPage {
    faults: OwnedFd,
    at: usize,
}

impl AbsentPage {
    pub(crate) fn new() -> Self {
        // SAFETY: a system call without pointers; a mapping of our own.
        let (faults, at) = unsafe {
            let faults = libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK);
            assert!(faults >= 0, "userfaultfd: {}", std::io::Error::last_os_error());
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let at = libc::mmap(
                std::ptr::null_mut(),
                PAGE,
                libc::PROT_READ | libc::PROT_WRITE,
                flags,
                -1,
                0,
            );
            assert_ne!(at, libc::MAP_FAILED);
            (OwnedFd::from_raw_fd(faults as i32), at as usize)
        };
        let page = Self { faults, at };
        page.ask(API, &mut [0xaa, 0, 0]);
        page.ask(REGISTER, &mut [page.at as u64, PAGE as u64, MISSING, 0]);
        page
    }

    fn ask<const WORDS: usize>(&self, what: libc::c_ulong, words: &mut [u64; WORDS]) {
        // SAFETY: the request's struct consists of so many words.
        let answer = unsafe { libc::ioctl(self.faults.as_raw_fd(), what, words.as_mut_ptr()) };
        assert_eq!(answer, 0, "userfaultfd {what:#x}: {}", std::io::Error::last_os_error());
    }

    /// Whether somebody has come upon it.
    pub(crate) fn is_waited_for(&self) -> bool {
        let mut poll = libc::pollfd {
            fd: self.faults.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one pollfd.
        unsafe { libc::poll(&mut poll, 1, 0) == 1 }
    }

    /// Makes it one of zeros: who waits goes on.
    pub(crate) fn give(&self) {
        self.ask(ZEROPAGE, &mut [self.at as u64, PAGE as u64, 0, 0]);
    }
}

impl AbsentPage {
    /// Reads from `socket` into it.
    pub(crate) fn read(&self, mut socket: &TcpStream) -> Vec<u8> {
        // SAFETY: mapped for as long as it lives, and nobody else uses it meanwhile.
        let buffer = unsafe { std::slice::from_raw_parts_mut(self.at as *mut u8, PAGE) };
        let length = socket.read(buffer).expect("something to read");
        buffer[..length].to_vec()
    }
}

impl Drop for AbsentPage {
    fn drop(&mut self) {
        // SAFETY: mapped above; nobody has it any more.
        unsafe { libc::munmap(self.at as *mut libc::c_void, PAGE) };
    }
}
