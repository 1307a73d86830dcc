//! One current-thread runtime for each core, and the rule which of them serves a connection.
//!
//! A connection lives on one core from accept to end, so its sockets, its task and its buffers are never touched by two. The core
//! is chosen when it is accepted: the one with the fewest connections, and among equals the one that accepted it, which
//! saves waking another. (Measured before the project began: kernel-spread accepts are uneven, and that is where the
//! worst latencies came from.)

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

use crate::serve::{Accepted, serve};

/// The runtimes that carry traffic.
#[derive(Debug)]
pub struct Cores {
    cores: Box<[Core]>,
    turn: AtomicUsize,
}

#[derive(Debug)]
struct Core {
    runtime: Handle,
    connections: AtomicUsize,
}

/// The threads behind [`Cores`]; dropping it stops them.
#[derive(Debug)]
pub struct CoreThreads {
    threads: Vec<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl Cores {
    /// Starts `count` threads, each with a runtime.
    ///
    /// # Errors
    /// When a thread or its epoll cannot be made.
    pub fn start(count: usize) -> io::Result<(Arc<Self>, CoreThreads)> {
        let mut cores = Vec::new();
        let mut threads = Vec::new();
        for number in 0..count {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            cores.push(Core {
                runtime: runtime.handle().clone(),
                connections: AtomicUsize::new(0),
            });
            let (stop, stopped) = oneshot::channel();
            let thread = std::thread::Builder::new()
                .name(format!("core-{number}"))
                .spawn(move || {
                    let _ = runtime.block_on(stopped);
                })?;
            threads.push((stop, thread));
        }
        Ok((
            Arc::new(Self {
                cores: cores.into(),
                turn: AtomicUsize::new(0),
            }),
            CoreThreads { threads },
        ))
    }

    /// The core for the next listener to be accepted from.
    pub fn next_accepting(&self) -> usize {
        self.turn.fetch_add(1, Ordering::Relaxed) % self.cores.len()
    }

    /// Runs `task` on a core.
    pub fn spawn_on(&self, core: usize, task: impl Future<Output = ()> + Send + 'static) {
        self.cores[core].runtime.spawn(task);
    }

    /// Has a connection served by the least loaded core; `accepting` is the core that we are on.
    pub fn serve(self: &Arc<Self>, accepted: Accepted, accepting: usize) {
        let chosen = self.least_loaded(accepting);
        self.cores[chosen].connections.fetch_add(1, Ordering::Relaxed);
        let on_core = OnCore {
            cores: self.clone(),
            core: chosen,
        };
        self.spawn_on(chosen, async move {
            serve(accepted, on_core.core).await;
            drop(on_core);
        });
    }

    fn least_loaded(&self, preferred: usize) -> usize {
        let load = |core: usize| self.cores[core].connections.load(Ordering::Relaxed);
        (0..self.cores.len())
            .min_by_key(|&core| (load(core), core != preferred))
            .unwrap_or(preferred)
    }
}

/// Counts a connection on its core for as long as it is held, however its task ends.
struct OnCore {
    cores: Arc<Cores>,
    core: usize,
}

impl Drop for OnCore {
    fn drop(&mut self) {
        self.cores.cores[self.core].connections.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for CoreThreads {
    fn drop(&mut self) {
        for (stop, thread) in self.threads.drain(..) {
            let _ = stop.send(());
            let _ = thread.join();
        }
    }
}
