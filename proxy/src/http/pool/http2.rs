//! HTTP/2: a connection carries many requests.
//!
//! A request goes to the connection that has the fewest. When all have as many as they may, it waits in a line, and connections are opened for the line: as
//! many at once as it needs, so that one that is slow to be made holds up only those for whom there is no other. What becomes free is given to
//! whoever waits longest.
//!
//! A dial that fails is the failure of those that no other dial under way has room for, all at once: none is tried for each of them in turn.

mod connection;
mod request;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::oneshot;
use underpass_config::http::ClusterSettings;

pub use connection::{ALLOWED, FRAME, STREAM_WINDOW, Shared, open};
pub use request::{Sender, ask};

use super::Age;
use super::SERVED_WHILE_WANTED;
use super::dial::{Dial, NotConnected, Opened};
use super::http1::Carrier;
use super::slots;
use connection::SharedState;

/// Connections of one core to one endpoint.
const CONNECTIONS: usize = 16;

/// A request's place on a connection.
#[derive(Debug)]
pub struct Place {
    shared: Shared,
    group: Arc<Group>,
    /// Whether others have used the connection before.
    pub is_reused: bool,
}

impl Place {
    fn on(shared: &Shared, group: &Arc<Group>) -> Self {
        shared.0.streams.fetch_add(1, Ordering::Relaxed);
        let before = shared.0.served.fetch_add(1, Ordering::Relaxed);
        Self {
            shared: shared.clone(),
            group: group.clone(),
            is_reused: before > 0,
        }
    }

    /// The connection's own address, if it has a socket of its own.
    pub fn local(&self) -> Option<SocketAddr> {
        self.shared.0.local
    }

    /// The way to send the request.
    pub fn sender(&self) -> Sender {
        self.shared.sender()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let state = &self.shared.0;
        if state.streams.fetch_sub(1, Ordering::Relaxed) == 1 {
            state.rests();
        }
        if state.pulse.is_wanted() {
            self.group.make_way(&self.shared);
        }
        self.group.hand_on();
    }
}

/// The connections that are as good as each other, and who waits for one.
#[derive(Debug, Default)]
pub struct Group(Mutex<State>);

#[derive(Debug)]
struct State {
    born: Instant,
    connections: Vec<Shared>,
    waiting: VecDeque<Waiter>,
    dialing: usize,
    /// Streams that the endpoint allowed when it last said so.
    allowed: u32,
    /// Whether it has chosen HTTP/1.1 when it was last asked.
    has_chosen_http1: bool,
}

impl Default for State {
    fn default() -> Self {
        Self {
            born: Instant::now(),
            connections: Vec::new(),
            waiting: VecDeque::new(),
            dialing: 0,
            allowed: ALLOWED,
            has_chosen_http1: false,
        }
    }
}

/// What whoever waits is given.
#[derive(Debug)]
pub enum Given {
    /// A place on a connection.
    Http2(Place),
    /// A connection on which the endpoint has chosen to speak HTTP/1.1.
    Http1(Carrier),
    /// Nothing: the endpoint speaks HTTP/1.1, for which each has a connection of its own.
    Alone,
}

#[derive(Debug)]
struct Waiter {
    dial: Arc<Dial>,
    /// Only a connection that was made since will do.
    born_since: Option<Instant>,
    give: oneshot::Sender<Result<Given, NotConnected>>,
}

impl Group {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place on a connection that is there.
    pub fn free_place(self: &Arc<Self>, cluster: &ClusterSettings, age: Age) -> Option<Place> {
        self.free_of(&mut self.state(), cluster, born_since(age))
    }

    fn free_of(
        self: &Arc<Self>,
        state: &mut State,
        cluster: &ClusterSettings,
        born_since: Option<Instant>,
    ) -> Option<Place> {
        let shared = state.least_busy(cluster, born_since)?;
        Some(Place::on(&shared, self))
    }

    /// A place on a connection, as soon as there is one.
    ///
    /// # Errors
    /// When none can be made.
    pub async fn place(self: &Arc<Self>, dial: Dial, age: Age) -> Result<Given, NotConnected> {
        let pending;
        let given = {
            let mut state = self.state();
            let born_since = born_since(age);
            if let Some(place) = self.free_of(&mut state, &dial.cluster.settings, born_since) {
                return Ok(Given::Http2(place));
            }
            pending = dial.cluster.admit_pending().ok_or(NotConnected::Overflow)?;
            let (give, given) = oneshot::channel();
            let dial = Arc::new(dial);
            state.waiting.push_back(Waiter { dial, born_since, give });
            self.dial_as_needed(&mut state);
            given
        };
        let gone = || NotConnected::Failed("the proxy stops".into());
        let given = given.await.unwrap_or_else(|_| Err(gone()));
        drop(pending);
        given
    }

    /// How many connections it has, streams on them, and who waits for one.
    pub fn used(&self) -> (usize, usize, usize) {
        let state = self.state();
        let streams = state.connections.iter().map(|shared| shared.streams() as usize).sum();
        let waiting = state.waiting.iter().filter(|waiter| !waiter.give.is_closed());
        (state.connections.len(), streams, waiting.count())
    }

    /// Whether it has any.
    pub fn has_connections(&self) -> bool {
        !self.state().connections.is_empty()
    }

    /// Since when none of its connections has a request; nothing while one has, or somebody waits for one.
    pub fn idle_since(&self) -> Option<Instant> {
        let state = self.state();
        let is_busy = state.dialing > 0 || !state.waiting.is_empty();
        if is_busy || state.connections.iter().any(|shared| shared.streams() > 0) {
            return None;
        }
        let last = state.connections.iter().map(Shared::idle_since).max();
        // One that has none is the first to go.
        Some(last.unwrap_or(state.born))
    }

    /// Whether the endpoint has chosen HTTP/1.1 when it was last asked.
    pub fn has_chosen_http1(&self) -> bool {
        self.state().has_chosen_http1
    }

    /// Takes in a connection that was made for one request alone, which gets a place on it.
    pub fn adopt(self: &Arc<Self>, shared: Shared) -> Place {
        self.add(&mut self.state(), &shared);
        Place::on(&shared, self)
    }

    fn add(self: &Arc<Self>, state: &mut State, shared: &Shared) {
        *shared.0.group.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(self);
        state.has_chosen_http1 = false;
        state.connections.push(shared.clone());
    }

    /// The endpoint allows so many streams.
    fn allow(self: &Arc<Self>, streams: u32) {
        self.state().allowed = streams;
        self.hand_on();
    }

    /// A connection takes no more requests.
    fn let_go(self: &Arc<Self>, gone: &SharedState) {
        let is_gone = |shared: &mut Shared| std::ptr::eq(Arc::as_ptr(&shared.0), gone);
        let gone: Vec<Shared> = self.state().connections.extract_if(.., is_gone).collect();
        // What is given back takes other locks.
        drop(gone);
        self.hand_on();
    }

    /// Somebody waits for a connection of the cluster to go. This one does, when it has no work here, or has done enough.
    fn make_way(&self, shared: &Shared) {
        let mut state = self.state();
        state.waiting.retain(|waiter| !waiter.give.is_closed());
        let served = shared.0.served_others.fetch_add(1, Ordering::Relaxed);
        if state.waiting.is_empty() || served >= SERVED_WHILE_WANTED {
            shared.0.is_leaving.store(true, Ordering::Relaxed);
            state.connections.retain(|other| !Arc::ptr_eq(&other.0, &shared.0));
        }
    }

    /// Gives whoever waits what has become free, and opens connections for the others.
    fn hand_on(self: &Arc<Self>) {
        loop {
            let mut state = self.state();
            let Some((waiter, shared)) = state.next_served() else {
                return self.dial_as_needed(&mut state);
            };
            let place = Place::on(&shared, self);
            // Whoever is gone gives its place back, which is handed on: not under the lock.
            drop(state);
            drop(waiter.give.send(Ok(Given::Http2(place))));
        }
    }

    /// Opens as many connections as those who wait will fill.
    fn dial_as_needed(self: &Arc<Self>, state: &mut State) {
        state.waiting.retain(|waiter| !waiter.give.is_closed());
        let Some(first) = state.waiting.front() else { return };
        let dial = first.dial.clone();
        let each = dial.cluster.settings.connections.streams.min(state.allowed) as usize;
        while state.waiting.len() > state.dialing.saturating_mul(each)
            && state.connections.len() + state.dialing < CONNECTIONS
        {
            state.dialing += 1;
            let (dialing, dial) = (Dialing(self.clone()), dial.clone());
            tokio::spawn(async move { dialing.0.clone().dial(dial, dialing).await });
        }
    }

    async fn dial(self: Arc<Self>, dial: Arc<Dial>, dialing: Dialing) {
        // As its last connection was told: the new one is not overfilled while it waits to be.
        let slot = slots::slot(&dial.node, &dial.cluster).await;
        let allowed = {
            let mut state = self.state();
            state.waiting.retain(|waiter| !waiter.give.is_closed());
            if state.waiting.is_empty() {
                // They have found others meanwhile.
                return;
            }
            state.allowed
        };
        match dial.open(allowed, slot).await {
            Ok(Opened::Http2(shared)) => self.add(&mut self.state(), &shared),
            Ok(Opened::Http1(carrier)) => self.go_alone(carrier),
            Err(error) => self.fail(&error, &dial),
        }
        drop(dialing);
    }

    /// The endpoint does not share connections: each has to get one of its own.
    fn go_alone(&self, carrier: Carrier) {
        let (first, others) = {
            let mut state = self.state();
            state.has_chosen_http1 = true;
            (state.next_waiter(), std::mem::take(&mut state.waiting))
        };
        if let Some(first) = first {
            drop(first.give.send(Ok(Given::Http1(carrier))));
        }
        for other in others {
            drop(other.give.send(Ok(Given::Alone)));
        }
    }

    /// A connection could not be made: so it is told to those for whom no other is being made.
    fn fail(&self, error: &NotConnected, dial: &Dial) {
        let failed: Vec<Waiter> = {
            let mut state = self.state();
            state.waiting.retain(|waiter| !waiter.give.is_closed());
            let each = dial.cluster.settings.connections.streams.min(state.allowed) as usize;
            let served = (state.dialing - 1).saturating_mul(each);
            let failed = state.waiting.len().saturating_sub(served);
            state.waiting.drain(..failed).collect()
        };
        for waiter in failed {
            drop(waiter.give.send(Err(error.clone())));
        }
    }

    /// Closes what is closed, and, where `is_wanted` says that the endpoint is still one, only what has idled. False if nothing is left.
    pub fn sweep(&self, cluster: Option<&ClusterSettings>) -> bool {
        let mut state = self.state();
        state.connections.retain(|shared| {
            let is_kept = match cluster {
                Some(cluster) => shared.may_go_on(cluster) && !shared.has_idled(cluster.idle_timeout),
                None => shared.streams() > 0,
            };
            !shared.is_closed() && is_kept
        });
        !state.connections.is_empty() || state.dialing > 0 || !state.waiting.is_empty()
    }
}

/// Since when a connection has to have been made to be of this age.
fn born_since(age: Age) -> Option<Instant> {
    (age == Age::New).then(Instant::now)
}

/// A dial under way.
struct Dialing(Arc<Group>);

impl Drop for Dialing {
    fn drop(&mut self) {
        self.0.state().dialing -= 1;
        self.0.hand_on();
    }
}

impl State {
    /// The connection with the fewest streams of those that may have one more.
    fn least_busy(&mut self, cluster: &ClusterSettings, born_since: Option<Instant>) -> Option<Shared> {
        self.connections.retain(|shared| shared.may_go_on(cluster));
        // Where no other can be made, an old one has to do.
        let since = born_since.filter(|_| self.connections.len() < CONNECTIONS);
        let is_new = |shared: &&Shared| since.is_none_or(|since| shared.0.born >= since);
        let free = (self.connections.iter()).filter(|shared| is_new(shared) && shared.has_room(cluster));
        free.min_by_key(|shared| shared.streams()).cloned()
    }

    /// Who waits longest of those for whom there is a connection, and that.
    fn next_served(&mut self) -> Option<(Waiter, Shared)> {
        self.waiting.retain(|waiter| !waiter.give.is_closed());
        for index in 0..self.waiting.len() {
            let waiter = &self.waiting[index];
            let (dial, born_since) = (waiter.dial.clone(), waiter.born_since);
            if let Some(shared) = self.least_busy(&dial.cluster.settings, born_since) {
                return self.waiting.remove(index).map(|waiter| (waiter, shared));
            }
            // What nobody in particular can have, nobody can.
            born_since?;
        }
        None
    }

    fn next_waiter(&mut self) -> Option<Waiter> {
        while let Some(waiter) = self.waiting.pop_front() {
            if !waiter.give.is_closed() {
                return Some(waiter);
            }
        }
        None
    }
}
