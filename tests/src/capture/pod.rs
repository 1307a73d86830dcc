//! A pod that can be enrolled: a host of the node with a name, a path of its namespace, and a cgroup.

use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::inside::Inside;
use crate::world::Host;

/// A pod of a [`super::CaptureNode`]. Sockets and programs of the [`Host`] that it is begin inside it.
pub struct Pod {
    host: Host,
    inside: Arc<Inside>,
    name: String,
    path: PathBuf,
}

impl Pod {
    pub(super) fn new(network: &Host, name: &str, path: PathBuf, cgroup: &Path) -> Self {
        let inside = Arc::new(Inside::start(network.namespace(), cgroup));
        Self {
            host: network.inside(inside.clone()),
            inside,
            name: name.to_owned(),
            path,
        }
    }

    /// `namespace/name` of its workload.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The workload's uid, as a configuration has it that doesn't set one.
    pub fn uid(&self) -> String {
        format!("Kubernetes//Pod/{}", self.name)
    }

    /// Where its network namespace is bound in the node's mounts.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A process that runs in it.
    pub fn pid(&self) -> u32 {
        self.inside.pid()
    }

    /// The cgroup of its first container.
    pub fn cgroup(&self) -> &Path {
        self.inside.cgroup()
    }

    /// Another container of the same pod, in a cgroup of its own.
    pub fn container(&self, name: &str) -> Host {
        let cgroup = self.cgroup().parent().expect("below the pods").join(name);
        std::fs::create_dir_all(&cgroup).expect("make the container's cgroup");
        self.in_cgroup(&cgroup)
    }

    /// The pod, with what begins in it in another cgroup.
    pub fn in_cgroup(&self, cgroup: &Path) -> Host {
        self.inside(Arc::new(Inside::start(self.namespace(), cgroup)))
    }
}

impl Deref for Pod {
    type Target = Host;

    fn deref(&self) -> &Host {
        &self.host
    }
}
