//! One current-thread runtime for each core, and the rule which of them serves a connection.
//!
//! A connection lives on one core from accept to end, so its sockets, its task and its buffers are never touched by two. The core
//! is chosen when it is accepted: the one with the fewest connections, unless the core that accepted it has hardly more.
//! (Measured before the project began: kernel-spread accepts are uneven, and that is where the worst latencies came
//! from. Measured since, `l4-connect` at one connection at a time: sending every other connection to another core, because
//! the one before is still closing, costs a wake-up each and 4 ms at the 99th percentile.)

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

use crate::affinity;
use crate::serve::{Accepted, serve};

/// Threads of a core that may wait for DNS, for clients that name what the mesh does not know.
const DNS_THREADS: usize = 8;

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
        // None of the threads has been sent anywhere yet.
        affinity::usual();
        let mut cores = Vec::new();
        let mut threads = Vec::new();
        for number in 0..count {
            let runtime = Builder::new_current_thread()
                .enable_all()
                .max_blocking_threads(DNS_THREADS)
                .build()?;
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

    fn least_loaded(&self, accepting: usize) -> usize {
        choose(self.cores.len(), accepting, |core| {
            self.cores[core].connections.load(Ordering::Relaxed)
        })
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

/// The core with the least load; the accepting one if it has hardly more (one connection, and an eighth).
fn choose(cores: usize, accepting: usize, load: impl Fn(usize) -> usize) -> usize {
    let Some(least) = (0..cores).min_by_key(|&core| load(core)) else {
        return accepting;
    };
    let near = load(least) + 1 + load(least) / 8;
    if load(accepting) <= near { accepting } else { least }
}

impl Drop for CoreThreads {
    fn drop(&mut self) {
        for (stop, thread) in self.threads.drain(..) {
            let _ = stop.send(());
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_stays_where_it_was_accepted_unless_another_core_has_clearly_fewer() {
        let choose = |loads: &[usize]| choose(loads.len(), 1, |core| loads[core]);
        assert_eq!(choose(&[0, 0]), 1);
        assert_eq!(choose(&[0, 1]), 1, "the connection before is still closing");
        assert_eq!(choose(&[0, 2, 1]), 0);
        assert_eq!(choose(&[80, 91]), 1);
        assert_eq!(choose(&[80, 92]), 0);
    }
}
