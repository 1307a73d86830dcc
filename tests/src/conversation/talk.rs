//! Carrying out one side's plan on a socket.
//!
//! One thread per side, or what the others are told belongs to what it sees: whoever else uses the socket may swallow its one error
//! (`sk_err` is reported once), and a reset looks like an EOF then. What is in the receive queue when a reset arrives is still read: the
//! kernel keeps it.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::SockRef;

use super::pattern::Listener;
use super::plan::{Choices, Ending, Plan};
use super::voices::Voices;
use crate::client::is_reset;
use crate::wait;

/// A side that has neither written nor read for so long, and isn't done, hangs. Stalls are a thousandth of it.
const HANGS_AFTER: Duration = Duration::from_secs(10);

/// A number of bytes that is known exactly, or (of a killed peer) between bounds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// At least so many.
    pub least: u64,
    /// At most so many.
    pub most: u64,
}

impl Count {
    /// Exactly `n`.
    pub fn exactly(n: u64) -> Self {
        Self { least: n, most: n }
    }
}

/// What one side did and saw.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Bytes that the kernel took from it.
    pub written: Count,
    /// Bytes that it got, all of them right.
    pub read: Count,
    /// It read EOF before any error.
    pub eof: bool,
    /// A read or write failed by the peer's reset.
    pub reset: bool,
    /// It told its peer that its data ends here (FIN).
    pub finished: bool,
    /// What must never happen: wrong bytes, bytes after EOF, another error, a hang.
    pub faults: Vec<String>,
}

/// Carries out `plan` on `stream`.
pub fn talk(stream: TcpStream, plan: &Plan) -> Seen {
    talk_reporting(stream, plan, |_| {})
}

/// As [`talk`], and calls `report` after every step.
pub fn talk_reporting(stream: TcpStream, plan: &Plan, report: impl FnMut(&Seen)) -> Seen {
    stream.set_nonblocking(true).expect("O_NONBLOCK");
    let talker = Talker {
        plan,
        choices: plan.choices(0),
        peer: Listener::new(plan.expects),
        voices: None,
        stream,
        seen: Seen::default(),
        written: 0,
        read: 0,
        writing: true,
        reading: true,
        write_at: Instant::now(),
        read_at: Instant::now(),
        buffer: vec![0; super::plan::MAX_WRITE],
    };
    talker.run(report)
}

struct Talker<'a> {
    plan: &'a Plan,
    choices: Choices,
    peer: Listener,
    /// Who writes, if that is not done here.
    voices: Option<Voices>,
    stream: TcpStream,
    seen: Seen,
    written: u64,
    read: u64,
    /// Still has something to write, or to shut down.
    writing: bool,
    /// Has seen neither EOF nor an error.
    reading: bool,
    /// The end of the stall before the next write, and read.
    write_at: Instant,
    read_at: Instant,
    buffer: Vec<u8>,
}

impl Talker<'_> {
    fn run(mut self, mut report: impl FnMut(&Seen)) -> Seen {
        let (mut moved, mut since) = ((0, 0), Instant::now());
        while (self.writing || self.reading) && self.seen.faults.is_empty() {
            self.let_others_write();
            if self.ends_here() {
                // Others that have the socket open would keep it from closing.
                self.silence();
                self.note();
                return self.seen;
            }
            if moved != (self.written, self.read) {
                (moved, since) = ((self.written, self.read), Instant::now());
            } else if since.elapsed() > wait::patient(HANGS_AFTER) {
                self.seen
                    .faults
                    .push(format!("hangs: {} written, {} read", self.written, self.read));
            }
            self.finish_writing();
            self.wait();
            if self.wants_write() {
                self.write();
            }
            if self.wants_read() {
                self.read();
            }
            self.note();
            report(&self.seen);
        }
        self.silence();
        self.note();
        self.look_after_eof();
        self.seen
    }

    /// After the opening, if there are others.
    fn let_others_write(&mut self) {
        if let Some(voices) = &self.voices {
            self.written = voices.written();
        } else if self.plan.sends.voices > 1 && self.written == self.plan.opening && self.wants_write() {
            self.voices = Some(Voices::start(&self.stream, self.plan));
        }
    }

    fn note(&mut self) {
        self.seen.written = Count::exactly(self.written);
        self.seen.read = Count::exactly(self.read);
    }

    /// Nobody else writes any more; what they saw, this side saw.
    fn silence(&mut self) {
        if let Some(voices) = self.voices.take() {
            let (written, reset, faults) = voices.stop();
            self.written = written;
            self.seen.reset |= reset;
            self.seen.eof &= !reset;
            self.seen.faults.extend(faults);
        }
    }

    /// Carries out an ending other than a half-close, once its time has come. Dropping the stream then closes it.
    fn ends_here(&self) -> bool {
        let (written, read) = match self.plan.ending {
            Ending::HalfClose { .. } | Ending::Killed { .. } => return false,
            Ending::Reset { written, read } | Ending::Close { written, read } => (written, read),
        };
        if self.written < written || self.read < read {
            return false;
        }
        if matches!(self.plan.ending, Ending::Reset { .. }) {
            SockRef::from(&self.stream)
                .set_linger(Some(Duration::ZERO))
                .expect("SO_LINGER");
        }
        true
    }

    fn finish_writing(&mut self) {
        if self.voices.as_ref().is_some_and(Voices::are_done) {
            self.silence();
            // Only a reset keeps them from saying everything, and then there is nothing to shut down.
            self.writing &= !self.seen.reset;
        }
        let waits = matches!(self.plan.ending, Ending::HalfClose { after_peer: true }) && self.reading;
        let ends_otherwise = matches!(self.plan.ending, Ending::Reset { .. } | Ending::Close { .. });
        if self.writing && self.written == self.plan.total && !waits && !ends_otherwise {
            self.writing = false;
            match self.stream.shutdown(Shutdown::Write) {
                Ok(()) => self.seen.finished = true,
                // ENOTCONN: the peer's reset was first.
                Err(e) if e.kind() == ErrorKind::NotConnected => self.seen.reset = true,
                Err(e) => self.seen.faults.push(format!("shutdown: {e}")),
            }
        }
    }

    /// How much it may write now.
    fn room(&self) -> u64 {
        if self.reading {
            self.plan.room(self.written, self.read)
        } else {
            // Nobody answers any more.
            self.plan.allowed() - self.written
        }
    }

    fn wants_write(&self) -> bool {
        let here = self.writing && self.voices.is_none();
        here && self.room() > 0 && self.write_at <= Instant::now()
    }

    fn wants_read(&self) -> bool {
        self.reading && self.read_at <= Instant::now()
    }

    /// Until something can be done, or a stall ends.
    fn wait(&self) {
        let now = Instant::now();
        let mut events = PollFlags::empty();
        events.set(PollFlags::POLLOUT, self.wants_write());
        events.set(PollFlags::POLLIN, self.wants_read());
        let stalls = [(self.writing, self.write_at), (self.reading, self.read_at)];
        let next = stalls
            .iter()
            .filter(|(active, at)| *active && *at > now)
            .map(|(_, at)| *at - now)
            .min();
        if events.is_empty() {
            // Not poll(), which would return at once for the peer's reset.
            std::thread::sleep(next.unwrap_or(Duration::from_millis(1)));
            return;
        }
        let longest = next.unwrap_or(Duration::from_millis(100)).max(Duration::from_millis(1));
        let timeout = PollTimeout::try_from(longest).unwrap_or(PollTimeout::MAX);
        let _ = poll(&mut [PollFd::new(self.stream.as_fd(), events)], timeout);
    }

    fn write(&mut self) {
        let length = (self.choices.chunk() as u64).min(self.room()) as usize;
        self.plan.sends.fill(0, self.written, &mut self.buffer[..length]);
        match self.stream.write(&self.buffer[..length]) {
            Ok(n) => {
                self.written += n as u64;
                if self.written > self.plan.opening {
                    self.write_at = Instant::now() + self.choices.write_stall();
                }
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            Err(e) => {
                self.fail("write", &e);
                self.writing = false;
            }
        }
    }

    fn read(&mut self) {
        let length = self.choices.chunk();
        match self.stream.read(&mut self.buffer[..length]) {
            Ok(0) => {
                self.seen.eof = !self.seen.reset;
                self.reading = false;
            }
            Ok(n) => {
                if let Some(at) = self.peer.hear(&self.buffer[..n]) {
                    self.seen
                        .faults
                        .push(format!("at or after byte {at} something is wrong"));
                }
                self.read += n as u64;
                self.read_at = Instant::now() + self.choices.read_stall();
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            Err(e) => {
                self.fail("read", &e);
                self.reading = false;
                self.writing = false;
            }
        }
    }

    fn fail(&mut self, what: &str, error: &std::io::Error) {
        if is_reset(error) {
            self.seen.reset = true;
        } else {
            self.seen.faults.push(format!("{what}: {error}"));
        }
    }

    fn look_after_eof(&mut self) {
        if self.seen.eof
            && let Ok(n @ 1..) = self.stream.read(&mut self.buffer)
        {
            self.seen.faults.push(format!("{n} bytes after EOF"));
        }
    }
}
