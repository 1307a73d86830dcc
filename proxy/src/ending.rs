//! How connections end, in one list: the same word stands in the access log (`reason`), in the metrics
//! (`response_flags`), and in the admin view.

use std::fmt;

/// Why a connection ended, or why it never began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Ending {
    /// Both directions ended with FIN.
    Completed = 1,
    /// The client reset the connection.
    DownstreamReset,
    /// The destination reset the connection.
    UpstreamReset,
    /// An authorization policy denied it before the destination was contacted.
    PolicyDenied,
    /// A configuration change made a policy deny it while it was open.
    PolicyRevoked,
    /// The service has no endpoint that may be used.
    NoHealthyEndpoint,
    /// No attempt to connect succeeded.
    ConnectFailed,
    /// The last attempt to connect ran into `timeouts.connect`.
    ConnectTimeout,
    /// No byte moved for `timeouts.idle`.
    IdleTimeout,
    /// The proxy is stopping and `timeouts.drain` has passed.
    Drained,
    /// The endpoint is gone from the configuration and `timeouts.drain` has passed.
    EndpointDrained,
    /// A limit on open connections is reached.
    ConnectionLimit,
    /// The SOCKS5 or CONNECT request was malformed, unsupported or late.
    HandshakeFailed,
    /// The destination is not in the mesh (and `unknown_destination: deny`), cannot be resolved, or is a port that the
    /// service does not have.
    UnknownDestination,
    /// The client's pod is enrolled as a workload that the mesh does not know, so it has no identity to be judged by.
    UnknownSource,
    /// The pod is no longer enrolled.
    PodRemoved,
    /// A certificate of the HBONE connection that carries it has expired or was revoked, and `node.hbone` says that its streams end then.
    CertificateLapsed,
    /// The application had sent its last, and the HBONE peer did not take it for `node.hbone.stalled`.
    PeerStalled,
    /// It was open for as long as it may be.
    DurationTimeout,
}

impl Ending {
    /// Every ending, in the order of their discriminants.
    pub const ALL: [Ending; 19] = [
        Ending::Completed,
        Ending::DownstreamReset,
        Ending::UpstreamReset,
        Ending::PolicyDenied,
        Ending::PolicyRevoked,
        Ending::NoHealthyEndpoint,
        Ending::ConnectFailed,
        Ending::ConnectTimeout,
        Ending::IdleTimeout,
        Ending::Drained,
        Ending::EndpointDrained,
        Ending::ConnectionLimit,
        Ending::HandshakeFailed,
        Ending::UnknownDestination,
        Ending::UnknownSource,
        Ending::PodRemoved,
        Ending::CertificateLapsed,
        Ending::PeerStalled,
        Ending::DurationTimeout,
    ];

    /// The ending with this discriminant; none for 0.
    pub fn from_discriminant(value: u8) -> Option<Ending> {
        Self::ALL.get(usize::from(value).checked_sub(1)?).copied()
    }

    /// The word for logs, metrics and the admin view.
    pub fn word(self) -> &'static str {
        match self {
            Ending::Completed => "completed",
            Ending::DownstreamReset => "downstream_reset",
            Ending::UpstreamReset => "upstream_reset",
            Ending::PolicyDenied => "policy_denied",
            Ending::PolicyRevoked => "policy_revoked",
            Ending::NoHealthyEndpoint => "no_healthy_endpoint",
            Ending::ConnectFailed => "connect_failed",
            Ending::ConnectTimeout => "connect_timeout",
            Ending::IdleTimeout => "idle_timeout",
            Ending::Drained => "drained",
            Ending::EndpointDrained => "endpoint_drained",
            Ending::ConnectionLimit => "connection_limit",
            Ending::HandshakeFailed => "handshake_failed",
            Ending::UnknownDestination => "unknown_destination",
            Ending::UnknownSource => "unknown_source",
            Ending::PodRemoved => "pod_removed",
            Ending::CertificateLapsed => "certificate_lapsed",
            Ending::PeerStalled => "peer_stalled",
            Ending::DurationTimeout => "duration_timeout",
        }
    }

    /// Envoy's response flag where Envoy has one (access log documentation, `%RESPONSE_FLAGS%`); `DENY` as ztunnel says
    /// it for policy; `DRAIN` is our own.
    pub fn response_flag(self) -> &'static str {
        match self {
            Ending::Completed => "-",
            Ending::DownstreamReset => "DC",
            Ending::UpstreamReset => "UC",
            Ending::PolicyDenied | Ending::PolicyRevoked | Ending::UnknownSource | Ending::CertificateLapsed => "DENY",
            Ending::NoHealthyEndpoint => "UH",
            Ending::ConnectFailed | Ending::ConnectTimeout => "UF",
            Ending::IdleTimeout | Ending::PeerStalled => "SI",
            Ending::DurationTimeout => "DT",
            Ending::Drained | Ending::EndpointDrained | Ending::PodRemoved => "DRAIN",
            Ending::ConnectionLimit => "UO",
            Ending::HandshakeFailed => "DPE",
            Ending::UnknownDestination => "NR",
        }
    }

    /// Whether the sockets that are still open must be closed with RST. Only a connection that both sides finished ends
    /// with FIN; anything else must not look complete.
    pub fn resets(self) -> bool {
        self != Ending::Completed
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn discriminants_and_list_agree() {
        for ending in Ending::ALL {
            assert_eq!(Ending::from_discriminant(ending as u8), Some(ending));
        }
        assert_eq!(Ending::from_discriminant(0), None);
        assert_eq!(Ending::from_discriminant(Ending::ALL.len() as u8 + 1), None);
    }
}
