//! HTTP: requests are routed, forwarded, tried again and told of, one by one.
//!
//! ```text
//! connection ─ sniff ─ codec ─ exchange ─ intake ─ route ─ forward ─ attempt ─ pool ─ hyper ─ endpoint
//!    │                            │  └ tunnel                 │         └ upload (replayed, while that is possible)
//!    └ permit (policy)            └ record (one log line, metrics)      └ download (counts, times out, gives the connection back)
//! ```
//!
//! **One idea.** A connection is what it is at the other end of the proxy: accepted, limited, judged by L4 policy and found by a change of it as
//! any other (`connection`, `permit`); and in it each request lives alone, on the snapshot it began with. Nothing is shared on a request's
//! way but atomics: pools are a core's own, and limits are counters of the cluster.
//!
//! **Framing is a library's**, both ways (hyper's for HTTP/1.1; h2's alone for HTTP/2, `streams` and `pool::http2`): what came in is parsed to a message and written anew, so that no byte of one message can
//! become part of another. What only says something about one hop is taken off at each (`hygiene`).

mod arriving;
mod attempt;
mod codec;
mod connection;
mod cors;
mod counting;
mod detection;
pub mod discovery;
mod download;
mod downstream;
mod exchange;
mod facts;
mod failed;
mod farewell;
pub mod filters;
pub mod flags;
mod forward;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod going;
mod hygiene;
mod idle;
mod inquiry;
mod intake;
mod kept;
mod logged;
mod messages;
mod mirror;
pub mod names;
pub mod outgoing;
pub mod outliers;
mod parking;
mod peers;
pub mod permit;
pub mod pool;
mod record;
mod reply;
mod sniff;
mod streams;
mod switch;
mod switching;
mod tap;
mod traces;
pub mod tunnel;
mod tunnelled;
mod upload;
mod wire;

pub use connection::{OfTcp, serve};
pub use downstream::Downstream;
pub use logged::carried::Carried;

/// Why a body ends before its end. The peer sees a connection that closes, or RST_STREAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// The client's part stopped.
    #[error("the client's request broke off")]
    Downstream,
    /// The endpoint's part stopped.
    #[error("the endpoint's response broke off")]
    Upstream,
    /// The endpoint has reset it.
    #[error("the endpoint has reset the response")]
    Reset,
    /// It took too long.
    #[error("the request took too long")]
    TimedOut,
    /// Nothing of it moved for too long.
    #[error("nothing of the request moved")]
    Idle,
    /// It lasted too long, whatever moved.
    #[error("the request lasted too long")]
    Lasted,
    /// Its stream to the endpoint lasted longer than one to its cluster may.
    #[error("the request's stream to the endpoint lasted too long")]
    StreamLasted,
    /// Another try has taken its place.
    #[error("the request is tried again")]
    Superseded,
}
