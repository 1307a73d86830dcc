//! A receiver on whose socket a system call is at work, and stays at work: it faults on the page that it reads into.
//!
//! The kernel brings redirected bytes under the receiver's lock, in the sender's send. A page that does not come
//! (userfaultfd(2) stands for a slow disk) would stop the sender for as long.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::mpsc;

use underpass_ebpf::tier::Direction::Out;

use super::world::{Flow, World, read, write};
use crate::needs_root;
use crate::wait::{eventually, soon};

/// `UFFDIO_API`, `UFFDIO_REGISTER`, `UFFDIO_ZEROPAGE` (linux/userfaultfd.h).
const API: libc::c_ulong = 0xc018_aa3f;
const REGISTER: libc::c_ulong = 0xc020_aa00;
const ZEROPAGE: libc::c_ulong = 0xc020_aa04;
/// `UFFDIO_REGISTER_MODE_MISSING`.
const MISSING: u64 = 1;
const PAGE: usize = 4096;

/// A page that is not there until it is given.
struct AbsentPage {
    faults: OwnedFd,
    at: usize,
}

impl AbsentPage {
    fn new() -> Self {
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

    fn is_waited_for(&self) -> bool {
        let mut poll = libc::pollfd {
            fd: self.faults.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one pollfd.
        unsafe { libc::poll(&mut poll, 1, 0) == 1 }
    }

    fn give(&self) {
        self.ask(ZEROPAGE, &mut [self.at as u64, PAGE as u64, 0, 0]);
    }
}

impl Drop for AbsentPage {
    fn drop(&mut self) {
        // SAFETY: mapped above; nobody has it any more.
        unsafe { libc::munmap(self.at as *mut libc::c_void, PAGE) };
    }
}

#[test]
fn a_receiver_that_is_stuck_in_its_read_does_not_stop_its_sender() {
    needs_root!();
    let Some(world) = World::new() else { return };
    let flow = world.flow();
    let joined = world.joined(&flow);
    write(&flow.a, b"first");
    let page = AbsentPage::new();
    let Flow { a, b, .. } = &flow;
    std::thread::scope(|scope| {
        let at = page.at;
        let reading = scope.spawn(move || {
            // SAFETY: the page is mapped for as long as the scope lasts.
            let buffer = unsafe { std::slice::from_raw_parts_mut(at as *mut u8, PAGE) };
            let length = std::io::Read::read(&mut &*b, buffer).unwrap();
            buffer[..length].to_vec()
        });
        eventually("the reader waits for its page", || page.is_waited_for());
        let (done, is_done) = mpsc::channel();
        scope.spawn(move || {
            write(a, b"second");
            let _ = done.send(());
        });
        let was_stopped = is_done.recv_timeout(soon()).is_err();
        // The proxy would sleep too: there is no room, as long as the lock is held.
        let measured = if was_stopped {
            0
        } else {
            world.memory.measure(&[joined.ticket()]).unwrap();
            joined.queued(Out)
        };
        page.give();
        assert_eq!(reading.join().unwrap(), b"first");
        assert!(!was_stopped, "the sender waited for the receiver's lock");
        assert_eq!(measured, u32::MAX);
    });
    assert_eq!(joined.tally(Out).busy, 1);
    assert_eq!(read(&flow.pa, 6), b"second");
    write(&flow.h, b"second");
    joined.handed_on(Out, 6);
    write(&flow.a, b"third");
    assert_eq!(read(&flow.b, 11), b"secondthird");
    assert_eq!(joined.tally(Out).bypassed_messages, 2);
}
