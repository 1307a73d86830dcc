//! Two captured nodes: clients on the one, a server on the other.

use std::net::SocketAddr;

use underpass_tests::capture::{Agent, CaptureNode, Pod};
use underpass_tests::{Authority, Config, Need, Proxy, available};

/// Where every server listens.
pub(crate) const PORT: u16 = 8080;
/// A virtual address of the service `shop/web`.
pub(crate) const VIP: &str = "10.96.0.10:80";
/// As whom the near node's proxy itself opens tunnels.
pub(crate) const GATEWAY: &str = "shop/gateway";
/// Guards a workload that names it: only the account `shop/client` may connect.
pub(crate) const ONLY_CLIENT: &str = "scope: WORKLOAD_SELECTOR, action: ALLOW, \
     groups: [{rules: [{matches: [{principals: [cluster.local/ns/shop/sa/client]}]}]}]";
/// Who shows no certificate may not connect: what istiod makes of STRICT.
pub(crate) const STRICT: &str = "scope: GLOBAL, action: DENY, \
     groups: [{rules: [{matches: [{not_principals: [{presence: {}}]}]}]}]";

/// A node with its agent and its proxy.
pub(crate) struct Side {
    pub(crate) proxy: Proxy,
    pub(crate) node: CaptureNode,
    _agent: Agent,
}

/// Both nodes, and who there is.
pub(crate) struct Place {
    /// `shop/client`, on the first node.
    pub(crate) client: Pod,
    /// `else/other`, on the first node.
    pub(crate) other: Pod,
    /// `shop/web-1`, on the second.
    pub(crate) server: Pod,
    /// `shop/envoy-1`, on the second; not captured.
    pub(crate) envoy: Pod,
    pub(crate) authority: Authority,
    /// The clients' node.
    pub(crate) near: Side,
    /// The server's node.
    pub(crate) far: Side,
}

/// Who is where, before anything runs.
pub(crate) struct Hosts {
    pub(crate) client: Pod,
    pub(crate) other: Pod,
    pub(crate) server: Pod,
    pub(crate) envoy: Pod,
    pub(crate) authority: Authority,
}

impl Hosts {
    /// The mesh as both nodes know it; the server names `policies`.
    pub(crate) fn mesh(&self, policies: &str) -> Config {
        let service =
            format!("vips: [10.96.0.10], ports: [{{port: 80, target_port: {PORT}}}], endpoints: [shop/web-1]");
        Config::new()
            .workload_at(
                "shop/client",
                &self.client.addresses(),
                "service_account: client, node: node-a, tunnel_protocol: hbone",
            )
            .workload_at(
                "else/other",
                &self.other.addresses(),
                "service_account: other, node: node-a, tunnel_protocol: hbone",
            )
            .workload_at(
                "shop/web-1",
                &self.server.addresses(),
                format!(
                    "service_account: web, node: node-b, tunnel_protocol: hbone, authorization_policies: [{policies}]"
                ),
            )
            .workload_at(
                "shop/envoy-1",
                &self.envoy.addresses(),
                "service_account: envoy, node: node-b, tunnel_protocol: hbone",
            )
            .service("shop/web", service)
    }
}

impl Place {
    /// Two nodes with the mesh that `mesh` makes, whose pods are captured; none if this machine can't have them.
    pub(crate) fn start(mesh: impl Fn(&Hosts) -> Config) -> Option<Self> {
        Self::start_with(mesh, |config, _| config)
    }

    /// As [`Place::start`], where the near node's configuration is what `near_config` makes of the mesh.
    pub(crate) fn start_with(
        mesh: impl Fn(&Hosts) -> Config,
        near_config: impl Fn(Config, &Hosts) -> Config,
    ) -> Option<Self> {
        if !available(&[Need::Capture]) {
            return None;
        }
        let near = CaptureNode::new();
        let far = near.beside();
        let authority = Authority::new(&near.world().directory().join("certificates"));
        let hosts = Hosts {
            client: near.pod("shop/client"),
            other: near.pod("else/other"),
            server: far.pod("shop/web-1"),
            envoy: far.pod("shop/envoy-1"),
            authority,
        };
        let of_clients = hosts.authority.identities(&["shop/client", "else/other", GATEWAY]);
        let of_server = hosts.authority.identities(&["shop/web"]);
        let side = |node: CaptureNode, identities: &str, mesh: Config| {
            let agent = node.start_agent();
            let config = mesh.node_name(node.name()).node(format!("identities: {identities}"));
            let proxy = node.start_proxy(&config);
            Side {
                proxy,
                node,
                _agent: agent,
            }
        };
        let near = side(near, &of_clients, near_config(mesh(&hosts), &hosts));
        let far = side(far, &of_server, mesh(&hosts));
        let Hosts {
            client,
            other,
            server,
            envoy,
            authority,
        } = hosts;
        for (side, pod) in [(&near, &client), (&near, &other), (&far, &server)] {
            side.node.enrol(pod);
        }
        Some(Self {
            client,
            other,
            server,
            envoy,
            authority,
            near,
            far,
        })
    }
}

/// An address from its text.
pub(crate) fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}
