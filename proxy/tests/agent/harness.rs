//! A node (directories and a cgroup of its own), its agent, and its pods.

use std::fs::{self, File, Permissions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Long enough for anything, on a machine that is shared with a build.
const SOON: Duration = Duration::from_secs(20);

pub fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + SOON;
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Whether this machine lets the tests run. In CI it must.
pub fn can_run() -> bool {
    let missing = match nix::unistd::geteuid().is_root() {
        false => "needs root",
        true if underpass_ebpf::cgroup2_mount().is_err() => "needs a cgroup2 file system",
        true => return true,
    };
    assert!(std::env::var_os("CI").is_none(), "this test cannot run here: {missing}");
    let _ = writeln!(std::io::stderr(), "SKIP: {missing}");
    false
}

pub fn cgroup_root() -> PathBuf {
    underpass_ebpf::cgroup2_mount().unwrap()
}

/// This process in a cgroup of its own, for as long as any test needs it: the toy proxy lives in this process, and the agent
/// would not have it otherwise.
struct OwnCgroup;

static USERS: Mutex<u32> = Mutex::new(0);

impl OwnCgroup {
    fn path() -> PathBuf {
        cgroup_root().join(format!("underpass-{}", std::process::id()))
    }

    fn enter() -> Self {
        let mut users = USERS.lock().unwrap();
        if *users == 0 {
            fs::create_dir(Self::path()).unwrap();
            fs::write(Self::path().join("cgroup.procs"), "0").unwrap();
        }
        *users += 1;
        Self
    }
}

impl Drop for OwnCgroup {
    fn drop(&mut self) {
        let mut users = USERS.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *users -= 1;
        if *users == 0 {
            let _ = fs::write(cgroup_root().join("cgroup.procs"), "0");
            remove_cgroup(&Self::path());
        }
    }
}

/// A cgroup whose last process has just ended may be busy for a moment.
fn remove_cgroup(path: &Path) {
    let deadline = Instant::now() + Duration::from_secs(2);
    while path.exists() && fs::remove_dir(path).is_err() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(5));
    }
}

/// Directories and a cgroup.
pub struct Node {
    folder: tempfile::TempDir,
    name: String,
    _own: OwnCgroup,
}

impl Node {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "agent-test-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let node = Self {
            folder: tempfile::tempdir().unwrap(),
            name,
            _own: OwnCgroup::enter(),
        };
        fs::create_dir_all(node.pods_cgroup()).unwrap();
        fs::set_permissions(&node.folder, Permissions::from_mode(0o755)).unwrap();
        node
    }

    pub fn run_dir(&self) -> PathBuf {
        self.folder.path().join("run")
    }

    pub fn pin_dir(&self) -> String {
        format!("/sys/fs/bpf/{}", self.name)
    }

    /// Where the programs are attached.
    pub fn cgroup(&self) -> PathBuf {
        cgroup_root().join(&self.name)
    }

    /// Where the pods' processes are.
    pub fn pods_cgroup(&self) -> PathBuf {
        self.cgroup().join("pods")
    }

    pub fn pinned_pods(&self) -> usize {
        fs::read_dir(Path::new(&self.pin_dir()).join("pods")).unwrap().count()
    }

    /// Starts an agent and waits until it is ready.
    pub fn agent(&self) -> Agent {
        let log = self
            .folder
            .path()
            .join(format!("agent-{}.log", fs::read_dir(&self.folder).unwrap().count()));
        let mut command = underpass();
        command
            .arg("agent")
            .arg("--run-dir")
            .arg(self.run_dir())
            .arg("--pin-dir")
            .arg(self.pin_dir());
        command
            .arg("--cgroup")
            .arg(self.cgroup())
            .args(["--refuse-after", "1s"]);
        let child = command.stderr(File::create(&log).unwrap()).spawn().unwrap();
        let agent = Agent { child, log };
        eventually("the agent is ready", || agent.log().contains("the agent is ready"));
        agent
    }

    /// Starts `underpass run` for one pod, with these further settings of the section `capture`.
    pub fn run(&self, pod: &Pod, settings: &str) -> Agent {
        self.run_in(&pod.path(), settings)
    }

    pub fn run_in(&self, netns: &str, settings: &str) -> Agent {
        let (log, config) = (self.folder.path().join("run.log"), self.folder.path().join("run.yaml"));
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (run_dir, pin_dir, cgroup) = (self.run_dir(), self.pin_dir(), self.cgroup());
        let text = format!(
            "node: {{admin: \"127.0.0.1:{port}\", workers: 1}}\nworkloads: [{{name: a, namespace: shop}}]\ncapture: {{run_dir: {}, \
             pin_dir: {pin_dir}, cgroup: {}, pods: [{{netns: {netns}, workload: shop/a}}]{settings}}}\n",
            run_dir.display(),
            cgroup.display()
        );
        fs::write(&config, text).unwrap();
        let mut command = underpass();
        command.arg("run").arg("--config").arg(&config);
        let child = command.stderr(File::create(&log).unwrap()).spawn().unwrap();
        Agent { child, log }
    }

    /// Runs a command that asks the agent; panics if it fails.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let mut command = underpass();
        let output = command
            .args(arguments)
            .arg("--run-dir")
            .arg(self.run_dir())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {text}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Captures a pod.
    pub fn enrol(&self, pod: &Pod, uid: &str) {
        self.ok(&["enrol", "--netns", &pod.path(), "--uid", uid]);
    }

    /// Waits until the only pod is in a state.
    pub fn await_state(&self, state: &str) {
        let wanted = format!(r#""state":"{state}""#);
        eventually(state, || self.ok(&["pods", "--json"]).contains(&wanted));
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let mut detach = underpass();
        let detach = detach
            .arg("detach")
            .arg("--run-dir")
            .arg(self.run_dir())
            .arg("--pin-dir")
            .arg(self.pin_dir());
        let _ = detach.stdout(Stdio::null()).status();
        let below = fs::read_dir(self.cgroup()).unwrap().flatten();
        below
            .filter(|entry| entry.path().is_dir())
            .for_each(|entry| remove_cgroup(&entry.path()));
        remove_cgroup(&self.cgroup());
    }
}

fn underpass() -> Command {
    Command::new(env!("CARGO_BIN_EXE_underpass"))
}

/// A running agent; killed when dropped.
pub struct Agent {
    child: Child,
    log: PathBuf,
}

impl Agent {
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// The process that it started.
    pub fn child(&self) -> Option<i32> {
        let path = format!("/proc/{0}/task/{0}/children", self.child.id());
        fs::read_to_string(path)
            .unwrap()
            .split_whitespace()
            .next()?
            .parse()
            .ok()
    }

    pub fn open_descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }

    pub fn stop(self) {
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM).unwrap();
        self.await_end();
    }

    /// It ends by itself, and well.
    pub fn await_end(mut self) {
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}: {}", self.log());
    }

    /// It ends by itself, and says why.
    pub fn await_failure(mut self) -> String {
        let status = self.child.wait().unwrap();
        assert_eq!(status.code(), Some(1), "{}", self.log());
        self.log()
    }

    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("--- agent\n{}", self.log());
        }
    }
}

/// A network namespace that lives as long as its thread. It has a default route, but nothing beyond its devices.
pub struct Pod {
    path: PathBuf,
    cgroup: PathBuf,
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Pod {
    pub fn new(node: &Node, address: &str) -> Self {
        let (stop, stopped) = channel::<()>();
        let (ready, is_ready) = channel();
        let commands = format!(
            "link set lo up\nlink add d0 type veth peer d1\naddress add {address} dev d0\nlink set d0 up\nlink set d1 up\n\
             route add default dev d0\n"
        );
        let thread = thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let file = tempfile::NamedTempFile::new().unwrap();
            fs::write(&file, commands).unwrap();
            let output = Command::new("ip").arg("-batch").arg(file.path()).output().unwrap();
            assert!(output.status.success(), "{output:?}");
            let path = fs::read_link("/proc/thread-self").unwrap();
            ready.send(Path::new("/proc").join(path).join("ns/net")).unwrap();
            let _ = stopped.recv();
        });
        Self {
            path: is_ready.recv().unwrap(),
            cgroup: node.pods_cgroup(),
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    pub fn path(&self) -> String {
        self.path.to_str().unwrap().to_owned()
    }

    /// A process of the pod.
    fn process(&self, script: &str) -> Command {
        let mut command = Command::new("bash");
        let enter = "echo $$ > \"$1/cgroup.procs\" && exec nsenter --net=\"$2\" bash -c \"$3\"";
        command
            .args(["-c", enter, "pod"])
            .arg(&self.cgroup)
            .arg(&self.path)
            .arg(script);
        command
    }

    /// What comes of one connection from the pod to somewhere: the word of who answers, or `refused`, or nothing.
    pub fn connect(&self) -> String {
        let script = "{ exec 3<>/dev/tcp/203.0.113.7/80; } 2>/dev/null || { echo refused; exit; }; cat <&3";
        let output = self.process(&format!("timeout 1 bash -c '{script}'")).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn connect_again_and_again(&self) -> Client {
        let script = "trap exit TERM; while :; do \
                      { exec 3<>/dev/tcp/203.0.113.7/80; } 2>/dev/null && { read -r word <&3 || word=reset; } || word=refused; \
                      echo $word; exec 3>&-; done";
        let mut child = self.process(script).stdout(Stdio::piped()).spawn().unwrap();
        Client::follow(child.stdout.take().unwrap(), child)
    }

    /// A process that does nothing.
    pub fn sleeper(&self) -> Sleeper {
        let mut child = self
            .process("echo there; exec sleep 600")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut there = [0];
        child.stdout.take().unwrap().read_exact(&mut there).unwrap();
        Sleeper(child)
    }

    /// A device here whose other half shows whether the namespace still exists.
    pub fn leave_a_witness(&self) -> Witness {
        let name = format!("aw{}", std::process::id());
        let net = format!("--net={}", self.path.display());
        let add = [
            "ip", "link", "add", "w0", "type", "veth", "peer", "name", &name, "netns",
        ];
        let status = Command::new("nsenter")
            .arg(net)
            .args(add)
            .arg(std::process::id().to_string())
            .status();
        assert!(status.unwrap().success());
        Witness(name)
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        self.stop.take();
        let _ = self.thread.take().unwrap().join();
    }
}

pub struct Sleeper(Child);

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub struct Witness(String);

impl Witness {
    pub fn is_there(&self) -> bool {
        Path::new("/sys/class/net").join(&self.0).exists()
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        if self.is_there() {
            let _ = Command::new("ip").args(["link", "delete", &self.0]).status();
        }
    }
}

/// A process of a pod that connects for as long as it lives.
pub struct Client {
    child: Child,
    words: Arc<Mutex<Vec<String>>>,
    reader: Option<JoinHandle<()>>,
}

impl Client {
    fn follow(output: ChildStdout, child: Child) -> Self {
        let words = Arc::new(Mutex::new(Vec::new()));
        let seen = words.clone();
        let reader = thread::spawn(move || {
            for line in BufReader::new(output).lines() {
                seen.lock().unwrap().push(line.unwrap());
            }
        });
        Self {
            child,
            words,
            reader: Some(reader),
        }
    }

    fn count(&self) -> usize {
        self.words.lock().unwrap().len()
    }

    /// Waits for so many more connections.
    pub fn wait_for(&self, more: usize) {
        let until = self.count() + more;
        eventually("connections", || self.count() >= until);
    }

    /// Ends it; what its connections came to, but those that were answered.
    pub fn stop(mut self) -> Vec<String> {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.reader.take().unwrap().join().unwrap();
        let words = self.words.lock().unwrap();
        words.iter().filter(|word| *word != "toy").cloned().collect()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
