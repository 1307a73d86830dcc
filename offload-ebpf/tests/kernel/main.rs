//! The capture against the running kernel: real namespaces, cgroups, sockets and packets, with a listener in the proxy's place.
//!
//! Everything is private to a test (see `site`), so that they run side by side. The tests need root; without it they are skipped
//! aloud, and fail where `CI` is set.

#![allow(
    clippy::unwrap_used,
    reason = "tests; clippy knows only the functions marked so, not what they call"
)]

mod adoption;
mod foreign;
mod guard;
mod handshakes;
mod inbound;
mod objects;
mod outbound;
mod packets;
mod pod;
mod refusal;
mod removal;
mod site;
mod tier;
mod wait;

/// Leaves the test, having said why, when it is not run by root.
macro_rules! needs_root {
    () => {
        if !crate::site::is_root() {
            return;
        }
    };
}
pub(crate) use needs_root;
