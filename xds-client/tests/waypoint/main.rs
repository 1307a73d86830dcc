//! What istiod was recorded to send a waypoint, translated.

#![allow(
    clippy::unwrap_used,
    reason = "clippy takes the helpers of an integration test for something else"
)]

mod closed;
mod clusters;
mod fields;
mod hashes;
mod hostile;
mod recorded;
mod reflection;
mod refusals;
mod routes;
mod rules;
#[path = "../common/slips.rs"]
mod slips;
mod telemetry;
mod wiring;

use std::path::Path;
use std::sync::Arc;

use prost::Message;
use prost_reflect::DynamicMessage;
use underpass_config::http::RouteTable;
use underpass_config::waypoint::{Chain, HttpChain, TcpChain};
use underpass_xds_client::descriptor;
use underpass_xds_client::proto::discovery::{DeltaDiscoveryResponse, Resource};
use underpass_xds_client::waypoint::{CLUSTER, ENDPOINTS, Held, LISTENER};

/// The scenarios, by folder.
const SCENARIOS: [&str; 12] = [
    "01-baseline",
    "02-l4-policy",
    "03-l7-authorization",
    "04-jwt",
    "05-traffic-management",
    "06-gateway-api",
    "07-shared-node-waypoint",
    "08-service-entry",
    "09-workload-waypoint",
    "10-telemetry",
    "12-locality",
    "12-networks",
];

/// The types that are translated here, with what their files are called.
const TYPES: [(&str, &str); 3] = [(CLUSTER, "cds"), (ENDPOINTS, "eds"), (LISTENER, "lds")];

/// What was recorded of one type.
fn recording(scenario: &str, kind: &str) -> DeltaDiscoveryResponse {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recordings");
    let file = root.join(scenario).join(format!("waypoint-{kind}.pb"));
    DeltaDiscoveryResponse::decode(&*std::fs::read(&file).unwrap()).unwrap()
}

/// Everything of a scenario, taken in the order in which it was sent.
fn held(scenario: &str) -> Held {
    let mut held = Held::default();
    for (_, kind) in TYPES {
        held.take(&recording(scenario, kind)).unwrap();
    }
    held
}

/// A resource of a recording, as what can be changed.
fn message(scenario: &str, kind: &str, name: &str) -> DynamicMessage {
    let response = recording(scenario, kind);
    let resource = response.resources.iter().find(|resource| resource.name == name);
    decoded(resource.unwrap_or_else(|| panic!("{scenario} has no {name}")))
}

fn decoded(resource: &Resource) -> DynamicMessage {
    let any = resource.resource.as_ref().unwrap();
    let name = any.type_url.rsplit_once('/').unwrap().1;
    DynamicMessage::decode(descriptor(name).unwrap(), &*any.value).unwrap()
}

/// A response with one resource.
fn response(kind: &str, name: &str, message: &DynamicMessage) -> DeltaDiscoveryResponse {
    let (url, _) = TYPES.iter().find(|(_, file)| *file == kind).unwrap();
    DeltaDiscoveryResponse {
        type_url: (*url).to_owned(),
        resources: vec![Resource {
            name: name.to_owned(),
            version: "1".to_owned(),
            resource: Some(prost_types::Any {
                type_url: (*url).to_owned(),
                value: message.encode_to_vec(),
            }),
            aliases: Vec::new(),
        }],
        ..Default::default()
    }
}

fn chain<'h>(held: &'h Held, name: &str) -> &'h Chain {
    let kept = held
        .chains
        .get(name)
        .unwrap_or_else(|| panic!("there is no chain {name}"));
    kept.served.as_ref().unwrap_or_else(|why| panic!("{why}"))
}

fn http<'h>(held: &'h Held, name: &str) -> &'h HttpChain {
    match chain(held, name) {
        Chain::Http(http) => http,
        Chain::Tcp(tcp) => panic!("{name} is {tcp:?}"),
    }
}

fn tcp<'h>(held: &'h Held, name: &str) -> &'h TcpChain {
    match chain(held, name) {
        Chain::Tcp(tcp) => tcp,
        Chain::Http(http) => panic!("{name} is {http:?}"),
    }
}

fn table(held: &Held, name: &str) -> Arc<RouteTable> {
    http(held, name).table.clone()
}

const SERVER: &str = "inbound-vip|80|http|server.shop.svc.cluster.local";
const SERVER_TCP: &str = "inbound-vip|9000|tcp|server.shop.svc.cluster.local";
