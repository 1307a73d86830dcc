//! The `services:` section. A service lists its endpoints; in the model it is the workload that knows its services.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use foldhash::quality::RandomState;
use serde::Deserialize;

use super::reading::{Path, Reading};
use super::scalar::{Scalar, ScalarOr};
use super::workloads::Workloads;
use crate::{
    AppProtocol, BalanceMode, HealthPolicy, LoadBalancing, Membership, NodeSettings, PortMapping, Scope, Service,
    ServiceKey, ServicePort, Text, Vip,
};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ServiceShape<'a> {
    #[serde(borrow)]
    name: Scalar<'a>,
    namespace: Scalar<'a>,
    hostname: Option<Scalar<'a>>,
    #[serde(default)]
    vips: Vec<ScalarOr<'a, VipShape<'a>>>,
    ports: Vec<PortShape<'a>>,
    #[serde(default)]
    endpoints: Vec<ScalarOr<'a, EndpointShape<'a>>>,
    load_balancing: Option<LoadBalancingShape<'a>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct VipShape<'a> {
    #[serde(borrow)]
    network: Option<Scalar<'a>>,
    address: Scalar<'a>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PortShape<'a> {
    #[serde(borrow)]
    port: Scalar<'a>,
    target_port: Option<Scalar<'a>>,
    app_protocol: Option<Scalar<'a>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct EndpointShape<'a> {
    #[serde(borrow)]
    workload: Scalar<'a>,
    #[serde(default)]
    ports: BTreeMap<Scalar<'a>, Scalar<'a>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct LoadBalancingShape<'a> {
    #[serde(borrow)]
    mode: Option<Scalar<'a>>,
    #[serde(default)]
    scopes: Vec<Scalar<'a>>,
    health: Option<Scalar<'a>>,
}

const APP_PROTOCOLS: [(&str, AppProtocol); 6] = [
    ("unknown", AppProtocol::Unknown),
    ("http", AppProtocol::Http11),
    ("http2", AppProtocol::Http2),
    ("grpc", AppProtocol::Grpc),
    ("tcp", AppProtocol::Tcp),
    ("tls", AppProtocol::Tls),
];
const MODES: [(&str, BalanceMode); 4] = [
    ("any", BalanceMode::Any),
    ("strict", BalanceMode::Strict),
    ("failover", BalanceMode::Failover),
    ("passthrough", BalanceMode::Passthrough),
];
const SCOPES: [(&str, Scope); 6] = [
    ("region", Scope::Region),
    ("zone", Scope::Zone),
    ("subzone", Scope::Subzone),
    ("node", Scope::Node),
    ("cluster", Scope::Cluster),
    ("network", Scope::Network),
];
const HEALTH_POLICIES: [(&str, HealthPolicy); 2] = [
    ("only-healthy", HealthPolicy::OnlyHealthy),
    ("allow-all", HealthPolicy::AllowAll),
];

/// The services of a document, and what they have claimed.
#[derive(Default)]
pub(super) struct Services {
    compiled: Vec<Service>,
    by_hostname: HashMap<Text, usize, RandomState>,
    by_key: HashMap<ServiceKey, usize, RandomState>,
    by_vip_port: HashMap<(Text, IpAddr, u16), usize, RandomState>,
}

impl Services {
    /// Compiles the section, and makes `workloads` members of it.
    pub(super) fn compile(
        shapes: &[ServiceShape<'_>],
        node: &NodeSettings,
        workloads: &mut Workloads<'_>,
        reading: &mut Reading,
    ) -> Self {
        let mut services = Self {
            compiled: Vec::with_capacity(shapes.len()),
            ..Self::default()
        };
        let section = Path::Section("services");
        for (index, shape) in shapes.iter().enumerate() {
            let path = section.item(index);
            let service = shape.compile(path, node, reading);
            services.claim_names(path, index, &service, reading);
            services.claim_vips(path.field("vips"), index, &service, reading);
            shape.join_endpoints(path.field("endpoints"), &service, workloads, reading);
            services.compiled.push(service);
        }
        services
    }

    fn claim_names(&mut self, path: Path<'_>, index: usize, service: &Service, reading: &mut Reading) {
        if let Some(first) = self.by_key.insert(service.key.clone(), index) {
            let problem = format!("services[{first}] already has this hostname in this namespace");
            let remedy = "merge the two, or give one another `name` or `hostname`";
            reading.report(path.field("hostname"), &service.hostname, problem, remedy);
        } else if let Some(first) = self.by_hostname.insert(service.hostname.clone(), index) {
            let problem = format!("services[{first}] already has this hostname, in another namespace");
            let remedy = "a client names a service by its hostname alone: give one another";
            reading.report(path.field("hostname"), &service.hostname, problem, remedy);
        }
    }

    fn claim_vips(&mut self, path: Path<'_>, index: usize, service: &Service, reading: &mut Reading) {
        for (position, vip) in service.vips.iter().enumerate() {
            if service.vips[..position].contains(vip) {
                let (path, value) = (path.item(position), vip.address.to_string());
                reading.report(path, &value, "this service has this address already", "remove one");
                continue;
            }
            for port in &service.ports {
                let claim = (vip.network.clone(), vip.address, port.port);
                let Some(first) = self.by_vip_port.insert(claim, index).filter(|first| *first != index) else {
                    continue;
                };
                let value = std::net::SocketAddr::new(vip.address, port.port).to_string();
                let problem = format!(
                    "services[{first}] already has this address and port in network {:?}",
                    vip.network
                );
                let remedy = "give one of the two services another address or another port";
                reading.report(path.item(position), &value, problem, remedy);
            }
        }
    }

    /// Reports `host` and `port` at `path` if `host` is a service that does not have the port.
    pub(super) fn check_port(&self, path: Path<'_>, host: &str, port: u16, reading: &mut Reading) {
        let hostname = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        let Some(service) = self.by_hostname.get(&*hostname).map(|index| &self.compiled[*index]) else {
            return;
        };
        if service.port(port).is_none() {
            let problem = format!("the service {} has no port {port}", service.key);
            reading.report(path, &format!("{host}:{port}"), problem, has_ports(service));
        }
    }

    pub(super) fn finish(self) -> Vec<Service> {
        self.compiled
    }
}

fn has_ports(service: &Service) -> String {
    let ports: Vec<String> = service.ports.iter().map(|port| port.port.to_string()).collect();
    format!("its ports are {}", ports.join(", "))
}

impl ServiceShape<'_> {
    fn compile(&self, path: Path<'_>, node: &NodeSettings, reading: &mut Reading) -> Service {
        let name = reading.name(path.field("name"), &self.name);
        let namespace = reading.name(path.field("namespace"), &self.namespace);
        let hostname = reading.hostname(path.field("hostname"), self.hostname.as_ref());
        let hostname = hostname.unwrap_or_else(|| default_hostname(path, &name, &namespace, reading));
        Service {
            key: ServiceKey::new(format!("{namespace}/{hostname}")),
            vips: self.vips(path.field("vips"), node, reading),
            ports: self.ports(path.field("ports"), reading),
            load_balancing: match &self.load_balancing {
                Some(shape) => shape.compile(path.field("load_balancing"), reading),
                None => LoadBalancing::default(),
            },
            waypoint: None,
            subject_alt_names: Box::default(),
            name,
            namespace,
            hostname,
        }
    }

    fn vips(&self, path: Path<'_>, node: &NodeSettings, reading: &mut Reading) -> Box<[Vip]> {
        let mut vips = Vec::with_capacity(self.vips.len());
        for (position, shape) in self.vips.iter().enumerate() {
            let item = path.item(position);
            let (path, address, network) = match shape {
                ScalarOr::Scalar(address) => (item, address, None),
                ScalarOr::Mapping(vip) => (item.field("address"), &vip.address, vip.network.as_ref()),
            };
            let Some(address) = reading.address(path, address) else {
                continue;
            };
            vips.push(Vip {
                network: reading.text_or(network, &node.network),
                address,
            });
        }
        vips.into()
    }

    fn ports(&self, path: Path<'_>, reading: &mut Reading) -> Box<[ServicePort]> {
        let mut ports: Vec<ServicePort> = Vec::with_capacity(self.ports.len());
        if self.ports.is_empty() {
            reading.report(
                path,
                "",
                "the service has no ports",
                "list at least one, for example `- {port: 80}`",
            );
        }
        for (position, shape) in self.ports.iter().enumerate() {
            let path = path.item(position);
            let Some(port) = reading.port(path.field("port"), &shape.port) else {
                continue;
            };
            if ports.iter().any(|known| known.port == port) {
                reading.report(
                    path.field("port"),
                    &shape.port,
                    "the service has this port already",
                    "remove one",
                );
            }
            let target_port = shape.target_port.as_ref();
            let target_port = target_port.map_or(Some(port), |target| reading.port(path.field("target_port"), target));
            let app_protocol = reading.choice(path.field("app_protocol"), shape.app_protocol.as_ref(), &APP_PROTOCOLS);
            ports.push(ServicePort {
                port,
                target_port: target_port.unwrap_or(port),
                app_protocol: app_protocol.unwrap_or_default(),
            });
        }
        ports.into()
    }

    fn join_endpoints(&self, path: Path<'_>, service: &Service, workloads: &mut Workloads<'_>, reading: &mut Reading) {
        for (position, shape) in self.endpoints.iter().enumerate() {
            let item = path.item(position);
            let (path, reference, ports) = match shape {
                ScalarOr::Scalar(reference) => (item, reference, Box::default()),
                ScalarOr::Mapping(endpoint) => (
                    item.field("workload"),
                    &endpoint.workload,
                    endpoint.ports(item.field("ports"), service, reading),
                ),
            };
            let Some(index) = workloads.find(path, reference, reading) else {
                continue;
            };
            if !workloads.join(
                index,
                Membership {
                    service: service.key.clone(),
                    ports,
                },
            ) {
                reading.report(
                    path,
                    reference,
                    "this workload is an endpoint of the service already",
                    "remove one",
                );
            }
        }
    }
}

/// Names that Kubernetes allows always make a host name; ours may be longer or have other characters.
fn default_hostname(path: Path<'_>, name: &str, namespace: &str, reading: &mut Reading) -> Text {
    let hostname = format!("{name}.{namespace}.svc.cluster.local").to_ascii_lowercase();
    if !crate::settings::is_hostname(&hostname) && !name.is_empty() && !namespace.is_empty() {
        let remedy = "use letters, digits and hyphens in `name` and `namespace`, or set `hostname`";
        reading.report(
            path.field("name"),
            name,
            format!("does not make a host name: {hostname}"),
            remedy,
        );
    }
    reading.text(&hostname)
}

impl EndpointShape<'_> {
    fn ports(&self, path: Path<'_>, service: &Service, reading: &mut Reading) -> Box<[PortMapping]> {
        let mut mappings = Vec::with_capacity(self.ports.len());
        for (service_port, target_port) in &self.ports {
            let path = path.key(service_port);
            let key = reading.port(path, service_port);
            let target = reading.port(path, target_port);
            let (Some(key), Some(target)) = (key, target) else {
                continue;
            };
            if service.port(key).is_none() {
                let problem = format!("the service {} has no port {key}", service.key);
                reading.report(path, service_port, problem, has_ports(service));
            }
            mappings.push(PortMapping {
                service_port: key,
                target_port: target,
            });
        }
        mappings.into()
    }
}

impl LoadBalancingShape<'_> {
    fn compile(&self, path: Path<'_>, reading: &mut Reading) -> LoadBalancing {
        let mode = reading
            .choice(path.field("mode"), self.mode.as_ref(), &MODES)
            .unwrap_or_default();
        let health = reading
            .choice(path.field("health"), self.health.as_ref(), &HEALTH_POLICIES)
            .unwrap_or_default();
        let mut scopes = Vec::with_capacity(self.scopes.len());
        for (position, word) in self.scopes.iter().enumerate() {
            let field = path.field("scopes");
            let path = field.item(position);
            let Some(scope) = reading.choice(path, Some(word), &SCOPES) else {
                continue;
            };
            if scopes.contains(&scope) {
                reading.report(path, word, "this scope is listed twice", "remove one");
            }
            scopes.push(scope);
        }
        let heeds_scopes = matches!(mode, BalanceMode::Strict | BalanceMode::Failover);
        let shown = self.mode.as_ref().map_or("", |mode| mode);
        if heeds_scopes && self.scopes.is_empty() {
            let remedy = "list what client and endpoint should have in common, for example `scopes: [region, zone]`";
            reading.report(path.field("mode"), shown, "this mode needs `scopes`", remedy);
        }
        if !heeds_scopes && !self.scopes.is_empty() {
            let remedy = "set `mode: failover` or `mode: strict`, or remove the scopes";
            reading.report(
                path.field("scopes"),
                shown,
                "scopes have no effect in this mode",
                remedy,
            );
        }
        LoadBalancing {
            scopes: scopes.into(),
            mode,
            health,
        }
    }
}
