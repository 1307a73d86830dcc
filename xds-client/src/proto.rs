//! The messages of `proto/`, generated. Servers are generated too: tests and benches play istiod with them. Some messages are only looked at by their
//! descriptors.
#![allow(
    missing_docs,
    dead_code,
    unused_qualifications,
    rustdoc::invalid_html_tags,
    clippy::all,
    reason = "generated"
)]

/// All packages, nested as they are named.
mod messages {
    include!(concat!(env!("OUT_DIR"), "/messages.rs"));
}

/// `envoy.service.discovery.v3`
pub use messages::envoy::service::discovery::v3 as discovery;
/// `istio.workload` and `istio.security`
pub use messages::istio;
/// What a waypoint is sent: Envoy's API and what it is written in, as far as `proto/waypoint` has it.
pub(crate) use messages::{envoy, opentelemetry, stats, udpa, xds};

/// The descriptors of all of them, a `google.protobuf.FileDescriptorSet`.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
