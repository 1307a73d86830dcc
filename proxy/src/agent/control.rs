//! The control socket: how `underpass enrol`, `pods`, `remove` and `detach` ask the agent, and how a new agent asks the old one.
//!
//! One request per connection, then answers until the last. Messages are those of `handover`: one JSON document per packet,
//! descriptors beside it. Only root is served, by its credentials and not only by the file's mode.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout, socket_peercred};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde::{Deserialize, Serialize};

use super::namespace::Place;
use super::state::Record;
use crate::handover::{self, HandoverError};

/// Version of what two agents say to each other in a takeover.
pub const TAKEOVER_VERSION: u32 = 2;

/// How long either side waits for a message that is due at once.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long the command line waits for an answer: an enrolment waits for a proxy.
const LONG_PATIENCE: Duration = Duration::from_secs(60);

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case")]
pub enum Request {
    /// Capture a pod.
    Enrol {
        /// The workload.
        uid: String,
        /// Its namespace.
        place: Place,
    },
    /// Which pods are captured, and by which proxies?
    Pods,
    /// Capture a pod no more.
    Remove(Which),
    /// Capture nothing any more, and end.
    Detach,
    /// Hand everything over to the agent that asks, and end.
    Yield {
        /// [`TAKEOVER_VERSION`].
        version: u32,
    },
    /// Said after `Yield` by the new agent, when it has everything.
    Taken,
}

/// A pod, by one of its names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Which {
    /// By workload.
    Uid(String),
    /// By namespace.
    Place(Place),
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum Answer {
    /// The pod is captured.
    Enrolled {
        /// The pod.
        pod: PodView,
        /// It was so before.
        already: bool,
    },
    /// A captured pod.
    Pod(PodView),
    /// A proxy.
    Proxy(ProxyView),
    /// There are no more pods and proxies.
    End,
    /// These are no longer captured; none if they were not.
    Removed {
        /// The workloads.
        uids: Vec<String>,
    },
    /// Capture has ended.
    Detached {
        /// What was removed from the kernel.
        removed: String,
    },
    /// It was not done.
    Failed {
        /// Why, and what to do.
        reason: String,
    },
    /// The takeover begins. Beside it: the lock, `agent.sock` and `control.sock`.
    Yielding,
    /// A pod, with its namespace and its listeners beside it.
    YieldedPod(YieldedPod),
    /// A proxy, with its connection beside it.
    YieldedProxy(YieldedProxy),
}

/// A pod as people are told of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodView {
    /// The workload.
    pub uid: String,
    /// Where its namespace is found.
    pub netns: String,
    /// The namespace's cookie.
    pub cookie: u64,
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
    /// Where its own connections are led to.
    pub outbound: Vec<SocketAddr>,
    /// Where connections to it are led to.
    pub inbound: Vec<SocketAddr>,
    /// When it was enrolled (RFC 3339).
    pub since: String,
    /// Who serves it.
    pub state: PodState,
}

/// What becomes of a pod's connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PodState {
    /// A proxy accepts them.
    Served,
    /// They wait for a proxy.
    Waiting,
    /// They are refused, for there was no proxy for too long.
    Refused,
}

impl PodState {
    /// As in JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::Served => "served",
            Self::Waiting => "waiting",
            Self::Refused => "refused",
        }
    }
}

/// A proxy as people are told of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyView {
    /// The process that connected.
    pub pid: u32,
    /// Its version.
    pub build: String,
    /// Its cgroup.
    pub cgroup: PathBuf,
    /// How many pods it serves.
    pub ready: usize,
    /// Whether a successor has taken its place.
    pub draining: bool,
}

/// A pod that goes from one agent to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct YieldedPod {
    /// What is on disk.
    pub record: Record,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// What its interfaces have.
    pub interfaces: Vec<IpAddr>,
    /// Which of those are another workload's.
    pub disowned: Vec<IpAddr>,
    /// Listeners, if it has them.
    pub outbound: Vec<SocketAddr>,
    /// Listeners, if it has them.
    pub inbound: Vec<SocketAddr>,
    /// Whether its connections are refused.
    pub refusing: bool,
}

/// A proxy's connection that goes from one agent to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct YieldedProxy {
    /// The process that connected.
    pub pid: u32,
    /// Its version.
    pub build: String,
    /// Its cgroup.
    pub cgroup: PathBuf,
    /// The pods that it serves.
    pub ready: Vec<u64>,
    /// Whether a successor has taken its place.
    pub draining: bool,
}

/// Why the agent could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Nobody listens.
    #[error("no agent runs with --run-dir {}; start one: underpass agent (or underpass run, with a `capture` section)", .0.display())]
    NoAgent(PathBuf),
    /// The path does not fit into a socket's address.
    #[error("{} is too long a path for a socket (unix(7): 107 bytes); choose a shorter --run-dir", .0.display())]
    PathTooLong(PathBuf),
    /// The socket failed.
    #[error("{}: {source}{}", path.display(), permission(.source))]
    Socket {
        /// The socket's path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The agent did not answer as it should.
    #[error("the agent did not answer: {0}; its log says more")]
    Silent(#[from] HandoverError),
    /// The agent said no.
    #[error("{0}")]
    Failed(String),
    /// The agent answered something else.
    #[error(
        "the agent answered something that this version does not understand; use the `underpass` that the agent runs"
    )]
    Misunderstood,
}

fn permission(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "; only root may talk to the agent",
        _ => "",
    }
}

/// The path of the control socket.
pub fn path(run_dir: &Path) -> PathBuf {
    run_dir.join("control.sock")
}

/// The address of a socket file.
///
/// # Errors
/// When the path is too long.
pub fn address(path: &Path) -> Result<SocketAddrUnix, ControlError> {
    SocketAddrUnix::new(path).map_err(|_| ControlError::PathTooLong(path.into()))
}

/// One side of a conversation on the control socket.
#[derive(Debug)]
pub struct Line(OwnedFd);

impl Line {
    /// Asks the agent of a run directory.
    ///
    /// # Errors
    /// When there is none, or it may not be asked.
    pub fn call(run_dir: &Path, request: &Request) -> Result<Self, ControlError> {
        let path = path(run_dir);
        let failed = |error: rustix::io::Errno| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ControlError::NoAgent(run_dir.into()),
            _ => ControlError::Socket {
                path: path.clone(),
                source: error.into(),
            },
        };
        let flags = SocketFlags::CLOEXEC;
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).map_err(failed)?;
        rustix::net::connect(&socket, &address(&path)?).map_err(failed)?;
        set_socket_timeout(&socket, Timeout::Recv, Some(LONG_PATIENCE)).map_err(failed)?;
        let line = Self(socket);
        handover::send(&line.0, request, &[])?;
        Ok(line)
    }

    /// Takes a call that was accepted; `None` if it is not root that calls.
    ///
    /// # Errors
    /// Those of getsockopt(2) and setsockopt(2).
    pub fn accepted(socket: OwnedFd) -> io::Result<Option<Self>> {
        set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
        set_socket_timeout(&socket, Timeout::Send, Some(PATIENCE))?;
        let caller = socket_peercred(&socket)?;
        Ok(caller.uid.is_root().then_some(Self(socket)))
    }

    /// Waits for the request.
    ///
    /// # Errors
    /// When none comes.
    pub fn request(&self) -> Result<Request, HandoverError> {
        handover::receive(&self.0).map(|(request, _)| request)
    }

    /// Says one thing more.
    ///
    /// # Errors
    /// When the other side is gone.
    pub fn say(&self, message: &impl Serialize, descriptors: &[BorrowedFd<'_>]) -> Result<(), HandoverError> {
        handover::send(&self.0, message, descriptors)
    }

    /// Answers; that the caller did not wait for it changes nothing.
    pub fn answer(&self, answer: &Answer) {
        if let Err(error) = self.say(answer, &[]) {
            tracing::debug!(%error, "an answer was not delivered");
        }
    }

    /// Waits for an answer.
    ///
    /// # Errors
    /// When the agent says no, or nothing.
    pub fn listen(&self) -> Result<(Answer, Vec<OwnedFd>), ControlError> {
        match handover::receive(&self.0)? {
            (Answer::Failed { reason }, _) => Err(ControlError::Failed(reason)),
            answer => Ok(answer),
        }
    }
}

impl AsFd for Line {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
