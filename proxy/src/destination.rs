//! Where a connection goes: from what the client asked for to one address to connect to.
//!
//! A request names an address or a hostname. A service's virtual IP or hostname becomes one of its endpoints; a workload's
//! address is that workload; anything else is outside the mesh, and goes through or not as the node is told.
//! The choice is made on one snapshot and holds no reference into it but the parts it chose.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use underpass_config::{
    BalanceMode, Config, Destination, Endpoint, LoadGuard, Service, ServiceState, Text, UnknownDestination, Workload,
    WorkloadUid,
};

use crate::capture::Pod;
use crate::ending::Ending;
use crate::hbone::route::Via;
use crate::source::Source;

/// What a request resolved to, before an endpoint is chosen.
#[derive(Clone, Debug)]
pub enum Resolved {
    /// One of a service's endpoints, on this port of the service.
    Service {
        /// The service.
        service: Arc<ServiceState>,
        /// The service's port.
        port: u16,
        /// The virtual IP that was asked for; its family is preferred, and passthrough goes to it.
        requested: Option<SocketAddr>,
    },
    /// This address and no other.
    Address(SocketAddr),
    /// An endpoint of a service that is known by its name only, and the addresses that DNS has for that.
    Named {
        /// The service.
        service: Arc<Service>,
        /// The endpoint.
        endpoint: Arc<Endpoint>,
        /// Where it is.
        addresses: Vec<SocketAddr>,
    },
    /// A name that the mesh does not know, to be asked of DNS.
    Name(String, u16),
}

/// One place to connect to.
#[derive(Debug)]
pub struct Target {
    /// Address and port.
    pub address: SocketAddr,
    /// The workload there, when the mesh knows one.
    pub workload: Option<Arc<Workload>>,
    /// The service whose endpoint it is.
    pub service: Option<Arc<Service>>,
    /// Counts this connection in the endpoint's load for as long as it is held.
    pub load: Option<LoadGuard>,
    /// The pod of this node that is enrolled at the address.
    pub pod: Option<Arc<Pod>>,
    /// The tunnel by which it is reached, if by one.
    pub via: Option<Via>,
}

/// Resolves a request on one snapshot.
///
/// # Errors
/// `UnknownDestination` for a port that the service does not have, or for an address outside the mesh when the node refuses
/// those.
pub fn resolve(config: &Config, requested: &Destination) -> Result<Resolved, Ending> {
    match requested {
        Destination::Address(address) => resolve_address(config, crate::socket::canonical(*address)),
        Destination::Host { host, port } => resolve_host(config, host, *port),
    }
}

/// Resolves an address on one snapshot.
///
/// # Errors
/// As [`resolve`].
pub fn resolve_address(config: &Config, address: SocketAddr) -> Result<Resolved, Ending> {
    let network = &config.node.network;
    if let Some(service) = config.mesh.service_at(network, address.ip(), address.port()) {
        return Ok(Resolved::Service {
            service: service.clone(),
            port: address.port(),
            requested: Some(address),
        });
    }
    let in_mesh = config.mesh.workload_at(network, address.ip()).is_some();
    if !in_mesh && config.mesh.is_vip(network, address.ip()) {
        return Err(Ending::UnknownDestination);
    }
    if !in_mesh && config.node.unknown_destination == UnknownDestination::Deny {
        return Err(Ending::UnknownDestination);
    }
    Ok(Resolved::Address(address))
}

fn resolve_host(config: &Config, host: &str, port: u16) -> Result<Resolved, Ending> {
    if let Some(service) = config.mesh.service_named(host) {
        if service.service().port(port).is_none() {
            return Err(Ending::UnknownDestination);
        }
        return Ok(Resolved::Service {
            service: service.clone(),
            port,
            requested: None,
        });
    }
    match host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        Ok(ip) => resolve_address(config, SocketAddr::new(ip.to_canonical(), port)),
        Err(_) if config.node.unknown_destination == UnknownDestination::Deny => Err(Ending::UnknownDestination),
        Err(_) => Ok(Resolved::Name(host.to_owned(), port)),
    }
}

/// Asks DNS for a name that the mesh does not know. Each answer is to be resolved again: it may be an address of the mesh.
///
/// # Errors
/// `UnknownDestination` when DNS has no address for the name, or none in time.
pub async fn ask_dns(host: &str, port: u16, patience: Duration) -> Result<Vec<SocketAddr>, Ending> {
    let answers = tokio::time::timeout(patience, tokio::net::lookup_host((host, port))).await;
    let answers: Vec<_> = match answers {
        Ok(Ok(answers)) => answers.map(crate::socket::canonical).collect(),
        Ok(Err(error)) => {
            tracing::debug!(host, %error, "DNS has no answer");
            Vec::new()
        }
        Err(_) => {
            tracing::debug!(host, "DNS has no answer in time");
            Vec::new()
        }
    };
    if answers.is_empty() {
        Err(Ending::UnknownDestination)
    } else {
        Ok(answers)
    }
}

/// Whether a client would be let into the proxy's own sockets, or onto the node's loopback from elsewhere: what listens there
/// (the admin server, other listeners, the node's own daemons) takes a connection from loopback to be the node's own.
pub fn is_of_the_proxy(config: &Config, resolved: &Resolved, client: &Source) -> bool {
    match resolved {
        Resolved::Address(address) => is_of_the_proxy_at(config, *address, client),
        Resolved::Named { addresses, .. } => {
            let mut addresses = addresses.iter();
            addresses.any(|address| is_of_the_proxy_at(config, *address, client))
        }
        Resolved::Service { .. } | Resolved::Name(..) => false,
    }
}

fn is_of_the_proxy_at(config: &Config, address: SocketAddr, client: &Source) -> bool {
    let ip = address.ip();
    let own = |socket: &SocketAddr| {
        let here = socket.ip() == ip || (socket.ip().is_unspecified() && (ip.is_loopback() || client.ip() == ip));
        socket.port() == address.port() && here
    };
    ip.is_unspecified()
        || (ip.is_loopback() && !client.ip().is_loopback())
        || own(&config.node.admin)
        || config.node.listeners.iter().any(|listener| own(&listener.address))
        || config.node.waypoint().is_some_and(|waypoint| own(&waypoint.address))
}

/// Chooses the place to connect to, among those not in `tried`. None when there is no other.
pub fn choose(config: &Config, resolved: &Resolved, source: &Source, tried: &[SocketAddr]) -> Option<Target> {
    match resolved {
        Resolved::Name(..) => None,
        Resolved::Address(address) if tried.contains(address) => None,
        Resolved::Address(address) => Some(direct(config, *address, None)),
        Resolved::Named {
            service,
            endpoint,
            addresses,
        } => {
            let address = addresses.iter().find(|address| !tried.contains(address))?;
            Some(at_named(config, *address, service, endpoint))
        }
        Resolved::Service {
            service,
            port,
            requested,
        } => choose_endpoint(config, service, *port, *requested, source, tried),
    }
}

fn direct(config: &Config, address: SocketAddr, service: Option<Arc<Service>>) -> Target {
    let workload = config.mesh.workload_at(&config.node.network, address.ip()).cloned();
    Target {
        address,
        workload,
        service,
        load: None,
        pod: None,
        via: None,
    }
}

/// Who is at an address that was found by the name of an endpoint: a workload of the mesh, whose policies then guard it, or the endpoint.
fn at_named(config: &Config, address: SocketAddr, service: &Arc<Service>, endpoint: &Endpoint) -> Target {
    let target = direct(config, address, Some(service.clone()));
    Target {
        workload: target.workload.or_else(|| Some(endpoint.workload.clone())),
        load: Some(endpoint.load.acquire()),
        ..target
    }
}

/// An endpoint of a service that is to be asked of DNS, with its name and port: `uid`, if that is still one, else where it is such a one's
/// turn. Services of the cluster have none, a ServiceEntry that is resolved by DNS has no others.
pub fn endpoint_by_name(
    config: &Config,
    service: &ServiceState,
    port: u16,
    source: &Source,
    uid: Option<&WorkloadUid>,
) -> Option<(Arc<Endpoint>, Text, u16)> {
    let definition = service.service();
    let candidates = service.candidates(&source.position(&config.node));
    let wanted = uid.and_then(|uid| candidates.iter().find(|endpoint| endpoint.workload.uid == *uid));
    let endpoint = wanted.or_else(|| candidates.get(fastrand::usize(..candidates.len().max(1))))?;
    let workload = &endpoint.workload;
    let is_named = workload.addresses.is_empty() && !workload.hostname.is_empty();
    let target_port = endpoint.target_port(definition, port).filter(|_| is_named)?;
    Some((endpoint.clone(), workload.hostname.clone(), target_port))
}

fn choose_endpoint(
    config: &Config,
    service: &ServiceState,
    port: u16,
    requested: Option<SocketAddr>,
    source: &Source,
    tried: &[SocketAddr],
) -> Option<Target> {
    let definition = service.service();
    if definition.load_balancing.mode == BalanceMode::Passthrough
        && let Some(address) = requested
    {
        return (!tried.contains(&address)).then(|| direct(config, address, Some(definition.clone())));
    }
    let candidates = service.candidates(&source.position(&config.node));
    let usable = |endpoint: &Arc<Endpoint>| {
        let address = endpoint_address(config, definition, endpoint, port, requested)?;
        (!tried.contains(&address)).then(|| (endpoint.clone(), address))
    };
    let (endpoint, address) = less_loaded_of_two(&candidates, usable)?;
    Some(Target {
        address,
        workload: Some(endpoint.workload.clone()),
        service: Some(definition.clone()),
        load: Some(endpoint.load.acquire()),
        pod: None,
        via: None,
    })
}

/// Chooses an instance of a gateway's service, on `port` of the instance itself, whichever ports the service declares.
pub fn choose_instance(
    config: &Config,
    service: &ServiceState,
    port: u16,
    source: &Source,
    tried: &[SocketAddr],
) -> Option<Target> {
    let candidates = service.candidates(&source.position(&config.node));
    let usable = |endpoint: &Arc<Endpoint>| {
        let workload = &endpoint.workload;
        let ip = workload
            .addresses
            .first()
            .filter(|_| workload.network == config.node.network)?;
        let address = SocketAddr::new(*ip, port);
        (!tried.contains(&address)).then(|| (endpoint.clone(), address))
    };
    let (endpoint, address) = less_loaded_of_two(&candidates, usable)?;
    Some(Target {
        address,
        workload: Some(endpoint.workload.clone()),
        service: Some(service.service().clone()),
        load: Some(endpoint.load.acquire()),
        pod: None,
        via: None,
    })
}

/// Where `endpoint` serves `port`: at the first of its addresses that has the family of the virtual IP, else at its first.
/// None if it does not serve the port, has no address, or is in a network that this node has no way into.
fn endpoint_address(
    config: &Config,
    service: &Service,
    endpoint: &Endpoint,
    port: u16,
    requested: Option<SocketAddr>,
) -> Option<SocketAddr> {
    if endpoint.workload.network != config.node.network {
        return None;
    }
    let target_port = endpoint.target_port(service, port)?;
    let addresses = &endpoint.workload.addresses;
    let same_family = requested.and_then(|vip| addresses.iter().find(|a| a.is_ipv4() == vip.is_ipv4()));
    same_family
        .or(addresses.first())
        .map(|ip| SocketAddr::new(*ip, target_port))
}

/// Picks two candidates at random and takes the one with fewer outstanding connections ("the power of two choices": nearly
/// as even as asking all, without asking all). Where a random pick is not usable, all are looked at.
fn less_loaded_of_two(
    candidates: &[Arc<Endpoint>],
    usable: impl Fn(&Arc<Endpoint>) -> Option<(Arc<Endpoint>, SocketAddr)>,
) -> Option<(Arc<Endpoint>, SocketAddr)> {
    let load = |pick: &(Arc<Endpoint>, SocketAddr)| pick.0.load.outstanding();
    let (first, second) = two_distinct(candidates.len())?;
    match (usable(&candidates[first]), usable(&candidates[second])) {
        (Some(a), Some(b)) => Some(if load(&b) < load(&a) { b } else { a }),
        _ => {
            let rest: Vec<_> = candidates.iter().filter_map(&usable).collect();
            let (first, second) = two_distinct(rest.len())?;
            let chosen = if load(&rest[second]) < load(&rest[first]) {
                second
            } else {
                first
            };
            rest.into_iter().nth(chosen)
        }
    }
}

/// Two different random indexes below `length` (the same one twice when there is only one).
fn two_distinct(length: usize) -> Option<(usize, usize)> {
    match length {
        0 => None,
        1 => Some((0, 0)),
        _ => {
            let first = fastrand::usize(..length);
            let second = (first + fastrand::usize(1..length)) % length;
            Some((first, second))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_choices_are_different_and_in_range() {
        for length in 2..6 {
            for _ in 0..200 {
                let (a, b) = two_distinct(length).unwrap();
                assert!(a != b && a < length && b < length);
            }
        }
        assert_eq!(two_distinct(1), Some((0, 0)));
        assert_eq!(two_distinct(0), None);
    }
}
