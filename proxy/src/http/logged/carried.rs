//! Connections of which nothing is known above TCP, in logs of requests (Envoy's `TcpProxy.access_log`): what asks for a request, or for an answer, is not known.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::HeaderMap;
use prost::Message;
use underpass_config::http::{Fact, Facts};
use underpass_config::{GrpcLog, OtlpLog, RequestLog};

use super::remote::{self, common, log_record};
use super::{long, millis, number, some};
use crate::ending::Ending;
use crate::export::als;
use crate::http::facts::{Ends, address};
use crate::session::Session;
use crate::telemetry::Entry;

/// A connection that is over.
pub struct Carried<'a> {
    /// What it came by.
    pub session: &'a Session,
    /// Where its client was going.
    pub local: SocketAddr,
    /// The cluster that it went to, or would have.
    pub cluster: Option<&'a str>,
    /// The endpoint of the last try; none: there was none to be had.
    pub endpoint: Option<SocketAddr>,
    /// The proxy's own address towards it; none: no connection came to be.
    pub endpoint_local: Option<SocketAddr>,
    /// Endpoints that were tried.
    pub attempts: u32,
    /// Bytes that the client has sent.
    pub received: u64,
    /// Bytes that it was sent.
    pub sent: u64,
    /// How it ended.
    pub ending: Ending,
    /// More about that, in words.
    pub detail: Option<&'a str>,
    /// When it ended.
    pub ended: SystemTime,
}

impl Carried<'_> {
    /// Queues its entries for the logs that its chain has of its own ([`TcpChain::logs`](underpass_config::waypoint::TcpChain::logs)).
    pub fn log(&self, own: &Arc<Vec<RequestLog>>) {
        if let Some(logs) = self.session.node.telemetry.access_log.request_logs(Some(own)) {
            logs.write(self);
        }
    }

    fn ends(&self) -> Ends<'_> {
        Ends {
            session: self.session,
            local: self.local,
            started: self.session.started,
            endpoint: self.endpoint,
            cluster: self.cluster,
        }
    }

    fn lasted(&self) -> Duration {
        self.ended.duration_since(self.session.started).unwrap_or_default()
    }

    /// Why no connection to the endpoint came to be.
    fn transport_failure(&self) -> Option<&str> {
        let has_failed = matches!(self.ending, Ending::ConnectFailed | Ending::ConnectTimeout);
        self.detail.filter(|_| has_failed)
    }
}

impl Facts for Carried<'_> {
    fn tell(&self, fact: &Fact, _: &HeaderMap, out: &mut Vec<u8>) -> bool {
        match fact {
            // As Envoy has it of what has no answer.
            Fact::Status => number(Some(0), out),
            Fact::Flags => some(Some(self.ending.response_flag()), out),
            Fact::LongFlags => some(Some(long(self.ending.response_flag())), out),
            Fact::TransportFailure => some(self.transport_failure().map(|why| why.replace(' ', "_")), out),
            Fact::EndpointLocal(part) => self.endpoint_local.is_some_and(|local| address(local, *part, out)),
            Fact::Connected(_) if self.endpoint_local.is_none() => false,
            Fact::BytesReceived => number(Some(self.received), out),
            Fact::BytesSent => number(Some(self.sent), out),
            Fact::Duration => millis(Some(self.lasted()), out),
            Fact::Attempts => number(Some(self.attempts), out),
            Fact::Identity => some(self.session.source.identity().map(ToString::to_string), out),
            Fact::MutualTls => {
                let is_mutual = self.ends().is_mutual();
                some(Some(if is_mutual { "true" } else { "false" }), out)
            }
            _ => self.ends().tell(fact, out),
        }
    }
}

impl Entry for Carried<'_> {
    fn log_record(&self, log: &OtlpLog) -> Vec<u8> {
        log_record(self, log, self.session.started).encode_to_vec()
    }

    /// Istio names a log of requests for connections too, and Envoy writes what it has of one into such an entry.
    fn http_entry(&self, _: &GrpcLog) -> Vec<u8> {
        let common = als::AccessLogCommon {
            upstream_local_address: self.endpoint_local.map(remote::address),
            upstream_cluster: self
                .cluster
                .filter(|_| self.endpoint.is_some())
                .unwrap_or_default()
                .to_owned(),
            upstream_transport_failure_reason: self.transport_failure().unwrap_or_default().to_owned(),
            upstream_request_attempt_count: self.attempts,
            ..common(&self.ends(), self.lasted(), self.ending.response_flag())
        };
        let entry = als::HttpAccessLogEntry {
            common_properties: Some(common),
            protocol_version: 0,
            request: Some(als::Request {
                request_body_bytes: self.received,
                ..Default::default()
            }),
            response: Some(als::Response {
                response_body_bytes: self.sent,
                ..Default::default()
            }),
        };
        entry.encode_to_vec()
    }
}

#[cfg(test)]
mod tests;
