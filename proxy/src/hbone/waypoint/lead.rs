//! Where a stream to a waypoint leads, by what it was opened for.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use http::Request;
use underpass_config::waypoint::{Chain, Going, Lead};
use underpass_config::{Config, Destination, Text};

use crate::ending::Ending;
use crate::hbone::connect;
use crate::hbone::inbound::refused;
use crate::socket;
use crate::upstream::Refused;

/// Where one leads.
#[derive(Debug)]
pub enum Led {
    /// It brings requests, which go through this table.
    Requests(Text),
    /// It brings bytes, which this chain leads on.
    Bytes(Text),
    /// That depends on what its client speaks.
    Either {
        /// The table, where that is HTTP.
        requests: Text,
        /// The chain of anything else.
        bytes: Text,
        /// How long it may be open; then it is no HTTP.
        patience: Duration,
    },
}

/// What a name stands for.
enum Kind<'c> {
    Requests(&'c Text),
    Bytes(&'c Text, Duration),
}

/// The address that a stream is for, and where it leads.
///
/// # Errors
/// When that is nowhere.
pub fn lead<B>(config: &Config, request: &Request<B>) -> Result<(SocketAddr, Led), Refused> {
    let wanted = connect::destination(request).map_err(|why| refused(Ending::HandshakeFailed, why))?;
    let to = address(config, &wanted);
    let authority = request
        .uri()
        .authority()
        .map(|authority| authority.as_str().to_ascii_lowercase());
    let going = Going {
        authority: authority.as_deref(),
        to,
    };
    let nowhere = || {
        let detail = format!("this waypoint does not serve {wanted}");
        refused(Ending::UnknownDestination, detail)
    };
    let closed = |why: &Text| {
        let detail = format!("what this waypoint was told of {wanted} is not understood: {why}");
        refused(Ending::UnknownDestination, detail)
    };
    let kind = |name| kind(config, name).map_err(|why| why.map_or_else(nowhere, closed));
    let lead = (config.http.waypoint.as_ref()).and_then(|place| place.lead(&going));
    let led = match lead.ok_or_else(nowhere)? {
        Lead::Closed(why) => return Err(closed(why)),
        Lead::Chain(name) => match kind(name)? {
            Kind::Requests(table) => Led::Requests(table.clone()),
            Kind::Bytes(chain, _) => Led::Bytes(chain.clone()),
        },
        Lead::Protocol { http, other } => match (kind(http.ok_or_else(nowhere)?)?, other.map(kind)) {
            (Kind::Bytes(one, _), Some(Ok(Kind::Bytes(other, _)))) if one == other => Led::Bytes(one.clone()),
            // What is carried as it is, is carried whatever it is.
            (Kind::Bytes(..), _) => return Err(nowhere()),
            (Kind::Requests(table), Some(Ok(Kind::Bytes(chain, patience)))) => Led::Either {
                requests: table.clone(),
                bytes: chain.clone(),
                patience,
            },
            // What is no request is refused by whoever reads requests.
            (Kind::Requests(table), _) => Led::Requests(table.clone()),
        },
    };
    let chain = match &led {
        Led::Requests(name) | Led::Bytes(name) | Led::Either { bytes: name, .. } => config.http.chains.get(name),
    };
    let said = chain.and_then(|chain| destination(chain.as_deref().ok()?));
    match wanted {
        Destination::Host { .. } => Ok((said.unwrap_or(to), led)),
        Destination::Address(_) => Ok((to, led)),
    }
}

/// The address of a chain's service, where that is said.
fn destination(chain: &Chain) -> Option<SocketAddr> {
    match chain {
        Chain::Http(chain) => chain.destination,
        Chain::Tcp(chain) => chain.destination,
    }
}

/// What a name stands for; or why that is closed, if it is said.
fn kind<'c>(config: &'c Config, name: &'c Text) -> Result<Kind<'c>, Option<&'c Text>> {
    match config.http.chains.get(name) {
        Some(Err(why)) => return Err(Some(why)),
        Some(Ok(chain)) => {
            if let Chain::Tcp(chain) = &**chain {
                return Ok(Kind::Bytes(name, chain.detection_timeout));
            }
        }
        None => {}
    }
    let is_there = config.http.tables.contains_key(name);
    is_there.then_some(Kind::Requests(name)).ok_or(None)
}

/// A name stands for its service's first address; one that the mesh does not know is told apart by itself.
fn address(config: &Config, wanted: &Destination) -> SocketAddr {
    match wanted {
        Destination::Address(address) => socket::canonical(*address),
        Destination::Host { host, port } => {
            let service = config.mesh.service_named(host);
            let vip = service.and_then(|service| service.service().vips.first().map(|vip| vip.address));
            SocketAddr::new(vip.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)), *port)
        }
    }
}
