//! Where traffic goes instead of to its destination: a waypoint, or the gateway of another network.

use serde::Serialize;

use crate::{ServiceKey, Vip};

/// A gateway that speaks HBONE.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Gateway {
    /// Which.
    pub destination: GatewayDestination,
    /// The port on which its endpoints speak HBONE.
    pub hbone_port: u16,
}

/// How a gateway is named.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum GatewayDestination {
    /// By its service.
    Service(ServiceKey),
    /// By an address: a service's virtual address or a workload's own.
    Address(Vip),
}
