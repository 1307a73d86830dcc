//! Two hosts of a captured node that talk in the kernel, and what the proxy says of it.

use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Deref;

use underpass_tests::capture::{Agent, CaptureNode, Pod};
use underpass_tests::{Config, Host, Listen, Need, Proxy, available};

/// The first port of a server; servers of one place have ports in a row.
pub(crate) const PORT: u16 = 9000;
/// How many of them a place has.
pub(crate) const PORTS: u16 = 8;
/// Moves a connection as soon as it has said anything.
pub(crate) const IMPATIENT: &str = "after: {messages: 1}";

/// A node with an agent and a proxy, a client and a server.
pub(crate) struct Place {
    // A panic of the proxy is found before one of the node that is torn down.
    pub(crate) proxy: Proxy,
    pub(crate) agent: Agent,
    pub(crate) hosts: Hosts,
    pub(crate) node: CaptureNode,
}

/// Who there is, and how the client reaches the server.
pub(crate) struct Hosts {
    pub(crate) client: Host,
    pub(crate) server: Host,
    way: Way,
}

enum Way {
    /// Both are enrolled pods.
    Captured([Pod; 2]),
    /// Both are on the node itself, with a listener of the proxy between them.
    Listener(Host),
}

impl Hosts {
    fn captured(node: &CaptureNode) -> Self {
        let pods = ["shop/client", "shop/server"].map(|name| node.pod(name));
        Self {
            client: pods[0].clone(),
            server: pods[1].clone(),
            way: Way::Captured(pods),
        }
    }

    fn on_loopback(node: &CaptureNode) -> Self {
        // Only what begins in the cgroup of the capture is known to the kernel's side of the tier.
        let programs = node.host_in("programs");
        let [client, server, proxy] = [2, 3, 4].map(|last| programs.at_ip(Ipv4Addr::new(127, 0, 0, last).into()));
        Self {
            client,
            server,
            way: Way::Listener(proxy),
        }
    }

    /// Workloads and listeners, with `offload` as the settings of the kernel tier.
    pub(crate) fn config(&self, offload: &str) -> Config {
        let config = Config::new().offload(offload);
        match &self.way {
            Way::Captured(pods) => pods.iter().fold(config, |config, pod| {
                config.workload_at(pod.name(), &pod.addresses(), "")
            }),
            Way::Listener(_) => {
                let config =
                    config
                        .workload("shop/client", self.client.ip(), "")
                        .workload("shop/server", self.server.ip(), "");
                (0..PORTS).fold(config, |config, number| {
                    let destination = Listen::fixed(self.server.at(PORT + number));
                    config.listener(&format!("relay-{number}"), self.through(PORT + number), destination)
                })
            }
        }
    }

    /// Where the client finds the server's `port`.
    pub(crate) fn through(&self, port: u16) -> SocketAddr {
        match &self.way {
            Way::Captured(_) => self.server.at(port),
            Way::Listener(proxy) => proxy.at(port),
        }
    }
}

impl Deref for Place {
    type Target = Hosts;

    fn deref(&self) -> &Hosts {
        &self.hosts
    }
}

impl Place {
    /// Client and server are captured pods; `offload` are the settings to begin with. None if this machine can't have it.
    pub(crate) fn captured(offload: &str) -> Option<Self> {
        Self::start(Hosts::captured, |hosts| hosts.config(offload))
    }

    /// Client and server are on the node itself, with a plain listener of the proxy between them.
    pub(crate) fn on_loopback(offload: &str) -> Option<Self> {
        Self::start(Hosts::on_loopback, |hosts| hosts.config(offload))
    }

    /// As [`Place::captured`], also where the kernel has no tier.
    pub(crate) fn captured_as_it_is(offload: &str) -> Option<Self> {
        let build = || Self::build(Hosts::captured, |hosts| hosts.config(offload), CaptureNode::start_agent);
        available(&[Need::Capture]).then(build)
    }

    /// As [`Place::captured`], with receivers joined in `variant`, which need not be the preferred one.
    pub(crate) fn captured_in(variant: &str, offload: &str) -> Option<Self> {
        let start_agent = |node: &CaptureNode| node.start_untested_agent(variant);
        Self::start_with(Hosts::captured, |hosts| hosts.config(offload), start_agent)
    }

    /// As [`Place::on_loopback`], with receivers joined in `variant`.
    pub(crate) fn on_loopback_in(variant: &str, offload: &str) -> Option<Self> {
        let start_agent = |node: &CaptureNode| node.start_untested_agent(variant);
        Self::start_with(Hosts::on_loopback, |hosts| hosts.config(offload), start_agent)
    }

    fn start(hosts: impl FnOnce(&CaptureNode) -> Hosts, config: impl FnOnce(&Hosts) -> Config) -> Option<Self> {
        Self::start_with(hosts, config, CaptureNode::start_agent)
    }

    fn start_with(
        hosts: impl FnOnce(&CaptureNode) -> Hosts,
        config: impl FnOnce(&Hosts) -> Config,
        start_agent: impl FnOnce(&CaptureNode) -> Agent,
    ) -> Option<Self> {
        if !available(&[Need::KernelTier]) {
            return None;
        }
        let place = Self::build(hosts, config, start_agent);
        let tier = place.proxy.offload();
        assert_eq!(tier["state"], "on", "there is a kernel tier: {tier}");
        Some(place)
    }

    fn build(
        hosts: impl FnOnce(&CaptureNode) -> Hosts,
        config: impl FnOnce(&Hosts) -> Config,
        start_agent: impl FnOnce(&CaptureNode) -> Agent,
    ) -> Self {
        let node = CaptureNode::new();
        let hosts = hosts(&node);
        let agent = start_agent(&node);
        let proxy = node.start_proxy(&config(&hosts));
        if let Way::Captured(pods) = &hosts.way {
            pods.iter().for_each(|pod| node.enrol(pod));
        }
        Self {
            proxy,
            agent,
            hosts,
            node,
        }
    }
}

impl Place {
    /// How often connections have been moved into the kernel.
    pub(crate) fn joins(&self) -> u64 {
        self.proxy.metrics().sum("underpass_offload_joins_total", &[])
    }
}

/// A number that the environment sets.
pub(crate) fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| {
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is a number, not {text:?}"))
    })
}
