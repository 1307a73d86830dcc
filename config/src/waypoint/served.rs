//! What the tunnels of a waypoint's listener lead to.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use foldhash::quality::RandomState;

use super::{Going, Place};
use crate::{Service, Text};

/// All that is served.
#[derive(Clone, Debug, Default)]
pub struct Waypoint {
    /// To which chain a connection leads, by where it was going; `None`: nothing is served as yet.
    pub place: Option<Place>,
    /// The chains.
    pub chains: HashMap<Text, Served, RandomState>,
}

/// What becomes of the connections that are led to a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Served {
    /// Their requests go through one of [`Http::tables`](crate::http::Http::tables).
    Http {
        /// Its name.
        table: Text,
    },
    /// They are turned away.
    Closed {
        /// What of it is not understood.
        why: Text,
    },
}

impl Waypoint {
    /// Whether one of a service's addresses and ports leads anywhere.
    pub fn stands_before(&self, service: &Service) -> bool {
        let Some(place) = &self.place else { return false };
        let leads = |address: IpAddr, port: u16| {
            let authority = format!("{}:{port}", service.hostname);
            let going = Going {
                authority: Some(&authority),
                to: SocketAddr::new(address, port),
            };
            place.lead(&going).is_some()
        };
        let ports = || service.ports.iter().map(|port| port.port);
        let mut vips = service.vips.iter().map(|vip| vip.address);
        vips.any(|address| ports().any(|port| leads(address, port)))
    }
}
