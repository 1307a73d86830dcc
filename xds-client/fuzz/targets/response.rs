//! Any response translates or is refused, and what is taken can be applied.
#![no_main]

use libfuzzer_sys::fuzz_target;
use prost::Message;
use underpass_config::Mesh;
use underpass_xds_client::proto::discovery::DeltaDiscoveryResponse;
use underpass_xds_client::{MeshFacts, translate_response};

fuzz_target!(|data: &[u8]| {
    let Ok(response) = DeltaDiscoveryResponse::decode(data) else {
        return;
    };
    let Ok(accepted) = translate_response(&response, &MeshFacts::default()) else {
        return;
    };
    let sent = |name: &str| response.resources.iter().any(|resource| resource.name == name);
    assert!(accepted.rejections.iter().all(|rejection| sent(&rejection.name)));
    assert!(accepted.changes.len() <= response.resources.len());
    Mesh::default().apply(accepted.changes);
});
