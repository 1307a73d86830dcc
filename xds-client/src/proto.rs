//! The messages of `proto/`, generated. Servers are generated too: tests and benches play istiod with them.
#![allow(missing_docs, unused_qualifications, clippy::all, reason = "generated")]

/// `envoy.service.discovery.v3`
pub mod discovery {
    tonic::include_proto!("envoy.service.discovery.v3");
}

/// `istio.workload` and `istio.security`
pub mod istio {
    pub mod workload {
        tonic::include_proto!("istio.workload");
    }
    pub mod security {
        tonic::include_proto!("istio.security");
    }
}

/// The descriptors of all of them, a `google.protobuf.FileDescriptorSet`.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
