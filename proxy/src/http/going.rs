//! Where a request is going, for clusters that have no endpoints of their own: the address that its connection was for, or the host that it is for itself.
//!
//! Names and addresses come from whoever asks. What leads into the proxy, or onto this node's own loopback, is refused ([`no_way`]).

use std::net::{IpAddr, SocketAddr};

use http::StatusCode;
use underpass_config::Text;
use underpass_config::http::{Cluster, Discovery, HostDiscovery, Reach, UpstreamHbone};

use super::failed::Failed;
use super::flags::Flags;
use super::forward::Job;
use super::names::Unresolved;
use crate::destination::{Resolved, is_of_the_proxy};
use crate::session::Session;

/// Where a request is going.
#[derive(Debug, Default)]
pub struct Going {
    addresses: Vec<SocketAddr>,
    host: Option<Text>,
}

impl Going {
    /// The next address, and the name that it was found by; one of those not in `tried`, if there is one. None: the cluster has endpoints.
    pub fn at(&self, tried: &[SocketAddr]) -> Option<(SocketAddr, Option<&Text>)> {
        let untried = self.addresses.iter().find(|address| !tried.contains(address));
        let address = untried.or(self.addresses.first())?;
        Some((*address, self.host.as_ref()))
    }
}

impl Job<'_> {
    /// Where it is going.
    ///
    /// # Errors
    /// The proxy's own answer, when its host has no address.
    pub(super) async fn going(&self) -> Result<Going, Failed> {
        match &self.cluster.settings.discovery {
            Discovery::Static | Discovery::Dns(_) => Ok(Going::default()),
            Discovery::Original(_) => Ok(Going {
                addresses: vec![self.connection.local],
                host: None,
            }),
            // What is rare is not part of each request's future.
            Discovery::Host(asked) => Box::pin(self.going_to_host(asked)).await,
        }
    }

    async fn going_to_host(&self, asked: &HostDiscovery) -> Result<Going, Failed> {
        let overflow =
            |what: &str, details| Failed::new(StatusCode::SERVICE_UNAVAILABLE, Flags::OVERFLOW, details, what);
        let names = &self.connection.session.node.http.names;
        let host = self.intake.host();
        let addresses = {
            let pending = self.cluster.admit_pending();
            if pending.is_none() {
                let details = "dynamic_forward_proxy_pending_request_overflow";
                return Err(overflow("Dynamic forward proxy pending request overflow", details));
            }
            names.addresses(host, asked).await
        };
        let addresses = addresses.map_err(|why| match why {
            Unresolved::Full => overflow("DNS cache overflow", "dns_cache_overflow"),
            Unresolved::Failed(why) => {
                let details = format!("dns_resolution_failure{{{why}}}");
                let text = "DNS resolution failure";
                Failed::new(StatusCode::SERVICE_UNAVAILABLE, Flags::DNS_FAILED, &details, text)
            }
        })?;
        let port = self.intake.port().unwrap_or(match self.cluster.settings.transport.tls {
            Some(_) => 443,
            None => 80,
        });
        Ok(Going {
            addresses: addresses.iter().map(|ip| SocketAddr::new(*ip, port)).collect(),
            host: Some(host.to_ascii_lowercase().as_str().into()),
        })
    }

    /// What DNS has for a name, or where a client says that it was going, leads nobody to where [`no_way`] says.
    pub(super) fn refuse_the_proxys_own(&self, address: SocketAddr) -> Result<(), Failed> {
        match no_way(self.cluster, &self.connection.session, address) {
            None => Ok(()),
            Some(why) => {
                let details = format!("policy: {why}");
                let text = "RBAC: access denied";
                Err(Failed::new(StatusCode::FORBIDDEN, Flags::DENIED, &details, text))
            }
        }
    }
}

/// Why a session's client is not let to `address`, where whoever chose that is not who wrote the configuration: it would be let into the proxy's own sockets, or from
/// elsewhere onto the node's loopback.
pub fn no_way(cluster: &Cluster, session: &Session, address: SocketAddr) -> Option<&'static str> {
    let discovery = &cluster.settings.discovery;
    if *discovery == Discovery::Static {
        return None;
    }
    let snapshot = session.node.snapshot();
    let is_own = |address| is_of_the_proxy(&snapshot.config, &Resolved::Address(address), &session.source);
    let ip = address.ip();
    let is_tunnelled = matches!(discovery, Discovery::Original(reach) if *reach != Reach::Direct);
    if is_own(address) || is_tunnelled && is_own(SocketAddr::new(ip, UpstreamHbone::PORT)) {
        return Some(match discovery {
            Discovery::Original(_) => "the connection was going to the proxy's own address",
            _ => "DNS has the proxy's own address for the cluster's name",
        });
    }
    // No client of a waypoint is this node itself; and what is on the link, where clouds tell machines who they are, is nobody's endpoint.
    let is_local = (ip.is_loopback() && session.entrance.is_waypoint()) || is_of_the_link(ip);
    (discovery.is_made() && is_local).then_some("this address is for this node alone, or for its link")
}

/// Whether it is an address of the link alone (RFC 3927, RFC 4291 section 2.5.6).
fn is_of_the_link(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}
