//! Limits on open connections: for the whole node, for the client's namespace, and for the client's workload, so that one
//! tenant's flood cannot take the node's sockets from the others.
//!
//! The counters are atomics that a core resolves once for each (client, destination) it serves; the maps behind them are
//! locked only then.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use underpass_config::{Limits, Text, Workload, WorkloadUid};

use crate::hbone::limits::TunnelLimits;

/// A number of open connections.
pub type Counter = Arc<AtomicU32>;

/// All counters of one process.
#[derive(Debug, Default)]
pub struct OpenConnections {
    total: Counter,
    parked: Counter,
    tenants: Mutex<Tenants>,
    tunnels: TunnelLimits,
}

#[derive(Debug, Default)]
struct Tenants {
    namespaces: HashMap<Text, Counter>,
    workloads: HashMap<WorkloadUid, Counter>,
}

/// The counters that one client's connections count in.
#[derive(Clone, Debug)]
pub struct TenantCounters {
    namespace: Counter,
    workload: Option<Counter>,
}

/// One connection's place under its limits; dropping it gives the place back.
#[derive(Debug)]
pub struct Place(Vec<Counter>);

impl Place {
    /// One that is nowhere counted.
    pub fn none() -> Self {
        Self(Vec::new())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for counter in &self.0 {
            counter.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

fn take(counter: &Counter, limit: u32) -> Option<()> {
    let admitted = counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |open| {
        (open < limit).then_some(open + 1)
    });
    admitted.ok().map(|_| ())
}

impl OpenConnections {
    /// Connections open now, on the whole node.
    pub fn total(&self) -> u32 {
        self.total.load(Ordering::Relaxed)
    }

    /// Those of them that wait for a request without a codec (HTTP/1.1).
    pub fn parked(&self) -> u32 {
        self.parked.load(Ordering::Relaxed)
    }

    /// Counts a connection among those, until what is returned is dropped.
    pub fn park(&self) -> Place {
        self.parked.fetch_add(1, Ordering::Relaxed);
        Place(vec![self.parked.clone()])
    }

    /// The limits of HBONE connections, which carry others.
    pub fn tunnels(&self) -> &TunnelLimits {
        &self.tunnels
    }

    /// A place among all connections of the node; none when it is full.
    pub fn admit(&self, limits: &Limits) -> Option<Place> {
        take(&self.total, limits.connections)?;
        Some(Place(vec![self.total.clone()]))
    }

    /// The counters of `client`. Clients that are no workload of the mesh share one namespace without a name.
    pub fn tenant(&self, client: Option<&Workload>) -> TenantCounters {
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        let namespace = client.map_or_else(|| Text::from(""), |w| w.namespace.clone());
        TenantCounters {
            namespace: tenants.namespaces.entry(namespace).or_default().clone(),
            workload: client.map(|w| tenants.workloads.entry(w.uid.clone()).or_default().clone()),
        }
    }

    /// Forgets the counters that nothing refers to any more.
    pub fn forget_unused(&self) {
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        tenants.namespaces.retain(|_, counter| Arc::strong_count(counter) > 1);
        tenants.workloads.retain(|_, counter| Arc::strong_count(counter) > 1);
    }
}

impl TenantCounters {
    /// A place for one more connection of this client; none when its workload or namespace is at its limit.
    pub fn admit(&self, limits: &Limits) -> Option<Place> {
        take(&self.namespace, limits.connections_per_namespace)?;
        let mut place = Place(vec![self.namespace.clone()]);
        if let Some(workload) = &self.workload {
            take(workload, limits.connections_per_workload)?;
            place.0.push(workload.clone());
        }
        Some(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(total: u32, namespace: u32) -> Limits {
        Limits {
            connections: total,
            connections_per_namespace: namespace,
            connections_per_workload: 1,
            connect_attempts: 1,
            ..Limits::default()
        }
    }

    #[test]
    fn a_place_is_given_back_when_dropped() {
        let open = OpenConnections::default();
        let first = open.admit(&limits(1, 1)).unwrap();
        assert!(open.admit(&limits(1, 1)).is_none());
        drop(first);
        assert!(open.admit(&limits(1, 1)).is_some());
        assert_eq!(open.total(), 0);
    }

    #[test]
    fn a_refused_client_leaves_no_trace_in_the_counters() {
        let open = OpenConnections::default();
        let tenant = open.tenant(None);
        let kept = tenant.admit(&limits(9, 1)).unwrap();
        assert!(tenant.admit(&limits(9, 1)).is_none());
        drop(kept);
        assert!(tenant.admit(&limits(9, 1)).is_some());
    }

    #[test]
    fn counters_without_users_are_forgotten() {
        let open = OpenConnections::default();
        let place = open.tenant(None).admit(&limits(9, 9)).unwrap();
        open.forget_unused();
        assert_eq!(open.tenants.lock().unwrap().namespaces.len(), 1);
        drop(place);
        open.forget_unused();
        assert!(open.tenants.lock().unwrap().namespaces.is_empty());
    }
}
