//! Bytes that no istiod sends: nothing panics, and what is taken is whole.

use proptest::prelude::*;
use prost::Message;
use underpass_config::Mesh;
use underpass_xds_client::proto::discovery::DeltaDiscoveryResponse;
use underpass_xds_client::{MeshFacts, ResourceType, ResponseError, translate_response};

use super::recorded::recordings;
use super::response;

/// A slip in a recorded response: a byte of a resource changed, bytes taken out, or bytes put in.
#[derive(Clone, Debug)]
struct Slip {
    recording: usize,
    resource: usize,
    at: usize,
    remove: usize,
    insert: Vec<u8>,
}

fn slip() -> impl Strategy<Value = Slip> {
    let bytes = proptest::collection::vec(any::<u8>(), 0..6);
    (any::<usize>(), any::<usize>(), any::<usize>(), 0..6usize, bytes).prop_map(
        |(recording, resource, at, remove, insert)| Slip {
            recording,
            resource,
            at,
            remove,
            insert,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_damaged_recording_is_taken_or_rejected_resource_by_resource(slip in slip()) {
        let recordings: Vec<_> = recordings().into_iter().filter(|(_, one)| !one.resources.is_empty()).collect();
        let mut response = recordings[slip.recording % recordings.len()].1.clone();
        let position = slip.resource % response.resources.len();
        let value = &mut response.resources[position].resource.as_mut().unwrap().value;
        let at = slip.at % value.len();
        let end = value.len().min(at + slip.remove);
        value.splice(at..end, slip.insert);

        let accepted = translate_response(&response, &MeshFacts::default()).unwrap();
        let name = &response.resources[position].name;
        prop_assert!(accepted.rejections.iter().all(|rejection| rejection.name == *name));
        prop_assert!(accepted.changes.len() >= response.resources.len() - 1);
        Mesh::default().apply(accepted.changes);
    }

    #[test]
    fn any_bytes_are_rejected_or_translate(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        for kind in ResourceType::ALL {
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
