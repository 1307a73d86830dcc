//! Bytes that no istiod sends: nothing panics, and what is taken is whole.

use proptest::prelude::*;
use prost::Message;
use underpass_config::Mesh;
use underpass_xds_client::proto::discovery::DeltaDiscoveryResponse;
use underpass_xds_client::{MeshFacts, ResourceType, ResponseError, translate_response};

use super::recorded::recordings;
use super::response;
use super::slips::slip;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_damaged_recording_is_taken_or_rejected_resource_by_resource(slip in slip()) {
        let recordings: Vec<_> = recordings().into_iter().filter(|(_, one)| !one.resources.is_empty()).collect();
        let mut response = recordings[slip.recording % recordings.len()].1.clone();
        let name = slip.make(&mut response);

        let accepted = translate_response(&response, &MeshFacts::default()).unwrap();
        prop_assert!(accepted.rejections.iter().all(|rejection| rejection.name == name));
        prop_assert!(accepted.changes.len() >= response.resources.len() - 1);
        Mesh::default().apply(accepted.changes);
    }

    #[test]
    fn any_bytes_are_rejected_or_translate(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        for kind in ResourceType::MESH {
            let one = response(kind, [("shop/x".to_owned(), bytes.clone())]);
            let accepted = translate_response(&one, &MeshFacts::default()).unwrap();
            Mesh::default().apply(accepted.changes);
        }
        if let Ok(response) = DeltaDiscoveryResponse::decode(&*bytes) {
            let _ = translate_response(&response, &MeshFacts::default());
        }
    }
}

#[test]
fn a_response_that_contradicts_itself_is_refused_whole() {
    let empty = |names: &[&str]| {
        let named = names.iter().map(|name| ((*name).to_owned(), Vec::new()));
        response(ResourceType::Address, named)
    };
    let removed = |names: &[&str], mut response: DeltaDiscoveryResponse| {
        response.removed_resources = names.iter().map(|name| (*name).to_owned()).collect();
        response
    };
    let twice = || ResponseError::Twice("a".into());
    let unknown = DeltaDiscoveryResponse {
        type_url: "type.googleapis.com/other".into(),
        ..Default::default()
    };
    let rows = [
        (empty(&["a", "b", "a"]), twice()),
        (removed(&["a"], empty(&["a"])), twice()),
        (removed(&["a", "a"], empty(&[])), twice()),
        (empty(&[""]), ResponseError::Nameless),
        (unknown, ResponseError::Type("type.googleapis.com/other".into())),
    ];
    for (response, expected) in rows {
        assert_eq!(
            translate_response(&response, &MeshFacts::default()).unwrap_err(),
            expected
        );
    }
}
