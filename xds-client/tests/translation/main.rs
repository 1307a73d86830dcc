//! What responses of istiod come to: recorded ones, ones that hold what we do not understand, and hostile ones.

#![allow(
    clippy::unwrap_used,
    reason = "clippy takes the helpers of an integration test for something else"
)]

mod hostile;
mod not_understood;
mod recorded;
#[path = "../common/slips.rs"]
mod slips;

use prost::Message;
use underpass_xds_client::ResourceType;
use underpass_xds_client::proto::discovery::{DeltaDiscoveryResponse, Resource};

fn response(kind: ResourceType, resources: impl IntoIterator<Item = (String, Vec<u8>)>) -> DeltaDiscoveryResponse {
    let resource = |(name, value)| Resource {
        name,
        version: "1".into(),
        resource: Some(prost_types::Any {
            type_url: kind.url().into(),
            value,
        }),
        aliases: Vec::new(),
    };
    DeltaDiscoveryResponse {
        type_url: kind.url().into(),
        nonce: "n".into(),
        resources: resources.into_iter().map(resource).collect(),
        ..Default::default()
    }
}

fn named(name: &str, message: &impl Message) -> (String, Vec<u8>) {
    (name.to_owned(), message.encode_to_vec())
}
