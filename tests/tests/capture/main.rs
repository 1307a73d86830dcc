//! Capture, from outside: pods in namespaces that know nothing of a proxy, a node with an agent and a proxy, and what users, operators and
//! adversaries see.

mod adversary;
mod churn;
mod doctor;
mod enrolment;
mod fail_closed;
mod network;
mod node;
mod place;
mod policy;
mod truth;
mod upgrade;
