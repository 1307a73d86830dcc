//! Which destinations are reached through a tunnel, and where the tunnel leads.
//!
//! * To a **waypoint** goes what is for a service, or a workload's own address, that has one: the waypoint balances and decides. It is chosen like an endpoint
//!   of its service, so that one on this node is preferred when that service says so. A waypoint that can't be reached is never gone around: it may be there to deny.
//! * To the **workload** itself goes what is for one that speaks HBONE and is not an enrolled pod of this node.
//! * Anything else is plain TCP.
//!
//! Whom to expect at the other end says the mesh (WDS), by workload, and the service may add to it.

use std::net::{IpAddr, SocketAddr};
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
        // An endpoint is asked of DNS only for what has none.
        Resolved::Named { .. } | Resolved::Name(..) => return None,
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

    /// What it is called, for people.
    pub fn name(&self) -> String {
        match &self.gateway.destination {
            GatewayDestination::Service(key) => key.to_string(),
            GatewayDestination::Address(vip) => vip.address.to_string(),
        }
    }

    /// Whether one of its instances is at this address.
    pub fn is_at(&self, config: &Config, address: IpAddr) -> bool {
        let workload = config.mesh.workload_at(&config.node.network, address);
        workload.is_some_and(|workload| self.is(config, workload))
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

#[cfg(test)]
mod tests {
    use underpass_config::{MeshChange, Vip, WorkloadUid};

    use super::*;

    const MESH: &str = "workloads:\n\
        - {uid: client, name: c, namespace: shop, service_account: client, addresses: [10.0.0.1]}\n\
        - {uid: web, name: w, namespace: shop, service_account: web, addresses: [10.0.0.2], tunnel_protocol: hbone}\n\
        - {uid: way, name: y, namespace: shop, service_account: way, addresses: [10.0.0.3], tunnel_protocol: hbone}\n\
        services:\n\
        - {name: web, namespace: shop, vips: [10.96.0.1], ports: [{port: 80, target_port: 8080}], endpoints: [shop/w]}\n\
        - {name: way, namespace: shop, vips: [10.96.0.2], ports: [{port: 15008}], endpoints: [shop/y]}\n";

    /// The mesh, where traffic to the service `web` has to go to `waypoint` first.
    fn config(waypoint: Option<GatewayDestination>) -> Config {
        let mut config = Config::from_yaml(MESH).unwrap();
        let service = config
            .mesh
            .service_named("web.shop.svc.cluster.local")
            .unwrap()
            .service();
        let mut service = Service::clone(service);
        service.waypoint = waypoint.map(|destination| {
            let hbone_port = PORT;
            Box::new(Gateway {
                destination,
                hbone_port,
            })
        });
        config.mesh.apply([MeshChange::Service(service)]);
        config
    }

    fn by_service(config: &Config, name: &str) -> GatewayDestination {
        let state = config.mesh.service_named(&format!("{name}.shop.svc.cluster.local"));
        GatewayDestination::Service(state.unwrap().service().key.clone())
    }

    fn by_address(address: &str) -> GatewayDestination {
        GatewayDestination::Address(Vip {
            network: "".into(),
            address: address.parse().unwrap(),
        })
    }

    fn captured(config: &Config, uid: &str) -> Source {
        Source::captured(&config.mesh, &WorkloadUid::new(uid), "10.0.0.1:7".parse().unwrap()).unwrap()
    }

    /// Where `uid` is led to that asks for `requested`; `Err` if to nowhere.
    fn led(config: &Config, uid: &str, requested: &str) -> Result<Option<Via>, ()> {
        let (source, requested) = (captured(config, uid), requested.parse().unwrap());
        let resolved = destination::resolve(config, &requested).unwrap();
        let Some(waypoint) = waypoint(config, &resolved, &source) else {
            let target = destination::choose(config, &resolved, &source, &[]).unwrap();
            return Ok(direct(&target));
        };
        let target = waypoint.choose(config, &source, &[]).ok_or(())?;
        assert_eq!(Some(target.address), target.via.as_ref().map(|via| via.gateway));
        Ok(target.via)
    }

    #[test]
    fn what_has_a_waypoint_is_led_there_under_its_own_name() {
        let plain = config(None);
        for destination in [
            by_service(&plain, "way"),
            by_address("10.96.0.2"),
            by_address("10.0.0.3"),
        ] {
            let config = config(Some(destination));
            for (requested, authority) in [
                ("10.96.0.1:80", "10.96.0.1:80"),
                ("web.shop.svc.cluster.local:80", "web.shop.svc.cluster.local:80"),
            ] {
                let via = led(&config, "client", requested).unwrap().unwrap();
                assert!(via.is_waypoint);
                assert_eq!(via.gateway.to_string(), "10.0.0.3:15008");
                assert_eq!(via.authority, authority);
                assert_eq!(via.expected[0].to_string(), "spiffe://cluster.local/ns/shop/sa/way");
            }
            let own = led(&config, "way", "10.96.0.1:80").unwrap().unwrap();
            assert!(!own.is_waypoint, "the waypoint itself goes on to the endpoint");
            let by_own_address = led(&config, "client", "10.0.0.2:80").unwrap().unwrap();
            assert!(!by_own_address.is_waypoint, "the service was not asked for");
        }
    }

    #[test]
    fn a_waypoint_that_is_not_there_is_not_gone_around() {
        let config = config(Some(by_address("10.0.0.99")));
        assert_eq!(led(&config, "client", "10.96.0.1:80"), Err(()));
    }

    #[test]
    fn only_who_speaks_hbone_is_reached_by_it() {
        let config = config(None);
        let via = led(&config, "client", "10.96.0.1:80").unwrap().unwrap();
        assert_eq!(
            (via.gateway.to_string(), &*via.authority),
            ("10.0.0.2:15008".into(), "10.0.0.2:8080")
        );
        assert_eq!(via.expected[0].to_string(), "spiffe://cluster.local/ns/shop/sa/web");
        assert_eq!(led(&config, "web", "10.0.0.1:80"), Ok(None));
        assert_eq!(led(&config, "web", "192.0.2.1:80"), Ok(None));
    }
}
