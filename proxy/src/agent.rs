//! The agent: the privileged half of Underpass.
//!
//! It owns what a pod's capture is made of (programs and maps, listening sockets in the pods' namespaces) and hands the proxy what the
//! proxy needs of it; it reads no traffic. The one idea: **one thread decides.** Whatever happens (a command, a word of a proxy, a
//! signal, the passing of time) becomes an [`Event`], and the agent's own thread takes them one by one. Other threads only wait
//! for sockets, and make sockets that proxies wish for.
//!
//! What holds:
//! * A pod that is enrolled is served or refused, never free: neither the end of a proxy nor the agent's own sets it free. Only removal
//!   does, the end of its namespace, and `detach`.
//! * The state on disk knows every pod that the kernel knows (`state`).
//! * Nothing of the agent stays in a pod's namespace but the pod's listeners, its handle, and sockets on their way to a proxy.

mod answers;
mod cgroups;
pub mod commands;
mod connections;
mod control;
mod doors;
mod enrolment;
mod interfaces;
mod joining;
mod kernel;
mod listeners;
mod namespace;
mod netlink;
mod options;
mod order;
mod ownership;
mod pods;
mod proxies;
mod service;
mod start;
mod state;
mod supervisor;
mod takeover;
#[cfg(test)]
mod tests;
mod worker;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

pub use commands::CommandError;
pub use options::AgentOptions;
pub use start::{run, run_with_proxy};
pub use supervisor::{ProxyDuties, become_proxy};

use control::{ControlError, Line, Request};
use doors::Doors;
use enrolment::EnrolError;
use kernel::Kernel;
use pods::Pods;
use proxies::{Proxy, ProxyId, Services};
use state::{StateError, StateFile};
use supervisor::Supervisor;

use crate::handover::{FromProxy, HandoverError};

/// How often namespaces are looked at: one that is gone is noticed within this time.
const LOOK: Duration = Duration::from_secs(1);

/// Why the agent did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The run directory cannot be used.
    #[error("the run directory {}: {source}; run as root, or choose another --run-dir", path.display())]
    RunDir {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another agent is there and stays.
    #[error("another agent runs with --run-dir {}, and this one cannot take over: {reason}", run_dir.display())]
    Occupied {
        /// The directory that both were given.
        run_dir: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
    /// A socket cannot be made.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The state cannot be read or written.
    #[error(transparent)]
    State(#[from] StateError),
    /// The kernel side.
    #[error(transparent)]
    Kernel(#[from] underpass_ebpf::Error),
    /// A cgroup cannot be used.
    #[error(transparent)]
    Cgroup(#[from] cgroups::CgroupError),
    /// A cgroup of the options is not there.
    #[error("the cgroup {}: {source}; give the folder of a cgroup (version 2)", path.display())]
    NoSuchCgroup {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another program would rewrite connects before ours sees them.
    #[error(
        "the {hook} program {name} (id {id}) at cgroup {} runs before ours and would hide from it which service a pod asks for; attach at the \
         pods' own parent cgroup (--cgroup), whose programs run first, or take that program away (bpftool cgroup detach)",
        cgroup.display()
    )]
    Behind {
        /// Where both are attached.
        cgroup: PathBuf,
        /// On which hook.
        hook: &'static str,
        /// The other program's name.
        name: String,
        /// Its id.
        id: u32,
    },
    /// A pod that the configuration names cannot be captured.
    #[error("capture.pods: workload {uid}: {source}")]
    Pod {
        /// The workload.
        uid: String,
        /// Why.
        source: EnrolError,
    },
    /// There is no such user.
    #[error("there is no user {0}; give a name from /etc/passwd or a number")]
    NoSuchUser(String),
    /// The proxy of `underpass run` did not start.
    #[error(
        "the proxy, as user {user}, did not start ({how}): its own message is above; what it reads must be readable for that user (capture.proxy_user)"
    )]
    Proxy {
        /// As whom it ran.
        user: String,
        /// How it ended.
        how: String,
    },
    /// Threads, descriptors or signals are not to be had.
    #[error("the machine does not give what the agent needs: {0}")]
    Machine(#[from] io::Error),
}

/// Everything that may happen to an agent.
#[derive(Debug)]
enum Event {
    /// A command.
    Asked(Request, Line),
    /// A process connected to `agent.sock`, of a user that may.
    ProxyConnected { socket: OwnedFd, pid: u32 },
    /// A proxy said something.
    ProxySaid(ProxyId, FromProxy),
    /// A proxy's connection ended.
    ProxyGone(ProxyId, HandoverError),
    /// SIGTERM, SIGINT or SIGHUP.
    Signalled(Signal),
    /// The proxy of `underpass run` ended.
    ChildEnded,
}

/// How an agent ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// It was told to. What is in the kernel stays.
    Stopped,
    /// Another agent has everything now.
    Yielded,
    /// Capture has ended.
    Detached,
}

/// The agent of a node.
struct Agent {
    settings: Settings,
    kernel: Box<dyn Kernel>,
    pods: Pods,
    proxies: BTreeMap<ProxyId, Proxy>,
    /// The next proxy's id.
    next_proxy: ProxyId,
    /// What proxies are served with by the threads that read them.
    services: Services,
    state: StateFile,
    doors: Doors,
    events: Receiver<Event>,
    sender: Sender<Event>,
    /// The proxy that this agent started, if it did.
    supervisor: Option<Supervisor>,
    /// When cgroups that an earlier agent let past have had the time to connect again.
    strays_until: Option<Instant>,
}

/// What does not change while an agent runs.
#[derive(Debug)]
struct Settings {
    run_dir: PathBuf,
    hierarchy: cgroups::Hierarchy,
    /// Where the programs are attached.
    attach: PathBuf,
    own_cgroup: u64,
    proxy_uid: Option<u32>,
    refuse_after: Duration,
    keepalive: underpass_config::Keepalive,
}

impl Agent {
    /// Works until something ends it.
    fn serve(&mut self) -> Result<End, AgentError> {
        let mut look = Instant::now();
        loop {
            let now = Instant::now();
            if look <= now {
                look = now + LOOK;
                self.look_at_namespaces();
            }
            self.pass_time(now)?;
            let until = self.next_deadline().map_or(look, |deadline| deadline.min(look));
            match self.events.recv_timeout(until.saturating_duration_since(now)) {
                Ok(event) => {
                    if let Some(end) = self.handle(event)? {
                        return Ok(end);
                    }
                }
                // The agent has a sender itself.
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
            }
        }
    }

    fn handle(&mut self, event: Event) -> Result<Option<End>, AgentError> {
        match event {
            Event::Asked(request, line) => return Ok(self.answer(request, line)),
            Event::ProxyConnected { socket, pid } => self.meet_proxy(socket, pid),
            Event::ProxySaid(id, message) => self.hear_proxy(id, message),
            Event::ProxyGone(id, why) => self.lose_proxy(id, &why.to_string()),
            Event::Signalled(signal) => return Ok(self.stop(signal)),
            Event::ChildEnded => return self.child_ended(),
        }
        Ok(None)
    }

    /// Does what is due.
    fn pass_time(&mut self, now: Instant) -> Result<(), AgentError> {
        self.conclude_overdue(now);
        self.refuse_unserved(now);
        self.forget_strays(now);
        self.restart_child(now)
    }

    fn next_deadline(&self) -> Option<Instant> {
        let starting = self
            .pods
            .values()
            .filter_map(|pod| Some(pod.starting.as_ref()?.deadline));
        let unserved = self.pods.values().filter(|pod| !pod.refusing);
        let unserved = unserved.filter_map(|pod| Some(pod.unserved_since? + self.settings.refuse_after));
        let child = self.supervisor.as_ref().and_then(Supervisor::restart_at);
        starting.chain(unserved).chain(self.strays_until).chain(child).min()
    }
}
