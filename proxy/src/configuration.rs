//! Configuration changes, applied whole or not at all.
//!
//! A new file is parsed and validated, everything that can fail because of the machine (listeners, the access log) is opened, and
//! only then is anything put in force. What was rejected, and why, is in the log, in
//! `underpass_config_updates_total{result="rejected"}` and in `/config_dump` until an update succeeds.

mod origin;

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use notify::event::{AccessKind, AccessMode, ModifyKind};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use underpass_config::http::Http;
use underpass_config::{Config, ConfigError, NodeSettings, Premises};

pub use origin::{NeedsFile, Origin};

use crate::cores::Cores;
use crate::http::pool::originations::NotReady;
use crate::listener::{ListenError, OpenListener, RunningListener};
use crate::logging::{LogFilter, LogFilterError};
use crate::node::Node;
use crate::telemetry::AccessLogError;

/// Changes of a file that come in such a burst are read once: editors and `cp` write in several steps.
const SETTLE: Duration = Duration::from_millis(10);

/// Why a configuration update was not applied.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// The file could not be read.
    #[error("{origin} cannot be read: {source}; the configuration in force stays")]
    Read {
        /// The file.
        origin: Origin,
        /// Why.
        source: io::Error,
    },
    /// The file's content is not a valid configuration.
    #[error(transparent)]
    Invalid(#[from] ConfigError),
    /// A listener's address could not be bound.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The access log could not be opened.
    #[error(transparent)]
    AccessLog(#[from] AccessLogError),
    /// A file of a cluster's TLS could not be used.
    #[error(transparent)]
    Tls(#[from] NotReady),
    /// The log filter could not be understood.
    #[error(transparent)]
    LogFilter(#[from] LogFilterError),
    /// The change needs a new process.
    #[error("node.{setting} cannot change while the proxy runs: restart it, or set {setting} back to {old}")]
    NeedsRestart {
        /// The setting.
        setting: &'static str,
        /// Its value in force.
        old: String,
    },
}

/// A rejected update, as the admin view shows it.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Rejection {
    /// When, in RFC 3339.
    pub time: String,
    /// Why.
    pub error: String,
}

/// Enough of a file's metadata to tell that it is another, or another content, without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    length: u64,
    modified_ns: (i64, i64),
}

impl Stamp {
    /// Whether the last change is so long ago that another one would have another time: the kernel's clock for files may
    /// stand still for a tick (before 6.13), and a file be changed twice in it.
    fn is_settled(&self) -> bool {
        let changed = Duration::from_secs(self.modified_ns.0.unsigned_abs());
        SystemTime::UNIX_EPOCH
            .elapsed()
            .is_ok_and(|now| now > changed + Duration::from_secs(2))
    }
}

/// Equal for equal texts, and different for different ones but with a chance of 2⁻⁶⁴.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Fingerprint(u64);

impl Fingerprint {
    fn of(text: &str, hasher: &RandomState) -> Self {
        Self(hasher.hash_one(text))
    }
}

/// Whether a file that looks unchanged is read all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reload {
    /// Something in the file's folder changed.
    IfChanged,
    /// The operator asks (SIGHUP): what failed for the machine's sake may succeed now.
    Always,
}

/// The one that applies changes.
#[derive(Debug)]
pub struct Configuration {
    origin: Origin,
    premises: Premises,
    node: Arc<Node>,
    cores: Arc<Cores>,
    log: LogFilter,
    hasher: RandomState,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Stands for the file's content when it was last looked at, in force or rejected. The text itself may have megabytes.
    content: Fingerprint,
    /// What the file system said of it then.
    stamp: Option<Stamp>,
    running: Vec<RunningListener>,
    rejected: Option<Rejection>,
}

impl Configuration {
    /// Opens what `node`'s first snapshot asks for, whose text was `text` and read on these premises, as all that follow.
    ///
    /// # Errors
    /// When a listener cannot be bound; then none is left open.
    pub fn start(
        origin: Origin,
        text: &str,
        premises: Premises,
        node: Arc<Node>,
        cores: Arc<Cores>,
        log: LogFilter,
    ) -> Result<Arc<Self>, UpdateError> {
        let config = node.snapshot().config.clone();
        node.http.originations.prepare(&config.http)?;
        node.http.leases.prepare(&config, node.identities.as_ref());
        node.telemetry.keep(&config.http);
        let settings = node.snapshot().config.node.clone();
        let opened = open_listeners(&settings, &[])?;
        let running = opened.into_iter().map(|l| l.run(node.clone(), cores.clone())).collect();
        let hasher = RandomState::new();
        let content = Fingerprint::of(text, &hasher);
        let state = Mutex::new(State {
            content,
            stamp: None,
            running,
            rejected: None,
        });
        Ok(Arc::new(Self {
            origin,
            premises,
            node,
            cores,
            log,
            hasher,
            state,
        }))
    }

    /// The last update, if it was rejected.
    pub fn last_rejected(&self) -> Option<Rejection> {
        self.state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .rejected
            .clone()
    }

    /// Reads the file again and applies it. Takes as long as parsing does: not for a core's thread.
    pub fn reload(&self, when: Reload) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if self.node.is_draining() {
            return;
        }
        let before = stamp(&self.origin);
        if when == Reload::IfChanged && before.is_some_and(|b| b.is_settled() && Some(b) == state.stamp) {
            return;
        }
        let text = match self.origin.read() {
            Ok(text) => text,
            // Between the steps of being replaced a file may be missing; what replaces it is seen next.
            Err(source) if source.kind() == io::ErrorKind::NotFound && when == Reload::IfChanged => return,
            Err(source) => {
                return self.reject(
                    &mut state,
                    UpdateError::Read {
                        origin: self.origin.clone(),
                        source,
                    },
                );
            }
        };
        if stamp(&self.origin) != before && when == Reload::IfChanged {
            // It changed while it was read; the event that completes it is still to come.
            return;
        }
        state.stamp = before;
        let content = Fingerprint::of(&text, &self.hasher);
        if when == Reload::IfChanged && content == state.content {
            return;
        }
        match self.apply(&mut state, &text) {
            Ok(()) => {
                state.rejected = None;
                self.node.telemetry.count_config_update(true);
            }
            Err(error) => self.reject(&mut state, error),
        }
        state.content = content;
    }

    fn reject(&self, state: &mut State, error: UpdateError) {
        tracing::error!(file = %self.origin, "configuration update rejected, the last good one stays in force: {error}");
        let time = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
        state.rejected = Some(Rejection {
            time,
            error: error.to_string(),
        });
        self.node.telemetry.count_config_update(false);
    }

    fn apply(&self, state: &mut State, text: &str) -> Result<(), UpdateError> {
        let snapshot = self.node.snapshot();
        let old = &snapshot.config.node;
        let (config, mut touched) = snapshot.config.updated_given(text, &self.premises)?;
        let new = config.node.clone();
        refuse_what_needs_a_restart(old, &new)?;
        // Addresses mean other workloads in another network.
        touched.everything |= old.network != new.network;
        let filter = self.log.parse(&new.log)?;
        let access_log = self.node.telemetry.access_log.prepare(&new)?;
        let kept: Vec<_> = state.running.iter().map(RunningListener::address).collect();
        self.node.http.originations.prepare(&config.http)?;
        let opened = open_listeners(&new, &kept)?;

        // Nothing below fails.
        self.node.http.leases.prepare(&config, self.node.identities.as_ref());
        self.node.telemetry.prepare(&config.http);
        if new.log != old.log {
            self.log.set(filter);
        }
        let (workloads, services, policies) = (touched.workloads.len(), touched.services.len(), touched.policies.len());
        let denied = self
            .node
            .publish(|in_force| (keep_what_others_told(config, in_force), touched));
        let config = self.node.snapshot().config.clone();
        self.node.http.originations.keep(&config.http);
        self.node.http.leases.keep(&config);
        self.node.http.keep_at_most(new.limits.idle_http_connections);
        if let Some(prepared) = access_log {
            self.node.telemetry.access_log.replace(prepared);
        }
        self.node.telemetry.keep(&config.http);
        state.running.retain(|running| change_or_close(running, &new));
        let started = opened
            .into_iter()
            .map(|opened| opened.run(self.node.clone(), self.cores.clone()));
        state.running.extend(started);
        tracing::info!(workloads, services, policies, denied, "configuration update applied");
        Ok(())
    }

    /// Closes all listeners; what waits in their queues is still accepted. From now on connections are refused.
    pub fn close_listeners(&self) {
        self.state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .running
            .clear();
    }

    /// Watches the file, if there is one, and reloads it when it changes, until dropped. The folder is what is watched: files are replaced
    /// by renaming, and a Kubernetes ConfigMap by renaming a symbolic link beside them.
    ///
    /// # Errors
    /// When inotify has no room for another watch.
    pub fn watch(self: &Arc<Self>) -> notify::Result<Option<RecommendedWatcher>> {
        let Some(path) = self.origin.file() else {
            return Ok(None);
        };
        let (changed, mut changes) = mpsc::channel(1);
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if event.is_ok_and(|event| completes_a_file(event.kind)) {
                // One pending notice is enough: what it causes reads the file as it is then.
                let _ = changed.try_send(());
            }
        })?;
        let folder = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        watcher.watch(folder, RecursiveMode::NonRecursive)?;
        let configuration = self.clone();
        tokio::spawn(async move {
            // What changed between the first reading and the watch is seen now.
            configuration.reload_aside(Reload::IfChanged).await;
            while changes.recv().await.is_some() {
                tokio::time::sleep(SETTLE).await;
                configuration.reload_aside(Reload::IfChanged).await;
            }
        });
        Ok(Some(watcher))
    }

    /// [`Configuration::reload`], on a thread where it holds nothing up.
    pub async fn reload_aside(self: &Arc<Self>, when: Reload) {
        let configuration = self.clone();
        let control = tokio::runtime::Handle::current();
        let reload = tokio::task::spawn_blocking(move || {
            let _entered = control.enter();
            configuration.reload(when);
        });
        if reload.await.is_err() {
            tracing::error!("applying a configuration update panicked; the last good one stays in force");
        }
    }
}

/// Whether a file may be whole now: it was closed by its writer, or renamed or linked into place. A file that is being
/// written is not read: half a configuration may be valid, and lack the policy that comes last.
fn completes_a_file(kind: EventKind) -> bool {
    matches!(
        kind,
        EventKind::Access(AccessKind::Close(AccessMode::Write)) | EventKind::Modify(ModifyKind::Name(_))
    )
}

fn refuse_what_needs_a_restart(old: &NodeSettings, new: &NodeSettings) -> Result<(), UpdateError> {
    if old.admin != new.admin {
        return Err(UpdateError::NeedsRestart {
            setting: "admin",
            old: old.admin.to_string(),
        });
    }
    for (setting, changed) in [
        ("role", old.role != new.role),
        ("metrics", old.metrics != new.metrics),
        ("readiness", old.readiness != new.readiness),
        ("istiod", old.istiod != new.istiod),
        ("identities", old.identities != new.identities),
    ] {
        if changed {
            let old = "what it was".to_owned();
            return Err(UpdateError::NeedsRestart { setting, old });
        }
    }
    if old.workers != new.workers {
        let old = old
            .workers
            .map_or_else(|| "its default".to_owned(), |workers| workers.to_string());
        return Err(UpdateError::NeedsRestart {
            setting: "workers",
            old,
        });
    }
    Ok(())
}

/// The mesh that istiod tells of, and the addresses that DNS does, may have changed while the file was read.
fn keep_what_others_told(config: Config, in_force: &Config) -> Config {
    let mesh = match config.node.istiod {
        Some(_) => in_force.mesh.clone(),
        None => config.mesh,
    };
    let http = match config.node.waypoint() {
        Some(_) => in_force.http.clone(),
        None => Arc::new(Http::clone(&config.http).continuing(&in_force.http)),
    };
    Config { mesh, http, ..config }
}

/// Gives a running listener its new settings. False if its address is no longer listened on.
fn change_or_close(running: &RunningListener, new: &NodeSettings) -> bool {
    let mut listeners = new.all_listeners().into_iter();
    let Some(settings) = listeners.find(|listener| listener.address == running.address()) else {
        return false;
    };
    running.change(settings, &new.keepalive);
    true
}

/// Opens the listeners whose addresses are not `kept`. None is left open when one fails.
fn open_listeners(settings: &NodeSettings, kept: &[SocketAddr]) -> Result<Vec<OpenListener>, ListenError> {
    let mut listeners = settings.all_listeners();
    listeners.retain(|listener| !kept.contains(&listener.address));
    let opening = listeners.iter();
    opening
        .map(|listener| OpenListener::open(listener, &settings.keepalive))
        .collect()
}

fn stamp(origin: &Origin) -> Option<Stamp> {
    let metadata = std::fs::metadata(origin.file()?).ok()?;
    Some(Stamp {
        device: metadata.dev(),
        inode: metadata.ino(),
        length: metadata.len(),
        modified_ns: (metadata.mtime(), metadata.mtime_nsec()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// While the file was read, istiod has told of a workload.
    #[test]
    fn a_file_does_not_undo_what_istiod_has_told_meanwhile() {
        let mut in_force = Config::from_yaml("node: {istiod: {}}").unwrap();
        let (from_file, _) = in_force.updated("node: {istiod: {}, log: debug}").unwrap();
        let elsewhere = Config::from_yaml("workloads: [{name: a, namespace: b}]").unwrap().mesh;
        in_force.mesh = elsewhere;
        let next = keep_what_others_told(from_file, &in_force);
        assert_eq!((next.mesh.workloads().count(), &*next.node.log), (1, "debug"));
        let alone = Config::from_yaml("node: {}").unwrap();
        assert_eq!(keep_what_others_told(alone, &in_force).mesh.workloads().count(), 0);
    }
}
