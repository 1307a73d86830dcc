//! The running proxy: what is started in which order, and how it stops.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;
use underpass_certs::SourceError;
use underpass_config::{Config, ConfigError, Premises, Surroundings};

use crate::admin::{self, Admin, View};
use crate::agent::{self, AgentError, AgentOptions};
use crate::capture;
use crate::configuration::{Configuration, Reload, UpdateError};
pub use crate::configuration::{NeedsFile, Origin};
use crate::cores::Cores;
use crate::dump::{self, DumpError};
use crate::ending::Ending;
use crate::export;
use crate::flow_table::FlowTable;
use crate::footprint;
use crate::http::filters::jwt;
use crate::http::{discovery, outliers};
use crate::identities::Identities;
use crate::istiod::{Feed, Replay};
use crate::logging::{LogFilter, LogFilterError};
use crate::node::Node;
use crate::offload::Offload;
use crate::telemetry::{AccessLogError, AccessLogWriter, Telemetry};

/// How often a drain looks whether the last connection has gone.
const DRAIN_LOOK: Duration = Duration::from_millis(20);

/// How long collectors may take for what they have not been told yet when the process ends.
const LAST_MESSAGES: Duration = Duration::from_secs(2);
/// How long connections that were told to end may take to do so.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// What a proxy is started with, beside what its configuration says.
#[derive(Clone, Debug)]
pub struct Given {
    /// The admin server's address.
    pub admin: Option<SocketAddr>,
    /// Where the configuration is written.
    pub origin: Origin,
    /// What stands where it says nothing.
    pub premises: Premises,
}

/// What this process's environment says of where it runs.
pub fn surroundings() -> Surroundings {
    Surroundings::read(|name| std::env::var(name).ok())
}

/// Why the proxy did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration file cannot be read.
    #[error("{origin} cannot be read: {source}; give the configuration file with --config")]
    Read {
        /// The file.
        origin: Origin,
        /// Why.
        source: io::Error,
    },
    /// The configuration is not valid.
    #[error("{origin} is not a valid configuration:\n{source}")]
    Config {
        /// Where it is written.
        origin: Origin,
        /// Why.
        source: ConfigError,
    },
    /// The log filter is not valid.
    #[error("node.log: {0}")]
    Log(#[from] LogFilterError),
    /// The access log cannot be opened.
    #[error(transparent)]
    AccessLog(#[from] AccessLogError),
    /// A listener cannot be opened.
    #[error(transparent)]
    Listeners(#[from] UpdateError),
    /// The admin server, or that of metrics or readiness, cannot listen.
    #[error("nothing can listen on {address}: {source}; free the address or change node.{setting}")]
    Admin {
        /// What names it.
        setting: &'static str,
        /// Its address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// Roots or revocations cannot be used.
    #[error("node.identities: {0}")]
    Identities(#[from] SourceError),
    /// The configuration file cannot be watched.
    #[error(
        "{origin} cannot be watched for changes: {source}; raise fs.inotify.max_user_watches or max_user_instances"
    )]
    Watch {
        /// The file.
        origin: Origin,
        /// Why.
        source: notify::Error,
    },
    /// The agent that a configuration with `capture` asks for did not start.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// What istiod says, or has said once, can't be had.
    #[error(transparent)]
    Dump(#[from] DumpError),
    /// Pods would be captured for a mesh that is not there.
    #[error(
        "--replay is for a proxy that captures no pods: remove the `capture` section, and use another role than `node`"
    )]
    ReplayWithCapture,
    /// Threads, epoll or signals are not to be had.
    #[error("the machine does not give what the proxy needs: {0}")]
    Machine(#[from] io::Error),
}

/// Reads and validates a configuration, on these premises.
///
/// # Errors
/// When it cannot be read or is not valid.
pub fn load(origin: &Origin, premises: &Premises) -> Result<(String, Config), StartError> {
    let text = origin.read().map_err(|source| StartError::Read {
        origin: origin.clone(),
        source,
    })?;
    let config = Config::from_yaml_given(&text, premises).map_err(|source| StartError::Config {
        origin: origin.clone(),
        source,
    })?;
    Ok((text, config))
}

/// Runs the proxy until it is told to stop and has drained. If the configuration
/// asks for capture, this process is the agent and the proxy its child. With `replay`, a file of `underpass config dump`, it is served by what istiod had said then.
///
/// # Errors
/// When it cannot start.
pub fn run(given: Given, replay: Option<&Path>) -> Result<(), StartError> {
    let loaded = load(&given.origin, &given.premises)?;
    let replay = replay.map(dump::replay).transpose()?;
    if loaded.1.node.capture.is_none() {
        return serve(loaded, given, None, replay);
    }
    if replay.is_some() {
        return Err(StartError::ReplayWithCapture);
    }
    // The agent has no use for the mesh.
    let node = loaded.1.node.clone();
    drop(loaded);
    LogFilter::install(&node.log)?;
    Ok(agent::run_with_proxy(given, &node)?)
}

/// Runs the agent until it is told to stop. `adjust` puts what the command line says above what the configuration says.
///
/// # Errors
/// When it cannot start.
pub fn run_agent(path: Option<&Path>, adjust: impl FnOnce(&mut AgentOptions)) -> Result<(), StartError> {
    let node = path
        .map(|path| load(&Origin::File(path.into()), &Premises::default()))
        .transpose()?
        .map(|(_, config)| config.node);
    let mut options = AgentOptions::new(node.as_deref());
    adjust(&mut options);
    LogFilter::install(&options.log)?;
    Ok(agent::run(&options)?)
}

/// Runs the proxy as [`run`] does, and serves the pods that the agent at socket `agent` tells of.
///
/// # Errors
/// When it cannot start. An agent that does not answer is waited for.
pub fn run_captured(given: Given, agent: &Path) -> Result<(), StartError> {
    serve(load(&given.origin, &given.premises)?, given, Some(agent), None)
}

/// `loaded` is what [`load`] made of what is given.
fn serve(
    loaded: (String, Config),
    given: Given,
    agent: Option<&Path>,
    replay: Option<Replay>,
) -> Result<(), StartError> {
    let (text, config) = loaded;
    let log = LogFilter::install(&config.node.log)?;
    let count = config.node.workers.map_or_else(available_cores, usize::from);
    let access_log = Arc::new(AccessLogWriter::open(&config.node, Arc::default())?);
    let (cores, threads) = Cores::start(count)?;
    let flows = Arc::new(FlowTable::new(count));
    let offload = Arc::new(Offload::default());
    let (identities, upkeep) = Identities::new(&config.node).unzip();
    let (feeds, istiod) = Feed::all(&config.node, replay.as_ref(), None);
    let telemetry =
        Telemetry::new(&flows, &offload, access_log.clone()).with_control_plane(istiod.clone(), identities.clone());
    let admin_address = given.admin.unwrap_or(config.node.admin);
    let public = [
        ("metrics", config.node.metrics, View::Metrics),
        ("readiness", config.node.readiness, View::Readiness),
    ];
    let node = Node::new(config, identities, istiod, flows, offload, telemetry);
    let control = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(8)
        .build()?;
    let outcome = control.block_on(async {
        let listener = bind("admin", admin_address).await?;
        let mut public_listeners = Vec::new();
        for (setting, address, view) in public {
            if let Some(address) = address {
                public_listeners.push((bind(setting, address).await?, view));
            }
        }
        if let Some(upkeep) = upkeep {
            upkeep.start().await?;
        }
        tokio::spawn(discovery::follow(node.clone()));
        tokio::spawn(outliers::follow(node.clone()));
        tokio::spawn(jwt::follow(node.clone()));
        tokio::spawn(export::follow(node.clone()));
        let Given { origin, premises, .. } = given;
        let configuration = Configuration::start(
            origin.clone(),
            &text,
            premises,
            node.clone(),
            cores.clone(),
            log.clone(),
        )?;
        drop(text);
        let watcher = configuration
            .watch()
            .map_err(|source| StartError::Watch { origin, source })?;
        let admin = Admin {
            node: node.clone(),
            configuration: configuration.clone(),
            log,
        };
        for (listener, view) in public_listeners {
            tokio::spawn(admin::serve(listener, view, admin.clone()));
        }
        tokio::spawn(admin::serve(listener, View::Everything, admin));
        for feed in feeds {
            tokio::spawn(feed.serve(node.clone()));
        }
        if let Some(agent) = agent {
            node.await_agent(true);
            tokio::spawn(serve_pods(agent.into(), node.clone(), cores.clone()));
        }
        footprint::forget_start();
        let flows = node.flows.clone();
        tokio::spawn(footprint::keep_small_while(move || {
            let open = flows.open_connections();
            open.total() == open.parked()
        }));
        tracing::info!(admin = %admin_address, cores = count, "serving");
        wait_for_stop(&node, &configuration).await?;
        drop(watcher);
        configuration.close_listeners();
        drain(&node).await;
        node.telemetry.exporters.finish(LAST_MESSAGES).await;
        Ok(())
    });
    drop(threads);
    access_log.close();
    outcome
}

/// A proxy that has no mesh yet asks for no pods: its predecessor serves them on, or their connections wait.
async fn serve_pods(agent: PathBuf, node: Arc<Node>, cores: Arc<Cores>) {
    node.mesh_came().await;
    capture::converse(agent, node, cores).await;
}

/// Everywhere is everywhere that there is: a machine may have no IPv6.
async fn bind(setting: &'static str, address: SocketAddr) -> Result<TcpListener, StartError> {
    let bound = match TcpListener::bind(address).await {
        Err(_) if address.ip() == Ipv6Addr::UNSPECIFIED => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        bound => bound,
    };
    bound.map_err(|source| StartError::Admin {
        setting,
        address,
        source,
    })
}

fn available_cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Returns when a signal or the admin server asks for the end. SIGHUP reads the configuration again.
async fn wait_for_stop(node: &Arc<Node>, configuration: &Arc<Configuration>) -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            () = node.drain_started() => break,
            _ = hangup.recv() => configuration.reload_aside(Reload::Always).await,
        }
    }
    node.start_drain();
    Ok(())
}

/// Lets open connections finish for `timeouts.drain`, then resets the rest.
async fn drain(node: &Node) {
    let patience = node.snapshot().config.node.timeouts.drain;
    tracing::info!(
        connections = node.flows.open_connections().total(),
        ?patience,
        "draining"
    );
    if wait_until_empty(node, patience, || {}).await {
        return;
    }
    node.close();
    tracing::info!(
        connections = node.flows.open_connections().total(),
        "resetting those that did not finish in time"
    );
    let end_all = || {
        node.flows
            .flows()
            .iter()
            .for_each(|(_, flow)| flow.end(Ending::Drained))
    };
    wait_until_empty(node, LAST_WORDS, end_all).await;
}

/// Looks again and again, doing `each_time`, until no connection is left or patience is at its end.
async fn wait_until_empty(node: &Node, patience: Duration, each_time: impl Fn()) -> bool {
    let deadline = Instant::now() + patience;
    while node.flows.open_connections().total() > 0 {
        if Instant::now() >= deadline {
            return false;
        }
        each_time();
        tokio::time::sleep(DRAIN_LOOK).await;
    }
    true
}
