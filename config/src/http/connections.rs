//! How a cluster's connections are kept (`config.core.v3.HttpProtocolOptions` and `Http2ProtocolOptions` of `HttpProtocolOptions`).

use std::time::Duration;

/// How long connections to a cluster's endpoints live, and how many requests each carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionSettings {
    /// Requests, after which it carries no more (`max_requests_per_connection`). Default: no limit, 2³² − 1.
    pub requests: u32,
    /// How long it is given requests (`max_connection_duration`); those that it has then end. None, the default: no limit.
    pub lifetime: Option<Duration>,
    /// Requests that an HTTP/2 connection carries at once before another is opened, while the endpoint allows as many
    /// (`max_concurrent_streams`). Default 64, so that no connection is all that a core has to an endpoint.
    pub streams: u32,
    /// Connections to one endpoint that the node keeps for later while they have no request. Beyond it those that have waited longest are closed: where
    /// each client, or each name that is asked for, has connections of its own, there is no other bound. Default 1024.
    pub idle: u32,
    /// Whether an HTTP/2 connection is asked now and then whether it is still there (`connection_keepalive`). Default: no.
    pub ping: Option<Ping>,
}

/// HTTP/2's PING, sent to find out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ping {
    /// How often.
    pub interval: Duration,
    /// An endpoint that has not answered within this is gone. Default 10 s.
    pub timeout: Duration,
}

impl Ping {
    /// Default of [`Ping::timeout`].
    pub const TIMEOUT: Duration = Duration::from_secs(10);
}

impl Default for ConnectionSettings {
    fn default() -> Self {
        Self {
            requests: u32::MAX,
            lifetime: None,
            streams: 64,
            idle: 1024,
            ping: None,
        }
    }
}
