//! By which way a connection came in: a listener that the configuration asks for, or the capture of a pod.

use std::sync::{Arc, LazyLock};

use underpass_config::{Listener, Text, WorkloadUid};

use crate::capture::Pod;
use crate::flow_table::{Transport, TunnelPeer};
use crate::source::Source;

/// The way in; it decides who the client is, and how it says where it wants to go.
#[derive(Clone, Debug)]
pub enum Entrance {
    /// A listener of the configuration.
    Plain(Arc<Listener>),
    /// A pod's own connection, captured at its connect().
    Outbound(Arc<Pod>),
    /// A connection to a pod, steered to the proxy on arrival.
    Inbound(Arc<Pod>),
    /// A tunnel to a pod.
    Hbone(Arc<Pod>),
    /// A tunnel to a waypoint's listener, for one of the services that it stands before.
    Waypoint(Arc<Listener>),
    /// A pod's own connection, captured at its connect(), to a service whose waypoint this node is itself: no tunnel leads there, and who comes is known by the capture.
    InPlace(Arc<Listener>),
}

static OUTBOUND: LazyLock<Text> = LazyLock::new(|| "outbound".into());
static INBOUND: LazyLock<Text> = LazyLock::new(|| "inbound".into());
static HBONE: LazyLock<Text> = LazyLock::new(|| "hbone".into());

impl Entrance {
    /// The listener's name, in logs and the admin view.
    pub fn name(&self) -> &Text {
        match self {
            Self::Plain(listener) | Self::Waypoint(listener) | Self::InPlace(listener) => &listener.name,
            Self::Outbound(_) => &OUTBOUND,
            Self::Inbound(_) => &INBOUND,
            Self::Hbone(_) => &HBONE,
        }
    }

    /// Which way it goes, seen from the pods, in Kmesh's words.
    pub fn direction(&self) -> &'static str {
        match self {
            Self::Plain(_) | Self::Outbound(_) => "OUTBOUND",
            Self::Inbound(_) | Self::Hbone(_) | Self::Waypoint(_) | Self::InPlace(_) => "INBOUND",
        }
    }

    /// Whether it is a waypoint's: policies of workloads are not its to ask, since there it is the client itself.
    pub fn is_waypoint(&self) -> bool {
        matches!(self, Self::Waypoint(_) | Self::InPlace(_))
    }

    /// The pod in whose network namespace the connection arrived, and from which it goes on.
    pub fn pod(&self) -> Option<&Arc<Pod>> {
        match self {
            Self::Plain(_) | Self::Waypoint(_) | Self::InPlace(_) => None,
            Self::Outbound(pod) | Self::Inbound(pod) | Self::Hbone(pod) => Some(pod),
        }
    }

    /// The pod that was connected to.
    pub fn destination(&self) -> Option<&WorkloadUid> {
        match self {
            Self::Plain(_) | Self::Outbound(_) | Self::Waypoint(_) | Self::InPlace(_) => None,
            Self::Inbound(pod) | Self::Hbone(pod) => Some(&pod.uid),
        }
    }

    /// What a connection of `source` that came in by it is carried by.
    pub fn transport(&self, source: &Source) -> Transport {
        match self {
            Self::Plain(_) | Self::Outbound(_) | Self::Inbound(_) | Self::InPlace(_) => Transport::Plain,
            Self::Hbone(_) | Self::Waypoint(_) => Transport::TunnelIn(source.identity().map(|identity| TunnelPeer {
                identity: identity.clone(),
                described: source.described().cloned(),
            })),
        }
    }
}
