//! Slips in recorded responses: what a peer sends that is nearly what istiod sends.

use proptest::prelude::*;
use underpass_xds_client::proto::discovery::DeltaDiscoveryResponse;

/// A slip in a recorded response: a byte of a resource changed, bytes taken out, or bytes put in.
#[derive(Clone, Debug)]
pub(crate) struct Slip {
    /// Which recording it is in, of as many as there are.
    pub(crate) recording: usize,
    resource: usize,
    at: usize,
    remove: usize,
    insert: Vec<u8>,
}

pub(crate) fn slip() -> impl Strategy<Value = Slip> {
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

impl Slip {
    /// Makes it in a response with resources, and says the name of the one that it is in.
    pub(crate) fn make(self, response: &mut DeltaDiscoveryResponse) -> String {
        let position = self.resource % response.resources.len();
        let resource = &mut response.resources[position];
        let value = &mut resource.resource.as_mut().unwrap().value;
        let at = self.at % value.len();
        let end = value.len().min(at + self.remove);
        value.splice(at..end, self.insert);
        resource.name.clone()
    }
}
