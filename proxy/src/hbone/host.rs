//! What a connection of HBONE came to.
//!
//! A pod's tunnels lead to that pod and nowhere else ([`super::target`]); a waypoint's lead to the services that it stands before ([`super::waypoint`]).

use std::sync::Arc;

use underpass_config::{Config, Listener, ServiceState};

use crate::capture::Pod;
use crate::entrance::Entrance;

/// Who shows its certificate to the peer.
#[derive(Clone, Debug)]
pub enum Host {
    /// An enrolled pod.
    Pod(Arc<Pod>),
    /// A listener that tunnels to services come to.
    Waypoint(Arc<Listener>),
}

impl Host {
    /// The way in that its streams come by.
    pub fn entrance(&self) -> Entrance {
        match self {
            Self::Pod(pod) => Entrance::Hbone(pod.clone()),
            Self::Waypoint(listener) => Entrance::Waypoint(listener.clone()),
        }
    }

    /// What connections of one peer are counted for: a pod by its namespace's cookie, which is never 0, or the node's waypoint.
    pub fn key(&self) -> u64 {
        match self {
            Self::Pod(pod) => pod.cookie,
            Self::Waypoint(_) => 0,
        }
    }

    /// In words, for whoever reads a log.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Pod(_) => "this pod",
            Self::Waypoint(_) => "this waypoint",
        }
    }

    /// Resolves when it is there no more.
    pub async fn removed(&self) {
        match self {
            Self::Pod(pod) => pod.removed().await,
            // A listener that is closed has its connections go on, as any other.
            Self::Waypoint(_) => std::future::pending().await,
        }
    }

    /// Whether a peer is believed that it asked for `service` here: its endpoint, or what stands before it.
    pub fn is_asked_for(&self, service: &ServiceState, config: &Config) -> bool {
        match self {
            Self::Pod(pod) => service.endpoints().any(|endpoint| endpoint.workload.uid == pod.uid),
            Self::Waypoint(_) => {
                let place = config.http.waypoint.as_ref();
                place.is_some_and(|place| place.stands_before(service.service()))
            }
        }
    }
}
