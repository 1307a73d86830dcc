//! Conditions on a connection and on a request (`config.rbac.v3.Permission` and `Principal`, which differ by what they may ask, not by how).

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use ipnet::IpNet;
use serde_json::Value;

use super::super::{HeaderMatch, RequestView, TextMatch};
use super::{ClaimMatch, PathTemplate};

/// What is asked.
#[derive(Clone, Debug)]
pub enum Condition {
    /// Nothing: it holds.
    Any,
    /// All of these hold.
    All(Vec<Condition>),
    /// One of these holds.
    Either(Vec<Condition>),
    /// This does not hold.
    Not(Box<Condition>),
    /// A header field of the request, or what HTTP/2 has as one.
    Header(HeaderMatch),
    /// The path, without the query (`url_path`).
    Path(TextMatch),
    /// The path, without the query (`uri_template`).
    Template(PathTemplate),
    /// The address that the connection came to.
    DestinationIp(IpNet),
    /// The port that the connection came to.
    DestinationPort(RangeInclusive<u16>),
    /// The name that the client asked TLS for; empty if it asked for none (`requested_server_name`).
    ServerName(TextMatch),
    /// The SPIFFE identity of the peer; of one without there is nothing to hold.
    Principal(TextMatch),
    /// The peer's address (`direct_remote_ip`).
    PeerIp(IpNet),
    /// The address that the request comes from: what the last of `x-forwarded-for` is, or else the peer's (`remote_ip`).
    ClientIp(IpNet),
    /// What a verified token claims.
    Claim(ClaimMatch),
    /// What authorization servers have told of it (`envoy.filters.http.ext_authz` of `MetadataMatcher`).
    Told(ClaimMatch),
}

/// What conditions look at of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Peer<'a> {
    /// Its SPIFFE identity, as a URI.
    pub principal: Option<&'a str>,
    /// Its address.
    pub address: IpAddr,
    /// Where it came to.
    pub destination: SocketAddr,
    /// The name that it asked TLS for.
    pub server_name: Option<&'a str>,
}

/// What conditions look at of a request.
#[derive(Clone, Copy, Debug)]
pub struct Asking<'a> {
    /// The request.
    pub request: RequestView<'a>,
    /// What its token claims; only what was verified is here.
    pub claims: Option<&'a Value>,
    /// What authorization servers have told of it.
    pub metadata: Option<&'a Value>,
}

impl Asking<'_> {
    /// The address that the request comes from, where its peer has `direct` (Envoy's with `use_remote_address: false`, as istiod
    /// configures waypoints).
    pub fn client(&self, direct: IpAddr) -> IpAddr {
        let forwarded = self.request.headers.get_all("x-forwarded-for").iter().next_back();
        let last = forwarded.and_then(|value| value.to_str().ok()?.rsplit(',').next());
        let last = last.and_then(|last| last.trim_matches(' ').parse::<IpAddr>().ok());
        last.map_or(direct, |ip| ip.to_canonical())
    }
}

impl Condition {
    /// Whether it holds for `peer`, where that does not depend on a request.
    pub fn settled(&self, peer: &Peer<'_>) -> Option<bool> {
        match self {
            Self::Any => Some(true),
            Self::All(all) => {
                let mut held = Some(true);
                for one in all {
                    match one.settled(peer) {
                        Some(false) => return Some(false),
                        Some(true) => {}
                        None => held = None,
                    }
                }
                held
            }
            Self::Either(either) => {
                let mut held = Some(false);
                for one in either {
                    match one.settled(peer) {
                        Some(true) => return Some(true),
                        Some(false) => {}
                        None => held = None,
                    }
                }
                held
            }
            Self::Not(not) => not.settled(peer).map(|held| !held),
            Self::DestinationIp(net) => Some(net.contains(&peer.destination.ip())),
            Self::DestinationPort(ports) => Some(ports.contains(&peer.destination.port())),
            Self::ServerName(name) => Some(name.matches(peer.server_name.unwrap_or_default())),
            Self::Principal(pattern) => Some(peer.principal.is_some_and(|principal| pattern.matches(principal))),
            Self::PeerIp(net) => Some(net.contains(&peer.address)),
            Self::Header(_)
            | Self::Path(_)
            | Self::Template(_)
            | Self::ClientIp(_)
            | Self::Claim(_)
            | Self::Told(_) => None,
        }
    }

    /// Whether any of it is about a request.
    pub(super) fn asks_for_request(&self) -> bool {
        match self {
            Self::All(several) | Self::Either(several) => several.iter().any(Self::asks_for_request),
            Self::Not(inner) => inner.asks_for_request(),
            Self::Header(_)
            | Self::Path(_)
            | Self::Template(_)
            | Self::ClientIp(_)
            | Self::Claim(_)
            | Self::Told(_) => true,
            Self::Any
            | Self::DestinationIp(_)
            | Self::DestinationPort(_)
            | Self::ServerName(_)
            | Self::Principal(_)
            | Self::PeerIp(_) => false,
        }
    }

    /// Whether it holds for a request of `peer`.
    pub fn holds(&self, peer: &Peer<'_>, asking: &Asking<'_>) -> bool {
        match self {
            Self::All(all) => all.iter().all(|one| one.holds(peer, asking)),
            Self::Either(either) => either.iter().any(|one| one.holds(peer, asking)),
            Self::Not(not) => !not.holds(peer, asking),
            Self::Header(header) => header.matches(&asking.request),
            Self::Path(pattern) => pattern.matches(asking.request.path),
            Self::Template(template) => template.matches(asking.request.path),
            Self::ClientIp(net) => net.contains(&asking.client(peer.address)),
            Self::Claim(claim) => claim.matches(asking.claims),
            Self::Told(told) => told.matches(asking.metadata),
            _ => self.settled(peer).unwrap_or(false),
        }
    }
}
