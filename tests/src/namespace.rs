//! A network namespace without a name: it lives as long as the thread that sits in it.
//!
//! Named namespaces (`ip netns add`) outlive a test that is killed. Here nothing has to be cleaned up: the thread ends with its
//! [`Namespace`] or with the process, the kernel then removes the namespace and every link in it. Sockets opened and processes
//! started by the thread belong to the namespace; a socket stays there when another thread uses it.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{Sender, channel};
use std::thread::{Builder, JoinHandle};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// No source, type or data: what mount(2) ignores.
const NONE: Option<&str> = None;

use crate::wait;

type Job = Box<dyn FnOnce() + Send>;

pub(crate) struct Namespace {
    name: String,
    /// `Some` until drop: closing the channel ends the thread.
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    handle: File,
}

impl Namespace {
    /// A new namespace with its loopback device up. Panics when the process may not make one (see `Need::Root`).
    pub(crate) fn new(name: &str) -> Self {
        Self::unshared(name, CloneFlags::CLONE_NEWNET)
    }

    /// As [`Namespace::new`], with mounts of its own: what is mounted there (bpffs with everything pinned in it, pods' namespaces) is gone
    /// with the last process that was started there.
    pub(crate) fn with_mounts(name: &str) -> Self {
        let namespace = Self::unshared(name, CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS);
        namespace.run(|| {
            mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE).expect("make the mounts private");
        });
        namespace
    }

    fn unshared(name: &str, what: CloneFlags) -> Self {
        let (jobs, queue) = channel::<Job>();
        let (ready, is_ready) = channel();
        let thread = Builder::new()
            .name(format!("netns {name}"))
            .spawn(move || {
                unshare(what).expect("unshare(2): are you root?");
                ready
                    .send(File::open("/proc/thread-self/ns/net").expect("open the own namespace"))
                    .expect("ready");
                queue.into_iter().for_each(|job| job());
            })
            .expect("spawn a thread");
        let handle = is_ready.recv().expect("the namespace's thread is gone");
        let namespace = Self {
            name: name.to_owned(),
            jobs: Some(jobs),
            thread: Some(thread),
            handle,
        };
        namespace.ip("link set lo up");
        // Nobody else has its addresses: link-local ones needn't be tried for seconds before they are used.
        for devices in ["all", "default"] {
            namespace.sysctl(&format!("ipv6/conf/{devices}/accept_dad"), "0");
        }
        namespace
    }

    /// Runs `work` in the namespace and returns its result. Work that blocks keeps others of the same namespace waiting.
    pub(crate) fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (answer, result) = channel();
        let job: Job = Box::new(move || answer.send(work()).expect("somebody waits for the result"));
        self.jobs
            .as_ref()
            .expect("alive until dropped")
            .send(job)
            .expect("the namespace's thread is gone");
        result
            .recv()
            .unwrap_or_else(|_| panic!("work in namespace {} panicked", self.name))
    }

    /// A path to the namespace, good for any process of the machine as long as it lives.
    pub(crate) fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.handle.as_raw_fd()).into()
    }

    /// Runs `ip ARGUMENTS` in the namespace; answers what it printed.
    pub(crate) fn ip(&self, arguments: &str) -> String {
        let list: Vec<String> = arguments.split_whitespace().map(str::to_owned).collect();
        let output = self
            .run(|| Command::new("ip").args(list).output())
            .expect("run ip (package iproute2)");
        assert!(
            output.status.success(),
            "in namespace {}: ip {arguments}: {}",
            self.name,
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Sets `/proc/sys/net/NAME` of this namespace.
    pub(crate) fn sysctl(&self, name: &str, value: &'static str) {
        let path = Path::new("/proc/sys/net").join(name);
        self.run(move || std::fs::write(&path, value).unwrap_or_else(|e| panic!("{}: {e}", path.display())));
    }

    /// A veth pair between this namespace (device `here`) and `other` (device `there`), both up.
    pub(crate) fn link(&self, here: &str, other: &Namespace, there: &str) {
        self.ip(&format!(
            "link add {here} type veth peer name {there} netns {}",
            other.path().display()
        ));
        self.ip(&format!("link set {here} up"));
        other.ip(&format!("link set {there} up"));
        // Until a device has a link-local address, neighbours that it is asked to forward to are not found, and then for a second.
        for (namespace, device) in [(self, here), (other, there)] {
            let ready = format!("-6 -o addr show dev {device} scope link -tentative");
            wait::eventually(wait::SOON, "a link-local address", || !namespace.ip(&ready).is_empty());
        }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.jobs.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
