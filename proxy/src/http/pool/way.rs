//! The way to an endpoint: at its address, or by a tunnel that the endpoint itself asks for ([`Reach`]).
//!
//! **Who has to be at the other end of a tunnel, the mesh says**, by the address that is connected to: neither the cluster nor the endpoint does, and a certificate of
//! the trust domain alone is nobody's in particular. istiod tells of endpoints and of workloads in two streams of news, so an address may have no workload for a moment:
//! it is waited for, as long as a connection may take to be made. Then there is none.
//!
//! A pod of this node is reached by its tunnel too: the near end of that is this proxy, which asks the pod's policies with the identity that the tunnel shows and from
//! the address that it comes from, and counts and logs for the pod what it would of another node's waypoint.

use std::net::SocketAddr;
use std::sync::Arc;

use underpass_config::http::{Cluster, ClusterEndpoint, EndpointSettings, Reach, UpstreamHbone};
use underpass_config::{Config, Identity, Service, Workload};

use super::NotConnected;
use crate::node::Node;

/// By which way connections lead to an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// To its address, or by the tunnel of its cluster. Policy was asked here: a pod of this node is told that the connection is ours.
    Direct,
    /// The same, for a client whose connections are judged where they end: a pod of this node takes it for any other from outside the mesh.
    Unannounced,
    /// By a tunnel.
    Tunnel(Arc<Tunnel>),
}

/// A tunnel to an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// As whom it is opened.
    pub client: Identity,
    /// Where to.
    pub gateway: SocketAddr,
    /// Who may be there. Not empty.
    pub expected: Arc<[Identity]>,
}

/// Whether an endpoint of `cluster` is reached by a tunnel, of its own or of its cluster's.
pub fn is_by_hbone(cluster: &Cluster, endpoint: &EndpointSettings) -> bool {
    cluster.settings.transport.hbone.is_some() || endpoint.reach != Reach::Direct
}

/// The gateway of an endpoint that asks for a tunnel itself; what its cluster says comes first.
pub fn gateway(cluster: &Cluster, endpoint: &EndpointSettings) -> Option<SocketAddr> {
    if cluster.settings.transport.hbone.is_some() {
        return None;
    }
    match &endpoint.reach {
        Reach::Direct => None,
        Reach::Hbone { via: Some(via) } => Some(*via),
        Reach::Hbone { via: None } => Some(SocketAddr::new(endpoint.address.ip(), UpstreamHbone::PORT)),
        Reach::Network { .. } => Some(endpoint.address),
    }
}

/// The tunnel to an endpoint, if it asks for one; as soon as the mesh says who is at its other end.
///
/// # Errors
/// When the mesh does not say that in time, there is nobody to open it as, or the tunnel is one that is not supported.
pub async fn tunnel(
    node: &Arc<Node>,
    cluster: &Cluster,
    endpoint: &EndpointSettings,
) -> Result<Option<Arc<Tunnel>>, NotConnected> {
    let Some(gateway) = gateway(cluster, endpoint) else {
        return Ok(None);
    };
    match look(node, &node.snapshot().config, cluster, endpoint, gateway)? {
        Some(tunnel) => Ok(Some(Arc::new(tunnel))),
        // Rare: not part of each request's future.
        None => Box::pin(wait(node, cluster, endpoint, gateway)).await,
    }
}

async fn wait(
    node: &Arc<Node>,
    cluster: &Cluster,
    endpoint: &EndpointSettings,
    gateway: SocketAddr,
) -> Result<Option<Arc<Tunnel>>, NotConnected> {
    let mut changes = node.changes();
    let told = async {
        loop {
            // After the subscription: what is put in force from here on wakes it.
            if let Some(tunnel) = look(node, &node.snapshot().config, cluster, endpoint, gateway)? {
                return Ok(tunnel);
            }
            if changes.changed().await.is_err() {
                return Err(NotConnected::Failed("the proxy stops".into()));
            }
        }
    };
    match tokio::time::timeout(cluster.settings.connect_timeout, told).await {
        Ok(told) => told.map(|tunnel| Some(Arc::new(tunnel))),
        Err(_) => {
            let ip = gateway.ip();
            let why = format!("the mesh has no workload at {ip}, so that nobody is known to be expected there");
            Err(NotConnected::Untrusted(why.into()))
        }
    }
}

/// The tunnel, as far as the mesh of `config` knows its other end.
fn look(
    node: &Node,
    config: &Config,
    cluster: &Cluster,
    endpoint: &EndpointSettings,
    gateway: SocketAddr,
) -> Result<Option<Tunnel>, NotConnected> {
    if let Reach::Network { target } = &endpoint.reach {
        let why = format!("{target} is in another network, and ways through a network's gateway are not supported");
        return Err(NotConnected::Failed(why.into()));
    }
    let Some(client) = &config.http.client else {
        let why = "there is nobody to open tunnels to endpoints as: set `http.client`";
        return Err(NotConnected::Failed(why.into()));
    };
    let expected = expected(node, config, cluster, endpoint, gateway);
    Ok(expected.map(|expected| Tunnel {
        client: client.clone(),
        gateway,
        expected,
    }))
}

/// Who may be at a gateway; nothing, as long as the mesh does not know.
fn expected(
    node: &Node,
    config: &Config,
    cluster: &Cluster,
    endpoint: &EndpointSettings,
    gateway: SocketAddr,
) -> Option<Arc<[Identity]>> {
    let (mesh, network, ip) = (&config.mesh, &config.node.network, gateway.ip());
    let of_workload = |workload: &Workload, services: Option<&Service>| {
        let others = services.map_or(&[][..], |service| &service.subject_alt_names);
        Some(std::iter::once(&workload.identity).chain(others).cloned().collect())
    };
    // It has the last word, as in `upstream`.
    let workload = match node.pods.at(ip) {
        Some(pod) => mesh.workload(&pod.uid),
        None => mesh.workload_at(network, ip),
    };
    if let Some(workload) = workload {
        let is_endpoint = ip == endpoint.address.ip();
        let own = cluster.settings.service.as_ref().filter(|_| is_endpoint);
        let state = own.and_then(|name| mesh.service_named(&name.hostname));
        let service = state.map(|state| &**state.service());
        // Another namespace may have a service of that host, too.
        let is_own = |service: &&Service| own.is_some_and(|name| service.namespace == name.namespace);
        return of_workload(workload, service.filter(is_own));
    }
    // A waypoint or gateway may be named by the address of its service.
    let service = mesh.service_at(network, ip, gateway.port())?;
    let of_endpoints = service.endpoints().map(|one| &one.workload.identity);
    let mut all: Vec<Identity> = of_endpoints.cloned().collect();
    all.sort_unstable_by_key(Identity::to_string);
    all.dedup();
    if all.is_empty() {
        return None;
    }
    all.extend(service.service().subject_alt_names.iter().cloned());
    Some(all.into())
}

/// Whether connections that were made by `way` still lead to `endpoint` as it is to be reached.
pub fn leads_to(node: &Node, config: &Config, cluster: &Cluster, endpoint: &ClusterEndpoint, way: &Way) -> bool {
    let settings = &endpoint.settings;
    match (gateway(cluster, settings), way) {
        (None, Way::Direct | Way::Unannounced) => true,
        (Some(gateway), Way::Tunnel(tunnel)) => {
            let now = look(node, config, cluster, settings, gateway);
            now.is_ok_and(|now| now.as_ref() == Some(&**tunnel))
        }
        _ => false,
    }
}
