//! The connections of one key.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::connection::{Opening, Pooled, Shared, drive};
use super::{DIALS, Dial, DialError, Pool};

#[derive(Debug, Default)]
pub(super) struct Group {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    connections: Vec<Pooled>,
    /// How the dial that is under way went, once it has gone.
    dialling: Option<watch::Receiver<Option<Result<(), DialError>>>>,
}

impl State {
    /// The connection for the next stream, if one has room for it.
    fn best(&self) -> Option<&Pooled> {
        let is_open = |connection: &&Pooled| connection.has_room() && !connection.is_closing();
        self.connections
            .iter()
            .filter(is_open)
            .min_by_key(|connection| connection.rank())
    }
}

impl Group {
    /// A place for a stream, on a connection that is there or is made for it.
    pub(super) async fn place(self: &Arc<Self>, pool: &Arc<Pool>, dial: &Dial) -> Result<Opening, DialError> {
        // A peer that takes no streams on any connection must not be given one after the other.
        for _ in 0..DIALS {
            let mut outcome = match self.try_place(pool, dial) {
                Ok(opening) => return Ok(opening),
                Err(outcome) => outcome,
            };
            let outcome = match outcome.wait_for(Option::is_some).await {
                Ok(outcome) => outcome.clone(),
                // Whoever dialled is gone, with its core.
                Err(_) => return Err(DialError::Timeout(dial.key.gateway)),
            };
            if let Some(Err(error)) = outcome {
                return Err(error);
            }
        }
        let opening = self.lock().best().map(Pooled::open);
        opening.ok_or(DialError::NoRoom(dial.key.gateway))
    }

    /// A place on the best connection, or the dial to wait for. Opens another connection when there should be one more.
    fn try_place(
        self: &Arc<Self>,
        pool: &Arc<Pool>,
        dial: &Dial,
    ) -> Result<Opening, watch::Receiver<Option<Result<(), DialError>>>> {
        let mut state = self.lock();
        // One without streams that takes none is of no use, and would be kept for long.
        let is_of_use = |connection: &Pooled| connection.has_room() || connection.streams() > 0;
        state
            .connections
            .retain(|connection| !connection.is_closing() && is_of_use(connection));
        let best = state.best();
        let (spread, beside) = (dial.hbone.spread as usize, dial.hbone.connections as usize);
        let is_crowded = |best: &Pooled| best.streams() >= spread && state.connections.len() < beside;
        let wants_another = best.is_none_or(is_crowded);
        let opening = match best.map(Pooled::open) {
            Some(opening) if !wants_another => return Ok(opening),
            opening => opening,
        };
        // Whoever dialled may be gone without a word, with its core.
        state.dialling.take_if(|dialling| dialling.has_changed().is_err());
        let dialling = state.dialling.get_or_insert_with(|| self.start_dial(pool, dial));
        opening.ok_or_else(|| dialling.clone())
    }

    /// Dials, and then drives the connection, in a task of its own: it is not only for who asked first.
    fn start_dial(self: &Arc<Self>, pool: &Arc<Pool>, dial: &Dial) -> watch::Receiver<Option<Result<(), DialError>>> {
        let (tell, told) = watch::channel(None);
        let (group, pool, dial) = (self.clone(), pool.clone(), dial.clone());
        tokio::spawn(async move {
            match dial.connect().await {
                Ok(made) => {
                    let (pooled, driven) = Pooled::new(made, dial.hbone);
                    group.settle(Some(pooled));
                    tell.send_replace(Some(Ok(())));
                    drive(driven, &group, dial.origin.clone()).await;
                }
                Err(error) => {
                    group.settle(None);
                    tell.send_replace(Some(Err(error)));
                }
            }
            pool.forget(&dial.key);
        });
        told
    }

    /// The dial is over.
    fn settle(&self, made: Option<Pooled>) {
        let mut state = self.lock();
        state.dialling = None;
        state.connections.extend(made);
    }

    /// Opens no more streams on a connection if it has none; it closes then.
    pub(super) fn let_go_if_idle(&self, shared: &Arc<Shared>) -> bool {
        let mut state = self.lock();
        let before = state.connections.len();
        // Places are taken under this lock, so none is taken meanwhile.
        state
            .connections
            .retain(|connection| !connection.is(shared) || connection.streams() > 0);
        state.connections.len() < before
    }

    /// Opens no more streams on a connection.
    pub(super) fn let_go(&self, shared: &Arc<Shared>) {
        self.lock().connections.retain(|connection| !connection.is(shared));
    }

    /// The streams on each connection.
    pub(super) fn streams(&self) -> Vec<usize> {
        self.lock().connections.iter().map(Pooled::streams).collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        let state = self.lock();
        state.connections.is_empty() && state.dialling.is_none()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
