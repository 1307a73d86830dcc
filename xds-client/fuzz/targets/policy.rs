//! Whatever is sent as a policy, the mesh has a policy of that name afterwards: it is never just left out.
#![no_main]

use libfuzzer_sys::fuzz_target;
use underpass_config::{Mesh, PolicyKey};
use underpass_xds_client::proto::discovery::{DeltaDiscoveryResponse, Resource};
use underpass_xds_client::{MeshFacts, ResourceType, translate_response};

fuzz_target!(|data: &[u8]| {
    let kind = ResourceType::Authorization;
    let resource = Resource {
        name: "shop/p".into(),
        resource: Some(prost_types::Any {
            type_url: kind.url().into(),
            value: data.to_vec(),
        }),
        ..Default::default()
    };
    let response = DeltaDiscoveryResponse {
        type_url: kind.url().into(),
        resources: vec![resource],
        ..Default::default()
    };
    let accepted = translate_response(&response, &MeshFacts::default()).expect("it does not contradict itself");
    let mut mesh = Mesh::default();
    mesh.apply(accepted.changes);
    assert!(mesh.policy(&PolicyKey::new("shop/p")).is_some());
});
