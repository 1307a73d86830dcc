//! Certificates: how they are obtained and kept, and what they are good for.

#![allow(
    clippy::unwrap_used,
    reason = "clippy takes the helpers of an integration test for something else"
)]

mod authority;
mod files;
mod handshake;
mod istio_ca;
mod store;
