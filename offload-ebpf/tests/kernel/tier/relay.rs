//! A proxy in miniature: one thread that relays a flow, joins it when it is told to, and uses the shared memory as the
//! real one does.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use underpass_ebpf::tier::{Direction, FlowMemory, JoinedFlow, NotJoined, Tally, Ticket, note};

use super::world::set_option;
use crate::wait::soon;

/// The proxy reads on when no more than this waits at the receiver.
pub const LOW: u32 = 64 * 1024;
/// The receive window of the proxy's sockets, so that a sender soon sleeps when the proxy leaves its bytes unread.
const WINDOW: i32 = 16 * 1024;

/// How the agent is asked.
pub type Join = Box<dyn FnMut(&TcpStream, &TcpStream) -> Result<Ticket, NotJoined> + Send>;

enum Command {
    Join(Sender<()>),
    SetArmed(bool),
    Look(Sender<[(u32, Tally); 2]>),
}

/// What a relay did, at its end.
#[derive(Clone, Copy, Debug, Default)]
pub struct Account {
    pub relayed: [u64; 2],
    pub tallies: [Tally; 2],
    /// Whether an end was a reset.
    pub was_reset: bool,
}

pub struct Relay {
    commands: Sender<Command>,
    thread: JoinHandle<Account>,
}

impl Relay {
    pub fn start(pa: TcpStream, h: TcpStream, memory: Arc<FlowMemory>, join: Join) -> Self {
        let (commands, queue) = channel();
        let half = |direction, from: &TcpStream, to: &TcpStream| Half {
            direction,
            from: from.try_clone().unwrap(),
            to: to.try_clone().unwrap(),
            pending: Vec::new(),
            relayed: 0,
            is_over: false,
        };
        let worker = Worker {
            halves: [half(Direction::Out, &pa, &h), half(Direction::In, &h, &pa)],
            sockets: [pa, h],
            memory,
            join,
            joined: None,
            was_reset: false,
        };
        Self {
            commands,
            thread: std::thread::spawn(move || worker.run(&queue)),
        }
    }

    /// Joins and arms, however long the applications take to read what they have.
    pub fn join(&self) {
        let (answer, joined) = channel();
        self.commands.send(Command::Join(answer)).unwrap();
        joined.recv_timeout(soon()).expect("joined");
    }

    pub fn set_armed(&self, armed: bool) {
        let _ = self.commands.send(Command::SetArmed(armed));
    }

    fn look(&self) -> [(u32, Tally); 2] {
        let (answer, seen) = channel();
        self.commands.send(Command::Look(answer)).unwrap();
        seen.recv_timeout(soon()).expect("the relay looks")
    }

    /// The longest queue of both receivers now.
    pub fn queued(&self) -> u32 {
        self.look().map(|(queued, _)| queued).into_iter().max().unwrap()
    }

    /// What the kernel has counted until now.
    pub fn tally(&self, direction: Direction) -> Tally {
        let [(_, out), (_, back)] = self.look();
        match direction {
            Direction::Out => out,
            Direction::In => back,
        }
    }

    /// Waits for the end of both directions.
    pub fn end(self) -> Account {
        self.thread.join().expect("the relay")
    }
}

struct Half {
    direction: Direction,
    from: TcpStream,
    to: TcpStream,
    pending: Vec<u8>,
    relayed: u64,
    is_over: bool,
}

struct Worker {
    halves: [Half; 2],
    sockets: [TcpStream; 2],
    memory: Arc<FlowMemory>,
    join: Join,
    joined: Option<JoinedFlow>,
    was_reset: bool,
}

impl Worker {
    fn run(mut self, commands: &Receiver<Command>) -> Account {
        let mut joining: Option<Sender<()>> = None;
        let end = Instant::now() + 6 * soon();
        while self.halves.iter().any(|half| !half.is_over) {
            assert!(Instant::now() < end, "the relay hangs");
            match commands.try_recv() {
                Ok(Command::Join(answer)) => joining = Some(answer),
                Ok(Command::SetArmed(armed)) => self.set_armed(armed),
                Ok(Command::Look(answer)) => {
                    let _ = answer.send(self.look());
                }
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => {}
            }
            // While joining, what has been read is handed on and nothing more is read.
            let moved = self.halves[0].send(self.joined.as_ref()) | self.halves[1].send(self.joined.as_ref());
            if joining.is_some() && self.halves.iter().all(|half| half.pending.is_empty()) && self.try_join() {
                let _ = joining.take().unwrap().send(());
            }
            let moved = moved | (joining.is_none() && self.receive());
            if !moved {
                std::thread::sleep(Duration::from_micros(20));
            }
        }
        self.account()
    }

    fn set_armed(&self, armed: bool) {
        let Some(joined) = &self.joined else { return };
        for direction in Direction::ALL {
            if armed {
                joined.arm(direction);
            } else {
                joined.disarm(direction);
            }
        }
    }

    fn look(&self) -> [(u32, Tally); 2] {
        let joined = self.joined.as_ref().expect("joined");
        self.memory.measure(&[joined.ticket()]).unwrap();
        Direction::ALL.map(|direction| (joined.queued(direction), joined.tally(direction)))
    }

    fn try_join(&mut self) -> bool {
        match (self.join)(&self.sockets[0], &self.sockets[1]) {
            Ok(ticket) => {
                for socket in &self.sockets {
                    set_option(socket, libc::IPPROTO_TCP, libc::TCP_WINDOW_CLAMP, WINDOW);
                }
                self.joined = Some(self.memory.flow(ticket));
                self.set_armed(true);
                true
            }
            Err(refusal) if refusal.is_passing() => false,
            Err(refusal) => panic!("{refusal}"),
        }
    }

    fn receive(&mut self) -> bool {
        if let Some(joined) = &self.joined {
            self.memory.measure(&[joined.ticket()]).unwrap();
        }
        let mut moved = false;
        for half in &mut self.halves {
            match half.receive(self.joined.as_ref()) {
                Ok(received) => moved |= received,
                Err(_) => {
                    self.was_reset = true;
                }
            }
        }
        if self.was_reset {
            for (half, socket) in self.halves.iter_mut().zip(&self.sockets) {
                socket2::SockRef::from(socket).set_linger(Some(Duration::ZERO)).unwrap();
                half.is_over = true;
            }
        }
        moved
    }

    fn account(self) -> Account {
        let tally = |direction| {
            self.joined
                .as_ref()
                .map(|joined| joined.tally(direction))
                .unwrap_or_default()
        };
        Account {
            relayed: [self.halves[0].relayed, self.halves[1].relayed],
            tallies: Direction::ALL.map(tally),
            was_reset: self.was_reset,
        }
    }
}

impl Half {
    /// Hands on what has been read, and says so when it is done.
    fn send(&mut self, joined: Option<&JoinedFlow>) -> bool {
        if self.pending.is_empty() {
            return false;
        }
        match self.to.write(&self.pending) {
            Ok(len) => {
                self.pending.drain(..len);
                self.relayed += len as u64;
                if let Some(joined) = joined {
                    joined.handed_on(self.direction, len as u64);
                }
                true
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => false,
            Err(_) => {
                self.pending.clear();
                self.is_over = true;
                true
            }
        }
    }

    /// Reads and hands on all that there is, in one go: faster than its sender can wake up and send more. False if
    /// there is nothing, or the receiver has no room.
    fn receive(&mut self, joined: Option<&JoinedFlow>) -> Result<bool, std::io::Error> {
        let mut moved = false;
        while self.receive_once(joined)? {
            moved = true;
            self.send(joined);
        }
        Ok(moved)
    }

    fn receive_once(&mut self, joined: Option<&JoinedFlow>) -> Result<bool, std::io::Error> {
        if self.is_over || !self.pending.is_empty() {
            return Ok(false);
        }
        if joined.is_some_and(|joined| joined.queued(self.direction) > LOW) {
            return Ok(false);
        }
        let mut buffer = [0; 65536];
        match self.from.read(&mut buffer) {
            Ok(0) => {
                if joined.is_some_and(|joined| self.must_reset(joined)) {
                    return Err(ErrorKind::ConnectionReset.into());
                }
                let _ = self.to.shutdown(Shutdown::Write);
                self.is_over = true;
                Ok(true)
            }
            Ok(len) => {
                self.pending.extend_from_slice(&buffer[..len]);
                Ok(true)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether the application whose end this is has closed with bytes unread, in the direction that it received.
    fn must_reset(&self, joined: &JoinedFlow) -> bool {
        let received = match self.direction {
            Direction::Out => Direction::In,
            Direction::In => Direction::Out,
        };
        joined.tally(received).notes & note::UNREAD_CLOSE != 0
    }
}
