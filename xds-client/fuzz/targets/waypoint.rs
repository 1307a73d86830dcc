//! Any response of a waypoint's types is taken or closed, twice is as once, and what has no name is refused.
#![no_main]

use libfuzzer_sys::fuzz_target;
use prost::Message;
use underpass_xds_client::proto::discovery::DeltaDiscoveryResponse;
use underpass_xds_client::waypoint::Held;

fuzz_target!(|data: &[u8]| {
    let Ok(response) = DeltaDiscoveryResponse::decode(data) else {
        return;
    };
    let mut held = Held::default();
    if held.take(&response).is_err() {
        return;
    }
    let again = held.take(&response).unwrap_or_default();
    assert!(again.rebuilt.is_empty());
});
