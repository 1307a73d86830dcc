//! A pod's network namespace: found, entered, and watched for its end.
//!
//! Work inside it is done on a thread that is made for it and ends there. A thread that came back might come back to the wrong
//! place, and one that stayed would keep the namespace alive after its pod.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;

use rustix::thread::LinkNameSpaceType;
use serde::{Deserialize, Serialize};
use underpass_config::PodPlace;

/// How a namespace was named: what is looked at to see whether it is still there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// A file that stands for it.
    Netns(PathBuf),
    /// A process in it.
    Pid(u32),
}

impl Place {
    /// The file to open.
    pub fn path(&self) -> PathBuf {
        match self {
            Self::Netns(path) => path.clone(),
            Self::Pid(pid) => format!("/proc/{pid}/ns/net").into(),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Netns(path) => path.display().fmt(f),
            Self::Pid(pid) => write!(f, "process {pid}"),
        }
    }
}

impl From<&PodPlace> for Place {
    fn from(place: &PodPlace) -> Self {
        match place {
            PodPlace::Netns(path) => Self::Netns(path.clone()),
            PodPlace::Pid(pid) => Self::Pid(*pid),
        }
    }
}

/// Why a namespace cannot be enrolled.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// The path leads nowhere.
    #[error("{0} does not exist; give the path of a network namespace (`ip netns` keeps them in /run/netns)")]
    NoSuchPath(Place),
    /// The process is gone.
    #[error("there is no {0}; give the id of a process that runs in the pod")]
    NoSuchProcess(Place),
    /// The file is something else.
    #[error("{0} is not a network namespace; give for example /run/netns/NAME or /proc/PID/ns/net")]
    NotANamespace(Place),
    /// The node's own namespace.
    #[error(
        "{0} is in the node's own network namespace, and capturing that would cut off the node itself; give a pod's"
    )]
    OwnNamespace(Place),
    /// Nothing to capture.
    #[error(
        "the network namespace of {0} has no address but loopback; enrol it once its interface has one (ip address)"
    )]
    NoAddress(Place),
    /// Something else failed.
    #[error("{step} the network namespace of {place}: {source}{}", advice(.source))]
    Io {
        /// Where.
        place: Place,
        /// What was tried.
        step: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

fn advice(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => "; the agent needs CAP_SYS_ADMIN and CAP_NET_ADMIN: run it as root",
        Some(libc::EMFILE | libc::ENFILE) => "; raise the limit of open files (LimitNOFILE=, ulimit -n)",
        _ => "",
    }
}

/// What tells namespaces apart while one of them is open: no two have it at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    /// Of what `path` leads to.
    ///
    /// # Errors
    /// Those of stat(2).
    pub fn at(path: &Path) -> io::Result<Self> {
        path.metadata().map(|found| Self {
            device: found.dev(),
            inode: found.ino(),
        })
    }
}

/// An open network namespace. It keeps the namespace alive: whoever has one must look whether it is still wanted.
#[derive(Debug)]
pub struct Namespace {
    handle: OwnedFd,
    identity: Identity,
}

impl Namespace {
    /// Opens the namespace at a place that may be a pod's.
    ///
    /// # Errors
    /// When there is none, or it is the node's own.
    pub fn open(place: &Place) -> Result<Self, NamespaceError> {
        let failed = |step| {
            let place = place.clone();
            move |source| NamespaceError::Io { place, step, source }
        };
        let handle = match File::open(place.path()) {
            Ok(file) => OwnedFd::from(file),
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH | libc::ENOTDIR)) => {
                return Err(match place {
                    Place::Netns(_) => NamespaceError::NoSuchPath(place.clone()),
                    Place::Pid(_) => NamespaceError::NoSuchProcess(place.clone()),
                });
            }
            Err(error) => return Err(failed("opening")(error)),
        };
        let namespace = Self::of(handle).map_err(failed("entering"))?;
        let namespace = namespace.ok_or_else(|| NamespaceError::NotANamespace(place.clone()))?;
        // In a container /proc/1 need not be the node's; then only the agent's own is known to be none of a pod.
        let is_at = |path| Identity::at(Path::new(path)).is_ok_and(|identity| identity == namespace.identity);
        if is_at("/proc/self/ns/net") || is_at("/proc/1/ns/net") {
            return Err(NamespaceError::OwnNamespace(place.clone()));
        }
        Ok(namespace)
    }

    /// The namespace that a descriptor stands for; `None` if it is anything but a network namespace.
    ///
    /// # Errors
    /// When the descriptor cannot be looked at.
    pub fn of(handle: OwnedFd) -> io::Result<Option<Self>> {
        let status = rustix::fs::fstat(&handle)?;
        let identity = Identity {
            device: status.st_dev,
            inode: status.st_ino,
        };
        let namespace = Self { handle, identity };
        match namespace.enter(|| Ok(())) {
            Ok(()) => Ok(Some(namespace)),
            // Neither a file of that kind nor of another (setns(2)).
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What tells it apart from others.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Whether `place` still leads here.
    pub fn is_at(&self, place: &Place) -> bool {
        Identity::at(&place.path()).is_ok_and(|identity| identity == self.identity)
    }

    /// Runs `work` inside.
    ///
    /// # Errors
    /// When there is no thread to be had, or the namespace may not be entered.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        thread::scope(|scope| {
            let inside = || {
                rustix::thread::move_into_link_name_space(self.handle.as_fd(), Some(LinkNameSpaceType::Network))?;
                work()
            };
            let thread = thread::Builder::new()
                .name("namespace".into())
                .spawn_scoped(scope, inside)?;
            let panicked = |_| Err(io::Error::other("the thread in the namespace panicked"));
            thread.join().unwrap_or_else(panicked)
        })
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }
}
