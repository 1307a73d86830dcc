//! The proxy's side of capture: the pods of this node, as the agent tells of them.
//!
//! The kernel's capture programs bring a pod's connections, both ways, to sockets that the agent opened in the pod's network
//! namespace and handed over. Nothing here has a privilege: what has to be done in a namespace was done by the agent, and the two
//! maps by which the kernel and the proxy tell each other of connections came as descriptors.
//!
//! **Announcing.** A connection that the proxy makes to an enrolled pod of this node would be steered back to the proxy. So
//! the proxy puts a note on the socket before it connects; when the kernel has chosen the source port, and before the SYN leaves, its
//! program announces the addresses to the pod, whose `sk_lookup` program lets exactly that connection through; and the
//! application is shown the client that the note names.

mod conversation;
mod joins;
mod sockets;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::watch;
use underpass_config::{Config, WorkloadUid};
use underpass_ebpf::{Handshakes, Note};

pub use conversation::converse;
pub use sockets::SocketPool;

/// One enrolled pod.
#[derive(Debug)]
pub struct Pod {
    /// Its network namespace.
    pub cookie: u64,
    /// Which workload it is.
    pub uid: WorkloadUid,
    /// Its own addresses.
    pub addresses: Vec<IpAddr>,
    /// What its interfaces have: its own addresses, and what it may have given itself.
    interfaces: Vec<IpAddr>,
    /// Fresh sockets of its namespace.
    pub sockets: Arc<SocketPool>,
    /// `None` in tests of what has nothing to do with a kernel.
    kernel: Option<Arc<Handshakes>>,
    removed: watch::Sender<bool>,
}

impl Pod {
    /// A pod as the agent tells of it.
    pub fn new(told: crate::handover::Pod, kernel: Option<Arc<Handshakes>>, sockets: Arc<SocketPool>) -> Self {
        Self {
            cookie: told.cookie,
            uid: WorkloadUid::new(told.uid),
            addresses: told.addresses,
            interfaces: told.interfaces,
            sockets,
            kernel,
            removed: watch::Sender::new(false),
        }
    }

    /// One that has this address alone, and gets no sockets.
    #[cfg(any(test, fuzzing))]
    pub fn at_address(uid: &str, address: IpAddr) -> Self {
        let told = crate::handover::Pod {
            cookie: 1,
            uid: uid.into(),
            addresses: vec![address],
            interfaces: Vec::new(),
            outbound: Vec::new(),
            inbound: Vec::new(),
        };
        Self::new(
            told,
            None,
            Arc::new(SocketPool::new(1, tokio::sync::mpsc::unbounded_channel().0)),
        )
    }

    /// The same pod as `earlier`, told of anew: it is served no more when that is.
    pub fn succeeding(self, earlier: &Self) -> Self {
        Self {
            removed: earlier.removed.clone(),
            ..self
        }
    }

    /// Where a captured connection was going, if `accepted` is one.
    ///
    /// # Errors
    /// When the kernel's map cannot be read.
    pub fn original_destination(&self, accepted: BorrowedFd<'_>) -> io::Result<Option<SocketAddr>> {
        let Some(kernel) = &self.kernel else { return Ok(None) };
        let original = kernel.original(accepted)?;
        Ok(original.map(crate::socket::canonical))
    }

    /// Whether `ip` is one of its own addresses.
    pub fn owns(&self, ip: IpAddr) -> bool {
        self.addresses.contains(&ip)
    }

    /// Which of the addresses that it has are another workload's.
    fn disowned(&self, config: &Config) -> Vec<IpAddr> {
        let is_anothers = |ip: &IpAddr| {
            let workload = config.mesh.workload_at(&config.node.network, *ip);
            workload.is_some_and(|workload| workload.uid != self.uid)
        };
        self.interfaces.iter().copied().filter(is_anothers).collect()
    }

    /// Lets the connection that `socket` is about to make to this pod reach the pod's application, which is shown `client` as its peer.
    ///
    /// # Errors
    /// When the socket has no room for the note.
    pub fn announce(&self, socket: BorrowedFd<'_>, client: Option<SocketAddr>) -> io::Result<()> {
        let Some(kernel) = &self.kernel else { return Ok(()) };
        kernel.announce(socket, client.map_or_else(Note::direct, Note::peer))
    }

    /// Whether it is served no more.
    pub fn is_removed(&self) -> bool {
        *self.removed.borrow()
    }

    /// Resolves when it is served no more.
    pub async fn removed(&self) {
        // The sender is the pod's own.
        let _ = self.removed.subscribe().wait_for(|removed| *removed).await;
    }

    pub(crate) fn remove(&self) {
        self.removed.send_replace(true);
    }
}

/// The enrolled pods of this node.
#[derive(Debug, Default)]
pub struct Pods {
    by_address: ArcSwap<HashMap<IpAddr, Arc<Pod>>>,
}

impl Pods {
    /// The enrolled pod that has this address.
    pub fn at(&self, ip: IpAddr) -> Option<Arc<Pod>> {
        self.by_address.load().get(&ip).cloned()
    }

    /// Adds a pod, in the place of what was known of it. Called by the node.
    pub(crate) fn add(&self, pod: &Arc<Pod>) {
        self.replace(pod.cookie, Some(pod));
    }

    /// Removes a pod. Called by the node.
    pub(crate) fn remove(&self, cookie: u64) {
        self.replace(cookie, None);
    }

    fn replace(&self, cookie: u64, pod: Option<&Arc<Pod>>) {
        self.by_address.rcu(|known| {
            let mut pods = HashMap::clone(known);
            pods.retain(|_, pod| pod.cookie != cookie);
            pods.extend(
                pod.into_iter()
                    .flat_map(|pod| pod.addresses.iter().map(|ip| (*ip, pod.clone()))),
            );
            pods
        });
    }
}
