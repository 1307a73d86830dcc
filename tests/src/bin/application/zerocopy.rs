//! A client that sends without a copy (MSG_ZEROCOPY).

#![allow(unsafe_code)]

use std::io::{self, ErrorKind, Read};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd};

use libc::{c_int, socklen_t};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::net::{RecvFlags, SendFlags, recv, send};

use crate::sizes::{LARGEST, pattern, piece, verify};

fn set(stream: &TcpStream, name: c_int, value: c_int) -> io::Result<()> {
    // SAFETY: the pointer is to a live value of this length, and the descriptor is borrowed.
    let result = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            name,
            (&raw const value).cast(),
            size_of::<c_int>() as socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Sends without a copy, and waits for the kernel's word (on the error queue) that each piece may be used again.
pub(crate) fn load(address: SocketAddr, number: usize, bytes: usize) -> io::Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nonblocking(true)?;
    set(&stream, libc::SO_ZEROCOPY, 1)?;
    let mut buffer = vec![0; LARGEST];
    let (mut written, mut read, mut sends, mut completed) = (0, 0, 0_u64, 0);
    let mut echo = vec![0; LARGEST];
    while read < bytes || completed < sends {
        // One piece at a time: the buffer is the kernel's until it has said so.
        if written < bytes && completed == sends {
            let piece = &mut buffer[..piece().min(bytes - written)];
            pattern(number).fill(written as u64, piece);
            match send(&stream, piece, SendFlags::from_bits_retain(libc::MSG_ZEROCOPY as u32)) {
                Ok(n) => {
                    written += n;
                    sends += 1;
                }
                Err(rustix::io::Errno::AGAIN) => {}
                Err(error) => return Err(error.into()),
            }
            if written == bytes {
                stream.shutdown(Shutdown::Write)?;
            }
        }
        let mut events = PollFlags::POLLIN;
        events.set(PollFlags::POLLOUT, written < bytes && completed == sends);
        poll(&mut [PollFd::new(stream.as_fd(), events)], PollTimeout::from(100u8))?;
        // The message itself is in the ancillary data; that there is one for each send is enough here.
        while recv(&stream, &mut [0_u8; 1], RecvFlags::ERRQUEUE | RecvFlags::DONTWAIT).is_ok() {
            completed = sends;
        }
        match stream.read(&mut echo) {
            Ok(0) if read < bytes => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                verify(number, read, &echo[..n])?;
                read += n;
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
