//! istiod's front end to the model: what it says of workloads, services and policies becomes changes of a
//! [`Mesh`](underpass_config::Mesh).
//!
//! In the order of a response's life:
//!
//! * `client`: one delta ADS stream to istiod at a time, and another one when it ends. `client::stream` is the life
//!   of one.
//! * `held`: what is in force, by name and version. Refuses a response that contradicts itself, takes or rejects each
//!   resource of any other.
//! * `translate`: what a resource means, one module per meaning; `unknown_fields` looks for what our `.proto` does
//!   not know.
//! * `assembly`: what is handed on together, so that nobody sees workloads without the policies that guard them.
//! * `dump`: what was sent, in a file, and the same without istiod.
//! * [`Updates`]: where it comes out. A slow consumer stops the reading, and istiod with it.
//! * [`StatusReader`]: the connection, ACKs and NACKs by type, and every resource that is not in force as it was sent.
//!
//! The one idea: *the stream is not the state*. What is held outlives streams, so losing istiod changes nothing; a
//! new stream begins by telling which versions are held, and istiod sends the difference, removals included.
//!
//! Invariants:
//! * A resource is in force whole, as istiod sent it last, or it is in [`Status::rejected`] and in a NACK. A rejected
//!   workload or service stays as it was; a policy that is not understood denies whatever it guards.
//! * A response is acknowledged when its changes are in the queue, or wait for what belongs to them.
//! * One resource changed is one change.
//! * No response panics: decoding is total, and the tests and fuzz targets try to show otherwise.
//!
//! Subscriptions are wildcards. On-demand ones are cheaper and wrong here: istiod does not tell a subscriber of a
//! service about pods that are added to it later (recorded; see `14-changes` of the project's recordings).
//!
//! The messages are our own `.proto` files with Istio's and Envoy's field numbers, compiled without protoc. Of Envoy's they have the discovery protocol,
//! and of what a waypoint is sent the fields that `waypoint` translates: a crate of all of Envoy's types would be thousands of messages, and would let
//! through in silence what is not looked at. What our files don't have is a field that is not known, and is seen.
//!
//! `waypoint` is what a waypoint is sent: listeners, clusters and endpoints in Envoy's words become the model's. `client::serving` is when that is handed on.
//!
//! # How it is wired
//!
//! The proxy's `istiod` does it like this:
//!
//! ```no_run
//! # fn describe() -> underpass_xds_client::Node { todo() }
//! # fn todo() -> ! { std::process::exit(1) }
//! # async fn wire() {
//! use underpass_certs::{Istiod, IstiodSecurity};
//! use underpass_config::Mesh;
//! use underpass_xds_client::{ClientSettings, client};
//!
//! let security = IstiodSecurity::Tls {
//!     roots: "/var/run/secrets/istio/root-cert.pem".into(),
//!     server_name: None,
//! };
//! let token = Some("/var/run/secrets/tokens/istio-token".into());
//! let istiod = Istiod::new("istiod.istio-system.svc:15012", security, token);
//! let (client, mut updates, status) = client(istiod, describe(), ClientSettings::default());
//! tokio::spawn(client.run());
//!
//! let mut mesh = Mesh::default();
//! while let Some(update) = updates.next().await {
//!     let touched = mesh.apply(update.changes); // then publish `mesh`, then look at the connections that were touched
//! #   let _ = touched;
//! }
//! # let _ = status; }
//! ```

#![forbid(unsafe_code)]

mod assembly;
mod client;
mod dump;
mod held;
mod node;
pub mod proto;
mod resource;
mod status;
mod translate;
mod unknown_fields;
pub mod waypoint;

pub use client::{Client, ClientSettings, Update, Updates, Wanted, client};
pub use dump::{BadDump, Dump, Recorder};
pub use held::{Accepted, Rejection, ResponseError, translate_response};
pub use node::{Node, NodeRole};
pub use resource::ResourceType;
pub use status::{Connection, Status, StatusReader, Termination, TypeStatus, Waiting};
pub use translate::{Invalid, MeshFacts};
pub use unknown_fields::descriptor;
