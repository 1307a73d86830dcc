//! The kernel tier, from outside: connections whose bytes go from socket to socket past the proxy must be what they are without it, and
//! must come back whenever policy, memory, death or the settings ask for them.

#[path = "../../../offload-ebpf/tests/kernel/tier/absent_page.rs"]
mod absent_page;
mod control;
mod death;
mod ends;
mod exactness;
mod fitness;
mod hearing;
mod isolation;
mod lanes;
mod memory;
mod pair;
mod place;
