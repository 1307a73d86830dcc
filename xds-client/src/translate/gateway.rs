//! Waypoints and network gateways. One that is not understood rejects the resource: without it, traffic would go past
//! the waypoint and its policies.

use underpass_config::{Gateway, GatewayDestination, Interner, ServiceKey};

use super::wire::gateway_address::Destination;
use super::wire::{GatewayAddress, WeightedWaypoint};
use super::{Invalid, network, required};

/// The port of HBONE (istiod always says it; ztunnel assumes it as well).
const HBONE_PORT: u16 = 15008;

pub(super) fn translate(
    field: &'static str,
    gateway: Option<&GatewayAddress>,
    names: &mut Interner,
) -> Result<Option<Box<Gateway>>, Invalid> {
    let Some(gateway) = gateway else { return Ok(None) };
    let destination = match &gateway.destination {
        Some(Destination::Hostname(name)) => {
            let namespace = required(field, &name.namespace)?;
            let hostname = required(field, &name.hostname)?;
            let key = names.intern(&format!("{namespace}/{hostname}"));
            GatewayDestination::Service(ServiceKey::new(key))
        }
        Some(Destination::Address(address)) => GatewayDestination::Address(network::vip(field, address, names)?),
        None => return Err(Invalid::Missing(field)),
    };
    let hbone_port = match network::port_or_zero(field, gateway.hbone_mtls_port)? {
        0 => HBONE_PORT,
        port => port,
    };
    Ok(Some(Box::new(Gateway {
        destination,
        hbone_port,
    })))
}

/// The waypoint of a service that is moving from one to another: the one with the most weight, because a share of
/// the connections can't be sent elsewhere yet, and none may be sent past both.
pub(super) fn heaviest(waypoints: &[WeightedWaypoint], names: &mut Interner) -> Result<Option<Box<Gateway>>, Invalid> {
    let Some(heaviest) = waypoints.iter().max_by_key(|waypoint| waypoint.weight) else {
        return Ok(None);
    };
    if heaviest.destination.is_none() {
        return Err(Invalid::Missing("weighted_waypoints.destination"));
    }
    translate("weighted_waypoints.destination", heaviest.destination.as_ref(), names)
}
