//! Connections to endpoints: what endpoints see of them, and clients of what goes wrong with them.

mod balancing;
mod connections;
mod dns;
mod early;
mod going;
mod idle;
mod limits;
pub(crate) mod place;
mod proxy_protocol;
pub(crate) mod teller;
mod tls;
