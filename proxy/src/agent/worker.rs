//! Threads that wait for sockets and can be told to stop.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

/// A thread that ends with its owner.
#[derive(Debug)]
pub struct Worker {
    /// The thread sees the other end of this pipe close.
    stop: Option<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

/// What a [`Worker`]'s thread waits with.
#[derive(Debug)]
pub struct Stop(OwnedFd);

impl Worker {
    /// Starts a thread.
    ///
    /// # Errors
    /// When there are no threads or descriptors to be had.
    pub fn start(name: &str, work: impl FnOnce(&Stop) + Send + 'static) -> io::Result<Self> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
        let stop = Stop(reader);
        let thread = Builder::new().name(name.into()).spawn(move || work(&stop))?;
        Ok(Self {
            stop: Some(writer),
            thread: Some(thread),
        })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop.take();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("a thread of the agent panicked");
        }
    }
}

impl Stop {
    /// Waits until something can be done with a descriptor, or has gone wrong with it. False: it is time to stop.
    pub fn wait(&self, descriptor: impl AsFd, flags: PollFlags) -> bool {
        loop {
            let mut both = [PollFd::new(&descriptor, flags), PollFd::new(&self.0, PollFlags::IN)];
            match poll(&mut both, None) {
                Ok(_) if !both[1].revents().is_empty() => return false,
                Ok(_) | Err(Errno::INTR) if both[0].revents().is_empty() => {}
                Ok(_) => return true,
                Err(error) => {
                    tracing::error!(%error, "poll failed");
                    return false;
                }
            }
        }
    }

    /// Waits a while. False: it is time to stop.
    pub fn pause(&self, time: Duration) -> bool {
        wait_for(&self.0, PollFlags::IN, time).is_ok_and(|stopped| !stopped)
    }
}

/// Waits for one descriptor; false when the time is over.
///
/// # Errors
/// Those of poll(2).
pub fn wait_for(descriptor: impl AsFd, flags: PollFlags, time: Duration) -> io::Result<bool> {
    let time = Timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: time.subsec_nanos().into(),
    };
    match poll(&mut [PollFd::new(&descriptor, flags)], Some(&time)) {
        Err(Errno::INTR) => Ok(false),
        outcome => Ok(outcome? > 0),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn a_worker_wakes_for_its_descriptor_and_ends_with_its_owner() {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let (sender, seen) = channel();
        let worker = Worker::start("test", move |stop| {
            while stop.wait(&reader, PollFlags::IN) {
                rustix::io::read(&reader, &mut [0u8; 1][..]).unwrap();
                sender.send(()).unwrap();
            }
        })
        .unwrap();
        rustix::io::write(&writer, b"x").unwrap();
        seen.recv().unwrap();
        drop(worker);
        assert!(seen.recv().is_err());
    }
}
