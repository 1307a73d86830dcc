//! `http.services:`: what tunnels to a listener of the protocol `hbone` lead to.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde::Deserialize;

use super::super::reading::{Path, Reading};
use super::super::scalar::Scalar;
use super::{HttpShape, SECTION};
use crate::http::Http;
use crate::waypoint::{Place, Places};

/// A service and one of its ports.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ServedShape<'a> {
    #[serde(borrow)]
    address: Scalar<'a>,
    hostname: Option<Scalar<'a>>,
    routes: Scalar<'a>,
}

/// Tables by port, of one address.
type Ports = BTreeMap<u16, Place>;

pub(super) fn compile(shapes: &[ServedShape<'_>], http: &Http, reading: &mut Reading) -> Option<Place> {
    let (mut by_address, mut by_name) = (BTreeMap::<IpAddr, Ports>::new(), BTreeMap::new());
    for (index, shape) in shapes.iter().enumerate() {
        let services = SECTION.field("services");
        let path = services.item(index);
        let routes = reading.text(&shape.routes);
        HttpShape::check_table(path.field("routes"), &routes, http, reading);
        let Some(address) = reading.socket_address(path.field("address"), &shape.address) else {
            continue;
        };
        let address = SocketAddr::new(address.ip().to_canonical(), address.port());
        let place = Place::Chain(routes);
        match by_address.entry(address.ip()).or_default().entry(address.port()) {
            Entry::Vacant(free) => drop(free.insert(place.clone())),
            Entry::Occupied(_) => taken(path.field("address"), &shape.address, reading),
        }
        if let Some(hostname) = &shape.hostname {
            let name = format!("{}:{}", hostname.to_ascii_lowercase(), address.port());
            if by_name.insert(name, place).is_some() {
                taken(path.field("hostname"), hostname, reading);
            }
        }
    }
    (!by_address.is_empty()).then(|| place(by_address, by_name))
}

fn taken(path: Path<'_>, value: &str, reading: &mut Reading) {
    let problem = "another of `http.services` has it at this port";
    reading.report(path, value, problem, "remove one, or write another port");
}

fn place(by_address: BTreeMap<IpAddr, Ports>, by_name: BTreeMap<String, Place>) -> Place {
    let by = by_address.into_iter().map(|(address, by)| {
        let ports = Places::Port { by, otherwise: None };
        (vec![IpNet::from(address)], Place::Depends(Box::new(ports)))
    });
    let addresses = Places::Address {
        by: by.collect(),
        otherwise: None,
    };
    let addresses = Place::Depends(Box::new(addresses));
    match by_name.is_empty() {
        true => addresses,
        false => Place::Depends(Box::new(Places::Authority {
            by: by_name,
            otherwise: Some(addresses),
        })),
    }
}

#[cfg(test)]
mod tests {
    use crate::Config;
    use crate::waypoint::{Going, Lead};

    const FILE: &str = "http:\n  routes:\n  - {name: web, virtual_hosts: [{name: a, domains: ['*'], routes: [{direct: {status: 200}}]}]}\n  services:\n";

    fn served(services: &str) -> Result<Config, String> {
        Config::from_yaml(&format!("{FILE}{services}")).map_err(|error| error.to_string())
    }

    #[test]
    fn a_tunnel_leads_by_its_address_or_by_its_name() {
        let config =
            served("  - {address: '10.96.0.1:80', hostname: Web.shop.svc.cluster.local, routes: web}\n").unwrap();
        let place = config.http.waypoint.as_ref().unwrap();
        let lead = |authority: &str, to: &str| {
            let to = to.parse().unwrap();
            let authority = Some(authority);
            matches!(place.lead(&Going { authority, to }), Some(Lead::Chain(name)) if **name == *"web")
        };
        assert!(lead("10.96.0.1:80", "10.96.0.1:80"));
        assert!(lead("web.shop.svc.cluster.local:80", "0.0.0.0:80"));
        assert!(!lead("10.96.0.1:81", "10.96.0.1:81"));
        assert!(!lead("10.96.0.2:80", "10.96.0.2:80"));
        assert!(config.http.tables.contains_key("web"));
    }

    #[test]
    fn what_is_not_there_or_there_twice_is_refused() {
        for (services, problem) in [
            ("  - {address: '10.96.0.1:80', routes: wed}\n", "did you mean `web`?"),
            ("  - {address: '10.96.0.1', routes: web}\n", "address"),
            (
                "  - {address: '10.96.0.1:80', routes: web}\n  - {address: '10.96.0.1:80', routes: web}\n",
                "another of `http.services` has it at this port",
            ),
        ] {
            let error = served(services).unwrap_err();
            assert!(error.contains(problem), "{error}");
        }
    }
}
