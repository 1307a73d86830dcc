//! How a cluster's connections are kept (`config.core.v3.HttpProtocolOptions` and `Http2ProtocolOptions` of `HttpProtocolOptions`).

use std::time::Duration;

use crate::Keepalive;

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
    /// What differs from the node's keepalive of TCP on connections to endpoints (`upstream_connection_options.tcp_keepalive`); not on those that tunnels
    /// go by, which are not the cluster's. None, the default: nothing.
    pub keepalive: Option<TcpKeepalive>,
}

/// What differs from the node's keepalive, in the kernel's ranges (tcp(7)): whole seconds from 1 to 32767, and 1 to 127 probes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpKeepalive {
    /// Silence before the first probe.
    pub time: Option<Duration>,
    /// Between probes.
    pub interval: Option<Duration>,
    /// Unanswered probes after which the endpoint is given up.
    pub probes: Option<u32>,
}

impl TcpKeepalive {
    /// Whether the kernel takes it.
    pub fn is_possible(&self) -> bool {
        let seconds = [self.time, self.interval].into_iter().flatten();
        let mut seconds = seconds.map(|time| (time.as_secs(), time.subsec_nanos()));
        seconds.all(|(whole, rest)| rest == 0 && (1..=32_767).contains(&whole))
            && self.probes.is_none_or(|probes| (1..=127).contains(&probes))
    }

    /// The node's, with what differs.
    pub fn over(&self, node: Keepalive) -> Keepalive {
        Keepalive {
            time: self.time.unwrap_or(node.time),
            interval: self.interval.unwrap_or(node.interval),
            probes: self.probes.unwrap_or(node.probes),
        }
    }
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
            keepalive: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Config;

    #[test]
    fn a_cluster_says_what_differs_of_keepalive() {
        let yaml = "http: {clusters: [{name: a, connections: {keepalive: {time: 60s, probes: 3}}}, {name: b}]}";
        let config = Config::from_yaml(yaml).unwrap();
        let of = |name: &str| config.http.cluster(name).unwrap().settings.connections.keepalive;
        let node = Keepalive::default();
        let own = of("a").unwrap().over(node);
        assert_eq!(
            (own.time, own.interval, own.probes),
            (Duration::from_secs(60), node.interval, 3)
        );
        assert_eq!(of("b"), None);
        for bad in [
            "time: 0s",
            "time: 1500ms",
            "interval: 32768s",
            "probes: 128",
            "probes: 0",
        ] {
            let yaml = format!("http: {{clusters: [{{name: a, connections: {{keepalive: {{{bad}}}}}}}]}}");
            assert!(Config::from_yaml(&yaml).is_err(), "{bad}");
        }
    }
}
