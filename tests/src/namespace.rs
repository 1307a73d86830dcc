//! A network namespace without a name: it lives as long as the thread that sits in it.
//!
//! Named namespaces (`ip netns add`) outlive a test that is killed. Here nothing has to be cleaned up: the thread ends with its
//! [`Namespace`] or with the process, the kernel then removes the namespace and every link in it. Sockets opened and processes
//! started by the thread belong to the namespace; a socket stays there when another thread uses it.

use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::{Sender, channel};
use std::thread::{Builder, JoinHandle};

use nix::sched::{CloneFlags, unshare};

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
        let (jobs, queue) = channel::<Job>();
        let (ready, is_ready) = channel();
        let thread = Builder::new()
            .name(format!("netns {name}"))
            .spawn(move || {
                unshare(CloneFlags::CLONE_NEWNET).expect("unshare(CLONE_NEWNET): are you root?");
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

    /// Runs `ip ARGUMENTS` in the namespace.
    pub(crate) fn ip(&self, arguments: &str) {
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
    }

    /// Sets `/proc/sys/net/NAME` of this namespace.
    pub(crate) fn sysctl(&self, name: &str, value: &'static str) {
        let path = Path::new("/proc/sys/net").join(name);
        self.run(move || std::fs::write(&path, value).unwrap_or_else(|e| panic!("{}: {e}", path.display())));
    }

    /// A veth pair between this namespace (device `here`) and `other` (device `there`), both up.
    pub(crate) fn link(&self, here: &str, other: &Namespace, there: &str) {
        use std::os::fd::AsRawFd;
        let other_handle = format!("/proc/{}/fd/{}", std::process::id(), other.handle.as_raw_fd());
        self.ip(&format!(
            "link add {here} type veth peer name {there} netns {other_handle}"
        ));
        self.ip(&format!("link set {here} up"));
        other.ip(&format!("link set {there} up"));
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
