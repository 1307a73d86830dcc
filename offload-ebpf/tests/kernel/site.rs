//! A test's own node: cgroups, pins and network namespaces that nobody else has.
//!
//! Threads stand for processes. A thread can have a network namespace of its own, and a cgroup of its own where the cgroup is
//! "threaded" (Documentation/admin-guide/cgroup-v2.rst); to the kernel's socket code it makes no difference.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};
use underpass_ebpf::{Capture, Layout, cgroup_id, cgroup2_mount};

type Job = Box<dyn FnOnce() + Send>;

/// Whether the tests can run; says so if not.
pub fn is_root() -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    skip("needs root");
    false
}

/// Says why a test is skipped, past the test runner's capture, so that it is seen. Where `CI` is set nothing may be.
#[track_caller]
pub fn skip(why: &str) {
    assert!(std::env::var_os("CI").is_none(), "this test can't run here: {why}");
    let test = thread::current().name().unwrap_or("a test").to_owned();
    let _ = writeln!(std::io::stderr(), "SKIP {test}: {why}");
}

/// A thread at a place: in a network namespace and a cgroup. What it opens and starts belongs there.
pub struct Place {
    /// `Some` until drop: closing the channel ends the thread.
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Place {
    fn start(enter: impl FnOnce() + Send + 'static) -> Self {
        let (jobs, queue) = channel::<Job>();
        let thread = thread::spawn(move || {
            enter();
            queue.into_iter().for_each(|job| job());
        });
        let place = Self {
            jobs: Some(jobs),
            thread: Some(thread),
        };
        place.run(|| ());
        place
    }

    /// Runs `work` at the place and returns its result. Work that blocks keeps the next waiting.
    #[track_caller]
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        self.begin(work).end()
    }

    /// Begins `work` at the place.
    pub fn begin<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Underway<T> {
        let (answer, result) = channel();
        let job: Job = Box::new(move || {
            let _ = answer.send(work());
        });
        self.jobs
            .as_ref()
            .unwrap()
            .send(job)
            .expect("the place's thread is gone");
        Underway(result)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.jobs.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Work begun at a place.
pub struct Underway<T>(std::sync::mpsc::Receiver<T>);

impl<T> Underway<T> {
    /// Waits for the result.
    #[track_caller]
    pub fn end(self) -> T {
        self.0
            .recv_timeout(crate::wait::soon())
            .expect("the work panicked or hangs")
    }
}

/// A network namespace without a name: it lives as long as something sits in it.
pub struct Namespace {
    pub handle: File,
    _keeper: Place,
}

impl Namespace {
    pub fn new() -> Self {
        let (sender, receiver) = channel();
        let keeper = Place::start(move || {
            // SAFETY: a new network namespace leaves nothing of this thread's memory or files dangling.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.expect("unshare");
            sender.send(File::open("/proc/thread-self/ns/net").unwrap()).unwrap();
        });
        let namespace = Self {
            handle: receiver.recv().unwrap(),
            _keeper: keeper,
        };
        namespace.ip("link set lo up");
        namespace
    }

    /// Runs `ip ARGUMENTS` in the namespace.
    #[track_caller]
    pub fn ip(&self, arguments: &str) {
        let list: Vec<String> = arguments.split_whitespace().map(str::to_owned).collect();
        let output = self
            .place(None)
            .run(move || Command::new("ip").args(list).output().expect("ip (iproute2)"));
        assert!(
            output.status.success(),
            "ip {arguments}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// Sets `/proc/sys/net/NAME`.
    pub fn sysctl(&self, name: &'static str, value: &'static str) {
        let path = Path::new("/proc/sys/net").join(name);
        self.place(None)
            .run(move || fs::write(&path, value).unwrap_or_else(|e| panic!("{}: {e}", path.display())));
    }

    /// A thread in the namespace, and in `cgroup` if given.
    pub fn place(&self, cgroup: Option<&Path>) -> Place {
        let handle = self.handle.try_clone().unwrap();
        let cgroup = cgroup.map(Path::to_owned);
        Place::start(move || {
            move_into_link_name_space(handle.as_fd(), Some(LinkNameSpaceType::Network)).expect("setns");
            if let Some(cgroup) = cgroup {
                enter_cgroup(&cgroup);
            }
        })
    }
}

/// Moves this thread.
pub fn enter_cgroup(cgroup: &Path) {
    let tid = rustix::thread::gettid().as_raw_nonzero().to_string();
    fs::write(cgroup.join("cgroup.threads"), tid).expect("enter a cgroup");
}

/// A node of its own.
pub struct Site {
    pub layout: Layout,
    cgroups: Vec<PathBuf>,
    pub node: Namespace,
}

impl Site {
    pub fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "underpass-test-{}-{}",
            process::id(),
            NUMBER.fetch_add(1, Ordering::Relaxed)
        );
        let site = Self {
            layout: Layout {
                pin_dir: Path::new("/sys/fs/bpf").join(&name),
                cgroup: own_cgroup().join(&name),
            },
            cgroups: Vec::new(),
            node: Namespace::new(),
        };
        let node = &site.node;
        node.sysctl("ipv4/ip_forward", "1");
        node.sysctl("ipv6/conf/all/forwarding", "1");
        let mut site = site;
        site.make_cgroup(site.layout.cgroup.clone());
        for role in ["pods", "proxy", "kubelet", "agent"] {
            site.make_cgroup(site.layout.cgroup.join(role));
        }
        site
    }

    pub fn make_cgroup(&mut self, path: PathBuf) {
        fs::create_dir(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        fs::write(path.join("cgroup.type"), "threaded").expect("a threaded cgroup");
        self.cgroups.push(path);
    }

    /// The directory of the cgroup of a role: `pods`, `proxy`, `kubelet` or `agent`.
    pub fn cgroup(&self, role: &str) -> PathBuf {
        self.layout.cgroup.join(role)
    }

    /// What an agent does at its start: capture, with the proxies' and agent's cgroups exempt.
    pub fn start(&self) -> Capture {
        let capture = self.try_start(&self.layout).expect("start");
        for role in ["proxy", "agent"] {
            capture.exempt(cgroup_id(&self.cgroup(role)).unwrap()).unwrap();
        }
        capture
            .add_kubelet(cgroup_id(&self.cgroup("kubelet")).unwrap())
            .unwrap();
        capture
    }

    /// Starts a capture from the agent's cgroup.
    pub fn try_start(&self, layout: &Layout) -> Result<Capture, underpass_ebpf::Error> {
        let layout = layout.clone();
        self.node
            .place(Some(&self.cgroup("agent")))
            .run(move || Capture::start(&layout))
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if let Err(error) = Capture::detach(&self.layout) {
            eprintln!("{error}");
        }
        for cgroup in self.cgroups.iter().rev() {
            // Threads that have been joined may be members for a moment longer.
            let removed = (0..1000).any(|_| {
                let removed = fs::remove_dir(cgroup).is_ok();
                if !removed {
                    thread::sleep(std::time::Duration::from_millis(2));
                }
                removed
            });
            if !removed {
                eprintln!("left behind: {}", cgroup.display());
            }
        }
    }
}

fn own_cgroup() -> PathBuf {
    let membership = fs::read_to_string("/proc/self/cgroup").unwrap();
    let own = membership
        .lines()
        .find_map(|line| line.strip_prefix("0::/"))
        .unwrap_or("")
        .to_owned();
    cgroup2_mount().unwrap().join(own)
}
