//! Where the trials are made: the programs with maps of their own, and flows over loopback.

use std::fmt::Display;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use underpass_ebpf_abi::tier::{self as abi, JoinCall, Way};
use underpass_ebpf_abi::to_bytes;

use super::super::agent::{SocketMaps, begin};
use super::super::flow::{FlowMemory, JoinedFlow};
use super::super::memory::Mapping;
use super::super::{Direction, Ticket, Variant};
use crate::bpf::test_run;
use crate::object::Programs;
use crate::table::Table;

/// Over loopback everything is there at once, or a scheduling delay later.
const SOON: Duration = Duration::from_secs(2);

/// What a flow of a trial may have waiting.
pub(super) const LIMIT: u32 = 100_000;

pub(super) type Found<T> = Result<T, String>;

pub(super) fn text(what: &str) -> impl Fn(&dyn Display) -> String + '_ {
    move |error| format!("{what}: {error}")
}

pub(super) struct Bench {
    maps: SocketMaps,
    /// Of somebody else.
    foreign: SocketMaps,
    ways: Table<i32, Way>,
    mapping: Mapping,
    memory: Arc<FlowMemory>,
    join: OwnedFd,
    next: AtomicU32,
}

impl Bench {
    pub(super) fn new() -> Found<Self> {
        let error = |error: &dyn Display| error.to_string();
        let mut programs = Programs::new(None);
        let mut object = programs.of_node().map_err(|e| error(&e))?;
        let mut foreign = programs.of_node().map_err(|e| error(&e))?;
        let maps = SocketMaps::new(&mut object).map_err(|e| error(&e))?;
        let flows = object.map("FLOWS").map_err(|e| error(&e))?;
        let measure = object.program("measure").map_err(|e| error(&e))?;
        let fd = flows.as_fd().try_clone_to_owned().map_err(|e| error(&e))?;
        Ok(Self {
            maps,
            foreign: SocketMaps::new(&mut foreign).map_err(|e| error(&e))?,
            ways: Table::new(object.map("WAYS").map_err(|e| error(&e))?),
            mapping: Mapping::new(flows.as_fd()).map_err(|e| error(&e))?,
            memory: Arc::new(FlowMemory::from_fds(fd, measure).map_err(|e| error(&e))?),
            join: object.program("join").map_err(|e| error(&e))?,
            next: AtomicU32::new(1),
        })
    }

    /// A flow that is joined and armed.
    pub(super) fn flow(&self, variant: Variant) -> Found<Flow> {
        let (a, pa) = connection().map_err(|e| text("connect over loopback")(&e))?;
        let (h, b) = connection().map_err(|e| text("connect over loopback")(&e))?;
        let number = self.next.fetch_add(1, Relaxed);
        let ticket = Ticket {
            index: number,
            generation: number,
        };
        for direction in Direction::ALL {
            begin(
                self.mapping.direction(ticket.index, direction.index()),
                ticket.generation,
            );
        }
        let joined = self.memory.flow(ticket);
        let flow = Flow { a, pa, h, b, joined };
        self.insert(&flow, variant)?;
        flow.joined.arm(Direction::Out);
        flow.joined.arm(Direction::In);
        Ok(flow)
    }

    fn insert(&self, flow: &Flow, variant: Variant) -> Found<()> {
        let Ticket { index, generation } = flow.joined.ticket();
        let sockets = [&flow.a, &flow.b, &flow.pa, &flow.h];
        let keys =
            [abi::CLIENT, abi::SERVER, abi::DOWNSTREAM, abi::UPSTREAM].map(|which| abi::key(index, generation, which));
        let [a, b] = [self.look(&flow.a)?, self.look(&flow.b)?];
        let way = |receiver: &JoinCall, receiver_key, role, direction, first| Way {
            receiver_key,
            receiver: receiver.socket,
            receiver_cookie: receiver.cookie,
            index,
            generation,
            role,
            direction,
            first,
            limit: LIMIT,
            variant: variant.number(),
            ..Way::default()
        };
        let ways = [
            way(&b, keys[1], abi::APPLICATION, abi::OUT, a.write_seq),
            way(&a, keys[0], abi::APPLICATION, abi::IN, b.write_seq),
            way(&a, keys[0], abi::HOP, abi::IN, 0),
            way(&b, keys[1], abi::HOP, abi::OUT, 0),
        ];
        for ((socket, key), way) in sockets.into_iter().zip(keys).zip(ways) {
            self.ways
                .set(&socket.as_raw_fd(), &way)
                .map_err(|e| text("write the storage of a socket")(&e))?;
            let is_in_verdict = variant == Variant::Verdict && way.role == abi::APPLICATION;
            self.maps
                .insert(is_in_verdict, key, socket.as_fd())
                .map_err(|e| text("insert a socket")(&e))?;
        }
        Ok(())
    }

    /// Asks the program that joins sockets what it sees, whatever it thinks of joining this one.
    fn look(&self, socket: &TcpStream) -> Found<JoinCall> {
        let cannot = text("look at a socket");
        // By asking for it the cookie is made.
        rustix::net::sockopt::socket_cookie(socket).map_err(|e| cannot(&e))?;
        let local = socket.local_addr().map_err(|e| cannot(&e))?;
        let remote: Result<SocketAddr, _> = socket.peer_addr();
        let remote = remote.map_err(|e| cannot(&e))?;
        let mut call = JoinCall {
            local: to_bytes(local.ip()),
            remote: to_bytes(remote.ip()),
            local_port: local.port(),
            remote_port: remote.port(),
            ..JoinCall::default()
        };
        test_run::call(self.join.as_fd(), &mut call).map_err(|e| cannot(&e))?;
        if call.socket == 0 || call.cookie == 0 {
            return Err(cannot(&"there is none"));
        }
        Ok(call)
    }

    /// Takes the applications' sockets out again.
    pub(super) fn take_out(&self, flow: &Flow) {
        let Ticket { index, generation } = flow.joined.ticket();
        for which in [abi::CLIENT, abi::SERVER] {
            self.maps.remove(abi::key(index, generation, which));
        }
    }

    /// What comes of inserting a socket of a flow into somebody else's map.
    pub(super) fn insert_elsewhere(&self, flow: &Flow) -> std::io::Result<()> {
        let key = abi::key(flow.joined.ticket().index, flow.joined.ticket().generation, abi::SERVER);
        self.foreign.insert(false, key, flow.b.as_fd())
    }

    /// Bytes that wait at B.
    pub(super) fn queued(&self, flow: &Flow) -> Found<u32> {
        self.memory
            .measure(&[flow.joined.ticket()])
            .map_err(|e| text("run the program that measures")(&e))?;
        Ok(flow.joined.queued(Direction::Out))
    }
}

/// A connection over loopback, both ends non-blocking.
fn connection() -> std::io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let connecting = TcpStream::connect_timeout(&listener.local_addr()?, SOON)?;
    listener.set_nonblocking(true)?;
    let accepted = listener.accept()?.0;
    for socket in [&connecting, &accepted] {
        socket.set_nonblocking(true)?;
        socket.set_nodelay(true)?;
    }
    Ok((connecting, accepted))
}

/// Four sockets as those of a flow.
pub(super) struct Flow {
    pub(super) a: TcpStream,
    pub(super) pa: TcpStream,
    pub(super) h: TcpStream,
    pub(super) b: TcpStream,
    pub(super) joined: JoinedFlow,
}

/// What a read found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Bytes(usize),
    End,
    Reset,
}

pub(super) fn write(mut socket: &TcpStream, bytes: &[u8]) -> Found<()> {
    socket.write_all(bytes).map_err(|e| text("a send failed")(&e))
}

/// Waits until something can be read, and reads it.
pub(super) fn read_some(mut socket: &TcpStream, buffer: &mut [u8]) -> Found<Answer> {
    let end = Instant::now() + SOON;
    loop {
        match socket.read(buffer) {
            Ok(0) => return Ok(Answer::End),
            Ok(len) => return Ok(Answer::Bytes(len)),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(Answer::Reset),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(text("a read failed")(&error)),
        }
        if Instant::now() > end {
            return Err("a read found nothing".to_owned());
        }
        let timeout = Timespec {
            tv_sec: 0,
            tv_nsec: 50_000_000,
        };
        let _ = poll(&mut [PollFd::new(&socket, PollFlags::IN)], Some(&timeout));
    }
}

/// Reads exactly these bytes.
pub(super) fn expect(socket: &TcpStream, bytes: &[u8]) -> Found<()> {
    let mut found = vec![0; bytes.len()];
    let mut filled = 0;
    while filled < bytes.len() {
        match read_some(socket, &mut found[filled..])? {
            Answer::Bytes(len) => filled += len,
            other => return Err(format!("{other:?} after {filled} bytes of {}", bytes.len())),
        }
    }
    if found == bytes {
        Ok(())
    } else {
        Err("other bytes, or in another order, than were sent".to_owned())
    }
}

/// Reads the end of a stream.
pub(super) fn expect_end(socket: &TcpStream, end: &Answer) -> Found<()> {
    let found = read_some(socket, &mut [0; 1000])?;
    if found == *end {
        Ok(())
    } else {
        Err(format!("{found:?} where {end:?} should be"))
    }
}

/// There is nothing to be read.
pub(super) fn expect_nothing(mut socket: &TcpStream) -> Found<()> {
    match socket.read(&mut [0; 1]) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
        other => Err(format!("{other:?} where nothing should be")),
    }
}
