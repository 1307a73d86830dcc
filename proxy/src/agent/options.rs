//! What an agent is told on its command line and by the `capture` section of a configuration.

use std::path::PathBuf;
use std::time::Duration;

use nix::unistd::User;
use underpass_config::{CaptureSettings, CapturedPod, Keepalive, NodeSettings};
use underpass_ebpf::tier::Variant;

use super::AgentError;

/// How an agent runs.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    /// Where its sockets and its state are.
    pub run_dir: PathBuf,
    /// Where programs and maps are pinned.
    pub pin_dir: PathBuf,
    /// Where the programs are attached; `None`: at the root of the cgroup hierarchy.
    pub cgroup: Option<PathBuf>,
    /// Cgroups whose connections to pods are probes.
    pub kubelet_cgroups: Vec<PathBuf>,
    /// The user whose processes may be proxies, besides root; a name or a number.
    pub proxy_user: Option<String>,
    /// How long connections wait for a proxy before they are refused.
    pub refuse_after: Duration,
    /// Pods that are enrolled from the start.
    pub pods: Vec<CapturedPod>,
    /// Whether to move to a cgroup of its own in any case.
    pub own_cgroup: bool,
    /// How flows are moved to the kernel, whatever the self-test finds; for tests.
    pub untested_variant: Option<Variant>,
    /// What accepted connections inherit.
    pub keepalive: Keepalive,
    /// The filter of the log.
    pub log: String,
}

impl AgentOptions {
    /// What the configuration says; without one, the defaults.
    pub fn new(node: Option<&NodeSettings>) -> Self {
        let defaults = CaptureSettings::default();
        let capture = node.and_then(|node| node.capture.as_ref()).unwrap_or(&defaults);
        Self {
            run_dir: capture.run_dir.clone(),
            pin_dir: capture.pin_dir.clone(),
            cgroup: capture.cgroup.clone(),
            kubelet_cgroups: capture.kubelet_cgroups.clone(),
            proxy_user: capture.proxy_user.as_deref().map(str::to_owned),
            refuse_after: capture.refuse_after,
            pods: capture.pods.clone(),
            own_cgroup: false,
            untested_variant: None,
            keepalive: node.map(|node| node.keepalive).unwrap_or_default(),
            log: node.map_or_else(|| "info".to_owned(), |node| node.log.to_string()),
        }
    }

    /// The proxy's user's number.
    ///
    /// # Errors
    /// When there is no such user.
    pub fn proxy_uid(&self) -> Result<Option<u32>, AgentError> {
        let user = self.proxy_user.as_deref();
        user.map(|user| find_user(user).map(|user| user.uid.as_raw()))
            .transpose()
    }
}

/// The user of a name or a number.
///
/// # Errors
/// When there is none.
pub fn find_user(user: &str) -> Result<User, AgentError> {
    let found = match user.parse() {
        Ok(number) => User::from_uid(nix::unistd::Uid::from_raw(number)),
        Err(_) => User::from_name(user),
    };
    let found = found.map_err(std::io::Error::from)?;
    found.ok_or_else(|| AgentError::NoSuchUser(user.into()))
}
