//! The client: one delta stream to istiod at a time, for as long as somebody wants its updates.
//!
//! It owns the state that outlives a stream: what is held ([`Held`]) and what waits to be handed on ([`Assembly`]). One
//! stream's life is in `stream`. A consumer that is slow makes the client slow: the queue is bounded, and while it
//! is full nothing more is read, so that HTTP/2's flow control lets istiod know.

mod stream;

use std::num::NonZeroUsize;
use std::time::{Duration, SystemTime};

use tokio::sync::mpsc;
use underpass_certs::{Backoff, Istiod};
use underpass_config::MeshChange;

use crate::assembly::Assembly;
use crate::held::Held;
use crate::node::Node;
use crate::status::{Connection, Status, StatusReader};
use crate::translate::MeshFacts;

/// How the client behaves. The defaults suit a node of a large mesh.
#[derive(Clone, Debug)]
pub struct ClientSettings {
    /// What of the mesh is not in its resources.
    pub mesh: MeshFacts,
    /// How many updates may wait for the consumer before no more are read.
    pub queued_updates: NonZeroUsize,
    /// The largest response in bytes that is accepted. All of a mesh comes in one: about 40 MB for 100 000 workloads.
    pub largest_response: usize,
    /// How long a workload waits for a policy that it refers to and that has not come yet.
    pub policy_grace: Duration,
    /// How long to wait before connecting again.
    pub backoff: Backoff,
}

impl Default for ClientSettings {
    fn default() -> Self {
        Self {
            mesh: MeshFacts::default(),
            queued_updates: NonZeroUsize::MIN,
            largest_response: 200 << 20,
            policy_grace: Duration::from_millis(500),
            backoff: Backoff::default(),
        }
    }
}

/// Changes that belong together: applied in one [`apply`](underpass_config::Mesh::apply), they lead from one state that
/// istiod meant to another.
#[derive(Debug)]
pub struct Update {
    /// The changes, in order.
    pub changes: Vec<MeshChange>,
}

/// The updates, in order. The first holds the whole mesh, policies included. Dropping this ends the client.
#[derive(Debug)]
pub struct Updates(mpsc::Receiver<Update>);

impl Updates {
    /// Waits for the next update. `None` when the client is gone.
    pub async fn next(&mut self) -> Option<Update> {
        self.0.recv().await
    }
}

/// The client, to be [run](Client::run).
#[derive(Debug)]
pub struct Client {
    istiod: Istiod,
    node: Node,
    settings: ClientSettings,
    held: Held,
    assembly: Assembly,
    updates: mpsc::Sender<Update>,
    status: StatusReader,
}

/// A client of `istiod`, where its updates come out, and how it stands.
pub fn client(istiod: Istiod, node: Node, settings: ClientSettings) -> (Client, Updates, StatusReader) {
    let (sender, receiver) = mpsc::channel(settings.queued_updates.get());
    let status = StatusReader::default();
    let client = Client {
        istiod,
        node,
        assembly: Assembly::new(settings.policy_grace),
        settings,
        held: Held::default(),
        updates: sender,
        status: status.clone(),
    };
    (client, Updates(receiver), status)
}

impl Client {
    /// Serves until the [`Updates`] are dropped.
    pub async fn run(mut self) {
        let mut backoff = self.settings.backoff.clone();
        loop {
            let ended = self.serve_one_stream(&mut backoff).await;
            if self.updates.is_closed() {
                return;
            }
            let delay = backoff.delay();
            tracing::warn!(reason = %ended, retry_in = ?delay, "no stream to istiod; what it said last stays in force");
            self.status.change(|status| {
                if matches!(status.connection, Connection::Connected { .. }) {
                    status.disconnects += 1;
                }
                *status.terminations.entry(ended.termination()).or_default() += 1;
                status.connection = Connection::Disconnected {
                    since: SystemTime::now(),
                    reason: ended.to_string(),
                };
            });
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                () = self.updates.closed() => return,
            }
        }
    }

    /// Hands on what is complete, waiting for room in the queue. False: nobody wants it any longer.
    async fn hand_on(&mut self) -> bool {
        let Some(changes) = self.assembly.complete() else {
            return true;
        };
        let first = !self.status.read().synced;
        if changes.is_empty() && !first {
            return true;
        }
        let taken = self.updates.send(Update { changes }).await.is_ok();
        self.status.change(|status| status.synced = taken);
        taken
    }

    fn report_held(&self) {
        let rejected = self.held.rejected();
        let listed = rejected.iter().take(Status::LISTED_REJECTIONS);
        let listed = listed
            .map(|((kind, name), why)| (*kind, name.clone(), why.clone()))
            .collect();
        self.status.change(|status| {
            for (kind, of_type) in &mut status.types {
                of_type.resources = self.held.count(*kind);
            }
            status.rejected = listed;
            status.rejected_count = rejected.len();
        });
    }
}
