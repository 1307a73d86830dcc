//! Updates put in force, one after the other; and what becomes of one with which that fails.
//!
//! Nothing that istiod says should make the proxy panic, and if it does nothing of that update is in force: it was applied to a copy. But istiod will not
//! say it again, for it was told that it came. So the update is taken apart: what can be put in force is (a policy that denies must not wait for a
//! broken workload beside it), and **what is broken waits**, as it was before, and is tried again with the next update. A change of a resource that
//! waits takes the place of the older one.
//!
//! The first update is the whole mesh, and nothing goes without it: part of a mesh may be without the policies that deny. Nobody is served then.

use std::any::Any;
use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::runtime::Handle;
use underpass_config::{Config, Mesh, MeshChange, ResourceKey, Touched};
use underpass_xds_client::waypoint::Told as Served;
use underpass_xds_client::{StatusReader, Update};

use super::serving;
use super::standing::Told;
use crate::node::Node;

/// How changes become part of a mesh; tests have their own way.
type Apply = fn(&mut Mesh, &mut dyn Iterator<Item = MeshChange>) -> Touched;

/// The consumer of istiod's updates.
pub(super) struct Applying {
    node: Arc<Node>,
    /// What they tell of.
    told: Told,
    apply: Apply,
    mesh: MeshState,
    /// Changes of rejected updates, each resource once, in order.
    waiting: Vec<MeshChange>,
    /// What the waypoint serves.
    served: Served,
}

/// The whole mesh, which comes with the first update.
enum MeshState {
    Awaited,
    InForce,
    /// It came, and could not be put in force.
    Lost,
}

impl Applying {
    pub(super) fn new(node: Arc<Node>, told: Told) -> Self {
        Self {
            node,
            told,
            apply: |mesh, changes| mesh.apply(changes),
            mesh: MeshState::Awaited,
            waiting: Vec::new(),
            served: Served::default(),
        }
    }

    /// Puts an update in force: the mesh first, for what a waypoint serves leads to its workloads.
    pub(super) async fn put_in_force(&mut self, update: Update) {
        let Update { changes, waypoint } = update;
        let is_first = matches!(self.mesh, MeshState::Awaited);
        self.change_mesh(changes).await;
        if let Some(served) = waypoint {
            self.serve(served).await;
        }
        if is_first && matches!(self.mesh, MeshState::InForce) {
            self.node.has_been_told(self.told);
        }
    }

    /// What can't be put in force leaves the waypoint with what it served before; the next update has all of it again.
    async fn serve(&mut self, served: Served) {
        let (node, before, control) = (self.node.clone(), self.served.clone(), Handle::current());
        let next = served.clone();
        let putting = tokio::task::spawn_blocking(move || {
            let _entered = control.enter();
            let put = catch_unwind(AssertUnwindSafe(|| serving::put_in_force(&node, &next, &before)));
            put.map_err(|panic| in_words(&*panic))
        });
        match putting.await.unwrap_or_else(|error| Err(error.to_string())) {
            Ok(()) => self.served = served,
            Err(reason) => {
                let waiting = std::mem::take(&mut self.waiting);
                self.reject(waiting, reason);
            }
        }
    }

    async fn change_mesh(&mut self, changes: Vec<MeshChange>) {
        match self.mesh {
            MeshState::Awaited => self.begin(changes).await,
            MeshState::Lost => self.reject(
                Vec::new(),
                "the whole mesh, of which this is a change, was rejected".into(),
            ),
            MeshState::InForce => self.go_on(changes).await,
        }
    }

    /// The first update is not kept for a second try: it may have 100 000 workloads.
    async fn begin(&mut self, changes: Vec<MeshChange>) {
        match self.attempt(changes).await {
            Ok(()) => {
                self.mesh = MeshState::InForce;
            }
            Err(reason) => {
                self.mesh = MeshState::Lost;
                self.reject(Vec::new(), reason);
                tracing::error!("without the whole mesh nobody is served: restart this proxy to have it again");
            }
        }
    }

    async fn go_on(&mut self, changes: Vec<MeshChange>) {
        if changes.is_empty() && self.waiting.is_empty() {
            return;
        }
        let changed: HashSet<ResourceKey> = changes.iter().map(MeshChange::key).collect();
        let mut all = std::mem::take(&mut self.waiting);
        all.retain(|change| !changed.contains(&change.key()));
        all.extend(changes);
        let Err(reason) = self.attempt(all.clone()).await else {
            return self.keep_waiting(Vec::new());
        };
        let broken = self.all_but_broken(all).await;
        match broken.iter().any(|change| changed.contains(&change.key())) {
            true => self.reject(broken, reason),
            false => self.keep_waiting(broken),
        }
    }

    /// Puts in force what can be of changes that cannot be all together, and answers what cannot be even alone.
    async fn all_but_broken(&self, changes: Vec<MeshChange>) -> Vec<MeshChange> {
        let (mut broken, mut parts) = (Vec::new(), vec![changes]);
        while let Some(mut part) = parts.pop() {
            if self.attempt(part.clone()).await.is_ok() {
                continue;
            }
            if part.len() > 1 {
                let second = part.split_off(part.len() / 2);
                // In order: the first half is next.
                parts.extend([second, part]);
            } else {
                broken.append(&mut part);
            }
        }
        broken
    }

    fn status(&self) -> Option<&StatusReader> {
        self.node.istiod.as_ref()?.reader(self.told)
    }

    fn keep_waiting(&mut self, waiting: Vec<MeshChange>) {
        if let Some(istiod) = self.status() {
            istiod.changes_wait(waiting.len());
        }
        self.waiting = waiting;
    }

    fn reject(&mut self, waiting: Vec<MeshChange>, reason: String) {
        tracing::error!(
            reason,
            changes = waiting.len(),
            "an update of istiod is rejected, and what was in force stays"
        );
        self.node.telemetry.count_config_update(false);
        if let Some(istiod) = self.status() {
            istiod.update_was_rejected(waiting.len(), reason);
        }
        self.waiting = waiting;
    }

    /// Puts changes in force, all or none, on a thread where that holds nothing up.
    async fn attempt(&self, changes: Vec<MeshChange>) -> Result<(), String> {
        let (node, apply, control) = (self.node.clone(), self.apply, Handle::current());
        let publishing = tokio::task::spawn_blocking(move || {
            let _entered = control.enter();
            let (count, is_in_force) = (changes.len(), AtomicBool::new(false));
            let published = catch_unwind(AssertUnwindSafe(|| publish(&node, apply, changes, &is_in_force)));
            match published {
                Ok(denied) => tracing::debug!(count, denied, "an update of istiod is in force"),
                // Open connections may not all have been asked.
                Err(_) if is_in_force.load(Ordering::Relaxed) => node.reconsider_all(),
                Err(panic) => return Err(in_words(&*panic)),
            }
            Ok(())
        });
        publishing.await.unwrap_or_else(|error| Err(error.to_string()))
    }
}

fn publish(node: &Arc<Node>, apply: Apply, changes: Vec<MeshChange>, is_in_force: &AtomicBool) -> usize {
    let change = |in_force: &Config| {
        let mut mesh = in_force.mesh.clone();
        let touched = apply(&mut mesh, &mut changes.into_iter());
        let node = in_force.node.clone();
        let http = in_force.http.clone();
        (Config { node, mesh, http }, touched)
    };
    node.publish_telling(change, is_in_force)
}

fn in_words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    format!("it panicked: {}", text.unwrap_or("without a word"))
}

#[cfg(test)]
mod tests {
    use underpass_config::{Workload, WorkloadUid};
    use underpass_xds_client::StatusReader;

    use super::*;
    use crate::flow_table::FlowTable;
    use crate::istiod::Standing;
    use crate::offload::Offload;
    use crate::telemetry::{AccessLogWriter, Telemetry};

    /// Panics at a workload with a certain name.
    fn touchy(mesh: &mut Mesh, changes: &mut dyn Iterator<Item = MeshChange>) -> Touched {
        mesh.apply(changes.inspect(|change| {
            let is_poison = |workload: &Workload| &*workload.name == "poison";
            assert!(
                !matches!(change, MeshChange::Workload(workload) if is_poison(workload)),
                "poison"
            );
        }))
    }

    fn workload(uid: &str, name: &str) -> MeshChange {
        let yaml = format!("workloads:\n- {{uid: {uid}, name: {name}, namespace: x, addresses: []}}\n");
        let mesh = Config::from_yaml(&yaml).unwrap().mesh;
        MeshChange::Workload(Workload::clone(mesh.workload(&WorkloadUid::new(uid)).unwrap()))
    }

    struct World {
        applying: Applying,
        status: StatusReader,
    }

    impl World {
        fn new() -> Self {
            let flows = Arc::new(FlowTable::new(1));
            let offload = Arc::new(Offload::default());
            let telemetry = Telemetry::new(&flows, &offload, Arc::new(AccessLogWriter::off()));
            let (config, status) = (Config::from_yaml("node: {}").unwrap(), StatusReader::default());
            let standing = Standing::of_mesh(status.clone());
            let node = Node::new(config, None, Some(standing), flows, offload, telemetry);
            let mut applying = Applying::new(node, Told::Mesh);
            applying.apply = touchy;
            Self { applying, status }
        }

        async fn take(&mut self, changes: impl Into<Vec<MeshChange>>) {
            let changes = changes.into();
            let update = Update {
                changes,
                waypoint: None,
            };
            self.applying.put_in_force(update).await;
        }

        /// The workloads in force, by uid and name.
        fn workloads(&self) -> Vec<String> {
            let snapshot = self.applying.node.snapshot();
            let workloads = snapshot.config.mesh.workloads();
            let mut all: Vec<String> = workloads.map(|w| format!("{}={}", w.uid, w.name)).collect();
            all.sort();
            all
        }

        fn waits(&self) -> usize {
            self.status.read().waiting.map_or(0, |waiting| waiting.changes)
        }
    }

    #[tokio::test]
    async fn of_an_update_that_panics_what_is_broken_waits_and_the_next_one_works() {
        let mut world = World::new();
        world.take([workload("a", "a")]).await;
        world
            .take([workload("b", "b"), workload("c", "poison"), workload("a", "a2")])
            .await;
        assert_eq!(world.workloads(), ["a=a2", "b=b"], "all of it but what is broken");
        let status = world.status.read();
        assert_eq!((status.rejected_updates, world.waits()), (1, 1));
        assert!(status.waiting.unwrap().reason.contains("poison"));
        let metrics = world.applying.node.telemetry.encode().unwrap();
        assert!(
            metrics.contains("underpass_config_updates_total{result=\"rejected\"} 1"),
            "{metrics}"
        );

        world.take([workload("d", "d")]).await;
        assert_eq!(world.workloads(), ["a=a2", "b=b", "d=d"], "the next one is in force");
        assert_eq!((world.waits(), world.status.read().rejected_updates), (1, 1));
        world.take([workload("c", "c")]).await;
        assert_eq!(world.workloads(), ["a=a2", "b=b", "c=c", "d=d"]);
        assert_eq!((world.waits(), world.status.read().rejected_updates), (0, 1));
    }

    #[tokio::test]
    async fn without_the_whole_mesh_nobody_is_served_whatever_comes_next() {
        let mut world = World::new();
        world.take([workload("a", "a"), workload("b", "poison")]).await;
        world.take([workload("c", "c")]).await;
        assert!(world.applying.node.awaits_mesh() && world.workloads().is_empty());
        assert_eq!(world.status.read().rejected_updates, 2);
    }
}
