//! What can go wrong with the kernel side, told to the operator: what failed, on what, and what to do.

use std::io;
use std::path::PathBuf;

/// Why something could not be done in the kernel.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no unified cgroup hierarchy.
    #[error("no cgroup2 file system in /proc/mounts; mount one: mount -t cgroup2 none /sys/fs/cgroup")]
    NoCgroup2,
    /// A cgroup cannot be opened.
    #[error("cgroup {path}: {source}; check that it exists and lies in the cgroup2 file system")]
    Cgroup {
        /// The cgroup's directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// This process is not under the cgroup to which the programs would be attached.
    #[error(
        "this process is in cgroup {own}, outside {attach}: programs attached there would not see the listeners that it makes; \
         start it under {attach}, or attach higher up (--cgroup)"
    )]
    OutsideCgroup {
        /// Where this process is.
        own: PathBuf,
        /// Where the programs are to be attached.
        attach: PathBuf,
    },
    /// The directory for pins is not in a bpffs, and cannot be made one.
    #[error("{path} is not in a bpf file system ({source}); mount one: mount -t bpf bpf /sys/fs/bpf")]
    NoBpffs {
        /// The directory for pins.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file or directory in bpffs.
    #[error("cannot {action} {path}: {source}; the agent needs CAP_BPF and write access to the directory")]
    Pin {
        /// What was tried.
        action: &'static str,
        /// The pin.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The object could not be read, or its maps not be made.
    #[error(
        "cannot load the eBPF object: {source}; the agent needs CAP_BPF and CAP_NET_ADMIN, and a kernel of at least 5.19"
    )]
    Object {
        /// Why.
        source: Box<aya::EbpfError>,
    },
    /// A program was refused by the kernel.
    #[error("cannot load the eBPF program {program}: {source}; `underpass doctor` says what this kernel lacks")]
    Program {
        /// The program.
        program: String,
        /// Why, with the verifier's words.
        source: Box<aya::programs::ProgramError>,
    },
    /// A program could not be attached, or replaced.
    #[error(
        "cannot {action} the eBPF program {program} at {target}: {source}; `underpass doctor` shows what else is attached there"
    )]
    Attach {
        /// What was tried.
        action: &'static str,
        /// The program.
        program: String,
        /// The cgroup, namespace or device.
        target: String,
        /// Why.
        source: io::Error,
    },
    /// A map that an agent of another version left has another layout.
    #[error(
        "the pinned map {map} is of a version that this agent cannot adopt ({found}, needed: {needed}); \
         run `underpass detach` and enrol the pods again"
    )]
    Incompatible {
        /// The map.
        map: String,
        /// What is pinned.
        found: String,
        /// What this version needs.
        needed: String,
    },
    /// An operation on a map failed.
    #[error("cannot {action} the eBPF map {map}: {source}{}", map_remedy(.source))]
    Map {
        /// What was tried.
        action: &'static str,
        /// The map.
        map: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The slot belongs to another pod.
    #[error("pod {cookie} cannot have slot {slot}: pod {owner} has it; withdraw that pod first")]
    SlotTaken {
        /// The pod that was to be enrolled.
        cookie: u64,
        /// The slot.
        slot: u32,
        /// The pod that has the slot.
        owner: u64,
    },
    /// There is no such slot.
    #[error(
        "pod {cookie} cannot have slot {slot}: a node has {} of them",
        underpass_ebpf_abi::MAX_PODS
    )]
    NoSuchSlot {
        /// The pod that was to be enrolled.
        cookie: u64,
        /// The slot.
        slot: u32,
    },
    /// The pod is not enrolled.
    #[error("pod {cookie} is not enrolled")]
    UnknownPod {
        /// The pod.
        cookie: u64,
    },
    /// The network namespace could not be entered or looked into.
    #[error("network namespace of {pod}: {source}; the agent needs CAP_SYS_ADMIN, and the namespace must still exist")]
    Namespace {
        /// The pod, by where its programs are pinned.
        pod: String,
        /// Why.
        source: io::Error,
    },
    /// The kernel tier cannot work here; flows are relayed.
    #[error("the kernel tier is off: {reason}; `underpass doctor` shows what was tried")]
    TierOff {
        /// Why.
        reason: String,
    },
    /// The kernel does not answer a query.
    #[error("cannot ask the kernel about {object}: {source}")]
    Query {
        /// What about.
        object: String,
        /// Why.
        source: io::Error,
    },
}

fn map_remedy(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::E2BIG | libc::ENOSPC) => "; it is full: fewer pods, or fewer addresses, fit on this node",
        Some(libc::EPERM | libc::EACCES) => "; the agent needs CAP_BPF and CAP_NET_ADMIN",
        _ => "",
    }
}
