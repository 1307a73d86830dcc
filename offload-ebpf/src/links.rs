//! Pinned links: a program attached somewhere, for as long as the pin is there.
//!
//! The one idea: a link is never removed to be made again, since in between nothing would be enforced. It is updated in place, or its
//! successor is attached before it goes.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use crate::bpf::{self, AttachType, LinkInfo, Target};
use crate::bpffs::{self, pin_error};
use crate::error::Error;

/// Where a program is attached, and how the operator knows the place.
pub(crate) struct Place<'a> {
    pub(crate) attach_type: AttachType,
    pub(crate) target: Target<'a>,
    /// What [`PinnedLink::target`] says of a link that is attached there.
    pub(crate) id: u64,
    pub(crate) name: String,
}

impl Place<'_> {
    fn error(&self, action: &'static str, pin: &Path, source: io::Error) -> Error {
        Error::Attach {
            action,
            program: program_of(pin),
            target: self.name.clone(),
            source,
        }
    }
}

fn program_of(pin: &Path) -> String {
    pin.file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// An open pinned link.
pub(crate) struct PinnedLink {
    fd: OwnedFd,
    pin: PathBuf,
}

impl PinnedLink {
    pub(crate) fn open(pin: &Path) -> Result<Option<Self>, Error> {
        match bpf::open_pinned(pin) {
            Ok(fd) => Ok(Some(Self {
                fd,
                pin: pin.to_owned(),
            })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(pin_error("open", pin, source)),
        }
    }

    /// What the link is attached to: the cgroup's id, the namespace's inode, the device's index; 0 if that is gone.
    pub(crate) fn target(&self, attach_type: AttachType) -> Result<u64, Error> {
        let info: LinkInfo = bpf::info(self.fd.as_fd()).map_err(|source| Error::Query {
            object: self.pin.display().to_string(),
            source,
        })?;
        Ok(match attach_type {
            AttachType::SkLookup | AttachType::TcxEgress => info.target().into(),
            _ => info.cgroup(),
        })
    }

    /// Puts another program in the place of the one that is attached.
    pub(crate) fn replace(&self, program: BorrowedFd<'_>) -> Result<(), Error> {
        bpf::update_link(self.fd.as_fd(), program).map_err(|source| Error::Attach {
            action: "replace",
            program: program_of(&self.pin),
            target: self.pin.display().to_string(),
            source,
        })
    }

    /// Detaches the program, whoever else holds the link, and removes the pin.
    pub(crate) fn remove(self) -> Result<(), Error> {
        // Where the cgroup, namespace or device is gone there is nothing to detach, and that is no error. What is attached to a function goes with its
        // last descriptor, and with its pin.
        match bpf::detach_link(self.fd.as_fd()) {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
            detached => detached.map_err(|source| pin_error("detach", &self.pin, source))?,
        }
        bpffs::remove(&self.pin).map(drop)
    }
}

/// Whether a program is attached at `place` by the link pinned at `pin`.
pub(crate) fn is_attached(pin: &Path, place: &Place<'_>) -> Result<bool, Error> {
    match PinnedLink::open(pin)? {
        Some(link) => Ok(link.target(place.attach_type)? == place.id),
        None => Ok(false),
    }
}

/// Makes `program` the one that is attached at `place` by the link pinned at `pin`, whatever is pinned there now.
pub(crate) fn attach(program: BorrowedFd<'_>, place: &Place<'_>, pin: &Path) -> Result<(), Error> {
    let old = PinnedLink::open(pin)?;
    if let Some(link) = &old
        && link.target(place.attach_type)? == place.id
    {
        return link.replace(program);
    }
    let link = create(program, place).map_err(|source| place.error("attach", pin, source))?;
    take_over(pin, link.as_fd())?;
    // Only now what was attached elsewhere goes; its pin has been taken over.
    if let Some(link) = old {
        let _ = bpf::detach_link(link.fd.as_fd());
    }
    Ok(())
}

/// Attaches a program to the entry of a kernel function, in the place of the one that is pinned at `pin`: that one goes with its pin.
pub(crate) fn attach_to_function(program: BorrowedFd<'_>, function: &str, pin: &Path) -> Result<(), Error> {
    // The function is the program's own; there is no other target.
    let link = bpf::create_link(program, Target::Device(0), AttachType::TraceFentry, 0);
    let link = link.map_err(|source| Error::Attach {
        action: "attach",
        program: program_of(pin),
        target: format!("kernel function {function}"),
        source,
    })?;
    take_over(pin, link.as_fd())
}

/// Pins a link where another may be pinned.
fn take_over(pin: &Path, link: BorrowedFd<'_>) -> Result<(), Error> {
    // No dots: bpffs keeps such names to itself.
    let fresh = pin.with_file_name(format!("{}-new", program_of(pin)));
    bpffs::remove(&fresh)?;
    bpf::pin(link, &fresh).map_err(|source| pin_error("pin", &fresh, source))?;
    std::fs::rename(&fresh, pin).map_err(|source| pin_error("rename", &fresh, source))
}

/// Asks to run before others at the same cgroup or device: a foreign program that rewrites connects would have us see its backend
/// instead of the service. Kernels before 6.17 know no order among the links of a cgroup and refuse to be asked.
fn create(program: BorrowedFd<'_>, place: &Place<'_>) -> io::Result<OwnedFd> {
    let in_front = || bpf::create_link(program, place.target, place.attach_type, bpf::BEFORE);
    let anyhow = || bpf::create_link(program, place.target, place.attach_type, 0);
    if place.attach_type == AttachType::SkLookup {
        return anyhow();
    }
    match in_front() {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => anyhow(),
        result => result,
    }
}

/// Removes the link pinned at `pin`; false if there was none.
pub(crate) fn remove(pin: &Path) -> Result<bool, Error> {
    match PinnedLink::open(pin)? {
        Some(link) => link.remove().map(|()| true),
        None => Ok(false),
    }
}
