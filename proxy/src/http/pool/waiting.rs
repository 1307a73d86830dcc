//! Connections without a request: how many are kept, and which are closed beyond that.
//!
//! Where clients are announced to endpoints, or each request's host is asked for by TLS, peers decide how many kinds of connections there are. So there is a bound
//! for each endpoint and one for the node, and what has waited longest goes first. When a bound is met, somewhat more than the excess goes, so that the next
//! ones need not look again.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use foldhash::quality::RandomState;
use tokio::sync::oneshot;
use underpass_config::Text;

use super::http1::{Carrier, Idle};
use super::http2::Group;
use super::{Key, Limits};

/// A core's HTTP/1.1 connections that wait.
#[derive(Debug, Default)]
pub struct Waiting {
    by_key: HashMap<Key, Vec<Idle>, RandomState>,
    count: usize,
}

impl Waiting {
    /// The one of a key that was used last.
    pub fn take(&mut self, key: &Key) -> Option<Idle> {
        let taken = self.by_key.get_mut(key)?.pop();
        self.count -= usize::from(taken.is_some());
        taken
    }

    pub fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }

    /// How many there are of each key.
    pub fn counts(&self) -> impl Iterator<Item = (&Key, usize)> {
        self.by_key.iter().map(|(key, idle)| (key, idle.len()))
    }

    /// Keeps one; gives back those that are to be closed for it.
    pub fn keep(&mut self, key: Key, idle: Idle, limits: Limits) -> Vec<Idle> {
        let of_endpoint = idle.of_endpoint();
        let endpoint = (key.cluster.clone(), key.address);
        self.by_key.entry(key).or_default().push(idle);
        self.count += 1;
        let mut ended = Vec::new();
        if of_endpoint > limits.endpoint {
            let excess = (of_endpoint - limits.endpoint + limits.endpoint / 16) as usize;
            ended = self.end_longest(excess, |key| (&key.cluster, key.address) == (&endpoint.0, endpoint.1));
        }
        if self.count > limits.share {
            let excess = self.count - limits.share + limits.share / 16;
            ended.extend(self.end_longest(excess, |_| true));
        }
        ended
    }

    /// Takes out those that have waited longest of the keys that `is_one` says.
    fn end_longest(&mut self, excess: usize, is_one: impl Fn(&Key) -> bool) -> Vec<Idle> {
        let keys = self.by_key.iter().filter(|(key, _)| is_one(key));
        let mut since: Vec<Instant> = keys.flat_map(|(_, idle)| idle.iter().map(Idle::since)).collect();
        since.sort_unstable();
        let Some(last) = since.get(excess.clamp(1, since.len().max(1)) - 1).copied() else {
            return Vec::new();
        };
        let mut ended = Vec::new();
        self.by_key.retain(|key, waiting| {
            if is_one(key) {
                ended.extend(waiting.extract_if(.., |idle| idle.since() <= last));
            }
            !waiting.is_empty()
        });
        self.count -= ended.len();
        ended
    }

    /// Since when the one of a cluster waits that has waited longest.
    pub fn longest(&self, cluster: &Text) -> Option<Instant> {
        let own = self.by_key.iter().filter(|(key, _)| key.cluster == *cluster);
        own.flat_map(|(_, idle)| idle.iter().map(Idle::since)).min()
    }

    /// Takes that out.
    pub fn end_longest_of(&mut self, cluster: &Text) -> Vec<Idle> {
        self.end_longest(1, |key| key.cluster == *cluster)
    }

    /// Takes out what is too old, and what is not `wanted`.
    pub fn sweep(&mut self, mut is_wanted: impl FnMut(&Key) -> bool) -> Vec<Idle> {
        let mut ended = Vec::new();
        self.by_key.retain(|key, waiting| {
            let is_wanted = is_wanted(key);
            ended.extend(waiting.extract_if(.., |idle| !is_wanted || !idle.is_alive()));
            !waiting.is_empty()
        });
        self.count -= ended.len();
        ended
    }
}

/// Those of a core who wait for a connection while there may be no more.
#[derive(Debug, Default)]
pub struct Handing(HashMap<Key, Line, RandomState>);

/// Those who wait for connections of one kind.
#[derive(Debug, Default)]
struct Line {
    waiting: VecDeque<oneshot::Sender<Carrier>>,
    /// Those that were still there when they were last looked through: that is done when there are twice as many, so that it costs each of them the same.
    left: usize,
}

/// Fewer are not looked through.
const FEW: usize = 16;

impl Handing {
    /// How many wait for one of each key.
    pub fn counts(&self) -> impl Iterator<Item = (&Key, usize)> {
        let still = |line: &Line| line.waiting.iter().filter(|give| !give.is_closed()).count();
        self.0.iter().map(move |(key, line)| (key, still(line)))
    }

    /// Waits for one of a key.
    pub fn wait(&mut self, key: &Key) -> oneshot::Receiver<Carrier> {
        let (give, given) = oneshot::channel();
        let line = self.0.entry(key.clone()).or_default();
        if line.waiting.len() >= FEW.max(2 * line.left) {
            line.forget_gone();
        }
        line.waiting.push_back(give);
        given
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Forgets those who have got another, or wait no more.
    pub fn sweep(&mut self) {
        self.0.retain(|_, line| {
            line.forget_gone();
            !line.waiting.is_empty()
        });
    }

    /// Gives one to whoever waits longest for one of its key; without anybody it is closed.
    pub fn hand(&mut self, key: &Key, mut carrier: Carrier) {
        let Some(line) = self.0.get_mut(key) else { return };
        carrier.hand_on();
        while let Some(next) = line.waiting.pop_front() {
            match next.send(carrier) {
                Ok(()) => break,
                Err(back) => carrier = back,
            }
        }
        if line.waiting.is_empty() {
            self.0.remove(key);
        }
    }
}

impl Line {
    fn forget_gone(&mut self) {
        self.waiting.retain(|other| !other.is_closed());
        self.left = self.waiting.len();
    }
}

/// A core's groups of HTTP/2 connections.
#[derive(Debug, Default)]
pub struct Groups {
    by_key: HashMap<Key, Arc<Group>, RandomState>,
}

impl Groups {
    /// That of a key.
    pub fn get(&self, key: &Key) -> Option<&Arc<Group>> {
        self.by_key.get(key)
    }

    /// All.
    pub fn iter(&self) -> impl Iterator<Item = (&Key, &Arc<Group>)> {
        self.by_key.iter()
    }

    /// Adds one of a key that has none. Others go for it, if there are more of its endpoint, or of all, than may be.
    pub fn insert(&mut self, key: Key, group: Arc<Group>, limits: Limits) {
        self.by_key.insert(key.clone(), group);
        self.bound(&key, limits);
    }

    /// The group of a cluster whose connections have had no request for longest, and since when.
    pub fn longest(&self, cluster: &Text) -> Option<(Instant, Key)> {
        let own = self.by_key.iter().filter(|(key, _)| key.cluster == *cluster);
        let idle = own
            .filter(|(_, group)| Arc::strong_count(group) == 1 && group.has_connections())
            .filter_map(|(key, group)| Some((group.idle_since()?, key)));
        let (since, key) = idle.min_by_key(|(since, _)| *since)?;
        Some((since, key.clone()))
    }

    pub fn remove(&mut self, key: &Key) -> Option<Arc<Group>> {
        self.by_key.remove(key)
    }

    pub fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.by_key.len()
    }

    /// Takes out those that `keep` does not want and nobody uses.
    pub fn sweep(&mut self, mut keep: impl FnMut(&Key, &Group) -> bool) {
        self.by_key
            .retain(|key, group| keep(key, group) || Arc::strong_count(group) > 1);
    }

    /// One key of each endpoint that there are several groups of.
    pub fn crowded(&self) -> Vec<Key> {
        let mut seen: HashMap<(&Text, SocketAddr), (usize, &Key), RandomState> = HashMap::default();
        for key in self.by_key.keys() {
            seen.entry((&key.cluster, key.address)).or_insert((0, key)).0 += 1;
        }
        let several = seen.into_values().filter(|(count, _)| *count > 1);
        several.map(|(_, key)| key.clone()).collect()
    }

    /// Ends groups without a request, if there are more of the endpoint of `key`, or of all, than may be.
    pub fn bound(&mut self, key: &Key, limits: Limits) {
        let is_same = |other: &Key| (&other.cluster, other.address) == (&key.cluster, key.address);
        self.end_longest(limits.endpoints_share.max(1), is_same);
        self.end_longest(limits.share.max(1), |_| true);
    }

    fn end_longest(&mut self, limit: usize, is_one: impl Fn(&Key) -> bool) {
        let count = match self.by_key.len() > limit {
            true => self.by_key.keys().filter(|key| is_one(key)).count(),
            false => return,
        };
        let Some(excess) = count.checked_sub(limit).filter(|excess| *excess > 0) else {
            return;
        };
        let keys = self.by_key.iter().filter(|(key, _)| is_one(key));
        let mut idle: Vec<(Instant, Key)> = keys
            .filter(|(_, group)| Arc::strong_count(group) == 1)
            .filter_map(|(key, group)| Some((group.idle_since()?, key.clone())))
            .collect();
        idle.sort_unstable_by_key(|(since, _)| *since);
        for (_, key) in idle.into_iter().take(excess) {
            self.by_key.remove(&key);
        }
    }
}
