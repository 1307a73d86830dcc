//! Kubernetes objects in a few words: what an ambient mesh needs of them, written out, because nothing fills in defaults.

use std::fmt::{self, Display, Write};
use std::net::IpAddr;

/// A namespace of the ambient mesh, with further labels in YAML: `istio.io/use-waypoint: none`.
pub fn namespace(name: &str, labels: &str) -> String {
    format!(
        "---
apiVersion: v1
kind: Namespace
metadata: {{name: {name}, labels: {{kubernetes.io/metadata.name: {name}, istio.io/dataplane-mode: ambient, {labels}}}}}
"
    )
}

/// A node in a zone of the region `region`.
pub fn node(name: &str, zone: &str) -> String {
    let labels = format!(
        "kubernetes.io/hostname: {name}, topology.kubernetes.io/region: region, topology.kubernetes.io/zone: {zone}"
    );
    format!("---\napiVersion: v1\nkind: Node\nmetadata: {{name: {name}, labels: {{{labels}}}}}\n")
}

/// A pod of its own service account, captured, on the node `node-a`. Its YAML has the account, too.
#[derive(Clone)]
pub struct Pod {
    namespace: String,
    name: String,
    address: IpAddr,
    account: String,
    node: String,
    labels: String,
    ready: bool,
    captured: bool,
}

impl Pod {
    /// The pod `namespace/name`, whose label `app` and service account are its name.
    pub fn new(name: &str, address: IpAddr) -> Self {
        let (namespace, name) = name.split_once('/').expect("a pod's name is namespace/name");
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            address,
            account: name.to_owned(),
            node: "node-a".to_owned(),
            labels: format!("app: {name}"),
            ready: true,
            captured: true,
        }
    }

    /// With these labels, in YAML.
    pub fn labels(mut self, labels: &str) -> Self {
        self.labels = labels.to_owned();
        self
    }

    /// Of this service account.
    pub fn account(mut self, account: &str) -> Self {
        self.account = account.to_owned();
        self
    }

    /// On this node.
    pub fn on(mut self, node: &str) -> Self {
        self.node = node.to_owned();
        self
    }

    /// Not ready.
    pub fn unready(mut self) -> Self {
        self.ready = false;
        self
    }

    /// Known to istiod, and not of the mesh.
    pub fn uncaptured(mut self) -> Self {
        self.captured = false;
        self
    }

    /// As istiod names its workload.
    pub fn uid(&self) -> String {
        format!("Kubernetes//Pod/{}/{}", self.namespace, self.name)
    }
}

impl Display for Pod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            namespace,
            name,
            address,
            account,
            node,
            labels,
            ready,
            captured,
        } = self;
        let annotations = if *captured {
            "ambient.istio.io/redirection: enabled"
        } else {
            ""
        };
        let ready = if *ready { "True" } else { "False" };
        write!(
            f,
            "---
apiVersion: v1
kind: ServiceAccount
metadata: {{namespace: {namespace}, name: {account}}}
---
apiVersion: v1
kind: Pod
metadata: {{namespace: {namespace}, name: {name}, labels: {{{labels}}}, annotations: {{{annotations}}}}}
spec: {{nodeName: {node}, serviceAccountName: {account}, containers: [{{name: main, image: none}}]}}
status: {{podIP: \"{address}\", conditions: [{{type: Ready, status: \"{ready}\"}}]}}
"
        )
    }
}

/// A service of type ClusterIP.
#[derive(Clone)]
pub struct Service {
    namespace: String,
    name: String,
    address: Option<IpAddr>,
    selector: String,
    ports: Vec<(u16, u16)>,
    annotations: String,
    more: String,
}

impl Service {
    /// The service `namespace/name` of pods whose label `app` is its name.
    pub fn new(name: &str, address: IpAddr) -> Self {
        Self {
            address: Some(address),
            ..Self::headless(name)
        }
    }

    /// As [`Service::new`], without an address of its own.
    pub fn headless(name: &str) -> Self {
        let (namespace, name) = name.split_once('/').expect("a service's name is namespace/name");
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            address: None,
            selector: format!("app: {name}"),
            ports: Vec::new(),
            annotations: String::new(),
            more: String::new(),
        }
    }

    /// Of pods with these labels, in YAML.
    pub fn selecting(mut self, labels: &str) -> Self {
        self.selector = labels.to_owned();
        self
    }

    /// With a further port.
    pub fn port(mut self, port: u16, target: u16) -> Self {
        self.ports.push((port, target));
        self
    }

    /// With this of its `spec`, in YAML.
    pub fn spec(mut self, more: &str) -> Self {
        self.more = more.to_owned();
        self
    }

    /// With annotations, in YAML.
    pub fn annotated(mut self, annotations: &str) -> Self {
        self.annotations = annotations.to_owned();
        self
    }
}

impl Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = self.address.map_or("None".to_owned(), |address| address.to_string());
        let mut ports = String::new();
        for (port, target) in &self.ports {
            write!(
                ports,
                "{{name: port-{port}, port: {port}, targetPort: {target}, protocol: TCP}}, "
            )?;
        }
        let Self {
            namespace,
            name,
            selector,
            annotations,
            more,
            ..
        } = self;
        write!(
            f,
            "---
apiVersion: v1
kind: Service
metadata: {{namespace: {namespace}, name: {name}, annotations: {{{annotations}}}}}
spec: {{type: ClusterIP, clusterIP: \"{address}\", clusterIPs: [\"{address}\"], selector: {{{selector}}}, ports: [{ports}], {more}}}
"
        )
    }
}
