//! The client: one delta stream to istiod at a time, for as long as somebody wants its updates.
//!
//! It owns the state that outlives a stream: what is held ([`Held`]) and what waits to be handed on ([`Assembly`]), of the mesh; and both of a waypoint
//! (`serving`). One stream's life is in `stream`. A consumer that is slow makes the client slow: the queue is bounded, and while it
//! is full nothing more is read, so that HTTP/2's flow control lets istiod know.

mod serving;
mod stream;

use std::num::NonZeroUsize;
use std::time::{Duration, SystemTime};

use tokio::sync::mpsc;
use tokio::time::Instant;
use underpass_certs::{Backoff, Istiod};
use underpass_config::MeshChange;

use crate::assembly::Assembly;
use crate::dump::{Dump, Recorder};
use crate::held::Held;
use crate::node::Node;
use crate::resource::ResourceType;
use crate::status::{Connection, Status, StatusReader};
use crate::translate::MeshFacts;
use crate::waypoint::Told;
use serving::Serving;

/// How the client behaves. The defaults suit a node of a large mesh.
#[derive(Clone, Debug)]
pub struct ClientSettings {
    /// What of the mesh is not in its resources.
    pub mesh: MeshFacts,
    /// What is asked for.
    pub wanted: Wanted,
    /// How many updates may wait for the consumer before no more are read.
    pub queued_updates: NonZeroUsize,
    /// The largest response in bytes that is accepted. All of a mesh comes in one: about 40 MB for 100 000 workloads.
    pub largest_response: usize,
    /// How long a workload waits for a policy that it refers to and that has not come yet.
    pub policy_grace: Duration,
    /// How long to wait before connecting again.
    pub backoff: Backoff,
    /// Who writes down what is sent, if somebody does.
    pub recorder: Option<Recorder>,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Workloads, services and policies.
    Mesh,
    /// What a waypoint serves, beside a client that is told of the mesh. How long a part of it waits for what belongs to it.
    Waypoint(Duration),
    /// Both.
    Both(Duration),
}

impl Wanted {
    fn has_mesh(self) -> bool {
        !matches!(self, Self::Waypoint(_))
    }

    /// The types that are subscribed to when a stream begins.
    fn types(self) -> impl Iterator<Item = ResourceType> {
        let waypoint = !matches!(self, Self::Mesh);
        let of_waypoint = ResourceType::WAYPOINT.into_iter().filter(move |_| waypoint);
        let of_mesh = ResourceType::MESH.into_iter().filter(move |_| self.has_mesh());
        of_waypoint.chain(of_mesh)
    }
}

impl Default for ClientSettings {
    fn default() -> Self {
        Self {
            mesh: MeshFacts::default(),
            wanted: Wanted::Mesh,
            queued_updates: NonZeroUsize::MIN,
            largest_response: 200 << 20,
            policy_grace: Duration::from_millis(500),
            backoff: Backoff::default(),
            recorder: None,
        }
    }
}

/// Changes that belong together: applied in one [`apply`](underpass_config::Mesh::apply), they lead from one state that
/// istiod meant to another.
#[derive(Debug)]
pub struct Update {
    /// The changes, in order.
    pub changes: Vec<MeshChange>,
    /// What a waypoint serves from now on; none: what it served before.
    pub waypoint: Option<Told>,
}

/// The updates, in order. The first holds all that is asked for: the whole mesh, policies included, and what a waypoint serves. Dropping this ends the client.
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
    /// A waypoint's half.
    serving: Option<Serving>,
    /// When it was last looked whether something can be handed on.
    looked: Instant,
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
        serving: match settings.wanted {
            Wanted::Mesh => None,
            Wanted::Waypoint(grace) | Wanted::Both(grace) => Some(Serving::new(grace)),
        },
        looked: Instant::now(),
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

    /// Hands on what `dump` has, as if istiod had sent it and then nothing more, and waits until the [`Updates`] are dropped. `from` says where it is from.
    pub async fn replay(mut self, dump: Dump, from: &str) {
        self.status.change(|status| {
            status.connection = Connection::Disconnected {
                since: SystemTime::now(),
                reason: format!("{from} is replayed"),
            };
        });
        for response in dump.responses(self.settings.wanted.types()) {
            let error = self.taken_in(&response);
            self.report(&response, error.as_deref());
        }
        while self.hand_on().await && !self.status.read().synced {
            match self.until() {
                Some(until) => tokio::time::sleep_until(until).await,
                None => break,
            }
        }
        self.updates.closed().await;
    }

    /// Hands on what is complete, waiting for room in the queue. False: nobody wants it any longer.
    async fn hand_on(&mut self) -> bool {
        self.looked = Instant::now();
        let has_mesh = !self.settings.wanted.has_mesh() || self.assembly.is_complete();
        let is_ready = self.serving.as_ref().is_none_or(Serving::is_ready);
        let first = !self.status.read().synced;
        if first && !(has_mesh && is_ready) {
            return true;
        }
        let changes = self.assembly.complete().unwrap_or_default();
        let waypoint = self.serving.as_mut().and_then(Serving::hand_on);
        if changes.is_empty() && waypoint.is_none() && !first {
            return true;
        }
        let taken = self.updates.send(Update { changes, waypoint }).await.is_ok();
        self.status.change(|status| status.synced = taken);
        taken
    }

    /// When something that waits need not wait any longer, and nobody has looked since.
    fn until(&self) -> Option<Instant> {
        let of_serving = self.serving.as_ref().and_then(Serving::until);
        let both = [self.assembly.until(), of_serving].into_iter().flatten();
        both.filter(|until| *until > self.looked).min()
    }

    fn report_held(&self) {
        let rejected = self.held.rejected();
        let of_mesh = rejected.iter();
        let of_mesh = of_mesh.map(|((kind, name), why)| (*kind, name.clone(), why.clone()));
        let of_waypoint = self.serving.as_ref().map(Serving::rejected).unwrap_or_default();
        let count = rejected.len() + of_waypoint.len();
        let listed = of_mesh.chain(of_waypoint).take(Status::LISTED_REJECTIONS).collect();
        self.status.change(|status| {
            for (kind, of_type) in &mut status.types {
                of_type.resources = match &self.serving {
                    Some(serving) if kind.is_of_waypoint() => serving.count(*kind),
                    _ => self.held.count(*kind),
                };
            }
            status.rejected = listed;
            status.rejected_count = count;
        });
    }
}
