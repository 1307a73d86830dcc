//! An echo server on io_uring: one thread, no system call of its own for a byte.

#![allow(unsafe_code)]

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};

use io_uring::{IoUring, opcode, squeue, types::Fd};

use crate::sizes::LARGEST;

const ENTRIES: u32 = 256;

/// Who waits until a socket is ready.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waits {
    /// The program, by IORING_OP_POLL_ADD on non-blocking sockets.
    ByPoll,
    /// The kernel, inside receive and send on blocking ones.
    Inside,
}

/// What a completion is of. The rest of its 64 bits is the descriptor.
#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    Accepted,
    Readable,
    Received,
    Writable,
    Sent,
}

const WHATS: [What; 5] = [
    What::Accepted,
    What::Readable,
    What::Received,
    What::Writable,
    What::Sent,
];

struct Connection {
    _stream: TcpStream,
    buffer: Vec<u8>,
    left: std::ops::Range<usize>,
}

struct Server {
    ring: IoUring,
    listener: TcpListener,
    waits: Waits,
    connections: HashMap<RawFd, Connection>,
}

/// Echoes whoever connects.
pub(crate) fn serve(address: SocketAddr, waits: Waits) -> io::Result<()> {
    let mut server = Server {
        ring: IoUring::new(ENTRIES)?,
        listener: TcpListener::bind(address)?,
        waits,
        connections: HashMap::new(),
    };
    server.accept();
    loop {
        server.ring.submit_and_wait(1)?;
        let completed: Vec<(u64, i32)> = server
            .ring
            .completion()
            .map(|entry| (entry.user_data(), entry.result()))
            .collect();
        for (data, result) in completed {
            server.complete(WHATS[(data >> 32) as usize], data as u32 as RawFd, result);
        }
    }
}

impl Server {
    fn push(&mut self, entry: squeue::Entry, what: What, descriptor: RawFd) {
        let number = WHATS.iter().position(|one| *one == what).expect("one of them") as u64;
        let entry = entry.user_data(number << 32 | u64::from(descriptor as u32));
        // SAFETY: the buffers of a connection live until its only operation has completed: it is removed nowhere else.
        while unsafe { self.ring.submission().push(&entry) }.is_err() {
            self.ring.submit().expect("submit what is queued");
        }
    }

    fn accept(&mut self) {
        let flags = match self.waits {
            Waits::ByPoll => libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC,
            Waits::Inside => libc::SOCK_CLOEXEC,
        };
        let listener = self.listener.as_raw_fd();
        let none = std::ptr::null_mut();
        let entry = opcode::Accept::new(Fd(listener), none, none.cast()).flags(flags);
        self.push(entry.build(), What::Accepted, listener);
    }

    fn complete(&mut self, what: What, descriptor: RawFd, result: i32) {
        match (what, result) {
            (What::Accepted, accepted) => {
                self.accept();
                if accepted >= 0 {
                    self.begin(accepted);
                }
            }
            // Another has been faster, or it was for nothing.
            (What::Received, again) if again == -libc::EAGAIN => self.wait_to_receive(descriptor),
            (What::Sent, again) if again == -libc::EAGAIN => self.wait_to_send(descriptor),
            (What::Received, ..=0) | (What::Sent, ..0) | (What::Readable | What::Writable, ..0) => {
                self.connections.remove(&descriptor);
            }
            (What::Readable, _) => self.receive(descriptor),
            (What::Writable, _) => self.send(descriptor),
            (What::Received, n) => {
                self.of(descriptor).left = 0..n as usize;
                self.send(descriptor);
            }
            (What::Sent, n) => {
                self.of(descriptor).left.start += n as usize;
                if self.of(descriptor).left.is_empty() {
                    self.receive(descriptor);
                } else {
                    self.send(descriptor);
                }
            }
        }
    }

    fn begin(&mut self, accepted: RawFd) {
        // SAFETY: a descriptor that the kernel has just made for this program, and nobody else knows of.
        let stream = unsafe { TcpStream::from_raw_fd(accepted) };
        let connection = Connection {
            _stream: stream,
            buffer: vec![0; LARGEST],
            left: 0..0,
        };
        self.connections.insert(accepted, connection);
        self.receive(accepted);
    }

    fn of(&mut self, descriptor: RawFd) -> &mut Connection {
        self.connections.get_mut(&descriptor).expect("it has an operation")
    }

    fn receive(&mut self, descriptor: RawFd) {
        let buffer = &mut self.of(descriptor).buffer;
        let entry = opcode::Recv::new(Fd(descriptor), buffer.as_mut_ptr(), buffer.len() as u32);
        self.push(entry.build(), What::Received, descriptor);
    }

    fn send(&mut self, descriptor: RawFd) {
        let connection = self.of(descriptor);
        let left = &connection.buffer[connection.left.clone()];
        let entry = opcode::Send::new(Fd(descriptor), left.as_ptr(), left.len() as u32);
        self.push(entry.build(), What::Sent, descriptor);
    }

    fn wait_to_receive(&mut self, descriptor: RawFd) {
        let entry = opcode::PollAdd::new(Fd(descriptor), libc::POLLIN as u32);
        self.push(entry.build(), What::Readable, descriptor);
    }

    fn wait_to_send(&mut self, descriptor: RawFd) {
        let entry = opcode::PollAdd::new(Fd(descriptor), libc::POLLOUT as u32);
        self.push(entry.build(), What::Writable, descriptor);
    }
}
