//! Against a real istiod: first the libraries that talk to it, then proxies that take their mesh from it.

#![allow(
    clippy::unwrap_used,
    reason = "clippy takes the helpers of an integration test for something else"
)]

mod certificates;
mod cluster;
mod consumer;
mod faults;
mod nodes;
mod place;
mod policy;
mod role;
mod services;
mod subscription;
mod timing;
mod waypoint;
