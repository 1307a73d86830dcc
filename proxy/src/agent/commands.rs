//! The commands that ask the agent: `enrol`, `pods`, `remove`, `detach`.

use std::path::{Path, PathBuf};

use serde_json::json;
use underpass_ebpf::{Capture, Layout, cgroup2_mount};

use super::control::{Answer, ControlError, Line, PodView, ProxyView, Request, Which};
use super::{AgentError, cgroups, doors, kernel, start};

use super::state::{Record, StateError, StateFile};

pub use super::namespace::{Namespace, Place};

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The agent could not be asked, or said no.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// Something failed without an agent.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// A path is none.
    #[error("{}: {source}", path.display())]
    Path {
        /// The path.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// A pod that an agent has enrolled, with its network namespace open.
#[derive(Debug)]
pub struct Enrolled {
    /// The workload.
    pub uid: String,
    /// The namespace's cookie.
    pub cookie: u64,
    /// The namespace.
    pub namespace: Namespace,
}

/// The pods of an agent, running or not, whose namespaces are still there.
///
/// # Errors
/// When its state cannot be read.
pub fn enrolled(run_dir: &Path) -> Result<Vec<Enrolled>, StateError> {
    let records = StateFile::of(run_dir).load()?;
    let open = |record: Record| {
        let namespace = Namespace::open(&record.place).ok()?;
        (namespace.identity() == record.identity).then_some(Enrolled {
            uid: record.uid,
            cookie: record.cookie,
            namespace,
        })
    };
    Ok(records.into_iter().filter_map(open).collect())
}

impl Place {
    /// The place of a path as the caller sees it: the agent may run elsewhere.
    ///
    /// # Errors
    /// When the path is empty.
    pub fn absolute(path: &Path) -> Result<Self, CommandError> {
        std::path::absolute(path)
            .map(Self::Netns)
            .map_err(|source| CommandError::Path {
                path: path.into(),
                source,
            })
    }
}

/// Captures a pod.
///
/// # Errors
/// When there is no agent, or it cannot.
pub fn enrol(run_dir: &Path, uid: &str, place: Place, as_json: bool) -> Result<(), CommandError> {
    let request = Request::Enrol { uid: uid.into(), place };
    let (Answer::Enrolled { pod, already }, _) = Line::call(run_dir, &request)?.listen()? else {
        return Err(ControlError::Misunderstood.into());
    };
    if as_json {
        println!("{}", json!({"pod": pod, "already": already}));
    } else {
        let was = if already { "was enrolled before" } else { "is enrolled" };
        println!("{was}:");
        show_pod(&pod);
    }
    Ok(())
}

/// Lists pods and proxies.
///
/// # Errors
/// When there is no agent.
pub fn pods(run_dir: &Path, as_json: bool) -> Result<(), CommandError> {
    let line = Line::call(run_dir, &Request::Pods)?;
    let (mut pods, mut proxies) = (Vec::new(), Vec::new());
    loop {
        match line.listen()?.0 {
            Answer::Pod(pod) => pods.push(pod),
            Answer::Proxy(proxy) => proxies.push(proxy),
            Answer::End => break,
            _ => return Err(ControlError::Misunderstood.into()),
        }
    }
    pods.sort_by(|one, other| one.uid.cmp(&other.uid));
    if as_json {
        println!("{}", json!({"pods": pods, "proxies": proxies}));
        return Ok(());
    }
    if pods.is_empty() {
        println!("no pods are enrolled; add one: underpass enrol --netns PATH --uid UID");
    }
    pods.iter().for_each(show_pod);
    match proxies.is_empty() {
        true => println!("no proxy is connected"),
        false => proxies.iter().for_each(|proxy| show_proxy(proxy, pods.len())),
    }
    Ok(())
}

/// Frees a pod.
///
/// # Errors
/// When there is no agent, or it cannot.
pub fn remove(run_dir: &Path, which: Which, as_json: bool) -> Result<(), CommandError> {
    let (Answer::Removed { uids }, _) = Line::call(run_dir, &Request::Remove(which))?.listen()? else {
        return Err(ControlError::Misunderstood.into());
    };
    if as_json {
        println!("{}", json!({ "removed": uids }));
    } else if uids.is_empty() {
        println!("no such pod is enrolled; nothing to do");
    } else {
        uids.iter().for_each(|uid| println!("removed: {uid}"));
    }
    Ok(())
}

/// Ends capture on this node, with or without an agent.
///
/// # Errors
/// When something cannot be removed.
pub fn detach(run_dir: &Path, pin_dir: &Path, as_json: bool) -> Result<(), CommandError> {
    let removed = match Line::call(run_dir, &Request::Detach) {
        Ok(line) => match line.listen()?.0 {
            Answer::Detached { removed } => removed,
            _ => return Err(ControlError::Misunderstood.into()),
        },
        Err(ControlError::NoAgent(_)) => detach_alone(run_dir, pin_dir)?,
        Err(error) => return Err(error.into()),
    };
    match as_json {
        true => println!("{}", json!({ "detached": removed })),
        false => println!("capture has ended: {removed}"),
    }
    Ok(())
}

fn detach_alone(run_dir: &Path, pin_dir: &Path) -> Result<String, AgentError> {
    let lock = match run_dir.exists() {
        false => None,
        true => Some(doors::lock(run_dir)?.ok_or_else(|| AgentError::Occupied {
            run_dir: run_dir.into(),
            reason: "an agent is starting or ending; try again".into(),
        })?),
    };
    let cgroup = cgroup2_mount()?;
    cgroups::remove_abandoned(&cgroup);
    let layout = Layout {
        pin_dir: pin_dir.into(),
        cgroup,
    };
    let removed = kernel::describe(Capture::detach(&layout)?);
    start::remove_traces(run_dir);
    drop(lock);
    Ok(removed)
}

/// Which pod is meant on a command line.
///
/// # Errors
/// When a path is none.
pub fn which(uid: Option<String>, netns: Option<&Path>) -> Result<Which, CommandError> {
    match (uid, netns) {
        (Some(uid), _) => Ok(Which::Uid(uid)),
        (None, netns) => Place::absolute(netns.unwrap_or(Path::new(""))).map(Which::Place),
    }
}

fn show_pod(pod: &PodView) {
    println!("{}  {}", pod.uid, pod.state.word());
    println!("  netns      {} (cookie {})", pod.netns, pod.cookie);
    println!("  addresses  {}", words(&pod.addresses));
    println!("  outbound   {}", words(&pod.outbound));
    println!("  inbound    {}", words(&pod.inbound));
    println!("  since      {}", pod.since);
}

fn show_proxy(proxy: &ProxyView, pods: usize) {
    let serves = if proxy.draining { "drains" } else { "serves" };
    let (pid, build, ready) = (proxy.pid, &proxy.build, proxy.ready);
    println!(
        "proxy {pid} ({build}) {serves} {ready} of {pods} pods, cgroup {}",
        proxy.cgroup.display()
    );
}

fn words<T: ToString>(items: &[T]) -> String {
    match items.is_empty() {
        true => "none".to_owned(),
        false => items.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
    }
}
