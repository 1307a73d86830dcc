//! TLS to clusters' endpoints, as it was made ready when their configuration was applied.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arc_swap::ArcSwap;
use foldhash::quality::RandomState;
use underpass_certs::{Origination, OriginationError};
use underpass_config::http::{Http, Transport};

/// A cluster's TLS can't be made ready.
#[derive(Debug, thiserror::Error)]
#[error("http.clusters: the TLS of `{cluster}` can't be used: {why}")]
pub struct NotReady {
    /// The cluster.
    pub cluster: String,
    /// Why.
    #[source]
    pub why: OriginationError,
}

type Known = HashMap<usize, (Arc<Transport>, Arc<Origination>), RandomState>;

/// Those of all clusters, by where their transports are in memory (each is kept, so that no other comes to be there). Requests read it without a lock.
#[derive(Debug, Default)]
pub struct Originations {
    known: ArcSwap<Known>,
}

impl Originations {
    /// Makes ready what the clusters of `http` need, beside what there is. It reads files.
    ///
    /// # Errors
    /// When a file of one can't be used.
    pub fn prepare(&self, http: &Http) -> Result<(), NotReady> {
        for (name, cluster) in &http.clusters {
            self.of(&cluster.settings.transport).map_err(|why| NotReady {
                cluster: name.to_string(),
                why,
            })?;
        }
        Ok(())
    }

    /// Forgets what no cluster of `http` needs.
    pub fn keep(&self, http: &Http) {
        let clusters = http.clusters.values();
        let needed: HashSet<usize, RandomState> = clusters.map(|cluster| place(&cluster.settings.transport)).collect();
        self.known.rcu(|known| {
            let mut kept = Known::clone(known);
            kept.retain(|place, _| needed.contains(place));
            kept
        });
    }

    /// That of a transport; none if it is in the clear. It reads files if it was not made ready.
    ///
    /// # Errors
    /// When a file can't be used.
    pub fn of(&self, transport: &Arc<Transport>) -> Result<Option<Arc<Origination>>, OriginationError> {
        let Some(tls) = &transport.tls else { return Ok(None) };
        if let Some((_, found)) = self.known.load().get(&place(transport)) {
            return Ok(Some(found.clone()));
        }
        let opened = Arc::new(Origination::open(tls)?);
        self.known.rcu(|known| {
            let mut more = Known::clone(known);
            more.entry(place(transport))
                .or_insert_with(|| (transport.clone(), opened.clone()));
            more
        });
        Ok(Some(opened))
    }

    /// Which edition of its files a transport goes by; 0 in the clear, or if it is not known.
    pub fn edition_in_force(&self, transport: &Arc<Transport>) -> u64 {
        let known = self.known.load();
        known
            .get(&place(transport))
            .map_or(0, |(_, origination)| origination.edition_in_force())
    }
}

fn place(transport: &Arc<Transport>) -> usize {
    Arc::as_ptr(transport).addr()
}
