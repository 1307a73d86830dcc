//! What the proxy believes about the mesh.
//!
//! Two halves share this crate. The **model** is what the proxy serves from: workloads, services, authorization
//! policies and the [`Mesh`] that ties them together. The **front end** turns a file written by a person into that
//! model and into the settings of this node. Other front ends (istiod's xDS) live elsewhere and speak to the same model
//! through [`MeshChange`].
//!
//! The one idea: a [`Mesh`] is a value. Cloning it is O(1), changing a clone copies only the path to what changed, and
//! whoever holds the older value is not disturbed. So a reader takes a snapshot and never a lock, and a rejected update
//! is simply a clone that is dropped.
//!
//! Invariants that hold for every [`Mesh`]:
//! * It equals the mesh built from its surviving resources in the order of their last change. Nothing is remembered of
//!   what is gone, and references may arrive before what they refer to.
//! * Where two resources claim one address or name, the one that changed last has it.
//! * Whatever may alter the verdict or the endpoint of an open connection is named in the [`Touched`] of the change.
//!
//! Nothing here does I/O beyond reading a file, and nothing here knows the proxy.

#![forbid(unsafe_code)]

mod access_log;
mod authorization;
mod capture;
mod claims;
mod config;
mod endpoint;
mod error;
mod export;
mod gateway;
mod hbone;
pub mod http;
mod identities;
mod identity;
mod interner;
mod istiod;
mod mesh;
mod names;
mod offload;
mod ranking;
mod role;
#[cfg(test)]
mod samples;
mod service;
mod service_state;
mod settings;
mod surroundings;
pub mod waypoint;
mod workload;
mod yaml;

pub use access_log::{
    BadExpression, Expression, GrpcLog, ISTIO_JSON, ISTIO_TEXT, JsonFormat, LogFilter, LogTo, OtlpLog, RESPONSE_FLAGS,
    RequestFormat, RequestLog, WantedFields,
};
pub use authorization::{
    Action, Authorization, ConnectionFacts, Decision, DenyReason, DryRunMatch, Group, Match, PolicyScope, Rule,
    ServiceAccountMatch, StringMatch, Verdict,
};
pub use capture::{CaptureSettings, CapturedPod, PodPlace};
pub use config::Config;
pub use endpoint::{Endpoint, EndpointLoad, LoadGuard};
pub use error::{ConfigError, Problem, Problems, TextPosition};
pub use export::{Batching, Export, ExportProtocol};
pub use gateway::{Gateway, GatewayDestination};
pub use hbone::{HbonePing, HboneSettings, LapsedStreams};
pub use identities::{CertificateFile, IdentitySettings};
pub use identity::{Identity, IdentityError};
pub use interner::Interner;
pub use istiod::{IstiodSettings, WaypointSettings};
pub use mesh::{Mesh, MeshChange, ResourceKey, Touched};
pub use names::{PolicyKey, ServiceKey, Text, WorkloadUid};
pub use offload::{ByteSize, ByteSizeError, OffloadAfter, OffloadExcept, OffloadSettings, WorkloadName};
pub use ranking::Position;
pub use role::Role;
pub use service::{AppProtocol, BalanceMode, HealthPolicy, LoadBalancing, Scope, Service, ServicePort, Vip};
pub use service_state::ServiceState;
pub use settings::{
    AccessLog, Destination, DestinationError, Keepalive, Limits, Listener, ListenerProtocol, LogFormat, NodeSettings,
    TcpFallback, Timeouts, UnknownDestination,
};
pub use surroundings::{Premises, Surroundings};
pub use workload::{
    ApplicationTunnel, Health, Locality, Membership, NetworkMode, PortMapping, TunnelProtocol, Workload, WorkloadType,
};
