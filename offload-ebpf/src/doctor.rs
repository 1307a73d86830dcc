//! What else is attached where the capture is, and what the kernel can do: for `underpass doctor`.
//!
//! Programs at a cgroup run before those at its ancestors; at one cgroup they run in the order of attachment, unless one asked to
//! be in front (`BPF_F_BEFORE`, Linux 6.17). A foreign program that rewrites connects and runs before ours, such as a load balancer
//! for services, has us see its choice instead of the service that was asked for.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use crate::bpf::{self, AttachType, EFFECTIVE, LinkInfo};
use crate::bpffs::Pins;
use crate::cgroup;
use crate::error::Error;
use crate::guard;
use crate::object::{CGROUP_PROGRAMS, Programs};

/// A program of somebody else's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Foreign {
    /// Where it is attached, such as `connect4`.
    pub hook: &'static str,
    /// Its name, at most 15 characters; may be empty.
    pub name: String,
    /// Its id, as bpftool shows it.
    pub id: u32,
    /// Whether it is attached to this cgroup itself, rather than to one above.
    pub direct: bool,
    /// Whether it runs before ours: what it rewrites, we see rewritten. `None` when ours does not run there.
    pub before_ours: Option<bool>,
}

/// What was tried on this kernel.
#[derive(Clone, Debug)]
pub struct Trial {
    /// What.
    pub name: &'static str,
    /// Why not, if it failed.
    pub failure: Option<String>,
    /// Whether the capture works without it.
    pub optional: bool,
}

/// The programs of others that run for the members of a cgroup: of the pods' cgroup, or of one of the cgroups below it.
///
/// # Errors
/// When the cgroup cannot be opened or the kernel does not answer.
pub fn foreign_programs(cgroup: &Path, pin_dir: &Path) -> Result<Vec<Foreign>, Error> {
    let directory = cgroup::open(cgroup)?;
    let mut foreign = Vec::new();
    for (program, attach_type) in CGROUP_PROGRAMS {
        let ours = pinned_program(&Pins::new(pin_dir).link(program));
        let ask = |flags| {
            bpf::query(directory.as_fd(), attach_type, flags).map_err(|source| Error::Query {
                object: format!("the programs of cgroup {}", cgroup.display()),
                source,
            })
        };
        let (effective, direct) = (ask(EFFECTIVE)?, ask(0)?);
        let own_place = effective.iter().position(|id| Some(*id) == ours);
        for (place, id) in effective.into_iter().enumerate().filter(|(_, id)| Some(*id) != ours) {
            foreign.push(Foreign {
                hook: hook(attach_type),
                name: name(id),
                id,
                direct: direct.contains(&id),
                before_ours: own_place.map(|own| place < own),
            });
        }
    }
    Ok(foreign)
}

/// The programs of others that choose sockets in a pod's network namespace. If one chooses and ours refuses, it has its way.
///
/// # Errors
/// When the kernel does not answer.
pub fn foreign_lookups(netns: BorrowedFd<'_>, cookie: u64, pin_dir: &Path) -> Result<Vec<Foreign>, Error> {
    let ours = pinned_program(&Pins::new(pin_dir).pod(cookie).join("inbound"));
    let programs = bpf::query(netns, AttachType::SkLookup, 0).map_err(|source| Error::Query {
        object: format!("the sk_lookup programs of pod {cookie}"),
        source,
    })?;
    let own_place = programs.iter().position(|id| Some(*id) == ours);
    let foreign = programs.into_iter().enumerate().filter(|(_, id)| Some(*id) != ours);
    Ok(foreign
        .map(|(place, id)| Foreign {
            hook: hook(AttachType::SkLookup),
            name: name(id),
            id,
            direct: true,
            before_ours: own_place.map(|own| place < own),
        })
        .collect())
}

/// Loads each program and attaches none.
///
/// # Errors
/// When not even the maps can be made.
pub fn trials() -> Result<Vec<Trial>, Error> {
    let mut object = Programs::new(None).of_node()?;
    let programs = CGROUP_PROGRAMS.iter().map(|(name, _)| (*name, false));
    let mut trials: Vec<Trial> = programs
        .chain([("inbound", false), ("guard", true)])
        .chain(["gate", "through", "join", "measure", "splices"].map(|name| (name, true)))
        .map(|(name, optional)| Trial {
            name,
            failure: object.program(name).err().map(|error| error.to_string()),
            optional,
        })
        .collect();
    let no_tcx = "the kernel has no tcx (Linux 6.6): what a pod sends past connect(2) is not stopped";
    trials.push(Trial {
        name: "tcx",
        failure: (!guard::is_possible()).then(|| no_tcx.to_owned()),
        optional: true,
    });
    Ok(trials)
}

fn pinned_program(pin: &Path) -> Option<u32> {
    let link = bpf::open_pinned(pin).ok()?;
    bpf::info::<LinkInfo>(link.as_fd()).ok().map(|info| info.program)
}

/// The program may have gone since its id was listed.
fn name(id: u32) -> String {
    let name = bpf::program_info(id).map(|info| info.name).unwrap_or_default();
    String::from_utf8_lossy(name.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}

fn hook(attach_type: AttachType) -> &'static str {
    match attach_type {
        AttachType::SockOps => "sock_ops",
        AttachType::Connect4 => "connect4",
        AttachType::Connect6 => "connect6",
        AttachType::SetSockOpt => "setsockopt",
        AttachType::GetPeerName4 => "getpeername4",
        AttachType::GetPeerName6 => "getpeername6",
        AttachType::TraceFentry => "fentry",
        AttachType::SkLookup => "sk_lookup",
        AttachType::TcxEgress => "tcx_egress",
    }
}
