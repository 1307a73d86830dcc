//! Three clients and a guarded server, on two nodes.

use std::io::Read;
use std::net::SocketAddr;
use std::ops::Deref;

use underpass_tests::{
    AccessLine, Config, Host, Listen, Need, Proxy, Refused, Target, Way, World, available, is_reset, open, wait,
};

/// Guards a workload.
pub(crate) const ONLY_CLIENT: &str = "scope: WORKLOAD_SELECTOR, action: ALLOW, \
     groups: [{rules: [{matches: [{principals: [cluster.local/ns/shop/sa/client]}]}]}]";
/// Without its scope.
pub(crate) const DENY_CLIENT: &str = "action: DENY, groups: [{rules: [{matches: [{principals: ['*/sa/client']}]}]}]";

pub(crate) struct Hosts {
    pub(crate) node: Host,
    pub(crate) client: Host,
    pub(crate) other: Host,
    /// A pod that the configuration doesn't know.
    pub(crate) stranger: Host,
    pub(crate) server: Host,
}

pub(crate) struct Place {
    hosts: Hosts,
    pub(crate) proxy: Proxy,
    _world: World,
}

impl Deref for Place {
    type Target = Hosts;

    fn deref(&self) -> &Hosts {
        &self.hosts
    }
}

impl Place {
    pub(crate) fn start(config: impl FnOnce(&Hosts) -> Config) -> Option<Self> {
        if !available(&[Need::Root, Need::Program("ip")]) {
            return None;
        }
        let world = World::cluster(2);
        let [client, other, stranger] = [(); 3].map(|()| world.pod(0));
        let hosts = Hosts {
            node: world.node(0),
            client,
            other,
            stranger,
            server: world.pod(1),
        };
        let proxy = Proxy::start(&world, &hosts.node, &config(&hosts));
        Some(Self {
            hosts,
            proxy,
            _world: world,
        })
    }

    pub(crate) fn ways(&self) -> [Way; 3] {
        [
            Way::Fixed(self.node.at(15001)),
            Way::Socks5(self.node.at(1080)),
            Way::Connect(self.node.at(3128)),
        ]
    }

    pub(crate) fn service(&self) -> Target<'static> {
        Target::Address(SocketAddr::from(([10, 96, 0, 10], 80)))
    }

    /// `host` is turned away in the words of the listener, and the log says by policy.
    pub(crate) fn assert_denied(&self, host: &Host, way: Way) {
        let before = self.lines_of(host).len();
        let answer = open(host, way, self.service()).and_then(|mut stream| {
            // On a fixed listener the denial comes after the accept.
            assert!(matches!(way, Way::Fixed(_)), "{way:?} says yes");
            stream.set_read_timeout(Some(wait::SOON))?;
            Ok(stream.read(&mut [0])?)
        });
        let denied = match &answer {
            Ok(_) => false,
            Err(Refused::Socks(code)) => *code == 2,
            Err(Refused::Http(code)) => *code == 403,
            Err(Refused::Io(error)) => matches!(way, Way::Fixed(_)) && is_reset(error),
        };
        assert!(denied, "{way:?} should turn {} away: {answer:?}", host.ip());
        let what = "a log line of the denied connection";
        let lines = wait::some(wait::SOON, what, || {
            Some(self.lines_of(host)).filter(|lines| lines.len() > before)
        });
        let line = lines.last().expect("more than before");
        line.assert_reason("policy_denied", "DENY");
        assert_ne!(line.field("detail"), "-", "why, in words: {}", line.text);
        assert_eq!((line.number("sent_bytes"), line.number("received_bytes")), (0, 0));
    }

    pub(crate) fn lines_of(&self, host: &Host) -> Vec<AccessLine> {
        let source = format!("{}:", host.ip());
        self.proxy
            .access_lines()
            .into_iter()
            .filter(|line| line.field("src.addr").starts_with(&source))
            .collect()
    }
}

impl Hosts {
    pub(crate) fn config(&self, policies: &str) -> Config {
        self.config_with(policies, Some("client"))
    }

    /// A service `web` on 10.96.0.10:80 whose endpoint is guarded by `policies`, and the clients; without an account `client` is unknown.
    pub(crate) fn config_with(&self, policies: &str, client_account: Option<&str>) -> Config {
        let guarded = format!("authorization_policies: {policies}");
        let config = Config::new()
            .listener("relay", self.node.at(15001), Listen::fixed("10.96.0.10:80"))
            .listener("socks", self.node.at(1080), Listen::Socks5)
            .listener("connect", self.node.at(3128), Listen::Connect)
            .workload_at(
                "shop/other",
                &[self.other.ip(), self.other.ip6()],
                "service_account: other",
            )
            .workload_at("shop/web-1", &[self.server.ip(), self.server.ip6()], guarded)
            .service(
                "shop/web",
                "vips: [10.96.0.10], ports: [{port: 80, target_port: 8080}], endpoints: [shop/web-1]",
            );
        match client_account {
            Some(account) => {
                let account = format!("service_account: {account}");
                config.workload_at("shop/client", &[self.client.ip(), self.client.ip6()], account)
            }
            None => config,
        }
    }
}
