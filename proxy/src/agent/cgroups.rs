//! Cgroups (version 2): by them the kernel's programs tell the proxy's connections from those of pods.
//!
//! A process cannot forge its cgroup, but it inherits it: whatever else is in a proxy's cgroup goes past the proxy as well. So the
//! proxy and the agent are to be alone in theirs, and can make one for themselves.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Prefix of the cgroups that processes make for themselves; the id of the process follows.
const OWN_PREFIX: &str = "underpass-";

/// Why a process has no usable cgroup.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// It has none.
    #[error(
        "process {pid} is in no cgroup of version 2; mount the hierarchy: mount -t cgroup2 none /sys/fs/cgroup/unified"
    )]
    None {
        /// The process.
        pid: u32,
    },
    /// It is outside of what can be seen from here.
    #[error(
        "the cgroup {path} of process {pid} is outside of this process' cgroup namespace; run the agent in the node's cgroup \
         namespace (a privileged container that is given the node's /sys/fs/cgroup)"
    )]
    OutOfSight {
        /// The process.
        pid: u32,
        /// Its cgroup.
        path: String,
    },
    /// Something else failed.
    #[error("{step} {}: {source}", path.display())]
    Io {
        /// What was tried.
        step: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

/// The cgroup hierarchy of version 2.
#[derive(Clone, Debug)]
pub struct Hierarchy {
    mount: PathBuf,
}

impl Hierarchy {
    /// The hierarchy that is mounted there.
    pub fn at(mount: PathBuf) -> Self {
        Self { mount }
    }

    /// The cgroup that holds every other.
    pub fn root(&self) -> &Path {
        &self.mount
    }

    /// The folder of a process' cgroup.
    ///
    /// # Errors
    /// When the process is gone, or its cgroup cannot be seen from here.
    pub fn of(&self, pid: u32) -> Result<PathBuf, CgroupError> {
        let path = PathBuf::from(format!("/proc/{pid}/cgroup"));
        let text = fs::read_to_string(&path).map_err(failed("reading", &path))?;
        let line = text.lines().find_map(|line| line.strip_prefix("0::/"));
        match line {
            None => Err(CgroupError::None { pid }),
            Some(path) if path.starts_with("..") => Err(CgroupError::OutOfSight { pid, path: path.into() }),
            // A removed cgroup that still has processes; its folder is gone.
            Some(path) => Ok(self.mount.join(path.strip_suffix(" (deleted)").unwrap_or(path))),
        }
    }
}

/// Moves this process, with all its threads, into a cgroup of its own below `parent`.
///
/// # Errors
/// When it may not be made or entered.
pub fn move_to_own(parent: &Path) -> Result<PathBuf, CgroupError> {
    let own = parent.join(format!("{OWN_PREFIX}{}", std::process::id()));
    match fs::create_dir(&own) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(failed("making the cgroup", &own)(error)),
        _ => fs::write(own.join("cgroup.procs"), "0").map_err(failed("moving to the cgroup", &own)),
    }?;
    Ok(own)
}

/// Removes what processes that are gone made for themselves below `parent`.
pub fn remove_abandoned(parent: &Path) {
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    for entry in entries {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(OWN_PREFIX));
        let gone = |pid: u32| !Path::new(&format!("/proc/{pid}")).exists();
        if pid.and_then(|pid| pid.parse().ok()).is_some_and(gone) {
            // Fails while anything lives in it, and then it is not abandoned.
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// Which of `ids` are cgroups that exist at or below `folder`. A cgroup's id is its inode number, and none is given twice.
pub fn existing(folder: &Path, ids: &[u64]) -> Vec<u64> {
    let children = fs::read_dir(folder).into_iter().flatten().flatten();
    let children = children.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let below = children.flat_map(|entry| existing(&entry.path(), ids));
    let here = fs::metadata(folder).ok().map(|found| found.ino());
    here.filter(|id| ids.contains(id)).into_iter().chain(below).collect()
}

/// The processes of a cgroup, without those of its children. None if the cgroup is gone.
pub fn processes(cgroup: &Path) -> Vec<u32> {
    let text = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

fn failed(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CgroupError {
    let path = path.to_owned();
    move |source| CgroupError::Io { step, path, source }
}
