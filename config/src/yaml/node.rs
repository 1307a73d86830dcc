//! The `node:` section: everything but the mesh.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::ops::RangeInclusive;
use std::time::Duration;

use foldhash::quality::RandomState;
use serde::Deserialize;

use super::access_log::AccessLogShape;
use super::fallback::FallbackShape;
use super::hbone::HboneShape;
use super::http::{HttpShape, check_identity, identity};
use super::identities::IdentitiesShape;
use super::istiod::IstiodShape;
use super::offload::OffloadShape;
use super::reading::{Path, Reading};
use super::scalar::Scalar;
use super::services::Services;
use super::workloads::LocalityShape;
use crate::http::Http;
use crate::{
    Destination, Identity, IstiodSettings, Keepalive, Limits, Listener, ListenerProtocol, NodeSettings, Premises, Role,
    Surroundings, TcpFallback, Text, Timeouts, UnknownDestination,
};

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct NodeShape<'a> {
    #[serde(borrow)]
    role: Option<Scalar<'a>>,
    name: Option<Scalar<'a>>,
    network: Option<Scalar<'a>>,
    cluster_id: Option<Scalar<'a>>,
    locality: Option<LocalityShape<'a>>,
    workers: Option<Scalar<'a>>,
    istiod: Option<IstiodShape<'a>>,
    identities: IdentitiesShape<'a>,
    admin: Option<Scalar<'a>>,
    metrics: Option<Scalar<'a>>,
    readiness: Option<Scalar<'a>>,
    timeouts: TimeoutsShape<'a>,
    limits: LimitsShape<'a>,
    keepalive: KeepaliveShape<'a>,
    hbone: HboneShape<'a>,
    offload: OffloadShape<'a>,
    unknown_destination: Option<Scalar<'a>>,
    access_log: AccessLogShape<'a>,
    log: Option<Scalar<'a>>,
    listeners: Vec<ListenerShape<'a>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ListenerShape<'a> {
    #[serde(borrow)]
    name: Scalar<'a>,
    address: Scalar<'a>,
    protocol: Scalar<'a>,
    destination: Option<Scalar<'a>>,
    routes: Option<Scalar<'a>>,
    tcp_fallback: Option<FallbackShape<'a>>,
    identity: Option<Scalar<'a>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct TimeoutsShape<'a> {
    #[serde(borrow)]
    connect: Option<Scalar<'a>>,
    idle: Option<Scalar<'a>>,
    drain: Option<Scalar<'a>>,
    handshake: Option<Scalar<'a>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct LimitsShape<'a> {
    #[serde(borrow)]
    connections: Option<Scalar<'a>>,
    connections_per_namespace: Option<Scalar<'a>>,
    connections_per_workload: Option<Scalar<'a>>,
    connect_attempts: Option<Scalar<'a>>,
    idle_http_connections: Option<Scalar<'a>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct KeepaliveShape<'a> {
    #[serde(borrow)]
    time: Option<Scalar<'a>>,
    interval: Option<Scalar<'a>>,
    probes: Option<Scalar<'a>>,
}

#[derive(Clone, Copy)]
enum Protocol {
    Fixed,
    Socks5,
    HttpConnect,
    Http,
    Hbone,
}

const PROTOCOLS: [(&str, Protocol); 5] = [
    ("fixed", Protocol::Fixed),
    ("socks5", Protocol::Socks5),
    ("http-connect", Protocol::HttpConnect),
    ("http", Protocol::Http),
    ("hbone", Protocol::Hbone),
];
const UNKNOWN_DESTINATION: [(&str, UnknownDestination); 2] =
    [("allow", UnknownDestination::Allow), ("deny", UnknownDestination::Deny)];

/// More threads than any machine has cores; beyond it is a slip of the hand.
const WORKERS: RangeInclusive<u32> = 1..=1024;
/// What the kernel takes (`MAX_TCP_KEEPIDLE`, `MAX_TCP_KEEPINTVL`, in seconds; `MAX_TCP_KEEPCNT`; include/net/tcp.h).
const KEEPALIVE_SECONDS: RangeInclusive<u64> = 1..=32767;
const KEEPALIVE_PROBES: RangeInclusive<u32> = 1..=127;

const SECTION: Path<'_> = Path::Section("node");

impl NodeShape<'_> {
    /// `premises` stand where the file says nothing.
    pub(super) fn compile(&self, premises: &Premises, reading: &mut Reading) -> NodeSettings {
        let default = NodeSettings::default();
        let path = |field| Path::Field(&SECTION, field);
        let role = reading
            .choice(
                path("role"),
                self.role.as_ref(),
                &Role::ALL.map(|role| (role.word(), role)),
            )
            .unwrap_or(premises.role);
        let nowhere = Surroundings::default();
        let surroundings = match role {
            Role::Standalone => &nowhere,
            Role::Node | Role::Waypoint => &premises.surroundings,
        };
        let senseless = &surroundings.problems;
        senseless
            .found
            .iter()
            .cloned()
            .for_each(|problem| reading.problems.push(problem));
        let metrics = public_address(path("metrics"), self.metrics.as_ref(), role.metrics(), reading);
        let readiness = public_address(path("readiness"), self.readiness.as_ref(), role.readiness(), reading);
        let workers = self
            .workers
            .as_ref()
            .and_then(|workers| reading.count(path("workers"), workers, WORKERS));
        let admin = self
            .admin
            .as_ref()
            .and_then(|admin| admin_address(path("admin"), admin, reading));
        let mut settings = NodeSettings {
            role,
            name: reading.name_or(
                path("name"),
                self.name.as_ref(),
                surroundings.node.as_ref().unwrap_or(&default.name),
            ),
            network: reading.text_or(
                self.network.as_ref(),
                surroundings.network.as_ref().unwrap_or(&default.network),
            ),
            cluster_id: reading.text_or(
                self.cluster_id.as_ref(),
                surroundings.cluster_id.as_ref().unwrap_or(&default.cluster_id),
            ),
            locality: self
                .locality
                .as_ref()
                .map_or(default.locality, |locality| locality.compile(reading)),
            workers: workers.and_then(|workers| NonZeroUsize::new(workers as usize)),
            istiod: self.istiod(role, surroundings, path("istiod"), reading),
            identities: self.identities.compile(surroundings, path("identities"), reading),
            admin: admin.unwrap_or(default.admin),
            metrics,
            readiness,
            listeners: Vec::with_capacity(self.listeners.len()),
            timeouts: self.timeouts.compile(path("timeouts"), reading),
            limits: self.limits.compile(path("limits"), reading),
            keepalive: self.keepalive.compile(path("keepalive"), reading),
            hbone: self.hbone.compile(path("hbone"), reading),
            offload: self.offload.compile(path("offload"), reading),
            unknown_destination: reading
                .choice(
                    path("unknown_destination"),
                    self.unknown_destination.as_ref(),
                    &UNKNOWN_DESTINATION,
                )
                .unwrap_or_default(),
            access_log: self.access_log.compile(path("access_log"), reading),
            log: reading.nonempty_or(path("log"), self.log.as_ref(), &default.log),
            capture: None,
        };
        settings.listeners = self.listeners(path("listeners"), &settings, reading);
        settings
    }

    /// Whether the file itself says that there is an istiod.
    pub(super) fn names_istiod(&self) -> bool {
        self.istiod.is_some()
    }

    /// A waypoint is told by istiod what it serves; a node, if the file or the environment says that there is one.
    fn istiod(
        &self,
        role: Role,
        surroundings: &Surroundings,
        path: Path<'_>,
        reading: &mut Reading,
    ) -> Option<IstiodSettings> {
        let unwritten = IstiodShape::default();
        let there_is_one = role == Role::Waypoint || surroundings.istiod.is_some();
        let shape = self.istiod.as_ref().or(there_is_one.then_some(&unwritten))?;
        Some(shape.compile(role, surroundings, path, reading))
    }

    fn listeners(&self, path: Path<'_>, node: &NodeSettings, reading: &mut Reading) -> Vec<Listener> {
        let mut names: HashMap<Text, usize, RandomState> = HashMap::default();
        let mut bound: Vec<(SocketAddr, String)> = vec![(node.admin, "node.admin".to_owned())];
        for (name, address) in [("metrics", node.metrics), ("readiness", node.readiness)] {
            let Some(address) = address else { continue };
            if let Some((_, taken_by)) = bound.iter().find(|(other, _)| collide(*other, address)) {
                let problem = format!("{taken_by} already listens there");
                reading.report(
                    SECTION.field(name),
                    &address.to_string(),
                    problem,
                    "use another port or address",
                );
            }
            bound.push((address, format!("node.{name}")));
        }
        let of_waypoint = node.waypoint_listener();
        bound.extend((of_waypoint.iter()).map(|own| (own.address, "the waypoint (node.istiod.waypoint)".to_owned())));
        let mut listeners = Vec::with_capacity(self.listeners.len());
        for (index, shape) in self.listeners.iter().enumerate() {
            let path = path.item(index);
            let name = reading.name(path.field("name"), &shape.name);
            if let Some(first) = names.insert(name.clone(), index) {
                let problem = format!("listeners[{first}] already has this name");
                reading.report(path.field("name"), &name, problem, "give each listener its own");
            }
            if of_waypoint.as_ref().is_some_and(|own| own.name == name) {
                let problem = "the waypoint's listener (node.istiod.waypoint) has this name";
                reading.report(path.field("name"), &name, problem, "give it another");
            }
            let Some(address) = reading.socket_address(path.field("address"), &shape.address) else {
                continue;
            };
            if let Some((_, taken_by)) = bound.iter().find(|(other, _)| collide(*other, address)) {
                let problem = format!("{taken_by} already listens there");
                reading.report(
                    path.field("address"),
                    &shape.address,
                    problem,
                    "use another port or address",
                );
            }
            bound.push((address, path.to_string()));
            let Some(protocol) = shape.protocol(path, address, reading) else {
                continue;
            };
            listeners.push(Listener {
                name,
                address,
                protocol,
            });
        }
        listeners
    }

    /// Reports route tables that are not there.
    pub(super) fn check_tables(&self, http: &Http, reading: &mut Reading) {
        for (index, shape) in self.listeners.iter().enumerate() {
            let Some(routes) = &shape.routes else { continue };
            let listeners = SECTION.field("listeners");
            HttpShape::check_table(listeners.item(index).field("routes"), routes, http, reading);
        }
    }

    /// Reports identities that the node can't show.
    pub(super) fn check_identities(&self, node: &NodeSettings, reading: &mut Reading) {
        for (index, shape) in self.listeners.iter().enumerate() {
            let Some(identity) = &shape.identity else { continue };
            let listeners = SECTION.field("listeners");
            check_identity(listeners.item(index).field("identity"), identity, node, reading);
        }
    }

    /// Reports clusters that logs are to be told to and that can't be.
    pub(super) fn check_logs(&self, http: &Http, reading: &mut Reading) {
        self.access_log.check(SECTION.field("access_log"), http, reading);
    }

    /// Reports destinations that name a port which their service does not have.
    pub(super) fn check_destinations(&self, services: &Services, reading: &mut Reading) {
        for (index, shape) in self.listeners.iter().enumerate() {
            let listeners = SECTION.field("listeners");
            let path = listeners.item(index);
            let mut check = |path: Path<'_>, text: Option<&Scalar<'_>>| {
                if let Some(Ok(Destination::Host { host, port })) = text.map(|text| text.parse()) {
                    services.check_port(path, &host, port, reading);
                }
            };
            check(path.field("destination"), shape.destination.as_ref());
            let fallback = path.field("tcp_fallback");
            let of_fallback = shape.tcp_fallback.as_ref().map(|fallback| &fallback.destination);
            check(fallback.field("destination"), of_fallback);
        }
    }
}

/// An address that is not only for this machine, or `off`, or else `default`.
fn public_address(
    path: Path<'_>,
    value: Option<&Scalar<'_>>,
    default: Option<SocketAddr>,
    reading: &mut Reading,
) -> Option<SocketAddr> {
    match value {
        None => default,
        Some(value) if &**value == "off" => None,
        Some(value) => reading.socket_address(path, value),
    }
}

/// Loopback only: the admin server drains the proxy and shows its connections to whoever asks.
fn admin_address(path: Path<'_>, value: &str, reading: &mut Reading) -> Option<SocketAddr> {
    let address = reading.socket_address(path, value)?;
    if !address.ip().to_canonical().is_loopback() {
        let remedy =
            "use 127.0.0.1 or [::1]; to reach it from elsewhere, forward the port (ssh -L, kubectl port-forward)";
        reading.report(
            path,
            value,
            "the admin server has no authentication and may only listen on loopback",
            remedy,
        );
    }
    Some(address)
}

/// Whether two sockets can't be bound at once. `[::]` takes IPv4 too, as Linux does by default (ipv6(7): `IPV6_V6ONLY`).
fn collide(one: SocketAddr, other: SocketAddr) -> bool {
    let everything = |ip: IpAddr| ip.is_ipv6() && ip.is_unspecified();
    let (a, b) = (one.ip(), other.ip());
    let overlap = a.to_canonical() == b.to_canonical()
        || everything(a)
        || everything(b)
        || (a.is_ipv4() == b.is_ipv4() && (a.is_unspecified() || b.is_unspecified()));
    one.port() == other.port() && overlap
}

impl ListenerShape<'_> {
    fn protocol(&self, path: Path<'_>, address: SocketAddr, reading: &mut Reading) -> Option<ListenerProtocol> {
        let protocol = reading.choice(path.field("protocol"), Some(&self.protocol), &PROTOCOLS)?;
        self.check_routes(path, protocol, reading);
        let fallback = self.tcp_fallback(path, protocol, address, reading);
        let identity = self.identity(path, protocol, reading);
        let field = path.field("destination");
        match (protocol, &self.destination) {
            (Protocol::Fixed, Some(destination)) => {
                let destination = fixed_destination(field, destination, address, reading)?;
                Some(ListenerProtocol::Fixed { destination })
            }
            (Protocol::Fixed, None) => {
                let remedy = "add for example `destination: 127.0.0.1:9001`, or use protocol socks5 or http-connect";
                reading.report(field, "", "a fixed listener needs a destination", remedy);
                None
            }
            (Protocol::Http, Some(destination)) => {
                let remedy = "remove it, use `protocol: fixed`, or, for what is no HTTP, write `tcp_fallback: {destination: ADDRESS:PORT}`";
                let problem = "the routes of an HTTP listener say where its requests go";
                reading.report(field, destination, problem, remedy);
                None
            }
            (_, Some(destination)) => {
                let remedy = "remove it, or use `protocol: fixed`";
                reading.report(
                    field,
                    destination,
                    "with this protocol the client names the destination",
                    remedy,
                );
                None
            }
            (Protocol::Hbone, None) => Some(ListenerProtocol::Hbone { identity: identity? }),
            (Protocol::Socks5, None) => Some(ListenerProtocol::Socks5),
            (Protocol::HttpConnect, None) => Some(ListenerProtocol::HttpConnect),
            (Protocol::Http, None) => Some(ListenerProtocol::Http {
                routes: reading.text_or_empty(self.routes.as_ref()),
                tcp_fallback: fallback,
            }),
        }
    }

    /// Whom a listener for tunnels shows itself as; others show nothing.
    fn identity(&self, path: Path<'_>, protocol: Protocol, reading: &mut Reading) -> Option<Identity> {
        let path = path.field("identity");
        match (matches!(protocol, Protocol::Hbone), &self.identity) {
            (true, Some(value)) => identity(path, value, reading),
            (true, None) => {
                let remedy = "add `identity: spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/ACCOUNT`";
                reading.report(path, "", "a listener for tunnels shows a certificate", remedy);
                None
            }
            (false, Some(identity)) => {
                let remedy = "remove it, or use `protocol: hbone`";
                reading.report(path, identity, "only listeners for tunnels show a certificate", remedy);
                None
            }
            (false, None) => None,
        }
    }

    /// A fallback goes with HTTP.
    fn tcp_fallback(
        &self,
        path: Path<'_>,
        protocol: Protocol,
        address: SocketAddr,
        reading: &mut Reading,
    ) -> Option<TcpFallback> {
        let (shape, path) = (self.tcp_fallback.as_ref()?, path.field("tcp_fallback"));
        if !matches!(protocol, Protocol::Http) {
            let remedy = "remove it, or use `protocol: http`";
            reading.report(path, "", "only HTTP listeners fall back to TCP", remedy);
        }
        shape.compile(path, address, reading)
    }

    /// Routes go with HTTP, and HTTP with routes.
    fn check_routes(&self, path: Path<'_>, protocol: Protocol, reading: &mut Reading) {
        let field = path.field("routes");
        match (matches!(protocol, Protocol::Http), &self.routes) {
            (true, None) => {
                let remedy = "add `routes: NAME`, one of `http.routes`";
                reading.report(field, "", "an HTTP listener needs its routes", remedy);
            }
            (false, Some(routes)) => {
                let remedy = "remove it, or use `protocol: http`";
                reading.report(field, routes, "only HTTP listeners have routes", remedy);
            }
            _ => {}
        }
    }
}

/// Whether a connection to `address` certainly ends at the listener itself.
fn is_reached_at(listener: SocketAddr, address: SocketAddr) -> bool {
    let here = listener.ip() == address.ip() || (listener.ip().is_unspecified() && address.ip().is_loopback());
    listener.port() == address.port() && here
}

pub(super) fn fixed_destination(
    path: Path<'_>,
    value: &str,
    listens_on: SocketAddr,
    reading: &mut Reading,
) -> Option<Destination> {
    let destination: Destination = match value.parse() {
        Ok(destination) => destination,
        Err(error) => {
            let remedy = "write for example 10.0.0.1:80, \"[::1]:80\" or web.shop.svc.cluster.local:80";
            reading.report(path, value, format!("{error}"), remedy);
            return None;
        }
    };
    if matches!(destination, Destination::Address(address) if is_reached_at(listens_on, address)) {
        let remedy = "connections would go round for ever: write where they are meant to end";
        reading.report(path, value, "the destination is the listener itself", remedy);
    }
    Some(destination)
}

impl TimeoutsShape<'_> {
    fn compile(&self, path: Path<'_>, reading: &mut Reading) -> Timeouts {
        let default = Timeouts::default();
        Timeouts {
            connect: reading.duration(path.field("connect"), self.connect.as_ref(), default.connect),
            idle: reading.duration(path.field("idle"), self.idle.as_ref(), default.idle),
            drain: reading.duration_or_zero(path.field("drain"), self.drain.as_ref(), default.drain),
            handshake: reading.duration(path.field("handshake"), self.handshake.as_ref(), default.handshake),
        }
    }
}

impl LimitsShape<'_> {
    fn compile(&self, path: Path<'_>, reading: &mut Reading) -> Limits {
        let mut limit = |field, value: Option<&Scalar<'_>>, default: u32| {
            value
                .and_then(|value| reading.count(path.field(field), value, 1..=u32::MAX))
                .unwrap_or(default)
        };
        let connections = limit("connections", self.connections.as_ref(), Limits::DEFAULT_CONNECTIONS);
        Limits {
            connections,
            connections_per_namespace: limit(
                "connections_per_namespace",
                self.connections_per_namespace.as_ref(),
                connections,
            ),
            connections_per_workload: limit(
                "connections_per_workload",
                self.connections_per_workload.as_ref(),
                connections,
            ),
            connect_attempts: limit(
                "connect_attempts",
                self.connect_attempts.as_ref(),
                Limits::DEFAULT_CONNECT_ATTEMPTS,
            ),
            idle_http_connections: limit(
                "idle_http_connections",
                self.idle_http_connections.as_ref(),
                Limits::DEFAULT_IDLE_HTTP,
            ),
        }
    }
}

impl KeepaliveShape<'_> {
    fn compile(&self, path: Path<'_>, reading: &mut Reading) -> Keepalive {
        let default = Keepalive::default();
        let mut seconds = |field, value: Option<&Scalar<'_>>, default: Duration| {
            let (path, duration) = (path.field(field), reading.duration(path.field(field), value, default));
            if duration.subsec_nanos() != 0 || !KEEPALIVE_SECONDS.contains(&duration.as_secs()) {
                let remedy = "the kernel takes whole seconds from 1s to 32767s";
                reading.report(
                    path,
                    value.map_or("", |value| value),
                    "is not possible for keepalive",
                    remedy,
                );
            }
            duration
        };
        Keepalive {
            time: seconds("time", self.time.as_ref(), default.time),
            interval: seconds("interval", self.interval.as_ref(), default.interval),
            probes: (self.probes.as_ref())
                .and_then(|probes| reading.count(path.field("probes"), probes, KEEPALIVE_PROBES))
                .unwrap_or(default.probes),
        }
    }
}
