//! The Underpass proxy.
//!
//! A connection's way through this crate: `listener` accepts it and learns where it wants to go, `cores` gives it to a core,
//! `serve` walks it through the steps, `source` says who opened it, `destination`, `authorization` and `upstream` decide and connect, `relay` moves
//! its bytes, `offload` moves it into the kernel, `flow` and `flow_table` are its trace, `identities` has the certificates, `istiod` brings the mesh, `telemetry` tells of it. `http` is what a
//! connection's requests go through instead of `relay`. `node` holds what they share, `configuration` changes
//! it, `admin` shows it, `run` starts and stops everything.

#![deny(unsafe_code)]

mod admin;
mod affinity;
pub mod agent;
mod ask;
mod authorization;
mod buffer;
mod capture;
pub mod clusters;
mod configuration;
mod cores;
mod destination;
pub mod doctor;
pub mod dump;
mod ending;
mod entrance;
pub mod explain;
mod export;
mod flow;
mod flow_table;
pub mod flows;
mod footprint;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod gathered;
pub mod handover;
mod hbone;
mod http;
mod identities;
mod in_place;
mod istiod;
pub mod keys;
mod limits;
mod listener;
mod logging;
mod node;
mod offload;
mod opened;
mod relay;
mod room;
pub mod routes;
pub mod run;
mod serve;
mod session;
mod socket;
mod source;
pub mod status;
mod stream;
mod telemetry;
mod upstream;
