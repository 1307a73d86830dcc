//! Two nodes of one mesh, each as users run it: `underpass run --role node`, agent and proxy, with the pods of its own, and one istiod for both.
//!
//! Both nodes have the same pods, so that whatever is asked is asked from the server's own node and from the other one: by the pod's own network
//! there, by HBONE here.

mod clock;
mod mesh;
mod peer;
mod policy;
mod rotation;
mod services;

use std::net::SocketAddr;

use underpass_tests::capture::{CaptureNode, Pod};
use underpass_tests::istiod::{Istiod, Pod as PodObject, namespace, node};
use underpass_tests::load::{ask, is_refusal};
use underpass_tests::{Host, Need, Proxy, Server, available, wait};

use crate::place::PORT;

/// One node. Pods are named after it: `shop/client-a` on `node-a`.
pub(crate) struct Side {
    /// Agent and proxy.
    pub(crate) proxy: Proxy,
    /// `shop/client-…`, of the account `shop/client`.
    pub(crate) client: Pod,
    /// `else/other-…`, of the account `else/other`.
    pub(crate) other: Pod,
    /// `shop/web-…`, of the account `shop/web`, with the label `app: web`.
    pub(crate) web: Pod,
    /// Neither enrolled nor known to istiod.
    pub(crate) stranger: Pod,
    pub(crate) node: CaptureNode,
}

/// Both nodes, and their istiod, which listens on the first.
pub(crate) struct Nodes {
    pub(crate) a: Side,
    pub(crate) b: Side,
    pub(crate) istiod: Istiod,
}

/// The pods of a node before anything runs on it.
struct Stage {
    node: CaptureNode,
    pods: [Pod; 4],
}

impl Stage {
    fn of(node: CaptureNode) -> Self {
        let letter = letter(&node);
        let pods = ["shop/client", "else/other", "shop/web", "nowhere/stranger"];
        let pods = pods.map(|name| node.pod(&format!("{name}-{letter}")));
        Self { node, pods }
    }

    fn object(&self, pod: usize) -> PodObject {
        let account = ["client", "other", "web"][pod];
        PodObject::new(self.pods[pod].name(), self.pods[pod].ip())
            .account(account)
            .labels(&format!("app: {account}"))
            .on(self.node.name())
    }

    /// What istiod is told of the node: its proxy, perhaps with further labels, and its pods.
    fn tell(&self, istiod: &Istiod, labels: &str) {
        let letter = letter(&self.node);
        let proxy = PodObject::new(&format!("istio-system/ztunnel-{letter}"), self.node.host().ip())
            .account("ztunnel")
            .labels(&format!("app: ztunnel, {labels}"))
            .on(self.node.name());
        istiod.apply(&format!("proxy-{letter}"), proxy.uncaptured());
        for pod in 0..3 {
            istiod.apply(&file_of(&self.pods[pod]), self.object(pod));
        }
    }

    fn start(self, istiod: &Istiod, settings: &str, gateway: Option<&str>, environment: &[(&str, &str)]) -> Side {
        let pod = format!("ztunnel-{}", letter(&self.node));
        let waypoint = gateway.map(|gateway| {
            let address = self.node.host().ip();
            format!("pod: {pod}, namespace: istio-system, pod_ip: {address}, service_account: ztunnel, waypoint: {{gateway: {gateway}}}")
        });
        // Requests have lines of their own shape, which only this format has in common with those of connections.
        let config = match gateway {
            Some(_) => underpass_tests::Config::new().access_log_format("json"),
            None => underpass_tests::Config::new(),
        };
        let config = config
            .node_name(self.node.name())
            .node(istiod.settings_with(&format!("istio-system/ztunnel/{pod}"), waypoint.unwrap_or_default()))
            .node("timeouts: {drain: 2s}")
            .node(settings);
        let proxy = self.node.start_role_node(&config, environment);
        let Self { node, pods } = self;
        for pod in &pods[..3] {
            node.enrol(pod);
        }
        let [client, other, web, stranger] = pods;
        Side {
            proxy,
            client,
            other,
            web,
            stranger,
            node,
        }
    }
}

fn letter(node: &CaptureNode) -> char {
    node.name().chars().last().expect("a letter")
}

/// The name under which a pod's objects are applied.
pub(crate) fn file_of(pod: &Pod) -> String {
    pod.name().replace('/', "-")
}

impl Side {
    /// The objects of the server's pod.
    pub(crate) fn web_object(&self) -> PodObject {
        PodObject::new(self.web.name(), self.web.ip())
            .account("web")
            .labels("app: web")
            .on(self.node.name())
    }

    /// The certificates of its pods: identity, state, serial number.
    pub(crate) fn certificates(&self) -> Vec<(String, String, String)> {
        let status = self.proxy.status();
        let certificates = status["identities"]["certificates"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        certificates
            .iter()
            .map(|one| (text(&one["identity"]), text(&one["state"]), text(&one["serial"])))
            .collect()
    }

    /// How many roots its pods believe.
    pub(crate) fn roots(&self) -> u64 {
        self.proxy.status()["identities"]["roots"].as_u64().expect("a number")
    }
}

impl Nodes {
    /// Both, when their pods have certificates; none if this machine can't have them.
    pub(crate) fn start() -> Option<Self> {
        Self::start_with("", |node| Istiod::start_for_all(node.world(), &node.host()), [&[], &[]])
    }

    /// As [`Nodes::start`], with a further setting of both nodes, this istiod, and these variables in the environment of each node's processes.
    pub(crate) fn start_with(
        settings: &str,
        istiod: impl FnOnce(&CaptureNode) -> Istiod,
        environment: [&[(&str, &str)]; 2],
    ) -> Option<Self> {
        Some(Self::start_unready(settings, istiod, environment)?.ready(3))
    }

    /// Both, each of which is a waypoint of this `Gateway` in `istio-system` besides.
    pub(crate) fn start_as_waypoints(gateway: &str) -> Option<Self> {
        let istiod = |node: &CaptureNode| Istiod::start_for_all(node.world(), &node.host());
        Some(Self::start_all("", Some(gateway), istiod, [&[], &[]])?.ready(4))
    }

    /// The same, when they have so many certificates.
    fn ready(self, certificates: usize) -> Self {
        for side in self.sides() {
            wait::eventually(2 * wait::SOON, "the pods have certificates", || {
                let found = side.certificates();
                found.len() == certificates && found.iter().all(|(_, state, _)| state == "valid")
            });
            self.wait_for_workloads(side, 8);
        }
        self
    }

    /// As [`Nodes::start_with`], without waiting for certificates.
    pub(crate) fn start_unready(
        settings: &str,
        istiod: impl FnOnce(&CaptureNode) -> Istiod,
        environment: [&[(&str, &str)]; 2],
    ) -> Option<Self> {
        Self::start_all(settings, None, istiod, environment)
    }

    fn start_all(
        settings: &str,
        gateway: Option<&str>,
        istiod: impl FnOnce(&CaptureNode) -> Istiod,
        environment: [&[(&str, &str)]; 2],
    ) -> Option<Self> {
        if !available(&[Need::Capture, Need::Istiod]) {
            return None;
        }
        let near = CaptureNode::new();
        let far = near.beside();
        let istiod = istiod(&near);
        let stages = [near, far].map(Stage::of);
        istiod.apply("nodes", node("node-a", "zone-a") + &node("node-b", "zone-b"));
        istiod.apply("namespaces", namespace("shop", "") + &namespace("else", ""));
        for stage in &stages {
            let label = gateway.map(|gateway| format!("gateway.networking.k8s.io/gateway-name: {gateway}"));
            stage.tell(&istiod, &label.unwrap_or_default());
        }
        let [near, far] = stages;
        let a = near.start(&istiod, settings, gateway, environment[0]);
        let b = far.start(&istiod, settings, gateway, environment[1]);
        Some(Self { a, b, istiod })
    }

    /// Waits until a node's mesh has as many workloads.
    #[track_caller]
    fn wait_for_workloads(&self, side: &Side, count: u64) {
        wait::eventually(wait::SOON, "the mesh has all pods", || {
            side.proxy.status()["mesh"]["workloads"].as_u64() == Some(count)
        });
    }

    /// Both nodes.
    pub(crate) fn sides(&self) -> [&Side; 2] {
        [&self.a, &self.b]
    }

    /// A server on each node.
    pub(crate) fn servers(&self, port: u16) -> [Server; 2] {
        self.sides().map(|side| Server::start(&side.web, port))
    }

    /// The client of each node.
    pub(crate) fn clients(&self) -> [&Host; 2] {
        self.sides().map(|side| &*side.client)
    }

    /// The client of another namespace, of each node.
    pub(crate) fn others(&self) -> [&Host; 2] {
        self.sides().map(|side| &*side.other)
    }

    /// Those outside the mesh, on each node.
    pub(crate) fn strangers(&self) -> [&Host; 2] {
        self.sides().map(|side| &*side.stranger)
    }
}

/// Waits until each of these hosts is answered, or refused, at each of these servers.
#[track_caller]
pub(crate) fn wait_until(hosts: &[&Host], servers: &[Server], may: bool) {
    for host in hosts {
        for server in servers {
            let to = server.address();
            let what = format!("{} is {} at {to}", host.ip(), if may { "answered" } else { "refused" });
            wait::eventually(wait::SOON, &what, || is_answered(host, to) == may);
        }
    }
}

/// Whether a host is answered; if not, it is refused with an error that an application understands.
#[track_caller]
pub(crate) fn is_answered(host: &Host, to: SocketAddr) -> bool {
    match ask(host, to) {
        Ok(_) => true,
        Err(error) => {
            assert!(is_refusal(&error), "{} to {to}: {error}", host.ip());
            false
        }
    }
}

/// The server of a port on each node.
pub(crate) fn web_servers(nodes: &Nodes) -> [Server; 2] {
    nodes.servers(PORT)
}
