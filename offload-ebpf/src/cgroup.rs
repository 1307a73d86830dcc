//! Where the cgroup2 file system is, and what a cgroup is called in it.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::Error;

/// The cgroup namespace that the machine starts with (`PROC_CGROUP_INIT_INO` in linux/proc_ns.h).
const INITIAL_NAMESPACE: &str = "cgroup:[4026531835]";

/// Where the cgroup2 file system is mounted: `/sys/fs/cgroup` on most systems, `/sys/fs/cgroup/unified` beside the old hierarchies.
///
/// # Errors
/// When it is not mounted.
pub fn cgroup2_mount() -> Result<PathBuf, Error> {
    mounts_of("cgroup2").into_iter().next().ok_or(Error::NoCgroup2)
}

/// Where file systems of one type are mounted, in the order of /proc/mounts.
pub fn mounts_of(kind: &str) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let mount = |line: &str| {
        let mut fields = line.split(' ').skip(1);
        let (path, of_kind) = (fields.next()?, fields.next()?);
        (of_kind == kind).then(|| PathBuf::from(path))
    };
    mounts.lines().filter_map(mount).collect()
}

/// The id by which eBPF programs know a cgroup: the inode of its directory (kernfs ids are 64-bit inodes on 64-bit machines).
///
/// # Errors
/// When there is no such directory.
pub fn cgroup_id(path: &Path) -> std::io::Result<u64> {
    Ok(fs::metadata(path)?.ino())
}

/// Opens a cgroup to attach to.
pub(crate) fn open(path: &Path) -> Result<File, Error> {
    File::open(path).map_err(|source| Error::Cgroup {
        path: path.to_owned(),
        source,
    })
}

/// Cgroup programs see the sockets of the cgroup's members. The agent's listeners must be among them: by the note on an accepted
/// socket the proxy learns where a connection was going.
pub(crate) fn contains_this_process(attach: &Path) -> Result<(), Error> {
    // Elsewhere paths begin at the namespace's own root, while the mount may show the whole hierarchy.
    if fs::read_link("/proc/thread-self/ns/cgroup").is_ok_and(|namespace| namespace != Path::new(INITIAL_NAMESPACE)) {
        return Ok(());
    }
    let cgroup_error = |source| Error::Cgroup {
        path: attach.to_owned(),
        source,
    };
    let memberships = fs::read_to_string("/proc/thread-self/cgroup").map_err(cgroup_error)?;
    let own = memberships
        .lines()
        .find_map(|line| line.strip_prefix("0::/"))
        .unwrap_or("");
    let own = cgroup2_mount()?.join(own);
    let attach = attach.canonicalize().map_err(cgroup_error)?;
    // Where only a part of the hierarchy is mounted there may be nothing to compare.
    match own.canonicalize() {
        Ok(own) if !own.starts_with(&attach) => Err(Error::OutsideCgroup { own, attach }),
        _ => Ok(()),
    }
}
