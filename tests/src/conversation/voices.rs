//! Several threads that write to one socket.

use std::io::{ErrorKind, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use nix::poll::{PollFd, PollFlags, poll};

use super::plan::{MAX_WRITE, Plan};
use crate::client::is_reset;

/// How soon a thread that waits notices that it is to stop.
const LOOKS_EVERY_MS: u8 = 20;

/// The threads of a side; they stop when dropped.
pub(super) struct Voices {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    stream: TcpStream,
    plan: Plan,
    written: AtomicU64,
    singing: AtomicUsize,
    stopped: AtomicBool,
    reset: AtomicBool,
    faults: Mutex<Vec<String>>,
}

impl Voices {
    /// Begins to write what `plan` has to say after its opening, which was the first thread's part.
    pub(super) fn start(stream: &TcpStream, plan: &Plan) -> Self {
        let voices = plan.sends.voices;
        let shared = Arc::new(Shared {
            stream: stream.try_clone().expect("dup"),
            plan: plan.clone(),
            written: AtomicU64::new(plan.opening),
            singing: AtomicUsize::new(voices.into()),
            stopped: AtomicBool::new(false),
            reset: AtomicBool::new(false),
            faults: Mutex::default(),
        });
        let sing = |voice| {
            let shared = shared.clone();
            thread::spawn(move || {
                shared.sing(voice);
                shared.singing.fetch_sub(1, Ordering::SeqCst);
            })
        };
        Self {
            threads: (0..voices).map(sing).collect(),
            shared,
        }
    }

    /// Bytes that the kernel took from all of them.
    pub(super) fn written(&self) -> u64 {
        self.shared.written.load(Ordering::SeqCst)
    }

    /// Whether all have said everything, or found that they can't.
    pub(super) fn are_done(&self) -> bool {
        self.shared.singing.load(Ordering::SeqCst) == 0
    }

    /// Stops them; answers what they wrote, whether one of them was told of a reset, and what must never happen.
    pub(super) fn stop(mut self) -> (u64, bool, Vec<String>) {
        self.join();
        let faults = std::mem::take(&mut *self.shared.faults.lock().expect("no holder panics"));
        (self.written(), self.shared.reset.load(Ordering::SeqCst), faults)
    }

    fn join(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            thread.join().expect("a writing thread");
        }
    }
}

impl Drop for Voices {
    fn drop(&mut self) {
        self.join();
    }
}

impl Shared {
    fn sing(&self, voice: u8) {
        let (speech, voices) = (self.plan.sends, u64::from(self.plan.sends.voices));
        let left = self.plan.allowed() - self.plan.opening;
        let mut position = if voice == 0 { self.plan.opening } else { 0 };
        let own = position + left / voices + u64::from(u64::from(voice) < left % voices);
        let mut choices = self.plan.choices(voice);
        let mut buffer = vec![0; MAX_WRITE];
        while position < own && !self.stopped.load(Ordering::SeqCst) {
            let _ = poll(
                &mut [PollFd::new(self.stream.as_fd(), PollFlags::POLLOUT)],
                LOOKS_EVERY_MS,
            );
            let length = (choices.chunk() as u64).min(own - position) as usize;
            speech.fill(voice, position, &mut buffer[..length]);
            match (&self.stream).write(&buffer[..length]) {
                Ok(n) => {
                    position += n as u64;
                    self.written.fetch_add(n as u64, Ordering::SeqCst);
                    thread::sleep(choices.write_stall());
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(e) if is_reset(&e) => return self.reset.store(true, Ordering::SeqCst),
                Err(e) => {
                    let mut faults = self.faults.lock().expect("no holder panics");
                    return faults.push(format!("write by thread {voice}: {e}"));
                }
            }
        }
    }
}
