//! An echo by splice(2): from the socket into a pipe and back, without a look at the bytes.

use std::io;
use std::net::TcpStream;
use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::pipe::{SpliceFlags, pipe, splice};

/// What a pipe holds (pipe(7)).
const PIPE: usize = 64 * 1024;

pub(crate) fn echo(stream: TcpStream) -> io::Result<()> {
    echo_waiting(&stream, |_| Ok(()))
}

/// As proxies do it that splice: the socket is non-blocking, and waited for.
pub(crate) fn echo_when_readable(stream: TcpStream) -> io::Result<()> {
    stream.set_nonblocking(true)?;
    echo_waiting(&stream, |events| {
        poll(&mut [PollFd::new(stream.as_fd(), events)], PollTimeout::NONE)?;
        Ok(())
    })
}

fn echo_waiting(stream: &TcpStream, wait: impl Fn(PollFlags) -> io::Result<()>) -> io::Result<()> {
    let (out, into) = pipe()?;
    loop {
        wait(PollFlags::POLLIN)?;
        let mut left = match splice(stream, None, &into, None, PIPE, SpliceFlags::MOVE) {
            Ok(0) => return Ok(()),
            Ok(n) => n,
            Err(rustix::io::Errno::AGAIN) => continue,
            Err(error) => return Err(error.into()),
        };
        while left > 0 {
            wait(PollFlags::POLLOUT)?;
            match splice(&out, None, stream, None, left, SpliceFlags::MOVE) {
                Ok(n) => left -= n,
                Err(rustix::io::Errno::AGAIN) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}
