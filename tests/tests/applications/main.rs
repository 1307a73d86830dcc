//! Unmodified programs through the relay and past it in the kernel: each must succeed, and the counters must equal what the programs
//! themselves count.

mod iperf3;
mod key_value;
mod nginx;
mod place;
mod postgres;
mod runtimes;
mod sockets;
mod ssh;
