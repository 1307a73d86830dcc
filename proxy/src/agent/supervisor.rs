//! The proxy as a child of the agent (`underpass run` with a `capture` section), from both sides.
//!
//! The child gives up what it was born with by itself, before it does anything else: it moves to a cgroup of its own, takes the
//! proxy's user, and asks to be ended with its parent. So nothing has to happen between fork and exec.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{Pid, setgid, setgroups, setuid};
use rustix::event::PollFlags;
use rustix::process::{Pid as RustixPid, PidfdFlags, pidfd_open};

use super::options::find_user;
use super::worker::Worker;
use super::{Agent, AgentError, End, Event, cgroups};
use crate::run::Given;

/// Between the end of a proxy and its next start; doubled with each failure.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// A proxy that has run for this long has not failed at its start.
const PROVEN: Duration = Duration::from_secs(10);

/// The proxy of this agent.
#[derive(Debug)]
pub struct Supervisor {
    given: Given,
    agent: PathBuf,
    user: String,
    keep: bool,
    child: Option<Running>,
    pause: Duration,
    restart_at: Option<Instant>,
    /// Whether any proxy of this agent has ever said Hello.
    pub(super) greeted: bool,
    ending: bool,
}

#[derive(Debug)]
struct Running {
    child: Child,
    since: Instant,
    /// Sees it end.
    _watch: Worker,
}

impl Supervisor {
    /// A proxy that is given the same as its agent, as this user, at this agent's socket. `keep`: its end leaves pods enrolled.
    pub fn new(given: Given, agent: PathBuf, user: String, keep: bool) -> Self {
        Self {
            given,
            agent,
            user,
            keep,
            child: None,
            pause: FIRST_PAUSE,
            restart_at: Some(Instant::now()),
            greeted: false,
            ending: false,
        }
    }

    /// For tests of what needs no proxy.
    #[cfg(test)]
    pub fn never_start(&mut self) {
        self.restart_at = None;
    }

    /// When the proxy is to be started again.
    pub fn restart_at(&self) -> Option<Instant> {
        self.restart_at
    }

    fn command(&self) -> Command {
        let mut command = Command::new("/proc/self/exe");
        command.arg0("underpass").arg("proxy").arg("--own-cgroup");
        if let Some(file) = self.given.origin.file() {
            command.arg("--config").arg(file);
        }
        command.arg("--agent").arg(&self.agent);
        command.arg("--user").arg(&self.user);
        command.arg("--parent").arg(std::process::id().to_string());
        command.arg("--role").arg(self.given.premises.role.word());
        if let Some(admin) = self.given.admin {
            command.arg("--admin").arg(admin.to_string());
        }
        command.stdin(Stdio::null());
        command
    }

    fn signal(&self, signal: Signal) {
        let Some(running) = &self.child else { return };
        if let Ok(pid) = i32::try_from(running.child.id()) {
            // It is gone, and its end is an event that is yet to come.
            let _ = nix::sys::signal::kill(Pid::from_raw(pid), signal);
        }
    }

    /// Ends the proxy and waits for it.
    pub fn end(&mut self) {
        self.signal(Signal::SIGTERM);
        if let Some(mut running) = self.child.take() {
            let _ = running.child.wait();
        }
    }
}

impl Agent {
    /// Starts the proxy if that is due.
    pub(super) fn restart_child(&mut self, now: Instant) -> Result<(), AgentError> {
        let Some(supervisor) = &mut self.supervisor else {
            return Ok(());
        };
        if supervisor.restart_at.is_none_or(|at| now < at) {
            return Ok(());
        }
        supervisor.restart_at = None;
        let child = supervisor.command().spawn()?;
        let pid = i32::try_from(child.id()).ok().and_then(RustixPid::from_raw);
        let pid = pid.ok_or_else(|| std::io::Error::other("a process id out of range"))?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(std::io::Error::from)?;
        let sender = self.sender.clone();
        let watch = Worker::start("child", move |stop| {
            if stop.wait(&pidfd, PollFlags::IN) {
                let _ = sender.send(Event::ChildEnded);
            }
        })?;
        supervisor.child = Some(Running {
            child,
            since: now,
            _watch: watch,
        });
        Ok(())
    }

    /// What the end of the proxy means: the end of all, if that was asked for, or another proxy.
    pub(super) fn child_ended(&mut self) -> Result<Option<End>, AgentError> {
        let Some(supervisor) = &mut self.supervisor else {
            return Ok(None);
        };
        let Some(mut running) = supervisor.child.take() else {
            return Ok(None);
        };
        let status = running.child.wait()?;
        cgroups::remove_abandoned(self.settings.hierarchy.root());
        if supervisor.ending {
            return Ok(Some(self.end_run()));
        }
        if !supervisor.greeted {
            return Err(AgentError::Proxy {
                user: supervisor.user.clone(),
                how: status.to_string(),
            });
        }
        if running.since.elapsed() >= PROVEN {
            supervisor.pause = FIRST_PAUSE;
        }
        supervisor.restart_at = Some(Instant::now() + supervisor.pause);
        tracing::warn!(%status, again_in = ?supervisor.pause, "the proxy ended; starting another");
        supervisor.pause = (supervisor.pause * 2).min(LONGEST_PAUSE);
        Ok(None)
    }

    /// Does what a signal asks: stops the agent, after its proxy if it has one; the proxy drains first, unless it is told twice.
    pub(super) fn stop(&mut self, signal: Signal) -> Option<End> {
        if signal == Signal::SIGHUP {
            // The proxy reads its configuration again; an agent reads it at its start.
            self.supervisor.iter().for_each(|supervisor| supervisor.signal(signal));
            return None;
        }
        tracing::info!(%signal, "stopping");
        let Some(supervisor) = &mut self.supervisor else {
            return Some(End::Stopped);
        };
        supervisor.restart_at = None;
        let again = std::mem::replace(&mut supervisor.ending, true);
        match supervisor.child {
            None => return Some(self.end_run()),
            Some(_) if again => supervisor.signal(Signal::SIGKILL),
            Some(_) => supervisor.signal(Signal::SIGTERM),
        }
        None
    }

    /// What `run` leaves behind: nothing, unless it was asked to.
    fn end_run(&mut self) -> End {
        if self.supervisor.as_ref().is_some_and(|supervisor| supervisor.keep) {
            return End::Stopped;
        }
        match self.detach() {
            Ok(_) => End::Detached,
            Err(error) => {
                tracing::error!(%error, "capture could not be ended; pods stay refused until `underpass detach`");
                End::Stopped
            }
        }
    }
}

/// What a proxy does to itself before it starts.
#[derive(Clone, Debug, Default)]
pub struct ProxyDuties {
    /// Move to a cgroup of its own.
    pub own_cgroup: bool,
    /// Become this user.
    pub user: Option<String>,
    /// End with this process, the parent.
    pub parent: Option<u32>,
}

/// Does them.
///
/// # Errors
/// When one of them cannot be done; then the proxy must not start.
pub fn become_proxy(duties: &ProxyDuties) -> Result<(), AgentError> {
    if duties.own_cgroup {
        cgroups::move_to_own(&underpass_ebpf::cgroup2_mount()?)?;
    }
    if let Some(user) = &duties.user {
        let user = find_user(user)?;
        if user.uid != nix::unistd::geteuid() {
            let become_user = || {
                setgroups(&[user.gid])?;
                setgid(user.gid)?;
                setuid(user.uid)
            };
            become_user().map_err(std::io::Error::from)?;
        }
    }
    if let Some(parent) = duties.parent {
        // The agent's mask is inherited through fork and exec.
        SigSet::all().thread_unblock().map_err(std::io::Error::from)?;
        // After the change of user, which would undo it (prctl(2)).
        let signal = Some(rustix::process::Signal::TERM);
        rustix::process::set_parent_process_death_signal(signal).map_err(std::io::Error::from)?;
        if std::os::unix::process::parent_id() != parent {
            return Err(std::io::Error::other("the agent that started this proxy is gone").into());
        }
    }
    Ok(())
}
