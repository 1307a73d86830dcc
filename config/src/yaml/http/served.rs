//! `http.services:`: what tunnels to a listener of the protocol `hbone` lead to.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use serde::Deserialize;

use super::super::reading::{Path, Reading};
use super::super::scalar::Scalar;
use super::carried::TcpShape;
use super::ext_authz::Providers;
use super::{HttpShape, SECTION};
use crate::Text;
use crate::http::Http;
use crate::waypoint::{Chain, Place, Places};

/// A service and one of its ports: what becomes of its requests, or of its bytes; or of either, by what a client speaks.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ServedShape<'a> {
    #[serde(borrow)]
    address: Scalar<'a>,
    hostname: Option<Scalar<'a>>,
    routes: Option<Scalar<'a>>,
    tcp: Option<TcpShape<'a>>,
}

/// Tables by port, of one address.
type Ports = BTreeMap<u16, Place>;

/// The chains of `http` beside its tables are added to it.
pub(super) fn compile(
    shapes: &[ServedShape<'_>],
    http: &mut Http,
    providers: &Providers,
    reading: &mut Reading,
) -> Option<Place> {
    let (mut by_address, mut by_name) = (BTreeMap::<IpAddr, Ports>::new(), BTreeMap::new());
    for (index, shape) in shapes.iter().enumerate() {
        let services = SECTION.field("services");
        let path = services.item(index);
        let address = reading.socket_address(path.field("address"), &shape.address);
        let address = address.map(|address| SocketAddr::new(address.ip().to_canonical(), address.port()));
        let chain = shape.chain(path, address, (http, providers), reading);
        let Some(address) = address else {
            continue;
        };
        let place = match (shape.routes(path, http, reading), chain) {
            (Some(routes), Some(chain)) => Place::Depends(Box::new(Places::Protocol {
                http: Some(Place::Chain(routes)),
                otherwise: Some(Place::Chain(chain)),
            })),
            (Some(only), None) | (None, Some(only)) => Place::Chain(only),
            (None, None) => {
                let remedy = "write `routes: NAME`, `tcp: {cluster: NAME}`, or both";
                reading.report(path, "", "leads nowhere", remedy);
                continue;
            }
        };
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

impl ServedShape<'_> {
    /// The table of its requests.
    fn routes(&self, path: Path<'_>, http: &Http, reading: &mut Reading) -> Option<Text> {
        let routes = reading.text(self.routes.as_ref()?);
        HttpShape::check_table(path.field("routes"), &routes, http, reading);
        Some(routes)
    }

    /// The chain of its bytes, by the name that it has been given.
    fn chain(
        &self,
        path: Path<'_>,
        address: Option<SocketAddr>,
        (http, providers): (&mut Http, &Providers),
        reading: &mut Reading,
    ) -> Option<Text> {
        let shape = self.tcp.as_ref()?;
        let path = path.field("tcp");
        let chain = shape.compile(path, http, providers, reading);
        if self.routes.is_none() {
            shape.check_alone(path, reading);
        }
        let name = reading.text(&format!("tcp|{}", address?));
        if http.tables.contains_key(&name) {
            let problem = "a table of `http.routes` has the name that is given to this";
            reading.report(path, &name, problem, "give the table another");
        }
        http.chains.insert(name.clone(), Ok(Arc::new(Chain::Tcp(chain))));
        Some(name)
    }
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
    use crate::waypoint::{Chain, Going, Lead};

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
    fn what_is_no_http_has_a_chain_of_its_own() {
        let config = served(
            "  - address: '10.96.0.1:90'\n    tcp:\n      clusters: [{cluster: a, weight: 3}, {cluster: b, weight: 1}]\n      hash_source_ip: true\n      \
             idle_timeout: 0s\n      authorization: [{name: p, namespace: n, rules: [{from: [{source: {namespaces: [shop]}}]}]}]\n  \
             - {address: '10.96.0.1:80', routes: web, tcp: {cluster: a, max_duration: 1h, detection_timeout: 1s}}\n\
             \x20 clusters: [{name: a, endpoints: ['127.0.0.1:1']}, {name: b, endpoints: ['127.0.0.1:2']}]\n",
        )
        .unwrap();
        let place = config.http.waypoint.as_ref().unwrap();
        let lead = |to: &str| {
            let to = to.parse().unwrap();
            place.lead(&Going { authority: None, to })
        };
        let Some(Lead::Chain(name)) = lead("10.96.0.1:90") else {
            panic!("{:?}", lead("10.96.0.1:90"));
        };
        let Some(Ok(chain)) = config.http.chains.get(name) else {
            panic!("there is no chain {name}");
        };
        let Chain::Tcp(chain) = &**chain else {
            panic!("{chain:?}")
        };
        let weights: Vec<_> = chain.clusters.iter().map(|of| (&*of.cluster, of.weight)).collect();
        assert_eq!(weights, [("a", 3), ("b", 1)]);
        assert!(chain.by_source && chain.idle_timeout.is_none() && chain.max_duration.is_none());
        assert_eq!((chain.rules.len(), chain.detection_timeout.as_secs()), (1, 15));
        let Some(Lead::Protocol {
            http: Some(http),
            other: Some(other),
        }) = lead("10.96.0.1:80")
        else {
            panic!("{:?}", lead("10.96.0.1:80"));
        };
        assert!(**http == *"web" && config.http.chains.contains_key(other));
    }

    #[test]
    fn what_is_not_there_or_there_twice_is_refused() {
        for (services, problem) in [
            ("  - {address: '10.96.0.1:80'}\n", "leads nowhere"),
            ("  - {address: '10.96.0.1:80', tcp: {}}\n", "leads to no cluster"),
            (
                "  - {address: '10.96.0.1:80', tcp: {cluster: a}}\n",
                "is not one of `http.clusters`",
            ),
            (
                "  - {address: '10.96.0.1:80', tcp: {detection_timeout: 1s}}\n",
                "there are no `routes` beside `tcp`",
            ),
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
