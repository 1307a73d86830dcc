//! `http.clusters`.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use serde::Deserialize;

use super::super::reading::{Path, Reading};
use super::super::scalar::{Scalar, ScalarOr};
use crate::http::{Breakers, ClusterSettings, EndpointSettings, HttpBalancing, UpstreamProtocol};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ClusterShape<'a> {
    #[serde(borrow)]
    name: Scalar<'a>,
    #[serde(default)]
    endpoints: Vec<ScalarOr<'a, EndpointShape<'a>>>,
    balancing: Option<Scalar<'a>>,
    protocol: Option<Scalar<'a>>,
    connect_timeout: Option<Scalar<'a>>,
    idle_timeout: Option<Scalar<'a>>,
    #[serde(default)]
    limits: BreakersShape<'a>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct EndpointShape<'a> {
    #[serde(borrow)]
    address: Scalar<'a>,
    weight: Option<Scalar<'a>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct BreakersShape<'a> {
    #[serde(borrow)]
    requests: Option<Scalar<'a>>,
    retries: Option<Scalar<'a>>,
}

const BALANCING: [(&str, HttpBalancing); 3] = [
    ("round-robin", HttpBalancing::RoundRobin),
    ("least-request", HttpBalancing::LeastRequest),
    ("random", HttpBalancing::Random),
];
const PROTOCOLS: [(&str, UpstreamProtocol); 3] = [
    ("http1", UpstreamProtocol::Http1),
    ("http2", UpstreamProtocol::Http2),
    ("as-downstream", UpstreamProtocol::AsDownstream),
];
/// Envoy's `DEFAULT_CONNECT_TIMEOUT`.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);
/// Envoy's range (`LbEndpoint.load_balancing_weight`), so that sums of them are no concern.
const WEIGHTS: RangeInclusive<u32> = 1..=1_000_000;

impl ClusterShape<'_> {
    pub(super) fn compile(&self, path: Path<'_>, reading: &mut Reading) -> ClusterSettings {
        let breakers = Breakers::default();
        let limits = path.field("limits");
        let limit = |field, value: &Option<Scalar<'_>>, default: u32, reading: &mut Reading| {
            let value = value.as_ref();
            value
                .and_then(|value| reading.count(limits.field(field), value, 0..=u32::MAX))
                .unwrap_or(default)
        };
        ClusterSettings {
            name: super::routes::any_name(path.field("name"), &self.name, reading),
            endpoints: self.endpoints(path.field("endpoints"), reading),
            balancing: reading
                .choice(path.field("balancing"), self.balancing.as_ref(), &BALANCING)
                .unwrap_or_default(),
            protocol: reading
                .choice(path.field("protocol"), self.protocol.as_ref(), &PROTOCOLS)
                .unwrap_or_default(),
            connect_timeout: reading.duration(
                path.field("connect_timeout"),
                self.connect_timeout.as_ref(),
                CONNECT_TIMEOUT,
            ),
            idle_timeout: reading.duration(path.field("idle_timeout"), self.idle_timeout.as_ref(), IDLE_TIMEOUT),
            breakers: Breakers {
                requests: limit("requests", &self.limits.requests, breakers.requests, reading),
                retries: limit("retries", &self.limits.retries, breakers.retries, reading),
            },
        }
    }

    fn endpoints(&self, path: Path<'_>, reading: &mut Reading) -> Vec<EndpointSettings> {
        let mut endpoints: Vec<EndpointSettings> = Vec::with_capacity(self.endpoints.len());
        for (index, shape) in self.endpoints.iter().enumerate() {
            let path = path.item(index);
            let (address, weight) = match shape {
                ScalarOr::Scalar(address) => (reading.endpoint(path, address), 1),
                ScalarOr::Mapping(shape) => {
                    let weight = shape.weight.as_ref();
                    let weight = weight.and_then(|weight| reading.count(path.field("weight"), weight, WEIGHTS));
                    (
                        reading.endpoint(path.field("address"), &shape.address),
                        weight.unwrap_or(1),
                    )
                }
            };
            let Some(address) = address else { continue };
            if let Some(first) = endpoints.iter().position(|endpoint| endpoint.address == address) {
                let problem = format!("endpoints[{first}] is there already");
                let remedy = "remove one, or give one more `weight`";
                reading.report(path, &address.to_string(), problem, remedy);
            }
            endpoints.push(EndpointSettings { address, weight });
        }
        endpoints
    }
}

impl Reading {
    /// The address and port of one host.
    fn endpoint(&mut self, path: Path<'_>, value: &str) -> Option<SocketAddr> {
        let is_one = |address: &SocketAddr| {
            address.port() != 0 && !address.ip().is_unspecified() && !address.ip().is_multicast()
        };
        let address = value.parse::<SocketAddr>().ok().filter(is_one);
        if address.is_none() {
            let remedy = "write for example 127.0.0.1:9001 or \"[::1]:9001\"";
            self.report(path, value, "is not the address of one host with a port", remedy);
        }
        address
    }
}
