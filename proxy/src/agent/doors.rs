//! The agent's two sockets, the lock that says that there is one agent, and the threads that accept.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread;
use std::time::Duration;

use rustix::event::PollFlags;
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;
use rustix::net::{AddressFamily, SocketFlags, SocketType, UCred};

use super::control::{self, Line};
use super::worker::{Stop, Worker};
use super::{AgentError, Event};
use crate::handover::{self, FromAgent};

/// Proxies and commands that may wait to be accepted.
const BACKLOG: i32 = 128;

/// How long to wait when there are no descriptors left for an accept.
const RELIEF: Duration = Duration::from_millis(100);

/// The agent's sockets.
#[derive(Debug)]
pub struct Doors {
    /// Held for as long as this agent, or one that takes over from it, lives.
    pub lock: OwnedFd,
    /// For proxies.
    pub agent: Arc<OwnedFd>,
    /// For commands.
    pub control: Arc<OwnedFd>,
    workers: Vec<Worker>,
}

/// Takes the lock of a run directory; `None` if another agent has it.
///
/// # Errors
/// When the directory cannot be made or written to.
pub fn lock(run_dir: &Path) -> Result<Option<OwnedFd>, AgentError> {
    let failed = |source| AgentError::RunDir {
        path: run_dir.into(),
        source,
    };
    if !run_dir.exists() {
        fs::create_dir_all(run_dir).map_err(failed)?;
        // The proxy's user must get through to its socket, whatever the umask.
        fs::set_permissions(run_dir, Permissions::from_mode(0o755)).map_err(failed)?;
    }
    let path = run_dir.join("agent.lock");
    let file = File::options().create(true).append(true).open(path).map_err(failed)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file.into())),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(failed(error.into())),
    }
}

impl Doors {
    /// Opens the sockets of a run directory. Whoever has the lock is alone, so what is left of others is removed.
    ///
    /// # Errors
    /// When they cannot be made there.
    pub fn open(run_dir: &Path, lock: OwnedFd, proxy_uid: Option<u32>) -> Result<Self, AgentError> {
        let (agent, control) = (run_dir.join("agent.sock"), control::path(run_dir));
        let doors = Self::inherited(lock, bind(&agent)?, bind(&control)?);
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| control::ControlError::Socket { path, source }
        };
        for path in [&agent, &control] {
            fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(failed(path))?;
        }
        std::os::unix::fs::chown(&agent, proxy_uid, None).map_err(failed(&agent))?;
        Ok(doors)
    }

    /// The sockets of an agent that hands over.
    pub fn inherited(lock: OwnedFd, agent: OwnedFd, control: OwnedFd) -> Self {
        Self {
            lock,
            agent: Arc::new(agent),
            control: Arc::new(control),
            workers: Vec::new(),
        }
    }

    /// Starts to accept.
    ///
    /// # Errors
    /// When there are no threads to be had.
    pub fn listen(&mut self, proxy_uid: Option<u32>, events: &Sender<Event>) -> io::Result<()> {
        let (socket, sender) = (self.agent.clone(), events.clone());
        let accept_proxies = move |stop: &Stop| {
            accept_each(&socket, stop, |socket| accept_proxy(socket, proxy_uid, &sender));
        };
        self.workers.push(Worker::start("proxies", accept_proxies)?);
        let (socket, sender) = (self.control.clone(), events.clone());
        let accept_commands = move |stop: &Stop| accept_each(&socket, stop, |socket| accept_command(socket, &sender));
        self.workers.push(Worker::start("commands", accept_commands)?);
        Ok(())
    }

    /// Stops to accept; who comes waits in the sockets' queues.
    pub fn pause(&mut self) {
        self.workers.clear();
    }
}

fn bind(path: &Path) -> Result<OwnedFd, AgentError> {
    let address = control::address(path)?;
    let failed = |error: Errno| control::ControlError::Socket {
        path: path.into(),
        source: error.into(),
    };
    let _ = fs::remove_file(path);
    let flags = SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).map_err(failed)?;
    rustix::net::bind(&socket, &address).map_err(failed)?;
    rustix::net::listen(&socket, BACKLOG).map_err(failed)?;
    Ok(socket)
}

fn accept_each(listener: &OwnedFd, stop: &Stop, mut each: impl FnMut(OwnedFd) -> io::Result<()>) {
    while stop.wait(listener, PollFlags::IN) {
        let accepted = rustix::net::accept_with(listener, SocketFlags::CLOEXEC);
        if let Err(error) = accepted.map_err(io::Error::from).and_then(&mut each) {
            tracing::warn!(%error, "a connection to the agent failed");
            stop.pause(RELIEF);
        }
    }
}

fn accept_proxy(socket: OwnedFd, proxy_uid: Option<u32>, events: &Sender<Event>) -> io::Result<()> {
    let UCred { pid, uid, .. } = socket_peercred(&socket)?;
    let (pid, uid) = (pid.as_raw_nonzero().get().unsigned_abs(), uid.as_raw());
    if uid != 0 && Some(uid) != proxy_uid {
        let reason = format!("user {uid} is not the proxy's; start the agent with --proxy-user {uid}");
        tracing::warn!(pid, reason, "a proxy was refused");
        let _ = handover::send(&socket, &FromAgent::Refused { reason }, &[]);
        return Ok(());
    }
    let _ = events.send(Event::ProxyConnected { socket, pid });
    Ok(())
}

/// The request is waited for on a thread of its own, that a slow caller keeps no one waiting.
fn accept_command(socket: OwnedFd, events: &Sender<Event>) -> io::Result<()> {
    let Some(line) = Line::accepted(socket)? else {
        tracing::warn!("a command was refused: only root may talk to the agent");
        return Ok(());
    };
    let events = events.clone();
    let ask = move || match line.request() {
        Ok(request) => drop(events.send(Event::Asked(request, line))),
        Err(error) => tracing::debug!(%error, "a command was not understood"),
    };
    thread::Builder::new().name("command".into()).spawn(ask).map(drop)
}
