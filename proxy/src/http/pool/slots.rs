//! A cluster's limit on connections, which holds for the whole node.
//!
//! Who finds it reached has the connection that has been idle longest closed, of whichever core it is, and waits until a connection is gone. Pools are cores' own,
//! so one that becomes idle elsewhere while somebody waits is closed too: a connection that a core keeps for later must not hold up what another core has now.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use foldhash::quality::RandomState;
use tokio::sync::Notify;
use underpass_config::Text;
use underpass_config::http::{Cluster, Held};

use crate::node::Node;

/// How often somebody who waits looks for one that is idle.
const LOOK: Duration = Duration::from_millis(100);

/// Who waits for connections of each cluster to go. Looked up for new connections only.
#[derive(Debug, Default)]
pub struct Queues(Mutex<HashMap<Text, Arc<Queue>, RandomState>>);

/// Those who wait for a connection of one cluster to go.
#[derive(Debug, Default)]
pub struct Queue {
    waiting: AtomicUsize,
    gone: Notify,
}

/// One connection under its cluster's limit; dropping it is its end.
#[derive(Debug)]
pub struct Slot {
    held: Option<Held>,
    queue: Arc<Queue>,
}

impl Slot {
    fn is_wanted(&self) -> bool {
        self.queue.is_waited_in()
    }

    /// Where those wait who want it.
    pub fn queue(&self) -> Arc<Queue> {
        self.queue.clone()
    }
}

impl Queue {
    /// Whether anybody waits.
    pub fn is_waited_in(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) > 0
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        drop(self.held.take());
        if self.is_wanted() {
            self.queue.gone.notify_one();
        }
    }
}

/// Somebody who waits, until it is dropped.
struct Waiting<'q>(&'q Queue);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        // What this one was told of, and did not take, may be another's.
        if self.0.waiting.fetch_sub(1, Ordering::SeqCst) > 1 {
            self.0.gone.notify_one();
        }
    }
}

impl Queues {
    fn of(&self, cluster: &Text) -> Arc<Queue> {
        let mut queues = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(queue) = queues.get(cluster) {
            return queue.clone();
        }
        // Of clusters that are gone nothing is kept.
        queues.retain(|_, queue| Arc::strong_count(queue) > 1);
        queues.entry(cluster.clone()).or_default().clone()
    }
}

fn take_of(cluster: &Cluster, queue: &Arc<Queue>) -> Option<Slot> {
    let held = cluster.admit_connection()?;
    Some(Slot {
        held: Some(held),
        queue: queue.clone(),
    })
}

/// Room for one more connection, if there is some now.
pub fn take(node: &Node, cluster: &Cluster) -> Option<Slot> {
    take_of(cluster, &node.http.queues.of(&cluster.settings.name))
}

/// Room for one more connection, as soon as there is some.
pub async fn slot(node: &Node, cluster: &Cluster) -> Slot {
    let queue = node.http.queues.of(&cluster.settings.name);
    let take = || take_of(cluster, &queue);
    queue.waiting.fetch_add(1, Ordering::SeqCst);
    let _waiting = Waiting(&queue);
    loop {
        let gone = queue.gone.notified();
        // After it is known that somebody waits: whoever gives one back from now on sees it.
        if let Some(slot) = take() {
            return slot;
        }
        node.http.end_longest_idle(&cluster.settings.name);
        // One that became idle just before we waited was kept for later, and nobody is told of it.
        let _ = tokio::time::timeout(LOOK, gone).await;
    }
}
