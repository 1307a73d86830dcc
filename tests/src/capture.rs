//! A node whose pods are captured: what the tests of the agent and of the kernel programs need beside a [`World`].
//!
//! One idea: **everything global of a capture instance is private to its test, and dies with it.** The node's processes live in
//! mounts of their own, where bpffs is a fresh one: what the agent pins is gone with the last of them. Programs are attached at a cgroup
//! of the test's own, `underpass-test-PID-N/node`, which holds `pods`, `agent`, `proxy-N`. A janitor process outlives the test, even one that is
//! killed: it then kills what is left in the cgroups and removes them.
//!
//! Capture goes by the cgroup in which a socket was made. So the sockets of a pod come from a process that runs inside it
//! ([`Inside`]) and hands them to the test; programs are started inside it too. Everything else in the harness works as in any [`Host`].

mod ability;
mod agent;
mod cgroup;
mod inside;
mod kernel;
mod node;
mod pod;

pub use ability::{can_guard, why_no_tier};
pub use agent::Agent;
pub use cgroup::{cgroup2_mount, is_bpf_usable, run_janitor};
pub(crate) use inside::Inside;
pub use inside::run_keeper;
pub use kernel::{KernelObject, Objects};
pub use node::{CaptureNode, Outcome};
pub use pod::Pod;
