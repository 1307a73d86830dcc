//! How connections between nodes (HBONE) are kept: how much they may hold, how long they are kept, when they are given up.

use std::time::Duration;

use serde::Serialize;

use crate::ByteSize;
use crate::settings::as_written;

/// HBONE of one node, as client and as server. A change takes effect on connections that are made after it; `buffer` at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct HboneSettings {
    /// Streams of one connection that may be open at once, those that a peer opens here and those opened there. Default 100, as ztunnel has it.
    pub streams: u32,
    /// What a peer may send on one stream before its receiver has taken it. What one connection moves in a round trip: the default, 2 MiB, is
    /// 1.6 Gbit/s at 10 ms.
    pub stream_window: ByteSize,
    /// What a peer may have on its way on one connection **beside** what its streams hold for receivers that do not read, so that those do not
    /// stop the others. A new connection has 64 KiB; it gets as much as it has moved, up to this. At least `stream_window`. Default 4 MiB.
    pub connection_window: ByteSize,
    /// What all peers together may send to this node before it is taken. The windows are cut from it, those of one identity together no more than a
    /// quarter of what is left; a connection for which there is nothing is refused. Default 512 MiB.
    pub buffer: ByteSize,
    /// Connections that one identity may have open to one pod. Default 1000: the replicas of a service account, with some connections each.
    pub connections_per_peer: u32,
    /// How long a connection without streams is kept, on either side. Default 5 min, as ztunnel's client has it.
    #[serde(serialize_with = "as_written")]
    pub idle: Duration,
    /// How long an application that has sent its last waits for a peer that does not take it, before the stream is reset. Default 5 min; the
    /// kernel gives up such a connection after about 2.
    #[serde(serialize_with = "as_written")]
    pub stalled: Duration,
    /// When a peer that is gone without a word is noticed.
    pub ping: HbonePing,
    /// Streams on each connection to a destination from which on another is opened beside them. Default 8.
    pub spread: u32,
    /// Connections to a destination that are opened only to spread streams; more only when these are full. Default 8.
    pub connections: u32,
    /// What becomes of open streams when a certificate of their connection has expired, or its root is trusted no more. New ones are
    /// refused in any case. Default keep, as ztunnel and Envoy do.
    pub expired: LapsedStreams,
    /// The same when a certificate was revoked, which says that its key is in other hands. Default reset.
    pub revoked: LapsedStreams,
}

impl Default for HboneSettings {
    fn default() -> Self {
        Self {
            streams: 100,
            stream_window: ByteSize(2 << 20),
            connection_window: ByteSize(4 << 20),
            buffer: ByteSize(512 << 20),
            connections_per_peer: 1000,
            idle: Duration::from_secs(300),
            stalled: Duration::from_secs(300),
            ping: HbonePing::default(),
            spread: 8,
            connections: 8,
            expired: LapsedStreams::Keep,
            revoked: LapsedStreams::Reset,
        }
    }
}

/// Pings on connections that have streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct HbonePing {
    /// Between two. Default 10 s, as ztunnel has it.
    #[serde(serialize_with = "as_written")]
    pub interval: Duration,
    /// How long an answer may take. Default 20 s, as ztunnel has it.
    #[serde(serialize_with = "as_written")]
    pub timeout: Duration,
}

impl Default for HbonePing {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(10),
            timeout: Duration::from_secs(20),
        }
    }
}

/// What becomes of the open streams of a connection whose certificate no longer stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LapsedStreams {
    /// They go on to their end.
    Keep,
    /// They are reset at once.
    Reset,
}
