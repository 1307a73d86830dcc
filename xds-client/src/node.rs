//! Who we tell istiod that we are.

use std::collections::BTreeMap;
use std::net::IpAddr;

use prost_types::value::Kind;
use prost_types::{Struct, Value};

use crate::proto::discovery;

/// A node of the mesh's data plane. What is empty is left out.
#[derive(Clone, Debug)]
pub struct Node {
    /// What it does.
    pub role: NodeRole,
    /// The pod's name.
    pub pod: String,
    /// The pod's namespace: istiod wants the token to be of an account of it.
    pub namespace: String,
    /// The pod's addresses, at least one.
    pub addresses: Vec<IpAddr>,
    /// The Kubernetes node it runs on.
    pub node: String,
    /// The cluster, by the name istiod knows it by. **A wrong one is not refused**: a waypoint is then told of no services
    /// (a node is told of everything all the same).
    pub cluster_id: String,
    /// The network.
    pub network: String,
    /// The account of the token. If given, istiod refuses any other.
    pub service_account: String,
    /// The Istio release whose behaviour is expected, for example `1.31.0`.
    pub istio_version: String,
    /// The pod's labels.
    pub labels: BTreeMap<String, String>,
}

/// What a node does in the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeRole {
    /// Serves the pods of its node (`ztunnel`).
    Node,
    /// Serves the services that ask for it (`waypoint`).
    Waypoint,
}

impl Node {
    pub(crate) fn to_wire(&self) -> discovery::Node {
        let role = match self.role {
            NodeRole::Node => "ztunnel",
            NodeRole::Waypoint => "waypoint",
        };
        let Self { pod, namespace, .. } = self;
        let address = self.addresses.first().map(IpAddr::to_string).unwrap_or_default();
        let addresses: Vec<String> = self.addresses.iter().map(IpAddr::to_string).collect();
        let texts = [
            ("NAME", pod.as_str()),
            ("NAMESPACE", namespace),
            ("INSTANCE_IPS", &addresses.join(",")),
            ("NODE_NAME", &self.node),
            ("CLUSTER_ID", &self.cluster_id),
            ("NETWORK", &self.network),
            ("SERVICE_ACCOUNT", &self.service_account),
            ("ISTIO_VERSION", &self.istio_version),
        ];
        let mut fields: BTreeMap<String, Value> = texts
            .into_iter()
            .filter(|(_, value)| !value.is_empty())
            .map(|(key, value)| (key.to_owned(), text(value)))
            .collect();
        if !self.labels.is_empty() {
            let labels = self.labels.iter().map(|(key, value)| (key.clone(), text(value)));
            let labels = Struct {
                fields: labels.collect(),
            };
            let labels = Value {
                kind: Some(Kind::StructValue(labels)),
            };
            fields.insert("LABELS".into(), labels);
        }
        discovery::Node {
            id: format!("{role}~{address}~{pod}.{namespace}~{namespace}.svc.cluster.local"),
            cluster: String::new(),
            metadata: Some(Struct { fields }),
        }
    }
}

fn text(value: &str) -> Value {
    Value {
        kind: Some(Kind::StringValue(value.to_owned())),
    }
}
