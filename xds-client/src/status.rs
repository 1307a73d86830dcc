//! How the client stands with istiod, for `underpass status`, metrics and readiness.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use crate::resource::ResourceType;

/// Read by anyone, at any time.
#[derive(Clone, Debug, Default)]
pub struct StatusReader(Arc<Mutex<Status>>);

impl StatusReader {
    /// The state of this moment.
    pub fn read(&self) -> Status {
        self.lock().clone()
    }

    /// The consumer could not put an update in force, whose changes wait now, with those of others: `changes` in all.
    pub fn update_was_rejected(&self, changes: usize, reason: String) {
        self.change(|status| {
            status.rejected_updates += 1;
            let since = status
                .waiting
                .as_ref()
                .map_or_else(SystemTime::now, |waiting| waiting.since);
            status.waiting = Some(Waiting { changes, since, reason });
        });
    }

    /// The consumer has put an update in force; so many changes of others wait still.
    pub fn changes_wait(&self, changes: usize) {
        self.change(|status| match (changes, &mut status.waiting) {
            (0, waiting) => *waiting = None,
            (_, Some(waiting)) => waiting.changes = changes,
            (_, None) => {}
        });
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut Status)) {
        change(&mut self.lock());
    }

    fn lock(&self) -> MutexGuard<'_, Status> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The state of the client.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// Whether there is a stream, and since when.
    pub connection: Connection,
    /// Whether the first update, with resources of every type, was handed on.
    pub synced: bool,
    /// How many streams have ended.
    pub disconnects: u64,
    /// How many streams have ended or could not be had, by why.
    pub terminations: BTreeMap<Termination, u64>,
    /// By type.
    pub types: BTreeMap<ResourceType, TypeStatus>,
    /// Resources that are not in force as istiod sent them, and why: those first by name, at most
    /// [`Status::LISTED_REJECTIONS`].
    pub rejected: Vec<(ResourceType, String, String)>,
    /// How many there are in all.
    pub rejected_count: usize,
    /// Updates that were accepted from istiod and could not be put in force here.
    pub rejected_updates: u64,
    /// What of them is not in force still, if anything.
    pub waiting: Option<Waiting>,
}

/// Changes that could not be put in force. They are tried again with each update.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// How many.
    pub changes: usize,
    /// Since when there are some.
    pub since: SystemTime,
    /// Why the last update was rejected.
    pub reason: String,
}

impl Status {
    /// How many rejected resources are listed.
    pub const LISTED_REJECTIONS: usize = 100;
}

/// Whether there is a stream to istiod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Connection {
    /// Not yet.
    #[default]
    Starting,
    /// There is.
    Connected {
        /// Since when.
        since: SystemTime,
    },
    /// There is not; what was received last stays in force.
    Disconnected {
        /// Since when.
        since: SystemTime,
        /// Why.
        reason: String,
    },
}

/// Why there is no stream (any longer), in ztunnel's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Termination {
    /// istiod could not be reached.
    ConnectionError,
    /// It refused, or the stream broke.
    Error,
    /// It was closed in order.
    Complete,
}

impl Termination {
    /// The word of ztunnel's metrics.
    pub fn word(self) -> &'static str {
        match self {
            Self::ConnectionError => "ConnectionError",
            Self::Error => "Error",
            Self::Complete => "Complete",
        }
    }
}

/// How one type of resource stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TypeStatus {
    /// Resources in force.
    pub resources: usize,
    /// Responses that were acknowledged.
    pub acks: u64,
    /// Responses that were not, in whole or in part.
    pub nacks: u64,
    /// Their size on the wire, in bytes.
    pub bytes: u64,
    /// When the last response came.
    pub last_response: Option<SystemTime>,
}
