//! The `node.hbone:` section.

use std::ops::RangeInclusive;

use serde::Deserialize;

use super::reading::{Path, Reading};
use super::scalar::Scalar;
use crate::{ByteSize, HbonePing, HboneSettings, LapsedStreams};

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct HboneShape<'a> {
    #[serde(borrow)]
    streams: Option<Scalar<'a>>,
    stream_window: Option<Scalar<'a>>,
    connection_window: Option<Scalar<'a>>,
    buffer: Option<Scalar<'a>>,
    connections_per_peer: Option<Scalar<'a>>,
    idle: Option<Scalar<'a>>,
    stalled: Option<Scalar<'a>>,
    ping: PingShape<'a>,
    spread: Option<Scalar<'a>>,
    connections: Option<Scalar<'a>>,
    expired: Option<Scalar<'a>>,
    revoked: Option<Scalar<'a>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct PingShape<'a> {
    #[serde(borrow)]
    interval: Option<Scalar<'a>>,
    timeout: Option<Scalar<'a>>,
}

const LAPSED_STREAMS: [(&str, LapsedStreams); 2] = [("keep", LapsedStreams::Keep), ("reset", LapsedStreams::Reset)];

/// A stream begins with a buffer of some KiB at each end; thousands on one connection would share one core and each lost packet.
const STREAMS: RangeInclusive<u32> = 1..=10_000;
const COUNTS: RangeInclusive<u32> = 1..=1_000_000;
/// HTTP/2 begins with 64 KiB (RFC 9113, section 6.9.2) and ends at 2 GiB, of which one connection must not come near.
const WINDOWS: RangeInclusive<ByteSize> = ByteSize(64 << 10)..=ByteSize(256 << 20);
const BUFFERS: RangeInclusive<ByteSize> = ByteSize(1 << 20)..=ByteSize(3 << 30);

impl HboneShape<'_> {
    pub(super) fn compile(&self, path: Path<'_>, reading: &mut Reading) -> HboneSettings {
        let default = HboneSettings::default();
        let mut size = |field, value: Option<&Scalar<'_>>, default, range| {
            bytes_in(path.field(field), value, default, range, reading)
        };
        let stream_window = size(
            "stream_window",
            self.stream_window.as_ref(),
            default.stream_window,
            WINDOWS,
        );
        let least = default.connection_window.max(stream_window);
        let connection_window = size("connection_window", self.connection_window.as_ref(), least, WINDOWS);
        let buffer = size("buffer", self.buffer.as_ref(), default.buffer, BUFFERS);
        if connection_window < stream_window {
            let problem = format!("is less than one stream may have, {stream_window}");
            let remedy = "write at least `stream_window`";
            reading.report(
                path.field("connection_window"),
                &connection_window.to_string(),
                problem,
                remedy,
            );
        }
        let mut count = |field, value: Option<&Scalar<'_>>, default, range| {
            let written = value.and_then(|value| reading.count(path.field(field), value, range));
            written.unwrap_or(default)
        };
        let streams = count("streams", self.streams.as_ref(), default.streams, STREAMS);
        let per_peer = self.connections_per_peer.as_ref();
        let connections_per_peer = count("connections_per_peer", per_peer, default.connections_per_peer, COUNTS);
        let spread = count("spread", self.spread.as_ref(), default.spread, COUNTS);
        let connections = count("connections", self.connections.as_ref(), default.connections, COUNTS);
        let mut lapsed = |field, value: Option<&Scalar<'_>>, default| {
            let written = reading.choice(path.field(field), value, &LAPSED_STREAMS);
            written.unwrap_or(default)
        };
        let expired = lapsed("expired", self.expired.as_ref(), default.expired);
        let revoked = lapsed("revoked", self.revoked.as_ref(), default.revoked);
        HboneSettings {
            streams,
            stream_window,
            connection_window,
            buffer,
            connections_per_peer,
            idle: reading.duration(path.field("idle"), self.idle.as_ref(), default.idle),
            stalled: reading.duration(path.field("stalled"), self.stalled.as_ref(), default.stalled),
            ping: self.ping.compile(path.field("ping"), reading),
            spread,
            connections,
            expired,
            revoked,
        }
    }
}

impl PingShape<'_> {
    fn compile(&self, path: Path<'_>, reading: &mut Reading) -> HbonePing {
        let default = HbonePing::default();
        HbonePing {
            interval: reading.duration(path.field("interval"), self.interval.as_ref(), default.interval),
            timeout: reading.duration(path.field("timeout"), self.timeout.as_ref(), default.timeout),
        }
    }
}

fn bytes_in(
    path: Path<'_>,
    value: Option<&Scalar<'_>>,
    default: ByteSize,
    range: RangeInclusive<ByteSize>,
    reading: &mut Reading,
) -> ByteSize {
    let Some(written) = value else { return default };
    let size = reading.bytes(path, value, default);
    if !range.contains(&size) {
        let remedy = format!("write {} to {}", range.start(), range.end());
        reading.report(path, written, "is not a sensible size here", remedy);
    }
    size
}
