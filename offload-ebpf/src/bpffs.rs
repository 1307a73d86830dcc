//! The directory in bpffs where maps and links are pinned, which is what outlives the agent.
//!
//! ```text
//! PIN_DIR/object                      a symbolic link whose target is the identity of the object that the programs are of
//! PIN_DIR/maps/NAME
//! PIN_DIR/links/PROGRAM               the programs attached to the cgroup
//! PIN_DIR/pods/COOKIE/inbound         what is attached to the pod's namespace
//! PIN_DIR/pods/COOKIE/guard-IFINDEX   and to its devices
//! ```

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};

use rustix::mount::MountFlags;

use crate::error::Error;

/// Where systems mount bpffs.
const USUAL_MOUNT: &str = "/sys/fs/bpf";
/// `BPF_FS_MAGIC` (linux/magic.h).
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;

/// The pins of one capture.
#[derive(Clone, Debug)]
pub(crate) struct Pins(PathBuf);

impl Pins {
    pub(crate) fn new(directory: &Path) -> Self {
        Self(directory.to_owned())
    }

    pub(crate) fn root(&self) -> &Path {
        &self.0
    }

    pub(crate) fn maps(&self) -> PathBuf {
        self.0.join("maps")
    }

    pub(crate) fn map(&self, name: &str) -> PathBuf {
        self.maps().join(name)
    }

    pub(crate) fn links(&self) -> PathBuf {
        self.0.join("links")
    }

    pub(crate) fn link(&self, program: &str) -> PathBuf {
        self.links().join(program)
    }

    pub(crate) fn pods(&self) -> PathBuf {
        self.0.join("pods")
    }

    pub(crate) fn pod(&self, cookie: u64) -> PathBuf {
        self.pods().join(cookie.to_string())
    }

    /// Makes the directories, and mounts bpffs at its usual place if it is needed and missing there.
    pub(crate) fn prepare(&self) -> Result<(), Error> {
        if !self.is_in_bpffs() && self.0.starts_with(USUAL_MOUNT) {
            rustix::mount::mount("bpf", USUAL_MOUNT, "bpf", MountFlags::empty(), None)
                .map_err(|errno| self.no_bpffs(errno.into()))?;
        }
        if !self.is_in_bpffs() {
            return Err(self.no_bpffs(io::Error::other("it is on another file system")));
        }
        for directory in [self.maps(), self.links(), self.pods()] {
            make_directory(&directory)?;
        }
        Ok(())
    }

    fn no_bpffs(&self, source: io::Error) -> Error {
        Error::NoBpffs {
            path: self.0.clone(),
            source,
        }
    }

    fn is_in_bpffs(&self) -> bool {
        let existing = self.0.ancestors().find(|path| path.exists());
        existing.is_some_and(|path| rustix::fs::statfs(path).is_ok_and(|fs| fs.f_type as u64 == BPF_FS_MAGIC))
    }

    fn identity(&self) -> PathBuf {
        self.0.join("object")
    }

    /// The identity of the object whose programs are pinned, if they all are.
    pub(crate) fn read_identity(&self) -> Option<String> {
        fs::read_link(self.identity()).ok()?.into_os_string().into_string().ok()
    }

    /// Notes whose programs are pinned. bpffs holds no files, but it holds links.
    pub(crate) fn write_identity(&self, identity: &str) -> Result<(), Error> {
        let fresh = self.0.join("object-new");
        remove(&fresh)?;
        symlink(identity, &fresh).map_err(|source| pin_error("create", &fresh, source))?;
        fs::rename(&fresh, self.identity()).map_err(|source| pin_error("rename", &fresh, source))
    }

    /// Removes the note made by [`Pins::write_identity`].
    pub(crate) fn forget_identity(&self) -> Result<(), Error> {
        remove(&self.identity()).map(drop)
    }
}

/// Makes a directory that only its owner enters, and those above it; it may be there.
pub(crate) fn make_directory(path: &Path) -> Result<(), Error> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| pin_error("create", path, source))
}

/// What is in a directory, sorted; nothing if there is no directory.
pub(crate) fn list(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let error = |source| pin_error("read", directory, source);
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(error(source)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        paths.push(entry.map_err(error)?.path());
    }
    paths.sort();
    Ok(paths)
}

/// Removes a pin or symbolic link; false if there was none.
pub(crate) fn remove(path: &Path) -> Result<bool, Error> {
    absent_is_false(fs::remove_file(path), path)
}

/// Removes an empty directory; false if there was none.
pub(crate) fn remove_directory(path: &Path) -> Result<bool, Error> {
    absent_is_false(fs::remove_dir(path), path)
}

fn absent_is_false(result: io::Result<()>, path: &Path) -> Result<bool, Error> {
    match result {
        Ok(()) => Ok(true),
        Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(pin_error("remove", path, source)),
    }
}

pub(crate) fn pin_error(action: &'static str, path: &Path, source: io::Error) -> Error {
    Error::Pin {
        action,
        path: path.to_owned(),
        source,
    }
}
