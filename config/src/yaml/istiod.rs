//! The `node.istiod:` section.

use serde::Deserialize;

use super::reading::{Path, Reading};
use super::scalar::Scalar;
use crate::{Destination, IstiodSettings, Role, Surroundings, Text, WaypointSettings};

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct IstiodShape<'a> {
    #[serde(borrow)]
    address: Option<Scalar<'a>>,
    roots: Option<Scalar<'a>>,
    server_name: Option<Scalar<'a>>,
    token: Option<Scalar<'a>>,
    root_namespace: Option<Scalar<'a>>,
    pod: Option<Scalar<'a>>,
    namespace: Option<Scalar<'a>>,
    pod_ip: Option<Scalar<'a>>,
    service_account: Option<Scalar<'a>>,
    connect_timeout: Option<Scalar<'a>>,
    policy_grace: Option<Scalar<'a>>,
    waypoint: Option<WaypointShape<'a>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct WaypointShape<'a> {
    #[serde(borrow)]
    gateway: Option<Scalar<'a>>,
    address: Option<Scalar<'a>>,
    grace: Option<Scalar<'a>>,
}

impl WaypointShape<'_> {
    fn compile(&self, surroundings: &Surroundings, path: Path<'_>, reading: &mut Reading) -> WaypointSettings {
        let default = WaypointSettings::default();
        let at = path.field("address");
        let address = (self.address.as_ref()).and_then(|value| reading.socket_address(at, value));
        WaypointSettings {
            gateway: reading.name_or(
                path.field("gateway"),
                self.gateway.as_ref(),
                surroundings.gateway.as_ref().unwrap_or(&default.gateway),
            ),
            address: address.unwrap_or(default.address),
            grace: reading.duration_or_zero(path.field("grace"), self.grace.as_ref(), default.grace),
        }
    }
}

impl IstiodShape<'_> {
    pub(super) fn compile(
        &self,
        role: Role,
        surroundings: &Surroundings,
        path: Path<'_>,
        reading: &mut Reading,
    ) -> IstiodSettings {
        let default = IstiodSettings::default();
        let at = |field| path.field(field);
        let address = (self.address.as_ref()).and_then(|value| address(at("address"), value, reading));
        let roots = (self.roots.as_ref()).and_then(|value| reading.absolute(at("roots"), value));
        let token = (self.token.as_ref()).and_then(|value| reading.absolute(at("token"), value));
        let pod_ip = (self.pod_ip.as_ref()).and_then(|value| reading.address(at("pod_ip"), value));
        let mut name = |field, value: Option<&Scalar<'_>>, surroundings: Option<&Text>, default: &Text| {
            reading.name_or(at(field), value, surroundings.unwrap_or(default))
        };
        let root_namespace = name(
            "root_namespace",
            self.root_namespace.as_ref(),
            None,
            &default.root_namespace,
        );
        let pod = name("pod", self.pod.as_ref(), surroundings.pod.as_ref(), &default.pod);
        let said = surroundings.namespace.as_ref();
        let namespace = name("namespace", self.namespace.as_ref(), said, &default.namespace);
        let service_account = (self.service_account.as_ref()).map(|value| reading.name(at("service_account"), value));
        let service_account = service_account.or_else(|| surroundings.service_account.clone());
        let unwritten = WaypointShape::default();
        let waypoint = (self.waypoint.as_ref()).or((role == Role::Waypoint).then_some(&unwritten));
        let waypoint = waypoint.map(|waypoint| waypoint.compile(surroundings, at("waypoint"), reading));
        if waypoint.is_some() && service_account.is_none() {
            let problem = "is missing: a waypoint shows the certificate of its service account";
            let remedy = "write the account that its pod runs as, or set SERVICE_ACCOUNT";
            reading.report(at("service_account"), "", problem, remedy);
        }
        IstiodSettings {
            address: (address.or_else(|| surroundings.istiod.clone())).unwrap_or(default.address),
            roots: roots.unwrap_or(default.roots),
            server_name: reading.hostname(at("server_name"), self.server_name.as_ref()),
            token: token.unwrap_or(default.token),
            root_namespace,
            pod,
            namespace,
            pod_ip: pod_ip.or(surroundings.pod_ip).unwrap_or(default.pod_ip),
            service_account,
            connect_timeout: reading.duration(
                at("connect_timeout"),
                self.connect_timeout.as_ref(),
                default.connect_timeout,
            ),
            policy_grace: reading.duration_or_zero(
                at("policy_grace"),
                self.policy_grace.as_ref(),
                default.policy_grace,
            ),
            waypoint,
        }
    }
}

fn address(path: Path<'_>, value: &str, reading: &mut Reading) -> Option<Destination> {
    match value.parse() {
        Ok(address) => Some(address),
        Err(error) => {
            let remedy = "write for example istiod.istio-system.svc:15012";
            reading.report(path, value, format!("{error}"), remedy);
            None
        }
    }
}
