//! `envoy.config.endpoint.v3.ClusterLoadAssignment`: the endpoints of one name.
//!
//! An address that is inside Envoy (`connect_originate`) is how it writes "by HBONE": the endpoint's own is its `endpoint_id`. An endpoint that is not
//! understood is left out, and told of; the others serve.

use std::collections::HashSet;
use std::net::SocketAddr;

use prost_types::Value;
use prost_types::value::Kind;
use underpass_config::Text;
use underpass_config::http::{EndpointSettings, Labels, NamedEndpoint, Reach};
use underpass_config::waypoint::{EndpointSet, WaypointEndpoint};

use super::refusal::{At, Refused, each, only_if};
use super::values::{metadata, object, port, text};
use crate::proto::envoy::config::core::v3 as base;
use crate::proto::envoy::config::endpoint::v3 as wire;
use base::address::Address;
use base::envoy_internal_address::AddressNameSpecifier;
use base::socket_address::PortSpecifier;
use wire::lb_endpoint::HostIdentifier;

/// Where Envoy begins HBONE to an endpoint, and to a gateway of another network.
const ORIGINATE: &str = "connect_originate";
const ORIGINATE_WITHIN: &str = "inner_connect_originate";
/// What the listeners of HBONE are told of an endpoint.
const ORIGINAL_DST: &str = "envoy.filters.listener.original_dst";
/// What transports are chosen by.
const TRANSPORT_MATCH: &str = "envoy.transport_socket_match";

/// Translates a set. What can't be, of its endpoints, is beside it.
pub(super) fn translate(wire: &wire::ClusterLoadAssignment) -> Result<(EndpointSet, Vec<Refused>), Refused> {
    let wire::ClusterLoadAssignment {
        cluster_name: _,
        endpoints,
    } = wire;
    let (mut set, mut refused) = (EndpointSet::default(), Vec::new());
    let mut taken = HashSet::new();
    for (index, group) in endpoints.iter().enumerate() {
        let place = Locality::of(group).item(index).at("endpoints")?;
        set.weigh(&place);
        for (at, endpoint) in group.lb_endpoints.iter().enumerate() {
            let translated = of_address(endpoint, &place).and_then(|endpoint| {
                let is_new = taken.insert(endpoint.settings.address);
                only_if(is_new, "endpoint.address", "is another endpoint's, too")?;
                Ok(endpoint)
            });
            match translated.item(at).at("lb_endpoints").item(index).at("endpoints") {
                Ok(endpoint) => set.endpoints.push(endpoint),
                Err(why) => refused.push(why),
            }
        }
    }
    Ok((set, refused))
}

trait Weigh {
    fn weigh(&mut self, place: &Locality);
}

impl Weigh for EndpointSet {
    fn weigh(&mut self, place: &Locality) {
        let known = self.localities.iter().any(|(name, _)| *name == place.name);
        if !known && let Some(weight) = place.weight {
            self.localities.push((place.name.clone(), weight));
        }
    }
}

/// Names whose addresses are a cluster's endpoints.
pub(super) fn names(wire: &wire::ClusterLoadAssignment) -> Result<Vec<NamedEndpoint>, Refused> {
    let wire::ClusterLoadAssignment {
        // The cluster's own.
        cluster_name: _,
        endpoints,
    } = wire;
    let groups = each("endpoints", endpoints, |group: &wire::LocalityLbEndpoints| {
        let place = Locality::of(group)?;
        each("lb_endpoints", &group.lb_endpoints, |endpoint| {
            of_name(endpoint, &place)
        })
    })?;
    let names = groups.concat();
    only_if(
        !names.is_empty(),
        "endpoints",
        "is empty: there is no name to ask DNS for",
    )?;
    Ok(names)
}

/// What localities weigh, of a cluster that has its endpoints in it.
pub(super) fn localities(wire: &wire::ClusterLoadAssignment) -> Result<Vec<(Text, u32)>, Refused> {
    let mut set = EndpointSet::default();
    for (index, group) in wire.endpoints.iter().enumerate() {
        set.weigh(&Locality::of(group).item(index).at("endpoints")?);
    }
    Ok(set.localities)
}

struct Locality {
    name: Text,
    weight: Option<u32>,
    priority: u32,
}

impl Locality {
    fn of(wire: &wire::LocalityLbEndpoints) -> Result<Self, Refused> {
        let wire::LocalityLbEndpoints {
            locality,
            lb_endpoints: _,
            load_balancing_weight,
            priority,
        } = wire;
        let name = locality.as_ref().map_or_else(String::new, |locality| {
            let base::Locality { region, zone, sub_zone } = locality;
            let whole = format!("{region}/{zone}/{sub_zone}");
            whole.trim_end_matches('/').to_owned()
        });
        only_if(*priority <= 128, "priority", "is above 128")?;
        Ok(Self {
            name: name.into(),
            weight: *load_balancing_weight,
            priority: *priority,
        })
    }
}

/// What is said of an endpoint beside where it is.
struct Said<'w> {
    address: &'w Address,
    weight: u32,
    is_well: bool,
    metadata: Option<&'w base::Metadata>,
}

fn said(wire: &wire::LbEndpoint) -> Result<Said<'_>, Refused> {
    let wire::LbEndpoint {
        host_identifier,
        health_status,
        metadata,
        load_balancing_weight,
    } = wire;
    let Some(HostIdentifier::Endpoint(wire::Endpoint { address })) = host_identifier else {
        return Err(Refused::missing("endpoint"));
    };
    let address = address.as_ref().and_then(|address| address.address.as_ref());
    let weight = load_balancing_weight.unwrap_or(1);
    only_if(weight > 0, "load_balancing_weight", "is 0")?;
    use base::HealthStatus::{Degraded, Healthy, Unknown};
    Ok(Said {
        address: address.ok_or_else(|| Refused::missing("endpoint.address"))?,
        weight,
        // One that drains, or is not known how, is given nothing new. (Envoy has degraded ones for when there are no others; istiod sends none.)
        is_well: [Unknown, Healthy, Degraded]
            .iter()
            .any(|well| *well as i32 == *health_status),
        metadata: metadata.as_ref(),
    })
}

fn of_address(wire: &wire::LbEndpoint, place: &Locality) -> Result<WaypointEndpoint, Refused> {
    let said = said(wire)?;
    let (address, reach) = match said.address {
        Address::SocketAddress(socket) => (
            socket_address(socket).at("endpoint.address.socket_address")?,
            Reach::Direct,
        ),
        Address::EnvoyInternalAddress(internal) => {
            inside(internal, said.metadata).at("endpoint.address.envoy_internal_address")?
        }
    };
    let istio = metadata(said.metadata, "istio");
    Ok(WaypointEndpoint {
        settings: EndpointSettings {
            address,
            host: None,
            weight: said.weight,
            priority: place.priority,
            locality: place.name.clone(),
            labels: Labels::default(),
            is_well: said.is_well,
            reach,
        },
        transport: labels(said.metadata),
        workload: text(istio, "workload").unwrap_or_default().into(),
    })
}

fn of_name(wire: &wire::LbEndpoint, place: &Locality) -> Result<NamedEndpoint, Refused> {
    let said = said(wire)?;
    let Address::SocketAddress(base::SocketAddress {
        address,
        port_specifier,
    }) = said.address
    else {
        return Err(Refused::unsupported(
            "endpoint.address",
            "inside Envoy, and DNS is to be asked",
        ));
    };
    only_if(
        !address.is_empty(),
        "endpoint.address.socket_address.address",
        "is empty",
    )?;
    only_if(said.is_well, "health_status", "is bad, of a name")?;
    Ok(NamedEndpoint {
        host: address.as_str().into(),
        port: number(*port_specifier).at("endpoint.address.socket_address.port_value")?,
        weight: said.weight,
        priority: place.priority,
        locality: place.name.clone(),
        labels: Labels::default(),
    })
}

fn socket_address(wire: &base::SocketAddress) -> Result<SocketAddr, Refused> {
    let base::SocketAddress {
        address,
        port_specifier,
    } = wire;
    let ip = address.parse();
    let ip = ip.map_err(|_| Refused::new("address", format!("is `{address}`, which is no address")))?;
    Ok(SocketAddr::new(ip, number(*port_specifier).at("port_value")?))
}

fn number(specified: Option<PortSpecifier>) -> Result<u16, Refused> {
    match specified {
        Some(PortSpecifier::PortValue(number)) => port(number),
        None => Err(Refused::missing("")),
    }
}

/// An endpoint that Envoy reaches through a listener of its own.
fn inside(
    wire: &base::EnvoyInternalAddress,
    described: Option<&base::Metadata>,
) -> Result<(SocketAddr, Reach), Refused> {
    let base::EnvoyInternalAddress {
        address_name_specifier,
        endpoint_id,
    } = wire;
    let Some(AddressNameSpecifier::ServerListenerName(listener)) = address_name_specifier else {
        return Err(Refused::missing("server_listener_name"));
    };
    let address: SocketAddr = endpoint_id
        .parse()
        .map_err(|_| Refused::new("endpoint_id", format!("is `{endpoint_id}`, which is no address")))?;
    let told = metadata(described, ORIGINAL_DST);
    let local = text(told, "local");
    let is_same = local == Some(endpoint_id.as_str());
    only_if(
        is_same,
        "endpoint_id",
        "is not what the listener of HBONE is told (`local` of its metadata)",
    )?;
    let reach = match listener.as_str() {
        ORIGINATE => Reach::Hbone { via: via(told)? },
        ORIGINATE_WITHIN => {
            let istio = metadata(described, "istio");
            let target = text(object(istio, "double_hbone"), "hbone_target_address");
            let target = target.ok_or_else(|| Refused::new("", "has no `hbone_target_address` in its metadata"))?;
            Reach::Network { target: target.into() }
        }
        other => return Err(Refused::unsupported("server_listener_name", format!("`{other}`"))),
    };
    Ok((address, reach))
}

fn via(told: Option<&std::collections::BTreeMap<String, Value>>) -> Result<Option<SocketAddr>, Refused> {
    let Some(via) = text(told, "waypoint") else {
        return Ok(None);
    };
    let address = via.parse();
    address.map(Some).map_err(|_| {
        Refused::new(
            "",
            format!("has the waypoint `{via}` in its metadata, which is no address"),
        )
    })
}

fn labels(described: Option<&base::Metadata>) -> Labels {
    let told = metadata(described, TRANSPORT_MATCH).into_iter().flatten();
    let texts = told.filter_map(|(name, value)| match &value.kind {
        Some(Kind::StringValue(value)) => Some((name.as_str().into(), value.as_str().into())),
        _ => None,
    });
    Labels::new(texts)
}
