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
//! * [`host`] is what a connection came to; [`waypoint`] serves the streams that came to a waypoint.
//! * [`connect`] is the request between them, [`target`] says where it may lead; [`tunnel`] is one stream, and [`relay`] its byte pump.
//!
//! What the rest of the proxy sees is an ordinary flow: the same policy, limits, counts, log line, and ways to end it.
//!
//! How much peers may make this node hold is the matter of [`windows`] and [`limits`]; whether a connection's certificates still stand, of
//! [`credentials`]. What an operator may want to turn is in `node.hbone`.

pub mod backlog;
mod chunk;
pub mod connect;
mod credentials;
pub mod described;
pub mod host;
pub mod inbound;
pub mod limits;
pub mod outbound;
mod paced;
pub mod pings;
pub mod pool;
pub mod proxy_protocol;
pub mod relay;
pub mod route;
pub mod server;
mod streams;
pub mod target;
pub mod tunnel;
mod waypoint;
pub mod windows;

/// Where HBONE is spoken (Istio: `HBoneInboundListenPort`).
pub const PORT: u16 = 15008;

/// The largest frame that we take. Each is received whole before it is passed on; a stream costs 15 to 25 % more CPU with 64 KiB, and 40 % more with HTTP/2's
/// 16 KiB (`hbone-stream`).
pub const FRAME: u32 = 256 * 1024;

/// The most that a stream reads from its socket at once. With the frame's head (RFC 9113, section 4.1) it fills whole records of TLS (RFC 8446, section 5.1): nine bytes more
/// would be a record, a write and a segment of their own.
pub const READ: usize = FRAME as usize - FRAME_HEAD;

const FRAME_HEAD: usize = 9;

/// What a connection's TLS may have sealed and the kernel not taken: a whole frame in one write. rustls' own limit of 64 KiB makes it four.
pub const SEALED: usize = FRAME as usize + (4 << 10);

/// What a stream's sender may have given to the connection and the connection not to the kernel: the bandwidth-delay product waits in the
/// kernel's own buffer, this only has to keep the connection busy between two of its turns.
pub const SEND_BUFFER: usize = 512 * 1024;

/// The largest request head: ztunnel's client sends some 500 bytes, Envoy a few thousand at most.
pub const HEADERS: u32 = 16 * 1024;

/// What the codec may keep of frames that no stream has read yet, in its own reckoning: 256 bytes for each frame, less its payload. Streams read at
/// once ([`backlog`]), so these are the frames of one turn ([`paced`]), some 16 000 of the smallest. The codec's default follows
/// the connection's window, which begins small: 100 tiny messages that come together would end all streams.
pub const FRAMES_KEPT: usize = 4 << 20;

#[cfg(test)]
mod tests;
