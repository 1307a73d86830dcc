//! Istio's certificate service, generated from `proto/ca.proto`.
#![allow(missing_docs, unused_qualifications, clippy::all, reason = "generated")]

tonic::include_proto!("istio.v1.auth");
