//! One connection, both of whose ends are the test's.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::net::{SocketFlags, accept_with};
use serde_json::Value;
use underpass_tests::{AccessLine, ConnectionView, Host, wait};

use crate::place::Place;

/// A connection of event loops: both sockets are non-blocking from their beginning.
pub(crate) struct Pair {
    pub(crate) client: TcpStream,
    pub(crate) server: TcpStream,
}

impl Pair {
    pub(crate) fn source(&self) -> SocketAddr {
        self.client.local_addr().expect("it was connected")
    }

    /// A message there and back.
    pub(crate) fn exchange(&self, message: &[u8]) -> io::Result<()> {
        for (from, to) in [(&self.client, &self.server), (&self.server, &self.client)] {
            pass(from, to, message)?;
        }
        Ok(())
    }

    /// Messages of every size there and back, until told to stop.
    pub(crate) fn exchange_until(&self, stop: &wait::Stop) {
        let message: Vec<u8> = (0..16 * 1024).map(|_| fastrand::u8(..)).collect();
        while !stop.is_due() {
            let length = fastrand::usize(1..=message.len());
            self.exchange(&message[..length]).expect("it goes on");
        }
    }
}

/// Sends a message that fits what a connection holds, and receives it.
pub(crate) fn pass(mut from: &TcpStream, mut to: &TcpStream, message: &[u8]) -> io::Result<()> {
    let (mut sent, mut received) = (0, vec![0; message.len()]);
    let mut got = 0;
    while got < message.len() {
        if sent < message.len() {
            sent += unless_it_waits(from.write(&message[sent..]))?;
        }
        let timeout = PollTimeout::try_from(wait::soon()).expect("fits");
        let mut both = [
            PollFd::new(to.as_fd(), PollFlags::POLLIN),
            PollFd::new(from.as_fd(), PollFlags::POLLOUT),
        ];
        let watched = if sent < message.len() { 2 } else { 1 };
        if poll(&mut both[..watched], timeout)? == 0 {
            return Err(io::Error::new(
                ErrorKind::TimedOut,
                format!("{got} of {} bytes came, {sent} were taken", message.len()),
            ));
        }
        match to.read(&mut received[got..]) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            other => got += unless_it_waits(other)?,
        }
    }
    assert!(received == message, "the message arrives as it was sent");
    Ok(())
}

fn unless_it_waits(result: io::Result<usize>) -> io::Result<usize> {
    match result {
        Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(0),
        other => other,
    }
}

/// A non-blocking socket that is waited for, as an event loop does.
pub(crate) struct Waiting(pub(crate) TcpStream);

impl Waiting {
    fn retry<T>(&self, events: PollFlags, mut call: impl FnMut(&TcpStream) -> io::Result<T>) -> io::Result<T> {
        let timeout = PollTimeout::try_from(wait::soon()).expect("fits");
        loop {
            match call(&self.0) {
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                other => return other,
            }
            if poll(&mut [PollFd::new(self.0.as_fd(), events)], timeout)? == 0 {
                return Err(ErrorKind::TimedOut.into());
            }
        }
    }
}

impl Read for Waiting {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.retry(PollFlags::POLLIN, |mut stream| stream.read(buffer))
    }
}

impl Write for Waiting {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.retry(PollFlags::POLLOUT, |mut stream| stream.write(buffer))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Connects `client` to what `listener` listens for.
pub(crate) fn connect(client: &Host, to: SocketAddr, listener: &TcpListener) -> Pair {
    listener.set_nonblocking(true).expect("O_NONBLOCK");
    let client = client.connect_non_blocking(to).expect("begin to connect");
    let server = wait::some(wait::SOON, "the server is connected to", || {
        accept_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC).ok()
    });
    Pair {
        client,
        server: server.into(),
    }
}

impl Place {
    /// Connects the client to a listener of the server's.
    pub(crate) fn open(&self, listener: &TcpListener) -> Pair {
        let port = listener.local_addr().expect("it listens").port();
        connect(&self.client, self.through(port), listener)
    }

    /// Exchanges messages until the connection has been moved into the kernel, in both directions.
    #[track_caller]
    pub(crate) fn settle_in_the_kernel(&self, pair: &Pair) {
        wait::eventually(wait::SOON, "the connection is moved into the kernel", || {
            pair.exchange(b"a message").expect("it is open");
            self.view(pair).is_in_kernel()
        });
    }

    /// What the proxy says of a connection.
    #[track_caller]
    pub(crate) fn view(&self, pair: &Pair) -> ConnectionView {
        view_of(&self.proxy.connections(), pair)
    }

    /// Bytes that have gone past the proxy, of each connection.
    pub(crate) fn kernel_bytes(&self, pairs: &[Pair]) -> Vec<u64> {
        let connections = self.proxy.connections();
        pairs
            .iter()
            .map(|pair| {
                let bytes = view_of(&connections, pair).tiers();
                bytes.sent.kernel + bytes.received.kernel
            })
            .collect()
    }

    /// Ends a connection in order; answers what was logged.
    #[track_caller]
    pub(crate) fn end(&self, pair: Pair) -> AccessLine {
        let source = pair.source();
        drop(pair.client);
        let _ = Waiting(pair.server).read(&mut [0]);
        self.proxy.access_line(source)
    }
}

#[track_caller]
fn view_of(connections: &[Value], pair: &Pair) -> ConnectionView {
    ConnectionView::of(connections, pair.source())
        .unwrap_or_else(|| panic!("/connections should list {}: {connections:?}", pair.source()))
}
