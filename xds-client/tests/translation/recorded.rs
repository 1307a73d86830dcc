//! Everything that istiod was recorded to send translates, and not a field of it is overlooked.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use prost::Message;
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MapKey, Value};
use underpass_config::{Gateway, GatewayDestination, Mesh, MeshChange, ServiceKey, Vip, WorkloadUid};
use underpass_xds_client::proto::discovery::DeltaDiscoveryResponse;
use underpass_xds_client::{Accepted, MeshFacts, descriptor, translate_response};

pub fn recordings() -> Vec<(PathBuf, DeltaDiscoveryResponse)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recordings");
    let mut found = Vec::new();
    for scenario in root.read_dir().unwrap() {
        let scenario = scenario.unwrap().path();
        if !scenario.is_dir() {
            continue;
        }
        for file in scenario.read_dir().unwrap() {
            let path = file.unwrap().path();
            // Envoy's types are the waypoint's matter.
            let name = path.file_name().unwrap().to_str().unwrap();
            if ["waypoint-cds.pb", "waypoint-eds.pb", "waypoint-lds.pb", "README.md"].contains(&name) {
                continue;
            }
            let response = DeltaDiscoveryResponse::decode(&*std::fs::read(&path).unwrap()).unwrap();
            found.push((path, response));
        }
    }
    assert!(
        found.len() >= 25,
        "only {} recordings in {}",
        found.len(),
        root.display()
    );
    found
}

pub fn translate(response: &DeltaDiscoveryResponse) -> Accepted {
    translate_response(response, &MeshFacts::default()).unwrap()
}

fn mesh(scenario: &str) -> Mesh {
    let mut mesh = Mesh::default();
    for (path, response) in recordings() {
        if path.parent().unwrap().ends_with(scenario) {
            mesh.apply(translate(&response).changes);
        }
    }
    mesh
}

#[test]
fn every_recording_translates() {
    let (mut resources, mut policies) = (0, 0);
    for (path, response) in recordings() {
        let accepted = translate(&response);
        assert_eq!(accepted.rejections, [], "{}", path.display());
        assert_eq!(accepted.changes.len(), response.resources.len(), "{}", path.display());
        let mut mesh = Mesh::default();
        mesh.apply(accepted.changes);
        let in_mesh = mesh.workloads().count() + mesh.services().count() + mesh.policies().count();
        assert_eq!(in_mesh, response.resources.len(), "{}", path.display());
        resources += in_mesh;
        policies += mesh.policies().count();
    }
    assert!(
        resources >= 142 && policies >= 9,
        "{resources} resources, {policies} policies"
    );
}

#[test]
fn gateways_are_known_by_address_or_name() {
    let address = |network: &str, address: &str| {
        GatewayDestination::Address(Vip {
            network: network.into(),
            address: address.parse().unwrap(),
        })
    };
    let at = |destination| {
        Some(Box::new(Gateway {
            destination,
            hbone_port: 15008,
        }))
    };
    let service = |scenario: &str, key: &str| {
        let mesh = mesh(scenario);
        mesh.service(&ServiceKey::new(key)).unwrap().service().clone()
    };
    let workload = |scenario: &str, uid: &str| mesh(scenario).workload(&WorkloadUid::new(uid)).unwrap().clone();

    let by_address = service("01-baseline", "shop/server.shop.svc.cluster.local");
    assert_eq!(by_address.waypoint, at(address("", "10.96.0.15")));
    let by_name = service("07-shared-node-waypoint", "a/app.a.svc.cluster.local");
    let waypoint = ServiceKey::new("node-waypoint/node-waypoint.node-waypoint.svc.cluster.local");
    assert_eq!(by_name.waypoint, at(GatewayDestination::Service(waypoint)));
    let pod = workload("09-workload-waypoint", "Kubernetes//Pod/shop/server-v1-5d8f-s1");
    assert_eq!(pod.waypoint, at(address("", "10.96.0.15")));
    let remote =
        "net-2/SplitHorizonWorkload/istio-system/eastwest-net-2/172.18.7.100/shop/server.shop.svc.cluster.local";
    let remote = workload("12-networks", remote);
    assert_eq!(remote.network_gateway, at(address("net-2", "172.18.7.100")));
    let server = service("12-networks", "shop/server.shop.svc.cluster.local");
    let names: Vec<String> = server.subject_alt_names.iter().map(ToString::to_string).collect();
    assert_eq!(names, ["spiffe://cluster.local/ns/shop/sa/server"]);
}

/// Recorded fields that mean nothing to an L4 node, each with the reason.
const IRRELEVANT: [(&str, &str); 3] = [
    (
        "istio.workload.Service.canonical",
        "chooses among services that share a host name; captured traffic goes by address, the rest by the last declared",
    ),
    (
        "istio.workload.Workload.capacity",
        "an endpoint's weight; endpoints are chosen by outstanding connections, which find the capacity by themselves",
    ),
    (
        "istio.workload.Workload.services.app_protocol",
        "the service says it; an endpoint in another network repeats it",
    ),
];

/// Each field is changed wherever it is set, and the translation must differ; unless it is listed as irrelevant, and
/// then it must not.
#[test]
fn every_recorded_field_is_used_or_listed_as_irrelevant() {
    let mut seen = BTreeSet::new();
    for (path, response) in recordings() {
        for position in 0..response.resources.len() {
            let alone = DeltaDiscoveryResponse {
                resources: vec![response.resources[position].clone()],
                ..response.clone()
            };
            let expected = outcome(&alone);
            let any = alone.resources[0].resource.as_ref().unwrap();
            let name = any.type_url.rsplit_once('/').unwrap().1;
            let original = DynamicMessage::decode(descriptor(name).unwrap(), &*any.value).unwrap();
            for (field, changed) in variants(&original) {
                let mut altered = alone.clone();
                altered.resources[0].resource.as_mut().unwrap().value = changed.encode_to_vec();
                let differs = outcome(&altered) != expected;
                let irrelevant = IRRELEVANT.iter().any(|(listed, _)| *listed == field);
                assert_eq!(
                    differs,
                    !irrelevant,
                    "{field} of {} in {}",
                    alone.resources[0].name,
                    path.display()
                );
                seen.insert(field);
            }
        }
    }
    for (listed, _) in IRRELEVANT {
        assert!(seen.contains(listed), "{listed} is not recorded");
    }
    assert!(seen.len() > 50, "{} fields: {seen:#?}", seen.len());
}

/// The changes and rejections as text: enough to compare them by.
fn outcome(response: &DeltaDiscoveryResponse) -> String {
    let accepted = translate(response);
    let changes: Vec<String> = accepted
        .changes
        .iter()
        .map(|change| match change {
            MeshChange::Workload(workload) => format!("{workload:?}"),
            MeshChange::Service(service) => format!("{service:?}"),
            other => format!("{other:?}"),
        })
        .collect();
    format!("{changes:?} {:?}", accepted.rejections)
}

/// The message with one field changed, for each field that is set anywhere in it, with that field's name.
fn variants(message: &DynamicMessage) -> Vec<(String, DynamicMessage)> {
    let mut found = Vec::new();
    let fields: Vec<FieldDescriptor> = message.fields().map(|(field, _)| field).collect();
    for field in fields {
        for (below, value) in value_variants(message.get_field(&field).as_ref(), &field) {
            let mut changed = message.clone();
            changed.set_field(&field, value);
            // Maps and their entries are named as fields of the message that has the map.
            let name = match below {
                None => field.full_name().to_owned(),
                Some(below) if below.starts_with("google.protobuf.") => field.full_name().to_owned(),
                Some(below) if field.is_map() => {
                    format!("{}.{}", field.full_name(), below.rsplit_once('.').unwrap().1)
                }
                Some(below) => below,
            };
            found.push((name, changed));
        }
    }
    found
}

fn value_variants(value: &Value, field: &FieldDescriptor) -> Vec<(Option<String>, Value)> {
    match value {
        Value::Message(message) if message.fields().next().is_none() => {
            // Only its presence says anything.
            Vec::new()
        }
        Value::Message(message) => {
            let inner = variants(message).into_iter();
            inner
                .map(|(name, changed)| (Some(name), Value::Message(changed)))
                .collect()
        }
        Value::List(values) => {
            let mut found = Vec::new();
            for position in 0..values.len() {
                for (name, changed) in value_variants(&values[position], field) {
                    let mut list = values.clone();
                    list[position] = changed;
                    found.push((name, Value::List(list)));
                }
            }
            found
        }
        Value::Map(entries) => {
            let mut found = Vec::new();
            for (key, value) in entries {
                let MapKey::String(text) = key else { panic!("{key:?}") };
                let mut renamed = entries.clone();
                renamed.remove(key);
                renamed.insert(MapKey::String(format!("{text}x")), value.clone());
                found.push((None, Value::Map(renamed)));
                for (name, changed) in value_variants(value, field) {
                    let mut with = entries.clone();
                    with.insert(key.clone(), changed);
                    found.push((name, Value::Map(with)));
                }
            }
            found
        }
        Value::String(text) => vec![(None, Value::String(format!("{text}x")))],
        Value::Bool(set) => vec![(None, Value::Bool(!set))],
        Value::U32(number) => vec![(None, Value::U32(number + 1))],
        Value::Bytes(bytes) => {
            let mut bytes = bytes.to_vec();
            bytes[0] ^= 1;
            vec![(None, Value::Bytes(bytes.into()))]
        }
        Value::EnumNumber(number) => {
            let Kind::Enum(descriptor) = field.kind() else {
                panic!("{field:?}")
            };
            let others = descriptor
                .values()
                .map(|value| value.number())
                .filter(|other| other != number);
            let others: Vec<_> = others.map(|other| (None, Value::EnumNumber(other))).collect();
            assert!(!others.is_empty());
            others
        }
        other => panic!("{} has a {other:?}, which no recording had", field.full_name()),
    }
}
