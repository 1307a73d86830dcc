//! From a client's request to a connected, authorized destination.
//!
//! Each attempt is decided, entered into the flow table, checked against a configuration change that may have happened
//! in between, and only then connected. So nothing is sent to a destination, not even a SYN, that policy has not allowed;
//! and from the first SYN on, a policy change finds the flow.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use underpass_config::{Config, Decision, Destination, LoadGuard, PolicyKey, ServiceState, Verdict, WorkloadUid};

use crate::authorization::judge;
use crate::capture::Pod;
use crate::destination::{self, Resolved, Target};
use crate::ending::Ending;
use crate::entrance::Entrance;
use crate::flow::FlowFacts;
use crate::flow_table::{FlowGuard, PathEnds, Transport};
use crate::handover::Family;
use crate::hbone::outbound::{NotOpened, Outbound};
use crate::hbone::route;
use crate::hbone::tunnel::Tunnel;
use crate::node::{Node, Snapshot};
use crate::socket::{self, Connecting};
use crate::source::Source;
use crate::stream::Stream;

/// A client waiting to be connected.
pub struct Request<'a> {
    /// The node.
    pub node: &'a Arc<Node>,
    /// The core that serves it.
    pub core: usize,
    /// The way it came in by.
    pub entrance: &'a Entrance,
    /// Who asks.
    pub source: &'a Source,
    /// When it was accepted.
    pub started: SystemTime,
    /// Who says where to.
    pub named_by: NamedBy,
}

/// Who says where a connection goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NamedBy {
    /// The configuration, or the kernel that captured the connection.
    Us,
    /// The client, which must not be let into the proxy's own sockets.
    Client,
}

/// What a destination is reached by.
#[derive(Debug)]
pub enum Upstream {
    /// A connection of its own.
    Socket(Stream),
    /// A tunnel to the proxy before it.
    Tunnel(Box<Tunnel>),
}

impl Upstream {
    /// Our own address towards it.
    ///
    /// # Errors
    /// Those of getsockname(2).
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Socket(stream) => stream.local_address(),
            Self::Tunnel(tunnel) => Ok(tunnel.connection.local),
        }
    }
}

/// A destination that answered.
#[derive(Debug)]
pub struct Connected {
    /// The way to it.
    pub upstream: Upstream,
    /// The flow, entered in the table.
    pub guard: FlowGuard,
    /// Its place in the endpoint's load.
    pub load: Option<LoadGuard>,
}

/// Why there is no connection, with what is known of where it would have gone.
#[derive(Debug)]
pub struct Refused {
    /// Why.
    pub ending: Ending,
    /// More about that, in words.
    pub detail: Option<String>,
    /// The last place tried or denied.
    pub target: Option<Box<RefusedTarget>>,
}

/// Where a refused connection would have gone.
#[derive(Debug)]
pub struct RefusedTarget {
    /// Address and ends of the path.
    pub address: SocketAddr,
    /// What it leads from and to.
    pub ends: PathEnds,
    /// The policy that denied it.
    pub policy: Option<PolicyKey>,
    /// The other end of the tunnel that would have carried it.
    pub tunnel: Option<SocketAddr>,
}

impl From<Ending> for Refused {
    fn from(ending: Ending) -> Self {
        Self {
            ending,
            detail: None,
            target: None,
        }
    }
}

/// What one attempt came to.
enum Attempt {
    Connected(Box<Connected>),
    /// Decided on a snapshot that is no longer in force.
    Stale,
    /// This endpoint did not answer; another may.
    Failed(Refused),
    /// No other endpoint would make a difference.
    Refused(Refused),
}

/// Why a destination did not answer.
struct Unanswered {
    ending: Ending,
    detail: Option<String>,
}

impl Request<'_> {
    /// Connects to one of the places that `requested` stands for.
    ///
    /// # Errors
    /// Why not; it is counted, but not logged yet.
    pub async fn connect(&self, requested: &Destination) -> Result<Connected, Refused> {
        let outcome = self.try_all(requested).await;
        if let Err(refused) = &outcome
            && !was_reached(refused.ending)
        {
            let ends = || self.refused_ends(refused);
            self.node.flows.count_refused(self.core, ends, refused.ending);
        }
        outcome
    }

    /// The ends of a refused connection's path, as the snapshot in force has them.
    fn refused_ends(&self, refused: &Refused) -> PathEnds {
        let snapshot = self.node.snapshot();
        let ends = match &refused.target {
            Some(target) => target.ends.clone(),
            None => PathEnds::new(self.source.workload(), None, None, &snapshot.config.node),
        };
        ends.refreshed(&snapshot.config)
    }

    async fn try_all(&self, requested: &Destination) -> Result<Connected, Refused> {
        let mut names = Names::default();
        let mut tried = Vec::new();
        let mut last = None;
        loop {
            let snapshot = self.node.snapshot();
            let config = &snapshot.config;
            let source = self.source.refreshed(&config.mesh, &config.node);
            let resolved = match (self.entrance, requested) {
                // What has arrived at a pod is for this pod, whatever services its address may belong to.
                (Entrance::Inbound(_) | Entrance::Hbone(_), Destination::Address(own)) => Some(Resolved::Address(*own)),
                _ => names.resolve(config, requested, self.named_by, &source, &tried).await?,
            };
            let Some(resolved) = resolved else {
                // The answer of DNS took its time: go by the snapshot that is in force now.
                continue;
            };
            let attempts_left = tried.len() < config.node.limits.connect_attempts as usize;
            let choose = || self.choose(config, &resolved, &source, &tried);
            let Some(target) = attempts_left.then(choose).flatten() else {
                return Err(last.unwrap_or_else(|| Ending::NoHealthyEndpoint.into()));
            };
            let address = target.address;
            let target = self.of_enrolled_pod(config, target)?;
            let target = self.with_tunnel(target);
            match self.attempt(&snapshot, source, target, tried.is_empty()).await {
                Attempt::Connected(connected) => return Ok(*connected),
                Attempt::Stale => continue,
                Attempt::Refused(refused) => return Err(refused),
                Attempt::Failed(refused) => last = Some(refused),
            }
            tried.push(address);
        }
    }

    /// Chooses the place to connect to, among those not in `tried`: for what has a waypoint, that waypoint.
    fn choose(&self, config: &Config, resolved: &Resolved, source: &Source, tried: &[SocketAddr]) -> Option<Target> {
        let waypoint = match self.entrance {
            Entrance::Plain(_) | Entrance::Outbound(_) => route::waypoint(config, resolved, source),
            // It has come to where it was going.
            Entrance::Inbound(_) | Entrance::Hbone(_) | Entrance::Waypoint(_) | Entrance::InPlace(_) => None,
        };
        match waypoint {
            Some(waypoint) => waypoint.choose(config, source, tried),
            None => destination::choose(config, resolved, source, tried),
        }
    }

    /// The same target, by a tunnel if it speaks HBONE and a pod connects to it. A node that has no identities to show speaks TCP.
    fn with_tunnel(&self, target: Target) -> Target {
        let may = matches!(self.entrance, Entrance::Outbound(_)) && self.node.identities.is_some();
        if target.via.is_some() || !may {
            return target;
        }
        Target {
            via: route::direct(&target),
            ..target
        }
    }

    /// One endpoint: decide, enter the flow, connect. `is_first` among the endpoints tried for this client.
    async fn attempt(&self, snapshot: &Snapshot, source: Source, target: Target, is_first: bool) -> Attempt {
        let config = &snapshot.config;
        let ends = PathEnds::new(
            source.workload(),
            target.workload.as_ref(),
            target.service.as_ref(),
            &config.node,
        );
        let ends = ends.carried_by(match target.via {
            Some(_) => Transport::TunnelOut,
            None => self.entrance.transport(&source),
        });
        let tunnel = match (&target.via, self.entrance) {
            (Some(via), _) => Some(via.gateway),
            (None, Entrance::Hbone(_) | Entrance::Waypoint(_)) => Some(source.address()),
            (None, _) => None,
        };
        let is_judged_elsewhere = target.via.as_ref().is_some_and(|via| via.is_waypoint);
        let refused = |ending, policy, detail| Refused {
            ending,
            detail,
            target: Some(Box::new(RefusedTarget {
                address: target.address,
                ends: ends.clone(),
                policy,
                tunnel,
            })),
        };
        if self.would_be_believed(&target) {
            let why = "what comes to this port says who its client is (PROXY protocol): it is reached over HBONE only";
            return Attempt::Refused(refused(Ending::PolicyDenied, None, Some(why.to_owned())));
        }
        let verdict = match is_judged_elsewhere {
            true => Verdict::allowed(),
            false => judge(config, &source, target.address, target.workload.as_deref()),
        };
        if is_first && self.node.is_current(snapshot) {
            verdict.dry_run.iter().for_each(|matched| {
                self.node
                    .telemetry
                    .count_dry_run(matched.policy.as_str(), matched.would)
            });
        }
        let policy = match verdict.decision {
            Decision::Allow { policy } => policy,
            Decision::Deny { policy, why } => {
                return Attempt::Refused(refused(Ending::PolicyDenied, policy, Some(why.to_string())));
            }
        };
        let facts = FlowFacts {
            listener: self.entrance.name().clone(),
            pod: self.entrance.pod().map(|pod| pod.cookie),
            source,
            destination: target.address,
            destination_workload: target.workload.clone(),
            service: target.service.as_ref().map(|s| s.key.clone()),
            policy,
            tunnel,
            is_judged_elsewhere,
            chain: None,
        };
        let guard = match self
            .node
            .flows
            .open(self.core, ends.clone(), facts, self.started, &config.node)
        {
            Ok(guard) => guard,
            Err(ending) => return Attempt::Refused(refused(ending, None, None)),
        };
        if let Some(ending) = self.too_late() {
            guard.abandon();
            return Attempt::Refused(refused(ending, None, None));
        }
        if !self.node.is_current(snapshot) {
            guard.abandon();
            return Attempt::Stale;
        }
        let unanswered = tokio::select! {
            biased;
            ending = guard.flow().ended() => Unanswered { ending, detail: None },
            connected = self.reach(&target, &guard.flow().facts.source, config) => match connected {
                Ok(upstream) => {
                    guard.flow().establish();
                    return Attempt::Connected(Box::new(Connected { upstream, guard, load: target.load }));
                }
                Err(unanswered) => unanswered,
            },
        };
        let Unanswered { ending, detail } = unanswered;
        let denial = guard.flow().denial().cloned();
        if was_reached(ending) {
            guard.flow().establish();
            guard.finish(ending);
        } else {
            guard.abandon();
        }
        let detail = denial.as_ref().map(|denial| denial.why.to_string()).or(detail);
        let refused = refused(ending, denial.and_then(|denial| denial.policy), detail);
        // One that was reached is not to be replaced by another.
        match ending {
            Ending::ConnectFailed | Ending::ConnectTimeout => Attempt::Failed(refused),
            _ => Attempt::Refused(refused),
        }
    }

    /// Whether the application there takes the client's own words for those of its proxy: it has a tunnel in which a PROXY protocol header names
    /// the verified client, and this is not that tunnel.
    fn would_be_believed(&self, target: &Target) -> bool {
        let tunnel = target
            .workload
            .as_ref()
            .and_then(|workload| workload.application_tunnel);
        let is_its_tunnel = matches!(self.entrance, Entrance::Hbone(_));
        // Where HBONE leads on to, the proxy there writes the header.
        let is_by_hbone = target.via.is_some();
        tunnel.is_some_and(|tunnel| {
            let is_its_port = tunnel.port == 0 || tunnel.port == target.address.port();
            tunnel.proxy_protocol && is_its_port && !is_its_tunnel && !is_by_hbone
        })
    }

    /// The same target, with the workload as which the pod there is enrolled, if one is. It has the last word: the mesh may not know each
    /// address of a pod, and an address without a workload is guarded by no policy.
    fn of_enrolled_pod(&self, config: &Config, target: Target) -> Result<Target, Ending> {
        let Some(pod) = self.node.pods.at(target.address.ip()) else {
            return Ok(target);
        };
        let workload = config.mesh.workload(&pod.uid).ok_or(Ending::UnknownDestination)?;
        Ok(Target {
            workload: Some(workload.clone()),
            pod: Some(pod),
            ..target
        })
    }

    /// Why nothing may begin any more, although it was allowed.
    fn too_late(&self) -> Option<Ending> {
        if self.node.is_closed() {
            return Some(Ending::Drained);
        }
        self.entrance
            .pod()
            .is_some_and(|pod| pod.is_removed())
            .then_some(Ending::PodRemoved)
    }

    /// Connects to a target by the way that is its own.
    async fn reach(&self, target: &Target, source: &Source, config: &Config) -> Result<Upstream, Unanswered> {
        let Some(via) = &target.via else {
            let stream = self.dial(target.address, target.pod.as_deref(), config).await?;
            return Ok(Upstream::Socket(stream));
        };
        let Some(pod) = self.entrance.pod() else {
            return Err(Unanswered {
                ending: Ending::ConnectFailed,
                detail: Some("it has a waypoint, which only captured pods have an identity to reach".into()),
            });
        };
        let outbound = Outbound {
            node: self.node,
            pod,
            client: source,
            service: target.service.as_deref().map(|service| &*service.hostname),
        };
        let opened = Box::pin(outbound.open(via, config)).await;
        opened
            .map(|tunnel| Upstream::Tunnel(Box::new(tunnel)))
            .map_err(|NotOpened { ending, detail }| Unanswered {
                ending,
                detail: Some(detail),
            })
    }

    /// Connects to `address` from where the connection belongs: a captured one from its pod's network namespace, any other from ours.
    /// `destination` is the enrolled pod there.
    async fn dial(
        &self,
        address: SocketAddr,
        destination: Option<&Pod>,
        config: &Config,
    ) -> Result<Stream, Unanswered> {
        let patience = config.node.timeouts.connect;
        let socket = match self.entrance.pod() {
            None => socket::tcp_socket(address),
            Some(pod) => take_within(pod, Family::of(address.ip()), patience).await,
        };
        let socket = socket.map_err(|error| unanswered(&error))?;
        if let Some(destination) = destination {
            self.announce(&socket, address, destination)
                .map_err(|error| unanswered(&error))?;
        }
        connect_within(socket, address, patience).await
    }

    /// Tells the kernel that a connection of ours is about to come to `destination`, which is on this node, and whom its application is to
    /// see as its client: one that was captured, and that the application's socket can show.
    fn announce(&self, socket: &OwnedFd, address: SocketAddr, destination: &Pod) -> io::Result<()> {
        let client = self.entrance.pod().map(|_| self.source.address());
        let client = client.filter(|client| client.is_ipv4() == address.is_ipv4());
        destination.announce(socket.as_fd(), client)
    }
}

async fn take_within(pod: &Pod, family: Family, patience: Duration) -> io::Result<OwnedFd> {
    match tokio::time::timeout(patience, pod.sockets.take(family)).await {
        Ok(taken) => taken,
        Err(_) => Err(io::Error::other("the agent did not make a socket in time")),
    }
}

/// What DNS answered: for a name that the mesh does not know, asked once for a connection; and for an endpoint that the mesh knows by its
/// name, asked for each that is tried.
#[derive(Default)]
struct Names {
    answers: Option<Vec<SocketAddr>>,
    endpoint: Option<(WorkloadUid, Vec<SocketAddr>)>,
    asked: u32,
}

impl Names {
    /// Resolves the request on one snapshot. None when DNS was asked, and the snapshot may be old by now.
    async fn resolve(
        &mut self,
        config: &Config,
        requested: &Destination,
        named_by: NamedBy,
        source: &Source,
        tried: &[SocketAddr],
    ) -> Result<Option<Resolved>, Ending> {
        let resolved = destination::resolve(config, requested)?;
        let has_waypoint = route::waypoint(config, &resolved, source).is_some();
        let resolved = match resolved {
            Resolved::Name(host, port) => match &self.answers {
                None => {
                    self.answers = Some(destination::ask_dns(&host, port, config.node.timeouts.connect).await?);
                    return Ok(None);
                }
                Some(answers) => {
                    let next = answers
                        .iter()
                        .find(|answer| !tried.contains(answer))
                        .or(answers.first());
                    destination::resolve_address(config, *next.ok_or(Ending::UnknownDestination)?)?
                }
            },
            Resolved::Service {
                service,
                port,
                requested,
            } if !has_waypoint => match self.endpoint_by_name(config, &service, port, source, tried).await? {
                ByName::No => Resolved::Service {
                    service,
                    port,
                    requested,
                },
                ByName::Asked => return Ok(None),
                ByName::Is(named) => named,
            },
            resolved => resolved,
        };
        if named_by == NamedBy::Client && destination::is_of_the_proxy(config, &resolved, source) {
            return Err(Ending::UnknownDestination);
        }
        Ok(Some(resolved))
    }

    /// The endpoint whose turn it is, if it is known by its name only. It stays the one of this connection until its addresses have all
    /// been tried.
    async fn endpoint_by_name(
        &mut self,
        config: &Config,
        service: &ServiceState,
        port: u16,
        source: &Source,
        tried: &[SocketAddr],
    ) -> Result<ByName, Ending> {
        let is_untried = |addresses: &[SocketAddr]| addresses.iter().any(|address| !tried.contains(address));
        let known = self.endpoint.as_ref().filter(|(_, addresses)| is_untried(addresses));
        let uid = known.map(|(uid, _)| uid);
        let Some((endpoint, host, port)) = destination::endpoint_by_name(config, service, port, source, uid) else {
            return Ok(ByName::No);
        };
        if let Some((uid, addresses)) = known
            && *uid == endpoint.workload.uid
        {
            return Ok(ByName::Is(Resolved::Named {
                service: service.service().clone(),
                addresses: addresses.clone(),
                endpoint,
            }));
        }
        if self.asked >= config.node.limits.connect_attempts {
            return Err(Ending::NoHealthyEndpoint);
        }
        self.asked += 1;
        let answers = destination::ask_dns(&host, port, config.node.timeouts.connect).await;
        let answers = answers.map_err(|_| Ending::NoHealthyEndpoint)?;
        self.endpoint = Some((endpoint.workload.uid.clone(), answers));
        Ok(ByName::Asked)
    }
}

/// Whether an endpoint is one that is known by its name.
enum ByName {
    /// It has addresses.
    No,
    /// DNS was asked for it, and the snapshot may be old by now.
    Asked,
    /// It is, and this is where.
    Is(Resolved),
}

/// Connects to `address`, waiting no longer than `patience`.
async fn connect_within(socket: OwnedFd, address: SocketAddr, patience: Duration) -> Result<Stream, Unanswered> {
    let attempt = match socket::start_connect(socket, address) {
        Ok(Connecting::Done(stream)) => return Ok(stream),
        Ok(Connecting::Underway(stream)) => socket::finish_connect(stream),
        Err(error) => return Err(unanswered(&error)),
    };
    match tokio::time::timeout(patience, attempt).await {
        Ok(answered) => answered.map_err(|error| unanswered(&error)),
        Err(_) => Err(Unanswered {
            ending: Ending::ConnectTimeout,
            detail: None,
        }),
    }
}

/// Whether the destination has accepted, and reset before we looked. It counts as the connection that it was, to both of its ends.
fn was_reached(ending: Ending) -> bool {
    ending == Ending::UpstreamReset
}

fn unanswered(error: &io::Error) -> Unanswered {
    let reset = error.kind() == io::ErrorKind::ConnectionReset;
    let ending = if reset {
        Ending::UpstreamReset
    } else {
        Ending::ConnectFailed
    };
    Unanswered {
        ending,
        detail: Some(error.to_string()),
    }
}

#[cfg(test)]
mod tests;
