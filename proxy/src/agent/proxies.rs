//! The proxies' side of the agent: one connection each, one thread that reads it.
//!
//! The thread serves wishes for sockets, and for flows to be moved to the kernel, by itself, so that a connection never waits for an
//! enrolment; everything else it passes on. Only the agent's own thread decides anything.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::event::PollFlags;
use underpass_ebpf::tier::Ticket;

use super::Event;
use super::joining::Joining;
use super::listeners;
use super::namespace::Namespace;
use super::pods::Pod;
use super::worker::{Stop, Worker, wait_for};
use crate::handover::{self, Family, FromAgent, FromProxy, HandoverError, MAX_DESCRIPTORS};

/// How long a proxy may leave its messages unread. Its reader has nothing else to do.
const PATIENCE: Duration = Duration::from_secs(5);

/// The namespaces of the pods, for those who make or look for sockets in them.
#[derive(Debug, Default)]
pub struct Namespaces(Mutex<HashMap<u64, Known>>);

#[derive(Debug)]
struct Known {
    namespace: Arc<Namespace>,
    addresses: Vec<IpAddr>,
}

impl Namespaces {
    /// Adds a pod's, or what is new of it.
    pub fn insert(&self, pod: &Pod) {
        let known = Known {
            namespace: pod.namespace.clone(),
            addresses: pod.addresses.clone(),
        };
        self.lock().insert(pod.record.cookie, known);
    }

    /// Forgets a pod's.
    pub fn remove(&self, cookie: u64) {
        self.lock().remove(&cookie);
    }

    /// Of the pod with this cookie.
    pub fn get(&self, cookie: u64) -> Option<Arc<Namespace>> {
        self.lock().get(&cookie).map(|known| known.namespace.clone())
    }

    /// Of the pod that has this address.
    pub fn at(&self, address: IpAddr) -> Option<Arc<Namespace>> {
        let known = self.lock();
        let mut pods = known.values();
        pods.find(|pod| pod.addresses.contains(&address))
            .map(|pod| pod.namespace.clone())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Names a connection of a proxy. Later ones are greater.
pub type ProxyId = u64;

/// What is known of a proxy that the agent works with.
#[derive(Clone, Debug)]
pub struct Admitted {
    /// Its version.
    pub build: String,
    /// The folder of its cgroup.
    pub cgroup: PathBuf,
    /// That cgroup's id.
    pub cgroup_id: u64,
}

/// A connected proxy.
#[derive(Debug)]
pub struct Proxy {
    socket: Arc<OwnedFd>,
    may_ask: Arc<AtomicBool>,
    /// `None` while the agent is paused for a takeover.
    reader: Option<Worker>,
    /// The process that connected.
    pub pid: u32,
    /// What it said of itself, once it is worked with.
    pub admitted: Option<Admitted>,
    /// The pods whose listeners it accepts from.
    pub ready: HashSet<u64>,
    /// Whether a successor took its place.
    pub draining: bool,
}

impl Proxy {
    /// Takes up the connection of a proxy.
    ///
    /// # Errors
    /// Those of fcntl(2).
    pub fn new(socket: OwnedFd, pid: u32) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        Ok(Self {
            socket: Arc::new(socket),
            may_ask: Arc::default(),
            reader: None,
            pid,
            admitted: None,
            ready: HashSet::new(),
            draining: false,
        })
    }

    /// Starts to read what it says.
    ///
    /// # Errors
    /// When there are no threads to be had.
    pub fn listen(&mut self, id: ProxyId, services: &Services, events: &Sender<Event>) -> io::Result<()> {
        let reader = Reader {
            id,
            socket: self.socket.clone(),
            may_ask: self.may_ask.clone(),
            services: services.clone(),
            events: events.clone(),
        };
        self.reader = Some(Worker::start("proxy", move |stop| reader.run(stop))?);
        Ok(())
    }

    /// Stops reading; what comes stays in the socket.
    pub fn pause(&mut self) {
        self.reader = None;
    }

    /// Works with it from now on.
    pub fn admit(&mut self, admitted: Admitted) {
        self.admitted = Some(admitted);
        self.may_ask.store(true, Ordering::Release);
    }

    /// Whether it serves new connections, or will.
    pub fn is_active(&self) -> bool {
        self.admitted.is_some() && !self.draining
    }

    /// Tells it something. Waits a little if it is slow.
    ///
    /// # Errors
    /// When it is gone or does not read.
    pub fn say(&self, message: &FromAgent, descriptors: &[BorrowedFd<'_>]) -> Result<(), HandoverError> {
        say(&self.socket, message, descriptors, |socket| {
            wait_for(socket, PollFlags::OUT, PATIENCE).unwrap_or(false)
        })
    }
}

impl AsFd for Proxy {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Sends on a non-blocking socket. `wait` says whether to go on trying when its queue is full.
fn say(
    socket: &OwnedFd,
    message: &FromAgent,
    descriptors: &[BorrowedFd<'_>],
    wait: impl Fn(BorrowedFd<'_>) -> bool,
) -> Result<(), HandoverError> {
    loop {
        match handover::send(socket, message, descriptors) {
            Err(HandoverError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock && wait(socket.as_fd()) => {}
            outcome => return outcome,
        }
    }
}

/// What the readers do by themselves.
#[derive(Clone, Debug)]
pub struct Services {
    /// Where sockets are made.
    pub namespaces: Arc<Namespaces>,
    /// Who moves flows.
    pub joining: Arc<Joining>,
}

struct Reader {
    id: ProxyId,
    socket: Arc<OwnedFd>,
    may_ask: Arc<AtomicBool>,
    services: Services,
    events: Sender<Event>,
}

impl Reader {
    fn run(&self, stop: &Stop) {
        while stop.wait(&self.socket, PollFlags::IN) {
            let outcome = match handover::receive::<FromProxy>(&self.socket) {
                Ok((FromProxy::WantSockets { cookie, family, count }, _)) if self.may_ask.load(Ordering::Acquire) => {
                    self.give_sockets(cookie, family, count as usize, stop)
                }
                Ok((FromProxy::Join { id, limit }, sockets)) if self.may_ask.load(Ordering::Acquire) => {
                    let answer = self.services.joining.answer(id, limit, sockets);
                    self.say(&answer, &[], stop)
                }
                Ok((FromProxy::Left { index, generation }, _)) if self.may_ask.load(Ordering::Acquire) => {
                    self.services.joining.leave(Ticket { index, generation });
                    Ok(())
                }
                Ok((message, _)) => {
                    let _ = self.events.send(Event::ProxySaid(self.id, message));
                    Ok(())
                }
                Err(HandoverError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
                Err(error) => Err(error),
            };
            if let Err(error) = outcome {
                let _ = self.events.send(Event::ProxyGone(self.id, error));
                return;
            }
        }
    }

    fn give_sockets(&self, cookie: u64, family: Family, count: usize, stop: &Stop) -> Result<(), HandoverError> {
        let sockets = match self.services.namespaces.get(cookie) {
            Some(namespace) => namespace
                .enter(|| listeners::sockets(family, count.min(MAX_DESCRIPTORS)))
                .unwrap_or_else(|error| {
                    tracing::warn!(cookie, %error, "no sockets could be made in the pod's network namespace");
                    Vec::new()
                }),
            // It was removed just now; the proxy will hear of it.
            None => Vec::new(),
        };
        let descriptors: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
        self.say(&FromAgent::Sockets { cookie, family }, &descriptors, stop)
    }

    fn say(&self, message: &FromAgent, descriptors: &[BorrowedFd<'_>], stop: &Stop) -> Result<(), HandoverError> {
        say(&self.socket, message, descriptors, |socket| {
            stop.wait(socket, PollFlags::OUT)
        })
    }
}
