//! From a waypoint's chain of TCP to a connected endpoint.
//!
//! The steps are those of any connection (`crate::upstream`): each try is judged on one snapshot, entered in the flow table, checked against a change that may have
//! happened in between, and only then connected. What judges are the chain's rules; where it leads, the chain's clusters say, each of which chooses among its endpoints as it
//! does for requests. Nothing is sent to an endpoint before that, and the client is told nothing: whoever does not answer has others tried in its place.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use underpass_config::http::{Cluster, ClusterEndpoint, Discovery, Held, Outcome, Wish, hash_source};
use underpass_config::waypoint::{Chain, TcpChain};
use underpass_config::{Config, Service, Text, Workload};

use crate::ending::Ending;
use crate::flow::{ByChain, FlowFacts};
use crate::flow_table::{FlowGuard, PathEnds, Transport};
use crate::hbone::inbound::refused;
use crate::http::filters::judge_by;
use crate::http::going::no_way;
use crate::http::outliers;
use crate::http::permit::whose;
use crate::http::pool::stream::Stream;
use crate::http::pool::way::{Way, is_by_hbone};
use crate::http::pool::{Key, NotConnected, Speaks, Wanted};
use crate::node::Snapshot;
use crate::session::Session;
use crate::source::Source;
use crate::upstream::{Refused, RefusedTarget};

/// A connection that a chain leads on.
#[derive(Clone, Copy, Debug)]
pub struct Onward<'a> {
    /// Who opened it.
    pub session: &'a Session,
    /// The chain's name.
    pub chain: &'a Text,
    /// Where it was going.
    pub to: SocketAddr,
}

/// An endpoint that answered.
#[derive(Debug)]
pub struct Connected {
    /// The way to it.
    pub stream: Stream,
    /// The flow, entered in the table.
    pub guard: FlowGuard,
    /// How long no byte may move; none: no limit.
    pub idle_timeout: Option<Duration>,
    /// How long it may be open; none: no limit.
    pub max_duration: Option<Duration>,
    /// Its place in the endpoint's load.
    pub load: Held,
}

/// Where one try leads.
struct Target<'c> {
    chain: &'c TcpChain,
    cluster: &'c Arc<Cluster>,
    endpoint: Arc<ClusterEndpoint>,
}

/// What one try came to.
enum Attempt {
    Connected(Box<Connected>),
    /// Decided on a snapshot that is no longer in force.
    Stale,
    /// This endpoint did not answer; another may.
    Failed(Refused),
    /// No other endpoint would make a difference.
    Refused(Refused),
}

impl Onward<'_> {
    /// Connects to one of the chain's endpoints.
    ///
    /// # Errors
    /// Why not; it is counted, but not logged yet.
    pub async fn connect(&self) -> Result<Connected, Refused> {
        let outcome = self.try_all().await;
        if let Err(refused) = &outcome {
            let config = &self.session.node.snapshot().config;
            let ends = || match &refused.target {
                Some(target) => target.ends.refreshed(config),
                None => self.ends(config, &self.session.source, None, None),
            };
            let (flows, core) = (&self.session.node.flows, self.session.core);
            flows.count_refused(core, ends, refused.ending);
        }
        outcome
    }

    async fn try_all(&self) -> Result<Connected, Refused> {
        let session = self.session;
        // However often it is looked: one that is to go to a cluster does not go to another because it was tried twice.
        let drawn = fastrand::u32(..);
        let mut telemetry = Some(&session.node.telemetry);
        let mut tried: Vec<SocketAddr> = Vec::new();
        let mut last = None;
        loop {
            let snapshot = session.node.snapshot();
            let config = &snapshot.config;
            let source = session.source.refreshed(&config.mesh, &config.node);
            let chain = self.chain(config)?;
            let judged = judge_by(&chain.rules, &source, self.to, telemetry.take());
            judged.map_err(|why| self.refused(config, None, Ending::PolicyDenied, why))?;
            let cluster = self.cluster(config, chain, drawn)?;
            let wish = Wish {
                tried: &tried,
                hash: chain.by_source.then(|| hash_source(source.address())),
                labels: None,
                at: matches!(cluster.settings.discovery, Discovery::Original(_)).then_some((self.to, None)),
            };
            let is_left = tried.len() < config.node.limits.connect_attempts as usize;
            let choose = || cluster.choose(&wish, || fastrand::u32(..));
            let is_new = |endpoint: &Arc<ClusterEndpoint>| !tried.contains(&endpoint.settings.address);
            let Some(endpoint) = is_left.then(choose).flatten().filter(is_new) else {
                let nobody = || {
                    let why = format!("none of the endpoints of {} may be used", cluster.settings.name);
                    self.refused(config, Some(cluster), Ending::NoHealthyEndpoint, why)
                };
                return Err(last.unwrap_or_else(nobody));
            };
            let address = endpoint.settings.address;
            let target = Target {
                chain,
                cluster,
                endpoint,
            };
            match Box::pin(self.attempt(&snapshot, source, target)).await {
                Attempt::Connected(connected) => return Ok(*connected),
                Attempt::Stale => continue,
                Attempt::Refused(refused) => return Err(refused),
                Attempt::Failed(refused) => last = Some(refused),
            }
            tried.push(address);
        }
    }

    fn chain<'c>(&self, config: &'c Config) -> Result<&'c TcpChain, Refused> {
        let gone = || refused(Ending::UnknownDestination, "its chain is gone".to_owned());
        match config.http.chains.get(self.chain).ok_or_else(gone)? {
            Err(why) => Err(refused(Ending::UnknownDestination, why.to_string())),
            Ok(chain) => match &**chain {
                Chain::Tcp(chain) => Ok(chain),
                Chain::Http(_) => Err(gone()),
            },
        }
    }

    fn cluster<'c>(&self, config: &'c Config, chain: &TcpChain, drawn: u32) -> Result<&'c Arc<Cluster>, Refused> {
        let nowhere = |why: String| self.refused(config, None, Ending::NoHealthyEndpoint, why);
        let chosen = chain.choose(drawn);
        let name = &chosen.ok_or_else(|| nowhere("no cluster has a weight".into()))?.cluster;
        let cluster = config.http.cluster(name);
        cluster.ok_or_else(|| nowhere(format!("there is no cluster {name}")))
    }

    /// One endpoint: enter the flow, connect.
    async fn attempt(&self, snapshot: &Snapshot, source: Source, target: Target<'_>) -> Attempt {
        let (session, config) = (self.session, &snapshot.config);
        let Target {
            chain,
            cluster,
            endpoint,
        } = target;
        let address = endpoint.settings.address;
        let is_by_hbone = is_by_hbone(cluster, &endpoint.settings);
        let denied = |why| Attempt::Refused(self.refused(config, Some(cluster), Ending::PolicyDenied, why));
        let destination = match whose(session, config, address, is_by_hbone) {
            Ok(workload) => workload,
            Err(whoever) => return denied(whoever.why),
        };
        if let Some(why) = no_way(cluster, session, address) {
            return denied(why.to_owned());
        }
        let ends = self.ends(config, &source, destination, Some(cluster));
        let refused = |ending, detail| Refused {
            ending,
            detail,
            target: Some(Box::new(RefusedTarget {
                address,
                ends: ends.clone(),
                policy: None,
                tunnel: Some(session.source.address()),
            })),
        };
        let facts = self.facts(source, destination, address, &ends);
        let flows = &session.node.flows;
        let entered = flows.open(session.core, ends.clone(), facts, session.started, &config.node);
        let guard = match entered {
            Ok(guard) => guard,
            Err(ending) => return Attempt::Refused(refused(ending, None)),
        };
        if session.node.is_closed() {
            guard.abandon();
            return Attempt::Refused(refused(Ending::Drained, None));
        }
        if !session.node.is_current(snapshot) {
            guard.abandon();
            return Attempt::Stale;
        }
        let load = endpoint.hold();
        let connected = tokio::select! {
            biased;
            ending = guard.flow().ended() => Err((ending, None)),
            connected = self.reach(cluster, &endpoint) => connected.map_err(|error| unanswered(&error)),
        };
        match connected {
            Ok(stream) => {
                guard.flow().establish();
                Attempt::Connected(Box::new(Connected {
                    stream,
                    guard,
                    idle_timeout: chain.idle_timeout,
                    max_duration: chain.max_duration,
                    load,
                }))
            }
            Err((ending, detail)) => {
                let detail = guard.flow().denial().map(|denial| denial.why.clone()).or(detail);
                guard.abandon();
                match ending {
                    Ending::ConnectFailed | Ending::ConnectTimeout => Attempt::Failed(refused(ending, detail)),
                    _ => Attempt::Refused(refused(ending, detail)),
                }
            }
        }
    }

    /// Connects, and tells the cluster what came of it.
    async fn reach(&self, cluster: &Arc<Cluster>, endpoint: &Arc<ClusterEndpoint>) -> Result<Stream, NotConnected> {
        let (session, transport) = (self.session, &cluster.settings.transport);
        let wanted = Wanted {
            node: &session.node,
            core: session.core,
            cluster,
            endpoint,
            key: Key {
                cluster: cluster.settings.name.clone(),
                address: endpoint.settings.address,
                transport: transport.clone(),
                edition: 0,
                server_name: transport.tls.as_ref().and_then(|tls| tls.server_name.clone()),
                client: (transport.proxy_protocol).map(|_| (session.source.address(), self.to)),
                way: Way::Unannounced,
            },
            speaks: Speaks::Bytes,
        };
        let began = Instant::now();
        let connected = wanted.stream_at_once().await;
        let outcome = match &connected {
            Ok(_) => Some(Outcome::Connected),
            // The endpoint has not been asked.
            Err(NotConnected::Overflow) => None,
            Err(_) => Some(Outcome::NotConnected),
        };
        if let Some(outcome) = outcome {
            outliers::note(cluster, endpoint, outcome, began.elapsed());
        }
        connected
    }

    fn facts(
        &self,
        source: Source,
        destination: Option<&Arc<Workload>>,
        address: SocketAddr,
        ends: &PathEnds,
    ) -> FlowFacts {
        FlowFacts {
            listener: self.session.entrance.name().clone(),
            pod: None,
            tunnel: Some(source.address()),
            source,
            destination: address,
            destination_workload: destination.cloned(),
            service: ends.service.as_ref().map(|service| service.key.clone()),
            policy: None,
            is_judged_elsewhere: true,
            chain: Some(ByChain {
                name: self.chain.clone(),
                to: self.to,
            }),
        }
    }

    fn ends(
        &self,
        config: &Config,
        source: &Source,
        destination: Option<&Arc<Workload>>,
        cluster: Option<&Cluster>,
    ) -> PathEnds {
        let named = cluster.and_then(|cluster| cluster.settings.service.clone());
        let service = self.service(config, named.as_ref().map(|name| &*name.hostname));
        let peer = self.session.entrance.transport(source).peer().cloned();
        let transport = Transport::Waypoint { peer, service: named };
        PathEnds::new(source.workload(), destination, service, &config.node).carried_by(transport)
    }

    /// The service that was asked for, as the mesh has it: that of the cluster, or of the address.
    fn service<'c>(&self, config: &'c Config, hostname: Option<&str>) -> Option<&'c Arc<Service>> {
        let (mesh, network) = (&config.mesh, &config.node.network);
        let named = hostname.and_then(|name| mesh.service_named(name));
        let state = named.or_else(|| mesh.service_at(network, self.to.ip(), self.to.port()));
        state.map(|state| state.service())
    }

    /// Turned away before an endpoint was chosen.
    fn refused(&self, config: &Config, cluster: Option<&Cluster>, ending: Ending, why: String) -> Refused {
        Refused {
            target: Some(Box::new(RefusedTarget {
                address: self.to,
                ends: self.ends(config, &self.session.source, None, cluster),
                policy: None,
                tunnel: Some(self.session.source.address()),
            })),
            ..refused(ending, why)
        }
    }
}

fn unanswered(error: &NotConnected) -> (Ending, Option<String>) {
    match error {
        NotConnected::Failed(why) | NotConnected::Untrusted(why) => (Ending::ConnectFailed, Some(why.to_string())),
        NotConnected::TimedOut => (Ending::ConnectTimeout, None),
        NotConnected::Overflow => {
            let why = "its cluster has as many connections as it may have (`breakers`)";
            (Ending::ConnectionLimit, Some(why.to_owned()))
        }
    }
}
