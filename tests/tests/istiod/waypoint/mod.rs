//! A waypoint that istiod tells what to serve, as users have one: nodes that capture their pods' connections, a `Gateway` of the class `istio-waypoint`, and what a user
//! writes for the services behind it.
//!
//! A client of one node asks a service; its node's proxy leads it to the waypoint, a pod that nobody captures, and that to a server's node.

mod beside;
mod changes;
mod commands;
mod deployed;
mod destinations;
mod policy;
mod routes;
mod server;
mod tokens;

use std::net::SocketAddr;

use underpass_tests::capture::Pod;
use underpass_tests::istiod::{Istiod, Pod as PodObject, namespace};
use underpass_tests::{Config, Host, Proxy, wait};

use crate::nodes::{Nodes, file_of};
use crate::place::{PORT, ip};
use server::{Answer, Server, get};

/// The address of the service `shop/web`, which has the waypoint.
const WEB: &str = "10.96.0.80";
const GATEWAY: &str = "waypoint";

/// Two nodes, their pods, and a waypoint.
struct Mesh {
    nodes: Nodes,
    /// `underpass --role waypoint`, in its pod.
    waypoint: Proxy,
    pod: Pod,
    /// The server of `shop/web` on each node: `a` of version `v1`, `b` of `v2`.
    _servers: [Server; 2],
}

/// The objects of a waypoint whose only instance is at `pod`.
fn instance(pod: &Pod) -> String {
    let object = PodObject::new(pod.name(), pod.ip())
        .account("waypoint")
        .labels(&format!(
            "app: waypoint, gateway.networking.k8s.io/gateway-name: {GATEWAY}"
        ))
        .uncaptured();
    let namespace = namespace("mesh", "istio.io/dataplane-mode: none");
    format!("{namespace}{object}{}", gateway("mesh"))
}

/// A waypoint in a namespace, of the pods there that have its label.
fn gateway(namespace: &str) -> String {
    format!(
        "---
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {{name: istio-waypoint}}
spec: {{controllerName: istio.io/mesh-controller}}
---
apiVersion: v1
kind: Service
metadata: {{namespace: {namespace}, name: waypoint}}
spec: {{type: ClusterIP, clusterIP: 10.96.0.15, clusterIPs: [10.96.0.15], selector: {{gateway.networking.k8s.io/gateway-name: {GATEWAY}}}, ports: [{{name: mesh, port: 15008, protocol: TCP, appProtocol: hbone}}]}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{namespace: {namespace}, name: {GATEWAY}}}
spec:
  gatewayClassName: istio-waypoint
  addresses: [{{type: Hostname, value: waypoint.{namespace}.svc.cluster.local}}]
  listeners: [{{name: mesh, port: 15008, protocol: HBONE, allowedRoutes: {{namespaces: {{from: All}}}}}}]
status:
  addresses: [{{type: Hostname, value: waypoint.{namespace}.svc.cluster.local}}]
  conditions: [{{type: Programmed, status: \"True\", reason: Programmed, message: ok, lastTransitionTime: \"2026-01-01T00:00:00Z\"}}]
"
    )
}

/// A service of `shop` whose port 80 speaks HTTP.
fn service(name: &str, address: &str, labels: &str) -> String {
    format!(
        "---
apiVersion: v1
kind: Service
metadata: {{namespace: shop, name: {name}}}
spec: {{type: ClusterIP, clusterIP: {address}, clusterIPs: [{address}], selector: {{{labels}}}, ports: [{{name: http, port: 80, targetPort: {PORT}, protocol: TCP}}]}}
"
    )
}

/// What a waypoint is configured with in its pod.
fn configuration(istiod: &Istiod, pod: &Pod) -> Config {
    let name = pod.name().split_once('/').expect("namespace/name").1;
    let more = format!(
        "pod: {name}, namespace: mesh, pod_ip: {}, service_account: waypoint, waypoint: {{gateway: {GATEWAY}}}",
        pod.ip()
    );
    Config::new()
        .access_log_format("json")
        .node_name("node-a")
        .node("role: waypoint")
        .node(istiod.settings_with(&format!("mesh/waypoint/{name}"), more))
        .node("timeouts: {drain: 2s}")
}

/// The service `shop/web`, whose pods have versions, uses the waypoint in a namespace.
fn tell_of_web(nodes: &Nodes, namespace_of_waypoint: &str) {
    for (side, version) in [(&nodes.a, "v1"), (&nodes.b, "v2")] {
        let object = side.web_object().labels(&format!("app: web, version: {version}"));
        nodes.istiod.apply(&file_of(&side.web), object);
    }
    let uses = format!("istio.io/use-waypoint: {GATEWAY}, istio.io/use-waypoint-namespace: {namespace_of_waypoint}");
    let namespaces = namespace("shop", &uses) + &namespace("else", "");
    nodes.istiod.apply("namespaces", namespaces);
    nodes.istiod.apply("web", service("web", WEB, "app: web"));
}

impl Mesh {
    /// The mesh, when the service `shop/web` is answered through the waypoint; none if this machine can't have one.
    fn start() -> Option<Self> {
        let nodes = Nodes::start()?;
        let pod = nodes.a.node.pod("mesh/waypoint");
        nodes.istiod.apply("waypoint", instance(&pod));
        tell_of_web(&nodes, "mesh");
        let waypoint = Proxy::start(nodes.a.node.world(), &pod, &configuration(&nodes.istiod, &pod));
        let servers = [&nodes.a, &nodes.b].map(|side| Server::start(&side.web, PORT, side.web.name()));
        let mesh = Self {
            nodes,
            waypoint,
            pod,
            _servers: servers,
        };
        wait::eventually(2 * wait::SOON, "the service is answered through the waypoint", || {
            let (answer, before) = (mesh.get("/"), mesh.served());
            answer.is_ok_and(|answer| answer.status == 200) && before > 0
        });
        Some(mesh)
    }

    /// The client on `node-a`, of the account `shop/client`.
    fn client(&self) -> &Host {
        &self.nodes.a.client
    }

    /// What that client is answered by the service for a path.
    fn get(&self, path: &str) -> std::io::Result<Answer> {
        get(self.client(), web(), path, &[])
    }

    /// Requests that the waypoint has written lines of.
    fn served(&self) -> usize {
        self.waypoint.access_lines().len()
    }

    /// Puts objects into the cluster, as a user does.
    fn apply(&self, name: &str, objects: &str) {
        self.nodes.istiod.apply(name, objects);
    }

    /// Waits until requests for a path are answered so.
    #[track_caller]
    fn wait_for(&self, path: &str, what: &str, mut is_so: impl FnMut(&Answer) -> bool) {
        let mut last = None;
        wait::eventually(wait::SOON, &format!("{path}: {what}"), || {
            let answer = self.get(path);
            let is_it = answer.as_ref().is_ok_and(&mut is_so);
            if !is_it {
                last = Some(format!("{answer:?}"));
            }
            is_it
        });
    }
}

fn web() -> SocketAddr {
    (ip(WEB), 80).into()
}
