//! An event loop: one thread, non-blocking sockets, epoll edge-triggered. What is not taken at an edge is never told of again.

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::net::{SocketFlags, accept_with};

use crate::sizes::{LARGEST, pattern, piece, verify};

const LISTENER: u64 = u64::MAX;

/// A connection, on which something is done at each edge.
trait Connection {
    /// Goes on until it would have to wait; answers whether it is over.
    fn go_on(&mut self) -> io::Result<bool>;
    fn stream(&self) -> &TcpStream;
}

/// Echoes whoever connects.
pub(crate) fn serve(address: SocketAddr) -> io::Result<()> {
    serve_with(address, Echo::new)
}

/// Reads what comes and forgets it.
pub(crate) fn sink(address: SocketAddr) -> io::Result<()> {
    serve_with(address, |stream| Sink {
        stream,
        buffer: vec![0; LARGEST],
    })
}

fn serve_with<C: Connection>(address: SocketAddr, connection: impl Fn(TcpStream) -> C) -> io::Result<()> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    let mut watched = Loop::new()?;
    watched.add(&listener, LISTENER)?;
    let mut connections = HashMap::new();
    loop {
        for number in watched.wait()? {
            if number != LISTENER {
                watched.go_on(&mut connections, number);
                continue;
            }
            while let Some(stream) = accept(&listener)? {
                let number = stream.as_raw_fd() as u64;
                watched.add(&stream, number)?;
                connections.insert(number, connection(stream));
            }
        }
    }
}

fn accept(listener: &TcpListener) -> io::Result<Option<TcpStream>> {
    match accept_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
        Ok(stream) => Ok(Some(stream.into())),
        Err(rustix::io::Errno::AGAIN) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// All connections at once.
pub(crate) fn load(address: SocketAddr, connections: usize, bytes: usize) -> io::Result<()> {
    let mut watched = Loop::new()?;
    let mut open = HashMap::new();
    for number in 0..connections {
        let stream = TcpStream::connect(address)?;
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        watched.add(&stream, number as u64)?;
        open.insert(number as u64, Asker::new(stream, number, bytes));
    }
    let mut over = 0;
    while over < connections {
        for number in watched.wait()? {
            let connection = open.get_mut(&number).expect("a connection of ours");
            if connection.go_on()? {
                open.remove(&number);
                over += 1;
            }
        }
    }
    Ok(())
}

struct Loop(OwnedFd);

impl Loop {
    fn new() -> io::Result<Self> {
        Ok(Self(epoll::create(epoll::CreateFlags::CLOEXEC)?))
    }

    fn add(&self, what: impl AsFd, number: u64) -> io::Result<()> {
        let edges = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        Ok(epoll::add(&self.0, what, EventData::new_u64(number), edges)?)
    }

    fn wait(&mut self) -> io::Result<Vec<u64>> {
        let mut events = Vec::with_capacity(64);
        match epoll::wait(&self.0, rustix::buffer::spare_capacity(&mut events), None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(events.iter().map(|event| event.data.u64()).collect())
    }

    /// A connection that fails is its client's business.
    fn go_on<C: Connection>(&self, connections: &mut HashMap<u64, C>, number: u64) {
        let Some(connection) = connections.get_mut(&number) else {
            return;
        };
        if connection.go_on().unwrap_or(true) {
            let _ = epoll::delete(&self.0, connection.stream());
            connections.remove(&number);
        }
    }
}

/// `None` where the call would have to wait.
fn unless_it_waits(result: io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Ok(n) => Ok(Some(n)),
        Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(None),
        Err(e) => Err(e),
    }
}

struct Sink {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection for Sink {
    fn go_on(&mut self) -> io::Result<bool> {
        loop {
            match unless_it_waits(self.stream.read(&mut self.buffer))? {
                Some(0) => return Ok(true),
                Some(_) => {}
                None => return Ok(false),
            }
        }
    }

    fn stream(&self) -> &TcpStream {
        &self.stream
    }
}

struct Echo {
    stream: TcpStream,
    buffer: Vec<u8>,
    /// What is in the buffer and not sent yet.
    left: std::ops::Range<usize>,
}

impl Echo {
    fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            buffer: vec![0; LARGEST],
            left: 0..0,
        }
    }
}

impl Connection for Echo {
    fn go_on(&mut self) -> io::Result<bool> {
        loop {
            while !self.left.is_empty() {
                match unless_it_waits(self.stream.write(&self.buffer[self.left.clone()]))? {
                    Some(n) => self.left.start += n,
                    None => return Ok(false),
                }
            }
            match unless_it_waits(self.stream.read(&mut self.buffer))? {
                Some(0) => return Ok(true),
                Some(n) => self.left = 0..n,
                None => return Ok(false),
            }
        }
    }

    fn stream(&self) -> &TcpStream {
        &self.stream
    }
}

/// Sends pieces, never more than a window ahead of their echo: a window that fits one piece makes it a request and its answer.
struct Asker {
    stream: TcpStream,
    number: usize,
    bytes: usize,
    window: usize,
    written: usize,
    read: usize,
    buffer: Vec<u8>,
}

impl Asker {
    fn new(stream: TcpStream, number: usize, bytes: usize) -> Self {
        Self {
            stream,
            number,
            bytes,
            window: if number.is_multiple_of(2) { 1 } else { 2 * LARGEST },
            written: 0,
            read: 0,
            buffer: vec![0; LARGEST],
        }
    }

    /// Whether anything was written or read.
    fn step(&mut self) -> io::Result<bool> {
        let before = (self.written, self.read);
        if self.written < self.bytes && self.written - self.read < self.window {
            let piece = &mut self.buffer[..piece().min(self.bytes - self.written)];
            pattern(self.number).fill(self.written as u64, piece);
            self.written += unless_it_waits(self.stream.write(piece))?.unwrap_or(0);
            if self.written == self.bytes {
                self.stream.shutdown(Shutdown::Write)?;
            }
        }
        if let Some(n) = unless_it_waits(self.stream.read(&mut self.buffer))? {
            if n == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            verify(self.number, self.read, &self.buffer[..n])?;
            self.read += n;
        }
        Ok(before != (self.written, self.read))
    }
}

impl Connection for Asker {
    fn go_on(&mut self) -> io::Result<bool> {
        while self.read < self.bytes {
            if !self.step()? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn stream(&self) -> &TcpStream {
        &self.stream
    }
}
