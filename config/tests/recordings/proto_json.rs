//! Istio's workload and authorization resources in proto JSON, and what they are in the model. For tests only: the xDS
//! client decodes the wire format and translates for itself.
//!
//! Every message refuses fields it does not know, so a recording can't hold anything that these tests overlook.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use ipnet::IpNet;
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use underpass_config as model;
use underpass_config::{MeshChange, PolicyKey, ServiceKey, WorkloadUid};

/// Translates a recording of either type.
pub fn changes(json: &str) -> Result<Vec<MeshChange>> {
    let response: Response = serde_json::from_str(json)?;
    response
        .resources
        .into_iter()
        .map(|named| named.translate(&response.type_url))
        .collect()
}

/// Translates one `istio.security.Authorization`.
pub fn authorization(json: &str) -> Result<model::Authorization> {
    parse::<Authorization>(serde_json::from_str(json)?)?.translate()
}

fn parse<T: DeserializeOwned>(json: serde_json::Value) -> Result<T> {
    Ok(serde_json::from_value(json)?)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Response {
    #[serde(default)]
    resources: Vec<Named>,
    type_url: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Named {
    name: String,
    #[serde(default, rename = "version")]
    _version: IgnoredAny,
    resource: serde_json::Value,
}

impl Named {
    fn translate(self, type_url: &str) -> Result<MeshChange> {
        match type_url {
            "type.googleapis.com/istio.security.Authorization" => {
                let policy = parse::<Authorization>(self.resource)?.translate()?;
                ensure!(
                    policy.key.as_str() == self.name,
                    "{} is named {}",
                    policy.key,
                    self.name
                );
                Ok(MeshChange::Policy(policy))
            }
            "type.googleapis.com/istio.workload.Address" => parse::<Address>(self.resource)?.translate(),
            other => bail!("{other} is not recorded"),
        }
        .with_context(|| self.name)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Authorization {
    #[serde(rename = "@type")]
    _type: String,
    name: String,
    namespace: String,
    #[serde(default)]
    scope: Scope,
    #[serde(default)]
    action: Action,
    #[serde(default)]
    groups: Vec<Group>,
    #[serde(default)]
    dry_run: bool,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
enum Scope {
    #[default]
    Global,
    Namespace,
    WorkloadSelector,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
enum Action {
    #[default]
    Allow,
    Deny,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Group {
    #[serde(default)]
    rules: Vec<Rules>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rules {
    #[serde(default)]
    matches: Vec<Match>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Match {
    namespaces: Vec<StringMatch>,
    not_namespaces: Vec<StringMatch>,
    service_accounts: Vec<ServiceAccountMatch>,
    not_service_accounts: Vec<ServiceAccountMatch>,
    principals: Vec<StringMatch>,
    not_principals: Vec<StringMatch>,
    source_ips: Vec<Network>,
    not_source_ips: Vec<Network>,
    destination_ips: Vec<Network>,
    not_destination_ips: Vec<Network>,
    destination_ports: Vec<u16>,
    not_destination_ports: Vec<u16>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
enum StringMatch {
    Exact(String),
    Prefix(String),
    Suffix(String),
    Presence {},
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ServiceAccountMatch {
    namespace: String,
    #[serde(rename = "serviceAccount")]
    service_account: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Network {
    address: String,
    length: u8,
}

impl Authorization {
    fn translate(self) -> Result<model::Authorization> {
        let groups = self.groups.into_iter().map(|group| {
            let rules = group.rules.into_iter().map(|rules| {
                let matches = rules.matches.into_iter().map(Match::translate).collect::<Result<_>>()?;
                Ok(model::Rule { matches })
            });
            Ok(model::Group {
                rules: rules.collect::<Result<_>>()?,
            })
        });
        Ok(model::Authorization {
            key: PolicyKey::new(format!("{}/{}", self.namespace, self.name)),
            namespace: self.namespace.into(),
            scope: match self.scope {
                Scope::Global => model::PolicyScope::Global,
                Scope::Namespace => model::PolicyScope::Namespace,
                Scope::WorkloadSelector => model::PolicyScope::WorkloadSelector,
            },
            action: match self.action {
                Action::Allow => model::Action::Allow,
                Action::Deny => model::Action::Deny,
            },
            dry_run: self.dry_run,
            groups: groups.collect::<Result<_>>()?,
        })
    }
}

impl Match {
    fn translate(self) -> Result<model::Match> {
        Ok(model::Match {
            namespaces: texts(self.namespaces),
            not_namespaces: texts(self.not_namespaces),
            service_accounts: accounts(self.service_accounts),
            not_service_accounts: accounts(self.not_service_accounts),
            principals: texts(self.principals),
            not_principals: texts(self.not_principals),
            source_ips: networks(self.source_ips)?,
            not_source_ips: networks(self.not_source_ips)?,
            destination_ips: networks(self.destination_ips)?,
            not_destination_ips: networks(self.not_destination_ips)?,
            destination_ports: self.destination_ports,
            not_destination_ports: self.not_destination_ports,
        })
    }
}

fn texts(patterns: Vec<StringMatch>) -> Vec<model::StringMatch> {
    let translate = |pattern| match pattern {
        StringMatch::Exact(text) => model::StringMatch::Exact(text.into()),
        StringMatch::Prefix(text) => model::StringMatch::Prefix(text.into()),
        StringMatch::Suffix(text) => model::StringMatch::Suffix(text.into()),
        StringMatch::Presence {} => model::StringMatch::Presence,
    };
    patterns.into_iter().map(translate).collect()
}

fn accounts(patterns: Vec<ServiceAccountMatch>) -> Vec<model::ServiceAccountMatch> {
    let translate = |pattern: ServiceAccountMatch| model::ServiceAccountMatch {
        namespace: pattern.namespace.into(),
        service_account: pattern.service_account.into(),
    };
    patterns.into_iter().map(translate).collect()
}

fn networks(networks: Vec<Network>) -> Result<Vec<IpNet>> {
    networks
        .into_iter()
        .map(|network| Ok(IpNet::new(address(&network.address)?, network.length)?))
        .collect()
}

fn address(base64: &str) -> Result<IpAddr> {
    let bytes = BASE64_STANDARD.decode(base64)?;
    if let Ok(v4) = <[u8; 4]>::try_from(&*bytes) {
        return Ok(v4.into());
    }
    let v6 = <[u8; 16]>::try_from(&*bytes)
        .ok()
        .with_context(|| format!("{base64} is no address"))?;
    Ok(v6.into())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Address {
    #[serde(rename = "@type")]
    _type: String,
    workload: Option<Workload>,
    service: Option<Service>,
}

impl Address {
    fn translate(self) -> Result<MeshChange> {
        match (self.workload, self.service) {
            (Some(workload), None) => Ok(MeshChange::Workload(workload.translate()?)),
            (None, Some(service)) => Ok(MeshChange::Service(service.translate()?)),
            _ => bail!("an Address is a workload or a service"),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Workload {
    uid: String,
    name: String,
    namespace: String,
    addresses: Vec<String>,
    #[serde(default)]
    tunnel_protocol: Option<String>,
    service_account: String,
    node: String,
    canonical_name: String,
    canonical_revision: String,
    workload_type: String,
    workload_name: String,
    #[serde(default)]
    services: BTreeMap<String, PortList>,
    #[serde(default)]
    authorization_policies: Vec<String>,
    #[serde(default)]
    status: Option<String>,
    cluster_id: String,
    locality: Locality,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
#[derive(Default)]
struct Locality {
    region: String,
    zone: String,
    subzone: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PortList {
    ports: Vec<Port>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Port {
    service_port: u16,
    #[serde(default)]
    target_port: u16,
    #[serde(default)]
    app_protocol: Option<String>,
}

impl Workload {
    fn translate(self) -> Result<model::Workload> {
        let membership = |(service, list): (String, PortList)| model::Membership {
            service: ServiceKey::new(service),
            ports: list
                .ports
                .iter()
                .map(|port| model::PortMapping {
                    service_port: port.service_port,
                    target_port: port.target_port,
                })
                .collect(),
        };
        Ok(model::Workload {
            uid: WorkloadUid::new(self.uid),
            name: self.name.into(),
            identity: model::Identity {
                trust_domain: "cluster.local".into(), // absent: the mesh's own
                namespace: self.namespace.as_str().into(),
                service_account: self.service_account.into(),
            },
            namespace: self.namespace.into(),
            addresses: self
                .addresses
                .iter()
                .map(|bytes| address(bytes))
                .collect::<Result<_>>()?,
            hostname: "".into(),
            node: self.node.into(),
            network: "".into(),
            cluster_id: self.cluster_id.into(),
            locality: model::Locality {
                region: self.locality.region.into(),
                zone: self.locality.zone.into(),
                subzone: self.locality.subzone.into(),
            },
            health: match self.status.as_deref() {
                None => model::Health::Healthy,
                Some("UNHEALTHY") => model::Health::Unhealthy,
                Some(other) => bail!("status {other}"),
            },
            tunnel_protocol: match self.tunnel_protocol.as_deref() {
                None => model::TunnelProtocol::None,
                Some("HBONE") => model::TunnelProtocol::Hbone,
                Some(other) => bail!("tunnel_protocol {other}"),
            },
            network_mode: Default::default(),
            application_tunnel: None,
            waypoint: None,
            network_gateway: None,
            canonical_name: self.canonical_name.into(),
            canonical_revision: self.canonical_revision.into(),
            workload_name: self.workload_name.into(),
            workload_type: match self.workload_type.as_str() {
                "POD" => model::WorkloadType::Pod,
                other => bail!("workload_type {other}"),
            },
            authorization_policies: self.authorization_policies.into_iter().map(PolicyKey::new).collect(),
            services: self.services.into_iter().map(membership).collect(),
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Service {
    name: String,
    namespace: String,
    hostname: String,
    #[serde(default)]
    addresses: Vec<NetworkAddress>,
    ports: Vec<Port>,
    #[serde(default)]
    load_balancing: LoadBalancing,
    #[serde(default, rename = "waypoint")]
    _waypoint: IgnoredAny,
    #[serde(default, rename = "canonical")]
    _canonical: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NetworkAddress {
    address: String,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct LoadBalancing {
    routing_preference: Vec<String>,
    mode: Option<String>,
    health_policy: Option<String>,
}

impl Service {
    fn translate(self) -> Result<model::Service> {
        let vip = |vip: &NetworkAddress| {
            Ok(model::Vip {
                network: "".into(),
                address: address(&vip.address)?,
            })
        };
        Ok(model::Service {
            key: ServiceKey::new(format!("{}/{}", self.namespace, self.hostname)),
            name: self.name.into(),
            namespace: self.namespace.into(),
            hostname: self.hostname.into(),
            vips: self.addresses.iter().map(vip).collect::<Result<_>>()?,
            ports: self.ports.iter().map(Port::translate).collect::<Result<_>>()?,
            load_balancing: self.load_balancing.translate()?,
            waypoint: None, // translated by the xDS client, not needed by these tests
            subject_alt_names: Box::default(),
        })
    }
}

impl Port {
    fn translate(&self) -> Result<model::ServicePort> {
        let app_protocol = match self.app_protocol.as_deref() {
            None => model::AppProtocol::Unknown,
            Some("HTTP11") => model::AppProtocol::Http11,
            Some("TCP") => model::AppProtocol::Tcp,
            Some(other) => bail!("app_protocol {other}"),
        };
        Ok(model::ServicePort {
            port: self.service_port,
            target_port: self.target_port,
            app_protocol,
        })
    }
}

impl LoadBalancing {
    fn translate(self) -> Result<model::LoadBalancing> {
        let scope = |scope: &String| {
            Ok(match scope.as_str() {
                "NETWORK" => model::Scope::Network,
                "REGION" => model::Scope::Region,
                "ZONE" => model::Scope::Zone,
                "SUBZONE" => model::Scope::Subzone,
                "NODE" => model::Scope::Node,
                other => bail!("scope {other}"),
            })
        };
        Ok(model::LoadBalancing {
            scopes: self.routing_preference.iter().map(scope).collect::<Result<_>>()?,
            mode: match self.mode.as_deref() {
                None => model::BalanceMode::Any,
                Some("STRICT") => model::BalanceMode::Strict,
                Some("FAILOVER") => model::BalanceMode::Failover,
                Some(other) => bail!("mode {other}"),
            },
            health: match self.health_policy.as_deref() {
                None => model::HealthPolicy::OnlyHealthy,
                Some("ALLOW_ALL") => model::HealthPolicy::AllowAll,
                Some(other) => bail!("health_policy {other}"),
            },
        })
    }
}
