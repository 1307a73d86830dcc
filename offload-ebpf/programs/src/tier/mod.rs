//! The kernel tier: messages of joined flows go from the sender's socket into the receiver's queue.
//!
//! `gate` judges each message, `join` looks at sockets and puts them into the map, `measure` reads the lengths of
//! queues; what `follow` and `setsockopt` add is in `ends` and `exclusion`;
//! `splices` notices readers whom redirected bytes do not reach. What the words mean is told in
//! `underpass-ebpf-abi::tier`.

pub mod ends;
pub mod exclusion;
mod flows;
pub mod gate;
pub mod join;
mod kernel;
pub mod measure;
mod patience;
pub mod splice;
mod ways;
