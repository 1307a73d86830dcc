//! The kernel tier: sockets joined in mid-stream, with a small relay in the proxy's place that uses the crate as the
//! proxy does.

mod absent_page;
mod cost;
mod death;
mod ends;
mod joining;
mod lifetime;
mod locked;
mod object_code;
mod order;
mod relay;
mod room;
mod self_test;
mod splicing;
mod world;
