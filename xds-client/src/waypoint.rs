//! What istiod sends a waypoint, in the model's words: Envoy's clusters, endpoints and listeners become what
//! [`underpass_config::waypoint`] has.
//!
//! In the order in which a resource is looked at:
//!
//! * `inspection`: its hash, which goes by what is meant, and the fields of it that are not known.
//! * `wiring`: whether it is only how Envoy is wired; then it has to be what is known, and is dropped.
//! * `cluster`, `endpoints`, `listener` (whose `matcher` leads to its chains): what it says. A `chain` is `http` with `filters`, or `tcp`.
//! * `resolution`: a cluster and its endpoints, together. `told`: all of it, as what is served.
//!
//! The one idea: **what is not understood closes what it is of, and nothing else.** A field that is not in `proto/waypoint`, a filter that is not known, a
//! value that is not supported: the chain, cluster or branch has an [`Untranslated`] in its place, with name, field and reason, and whoever serves refuses
//! what leads there. Only what just tells of requests (logs, spans, labels) is left out instead, and told of.
//!
//! A push that sends everything again costs hashes: a chain, cluster or set of endpoints that says what it said is the same object ([`Held`]).
//!
//! Messages are taken apart field by field, so that a field which `proto/waypoint` gets can't be forgotten here.

mod bytes;
mod chain;
mod cluster;
mod endpoints;
pub mod fields;
mod filters;
mod held;
mod http;
mod inspection;
mod listener;
mod matcher;
mod refusal;
mod resolution;
mod tcp;
mod told;
mod values;
pub mod wiring;

pub use held::{Held, Kept, Served, Taken};
pub use inspection::ContentHash;
pub use refusal::Untranslated;
pub use resolution::{Resolved, original_workload, resolve};
pub use told::Told;
pub(crate) use told::not_served;

/// The types that a waypoint subscribes to, as resources name them.
pub const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
/// Endpoints.
pub const ENDPOINTS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
/// Listeners.
pub const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
