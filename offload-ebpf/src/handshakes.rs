//! The unprivileged side: what the proxy asks and tells the kernel of single connections.
//!
//! bpf(2) on a map's descriptor needs no capability (since Linux 5.19 not even with `unprivileged_bpf_disabled`, which then
//! forbids only to create maps and programs): whoever was handed the descriptor may use it.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use underpass_ebpf_abi::{HandshakeKey, Note, ORIGINAL};

use crate::bpf::{Map, map_type};
use crate::error::Error;
use crate::table::Table;

/// The handshakes under way, and what is known of sockets.
#[derive(Debug)]
pub struct Handshakes {
    handshakes: Table<HandshakeKey, Note>,
    notes: Table<i32, Note>,
}

impl Handshakes {
    /// From the descriptors of the two maps.
    ///
    /// # Errors
    /// When a descriptor is not that of the map it should be.
    pub fn from_fds(handshakes: OwnedFd, notes: OwnedFd) -> Result<Self, Error> {
        Ok(Self {
            handshakes: Table::new(checked(handshakes, "HANDSHAKES", map_type::HASH)?),
            notes: Table::new(checked(notes, "NOTES", map_type::SK_STORAGE)?),
        })
    }

    /// Announces a connection that is about to be made: its listening side will treat it as `note` says. Before connect(2), and with the
    /// source port bound.
    ///
    /// # Errors
    /// `ENOSPC`/`E2BIG` when there is no room for another handshake.
    pub fn expect(&self, key: HandshakeKey, note: Note) -> io::Result<()> {
        self.handshakes.set(&key, &note)
    }

    /// Has the kernel announce the connection that `socket` is about to make: its listening side will treat it as `note` says. No port need be
    /// bound, and nothing need be withdrawn: the announcement is made when the source port is known, before the SYN leaves, and lasts as long as
    /// the handshake or the attempt.
    ///
    /// # Errors
    /// When `socket` is no socket, or there is no memory for the note.
    pub fn announce(&self, socket: BorrowedFd<'_>, note: Note) -> io::Result<()> {
        self.notes.set(&socket.as_raw_fd(), &note)
    }

    /// Withdraws an announcement: the connection was not made. One that was made has used it up.
    pub fn forget(&self, key: &HandshakeKey) {
        // The only error is that it is not there.
        let _ = self.handshakes.remove(key);
    }

    /// Where a captured connection was going, asked of the accepted socket; `None` if it was not captured.
    ///
    /// # Errors
    /// When `socket` is no socket.
    pub fn original(&self, socket: BorrowedFd<'_>) -> io::Result<Option<SocketAddr>> {
        let note = self.notes.get(&socket.as_raw_fd())?;
        Ok(note
            .filter(|note| note.kind == ORIGINAL)
            .map(|note| note.socket_address()))
    }

    /// Both descriptors, to hand on.
    pub fn fds(&self) -> [BorrowedFd<'_>; 2] {
        [self.handshakes.as_fd(), self.notes.as_fd()]
    }
}

fn checked(fd: OwnedFd, name: &'static str, kind: u32) -> Result<Map, Error> {
    let map = Map::new(fd).map_err(|source| Error::Map {
        action: "use",
        map: name,
        source,
    })?;
    if map.info().kind == kind {
        return Ok(map);
    }
    Err(Error::Incompatible {
        map: name.to_owned(),
        found: format!("map type {}", map.info().kind),
        needed: format!("map type {kind}"),
    })
}

/// The cookie of the network namespace that a socket belongs to: names the namespace for as long as the machine runs.
///
/// # Errors
/// When `socket` is no socket, or the kernel is older than 5.14.
pub fn netns_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    crate::socket::netns_cookie(socket)
}
