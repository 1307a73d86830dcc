//! A cluster's limit on connections, which holds for the whole node.
//!
//! Who finds it reached has the connection that has been idle longest closed, of whichever core it is, and waits until a connection is gone. Pools are cores' own,
//! so one that becomes idle elsewhere while somebody waits is closed too: a connection that a core keeps for later must not hold up what another core has now.
//! Who waits stands in one line with those of other cores, and whoever comes while there is one goes to its end, be there room or not:
//! else a core that asks more often would have all of it.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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
    line: Mutex<VecDeque<Arc<Notify>>>,
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

    fn line(&self) -> MutexGuard<'_, VecDeque<Arc<Notify>>> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Goes to the end of the line.
    fn join(&self) -> Waiting<'_> {
        let called = Arc::new(Notify::new());
        let mut line = self.line();
        line.push_back(called.clone());
        // Whoever gives one back from now on sees that somebody waits.
        self.waiting.store(line.len(), Ordering::SeqCst);
        Waiting { queue: self, called }
    }

    /// Has whoever waits longest look.
    fn call(&self) {
        if let Some(first) = self.line().front() {
            first.notify_one();
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        drop(self.held.take());
        if self.is_wanted() {
            self.queue.call();
        }
    }
}

/// Somebody who waits, until it is dropped.
struct Waiting<'q> {
    queue: &'q Queue,
    called: Arc<Notify>,
}

impl Waiting<'_> {
    fn is_first(&self) -> bool {
        (self.queue.line().front()).is_some_and(|first| Arc::ptr_eq(first, &self.called))
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut line = self.queue.line();
        match line.front().is_some_and(|first| Arc::ptr_eq(first, &self.called)) {
            true => drop(line.pop_front()),
            false => line.retain(|other| !Arc::ptr_eq(other, &self.called)),
        }
        self.queue.waiting.store(line.len(), Ordering::SeqCst);
        drop(line);
        // There may be room for the next, too, or what this one was called for and did not take.
        self.queue.call();
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

/// Room for one more connection, if there is some now and nobody waits for it.
pub fn take(node: &Node, cluster: &Cluster) -> Option<Slot> {
    let queue = node.http.queues.of(&cluster.settings.name);
    match queue.is_waited_in() {
        true => None,
        false => take_of(cluster, &queue),
    }
}

/// Room for one more connection, as soon as there is some.
pub async fn slot(node: &Node, cluster: &Cluster) -> Slot {
    let queue = node.http.queues.of(&cluster.settings.name);
    let waiting = queue.join();
    loop {
        // A call that comes from now on is kept until it is waited for.
        if !waiting.is_first() {
            waiting.called.notified().await;
            continue;
        }
        if let Some(slot) = take_of(cluster, &queue) {
            return slot;
        }
        node.http.end_longest_idle(&cluster.settings.name);
        // One that became idle just before we waited was kept for later, and nobody is told of it.
        let _ = tokio::time::timeout(LOOK, waiting.called.notified()).await;
    }
}
