//! Capture, from outside: pods in namespaces that know nothing of a proxy, a node with an agent and a proxy, and what users, operators and
//! adversaries see.

mod adversary;
mod node;
mod place;
mod policy;
mod truth;
