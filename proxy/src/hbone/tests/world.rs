//! A pod that is served, on loopback, with no kernel to capture it; its application; and peers of the mesh that connect to it.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use http::{Method, Request, Version};
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::unbounded_channel;
use underpass_certs::Trust;
use underpass_config::{Config, HboneSettings, Identity};

use super::authority::{self, Authority, HOUR, Paper, identity, trust_of};
use crate::capture::{Pod, SocketPool};
use crate::flow_table::FlowTable;
use crate::handover;
use crate::hbone::host::Host;
use crate::hbone::pool::{Dial, Key, OpenError, Origin, Pool};
use crate::hbone::server::{self, Arrival};
use crate::hbone::tunnel::Tunnel;
use crate::hbone::windows::Budget;
use crate::identities::Identities;
use crate::node::Node;
use crate::offload::Offload;
use crate::socket;
use crate::telemetry::{AccessLogWriter, Telemetry};

/// Nothing here takes as long, but for what does not come.
pub const SOON: Duration = Duration::from_secs(10);

/// The pod's own address.
const POD: &str = "127.0.0.2";

pub struct World {
    pub node: Arc<Node>,
    pub pod: Arc<Pod>,
    /// Who has issued the pod's certificate.
    pub authority: Authority,
    pub trust: Arc<Trust>,
    /// What the pod runs.
    pub application: TcpListener,
    /// Where HBONE is spoken; in the place of the pod's port 15008.
    pub gateway: SocketAddr,
    /// Connections that have been accepted there.
    pub accepted: Arc<AtomicUsize>,
    /// Connections whose server has panicked.
    pub panics: Arc<AtomicUsize>,
    hbone: String,
    _directory: TempDir,
}

/// A peer: its certificate, and its connections.
pub struct Peer {
    pub pod: authority::Pod,
    pub trust: Arc<Trust>,
    pub pool: Arc<Pool>,
    pub hbone: HboneSettings,
    pub budget: Arc<Budget>,
}

pub fn web() -> Identity {
    identity("shop", "web")
}

/// The mesh: the pod `web`, which `policies` guard, and a client at the address that peers connect from.
pub fn mesh(policies: &str) -> String {
    let referred = if policies.is_empty() {
        ""
    } else {
        ", authorization_policies: [shop/p]"
    };
    format!(
        "workloads:\n- {{uid: web, name: web-1, namespace: shop, service_account: web, addresses: [{POD}]{referred}}}\n\
         - {{uid: client, name: client-1, namespace: shop, service_account: client, addresses: [127.0.0.1]}}\n\
         services:\n- {{name: web, namespace: shop, vips: [10.96.0.1], ports: [{{port: 80, target_port: 8080}}], endpoints: [shop/web-1]}}\n\
         {policies}"
    )
}

/// The policy `shop/p`, as a section.
pub fn policy(action: &str, rule: &str) -> String {
    format!(
        "authorization_policies:\n- {{name: p, namespace: shop, scope: WORKLOAD_SELECTOR, action: {action}, \
         groups: [{{rules: [{{matches: [{rule}]}}]}}]}}\n"
    )
}

fn settings(directory: &Path, authority: &Authority, hbone: &str) -> String {
    let (chain, key) = authority.issue_pem(&Paper::of(&web(), SystemTime::now(), HOUR));
    let write = |name: &str, text: &str| {
        let path = directory.join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let (chain, key) = (write("chain.pem", &chain), write("key.pem", &key));
    let roots = write("roots.pem", &authority.root_pem);
    format!(
        "node:\n  timeouts: {{connect: 1s, handshake: 2s, drain: 10s}}\n  hbone: {{{hbone}}}\n  identities:\n    roots: {roots}\n    certificates:\n    \
         - {{identity: \"{}\", chain: {chain}, key: {key}}}\n",
        web()
    )
}

impl World {
    pub async fn new(policies: &str) -> Self {
        Self::with(policies, "", pod(true)).await
    }

    /// A pod whose agent makes no sockets: nothing can be connected to.
    pub async fn stalled() -> Self {
        Self::with("", "", pod(false)).await
    }

    /// Where `node.hbone` has these settings.
    pub async fn kept(hbone: &str) -> Self {
        Self::with("", hbone, pod(true)).await
    }

    async fn with(policies: &str, hbone: &str, pod: Pod) -> Self {
        let (authority, directory) = (Authority::new(), TempDir::new().unwrap());
        let yaml = settings(directory.path(), &authority, hbone) + &mesh(policies);
        let config = Config::from_yaml(&yaml).unwrap_or_else(|error| panic!("{error}\n{yaml}"));
        let (identities, upkeep) = Identities::new(&config.node).unzip();
        upkeep.unwrap().start().await.unwrap();
        let flows = Arc::new(FlowTable::new(1));
        let offload = Arc::new(Offload::default());
        let telemetry = Telemetry::new(&flows, &offload, Arc::new(AccessLogWriter::off()));
        let node = Node::new(config, identities, None, flows, offload, telemetry);
        let pod = Arc::new(pod);
        node.add_pod(&pod);
        let application = TcpListener::bind((POD, 0)).await.unwrap();
        let listener = TcpListener::bind((POD, 0)).await.unwrap();
        let gateway = listener.local_addr().unwrap();
        let (accepted, panics) = <[Arc<AtomicUsize>; 2]>::default().into();
        let counts = (Arc::clone(&accepted), Arc::clone(&panics));
        tokio::spawn(accept(listener, node.clone(), pod.clone(), counts));
        Self {
            trust: trust_of(&[&authority], &[]),
            node,
            pod,
            authority,
            application,
            gateway,
            accepted,
            panics,
            hbone: hbone.to_owned(),
            _directory: directory,
        }
    }

    /// A peer that this world's authority vouches for.
    pub async fn peer(&self, account: &str) -> Peer {
        let pod = authority::Pod::of(&self.authority, &identity("shop", account)).await;
        self.peer_with(pod)
    }

    pub fn peer_with(&self, pod: authority::Pod) -> Peer {
        Peer {
            pod,
            trust: self.trust.clone(),
            pool: Arc::default(),
            hbone: HboneSettings::default(),
            budget: Arc::default(),
        }
    }

    /// Where the application is.
    pub fn target(&self) -> String {
        self.application.local_addr().unwrap().to_string()
    }

    /// A tunnel to the application, and the application's end.
    pub async fn connect(&self, peer: &Peer) -> (Tunnel, TcpStream) {
        let target = self.target();
        let opened = peer.open(self.gateway, &target);
        let (tunnel, accepted) = tokio::join!(opened, self.application.accept());
        (tunnel.unwrap_or_else(|error| panic!("{error}")), accepted.unwrap().0)
    }

    pub fn publish(&self, policies: &str) -> usize {
        let in_force = self.node.snapshot();
        let yaml = settings(self._directory.path(), &self.authority, &self.hbone) + &mesh(policies);
        let (config, touched) = in_force.config.updated(&yaml).unwrap();
        self.node.publish(|_| (config, touched))
    }

    /// The last refusal, once there is one more than `before`.
    pub async fn refusal(&self, before: usize) -> Value {
        let look = async {
            loop {
                if let Some(refusal) = self.node.telemetry.refusals().get(before) {
                    return refusal.clone();
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(SOON, look).await.expect("a refusal")
    }

    /// The lines of a metric that have all of `labels`.
    pub fn metric(&self, name: &str, labels: &[&str]) -> Vec<String> {
        let text = self.node.telemetry.encode().unwrap();
        let has = |line: &&str| line.starts_with(name) && labels.iter().all(|label| line.contains(label));
        text.lines().filter(has).map(str::to_owned).collect()
    }

    /// Resolves when no flow is left.
    pub async fn until_no_flow(&self) {
        let look = async {
            while !self.node.flows.flows().is_empty() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(SOON, look).await.expect("no flow is left");
    }
}

impl Peer {
    /// How many connections it has.
    pub fn connections(&self) -> usize {
        self.pool.connections().iter().map(|(_, streams)| streams.len()).sum()
    }

    pub fn dial(&self, gateway: SocketAddr, expected: &[Identity]) -> Dial {
        Dial {
            key: Key {
                pod: None,
                client: self.pod.lease.slot().identity().clone(),
                gateway,
                expected: expected.into(),
            },
            origin: Origin::Host,
            certificate: self.pod.lease.clone(),
            trust: self.trust.clone(),
            patience: (SOON, SOON),
            keepalive: Default::default(),
            hbone: self.hbone,
            budget: self.budget.clone(),
        }
    }

    pub async fn open(&self, gateway: SocketAddr, authority: &str) -> Result<Tunnel, OpenError> {
        let opened = async { self.pool.open(&self.dial(gateway, &[web()]), &connect(authority)).await };
        tokio::time::timeout(SOON, opened).await.expect("an answer")
    }
}

pub fn connect(authority: &str) -> Request<()> {
    let request = Request::builder().method(Method::CONNECT).uri(authority);
    request.version(Version::HTTP_2).body(()).unwrap()
}

/// The pod, with an agent that makes sockets of the only namespace there is, or none.
fn pod(has_agent: bool) -> Pod {
    let (orders, mut ordered) = unbounded_channel();
    let sockets = Arc::new(SocketPool::new(1, orders));
    let stock = sockets.clone();
    tokio::spawn(async move {
        while let Some(order) = ordered.recv().await {
            if !has_agent {
                continue;
            }
            let one = |_| socket::tcp_socket(([127, 0, 0, 1], 0).into()).unwrap();
            stock.deliver(order.family, (0..order.count).map(one).collect());
        }
    });
    let told = handover::Pod {
        cookie: 1,
        uid: "web".into(),
        addresses: vec![POD.parse().unwrap()],
        interfaces: vec![POD.parse().unwrap()],
        outbound: Vec::new(),
        inbound: Vec::new(),
    };
    Pod::new(told, None, sockets)
}

async fn accept(
    listener: TcpListener,
    node: Arc<Node>,
    pod: Arc<Pod>,
    (count, panics): (Arc<AtomicUsize>, Arc<AtomicUsize>),
) {
    while let Ok((stream, peer)) = listener.accept().await {
        count.fetch_add(1, Ordering::SeqCst);
        let identities = node.identities.as_ref().unwrap();
        let tls = identities
            .of_pod(pod.cookie)
            .map(|lease| (lease, identities.trust().clone()));
        let arrival = Arrival {
            node: node.clone(),
            host: Host::Pod(pod.clone()),
            local: stream.local_addr().unwrap(),
            socket: OwnedFd::from(stream.into_std().unwrap()),
            peer,
            core: 0,
        };
        let (served, panics) = (tokio::spawn(server::serve(arrival, tls)), panics.clone());
        tokio::spawn(async move {
            if served.await.is_err_and(|error| error.is_panic()) {
                panics.fetch_add(1, Ordering::SeqCst);
            }
        });
    }
}
