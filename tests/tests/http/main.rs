//! HTTP, from outside: what clients and endpoints see of the proxy; and the same of Envoy beside it, difference by difference.

mod access;
mod attacks;
mod behaviour;
mod cases;
mod churn;
mod client;
mod differences;
mod differential;
mod endpoint;
mod envoy;
mod examples;
mod fallback;
mod fractions;
mod grpc;
mod grpc_interop;
mod h2spec;
mod logs;
mod mirrors;
mod paths;
mod programs;
mod scene;
mod streams;
mod times;
mod tunnels;
mod upstreams;
