//! What is subscribed to.

use std::fmt;

use crate::waypoint;

/// A type of resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ResourceType {
    /// Workloads and services (WDS).
    Address,
    /// L4 authorization policies.
    Authorization,
    /// Clusters of a waypoint (CDS).
    Cluster,
    /// Their endpoints (EDS).
    Endpoints,
    /// Listeners of a waypoint, with all that they serve (LDS).
    Listener,
}

impl ResourceType {
    /// Those that tell of the mesh.
    pub const MESH: [Self; 2] = [Self::Address, Self::Authorization];
    /// Those that tell a waypoint what it serves, in the order in which istiod pushes them.
    pub const WAYPOINT: [Self; 3] = [Self::Cluster, Self::Endpoints, Self::Listener];
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Address,
        Self::Authorization,
        Self::Cluster,
        Self::Endpoints,
        Self::Listener,
    ];

    /// As the wire says it.
    pub const fn url(self) -> &'static str {
        match self {
            Self::Address => "type.googleapis.com/istio.workload.Address",
            Self::Authorization => "type.googleapis.com/istio.security.Authorization",
            Self::Cluster => waypoint::CLUSTER,
            Self::Endpoints => waypoint::ENDPOINTS,
            Self::Listener => waypoint::LISTENER,
        }
    }

    pub(crate) fn of_url(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.url() == url)
    }

    /// Whether it tells a waypoint what it serves.
    pub fn is_of_waypoint(self) -> bool {
        Self::WAYPOINT.contains(&self)
    }
}

impl fmt::Display for ResourceType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Address => "Address",
            Self::Authorization => "Authorization",
            Self::Cluster => "Cluster",
            Self::Endpoints => "ClusterLoadAssignment",
            Self::Listener => "Listener",
        })
    }
}
