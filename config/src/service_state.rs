//! A service and its endpoints, as one value that snapshots share.
//!
//! A change makes a new [`ServiceState`], which shares all other endpoints with the one before. What clients at a
//! position may be sent to is worked out once per state and kept with it, so the cache needs no invalidation: it goes
//! with the state it was computed from.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use imbl::OrdMap;

use crate::{Endpoint, Position, Service, WorkloadUid, ranking};

/// The endpoints of one service. Ordered, so that equal meshes list them alike.
pub(crate) type Endpoints = OrdMap<WorkloadUid, Arc<Endpoint>>;

/// Positions remembered per state. A node's clients share the node's own position; more than a few come only from
/// clients on other nodes, and what does not fit is computed each time.
const REMEMBERED_POSITIONS: usize = 8;

/// A service and its endpoints at one moment.
pub struct ServiceState {
    service: Arc<Service>,
    endpoints: Endpoints,
    ranked: ArcSwapOption<Vec<Ranked>>,
}

#[derive(Clone)]
struct Ranked {
    position: Position,
    candidates: Arc<[Arc<Endpoint>]>,
}

impl ServiceState {
    pub(crate) fn new(service: Arc<Service>, endpoints: Endpoints) -> Self {
        Self {
            service,
            endpoints,
            ranked: ArcSwapOption::empty(),
        }
    }

    /// The service's declaration.
    pub fn service(&self) -> &Arc<Service> {
        &self.service
    }

    /// All its endpoints, whatever their health, ordered by uid.
    pub fn endpoints(&self) -> impl Iterator<Item = &Arc<Endpoint>> {
        self.endpoints.values()
    }

    /// The endpoints that a client at `from` may be sent to: those of the best rank only (module `ranking`), usable
    /// according to the service's health policy. Lock-free, and without allocation once a position is known.
    pub fn candidates(&self, from: &Position) -> Arc<[Arc<Endpoint>]> {
        let balancing = &self.service.load_balancing;
        let any_position = !ranking::depends_on_position(balancing);
        let ranked = self.ranked.load();
        let known = ranked.as_deref().map_or(&[][..], Vec::as_slice);
        if let Some(hit) = known.iter().find(|ranked| any_position || ranked.position == *from) {
            return hit.candidates.clone();
        }
        let candidates = ranking::best(self.endpoints.values(), balancing, from);
        if known.len() < REMEMBERED_POSITIONS {
            let fresh = Ranked {
                position: from.clone(),
                candidates: candidates.clone(),
            };
            let longer: Vec<_> = known.iter().cloned().chain([fresh]).collect();
            // If another core stored first, its entry stands and ours is computed again next time.
            self.ranked.compare_and_swap(&*ranked, Some(Arc::new(longer)));
        }
        candidates
    }

    pub(crate) fn members(&self) -> &Endpoints {
        &self.endpoints
    }

    pub(crate) fn change_members(&mut self, change: impl FnOnce(&mut Endpoints)) {
        change(&mut self.endpoints);
        self.ranked = ArcSwapOption::empty();
    }
}

/// A copy starts with nothing remembered: it is made to be changed.
impl Clone for ServiceState {
    fn clone(&self) -> Self {
        Self::new(self.service.clone(), self.endpoints.clone())
    }
}

impl std::fmt::Debug for ServiceState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServiceState")
            .field("service", &self.service)
            .field("endpoints", &self.endpoints)
            .finish()
    }
}

#[cfg(test)]
mod tests;
