//! A captured node whose mesh is istiod's, with two clients and a server, and others that are not captured.

use std::net::{IpAddr, SocketAddr};

use underpass_tests::capture::{Agent, CaptureNode, Pod};
use underpass_tests::istiod::{Istiod, Pod as PodObject, namespace, node};
use underpass_tests::load::{ask, is_refusal};
use underpass_tests::{Config, Host, Need, Proxy, available, wait};

use crate::cluster::NODE_TOKEN;

/// Where every server listens.
pub(crate) const PORT: u16 = 8080;

/// A running place. `client`, `other` and `web` are enrolled and known to istiod.
pub(crate) struct Place {
    pub(crate) proxy: Proxy,
    _agent: Agent,
    pub(crate) istiod: Istiod,
    /// `shop/client`
    pub(crate) client: Pod,
    /// `else/other`, of another namespace.
    pub(crate) other: Pod,
    /// `shop/web`
    pub(crate) web: Pod,
    /// A pod of the node that is not enrolled, and that istiod does not know.
    pub(crate) stranger: Pod,
    /// A host of the other node, where nothing is captured.
    pub(crate) remote: Host,
    pub(crate) node: CaptureNode,
}

/// The proxy's configuration: its mesh is istiod's.
pub(crate) fn config(istiod: &Istiod) -> Config {
    Config::new()
        .node(istiod.settings(NODE_TOKEN))
        .node("timeouts: {drain: 2s}")
}

/// The objects of a pod of the node.
pub(crate) fn object(pod: &Pod) -> PodObject {
    PodObject::new(pod.name(), pod.ip())
}

impl Place {
    /// A node whose proxy has the mesh, if this machine can have one.
    pub(crate) fn start() -> Option<Self> {
        Self::start_as(config)
    }

    /// As [`Place::start`], with another configuration.
    pub(crate) fn start_as(config: impl FnOnce(&Istiod) -> Config) -> Option<Self> {
        if !available(&[Need::Capture, Need::Istiod]) {
            return None;
        }
        let place = CaptureNode::new();
        let istiod = Istiod::start(place.world(), &place.host());
        let [client, other, web, stranger] =
            ["shop/client", "else/other", "shop/web", "nowhere/stranger"].map(|name| place.pod(name));
        istiod.apply("nodes", node("node-a", "zone-a") + &node("node-b", "zone-b"));
        istiod.apply("namespaces", namespace("shop", "") + &namespace("else", ""));
        let proxy = PodObject::new("istio-system/ztunnel-a", place.host().ip()).account("ztunnel");
        istiod.apply("proxy", proxy.uncaptured());
        for pod in [&client, &other, &web] {
            istiod.apply(&pod.name().replace('/', "-"), object(pod));
        }
        let agent = place.start_agent();
        let proxy = place.start_proxy(&config(&istiod));
        for pod in [&client, &other, &web] {
            place.enrol(pod);
        }
        let remote = place.elsewhere();
        let place = Self {
            proxy,
            _agent: agent,
            istiod,
            client,
            other,
            web,
            stranger,
            remote,
            node: place,
        };
        for pod in [&place.client, &place.other, &place.web] {
            place.wait_for_workload(pod.name());
        }
        Some(place)
    }

    /// Waits until the proxy's mesh has the pod `namespace/name`.
    #[track_caller]
    pub(crate) fn wait_for_workload(&self, name: &str) {
        let uid = format!("Kubernetes//Pod/{name}");
        wait::eventually(wait::SOON, &format!("the mesh has {name}"), || {
            let dump = self.proxy.config_dump();
            let workloads = dump["workloads"].as_array().expect("a list");
            workloads.iter().any(|workload| workload["uid"] == *uid)
        });
    }

    /// Waits until `host` is answered at `to`.
    #[track_caller]
    pub(crate) fn wait_until_answered(&self, host: &Host, to: SocketAddr) {
        wait::eventually(wait::SOON, &format!("{} is answered at {to}", host.ip()), || {
            ask(host, to).is_ok()
        });
    }

    /// Waits until `host` is refused at `to`, with an error that an application understands.
    #[track_caller]
    pub(crate) fn wait_until_refused(&self, host: &Host, to: SocketAddr) {
        wait::eventually(wait::SOON, &format!("{} is refused at {to}", host.ip()), || {
            match ask(host, to) {
                Ok(_) => false,
                Err(error) => {
                    assert!(is_refusal(&error), "{} to {to}: {error}", host.ip());
                    true
                }
            }
        });
    }
}

/// An address from its text.
pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}
