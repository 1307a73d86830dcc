//! Connections to endpoints: what endpoints see of them, and clients of what goes wrong with them.

mod balancing;
mod broken;
mod connections;
mod dns;
mod early;
mod going;
mod idle;
mod limits;
mod parked;
pub(crate) mod place;
mod proxy_protocol;
mod slow;
pub(crate) mod teller;
mod tls;
mod unread;
