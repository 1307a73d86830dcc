//! Where a proxy runs, as its container is told: by environment variables, which Kubernetes fills from the pod (its downward API), named as
//! Istio names those of its own proxies.
//!
//! The one idea: **what differs from pod to pod is not in a file.** All pods of a DaemonSet have the same file of a ConfigMap, so name, address,
//! node and account of each come from its environment. They stand where the file says nothing, in the roles `node` and `waypoint` only: a proxy
//! that is run by hand means what its file says, whatever the shell it was started from has in its environment.

use std::net::IpAddr;

use crate::yaml::{Path, Reading};
use crate::{Destination, Problems, Role, Text};

/// What a configuration starts from: how the proxy was started, and where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Premises {
    /// The role, unless the file says another.
    pub role: Role,
    /// Where it runs.
    pub surroundings: Surroundings,
}

/// What the environment says of the pod that a proxy is. What it does not say is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// `NODE_NAME`: `spec.nodeName`. Stands for `node.name`.
    pub node: Option<Text>,
    /// `CLUSTER_ID`, or `ISTIO_META_CLUSTER_ID`. Stands for `node.cluster_id`.
    pub cluster_id: Option<Text>,
    /// `NETWORK`, or `ISTIO_META_NETWORK`. Stands for `node.network`.
    pub network: Option<Text>,
    /// `TRUST_DOMAIN`. Stands for `node.identities.trust_domain`.
    pub trust_domain: Option<Text>,
    /// `XDS_ADDRESS`, or `CA_ADDRESS`, with or without `https://`: a proxy that is told it has an istiod. Stands for `node.istiod.address`.
    pub istiod: Option<Destination>,
    /// `POD_NAME`: `metadata.name`. Stands for `node.istiod.pod`.
    pub pod: Option<Text>,
    /// `POD_NAMESPACE`: `metadata.namespace`. Stands for `node.istiod.namespace`.
    pub namespace: Option<Text>,
    /// `INSTANCE_IP`, or `POD_IP`: `status.podIP`. Stands for `node.istiod.pod_ip`.
    pub pod_ip: Option<IpAddr>,
    /// `SERVICE_ACCOUNT`: `spec.serviceAccountName`. Stands for `node.istiod.service_account`.
    pub service_account: Option<Text>,
    /// `GATEWAY`: the `Gateway` that a waypoint belongs to. Stands for `node.istiod.waypoint.gateway`.
    pub gateway: Option<Text>,
    /// Variables that make no sense: they are problems of each configuration that these surroundings stand behind, and of no other.
    pub(crate) problems: Problems,
}

impl Surroundings {
    /// Reads them from a process's environment: `variable` answers with the value of a variable that is set. An empty one is as good as none: a
    /// chart writes all of them, also those that it has no value for.
    /// What makes no sense is said with the configuration.
    pub fn read(variable: impl Fn(&str) -> Option<String>) -> Self {
        let mut reading = Reading::default();
        let set = |names: &[&'static str]| {
            let values = names.iter().map(|name| (*name, variable(name).unwrap_or_default()));
            values.into_iter().find(|(_, value)| !value.is_empty())
        };
        let mut name = |names: &[&'static str]| {
            let (variable, value) = set(names)?;
            Some(reading.name(Path::Section(variable), &value))
        };
        let mut surroundings = Self {
            node: name(&["NODE_NAME"]),
            cluster_id: name(&["CLUSTER_ID", "ISTIO_META_CLUSTER_ID"]),
            network: name(&["NETWORK", "ISTIO_META_NETWORK"]),
            trust_domain: name(&["TRUST_DOMAIN"]),
            pod: name(&["POD_NAME"]),
            namespace: name(&["POD_NAMESPACE"]),
            service_account: name(&["SERVICE_ACCOUNT"]),
            gateway: name(&["GATEWAY"]),
            ..Self::default()
        };
        surroundings.pod_ip =
            set(&["INSTANCE_IP", "POD_IP"]).and_then(|(name, value)| reading.address(Path::Section(name), &value));
        let addresses = [set(&["XDS_ADDRESS"]), set(&["CA_ADDRESS"])].map(|said| {
            let (variable, value) = said?;
            istiod(variable, &value, &mut reading)
        });
        if let [Some(xds), Some(ca)] = &addresses
            && xds != ca
        {
            let remedy = "leave CA_ADDRESS out, or give it the value of XDS_ADDRESS";
            let problem =
                "is another istiod than that of XDS_ADDRESS, and one gives both configuration and certificates";
            reading.report(Path::Section("CA_ADDRESS"), &ca.to_string(), problem, remedy);
        }
        surroundings.istiod = addresses.into_iter().flatten().next();
        surroundings.problems = reading.problems;
        surroundings
    }
}

/// Istio's own proxies take a scheme, which can only be one.
fn istiod(variable: &'static str, value: &str, reading: &mut Reading) -> Option<Destination> {
    let address = value.strip_prefix("https://").unwrap_or(value).trim_end_matches('/');
    let parsed = address.parse();
    parsed
        .map_err(|error| {
            let remedy = "give it for example istiod.istio-system.svc:15012";
            reading.report(Path::Section(variable), value, format!("{error}"), remedy);
        })
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Surroundings {
        let value = |name: &str| {
            variables
                .iter()
                .find(|(known, _)| *known == name)
                .map(|(_, value)| (*value).to_owned())
        };
        Surroundings::read(value)
    }

    #[test]
    fn istios_names_are_read() {
        let said = read(&[
            ("NODE_NAME", "worker-1"),
            ("CLUSTER_ID", "Kubernetes"),
            ("NETWORK", "net"),
            ("TRUST_DOMAIN", "example.com"),
            ("XDS_ADDRESS", "https://istiod-canary.istio-system.svc:15012"),
            ("CA_ADDRESS", "istiod-canary.istio-system.svc:15012"),
            ("POD_NAME", "waypoint-x"),
            ("POD_NAMESPACE", "mesh"),
            ("INSTANCE_IP", "fd00::1"),
            ("SERVICE_ACCOUNT", "way"),
            ("GATEWAY", "gate"),
        ]);
        let expected = Surroundings {
            node: Some("worker-1".into()),
            cluster_id: Some("Kubernetes".into()),
            network: Some("net".into()),
            trust_domain: Some("example.com".into()),
            istiod: Some("istiod-canary.istio-system.svc:15012".parse().unwrap()),
            pod: Some("waypoint-x".into()),
            namespace: Some("mesh".into()),
            pod_ip: Some("fd00::1".parse().unwrap()),
            service_account: Some("way".into()),
            gateway: Some("gate".into()),
            problems: Problems::default(),
        };
        assert_eq!(said, expected);
    }

    #[test]
    fn a_variable_has_a_second_name_and_an_empty_one_says_nothing() {
        let said = read(&[
            ("CLUSTER_ID", ""),
            ("ISTIO_META_CLUSTER_ID", "west"),
            ("ISTIO_META_NETWORK", "net"),
            ("POD_IP", "10.0.0.1"),
            ("CA_ADDRESS", "istiod:15012"),
            ("NODE_NAME", ""),
        ]);
        let expected = Surroundings {
            cluster_id: Some("west".into()),
            network: Some("net".into()),
            pod_ip: Some("10.0.0.1".parse().unwrap()),
            istiod: Some("istiod:15012".parse().unwrap()),
            ..Surroundings::default()
        };
        assert_eq!(said, expected);
        assert_eq!(read(&[]), Surroundings::default());
    }

    #[test]
    fn all_that_makes_no_sense_is_said_at_once_by_the_variables_name() {
        let said = read(&[
            ("POD_NAMESPACE", "a/b"),
            ("POD_IP", "10.0.0.0/8"),
            ("XDS_ADDRESS", "http://istiod:15010"),
        ]);
        let said: Vec<_> = (said.problems)
            .found
            .iter()
            .map(|problem| (problem.path.as_str(), problem.value.as_str()))
            .collect();
        let expected = [
            ("POD_NAMESPACE", "a/b"),
            ("POD_IP", "10.0.0.0/8"),
            ("XDS_ADDRESS", "http://istiod:15010"),
        ];
        assert_eq!(said, expected);
    }

    #[test]
    fn there_is_one_istiod() {
        let problems = read(&[("XDS_ADDRESS", "istiod-a:15012"), ("CA_ADDRESS", "istiod-b:15012")]).problems;
        let text = problems.to_string();
        assert!(
            text.contains("CA_ADDRESS: \"istiod-b:15012\": is another istiod"),
            "{text}"
        );
    }
}
