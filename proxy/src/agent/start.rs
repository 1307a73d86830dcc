//! Starting an agent, and what it leaves at its end.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::Instant;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::PollFlags;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use underpass_config::{CaptureSettings, NodeSettings};
use underpass_ebpf::{Layout, cgroup_id, cgroup2_mount};

use super::cgroups::{self, Hierarchy};
use super::doors::Doors;
use super::joining::Joining;
use super::kernel::{Kernel, RealKernel};
use super::options::AgentOptions;
use super::proxies::{Namespaces, Services};
use super::state::StateFile;
use super::supervisor::Supervisor;
use super::takeover::{Claim, Estate};
use super::worker::Worker;
use super::{Agent, AgentError, End, Event, Settings, control, order};
use crate::run::Given;

/// Runs an agent until it is told to stop, or another takes over.
///
/// # Errors
/// When it cannot start.
pub fn run(options: &AgentOptions) -> Result<(), AgentError> {
    let process = Process::prepare(options)?;
    let mut agent = process.start(options, true)?;
    let _signals = process.watch_signals(&agent.sender)?;
    for pod in &options.pods {
        if let Err(error) = agent.enrol(pod.workload.as_str(), (&pod.place).into()) {
            tracing::error!(workload = pod.workload.as_str(), %error, "a configured pod is not enrolled");
        }
    }
    tracing::info!(run_dir = %options.run_dir.display(), pods = agent.pods.len(), "the agent is ready");
    let end = agent.serve()?;
    agent.leave(end);
    process.leave();
    Ok(())
}

/// Runs an agent with a proxy as its child, until it is told to stop.
///
/// # Errors
/// When either cannot start.
pub fn run_with_proxy(given: Given, node: &NodeSettings) -> Result<(), AgentError> {
    let mut options = AgentOptions::new(Some(node));
    let user = options
        .proxy_user
        .get_or_insert_with(|| CaptureSettings::DEFAULT_PROXY_USER.into())
        .clone();
    let keep = node.capture.as_ref().is_some_and(|capture| capture.keep);
    let process = Process::prepare(&options)?;
    let mut agent = process.start(&options, false)?;
    let _signals = process.watch_signals(&agent.sender)?;
    let outcome = agent.enrol_configured(&options).and_then(|()| {
        let socket = options.run_dir.join("agent.sock");
        agent.supervisor = Some(Supervisor::new(given, socket, user, keep));
        agent.serve()
    });
    if let Some(mut supervisor) = agent.supervisor.take() {
        supervisor.end();
        cgroups::remove_abandoned(agent.settings.hierarchy.root());
    }
    let end = match (&outcome, keep) {
        (Ok(end), _) => *end,
        (Err(_), true) => End::Stopped,
        (Err(_), false) => agent.detach().map_or(End::Stopped, |_| End::Detached),
    };
    agent.leave(end);
    process.leave();
    outcome.map(drop)
}

impl Agent {
    fn enrol_configured(&mut self, options: &AgentOptions) -> Result<(), AgentError> {
        options.pods.iter().try_for_each(|pod| {
            let uid = pod.workload.as_str();
            let enrolled = self.enrol(uid, (&pod.place).into());
            enrolled.map_err(|source| AgentError::Pod {
                uid: uid.to_owned(),
                source,
            })
        })
    }

    /// An agent with its sockets, that has taken up what another left or hands over.
    pub(super) fn new(settings: Settings, kernel: Box<dyn Kernel>, claim: Claim) -> Result<Self, AgentError> {
        let (sender, events) = channel();
        let (doors, estate) = match claim {
            Claim::Free(lock) => (Doors::open(&settings.run_dir, lock, settings.proxy_uid)?, None),
            Claim::Inherited(inheritance) => {
                let (doors, estate) = inheritance.into_parts();
                (doors, Some(estate))
            }
        };
        let namespaces: Arc<Namespaces> = Arc::default();
        let services = Services {
            joining: Arc::new(Joining::new(kernel.tier(), namespaces.clone())?),
            namespaces,
        };
        let mut agent = Self {
            state: StateFile::of(&settings.run_dir),
            strays_until: Some(Instant::now() + settings.refuse_after),
            settings,
            kernel,
            pods: BTreeMap::new(),
            proxies: BTreeMap::new(),
            next_proxy: 0,
            services,
            doors,
            events,
            sender,
            supervisor: None,
        };
        agent.kernel.exempt(agent.settings.own_cgroup)?;
        match estate {
            Some(estate) => agent.take_up(estate)?,
            None => agent.take_up_state()?,
        }
        agent.resume()?;
        Ok(agent)
    }

    fn take_up(&mut self, estate: Estate) -> Result<(), AgentError> {
        self.inherit(estate)
    }

    fn take_up_state(&mut self) -> Result<(), AgentError> {
        for record in self.state.load()? {
            self.restore(record);
        }
        for (cookie, _) in self.kernel.pods()? {
            if !self.pods.contains_key(&cookie) {
                let advice = "the kernel captures a pod that is not in the state; it stays refused until it is enrolled again, or \
                              `underpass detach`";
                tracing::warn!(cookie, advice);
            }
        }
        Ok(self.save()?)
    }

    /// What an agent leaves in its run directory.
    fn leave(&mut self, end: End) {
        let run_dir = &self.settings.run_dir;
        match end {
            End::Yielded => {}
            End::Stopped => remove_sockets(run_dir),
            End::Detached => remove_traces(run_dir),
        }
        match end {
            End::Stopped if !self.pods.is_empty() => {
                tracing::warn!(
                    pods = self.pods.len(),
                    "the agent ends; its pods are refused until one starts again"
                );
            }
            _ => tracing::info!(?end, "the agent ends"),
        }
    }
}

fn remove_sockets(run_dir: &Path) {
    for socket in [run_dir.join("agent.sock"), control::path(run_dir)] {
        let _ = fs::remove_file(socket);
    }
}

/// Removes everything that an agent makes in a run directory, and the directory if nothing else is in it.
pub(super) fn remove_traces(run_dir: &Path) {
    StateFile::of(run_dir).remove();
    remove_sockets(run_dir);
    let _ = fs::remove_file(run_dir.join("agent.lock"));
    let _ = fs::remove_dir(run_dir);
}

/// What has to be right with the process before an agent can run in it.
struct Process {
    hierarchy: Hierarchy,
    attach: PathBuf,
    /// Where it is now.
    cgroup: PathBuf,
    /// Where it was before it moved to a cgroup of its own.
    former: Option<PathBuf>,
    signals: SigSet,
}

impl Process {
    fn prepare(options: &AgentOptions) -> Result<Self, AgentError> {
        // Before the first thread: threads inherit the mask, and a signal must find none without it.
        let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP]);
        signals.thread_block().map_err(io::Error::from)?;
        raise_descriptor_limit();
        let hierarchy = Hierarchy::at(cgroup2_mount()?);
        let attach = match &options.cgroup {
            None => hierarchy.root().to_owned(),
            Some(path) => path.canonicalize().map_err(|source| AgentError::NoSuchCgroup {
                path: path.clone(),
                source,
            })?,
        };
        cgroups::remove_abandoned(hierarchy.root());
        cgroups::remove_abandoned(&attach);
        let own = hierarchy.of(std::process::id())?;
        // What is in the agent's cgroup goes past the programs, and the programs must see the sockets that it makes for the proxy.
        let fits = own.starts_with(&attach) && own != attach && cgroups::processes(&own) == [std::process::id()];
        let (cgroup, former) = match fits && !options.own_cgroup {
            true => (own, None),
            false => (cgroups::move_to_own(&attach)?, Some(own)),
        };
        Ok(Self {
            hierarchy,
            attach,
            cgroup,
            former,
            signals,
        })
    }

    fn start(&self, options: &AgentOptions, may_take_over: bool) -> Result<Agent, AgentError> {
        let cgroup_of = |path: &Path| {
            cgroup_id(path).map_err(|source| AgentError::NoSuchCgroup {
                path: path.into(),
                source,
            })
        };
        let settings = Settings {
            run_dir: options.run_dir.clone(),
            hierarchy: self.hierarchy.clone(),
            attach: self.attach.clone(),
            own_cgroup: cgroup_of(&self.cgroup)?,
            proxy_uid: options.proxy_uid()?,
            refuse_after: options.refuse_after,
            keepalive: options.keepalive,
        };
        let kubelets: Vec<u64> = options
            .kubelet_cgroups
            .iter()
            .map(|path| cgroup_of(path))
            .collect::<Result<_, _>>()?;
        let claim = Claim::stake(&options.run_dir, may_take_over)?;
        let layout = Layout {
            pin_dir: options.pin_dir.clone(),
            cgroup: self.attach.clone(),
        };
        let kernel = RealKernel::start(layout, options.untested_variant)?;
        order::check(&kernel, &self.attach, &options.pin_dir)?;
        kubelets
            .into_iter()
            .try_for_each(|cgroup| kernel.trust_probes_of(cgroup))?;
        Agent::new(settings, Box::new(kernel), claim)
    }

    fn watch_signals(&self, events: &Sender<Event>) -> io::Result<Worker> {
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let signals = SignalFd::with_flags(&self.signals, flags)?;
        let events = events.clone();
        Worker::start("signals", move |stop| {
            while stop.wait(&signals, PollFlags::IN) {
                let Ok(Some(received)) = signals.read_signal() else {
                    continue;
                };
                let signal = i32::try_from(received.ssi_signo)
                    .ok()
                    .and_then(|number| Signal::try_from(number).ok());
                let _ = events.send(Event::Signalled(signal.unwrap_or(Signal::SIGTERM)));
            }
        })
    }

    /// Goes back to where the process came from, so that its own cgroup can go.
    fn leave(&self) {
        if let Some(former) = &self.former
            && fs::write(former.join("cgroup.procs"), "0").is_ok()
        {
            let _ = fs::remove_dir(&self.cgroup);
        }
    }
}

/// A pod needs five descriptors.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the limit of open files could not be raised");
    }
}
