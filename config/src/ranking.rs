//! Which endpoints are best for a client: Istio's load balancing by scopes, as ztunnel does it.
//!
//! The scopes of a service are compared in their order, and an endpoint's rank is how many match before the first that
//! does not. STRICT takes endpoints on which all match; FAILOVER takes those of the highest rank that any usable
//! endpoint has. Health is asked first, so an unhealthy neighbour never hides a healthy stranger.

use std::sync::Arc;

use crate::{BalanceMode, Endpoint, Health, HealthPolicy, LoadBalancing, Locality, Scope, Text, Workload};

/// Where a client is, for choosing endpoints near it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Position {
    /// Its network.
    pub network: Text,
    /// Its cluster.
    pub cluster_id: Text,
    /// Its locality.
    pub locality: Locality,
    /// Its node.
    pub node: Text,
}

impl Position {
    /// The position of a workload.
    pub fn of(workload: &Workload) -> Self {
        Self {
            network: workload.network.clone(),
            cluster_id: workload.cluster_id.clone(),
            locality: workload.locality.clone(),
            node: workload.node.clone(),
        }
    }

    fn shares(&self, scope: Scope, endpoint: &Workload) -> bool {
        match scope {
            Scope::Region => self.locality.region == endpoint.locality.region,
            Scope::Zone => self.locality.zone == endpoint.locality.zone,
            Scope::Subzone => self.locality.subzone == endpoint.locality.subzone,
            Scope::Node => self.node == endpoint.node,
            Scope::Cluster => self.cluster_id == endpoint.cluster_id,
            Scope::Network => self.network == endpoint.network,
        }
    }

    fn rank(&self, scopes: &[Scope], endpoint: &Workload) -> usize {
        scopes.iter().take_while(|&&scope| self.shares(scope, endpoint)).count()
    }
}

/// Whether the choice of endpoints depends on the client's position at all.
pub(crate) fn depends_on_position(balancing: &LoadBalancing) -> bool {
    matches!(balancing.mode, BalanceMode::Strict | BalanceMode::Failover) && !balancing.scopes.is_empty()
}

/// The endpoints of the best rank for a client at `from`, in the order given.
pub(crate) fn best<'a>(
    endpoints: impl Iterator<Item = &'a Arc<Endpoint>>,
    balancing: &LoadBalancing,
    from: &Position,
) -> Arc<[Arc<Endpoint>]> {
    let usable = endpoints
        .filter(|endpoint| balancing.health == HealthPolicy::AllowAll || endpoint.workload.health == Health::Healthy);
    let scopes = &balancing.scopes;
    match balancing.mode {
        BalanceMode::Any | BalanceMode::Passthrough => usable.cloned().collect(),
        BalanceMode::Strict => usable
            .filter(|endpoint| from.rank(scopes, &endpoint.workload) == scopes.len())
            .cloned()
            .collect(),
        BalanceMode::Failover => {
            let mut highest = 0;
            let mut chosen = Vec::new();
            for endpoint in usable {
                let rank = from.rank(scopes, &endpoint.workload);
                if rank > highest {
                    highest = rank;
                    chosen.clear();
                }
                if rank == highest {
                    chosen.push(endpoint.clone());
                }
            }
            chosen.into()
        }
    }
}
