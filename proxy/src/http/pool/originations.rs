//! TLS to clusters' endpoints, as it was made ready when their configuration was applied.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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

/// Those of all clusters. Looked up for a new connection, not for a request.
#[derive(Debug, Default)]
pub struct Originations(Mutex<Vec<(Arc<Transport>, Arc<Origination>)>>);

impl Originations {
    fn known(&self) -> MutexGuard<'_, Vec<(Arc<Transport>, Arc<Origination>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

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
        let is_needed = |transport: &Arc<Transport>| {
            let mut clusters = http.clusters.values();
            clusters.any(|cluster| Arc::ptr_eq(&cluster.settings.transport, transport))
        };
        self.known().retain(|(transport, _)| is_needed(transport));
    }

    /// That of a transport; none if it is in the clear. It reads files if it was not made ready.
    ///
    /// # Errors
    /// When a file can't be used.
    pub fn of(&self, transport: &Arc<Transport>) -> Result<Option<Arc<Origination>>, OriginationError> {
        let Some(tls) = &transport.tls else { return Ok(None) };
        if let Some((_, found)) = self.known().iter().find(|(known, _)| Arc::ptr_eq(known, transport)) {
            return Ok(Some(found.clone()));
        }
        let opened = Arc::new(Origination::open(tls)?);
        self.known().push((transport.clone(), opened.clone()));
        Ok(Some(opened))
    }
}
