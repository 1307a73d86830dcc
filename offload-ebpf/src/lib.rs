//! The kernel side of the capture, and of the kernel tier.
//!
//! Two kinds of process use this crate. The **agent** (privileged) holds a [`Capture`]: it loads the eBPF programs,
//! attaches them to a cgroup and to the pods' network namespaces, and keeps the maps by which the programs know the
//! pods. The **proxy** (unprivileged) holds [`Handshakes`], made of two descriptors that the agent hands it: by them it
//! learns where a captured connection was going, and announces the connections that it makes to applications.
//!
//! The one idea: what enforces the mesh lives in the kernel and is pinned in bpffs, not held by a process. When the
//! agent or the proxy dies, captured pods stay captured, and are refused. A new agent adopts what it finds
//! ([`Capture::start`]), replaces programs of another version in place, and only [`Capture::detach`] and
//! [`Capture::withdraw`] remove anything.
//!
//! [`tier`] is built on it: connections that were allowed and need nothing more from the proxy go from socket to
//! socket.
//!
//! The programs are in `programs/` (a workspace of its own, for another target); what they and this crate agree on is
//! in `abi/`. The compiled object is checked in, so that building this crate needs no eBPF toolchain; `make ebpf` makes
//! it anew.

#![deny(unsafe_code)]

mod bpf;
mod bpffs;
mod capture;
mod cgroup;
pub mod doctor;
mod error;
mod guard;
mod handshakes;
mod links;
mod object;
mod pods;
mod socket;
mod table;
pub mod tier;

pub use capture::{Capture, Counters, Detached, Layout};
pub use cgroup::{cgroup_id, cgroup2_mount, mounts_of};
pub use error::Error;
pub use handshakes::{Handshakes, netns_cookie};
pub use pods::PodSpec;
pub use underpass_ebpf_abi::{Counter, HandshakeKey, Note, PodEntry, REFUSING};
