//! HBONE: how workloads of the mesh speak across nodes. TCP streams as CONNECT streams of HTTP/2, over TLS in which both sides show who they are.
//!
//! ```text
//!  client pod's node                                                                     server pod's node
//!  socket ◄─ relay ─► Tunnel ─┐                                                   ┌─ Tunnel ◄─ relay ─► socket of the pod
//!  socket ◄─ relay ─► Tunnel ─┴─ one of a pool's connections ── mTLS ── :15008 ───┴─ Tunnel ◄─ …
//! ```
//!
//! * [`server`] takes connections that arrive at port 15008 of an enrolled pod, with the pod's own certificate; [`inbound`] serves each of their
//!   streams by the steps of any inbound connection, with the identity that the handshake verified.
//! * [`route`] says which destinations are reached so, by which gateway, and whom to expect there; [`outbound`] opens a tunnel for a
//!   client, on one of the connections that [`pool`] keeps.
//! * [`connect`] is the request between them, [`target`] says where it may lead; [`tunnel`] is one stream, and [`relay`] its byte pump.
//!
//! What the rest of the proxy sees is an ordinary flow: the same policy, limits, counts, log line, and ways to end it.
//!
//! # Windows
//!
//! A stream's window is what one connection moves in a round trip: 2 MiB are 1.6 Gbit/s at 10 ms. The connection's window is that of **all** its
//! streams together, so that streams whose receivers don't read can't starve those beside them (with less, a few such streams stop a
//! connection: ztunnel's issue 1538). It is the most that a peer can make us hold for one of its connections, which it must have a
//! certificate of the mesh to try, and which holds no more than as many TCP sockets would.

mod chunk;
pub mod connect;
pub mod inbound;
pub mod outbound;
mod pings;
pub mod pool;
pub mod proxy_protocol;
pub mod relay;
pub mod route;
pub mod server;
mod streams;
pub mod target;
pub mod tunnel;

use std::time::Duration;

/// Where HBONE is spoken (Istio: `HBoneInboundListenPort`).
pub const PORT: u16 = 15008;

/// Streams of one connection; ztunnel opens no more on one either.
pub const STREAMS: u32 = 100;

/// What may be on its way on one stream.
pub const STREAM_WINDOW: u32 = 2 * 1024 * 1024;

/// What may be on its way on one connection; see the head of this module.
pub const CONNECTION_WINDOW: u32 = STREAMS * STREAM_WINDOW;

/// The largest frame that we take. Each is received whole before it is passed on; a stream costs 15 to 25 % more CPU with 64 KiB, and 40 % more with HTTP/2's
/// 16 KiB (`hbone-stream`).
pub const FRAME: u32 = 256 * 1024;

/// What a stream's sender may have given to the connection and the connection not to the kernel: the bandwidth-delay product waits in the
/// kernel's own buffer, this only has to keep the connection busy between two of its turns.
pub const SEND_BUFFER: usize = 512 * 1024;

/// The largest request head: ztunnel's client sends some 500 bytes, Envoy a few thousand at most.
pub const HEADERS: u32 = 16 * 1024;

/// Between pings, and how long an answer may take, as ztunnel has it.
pub const PING: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(20));

#[cfg(test)]
mod tests;
