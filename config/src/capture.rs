//! Capture as the configuration file asks for it: which pods of this node, and how.

use std::path::PathBuf;
use std::time::Duration;

use crate::{Text, WorkloadUid};

/// How connections of this node's pods are captured. Read when the agent starts; a change needs a restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaptureSettings {
    /// The cgroup (v2) whose processes may be captured, at best the parent of all pods. Default: the root of the hierarchy.
    pub cgroup: Option<PathBuf>,
    /// Cgroups whose connections to pods are probes and pass unjudged, at best only the kubelet's.
    pub kubelet_cgroups: Vec<PathBuf>,
    /// Pods that are captured from the start. Others may come by `underpass enrol`.
    pub pods: Vec<CapturedPod>,
    /// The user as whom the proxy runs, by name or number. Default: `nobody`.
    pub proxy_user: Option<Text>,
    /// Where the agent has its sockets and its state. Default `/run/underpass`.
    pub run_dir: PathBuf,
    /// Where the kernel's programs and maps are pinned (in a bpf file system). Default `/sys/fs/bpf/underpass`.
    pub pin_dir: PathBuf,
    /// How long connections wait for a proxy when there is none, before they are refused. Default 10 s.
    pub refuse_after: Duration,
    /// Whether pods stay enrolled (and without network, until it starts again) when `underpass run` ends. Default false.
    pub keep: bool,
}

impl CaptureSettings {
    /// Default of [`CaptureSettings::run_dir`].
    pub const DEFAULT_RUN_DIR: &'static str = "/run/underpass";
    /// Default of [`CaptureSettings::pin_dir`].
    pub const DEFAULT_PIN_DIR: &'static str = "/sys/fs/bpf/underpass";
    /// Default of [`CaptureSettings::refuse_after`].
    pub const DEFAULT_REFUSE_AFTER: Duration = Duration::from_secs(10);
    /// The user as whom the proxy runs unless the file says otherwise.
    pub const DEFAULT_PROXY_USER: &'static str = "nobody";
}

impl Default for CaptureSettings {
    fn default() -> Self {
        Self {
            cgroup: None,
            kubelet_cgroups: Vec::new(),
            pods: Vec::new(),
            proxy_user: None,
            run_dir: Self::DEFAULT_RUN_DIR.into(),
            pin_dir: Self::DEFAULT_PIN_DIR.into(),
            refuse_after: Self::DEFAULT_REFUSE_AFTER,
            keep: false,
        }
    }
}

/// One pod that is captured from the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CapturedPod {
    /// Its network namespace.
    pub place: PodPlace,
    /// Which workload of the mesh it is.
    pub workload: WorkloadUid,
}

/// How a network namespace is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodPlace {
    /// A file that stands for it, such as `/run/netns/NAME`.
    Netns(PathBuf),
    /// A process that lives in it.
    Pid(u32),
}
