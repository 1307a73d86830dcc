//! `istio.workload.Workload`.

use underpass_config::{
    ApplicationTunnel, Health, Identity, Interner, Locality, Membership, NetworkMode, PolicyKey, PortMapping,
    ServiceKey, TunnelProtocol, Workload, WorkloadType, WorkloadUid,
};

use super::wire::application_tunnel::Protocol;
use super::{Invalid, MeshFacts, gateway, network, required, wire};

pub(super) fn translate(workload: wire::Workload, mesh: &MeshFacts, names: &mut Interner) -> Result<Workload, Invalid> {
    let uid = WorkloadUid::new(names.intern(required("uid", &workload.uid)?));
    let namespace = names.intern(&workload.namespace);
    let addresses = workload.addresses.iter();
    let addresses = addresses.map(|bytes| network::ip("addresses", bytes));
    let policies = workload.authorization_policies.iter();
    let memberships = workload.services.iter();
    Ok(Workload {
        uid,
        name: names.intern(&workload.name),
        identity: Identity {
            trust_domain: match &*workload.trust_domain {
                "" => mesh.trust_domain.clone(),
                named => names.intern(named),
            },
            namespace: namespace.clone(),
            service_account: names.intern(&workload.service_account),
        },
        namespace,
        addresses: addresses.collect::<Result<_, _>>()?,
        network_mode: network_mode(workload.network_mode)?,
        hostname: names.intern(&workload.hostname),
        node: names.intern(&workload.node),
        network: names.intern(&workload.network),
        cluster_id: names.intern(&workload.cluster_id),
        locality: locality(workload.locality.as_ref(), names),
        health: health(workload.status),
        tunnel_protocol: tunnel_protocol(workload.tunnel_protocol)?,
        application_tunnel: workload.application_tunnel.map(application_tunnel).transpose()?,
        waypoint: gateway::translate("waypoint", workload.waypoint.as_ref(), names)?,
        network_gateway: gateway::translate("network_gateway", workload.network_gateway.as_ref(), names)?,
        canonical_name: names.intern(&workload.canonical_name),
        canonical_revision: names.intern(&workload.canonical_revision),
        workload_name: names.intern(&workload.workload_name),
        workload_type: workload_type(workload.workload_type),
        authorization_policies: policies.map(|key| PolicyKey::new(names.intern(key))).collect(),
        services: memberships
            .map(|(key, ports)| membership(key, ports, names))
            .collect::<Result<_, _>>()?,
    })
}

fn membership(key: &str, ports: &wire::PortList, names: &mut Interner) -> Result<Membership, Invalid> {
    let mapping = |port: &wire::Port| {
        Ok(PortMapping {
            service_port: network::port("services.ports.service_port", port.service_port)?,
            target_port: network::port_or_zero("services.ports.target_port", port.target_port)?,
        })
    };
    Ok(Membership {
        service: ServiceKey::new(names.intern(key)),
        ports: ports.ports.iter().map(mapping).collect::<Result<_, _>>()?,
    })
}

fn locality(locality: Option<&wire::Locality>, names: &mut Interner) -> Locality {
    let unknown = wire::Locality::default();
    let locality = locality.unwrap_or(&unknown);
    Locality {
        region: names.intern(&locality.region),
        zone: names.intern(&locality.zone),
        subzone: names.intern(&locality.subzone),
    }
}

/// What is not known to be healthy is not.
fn health(value: i32) -> Health {
    match wire::WorkloadStatus::try_from(value) {
        Ok(wire::WorkloadStatus::Healthy) => Health::Healthy,
        Ok(wire::WorkloadStatus::Unhealthy) | Err(_) => Health::Unhealthy,
    }
}

/// A tunnel that is not understood must not become plain text.
fn tunnel_protocol(value: i32) -> Result<TunnelProtocol, Invalid> {
    match wire::TunnelProtocol::try_from(value) {
        Ok(wire::TunnelProtocol::None) => Ok(TunnelProtocol::None),
        Ok(wire::TunnelProtocol::Hbone) => Ok(TunnelProtocol::Hbone),
        Ok(wire::TunnelProtocol::LegacyIstioMtls) | Err(_) => Err(Invalid::Choice {
            field: "tunnel_protocol",
            value,
        }),
    }
}

fn application_tunnel(tunnel: wire::ApplicationTunnel) -> Result<ApplicationTunnel, Invalid> {
    Ok(ApplicationTunnel {
        port: network::port_or_zero("application_tunnel.port", tunnel.port)?,
        proxy_protocol: match Protocol::try_from(tunnel.protocol) {
            Ok(Protocol::None) => false,
            Ok(Protocol::Proxy) => true,
            Err(_) => {
                return Err(Invalid::Choice {
                    field: "application_tunnel.protocol",
                    value: tunnel.protocol,
                });
            }
        },
    })
}

fn network_mode(value: i32) -> Result<NetworkMode, Invalid> {
    match wire::NetworkMode::try_from(value) {
        Ok(wire::NetworkMode::Standard) => Ok(NetworkMode::Standard),
        Ok(wire::NetworkMode::HostNetwork) => Ok(NetworkMode::HostNetwork),
        Err(_) => Err(Invalid::Choice {
            field: "network_mode",
            value,
        }),
    }
}

/// For telemetry only: what is not known is a pod, as istiod says of whatever a pod belongs to.
fn workload_type(value: i32) -> WorkloadType {
    match wire::WorkloadType::try_from(value) {
        Ok(wire::WorkloadType::Deployment) => WorkloadType::Deployment,
        Ok(wire::WorkloadType::Cronjob) => WorkloadType::CronJob,
        Ok(wire::WorkloadType::Job) => WorkloadType::Job,
        Ok(wire::WorkloadType::Pod) | Err(_) => WorkloadType::Pod,
    }
}
