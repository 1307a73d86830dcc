//! A connection as event loops have them: the socket never blocks, and who finds nothing to do waits in poll(2).
//!
//! Nginx, Redis, Envoy, Go, Node and all other programs with an event loop work like this, and a socket that blocks cannot be moved to
//! the kernel tier. Every system of a comparison is measured with the same.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;

use anyhow::Result;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::SOCKET_TIMEOUT;

/// A connected TCP socket whose reads and writes wait, no longer than [`SOCKET_TIMEOUT`].
pub(super) struct Connection(TcpStream);

impl Connection {
    /// Takes over a connected socket.
    pub(super) fn new(stream: TcpStream) -> Result<Connection> {
        stream.set_nonblocking(true)?;
        Ok(Connection(stream))
    }

    /// Ends what is written.
    pub(super) fn finish(&self) -> io::Result<()> {
        self.0.shutdown(Shutdown::Write)
    }

    fn wait(&self, readiness: PollFlags) -> io::Result<()> {
        let timeout = PollTimeout::try_from(SOCKET_TIMEOUT).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(self.0.as_fd(), readiness)], timeout) {
            Ok(0) => Err(io::ErrorKind::TimedOut.into()),
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl Read for Connection {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.0.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.wait(PollFlags::POLLIN)?,
                outcome => return outcome,
            }
        }
    }
}

impl Write for Connection {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.0.write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.wait(PollFlags::POLLOUT)?,
                outcome => return outcome,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
