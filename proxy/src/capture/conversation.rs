//! The proxy's end of the conversation with the agent.
//!
//! When the agent goes away the pods are served on with what is here; only fresh sockets are wanting. The proxy asks for the agent again and again,
//! is told of all pods anew, and takes the new listeners in place of the old ones. An old listener is accepted
//! from for a moment longer, for clients whose connect() was on its way to it.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde::Serialize;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use underpass_ebpf::Handshakes;

use super::Pod;
use super::joins::{self, Joins};
use super::sockets::{Order, SocketPool};
use crate::cores::Cores;
use crate::ending::Ending;
use crate::entrance::Entrance;
use crate::handover::{self, FromAgent, FromProxy, HandoverError, VERSION};
use crate::listener::{Accepting, Door};
use crate::node::Node;
use crate::offload::{Ticket, ToAgent};
use crate::socket;

/// First pause before the agent is asked for again, and the longest.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// How long a listener that was replaced is still accepted from.
const LAST_ARRIVALS: Duration = Duration::from_secs(1);

/// Why a conversation ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    #[error("the agent does not answer at {}: {source}; start `underpass agent`, or name its socket with --agent", path.display())]
    NoAnswer { path: PathBuf, source: io::Error },
    #[error("the agent refused this proxy: {0}")]
    Refused(String),
    #[error("the agent sent what this proxy does not understand: {0}; use an agent and a proxy of the same release")]
    Misunderstood(&'static str),
    #[error("the conversation with the agent broke off: {0}")]
    Broken(#[from] HandoverError),
    #[error("the maps that the agent sent cannot be used: {0}")]
    Maps(String),
}

/// Serves the pods that the agent at `path` tells of, for as long as the node lives.
pub async fn converse(path: PathBuf, node: Arc<Node>, cores: Arc<Cores>) {
    node.await_agent(true);
    let (orders, mut ordered) = unbounded_channel();
    let (to_agent, mut wishes) = unbounded_channel();
    let mut served = Served {
        node,
        cores,
        pods: HashMap::new(),
        orders,
        to_agent,
    };
    let mut pause = RETRY.0;
    let mut last_problem = String::new();
    loop {
        let Err(ended) = Conversation::hold(&path, &mut served, &mut ordered, &mut wishes, &mut pause).await;
        let problem = ended.to_string();
        if problem != last_problem {
            tracing::warn!(%problem, pods = served.pods.len(), "no conversation with the agent; trying again");
            last_problem = problem;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RETRY.1);
    }
}

struct Conversation {
    socket: AsyncFd<OwnedFd>,
    kernel: Arc<Handshakes>,
    joins: Joins,
    /// Pods that were told of in this conversation.
    told: Vec<u64>,
    /// What the agent was told of addresses that are not the pods' own; of no such addresses, nothing.
    disowned: HashMap<u64, Vec<IpAddr>>,
}

impl Conversation {
    /// Talks until it breaks off.
    async fn hold(
        path: &Path,
        served: &mut Served,
        ordered: &mut UnboundedReceiver<Order>,
        wishes: &mut UnboundedReceiver<ToAgent>,
        pause: &mut Duration,
    ) -> Result<Infallible, Ended> {
        let socket = connect(path).await?;
        let build = env!("CARGO_PKG_VERSION").to_owned();
        let hello = FromProxy::Hello {
            version: VERSION,
            build,
        };
        say(&socket, &hello, &[]).await?;
        let (kernel, joins) = match hear(&socket).await? {
            (
                FromAgent::Welcome {
                    build, tier_off, blind, ..
                },
                mut descriptors,
            ) => {
                tracing::info!(agent = %build, "the agent answers");
                let of_the_tier = descriptors.split_off(descriptors.len().min(2));
                let kernel = open_maps(descriptors)?;
                let of_the_tier = of_the_tier.try_into().ok();
                let (offload, to_agent) = (served.node.offload.clone(), served.to_agent.clone());
                (kernel, Joins::new(offload, to_agent, (tier_off, blind), of_the_tier))
            }
            (FromAgent::Refused { reason }, _) => return Err(Ended::Refused(reason)),
            _ => return Err(Ended::Misunderstood("something else than Welcome to begin with")),
        };
        *pause = RETRY.0;
        // Orders from before are placed anew when their pod is told of.
        while ordered.try_recv().is_ok() {}
        let mut conversation = Self {
            socket,
            kernel,
            joins,
            told: Vec::new(),
            disowned: HashMap::new(),
        };
        for wish in joins::left_behind(wishes) {
            conversation.joins.tell(&conversation.socket, wish).await?;
        }
        let mut changes = served.node.changes();
        loop {
            tokio::select! {
                heard = hear(&conversation.socket) => {
                    let (message, descriptors) = heard?;
                    conversation.act(message, descriptors, served).await?;
                }
                // The sender is the node's own.
                Ok(()) = changes.changed() => conversation.disown(served).await?,
                Some(order) = ordered.recv() => {
                    let Order { cookie, family, count } = order;
                    say(&conversation.socket, &FromProxy::WantSockets { cookie, family, count }, &[]).await?;
                }
                Some(wish) = wishes.recv() => conversation.joins.tell(&conversation.socket, wish).await?,
            }
        }
    }

    async fn act(&mut self, message: FromAgent, descriptors: Vec<OwnedFd>, served: &mut Served) -> Result<(), Ended> {
        match message {
            FromAgent::PodAdded(pod) => {
                let cookie = pod.cookie;
                if descriptors.len() != pod.outbound.len() + pod.inbound.len() {
                    return Err(Ended::Misunderstood("a pod with more or fewer sockets than listeners"));
                }
                served.add(pod, descriptors, self.kernel.clone());
                self.told.push(cookie);
                self.disown(served).await?;
                say(&self.socket, &FromProxy::Ready { cookie }, &[]).await?;
            }
            FromAgent::Synced => {
                served.keep_only(&self.told);
                served.node.await_agent(false);
            }
            FromAgent::PodRemoved { cookie } => {
                served.remove(cookie);
                self.disowned.remove(&cookie);
            }
            FromAgent::Sockets { cookie, family } => {
                if let Some(pod) = served.pods.get(&cookie) {
                    pod.pod.sockets.deliver(family, descriptors);
                }
            }
            FromAgent::Drain => {
                tracing::info!("a successor serves the pods; draining");
                served.node.start_drain();
            }
            FromAgent::Refused { reason } => return Err(Ended::Refused(reason)),
            FromAgent::Joined { id, index, generation } => self.joins.joined(id, Ticket { index, generation })?,
            FromAgent::NotJoined {
                id,
                reason,
                side,
                again,
            } => self.joins.not_joined(id, &reason, side, again)?,
            FromAgent::Welcome { .. } => return Err(Ended::Misunderstood("a second Welcome")),
        }
        Ok(())
    }

    /// Tells the agent which addresses of pods are other workloads', where that is news.
    async fn disown(&mut self, served: &Served) -> Result<(), Ended> {
        let snapshot = served.node.snapshot();
        for (cookie, served) in &served.pods {
            let addresses = served.pod.disowned(&snapshot.config);
            let told = self.disowned.entry(*cookie).or_default();
            if *told != addresses {
                told.clone_from(&addresses);
                let cookie = *cookie;
                say(&self.socket, &FromProxy::Disown { cookie, addresses }, &[]).await?;
            }
        }
        Ok(())
    }
}

async fn connect(path: &Path) -> Result<AsyncFd<OwnedFd>, Ended> {
    let no_answer = |source: io::Error| Ended::NoAnswer {
        path: path.into(),
        source,
    };
    let connected = || {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
        socket::register(socket, Interest::READABLE | Interest::WRITABLE)
    };
    connected().map_err(no_answer)
}

fn open_maps(descriptors: Vec<OwnedFd>) -> Result<Arc<Handshakes>, Ended> {
    let Ok([handshakes, notes]) = <[OwnedFd; 2]>::try_from(descriptors) else {
        return Err(Ended::Misunderstood("a Welcome without its two maps"));
    };
    let kernel = Handshakes::from_fds(handshakes, notes).map_err(|error| Ended::Maps(error.to_string()))?;
    Ok(Arc::new(kernel))
}

async fn hear(socket: &AsyncFd<OwnedFd>) -> Result<(FromAgent, Vec<OwnedFd>), HandoverError> {
    loop {
        let mut ready = socket.readable().await?;
        match handover::receive(socket) {
            Err(HandoverError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
            other => return other,
        }
    }
}

/// Says something, with descriptors.
pub(super) async fn say(
    socket: &AsyncFd<OwnedFd>,
    message: &impl Serialize,
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), HandoverError> {
    loop {
        let mut ready = socket.writable().await?;
        match handover::send(socket.as_fd(), message, descriptors) {
            Err(HandoverError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
            other => return other,
        }
    }
}

/// What the proxy does with what it was told.
struct Served {
    node: Arc<Node>,
    cores: Arc<Cores>,
    pods: HashMap<u64, ServedPod>,
    orders: UnboundedSender<Order>,
    to_agent: UnboundedSender<ToAgent>,
}

struct ServedPod {
    pod: Arc<Pod>,
    /// Dropping it ends the accepting.
    listeners: Vec<Accepting>,
}

impl Served {
    fn add(&mut self, told: handover::Pod, sockets: Vec<OwnedFd>, kernel: Arc<Handshakes>) {
        let (cookie, outbound) = (told.cookie, told.outbound.len());
        tracing::info!(uid = told.uid, cookie, addresses = ?told.addresses, "serving a pod");
        let known = self.pods.get(&cookie).map(|served| served.pod.clone());
        let stock = known.as_ref().map(|pod| pod.sockets.clone());
        let fresh = stock.unwrap_or_else(|| Arc::new(SocketPool::new(cookie, self.orders.clone())));
        fresh.renew();
        let pod = Pod::new(told, Some(kernel), fresh);
        let pod = Arc::new(match known {
            Some(known) => pod.succeeding(&known),
            None => pod,
        });
        self.node.add_pod(&pod);
        let listen = |(place, socket)| {
            let entrance = if place < outbound {
                Entrance::Outbound(pod.clone())
            } else {
                Entrance::Inbound(pod.clone())
            };
            Accepting::start(socket, Door::Captured(entrance), self.node.clone(), self.cores.clone())
        };
        let listeners = sockets.into_iter().enumerate().map(listen).collect();
        if let Some(replaced) = self.pods.insert(cookie, ServedPod { pod, listeners }) {
            tokio::spawn(async move {
                tokio::time::sleep(LAST_ARRIVALS).await;
                drop(replaced.listeners);
            });
        }
    }

    fn keep_only(&mut self, told: &[u64]) {
        let gone: Vec<u64> = self
            .pods
            .keys()
            .copied()
            .filter(|cookie| !told.contains(cookie))
            .collect();
        gone.into_iter().for_each(|cookie| self.remove(cookie));
    }

    /// Closes what is held in the pod's namespace: its listeners, its stock of sockets, its connections.
    fn remove(&mut self, cookie: u64) {
        let Some(served) = self.pods.remove(&cookie) else {
            return;
        };
        tracing::info!(uid = %served.pod.uid, cookie, "a pod is served no more");
        // A connection that is being made either finds the mark, or has been entered among the flows before it was set.
        served.pod.remove();
        self.node.remove_pod(cookie);
        let flows = self.node.flows.flows();
        flows
            .iter()
            .filter(|(_, flow)| flow.facts.pod == Some(cookie))
            .for_each(|(_, flow)| flow.end(Ending::PodRemoved));
    }
}
