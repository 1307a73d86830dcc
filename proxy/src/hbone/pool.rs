//! Connections to other nodes' pods, shared by all cores of this node.
//!
//! A connection belongs to a [`Key`]: as whom it was opened, from which pod's address, to where, and who was expected there. Nothing that a handshake has
//! proved for one key serves another.
//!
//! * *Spread.* A stream goes on the connection that carries the fewest; of those that carry about as many, on one that is driven by the
//!   caller's own core. When each carries several, another is opened beside them, up to a few: streams of one connection share its window, its
//!   core's cryptography, and each lost packet.
//! * *Never full.* A new connection is opened before a stream would have to wait for another's end.
//! * *Single-flight.* However many streams want the first connection to a destination, one is opened, and all are told how that went.
//! * *Retired.* One that has had no streams for a while, or whose certificates, ours or the peer's, no longer stand, is given no more.
//! * *Tried again.* A stream that the peer did not look at (GOAWAY, REFUSED_STREAM, a connection that had been idle and was broken) goes on another connection: not a byte
//!   of it had been sent.
//!
//! A connection is driven by the core that wanted it first. Its streams may be used on any.

mod connection;
mod dial;
mod group;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::{Request, StatusCode};
use underpass_config::Identity;

pub use connection::Standing;
pub use dial::{Dial, DialError, Origin};

use super::tunnel::Tunnel;
use group::Group;

/// Connections that are opened for one stream.
const DIALS: usize = 2;

/// Connections that a stream is tried on.
const ATTEMPTS: usize = 3;

/// What a connection is good for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// The network namespace that it leaves from; `None`: the proxy's own.
    pub pod: Option<u64>,
    /// Who opens it.
    pub client: Identity,
    /// Where it leads to.
    pub gateway: SocketAddr,
    /// Who may be there.
    pub expected: Arc<[Identity]>,
}

/// The connections of one node.
#[derive(Debug, Default)]
pub struct Pool {
    groups: Mutex<HashMap<Key, Arc<Group>>>,
}

/// Why no tunnel was opened.
#[derive(Clone, Debug, thiserror::Error)]
pub enum OpenError {
    /// There is no connection.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The peer refused.
    #[error("the destination's proxy answered {0}")]
    Refused(StatusCode),
    /// The connection broke.
    #[error("the connection to the destination's proxy broke: {0}")]
    Broken(String),
}

impl Pool {
    /// Opens a tunnel for `request` on a connection as `dial` would make it.
    ///
    /// # Errors
    /// When there is no such connection to be had, or the peer does not want the tunnel.
    pub async fn open(self: &Arc<Self>, dial: &Dial, request: &Request<()>) -> Result<Tunnel, OpenError> {
        let mut last = None;
        for _ in 0..ATTEMPTS {
            let group = self.group(&dial.key);
            let place = group.place(self, dial).await?;
            match place.request(request.clone()).await {
                Ok(tunnel) => return Ok(tunnel),
                Err(connection::RequestError::Unseen(error)) => last = Some(error),
                Err(connection::RequestError::Refused(status)) => return Err(OpenError::Refused(status)),
                Err(connection::RequestError::Broken(error)) => return Err(OpenError::Broken(error)),
            }
        }
        Err(OpenError::Broken(last.unwrap_or_default()))
    }

    /// Each key with the number of streams on each of its connections.
    pub fn connections(&self) -> Vec<(Key, Vec<usize>)> {
        let groups = self.lock();
        let all = groups.iter().map(|(key, group)| (key.clone(), group.streams()));
        all.filter(|(_, streams)| !streams.is_empty()).collect()
    }

    fn group(&self, key: &Key) -> Arc<Group> {
        self.lock().entry(key.clone()).or_default().clone()
    }

    /// Forgets a group that has nothing in it.
    fn forget(&self, key: &Key) {
        if let Entry::Occupied(entry) = self.lock().entry(key.clone())
            && entry.get().is_empty()
        {
            entry.remove();
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Arc<Group>>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
