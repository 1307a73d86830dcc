//! `http.clusters`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use super::super::reading::{Path, Reading, YES_OR_NO};
use super::super::scalar::{Scalar, ScalarOr};
use super::balancing::{
    BalancingFields, MaglevShape, PeakEwmaShape, RingHashShape, SlowStartShape, SubsetsShape, labels,
};
use super::hbone::TunnelShape;
use super::metrics::ServiceNameShape;
use super::outliers::OutliersShape;
use super::times::limit;
use super::transport::{ConnectionsShape, PROXY_PROTOCOLS, TlsShape};
use crate::http::{
    Breakers, ClusterSettings, Discovery, DnsDiscovery, DnsFamily, DnsKind, EndpointSettings, HostDiscovery,
    HttpBalancing, Labels, NamedEndpoint, Reach, Retries, Transport, UpstreamProtocol,
};
use crate::settings::is_hostname;
use crate::{NodeSettings, Text};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ClusterShape<'a> {
    #[serde(borrow)]
    name: Scalar<'a>,
    service: Option<ServiceNameShape<'a>>,
    #[serde(default)]
    endpoints: Vec<ScalarOr<'a, EndpointShape<'a>>>,
    endpoints_from: Option<Scalar<'a>>,
    balancing: Option<Scalar<'a>>,
    ring_hash: Option<RingHashShape<'a>>,
    maglev: Option<MaglevShape<'a>>,
    peak_ewma: Option<PeakEwmaShape<'a>>,
    slow_start: Option<SlowStartShape<'a>>,
    #[serde(default)]
    localities: BTreeMap<Scalar<'a>, Scalar<'a>>,
    panic_threshold: Option<Scalar<'a>>,
    subsets: Option<SubsetsShape<'a>>,
    outliers: Option<OutliersShape<'a>>,
    protocol: Option<Scalar<'a>>,
    connect_timeout: Option<Scalar<'a>>,
    idle_timeout: Option<Scalar<'a>>,
    max_stream_duration: Option<Scalar<'a>>,
    #[serde(default)]
    limits: BreakersShape<'a>,
    dns: Option<DnsShape<'a>>,
    hbone: Option<TunnelShape<'a>>,
    tls: Option<TlsShape<'a>>,
    proxy_protocol: Option<Scalar<'a>>,
    #[serde(default)]
    connections: ConnectionsShape<'a>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct EndpointShape<'a> {
    #[serde(borrow)]
    address: Scalar<'a>,
    weight: Option<Scalar<'a>>,
    priority: Option<Scalar<'a>>,
    locality: Option<Scalar<'a>>,
    healthy: Option<Scalar<'a>>,
    #[serde(default)]
    labels: BTreeMap<Scalar<'a>, Scalar<'a>>,
    reach: Option<Scalar<'a>>,
    via: Option<Scalar<'a>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct DnsShape<'a> {
    #[serde(borrow)]
    kind: Option<Scalar<'a>>,
    family: Option<Scalar<'a>>,
    refresh: Option<Scalar<'a>>,
    ttl: Option<Scalar<'a>>,
    servers: Vec<Scalar<'a>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct BreakersShape<'a> {
    #[serde(borrow)]
    connections: Option<Scalar<'a>>,
    pending_requests: Option<Scalar<'a>>,
    requests: Option<Scalar<'a>>,
    retries: Option<Scalar<'a>>,
    retry_budget: Option<BudgetShape<'a>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct BudgetShape<'a> {
    #[serde(borrow)]
    percent: Option<Scalar<'a>>,
    minimum: Option<Scalar<'a>>,
}

const PROTOCOLS: [(&str, UpstreamProtocol); 4] = [
    ("http1", UpstreamProtocol::Http1),
    ("http2", UpstreamProtocol::Http2),
    ("as-downstream", UpstreamProtocol::AsDownstream),
    ("negotiated", UpstreamProtocol::Negotiated),
];
const DNS_FAMILIES: [(&str, DnsFamily); 5] = [
    ("auto", DnsFamily::Auto),
    ("v4-only", DnsFamily::V4Only),
    ("v6-only", DnsFamily::V6Only),
    ("v4-preferred", DnsFamily::V4Preferred),
    ("all", DnsFamily::All),
];
/// Where endpoints come from that are not known beforehand.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    Connection,
    Workload,
    Host,
}

const ORIGINS: [(&str, Origin); 3] = [
    ("connection", Origin::Connection),
    ("workload", Origin::Workload),
    ("host", Origin::Host),
];
/// How an endpoint says that it is reached.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ReachWord {
    Direct,
    Hbone,
}

const REACHES: [(&str, ReachWord); 2] = [("direct", ReachWord::Direct), ("hbone", ReachWord::Hbone)];
const DNS_KINDS: [(&str, DnsKind); 2] = [("strict", DnsKind::Strict), ("logical", DnsKind::Logical)];
const NO_CLIENT: (&str, &str) = (
    "nobody is said to open tunnels as",
    "add `http.client`, for example spiffe://cluster.local/ns/shop/sa/waypoint",
);
/// Envoy's `DEFAULT_CONNECT_TIMEOUT`.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);
/// Envoy's range (`LbEndpoint.load_balancing_weight`), so that sums of them are no concern.
const WEIGHTS: RangeInclusive<u32> = 1..=1_000_000;
/// Envoy's (`LocalityLbEndpoints.priority`).
const PRIORITIES: RangeInclusive<u32> = 0..=128;
/// Envoy's (`healthy_panic_threshold`).
const PANIC_THRESHOLD: u32 = 50;

impl ClusterShape<'_> {
    pub(super) fn compile(&self, path: Path<'_>, reading: &mut Reading) -> ClusterSettings {
        ClusterSettings {
            name: super::routes::any_name(path.field("name"), &self.name, reading),
            service: (self.service.as_ref()).map(|service| Arc::new(service.compile(path.field("service"), reading))),
            endpoints: match &self.dns {
                None => self.endpoints(path.field("endpoints"), reading),
                Some(_) => Vec::new(),
            },
            discovery: self.discovery(path, reading),
            balancing: self.balancing(path, reading),
            slow_start: (self.slow_start.as_ref()).map(|slow| slow.compile(path.field("slow_start"), reading)),
            localities: self.localities(path.field("localities"), reading),
            panic_threshold: (self.panic_threshold.as_ref())
                .and_then(|value| reading.count(path.field("panic_threshold"), value, 0..=100))
                .unwrap_or(PANIC_THRESHOLD),
            subsets: (self.subsets.as_ref()).map(|subsets| subsets.compile(path.field("subsets"), reading)),
            outliers: (self.outliers.as_ref()).map(|outliers| outliers.compile(path.field("outliers"), reading)),
            protocol: reading
                .choice(path.field("protocol"), self.protocol.as_ref(), &PROTOCOLS)
                .unwrap_or_default(),
            connect_timeout: reading.duration(
                path.field("connect_timeout"),
                self.connect_timeout.as_ref(),
                CONNECT_TIMEOUT,
            ),
            idle_timeout: reading.duration(path.field("idle_timeout"), self.idle_timeout.as_ref(), IDLE_TIMEOUT),
            max_stream_duration: limit(
                path.field("max_stream_duration"),
                self.max_stream_duration.as_ref(),
                reading,
            ),
            breakers: self.limits.compile(path.field("limits"), reading),
            connections: self.connections.compile(path.field("connections"), reading),
            transport: Arc::new(self.transport(path, reading)),
        }
    }

    fn discovery(&self, path: Path<'_>, reading: &mut Reading) -> Discovery {
        let dns = path.field("dns");
        let from = reading.choice(path.field("endpoints_from"), self.endpoints_from.as_ref(), &ORIGINS);
        let Some(from) = from else {
            return match &self.dns {
                None => Discovery::Static,
                Some(shape) => {
                    let names = self.names(path.field("endpoints"), reading);
                    Discovery::Dns(shape.compile(dns, names, reading))
                }
            };
        };
        if !self.endpoints.is_empty() {
            let remedy = "remove one: each request says itself where it is going";
            reading.report(path.field("endpoints"), "", "`endpoints_from` is given too", remedy);
        }
        match (from, &self.dns) {
            (Origin::Host, None) => Discovery::Host(HostDiscovery::default()),
            (Origin::Host, Some(shape)) => Discovery::Host(shape.compile_host(dns, reading)),
            (Origin::Connection | Origin::Workload, shape) => {
                if shape.is_some() {
                    let remedy = "remove it, or write `endpoints_from: host`";
                    reading.report(dns, "", "is given, and there is no name to ask it for", remedy);
                }
                Discovery::Original(match from {
                    Origin::Workload => Reach::Hbone { via: None },
                    Origin::Connection | Origin::Host => Reach::Direct,
                })
            }
        }
    }

    fn balancing(&self, path: Path<'_>, reading: &mut Reading) -> HttpBalancing {
        let fields = BalancingFields {
            word: self.balancing.as_ref(),
            ring_hash: self.ring_hash.as_ref(),
            maglev: self.maglev.as_ref(),
            peak_ewma: self.peak_ewma.as_ref(),
        };
        fields.compile(path, reading)
    }

    fn localities(&self, path: Path<'_>, reading: &mut Reading) -> Vec<(Text, u32)> {
        let mut localities = Vec::with_capacity(self.localities.len());
        for (name, weight) in &self.localities {
            let here = path.key(name);
            if !self.endpoints.iter().any(|endpoint| endpoint.is_at(name)) {
                let remedy = "write the `locality` of endpoints, for example region/zone/subzone";
                reading.report(here, name, "none of the endpoints is there", remedy);
            }
            if let Some(weight) = reading.count(here, weight, WEIGHTS) {
                localities.push((reading.text(name), weight));
            }
        }
        localities
    }

    fn transport(&self, path: Path<'_>, reading: &mut Reading) -> Transport {
        if self.tls.is_none()
            && let Some(value) = &self.protocol
            && &**value == "negotiated"
        {
            let remedy = "add `tls:`, or write the protocol that endpoints speak";
            reading.report(
                path.field("protocol"),
                value,
                "is negotiated in TLS, and there is none",
                remedy,
            );
        }
        Transport {
            hbone: (self.hbone.as_ref()).and_then(|hbone| hbone.compile(path.field("hbone"), reading)),
            tls: (self.tls.as_ref()).map(|tls| tls.compile(path.field("tls"), reading)),
            proxy_protocol: reading.choice(
                path.field("proxy_protocol"),
                self.proxy_protocol.as_ref(),
                &PROXY_PROTOCOLS,
            ),
        }
    }

    /// Reports endpoints that say how they are reached, where their cluster says it too, or nobody `has_client` to ask them as.
    pub(super) fn check_reach(&self, path: Path<'_>, has_client: bool, reading: &mut Reading) {
        if let Some(word) = self
            .endpoints_from
            .as_ref()
            .filter(|word| &***word == "workload" && !has_client)
        {
            reading.report(path.field("endpoints_from"), word, NO_CLIENT.0, NO_CLIENT.1);
        }
        for (index, endpoint) in self.endpoints.iter().enumerate() {
            let ScalarOr::Mapping(EndpointShape { reach: Some(word), .. }) = endpoint else {
                continue;
            };
            let here = path.field("endpoints");
            let problem = match (&self.hbone, &**word) {
                // What is none of the words is reported already.
                (_, word) if word != "hbone" => continue,
                (Some(_), _) => ("the cluster says it for all of them, by `hbone`", "remove one"),
                (None, _) if has_client => continue,
                (None, _) => NO_CLIENT,
            };
            reading.report(here.item(index).field("reach"), word, problem.0, problem.1);
        }
    }

    pub(super) fn check_identity(&self, path: Path<'_>, node: &NodeSettings, reading: &mut Reading) {
        if let Some(hbone) = &self.hbone {
            hbone.check(path.field("hbone"), node, reading);
        }
    }

    fn names(&self, path: Path<'_>, reading: &mut Reading) -> Vec<NamedEndpoint> {
        let shapes = self.endpoints.iter().enumerate();
        let names = shapes.filter_map(|(index, shape)| {
            let (name, said) = said(shape, path.item(index), reading, Reading::named_endpoint);
            if said.reach != Reach::Direct {
                let remedy = "remove it: who is at an address that DNS has, the mesh does not say; or write `hbone:` of the cluster";
                reading.report(path.item(index).field("reach"), "hbone", "is of a name", remedy);
            }
            if !said.is_well {
                let remedy = "remove the name, or `healthy`: its addresses are what DNS says";
                reading.report(path.item(index).field("healthy"), "no", "is of a name", remedy);
            }
            let (host, port) = name?;
            Some(NamedEndpoint {
                host,
                port,
                weight: said.weight,
                priority: said.priority,
                locality: said.locality,
                labels: said.labels,
            })
        });
        let names = names.collect();
        if self.endpoints.is_empty() {
            let remedy = "add one to `endpoints`, for example api.example.com:443, or remove `dns`";
            reading.report(
                path,
                "",
                "DNS is to be asked, and there is no name to ask it for",
                remedy,
            );
        }
        names
    }

    fn endpoints(&self, path: Path<'_>, reading: &mut Reading) -> Vec<EndpointSettings> {
        let mut endpoints: Vec<EndpointSettings> = Vec::with_capacity(self.endpoints.len());
        for (index, shape) in self.endpoints.iter().enumerate() {
            let path = path.item(index);
            let (address, said) = said(shape, path, reading, Reading::endpoint);
            let Some(address) = address else { continue };
            if let Some(first) = endpoints.iter().position(|endpoint| endpoint.address == address) {
                let problem = format!("endpoints[{first}] is there already");
                let remedy = "remove one, or give one more `weight`";
                reading.report(path, &address.to_string(), problem, remedy);
            }
            endpoints.push(EndpointSettings {
                address,
                host: None,
                weight: said.weight,
                priority: said.priority,
                locality: said.locality,
                labels: said.labels,
                is_well: said.is_well,
                reach: said.reach,
            });
        }
        endpoints
    }
}

impl BreakersShape<'_> {
    fn compile(&self, path: Path<'_>, reading: &mut Reading) -> Breakers {
        let mut limits = Breakers::default();
        let mut retries = None;
        for (field, value, least, limit) in [
            // Who may have none would wait for one for ever.
            ("connections", &self.connections, 1, &mut limits.connections),
            (
                "pending_requests",
                &self.pending_requests,
                0,
                &mut limits.pending_requests,
            ),
            ("requests", &self.requests, 0, &mut limits.requests),
        ] {
            let count = value
                .as_ref()
                .and_then(|value| reading.count(path.field(field), value, least..=u32::MAX));
            *limit = count.unwrap_or(*limit);
        }
        if let Some(value) = &self.retries {
            retries = reading
                .count(path.field("retries"), value, 0..=u32::MAX)
                .map(Retries::Count);
            if self.retry_budget.is_some() {
                reading.report(
                    path.field("retries"),
                    value,
                    "`retry_budget` is given too",
                    "remove one",
                );
            }
        }
        let budget = (self.retry_budget.as_ref()).map(|budget| budget.compile(path.field("retry_budget"), reading));
        limits.retries = budget.or(retries).unwrap_or(limits.retries);
        limits
    }
}

impl BudgetShape<'_> {
    fn compile(&self, path: Path<'_>, reading: &mut Reading) -> Retries {
        let mut count = |field, value: &Option<Scalar<'_>>, range, default| {
            let value = value.as_ref();
            value
                .and_then(|value| reading.count(path.field(field), value, range))
                .unwrap_or(default)
        };
        Retries::Budget {
            percent: count("percent", &self.percent, 0..=100, 20),
            minimum: count("minimum", &self.minimum, 0..=u32::MAX, 3),
        }
    }
}

/// What is said of an endpoint beside its address.
struct Said {
    weight: u32,
    priority: u32,
    locality: Text,
    labels: Labels,
    is_well: bool,
    reach: Reach,
}

impl<'a> ScalarOr<'a, EndpointShape<'a>> {
    fn is_at(&self, locality: &str) -> bool {
        match self {
            ScalarOr::Scalar(_) => false,
            ScalarOr::Mapping(shape) => shape.locality.as_deref() == Some(locality),
        }
    }
}

impl EndpointShape<'_> {
    fn reach(&self, path: Path<'_>, reading: &mut Reading) -> Reach {
        let word = reading.choice(path.field("reach"), self.reach.as_ref(), &REACHES);
        let via = (self.via.as_ref()).and_then(|via| reading.endpoint(path.field("via"), via));
        if word == Some(ReachWord::Hbone) {
            return Reach::Hbone { via };
        }
        if let Some(value) = &self.via {
            let remedy = "add `reach: hbone`, or remove it";
            reading.report(path.field("via"), value, "is said of what has no tunnel", remedy);
        }
        Reach::Direct
    }
}

/// What `read` makes of an endpoint's address, and the rest of what is said of it.
fn said<T>(
    shape: &ScalarOr<'_, EndpointShape<'_>>,
    path: Path<'_>,
    reading: &mut Reading,
    read: impl Fn(&mut Reading, Path<'_>, &str) -> Option<T>,
) -> (Option<T>, Said) {
    let mut said = Said {
        weight: 1,
        priority: 0,
        locality: reading.text_or_empty(None),
        labels: Labels::default(),
        is_well: true,
        reach: Reach::Direct,
    };
    let shape = match shape {
        ScalarOr::Scalar(address) => return (read(reading, path, address), said),
        ScalarOr::Mapping(shape) => shape,
    };
    for (field, value, range, said) in [
        ("weight", &shape.weight, WEIGHTS, &mut said.weight),
        ("priority", &shape.priority, PRIORITIES, &mut said.priority),
    ] {
        let count = value
            .as_ref()
            .and_then(|value| reading.count(path.field(field), value, range));
        *said = count.unwrap_or(*said);
    }
    said.locality = reading.text_or_empty(shape.locality.as_ref());
    said.labels = labels(&shape.labels, reading);
    let healthy = reading.choice(path.field("healthy"), shape.healthy.as_ref(), &YES_OR_NO);
    said.is_well = healthy.unwrap_or(true);
    said.reach = shape.reach(path, reading);
    (read(reading, path.field("address"), &shape.address), said)
}

impl DnsShape<'_> {
    /// As far as it is said of the hosts that requests are for.
    fn compile_host(&self, path: Path<'_>, reading: &mut Reading) -> HostDiscovery {
        for (field, value) in [("kind", &self.kind), ("refresh", &self.refresh), ("ttl", &self.ttl)] {
            if let Some(value) = value {
                let problem = "is said of hosts that are asked for when somebody wants them";
                let remedy = "remove it: answers hold as long as they say";
                reading.report(path.field(field), value, problem, remedy);
            }
        }
        HostDiscovery {
            family: self.family(path, reading),
            servers: self.servers(path, reading),
        }
    }

    fn family(&self, path: Path<'_>, reading: &mut Reading) -> DnsFamily {
        let family = reading.choice(path.field("family"), self.family.as_ref(), &DNS_FAMILIES);
        family.unwrap_or_default()
    }

    fn servers(&self, path: Path<'_>, reading: &mut Reading) -> Vec<SocketAddr> {
        let (path, servers) = (path.field("servers"), self.servers.iter().enumerate());
        let read = servers.filter_map(|(index, server)| reading.endpoint(path.item(index), server));
        read.collect()
    }

    fn compile(&self, path: Path<'_>, names: Vec<NamedEndpoint>, reading: &mut Reading) -> DnsDiscovery {
        DnsDiscovery {
            kind: reading
                .choice(path.field("kind"), self.kind.as_ref(), &DNS_KINDS)
                .unwrap_or_default(),
            family: self.family(path, reading),
            names,
            refresh: reading.duration(path.field("refresh"), self.refresh.as_ref(), DnsDiscovery::REFRESH),
            holds_for_ttl: reading
                .choice(path.field("ttl"), self.ttl.as_ref(), &YES_OR_NO)
                .unwrap_or(true),
            servers: self.servers(path, reading),
        }
    }
}

impl Reading {
    /// The name and port of hosts that DNS has addresses for.
    fn named_endpoint(&mut self, path: Path<'_>, value: &str) -> Option<(Text, u16)> {
        let parts = value.rsplit_once(':').and_then(|(host, port)| {
            let host = host.trim_start_matches('[').trim_end_matches(']');
            let is_host = is_hostname(host) || host.parse::<std::net::IpAddr>().is_ok();
            let port = port.parse::<u16>().ok().filter(|port| *port != 0)?;
            is_host.then_some((host, port))
        });
        if parts.is_none() {
            self.report(
                path,
                value,
                "is not a host name with a port",
                "write for example api.example.com:443",
            );
        }
        parts.map(|(host, port)| (self.text(host), port))
    }

    /// The address and port of one host.
    fn endpoint(&mut self, path: Path<'_>, value: &str) -> Option<SocketAddr> {
        let is_one = |address: &SocketAddr| {
            address.port() != 0 && !address.ip().is_unspecified() && !address.ip().is_multicast()
        };
        let address = value.parse::<SocketAddr>().ok().filter(is_one);
        if address.is_none() {
            let remedy = "write for example 127.0.0.1:9001 or \"[::1]:9001\"; for a name, add `dns: {}` to the cluster";
            self.report(path, value, "is not the address of one host with a port", remedy);
        }
        address
    }
}
