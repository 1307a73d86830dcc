//! What is subscribed to.

use std::fmt;

/// A type of resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ResourceType {
    /// Workloads and services (WDS).
    Address,
    /// L4 authorization policies.
    Authorization,
}

impl ResourceType {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Address, Self::Authorization];

    /// As the wire says it.
    pub const fn url(self) -> &'static str {
        match self {
            Self::Address => "type.googleapis.com/istio.workload.Address",
            Self::Authorization => "type.googleapis.com/istio.security.Authorization",
        }
    }

    pub(crate) fn of_url(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.url() == url)
    }
}

impl fmt::Display for ResourceType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Address => "Address",
            Self::Authorization => "Authorization",
        })
    }
}
