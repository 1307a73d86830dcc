//! Bytes that no istiod sends: nothing panics, and what they are not of stays as it was.

use proptest::prelude::*;
use prost_reflect::{DynamicMessage, Value};
use underpass_xds_client::ResponseError;
use underpass_xds_client::descriptor;
use underpass_xds_client::proto::discovery::DeltaDiscoveryResponse;
use underpass_xds_client::waypoint::Held;

use crate::reflection::{any as packed_any, repack};
use crate::slips::slip;
use crate::{SCENARIOS, SERVER, TYPES, held, message, recording, response};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_damaged_recording_is_taken_or_closed_resource_by_resource(slip in slip()) {
        let scenario = SCENARIOS[slip.recording % SCENARIOS.len()];
        let (_, kind) = TYPES[slip.recording / SCENARIOS.len() % TYPES.len()];
        let mut response = recording(scenario, kind);
        let name = slip.make(&mut response);
        let mut held = Held::default();
        let taken = held.take(&response).unwrap();
        let closed = held.clusters.iter().filter(|(_, kept)| kept.served.is_err()).map(|(name, _)| name);
        let closed = closed.chain(held.endpoints.iter().filter(|(_, kept)| kept.served.is_err()).map(|(name, _)| name));
        for other in closed {
            prop_assert_eq!(&**other, name.as_str());
        }
        prop_assert!(taken.closed.len() + taken.left_out.len() < 200);
    }

    #[test]
    fn any_bytes_are_closed_or_translate(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        for (_, kind) in TYPES {
            let mut one = response(kind, SERVER, &message("01-baseline", "cds", SERVER));
            one.resources[0].resource.as_mut().unwrap().value.clone_from(&bytes);
            let _ = Held::default().take(&one);
        }
    }
}

/// Each `Any` is decoded by itself, so that no decoder's limit on depth holds for all of them.
#[test]
fn what_is_packed_too_deep_is_closed() {
    let name = "envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport";
    let socket = |inner: Value| {
        let mut socket = DynamicMessage::new(descriptor("envoy.config.core.v3.TransportSocket").unwrap());
        socket.set_field_by_name("typed_config", inner);
        Value::Message(socket)
    };
    let mut nested = socket(packed_any(
        "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer",
        |_| (),
    ));
    for _ in 0..3_000 {
        let mut upstream = DynamicMessage::new(descriptor(name).unwrap());
        upstream.set_field_by_name("transport_socket", nested);
        let mut packed = DynamicMessage::new(descriptor("google.protobuf.Any").unwrap());
        repack(&mut packed, &upstream);
        nested = socket(Value::Message(packed));
    }
    let mut cluster = message("01-baseline", "cds", SERVER);
    cluster.set_field_by_name("transport_socket", nested);
    let mut held = held("01-baseline");
    held.take(&response("cds", SERVER, &cluster)).unwrap();
    let why = held.clusters[SERVER].served.as_ref().unwrap_err();
    assert!(why.field.contains("too deep"), "{}", &why.field[..200]);
}

#[test]
fn a_response_that_contradicts_itself_is_refused_whole() {
    let mut held = held("01-baseline");
    let before = held.clusters.len();
    let mut twice = recording("01-baseline", "cds");
    twice.resources.push(twice.resources[0].clone());
    let name = twice.resources[0].name.clone();
    twice.removed_resources = vec![SERVER.to_owned()];
    assert!(matches!(held.take(&twice), Err(ResponseError::Twice(_))), "{name}");
    let other = DeltaDiscoveryResponse {
        type_url: "type.googleapis.com/other".to_owned(),
        ..Default::default()
    };
    assert!(matches!(held.take(&other), Err(ResponseError::Type(_))));
    assert_eq!(held.clusters.len(), before);
}
