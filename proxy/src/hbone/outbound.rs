//! A pod's connection to a destination that is reached through a tunnel; and the proxy's own, to an endpoint of HTTP.

use std::net::SocketAddr;
use std::sync::Arc;

use http::{Method, Request, Version};
use underpass_certs::Lease;
use underpass_config::{Config, Identity, NodeSettings};

use super::connect::{self, Connect};
use super::pool::{Dial, DialError, Key, OpenError, Origin};
use super::route::Via;
use super::tunnel::Tunnel;
use crate::capture::Pod;
use crate::ending::Ending;
use crate::node::Node;
use crate::source::Source;

/// A client that is to be connected through a tunnel.
#[derive(Debug)]
pub struct Outbound<'a> {
    /// The node.
    pub node: &'a Node,
    /// The client's pod, from whose address the tunnel's connection leaves.
    pub pod: &'a Arc<Pod>,
    /// The client.
    pub client: &'a Source,
    /// The host name of the service that it asked for, if it asked for one.
    pub service: Option<&'a str>,
}

/// Why there is no tunnel.
#[derive(Debug)]
pub struct NotOpened {
    /// The word for it.
    pub ending: Ending,
    /// More about that.
    pub detail: String,
}

impl Outbound<'_> {
    /// Opens a tunnel as the client.
    ///
    /// # Errors
    /// When there is no certificate to show, no connection to be had, or the destination's proxy does not want it.
    pub async fn open(&self, via: &Via, config: &Config) -> Result<Tunnel, NotOpened> {
        let dial = self.dial(via, config).ok_or_else(|| NotOpened {
            ending: Ending::ConnectFailed,
            detail: "there is no certificate of the client's to open a tunnel with".into(),
        })?;
        let client = self.client.workload().ok_or_else(|| NotOpened {
            ending: Ending::UnknownSource,
            detail: "only a workload opens tunnels".into(),
        })?;
        let connect = Connect {
            authority: via.authority.clone(),
            client,
            client_address: self.client.address(),
            service: self.service,
        };
        let request = connect.request().map_err(|error| NotOpened {
            ending: Ending::ConnectFailed,
            detail: error.to_string(),
        })?;
        let timeouts = &config.node.timeouts;
        // The connection, and then the destination's, which the proxy there connects to meanwhile.
        let patience = timeouts.connect + timeouts.handshake + timeouts.connect;
        match tokio::time::timeout(patience, self.node.tunnels.open(&dial, &request)).await {
            Ok(opened) => opened.map_err(NotOpened::from),
            Err(_) => Err(NotOpened {
                ending: Ending::ConnectTimeout,
                detail: format!("{} does not answer a CONNECT", via.gateway),
            }),
        }
    }

    fn dial(&self, via: &Via, config: &Config) -> Option<Dial> {
        let certificate = self.node.identities.as_ref()?.of_pod(self.pod.cookie)?;
        let key = Key {
            pod: Some(self.pod.cookie),
            client: certificate.slot().identity().clone(),
            gateway: via.gateway,
            expected: via.expected.clone(),
        };
        dial(self.node, key, Origin::Pod(self.pod.clone()), certificate, &config.node)
    }
}

/// None without identities.
fn dial(node: &Node, key: Key, origin: Origin, certificate: Arc<Lease>, settings: &NodeSettings) -> Option<Dial> {
    let timeouts = &settings.timeouts;
    Some(Dial {
        key,
        origin,
        certificate,
        trust: node.identities.as_ref()?.trust().clone(),
        patience: (timeouts.connect, timeouts.handshake),
        keepalive: settings.keepalive,
        hbone: settings.hbone,
        budget: node.flows.open_connections().tunnels().budget.clone(),
    })
}

/// A tunnel to a cluster's endpoint, which the proxy opens as itself: many clients' requests go by it, so none of them is told of, but the proxy.
#[derive(Debug)]
pub struct ToEndpoint {
    /// As whom.
    pub client: Identity,
    /// Where the tunnel leads to.
    pub gateway: SocketAddr,
    /// Who may be there.
    pub expected: Arc<[Identity]>,
    /// Where its bytes are to go from there.
    pub endpoint: SocketAddr,
}

impl ToEndpoint {
    /// Opens it, with the client's certificate. The caller limits the time.
    ///
    /// # Errors
    /// As [`Outbound::open`].
    pub async fn open(&self, node: &Node, certificate: Arc<Lease>) -> Result<Tunnel, OpenError> {
        let broken = |why: String| OpenError::Broken(why);
        let key = Key {
            pod: None,
            client: self.client.clone(),
            gateway: self.gateway,
            expected: self.expected.clone(),
        };
        let (settings, baggage) = {
            let config = &node.snapshot().config;
            (config.node.clone(), connect::own_baggage(config, &self.client))
        };
        let dial = dial(node, key, Origin::Host, certificate, &settings);
        let dial = dial.ok_or_else(|| broken("the node has no identities".into()))?;
        let mut request = Request::builder()
            .method(Method::CONNECT)
            .uri(self.endpoint.to_string());
        if let Some(baggage) = baggage {
            request = request.header(connect::BAGGAGE, baggage);
        }
        let request = request.version(Version::HTTP_2).body(());
        let request = request.map_err(|error| broken(error.to_string()))?;
        node.tunnels.open(&dial, &request).await
    }
}

impl From<OpenError> for NotOpened {
    fn from(error: OpenError) -> Self {
        let ending = match &error {
            OpenError::Refused(status) => connect::refusal(*status),
            OpenError::Dial(DialError::Timeout(_)) => Ending::ConnectTimeout,
            OpenError::Dial(DialError::NoBuffer(_)) => Ending::ConnectionLimit,
            OpenError::Dial(_) | OpenError::Broken(_) => Ending::ConnectFailed,
        };
        Self {
            ending,
            detail: error.to_string(),
        }
    }
}
