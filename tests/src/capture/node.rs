//! A node with pods that can be enrolled, and its command line.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::Value;

use super::ability::chosen_variant;
use super::agent::Agent;
use super::cgroup::{self, CgroupTree};
use super::inside::{Inside, enter};
use super::pod::Pod;
use crate::config::Config;
use crate::process::Process;
use crate::proxy::{self, Proxy};
use crate::wait;
use crate::world::{Families, Host, World};

/// Where bpffs belongs; in the node's own mounts it is a filesystem of its own.
const BPFFS: &str = "/sys/fs/bpf";
/// A command of the node's command line that takes longer hangs.
const COMMAND: Duration = Duration::from_secs(30);
/// The user as which proxies run: nobody.
const PROXY_USER: u32 = 65_534;
/// The first proxy's admin port; each has its own.
const FIRST_ADMIN_PORT: u16 = 15100;

/// See the head of the module `capture`.
pub struct CaptureNode {
    // First: what is left of the processes ends with their namespaces' threads, before the janitor looks.
    world: Arc<World>,
    next_proxy: AtomicU16,
    next_agent: AtomicU16,
    tree: Arc<CgroupTree>,
    /// Which of the world's nodes it is.
    number: usize,
}

/// How a command ended.
#[derive(Debug)]
pub struct Outcome {
    /// Its exit status.
    pub status: ExitStatus,
    /// What it printed.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
}

impl CaptureNode {
    /// A node without an agent, and another one ([`CaptureNode::elsewhere`]) that knows nothing of capture. Its own bpffs is mounted.
    pub fn new() -> Self {
        let node = Self::without_bpffs();
        node.mount_bpffs();
        node
    }

    /// As [`CaptureNode::new`], where nobody has mounted bpffs yet.
    pub fn without_bpffs() -> Self {
        let world = World::cluster(2);
        // A proxy is nobody, and has to get at its configuration, its log and the agent's socket.
        let everybody = Permissions::from_mode(0o755);
        fs::set_permissions(world.directory(), everybody).expect("chmod the world's folder");
        let access = world.directory().join("access");
        fs::create_dir(&access).expect("a folder for access logs");
        fs::set_permissions(&access, Permissions::from_mode(0o777)).expect("chmod the logs' folder");
        let tree = CgroupTree::new(&[world.directory()]);
        Self::of(Arc::new(world), Arc::new(tree), 0)
    }

    /// The other node, as one of its own that can capture pods: with its own cgroups, agent and bpffs.
    pub fn beside(&self) -> Self {
        let node = Self::of(self.world.clone(), self.tree.clone(), self.number + 1);
        node.mount_bpffs();
        node
    }

    fn of(world: Arc<World>, tree: Arc<CgroupTree>, number: usize) -> Self {
        let node = Self {
            world,
            next_proxy: AtomicU16::new(0),
            next_agent: AtomicU16::new(0),
            tree,
            number,
        };
        // The bpffs of this machine, if it has one, is not this node's.
        node.host()
            .namespace()
            .run(|| while umount2(BPFFS, MntFlags::MNT_DETACH).is_ok() {});
        node
    }

    fn mount_bpffs(&self) {
        self.host().namespace().run(|| {
            let none = None::<&str>;
            mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), none).expect("mount a bpffs");
        });
    }

    /// Its name, as configurations have it.
    pub fn name(&self) -> &'static str {
        ["node-a", "node-b"][self.number]
    }

    /// What it is in: files, processes.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// The node itself, with sockets and programs in no cgroup of capture.
    pub fn host(&self) -> Host {
        self.world.node(self.number)
    }

    /// The node itself, with sockets and programs in a cgroup of the node: that of the kubelet, say.
    pub fn host_in(&self, cgroup: &str) -> Host {
        let host = self.host();
        let inside = Inside::start(host.namespace(), &self.cgroup(cgroup));
        host.inside(Arc::new(inside))
    }

    /// A dual-stack pod of this node, not enrolled; `name` is `namespace/name`.
    pub fn pod(&self, name: &str) -> Pod {
        self.pod_with(name, Families::Both)
    }

    /// As [`CaptureNode::pod`], with addresses of these families only.
    pub fn pod_with(&self, name: &str, families: Families) -> Pod {
        let network = self.world.pod_with(self.number, families);
        let short = name.replace('/', "-");
        let path = self.bind(&network, &short);
        let cgroup = self.cgroup(&format!("pods/{short}/main"));
        Pod::new(&network, name, path, &cgroup)
    }

    /// The node's end of a pod's veth.
    pub fn device_of(&self, pod: &Host) -> String {
        let route = self.host().namespace().ip(&format!("route get {}", pod.ip()));
        let words: Vec<&str> = route.split_whitespace().collect();
        let device = words
            .iter()
            .position(|word| *word == "dev")
            .and_then(|at| words.get(at + 1));
        device
            .unwrap_or_else(|| panic!("no device in the route: {route}"))
            .to_string()
    }

    /// A host of the other node.
    pub fn elsewhere(&self) -> Host {
        self.world.pod(1)
    }

    /// Gives a namespace a path, as container runtimes do.
    fn bind(&self, network: &Host, name: &str) -> PathBuf {
        let folder = self.world.directory().join("netns");
        fs::create_dir_all(&folder).expect("a folder for namespaces");
        let path = folder.join(name);
        File::create(&path).expect("a file to bind a namespace to");
        let (from, to) = (network.namespace().path(), path.clone());
        self.host().namespace().run(move || {
            let none = None::<&str>;
            mount(Some(&from), &to, none, MsFlags::MS_BIND, none).expect("bind a namespace");
        });
        path
    }

    /// Kills everything that runs in a pod.
    pub fn kill_processes_of(&self, pod: &Pod) {
        let cgroup = pod.cgroup().parent().expect("a cgroup of the pod");
        fs::write(cgroup.join("cgroup.kill"), "1").expect("kill what runs in the pod");
    }

    /// Deletes a pod: its programs, its path, its namespace.
    pub fn delete(&self, pod: Pod) {
        let path = pod.path().to_owned();
        let cgroup = pod.cgroup().parent().expect("a cgroup of the pod").to_owned();
        self.kill_processes_of(&pod);
        drop(pod);
        self.host().namespace().run(move || {
            umount2(&path, MntFlags::MNT_DETACH).expect("unbind a namespace");
            fs::remove_file(&path).expect("remove the namespace's path");
        });
        wait::eventually(wait::SOON, "the pod's cgroup is removed", || {
            cgroup::remove_tree(&cgroup).is_ok()
        });
    }

    /// The cgroup at which programs are attached; `path` is below it.
    pub fn cgroup(&self, path: &str) -> PathBuf {
        self.tree.at(&format!("{}/{path}", self.folder("node")))
    }

    /// The cgroup above the one at which programs are attached.
    pub fn outer_cgroup(&self) -> PathBuf {
        self.tree.top().to_owned()
    }

    /// Where the agent's sockets are.
    pub fn run_directory(&self) -> PathBuf {
        self.world.directory().join(self.folder("run"))
    }

    /// Names of the first node are as they are, those of another are its own.
    fn folder(&self, name: &str) -> String {
        match self.number {
            0 => name.to_owned(),
            number => format!("{name}-{number}"),
        }
    }

    /// Where the agent pins its objects. The path means something in the node's own mounts only.
    pub fn pin_directory(&self) -> PathBuf {
        Path::new(BPFFS).join("underpass")
    }

    /// Starts an agent and waits until it answers.
    pub fn start_agent(&self) -> Agent {
        self.start_agent_with(&[])
    }

    /// Starts one that moves connections to the kernel in this variant, whatever becomes of them.
    pub fn start_untested_agent(&self, variant: &str) -> Agent {
        self.start_agent_with(&["--untested-variant", variant])
    }

    /// As [`CaptureNode::start_agent`], with further arguments.
    pub fn start_agent_with(&self, more: &[&str]) -> Agent {
        let agent = self.launch_agent(more);
        agent.answering(self)
    }

    /// Starts an agent and waits for nothing.
    pub fn launch_agent(&self, more: &[&str]) -> Agent {
        let number = self.next_agent.fetch_add(1, Ordering::Relaxed);
        let mut command = Process::command(&proxy::binary().display().to_string());
        command
            .arg("agent")
            .args(self.directories(true))
            .arg("--cgroup")
            .arg(self.cgroup(""))
            .args(["--proxy-user", "65534"])
            .args(more);
        if let Some(variant) = chosen_variant()
            && !more.contains(&"--untested-variant")
        {
            command.args(["--untested-variant", &variant]);
        }
        let command = enter(&self.cgroup(&format!("agent-{number}")), &command);
        Agent::new(Process::start(
            &self.world,
            &self.host(),
            &self.folder("agent"),
            command,
        ))
    }

    /// Starts a proxy as an ordinary user in a cgroup of its own, and waits until it is ready.
    pub fn start_proxy(&self, config: &Config) -> Proxy {
        self.launch_proxy(config).ready()
    }

    /// As [`CaptureNode::start_proxy`], without waiting.
    pub fn launch_proxy(&self, config: &Config) -> Proxy {
        let cgroup = format!("proxy-{}", self.next_proxy.load(Ordering::Relaxed));
        self.launch_proxy_as(PROXY_USER, &cgroup, config)
    }

    /// As [`CaptureNode::launch_proxy`], as any user in any cgroup.
    pub fn launch_proxy_as(&self, user: u32, cgroup: &str, config: &Config) -> Proxy {
        let socket = self.run_directory().join("agent.sock");
        self.launch(config, cgroup, |binary, file| {
            let mut command = as_user(user, binary);
            command
                .arg("proxy")
                .arg("--config")
                .arg(file)
                .arg("--agent")
                .arg(socket);
            command
        })
    }

    /// `underpass run`, agent and proxy in one, when it is ready.
    pub fn start_both(&self, config: &Config) -> Proxy {
        self.start_both_with(&[], config)
    }

    /// As [`CaptureNode::start_both`], with further arguments.
    pub fn start_both_with(&self, more: &[&str], config: &Config) -> Proxy {
        let both = self.launch(config, "both", |binary, file| {
            let mut command = Process::command(&binary.display().to_string());
            command.arg("run").arg("--config").arg(file).args(more);
            command
        });
        both.ready()
    }

    /// `underpass run --role node` as users run it, with further variables in its environment, and not yet with pods.
    pub fn start_role_node(&self, config: &Config, environment: &[(&str, &str)]) -> Proxy {
        let path = |path: PathBuf| format!("{:?}", path.display().to_string());
        let capture = format!(
            "cgroup: {}, run_dir: {}, pin_dir: {}, proxy_user: nobody",
            path(self.cgroup("")),
            path(self.run_directory()),
            path(self.pin_directory()),
        );
        let config = config.clone().capture(capture);
        let both = self.launch(&config, "both", |binary, file| {
            let mut command = Process::command(&binary.display().to_string());
            command.arg("run").arg("--config").arg(file).args(["--role", "node"]);
            command.envs(environment.iter().copied());
            command
        });
        both.ready()
    }

    /// Gives a host a name that this node's resolver knows (its own `/etc/hosts`), and no other node's.
    pub fn name_host(&self, name: &str, address: IpAddr) {
        let file = self.world.directory().join(self.folder("hosts"));
        fs::write(&file, format!("127.0.0.1 localhost\n{address} {name}\n")).expect("write a hosts file");
        self.host().namespace().run(move || {
            let none = None::<&str>;
            mount(Some(&file), "/etc/hosts", none, MsFlags::MS_BIND, none).expect("bind a hosts file");
        });
    }

    fn launch(&self, config: &Config, cgroup: &str, command: impl FnOnce(&Path, &Path) -> Command) -> Proxy {
        let number = self.next_proxy.fetch_add(1, Ordering::Relaxed);
        let (label, cgroup) = (self.folder(&format!("proxy-{number}")), self.cgroup(cgroup));
        let admin = FIRST_ADMIN_PORT + number;
        Proxy::launch(&self.world, &self.host(), config, &label, admin, |binary, file| {
            enter(&cgroup, &command(binary, file))
        })
    }

    /// Enrols a pod. Panics when that fails.
    #[track_caller]
    pub fn enrol(&self, pod: &Pod) {
        let outcome = self.try_enrol(pod.path(), &pod.uid());
        assert!(outcome.status.success(), "enrol {}: {outcome:?}", pod.name());
    }

    /// `underpass enrol`.
    pub fn try_enrol(&self, path: &Path, uid: &str) -> Outcome {
        let path = path.display().to_string();
        self.underpass(&["enrol", "--netns", &path, "--uid", uid])
    }

    /// Removes a pod from capture. Panics when that fails.
    #[track_caller]
    pub fn remove(&self, pod: &Pod) {
        let outcome = self.underpass(&["remove", "--uid", &pod.uid()]);
        assert!(outcome.status.success(), "remove {}: {outcome:?}", pod.name());
    }

    /// The pods that `underpass pods --json` lists.
    #[track_caller]
    pub fn pods(&self) -> Vec<Value> {
        self.listed("pods")
    }

    /// The proxies that `underpass pods --json` lists.
    #[track_caller]
    pub fn proxies(&self) -> Vec<Value> {
        self.listed("proxies")
    }

    #[track_caller]
    fn listed(&self, what: &str) -> Vec<Value> {
        let outcome = self.underpass(&["pods", "--json"]);
        assert!(outcome.status.success(), "{outcome:?}");
        let mut answer: Value = serde_json::from_str(&outcome.stdout).unwrap_or_else(|e| panic!("{e}: {outcome:?}"));
        match answer[what].take() {
            Value::Array(list) => list,
            other => panic!("{what}: {other}: {outcome:?}"),
        }
    }

    /// `underpass detach`.
    pub fn detach(&self) -> Outcome {
        self.underpass(&["detach"])
    }

    /// Runs `underpass ARGUMENTS` on the node, about this node's agent.
    pub fn underpass(&self, arguments: &[&str]) -> Outcome {
        self.underpass_as(0, arguments)
    }

    /// As [`CaptureNode::underpass`], as another user.
    pub fn underpass_as(&self, user: u32, arguments: &[&str]) -> Outcome {
        let directories = self.directories(arguments[0] == "detach");
        let more = directories.iter().map(String::as_str);
        let arguments: Vec<&str> = arguments.iter().copied().chain(more).collect();
        self.program(user, &arguments)
    }

    /// Runs `underpass ARGUMENTS` on the node as a user, with nothing added.
    pub fn program(&self, user: u32, arguments: &[&str]) -> Outcome {
        let mut command = as_user(user, Path::new("timeout"));
        command
            .args(["--signal=KILL", &wait::patient(COMMAND).as_secs().to_string()])
            .arg(proxy::binary())
            .args(arguments);
        self.run(command)
    }

    /// Runs `program ARGUMENTS` on the node. Panics when it fails; answers what it printed.
    #[track_caller]
    pub fn tool<A: AsRef<OsStr>>(&self, program: &str, arguments: impl IntoIterator<Item = A>) -> String {
        let mut command = Process::command(program);
        command.args(arguments);
        let outcome = self.run(command);
        assert!(outcome.status.success(), "{program}: {outcome:?}");
        outcome.stdout
    }

    /// Runs a command on the node to its end.
    pub fn run(&self, mut command: Command) -> Outcome {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let child = self.host().spawn(command).expect("start a command");
        let output = child.wait_with_output().expect("wait for a command");
        Outcome {
            status: output.status,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    fn directories(&self, pins: bool) -> Vec<String> {
        let mut arguments = vec!["--run-dir".to_owned(), self.run_directory().display().to_string()];
        if pins {
            arguments.extend(["--pin-dir".to_owned(), self.pin_directory().display().to_string()]);
        }
        arguments
    }
}

/// A command that runs `program` as a user without further groups.
fn as_user(user: u32, program: &Path) -> Command {
    let (user, group) = (format!("--reuid={user}"), format!("--regid={user}"));
    Process::command_as(&program.display().to_string(), &[&user, &group, "--clear-groups"])
}

impl Default for CaptureNode {
    fn default() -> Self {
        Self::new()
    }
}
