//! The end-to-end tests' harness: what a test needs to build a world in two or three lines, and to see what a user could see.
//!
//! One idea: **a test never guesses a time and never shares a name.** It waits for a condition with a deadline ([`wait`]), and
//! everything it touches is its own: a [`World`] is either a /24 of loopback addresses that the kernel lets nobody else claim, or a
//! set of anonymous network namespaces. Both die with the test, even when it is killed: a namespace lives as long as
//! a thread of the test sits in it, a child process as long as the thread that started it.
//!
//! The parts:
//!
//! * [`World`] and [`Host`]: places with an address, where sockets are opened and programs started.
//! * [`Proxy`]: the `underpass` binary, its configuration file, its admin address and its access log.
//! * [`Config`]: YAML by a few words, for a proxy.
//! * [`Server`] and [`Way`]: a destination that says who it is, and the ways to reach it (directly or through a listener).
//! * [`capture`]: a node whose pods are captured, with its agent and its proxies.
//! * [`Authority`]: certificates as files.
//! * [`istiod`]: a real istiod, whose cluster is a folder of YAML files. [`deploy`]: the Helm chart, as a cluster has it.
//! * [`collector`]: a running collector of OpenTelemetry. [`envoy`]: a running Envoy. [`h2spec`]: a program that tries a server of HTTP/2. [`grpc`]: two that try each other by gRPC.
//! * [`conversation`]: scripts for two peers that verify every byte, and what each may see at the end.
//! * [`load`]: connections with a round trip, one or many, and what came of them.
//! * [`Process`]: a program that ends with its test. [`available`]: what a test needs of the machine.

#![forbid(unsafe_code)]

mod access_log;
mod admin;
mod authority;
pub mod capture;
mod client;
pub mod collector;
mod config;
pub mod conversation;
pub mod deploy;
pub mod envoy;
pub mod grpc;
pub mod h2spec;
pub mod istiod;
pub mod load;
mod namespace;
mod process;
mod proxy;
mod requirement;
mod server;
mod throttle;
mod tiers;
pub mod tokens;
pub mod wait;
mod world;

pub use access_log::AccessLine;
pub use admin::{Answer, Metrics, Sample};
pub use authority::{Authority, Issued};
pub use client::{Refused, Target, Way, is_reset, open};
pub use config::{Config, Listen};
pub use process::Process;
pub use proxy::Proxy;
pub use requirement::{Need, available};
pub use server::{Arrival, Blackhole, Server};
pub use throttle::Throttle;
pub use tiers::{Bytes, ConnectionView, Tiers};
pub use world::{Families, Host, World};
