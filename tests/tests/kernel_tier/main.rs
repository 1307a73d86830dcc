//! The kernel tier, from outside: connections whose bytes go from socket to socket past the proxy must be what they are without it, and
//! must come back whenever policy, memory, death or the settings ask for them.

mod control;
mod death;
mod ends;
mod exactness;
mod fitness;
mod isolation;
mod lanes;
mod memory;
mod pair;
mod place;
