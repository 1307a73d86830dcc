//! A captured node with two clients and a server, and others that are not captured.

use std::net::SocketAddr;
use std::ops::Deref;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use underpass_tests::capture::{Agent, CaptureNode, Pod};
pub(crate) use underpass_tests::load::{ask, is_refusal, round_trip};
use underpass_tests::{AccessLine, Config, Host, Metrics, Need, Process, Proxy, Server, available, wait};

/// Where every server listens.
pub(crate) const PORT: u16 = 8080;
/// A program that takes longer hangs.
pub(crate) const PROGRAM_DEADLINE: Duration = Duration::from_secs(60);
/// Virtual addresses of the service `shop/web`, known to the configuration and to nothing else.
pub(crate) const VIP: &str = "10.96.0.10:80";
pub(crate) const VIP6: &str = "[fd00:96::10]:80";
/// A virtual address of the service `away/web`, whose endpoint is on the other node.
pub(crate) const AWAY_VIP: &str = "10.96.0.20:80";

/// Guards a workload that names it: only the pod `shop/client` may connect.
pub(crate) const ONLY_CLIENT: &str = "scope: WORKLOAD_SELECTOR, action: ALLOW, \
     groups: [{rules: [{matches: [{principals: [cluster.local/ns/shop/sa/client]}]}]}]";
/// Nobody may connect to anything.
pub(crate) const DENY_ALL: &str = "scope: GLOBAL, action: DENY, groups: [{rules: [{matches: [{}]}]}]";

/// Who there is. `client`, `other` and `server` are enrolled by [`Place::start`].
pub(crate) struct Hosts {
    /// `shop/client`
    pub(crate) client: Pod,
    /// `else/other`, of another namespace.
    pub(crate) other: Pod,
    /// `shop/web-1`, the endpoint of `shop/web`.
    pub(crate) server: Pod,
    /// A pod of the node that is not enrolled and not in the configuration.
    pub(crate) stranger: Pod,
    /// `away/web-2`, a pod of the other node, in the configuration.
    pub(crate) remote: Host,
}

/// A running place.
pub(crate) struct Place {
    pub(crate) hosts: Hosts,
    pub(crate) proxy: Proxy,
    pub(crate) agent: Agent,
    pub(crate) node: CaptureNode,
}

impl Deref for Place {
    type Target = Hosts;

    fn deref(&self) -> &Hosts {
        &self.hosts
    }
}

/// A captured node, if this machine can have one.
pub(crate) fn node() -> Option<CaptureNode> {
    available(&[Need::Capture]).then(CaptureNode::new)
}

impl Hosts {
    pub(crate) fn new(node: &CaptureNode) -> Self {
        Self {
            client: node.pod("shop/client"),
            other: node.pod("else/other"),
            server: node.pod("shop/web-1"),
            stranger: node.pod("nowhere/stranger"),
            remote: node.elsewhere(),
        }
    }

    /// The pods as workloads and two services; both servers name `policies`.
    pub(crate) fn config(&self, policies: &str) -> Config {
        let guarded = format!("authorization_policies: [{policies}]");
        Config::new()
            .workload_at("shop/client", &self.client.addresses(), "service_account: client")
            .workload_at("else/other", &self.other.addresses(), "service_account: other")
            .workload_at(
                "shop/web-1",
                &self.server.addresses(),
                format!("service_account: web, {guarded}"),
            )
            .workload_at("away/web-2", &self.remote.addresses(), &guarded)
            .service("shop/web", service(&[VIP, VIP6], "shop/web-1"))
            .service("away/web", service(&[AWAY_VIP], "away/web-2"))
    }
}

fn service(vips: &[&str], endpoint: &str) -> String {
    let vips: Vec<String> = vips
        .iter()
        .map(|vip| format!("{:?}", address(vip).ip().to_string()))
        .collect();
    format!(
        "vips: [{}], ports: [{{port: 80, target_port: {PORT}}}], endpoints: [{endpoint}]",
        vips.join(", ")
    )
}

impl Place {
    /// A node whose pods `client`, `other` and `server` are captured, with the configuration that `config` makes of them; none if this
    /// machine can't have it.
    pub(crate) fn start(config: impl FnOnce(&Hosts) -> Config) -> Option<Self> {
        Self::start_with(&[], config)
    }

    /// As [`Place::start`], with further arguments for the agent.
    pub(crate) fn start_with(arguments: &[&str], config: impl FnOnce(&Hosts) -> Config) -> Option<Self> {
        let node = node()?;
        let hosts = Hosts::new(&node);
        let agent = node.start_agent_with(arguments);
        let proxy = node.start_proxy(&config(&hosts));
        for pod in [&hosts.client, &hosts.other, &hosts.server] {
            node.enrol(pod);
        }
        Some(Self {
            hosts,
            proxy,
            agent,
            node,
        })
    }

    /// How many connections the proxy has opened for a client.
    pub(crate) fn opened(&self) -> u64 {
        opened(&self.proxy.metrics())
    }

    /// The log line of the last refused connection, once it says `reason`.
    #[track_caller]
    pub(crate) fn wait_for_refusal(&self, reason: &str, flags: &str) -> AccessLine {
        let says = |line: &AccessLine| (line.field("reason"), line.field("response_flags")) == (reason, flags);
        wait::some(wait::SOON, &format!("a refusal is logged: {reason} {flags}"), || {
            let lines = self.proxy.access_lines();
            let refused = lines.into_iter().rfind(|line| line.field("reason") != "completed");
            refused.filter(says)
        })
    }

    /// What `host` asks of `to` is answered by nobody, with an error that an application understands.
    #[track_caller]
    pub(crate) fn assert_refused(&self, host: &Host, to: SocketAddr) {
        match ask(host, to) {
            Err(error) => assert!(is_refusal(&error), "{} to {to}: {error}", host.ip()),
            Ok(stream) => panic!("{} to {to}: answered: {stream:?}", host.ip()),
        }
    }
}

/// An address from its text.
pub(crate) fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

/// Connections opened at the source, by a scrape.
pub(crate) fn opened(metrics: &Metrics) -> u64 {
    metrics.sum("kmesh_tcp_workload_connections_opened_total", &[("reporter", "source")])
}

/// The program that runs inside pods.
pub(crate) fn inside() -> Command {
    Process::command(env!("CARGO_BIN_EXE_inside"))
}

/// A program on `host` connects in the way that `how` names (see the binary `inside`); answers what it says has come of it.
pub(crate) fn connect_by_program(node: &CaptureNode, host: &Host, how: &[&str], to: SocketAddr) -> Value {
    let mut command = inside();
    command.arg("connect").arg(how[0]).arg(to.to_string()).args(&how[1..]);
    let said = Process::run(node.world(), host, how[0], command, PROGRAM_DEADLINE);
    let line = said.lines().last().unwrap_or_default();
    serde_json::from_str(line).unwrap_or_else(|e| panic!("{how:?} to {to}: {e}: {said}"))
}

/// Waits until the server has noticed the end of everything that was open.
pub(crate) fn quiet(server: &Server) {
    wait::eventually(wait::SOON, "the server has no connection open", || server.open() == 0);
}
