//! What one node's proxy is told about itself: where it listens, how long it waits, how much it takes on.
//!
//! The one idea: **a value that exists is valid.** Ports are never 0, durations and limits are never senseless, the
//! admin address is on loopback; the YAML front end refuses everything else, so that the proxy has nothing to check.
//! Every time-out, limit and buffer that an operator may want to turn is here, with its default and its unit.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::{
    CaptureSettings, HboneSettings, Identity, IdentitySettings, IstiodSettings, Locality, OffloadSettings, RequestLog,
    Role, Text, WaypointSettings,
};

/// Settings of one node. Replaced as a whole when the configuration changes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NodeSettings {
    /// What this proxy is to the mesh. Default: standalone, or what the command line says.
    pub role: Role,
    /// Name of the node, as workloads refer to it (Kubernetes: `spec.nodeName`). Default `local`.
    pub name: Text,
    /// The network that plain addresses belong to (Istio: `topology.istio.io/network`). Default empty.
    pub network: Text,
    /// The cluster this node belongs to. Default `Kubernetes`, as istiod names its own cluster.
    pub cluster_id: Text,
    /// Where the node is; the balancer compares it with where an endpoint is. Default empty.
    pub locality: Locality,
    /// Threads that carry traffic; `None`: one per core.
    pub workers: Option<NonZeroUsize>,
    /// Where the mesh comes from, if not from the file; `None`: from the file.
    pub istiod: Option<IstiodSettings>,
    /// Who the pods of this node are, and where their certificates come from.
    pub identities: IdentitySettings,
    /// Address of the admin server, always on loopback: it has no authentication. Default `127.0.0.1:15000`.
    pub admin: SocketAddr,
    /// Address at which anyone may ask for metrics; `None`: only the admin server tells. Default: `[::]:15020` in the roles `node` and `waypoint`, else
    /// none. Where the machine has no IPv6, `[::]` is `0.0.0.0`.
    #[serde(serialize_with = "or_off")]
    pub metrics: Option<SocketAddr>,
    /// Address at which anyone may ask whether the node is ready (`/healthz/ready`); `None`: only the admin server tells. Default:
    /// `[::]:15021` in the roles `node` and `waypoint`, else none.
    #[serde(serialize_with = "or_off")]
    pub readiness: Option<SocketAddr>,
    /// Where connections come in. Names and addresses are unique.
    pub listeners: Vec<Listener>,
    /// How long things may take.
    pub timeouts: Timeouts,
    /// How much is taken on at once.
    pub limits: Limits,
    /// TCP keepalive of both sides of a connection.
    pub keepalive: Keepalive,
    /// How connections between nodes are kept.
    pub hbone: HboneSettings,
    /// What may leave the proxy for the kernel.
    pub offload: OffloadSettings,
    /// What happens to a connection whose destination is neither a service nor a workload.
    pub unknown_destination: UnknownDestination,
    /// One line per connection, at its end.
    pub access_log: AccessLog,
    /// Filter of the proxy's own log, in `tracing`'s syntax (`info`, `underpass=debug`). Default `info`.
    pub log: Text,
    /// Capture of this node's pods (the file's section `capture`); `None`: there is none.
    #[serde(skip)]
    pub capture: Option<CaptureSettings>,
}

impl Default for NodeSettings {
    fn default() -> Self {
        Self {
            role: Role::default(),
            name: "local".into(),
            network: "".into(),
            cluster_id: "Kubernetes".into(),
            locality: Locality::default(),
            workers: None,
            istiod: None,
            identities: IdentitySettings::default(),
            admin: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 15000),
            metrics: None,
            readiness: None,
            listeners: Vec::new(),
            timeouts: Timeouts::default(),
            limits: Limits::default(),
            keepalive: Keepalive::default(),
            hbone: HboneSettings::default(),
            offload: OffloadSettings::default(),
            unknown_destination: UnknownDestination::default(),
            access_log: AccessLog::default(),
            log: "info".into(),
            capture: None,
        }
    }
}

impl NodeSettings {
    /// Who the proxy itself is in the mesh, as istiod's CA has it; none: it has not said by which service account it runs.
    pub fn own_identity(&self) -> Option<Identity> {
        let istiod = self.istiod.as_ref()?;
        Some(Identity {
            trust_domain: self.identities.trust_domain.clone(),
            namespace: istiod.namespace.clone(),
            service_account: istiod.service_account.clone()?,
        })
    }

    /// Where connections come in: by the configured listeners, and by that of the waypoint that it is.
    pub fn all_listeners(&self) -> Vec<Listener> {
        self.listeners.iter().cloned().chain(self.waypoint_listener()).collect()
    }

    /// The waypoint that it is by istiod's word, if it is one.
    pub fn waypoint(&self) -> Option<&WaypointSettings> {
        self.istiod.as_ref()?.waypoint.as_ref()
    }

    /// The listener of that.
    pub fn waypoint_listener(&self) -> Option<Listener> {
        let waypoint = self.waypoint()?;
        Some(Listener {
            name: "waypoint".into(),
            address: waypoint.address,
            protocol: ListenerProtocol::Hbone {
                identity: self.own_identity()?,
            },
        })
    }
}

/// One listening socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Listener {
    /// Unique name; appears in the access log and the admin view.
    pub name: Text,
    /// Where it listens; the port is never 0.
    pub address: SocketAddr,
    /// How it learns where a connection wants to go.
    #[serde(flatten)]
    pub protocol: ListenerProtocol,
}

/// How a listener learns a connection's destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "protocol", rename_all = "kebab-case")]
pub enum ListenerProtocol {
    /// All connections go to one destination.
    Fixed {
        /// An address, a service's virtual IP, or a service's hostname.
        destination: Destination,
    },
    /// The client names the destination in a SOCKS5 request (RFC 1928).
    Socks5,
    /// The client names the destination in an HTTP/1.1 CONNECT request (RFC 9110, section 9.3.6).
    HttpConnect,
    /// Tunnels, whose clients are known by their certificates (HBONE), to the services of the file's `http.services` or of istiod: a waypoint's.
    Hbone {
        /// Whom the listener shows itself as.
        identity: Identity,
    },
    /// HTTP/1.1 and HTTP/2 (known beforehand), told apart by their first bytes, served by one of the route tables.
    Http {
        /// Its name.
        routes: Text,
        /// Where a connection goes that speaks something else; `None`: it is refused in the words of HTTP, or ended.
        #[serde(skip_serializing_if = "Option::is_none")]
        tcp_fallback: Option<TcpFallback>,
    },
}

/// Where connections of an HTTP listener go that speak something else: Istio's protocol detection (Envoy's listener filter `http_inspector`, with
/// `continue_on_listener_filters_timeout`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TcpFallback {
    /// As that of a fixed listener.
    pub destination: Destination,
    /// How long it may be open what a client speaks; then it is taken not to speak HTTP, so that a server may speak first. Zero: only what the client says
    /// decides. Default 5 s. (Envoy: `listener_filters_timeout`, 15 s; Istio: `protocolDetectionTimeout`, off, which is no answer to a server that
    /// speaks first.)
    #[serde(serialize_with = "as_written")]
    pub detection_timeout: Duration,
}

impl TcpFallback {
    /// Default of [`TcpFallback::detection_timeout`].
    pub const DETECTION_TIMEOUT: Duration = Duration::from_secs(5);
}

/// Where a connection is meant to go, before services are resolved. The port is never 0.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Destination {
    /// An address: a workload's, a service's virtual IP, or anything else reachable.
    Address(SocketAddr),
    /// The hostname of a service, or else a name that DNS knows.
    Host {
        /// As written; compared without case.
        host: Text,
        /// The service's port.
        port: u16,
    },
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Host { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

impl Serialize for Destination {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Why a text is not a [`Destination`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DestinationError {
    /// There is no `:PORT` at the end.
    #[error("has no port: write ADDRESS:PORT, [IPV6]:PORT or HOSTNAME:PORT")]
    NoPort,
    /// What follows the last colon is not a port, or is 0.
    #[error("has no valid port: the part after the last colon must be 1 to 65535")]
    BadPort,
    /// What precedes the port is neither an address nor a hostname.
    #[error("is neither an address nor a hostname with a port (an IPv6 address needs brackets: [::1]:80)")]
    BadHost,
}

impl FromStr for Destination {
    type Err = DestinationError;

    /// Reads `10.0.0.1:80`, `[::1]:80` or `svc.ns.svc.cluster.local:80`.
    fn from_str(text: &str) -> Result<Self, DestinationError> {
        let (host, port) = text.rsplit_once(':').ok_or(DestinationError::NoPort)?;
        // `u16::from_str` takes a leading plus sign, which no one means.
        let port = Some(port)
            .filter(|p| p.bytes().all(|b| b.is_ascii_digit()))
            .and_then(|p| p.parse().ok());
        let port = port.filter(|port| *port != 0).ok_or(DestinationError::BadPort)?;
        if let Some(v6) = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
            let ip: IpAddr = v6
                .parse()
                .ok()
                .filter(IpAddr::is_ipv6)
                .ok_or(DestinationError::BadHost)?;
            return Ok(Self::Address(SocketAddr::new(ip, port)));
        }
        if let Ok(ip) = host.parse::<Ipv4Addr>() {
            return Ok(Self::Address(SocketAddr::new(ip.into(), port)));
        }
        if !is_hostname(host) {
            return Err(DestinationError::BadHost);
        }
        Ok(Self::Host {
            host: host.into(),
            port,
        })
    }
}

/// Whether `text` can be a DNS name: labels of 1 to 63 letters, digits, `-` and `_`, in all at most 253 bytes
/// (RFC 1123, section 2.1; the underscore is not in the RFC but in the field), with or without a trailing dot.
/// All digits and dots is a mistyped address, not a name (RFC 1123 again: the last label is alphabetic).
pub(crate) fn is_hostname(text: &str) -> bool {
    let name = text.strip_suffix('.').unwrap_or(text);
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let last_is_number = name
        .rsplit('.')
        .next()
        .is_none_or(|last| last.bytes().all(|b| b.is_ascii_digit()));
    name.len() <= 253 && !last_is_number && name.split('.').all(label)
}

/// How long things may take. None is longer than a year, and only `drain` may be zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Timeouts {
    /// One attempt to connect to one endpoint. Default 5 s.
    #[serde(serialize_with = "as_written")]
    pub connect: Duration,
    /// A connection on which no byte has moved in either direction. Default 1 h.
    #[serde(serialize_with = "as_written")]
    pub idle: Duration,
    /// From the request to drain until what is left is closed; zero: at once. Default 30 s.
    #[serde(serialize_with = "as_written")]
    pub drain: Duration,
    /// From accept to the end of the SOCKS5 or CONNECT request. Default 10 s.
    #[serde(serialize_with = "as_written")]
    pub handshake: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            idle: Duration::from_secs(3600),
            drain: Duration::from_secs(30),
            handshake: Duration::from_secs(10),
        }
    }
}

/// An address as the configuration file has it, where there may be none.
fn or_off<S: Serializer>(address: &Option<SocketAddr>, serializer: S) -> Result<S::Ok, S::Error> {
    match address {
        Some(address) => serializer.collect_str(address),
        None => serializer.serialize_str("off"),
    }
}

/// A duration as the configuration file has it: `1h 30m`.
pub(crate) fn as_written<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_duration(*duration))
}

/// How much is taken on at once. None is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Limits {
    /// Open connections of the whole node. Default 1 000 000.
    pub connections: u32,
    /// Open connections whose client is in one namespace. Default: `connections`.
    pub connections_per_namespace: u32,
    /// Open connections whose client is one workload. Default: `connections`.
    pub connections_per_workload: u32,
    /// Endpoints that are tried before a connection is given up. Default 3.
    pub connect_attempts: u32,
    /// Connections to endpoints of HTTP that the whole node keeps for later while they have no request. Each core has its share. Default 16 384.
    pub idle_http_connections: u32,
}

impl Limits {
    /// Default of [`Limits::connections`].
    pub const DEFAULT_CONNECTIONS: u32 = 1_000_000;
    /// Default of [`Limits::connect_attempts`].
    pub const DEFAULT_CONNECT_ATTEMPTS: u32 = 3;
    /// Default of [`Limits::idle_http_connections`].
    pub const DEFAULT_IDLE_HTTP: u32 = 16_384;
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: Self::DEFAULT_CONNECTIONS,
            connections_per_namespace: Self::DEFAULT_CONNECTIONS,
            connections_per_workload: Self::DEFAULT_CONNECTIONS,
            connect_attempts: Self::DEFAULT_CONNECT_ATTEMPTS,
            idle_http_connections: Self::DEFAULT_IDLE_HTTP,
        }
    }
}

/// TCP keepalive (tcp(7): `TCP_KEEPIDLE`, `TCP_KEEPINTVL`, `TCP_KEEPCNT`), in the kernel's ranges: whole seconds from 1
/// to 32767, and 1 to 127 probes. The defaults are ztunnel's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Keepalive {
    /// Silence before the first probe. Default 180 s.
    #[serde(serialize_with = "as_written")]
    pub time: Duration,
    /// Between probes. Default 9 s.
    #[serde(serialize_with = "as_written")]
    pub interval: Duration,
    /// Unanswered probes after which the peer is given up. Default 9.
    pub probes: u32,
}

impl Default for Keepalive {
    fn default() -> Self {
        Self {
            time: Duration::from_secs(180),
            interval: Duration::from_secs(9),
            probes: 9,
        }
    }
}

/// What happens to a connection whose destination is neither a service nor a workload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum UnknownDestination {
    /// Connect to the address as it is.
    #[default]
    Allow,
    /// Refuse.
    Deny,
}

/// Where connections are logged, and how.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AccessLog {
    /// Shape of a line. Default text.
    pub format: LogFormat,
    /// A file that is appended to; `-` and `/dev/stdout` are standard output, `/dev/stderr` standard error. Default `-`.
    pub path: PathBuf,
    /// Logs of HTTP requests in Envoy's words, beside it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub requests: Vec<RequestLog>,
}

impl Default for AccessLog {
    fn default() -> Self {
        Self {
            format: LogFormat::default(),
            path: "-".into(),
            requests: Vec::new(),
        }
    }
}

/// Shape of an access log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// `key=value` pairs.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
    /// No access log.
    Off,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_are_read_and_written_alike() {
        for text in [
            "10.0.0.1:80",
            "[::1]:80",
            "web.shop.svc.cluster.local:80",
            "web:65535",
            "a_b.c-d.:1",
        ] {
            let destination: Destination = text.parse().unwrap();
            assert_eq!(destination.to_string(), text);
            assert_eq!(
                matches!(destination, Destination::Address(_)),
                text.starts_with(['1', '[']),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_no_destination_says_why() {
        use DestinationError::{BadHost, BadPort, NoPort};
        for (text, why) in [
            ("", NoPort),
            ("web", NoPort),
            ("web:", BadPort),
            ("web:0", BadPort),
            ("web:+80", BadPort),
            ("web:65536", BadPort),
            (":80", BadHost),
            ("::1:80", BadHost),
            ("[10.0.0.1]:80", BadHost),
            ("[::g]:80", BadHost),
            ("10.0.0.256:80", BadHost),
            ("a b:80", BadHost),
            ("-a:80", BadHost),
            ("a..b:80", BadHost),
        ] {
            assert_eq!(text.parse::<Destination>(), Err(why), "{text}");
        }
    }
}
