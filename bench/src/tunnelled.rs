//! The systems of the `hbone-…` scenarios: two proxies between client and server, with a tunnel between the proxies.
//!
//! Both proxies are in the node's namespace and share its cores. Underpass' serve one captured pod each, so the
//! pods are on two nodes as far as either knows: the client's connection is captured, the tunnel leaves from the client's namespace and crosses both
//! links to the server's. Envoy's first listens on the node, its tunnel to the second crosses loopback, and the links are crossed before and behind. So
//! bytes cross each link once, and loopback once, with both.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result};
use underpass_tests::{Authority, Issued};

use crate::captured::{Node, Task};
use crate::place::Place;
use crate::process::Process;
use crate::system::{Programs, THREADS, envoy_arguments};
use crate::topology::Topology;

/// Two nodes with one enrolled pod each.
pub(crate) struct Tunnelled {
    /// Its namespaces.
    pub(crate) topology: Topology,
    near: Node,
    far: Node,
}

impl Tunnelled {
    /// Starts agents and proxies, and enrols the client at the one and the server at the other.
    pub(crate) fn start(task: &Task<'_>, second_admin_port: u16) -> Result<Tunnelled> {
        let topology = Topology::new(false, task.directory)?;
        let authority = Authority::new(&task.directory.join("certificates"));
        let start = |task: &Task<'_>, pod: &str| {
            let identities = authority.identities(&[&format!("bench/{pod}")]);
            Node::start(task, &topology, &yaml(&topology, task, pod, &identities))
        };
        let second = Task {
            name: format!("{}-far", task.name),
            admin_port: second_admin_port,
            ..task.clone()
        };
        let (near, far) = (start(task, "client")?, start(&second, "server")?);
        near.enrol("client", topology.client_holder()?)?;
        far.enrol("server", topology.server_holder()?)?;
        Ok(Tunnelled { topology, near, far })
    }

    /// A place in the client's pod, on `cores`.
    pub(crate) fn client(&self, cores: &[usize]) -> Result<Place> {
        self.near.pod(&self.topology.client, cores)
    }

    /// A place in the server's pod, on `cores`.
    pub(crate) fn server(&self, cores: &[usize]) -> Result<Place> {
        self.far.pod(&self.topology.server, cores)
    }

    /// Agents and proxies.
    pub(crate) fn processes(&self) -> Vec<&Process> {
        [self.near.processes(), self.far.processes()].concat()
    }
}

/// The configuration of the node of `pod`: nothing moves to the kernel, nothing is logged.
fn yaml(topology: &Topology, task: &Task<'_>, pod: &str, identities: &str) -> String {
    let workload = |name: &str, ip| {
        format!(
            "- {{uid: {name}, name: {name}, namespace: bench, service_account: {name}, node: node-{name}, \
             tunnel_protocol: hbone, addresses: [\"{ip}\"]}}\n"
        )
    };
    format!(
        "node:\n  name: node-{pod}\n  workers: {}\n  admin: \"127.0.0.1:{}\"\n  log: warn\n  access_log: {{format: \"off\"}}\n  \
         identities: {identities}\nworkloads:\n{}{}",
        task.workers,
        task.admin_port,
        workload("client", topology.client_address),
        workload("server", topology.server_address),
    )
}

/// Two Envoys of `programs` in `place`: one that takes connections at `listen` to `destination` by a tunnel to the other at `gateway`.
pub(crate) fn envoys(
    programs: &Programs,
    place: &Place,
    (listen, gateway, destination): (SocketAddr, SocketAddr, SocketAddr),
    directory: &Path,
    name: &str,
) -> Result<Vec<Process>> {
    let authority = Authority::new(&directory.join("certificates-envoy"));
    let roots = authority.roots().display().to_string();
    let tls =
        |pod: &str, peer: &str, side: &str| transport(&authority.issue(&format!("bench/{pod}")), &roots, peer, side);
    let far = format!(
        "static_resources:\n  listeners:\n  - address: {}\n    filter_chains:\n    - filters:\n      - name: envoy.filters.network.http_connection_manager\n        \
         typed_config:\n          \"@type\": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager\n          \
         stat_prefix: far\n          codec_type: HTTP2\n          http2_protocol_options: {{allow_connect: true}}\n          \
         upgrade_configs: [{{upgrade_type: CONNECT}}]\n          http_filters: [{{name: envoy.filters.http.router, typed_config: \
         {{\"@type\": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}]\n          \
         route_config: {{virtual_hosts: [{{name: all, domains: [\"*\"], routes: [{{match: {{connect_matcher: {{}}}}, route: {{cluster: \
         next, timeout: 0s, upgrade_configs: [{{upgrade_type: CONNECT, connect_config: {{}}}}]}}}}]}}]}}\n      \
         transport_socket: {}\n  clusters:\n{}",
        address(gateway),
        tls("server", "client", "Downstream"),
        cluster(destination, ""),
    );
    let near = format!(
        "static_resources:\n  listeners:\n  - address: {}\n    filter_chains:\n    - filters:\n      - name: envoy.filters.network.tcp_proxy\n        \
         typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: near, \
         cluster: next, tunneling_config: {{hostname: \"{destination}\"}}}}\n  clusters:\n{}",
        address(listen),
        cluster(
            gateway,
            &format!(
                "    typed_extension_protocol_options: {{envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {{\"@type\": \
                 type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: \
                 {{http2_protocol_options: {{}}}}}}}}\n    transport_socket: {}\n",
                tls("client", "server", "Upstream")
            )
        ),
    );
    let program = programs.find(crate::system::Kind::Envoy)?;
    let mut running = Vec::new();
    for (role, text, port) in [("far", far, gateway.port()), ("near", near, listen.port())] {
        let path = directory.join(format!("{name}-{role}.yaml"));
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        let mut command = place.command(&program)?;
        command.args(envoy_arguments(THREADS)).arg(&path);
        let log = directory.join(format!("{name}-{role}.log"));
        running.push(Process::start_proxy(command, &log, port)?);
    }
    Ok(running)
}

/// An address in Envoy's words.
pub(crate) fn address(address: SocketAddr) -> String {
    format!(
        "{{socket_address: {{address: \"{}\", port_value: {}}}}}",
        address.ip(),
        address.port()
    )
}

/// The cluster `next`, without limits that a load would run into.
fn cluster(at: SocketAddr, more: &str) -> String {
    format!(
        "  - name: next\n    type: STATIC\n    connect_timeout: 5s\n    circuit_breakers: {{thresholds: [{{max_connections: 100000, \
         max_pending_requests: 100000, max_requests: 100000}}]}}\n    load_assignment: {{cluster_name: next, endpoints: [{{lb_endpoints: \
         [{{endpoint: {{address: {}}}}}]}}]}}\n{more}",
        address(at)
    )
}

/// TLS with this certificate, for the pod `peer`.
fn transport(certificate: &Issued, roots: &str, peer: &str, side: &str) -> String {
    let required = match side {
        "Downstream" => ", require_client_certificate: true",
        _ => "",
    };
    format!(
        "{{name: envoy.transport_sockets.tls, typed_config: {{\"@type\": \
         type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{side}TlsContext{required}, common_tls_context: {{\
         tls_params: {{tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3}}, alpn_protocols: [h2], \
         tls_certificates: [{{certificate_chain: {{filename: {:?}}}, private_key: {{filename: {:?}}}}}], validation_context: {{\
         trusted_ca: {{filename: {roots:?}}}, match_typed_subject_alt_names: [{{san_type: URI, matcher: {{exact: \
         \"spiffe://cluster.local/ns/bench/sa/{peer}\"}}}}]}}}}}}}}",
        certificate.chain, certificate.key
    )
}
