//! What a waypoint is told, at one moment, as what it serves: tables, clusters and where connections lead.
//!
//! Built anew for each push, of what is as it was before: a cluster whose resource and endpoints are the same objects is the one that is in force, with its
//! connections, its load and what DNS has answered.

use std::collections::BTreeMap;
use std::sync::Arc;

use underpass_config::http::{Cluster, Http};
use underpass_config::waypoint::{Chain, EndpointSet, EndpointSource, ORIGINAL_WORKLOAD, Place, WaypointCluster};
use underpass_config::{Identity, Text};

use super::held::{Held, Kept, Served};
use super::refusal::Untranslated;
use super::resolution::{original_workload, resolve};

/// What is in force at istiod, for one waypoint. Cloning costs pointers.
#[derive(Clone, Debug, Default)]
pub struct Told {
    clusters: Served<WaypointCluster>,
    endpoints: Served<EndpointSet>,
    chains: Served<Chain>,
    place: Option<Arc<Place>>,
    /// Why nothing can be served, if nothing can.
    unlike: Option<Untranslated>,
}

fn are_same<T>(one: &Served<T>, other: &Served<T>) -> bool {
    let mut pairs = one.iter().zip(other);
    one.len() == other.len() && pairs.all(|((name, kept), (other, its))| name == other && Arc::ptr_eq(kept, its))
}

/// What a cluster is made of.
type Parts<'t> = (&'t Arc<Kept<WaypointCluster>>, Option<&'t Arc<Kept<EndpointSet>>>);

impl Told {
    /// All that is held.
    pub fn of(held: &Held) -> Self {
        Self {
            clusters: held.clusters.clone(),
            endpoints: held.endpoints.clone(),
            chains: held.chains.clone(),
            place: held.place.clone(),
            unlike: held.unlike.values().next().cloned(),
        }
    }

    /// Whether it is all the same objects.
    pub fn is(&self, other: &Self) -> bool {
        let place = |told: &Self| told.place.as_ref().map(Arc::as_ptr);
        are_same(&self.clusters, &other.clusters)
            && are_same(&self.endpoints, &other.endpoints)
            && are_same(&self.chains, &other.chains)
            && place(self) == place(other)
            && self.unlike == other.unlike
    }

    /// Whether there is a cluster of this name.
    pub fn has_cluster(&self, name: &str) -> bool {
        self.clusters.contains_key(name)
    }

    /// The same, as what is served by whom is `client` to endpoints. What is as `before`, which `in_force` was made of, stays what it is there.
    pub fn http(&self, client: Option<Identity>, before: &Self, in_force: &Http) -> Http {
        let mut http = Http {
            client,
            waypoint: Some(self.place()),
            ..Http::default()
        };
        for (name, kept) in &self.chains {
            let chain = kept.served.clone().map_err(|why| why.to_string().into());
            if let Ok(Chain::Http(chain)) = chain.as_deref() {
                http.tables.insert(name.clone(), chain.table.clone());
            }
            http.chains.insert(name.clone(), chain);
        }
        for name in self.clusters.keys() {
            let kept = in_force.clusters.get(name).filter(|_| self.has_as(name, before));
            if let Some(cluster) = kept.cloned().or_else(|| self.cluster(name)) {
                http.clusters.insert(name.clone(), cluster);
            }
        }
        // Where connections to a workload's own address go on.
        let original = Arc::new(Cluster::new(original_workload()));
        http.clusters.insert(ORIGINAL_WORKLOAD.into(), original);
        http.continuing(in_force)
    }

    fn place(&self) -> Arc<Place> {
        match (&self.unlike, &self.place) {
            (Some(why), _) => Arc::new(Place::Closed(why.to_string().into())),
            (None, Some(place)) => place.clone(),
            (None, None) => Arc::new(Place::Closed("istiod has told of no listener".into())),
        }
    }

    fn parts(&self, name: &Text) -> Option<Parts<'_>> {
        let cluster = self.clusters.get(name)?;
        let endpoints = match &cluster.served.as_ref().ok()?.source {
            EndpointSource::Named(set) => self.endpoints.get(set),
            EndpointSource::Here | EndpointSource::Original | EndpointSource::Dynamic(_) => None,
        };
        Some((cluster, endpoints))
    }

    /// Whether a cluster is made of what it is made of in `other`.
    fn has_as(&self, name: &Text, other: &Self) -> bool {
        let (Some((cluster, endpoints)), Some((its, its_endpoints))) = (self.parts(name), other.parts(name)) else {
            return false;
        };
        Arc::ptr_eq(cluster, its) && endpoints.map(Arc::as_ptr) == its_endpoints.map(Arc::as_ptr)
    }

    /// A cluster that is not understood is none; one whose endpoints are not has none.
    fn cluster(&self, name: &Text) -> Option<Arc<Cluster>> {
        let (cluster, endpoints) = self.parts(name)?;
        let set = endpoints.and_then(|kept| kept.served.as_deref().ok());
        let resolved = resolve(cluster.served.as_deref().ok()?, set);
        Some(Arc::new(Cluster::new(resolved.settings)))
    }
}

/// What of a waypoint's resources is not served as it was sent, by the name of what it is of.
pub(crate) fn not_served(held: &Held) -> Vec<(&'static str, Untranslated)> {
    let mut found = Vec::new();
    found.extend(held.unlike.iter().map(|((kind, _), why)| (*kind, why.clone())));
    found.extend(held.closed.iter().map(|why| (super::LISTENER, why.clone())));
    collect(super::LISTENER, &held.chains, &mut found);
    collect(super::CLUSTER, &held.clusters, &mut found);
    collect(super::ENDPOINTS, &held.endpoints, &mut found);
    found
}

fn collect<T>(
    kind: &'static str,
    served: &BTreeMap<Text, Arc<Kept<T>>>,
    found: &mut Vec<(&'static str, Untranslated)>,
) {
    for kept in served.values() {
        let closed = kept.served.as_ref().err().cloned();
        found.extend(closed.into_iter().map(|why| (kind, why)));
        let left_out = kept.left_out.iter().map(|why| Untranslated {
            why: format!("{}; it is left out, the rest is served", why.why),
            ..why.clone()
        });
        found.extend(left_out.map(|why| (kind, why)));
    }
}
