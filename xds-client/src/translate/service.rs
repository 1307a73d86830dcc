//! `istio.workload.Service`.

use underpass_config::{
    AppProtocol, BalanceMode, HealthPolicy, Identity, Interner, LoadBalancing, Scope, Service, ServiceKey, ServicePort,
};

use super::wire::load_balancing as wire_balancing;
use super::{Invalid, gateway, network, required, wire};

pub(super) fn translate(service: wire::Service, names: &mut Interner) -> Result<Service, Invalid> {
    let namespace = required("namespace", &service.namespace)?;
    let hostname = required("hostname", &service.hostname)?;
    let vips = service.addresses.iter();
    let vips = vips.map(|address| network::vip("addresses", address, names));
    let vips = vips.collect::<Result<_, _>>()?;
    let waypoint = gateway::translate("waypoint", service.waypoint.as_ref(), names)?;
    let waypoint = match waypoint {
        None => gateway::heaviest(&service.weighted_waypoints, names)?,
        some => some,
    };
    Ok(Service {
        key: ServiceKey::new(names.intern(&format!("{namespace}/{hostname}"))),
        name: names.intern(&service.name),
        namespace: names.intern(namespace),
        hostname: names.intern(hostname),
        vips,
        ports: service.ports.iter().map(port).collect::<Result<_, _>>()?,
        load_balancing: service.load_balancing.map(balancing).transpose()?.unwrap_or_default(),
        waypoint,
        subject_alt_names: service
            .subject_alt_names
            .iter()
            .map(|id| identity(id))
            .collect::<Result<_, _>>()?,
    })
}

fn port(port: &wire::Port) -> Result<ServicePort, Invalid> {
    Ok(ServicePort {
        port: network::port("ports.service_port", port.service_port)?,
        target_port: network::port_or_zero("ports.target_port", port.target_port)?,
        app_protocol: app_protocol(port.app_protocol),
    })
}

/// A hint: what is not known is not declared.
fn app_protocol(value: i32) -> AppProtocol {
    match wire::AppProtocol::try_from(value) {
        Ok(wire::AppProtocol::Http11) => AppProtocol::Http11,
        Ok(wire::AppProtocol::Http2) => AppProtocol::Http2,
        Ok(wire::AppProtocol::Grpc) => AppProtocol::Grpc,
        Ok(wire::AppProtocol::Tcp) => AppProtocol::Tcp,
        Ok(wire::AppProtocol::Tls) => AppProtocol::Tls,
        Ok(wire::AppProtocol::Unknown) | Err(_) => AppProtocol::Unknown,
    }
}

fn balancing(balancing: wire::LoadBalancing) -> Result<LoadBalancing, Invalid> {
    let scope = |&value: &i32| {
        Ok(match wire_balancing::Scope::try_from(value) {
            Ok(wire_balancing::Scope::Region) => Scope::Region,
            Ok(wire_balancing::Scope::Zone) => Scope::Zone,
            Ok(wire_balancing::Scope::Subzone) => Scope::Subzone,
            Ok(wire_balancing::Scope::Node) => Scope::Node,
            Ok(wire_balancing::Scope::Cluster) => Scope::Cluster,
            Ok(wire_balancing::Scope::Network) => Scope::Network,
            Ok(wire_balancing::Scope::UnspecifiedScope) | Err(_) => {
                return Err(Invalid::Choice {
                    field: "load_balancing.routing_preference",
                    value,
                });
            }
        })
    };
    Ok(LoadBalancing {
        scopes: balancing
            .routing_preference
            .iter()
            .map(scope)
            .collect::<Result<_, _>>()?,
        mode: match wire_balancing::Mode::try_from(balancing.mode) {
            Ok(wire_balancing::Mode::UnspecifiedMode) => BalanceMode::Any,
            Ok(wire_balancing::Mode::Strict) => BalanceMode::Strict,
            Ok(wire_balancing::Mode::Failover) => BalanceMode::Failover,
            Ok(wire_balancing::Mode::Passthrough) => BalanceMode::Passthrough,
            Err(_) => {
                return Err(Invalid::Choice {
                    field: "load_balancing.mode",
                    value: balancing.mode,
                });
            }
        },
        health: match wire_balancing::HealthPolicy::try_from(balancing.health_policy) {
            Ok(wire_balancing::HealthPolicy::OnlyHealthy) => HealthPolicy::OnlyHealthy,
            Ok(wire_balancing::HealthPolicy::AllowAll) => HealthPolicy::AllowAll,
            Err(_) => {
                return Err(Invalid::Choice {
                    field: "load_balancing.health_policy",
                    value: balancing.health_policy,
                });
            }
        },
    })
}

fn identity(id: &str) -> Result<Identity, Invalid> {
    id.parse().map_err(|source| Invalid::Identity {
        field: "subject_alt_names",
        id: id.to_owned(),
        source,
    })
}
