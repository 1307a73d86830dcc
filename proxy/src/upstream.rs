//! From a client's request to a connected, authorized destination.
//!
//! Each attempt is decided, entered into the flow table, checked against a configuration change that may have happened
//! in between, and only then connected. So nothing is sent to a destination, not even a SYN, that policy has not allowed;
//! and from the first SYN on, a policy change finds the flow.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::net::TcpStream;
use underpass_config::{Config, ConnectionFacts, Decision, Destination, LoadGuard, PolicyKey, Text};

use crate::destination::{self, Resolved, Target};
use crate::ending::Ending;
use crate::flow::FlowFacts;
use crate::flow_table::{FlowGuard, PathEnds};
use crate::node::{Node, Snapshot};
use crate::socket;
use crate::source::Source;

/// A client waiting to be connected.
pub struct Request<'a> {
    /// The node.
    pub node: &'a Arc<Node>,
    /// The core that serves it.
    pub core: usize,
    /// The listener's name.
    pub listener: &'a Text,
    /// Who asks.
    pub source: &'a Source,
    /// When it was accepted.
    pub started: SystemTime,
}

/// A destination that answered.
#[derive(Debug)]
pub struct Connected {
    /// The socket.
    pub stream: TcpStream,
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
}

impl From<Ending> for Refused {
    fn from(ending: Ending) -> Self {
        Self { ending, target: None }
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

impl Request<'_> {
    /// Connects to one of the places that `requested` stands for.
    ///
    /// # Errors
    /// Why not; it is counted, but not logged yet.
    pub async fn connect(&self, requested: &Destination) -> Result<Connected, Refused> {
        let outcome = self.try_all(requested).await;
        if let Err(refused) = &outcome {
            self.node
                .flows
                .count_refused(self.core, self.refused_ends(refused), refused.ending);
        }
        outcome
    }

    fn refused_ends(&self, refused: &Refused) -> PathEnds {
        match &refused.target {
            Some(target) => target.ends.clone(),
            None => PathEnds::new(self.source.workload(), None, None, &self.node.snapshot().config.node),
        }
    }

    async fn try_all(&self, requested: &Destination) -> Result<Connected, Refused> {
        let mut tried = Vec::new();
        let mut last = None;
        loop {
            let snapshot = self.node.snapshot();
            let config = &snapshot.config;
            let source = self.source.refreshed(&config.mesh, &config.node);
            let resolved = resolve(config, requested).await?;
            let attempts_left = tried.len() < config.node.limits.connect_attempts as usize;
            let target = attempts_left
                .then(|| destination::choose(config, &resolved, &source, &tried))
                .flatten();
            let Some(target) = target else {
                return Err(last.unwrap_or_else(|| Ending::NoHealthyEndpoint.into()));
            };
            let address = target.address;
            match self.attempt(&snapshot, source, target).await {
                Attempt::Connected(connected) => return Ok(*connected),
                Attempt::Stale => continue,
                Attempt::Refused(refused) => return Err(refused),
                Attempt::Failed(refused) => last = Some(refused),
            }
            tried.push(address);
        }
    }

    async fn attempt(&self, snapshot: &Snapshot, source: Source, target: Target) -> Attempt {
        let config = &snapshot.config;
        let ends = PathEnds::new(
            source.workload(),
            target.workload.as_ref(),
            target.service.as_ref(),
            &config.node,
        );
        let refused = |ending, policy| Refused {
            ending,
            target: Some(Box::new(RefusedTarget {
                address: target.address,
                ends: ends.clone(),
                policy,
            })),
        };
        let policy = match self.authorize(config, &source, &target) {
            Decision::Allow { policy } => policy,
            Decision::Deny { policy, .. } => return Attempt::Refused(refused(Ending::PolicyDenied, policy)),
        };
        let facts = FlowFacts {
            listener: self.listener.clone(),
            source,
            destination: target.address,
            destination_workload: target.workload.clone(),
            service: target.service.as_ref().map(|s| s.key.clone()),
            policy,
        };
        let guard = match self
            .node
            .flows
            .open(self.core, ends.clone(), facts, self.started, &config.node.limits)
        {
            Ok(guard) => guard,
            Err(ending) => return Attempt::Refused(refused(ending, None)),
        };
        if !self.node.is_current(snapshot) {
            guard.abandon();
            return Attempt::Stale;
        }
        let connected = tokio::select! {
            biased;
            ending = guard.flow().ended() => Err((ending, false)),
            // A destination that reset has accepted first: it was reached, and is not to be replaced by another.
            connected = dial(target.address, config) => connected.map_err(|ending| (ending, ending != Ending::UpstreamReset)),
        };
        match connected {
            Ok(stream) => {
                guard.flow().establish();
                Attempt::Connected(Box::new(Connected {
                    stream,
                    guard,
                    load: target.load,
                }))
            }
            Err((ending, another_may_do)) => {
                guard.abandon();
                let refused = refused(ending, None);
                if another_may_do {
                    Attempt::Failed(refused)
                } else {
                    Attempt::Refused(refused)
                }
            }
        }
    }

    fn authorize(&self, config: &Config, source: &Source, target: &Target) -> Decision {
        let Some(destination) = &target.workload else {
            return Decision::Allow { policy: None };
        };
        let facts = ConnectionFacts {
            source: source.identity(),
            source_ip: source.ip(),
            destination: target.address,
        };
        let verdict = config.mesh.authorize(&facts, destination);
        for matched in &verdict.dry_run {
            self.node.telemetry.count_dry_run(matched);
        }
        verdict.decision
    }
}

async fn resolve(config: &Config, requested: &Destination) -> Result<Resolved, Ending> {
    match destination::resolve(config, requested)? {
        Resolved::Name(host, port) => destination::resolve_name(config, &host, port).await,
        resolved => Ok(resolved),
    }
}

async fn dial(address: SocketAddr, config: &Config) -> Result<TcpStream, Ending> {
    let attempt = socket::connect(address, &config.node.keepalive);
    match tokio::time::timeout(config.node.timeouts.connect, attempt).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionReset => Err(Ending::UpstreamReset),
        Ok(Err(error)) => {
            tracing::debug!(%address, %error, "connect failed");
            Err(Ending::ConnectFailed)
        }
        Err(_) => Err(Ending::ConnectTimeout),
    }
}
