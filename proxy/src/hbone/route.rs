//! Which destinations are reached through a tunnel, and where the tunnel leads.
//!
//! * To a **waypoint** goes what is for a service, or a workload's own address, that has one: the waypoint balances and decides. It is chosen like an endpoint
//!   of its service, so that one on this node is preferred when that service says so. A waypoint that can't be reached is never gone around: it may be there to deny.
//! * To the **workload** itself goes what is for one that speaks HBONE and is not an enrolled pod of this node.
//! * Anything else is plain TCP.
//!
//! Whom to expect at the other end says the mesh (WDS), by workload, and the service may add to it.

use std::net::SocketAddr;
use std::sync::Arc;

use underpass_config::{
    Config, Destination, Gateway, GatewayDestination, Identity, Service, ServiceState, TunnelProtocol, Workload,
};

use super::PORT;
use crate::destination::{self, Resolved, Target};
use crate::source::Source;

/// A way through a tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Via {
    /// Where the tunnel leads to.
    pub gateway: SocketAddr,
    /// Where its bytes are to go from there.
    pub authority: String,
    /// Who may be at the gateway.
    pub expected: Arc<[Identity]>,
    /// Whether a waypoint is there, which judges the connection.
    pub is_waypoint: bool,
}

/// What a waypoint stands before.
#[derive(Debug)]
pub struct Waypoint<'a> {
    gateway: &'a Gateway,
    /// The service that was asked for, if one was.
    service: Option<&'a Arc<Service>>,
    authority: Destination,
}

/// The waypoint that stands before what was asked for. A waypoint's own connections go past it.
pub fn waypoint<'a>(config: &'a Config, resolved: &'a Resolved, source: &Source) -> Option<Waypoint<'a>> {
    let found = match resolved {
        Resolved::Service {
            service,
            port,
            requested,
        } => {
            let service = service.service();
            let by_name = || Destination::Host {
                host: service.hostname.clone(),
                port: *port,
            };
            Waypoint {
                gateway: service.waypoint.as_deref()?,
                service: Some(service),
                authority: requested.map_or_else(by_name, Destination::Address),
            }
        }
        Resolved::Address(address) => {
            let workload = config.mesh.workload_at(&config.node.network, address.ip())?;
            Waypoint {
                gateway: workload.waypoint.as_deref()?,
                service: None,
                authority: Destination::Address(*address),
            }
        }
        Resolved::Name(..) => return None,
    };
    let is_itself = source.workload().is_some_and(|workload| found.is(config, workload));
    (!is_itself).then_some(found)
}

impl Waypoint<'_> {
    /// Chooses one of its instances, among those not in `tried`.
    pub fn choose(&self, config: &Config, source: &Source, tried: &[SocketAddr]) -> Option<Target> {
        let port = self.gateway.hbone_port;
        let at = |target: Target| {
            let workload = target.workload.clone()?;
            let of_waypoint = self.state(config).map(|state| &*state.service().subject_alt_names);
            Some(Target {
                service: self.service.cloned(),
                via: Some(Via {
                    gateway: target.address,
                    authority: self.authority.to_string(),
                    expected: expected(&workload, of_waypoint.unwrap_or_default()),
                    is_waypoint: true,
                }),
                ..target
            })
        };
        match self.state(config) {
            Some(state) => destination::choose_instance(config, state, port, source, tried).and_then(at),
            None => {
                let GatewayDestination::Address(vip) = &self.gateway.destination else {
                    return None;
                };
                let address = SocketAddr::new(vip.address, port);
                destination::choose(config, &Resolved::Address(address), source, tried).and_then(at)
            }
        }
    }

    fn is(&self, config: &Config, workload: &Workload) -> bool {
        match (self.state(config), &self.gateway.destination) {
            (Some(state), _) => state.endpoints().any(|endpoint| endpoint.workload.uid == workload.uid),
            (None, GatewayDestination::Address(vip)) => workload.addresses.contains(&vip.address),
            (None, GatewayDestination::Service(_)) => false,
        }
    }

    fn state<'a>(&self, config: &'a Config) -> Option<&'a Arc<ServiceState>> {
        match &self.gateway.destination {
            GatewayDestination::Service(key) => config.mesh.service(key),
            GatewayDestination::Address(vip) => {
                config
                    .mesh
                    .service_at(&vip.network, vip.address, self.gateway.hbone_port)
            }
        }
    }
}

/// The way to a target that speaks HBONE itself.
pub fn direct(target: &Target) -> Option<Via> {
    let workload = target.workload.as_deref()?;
    if workload.tunnel_protocol != TunnelProtocol::Hbone || target.pod.is_some() {
        return None;
    }
    let of_service = target.service.as_deref().map(|service| &*service.subject_alt_names);
    Some(Via {
        gateway: SocketAddr::new(target.address.ip(), PORT),
        authority: target.address.to_string(),
        expected: expected(workload, of_service.unwrap_or_default()),
        is_waypoint: false,
    })
}

fn expected(workload: &Workload, of_service: &[Identity]) -> Arc<[Identity]> {
    let own = std::iter::once(&workload.identity);
    own.chain(of_service).cloned().collect()
}
