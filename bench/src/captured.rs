//! The captured system: a node of its own, whose client and server know nothing of a proxy.
//!
//! Its three namespaces are like those of the other systems, but apart from them: what is captured there must not be what the others are
//! measured with. The client connects to the server's address; that the connection goes through the proxy is the kernel's doing. The
//! processes of the pods are in a cgroup of this bench's, and the capture programs are attached to that cgroup only.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use underpass_tests::Authority;

use crate::admin::TierBytes;
use crate::place::Place;
use crate::process::Process;
use crate::topology::Topology;

const START_DEADLINE: Duration = Duration::from_secs(20);

/// What it takes to start one.
#[derive(Clone)]
pub(crate) struct Task<'a> {
    /// The `underpass` binary.
    pub(crate) program: &'a Path,
    /// Threads of the proxy.
    pub(crate) workers: &'a str,
    /// Cores of agent and proxy.
    pub(crate) cores: &'a [usize],
    /// Directory for configuration and logs.
    pub(crate) directory: &'a Path,
    /// File name of both, without extension.
    pub(crate) name: String,
    /// Port of the proxy's admin server.
    pub(crate) admin_port: u16,
    /// Whether flows may move to the kernel.
    pub(crate) has_kernel_tier: bool,
    /// Whether the pods are in the mesh: with identities and certificates, reachable by tunnels, and with policies that take whom they know only.
    pub(crate) is_in_mesh: bool,
}

/// A node with two enrolled pods.
pub(crate) struct Captured {
    /// Its namespaces. Client and server are to be started in [`Captured::pod`].
    pub(crate) topology: Topology,
    /// Whether flows may move to the kernel.
    pub(crate) has_kernel_tier: bool,
    node: Node,
}

impl Captured {
    /// Starts agent and proxy and enrols client and server.
    pub(crate) fn start(task: &Task<'_>) -> Result<Captured> {
        let topology = Topology::new(false, task.directory)?;
        let node = Node::start(task, &topology, &yaml(&topology, task))?;
        node.enrol("client", topology.client_holder()?)?;
        node.enrol("server", topology.server_holder()?)?;
        Ok(Captured {
            has_kernel_tier: task.has_kernel_tier,
            node,
            topology,
        })
    }

    /// A place in one of its pods, on `cores`.
    pub(crate) fn pod(&self, place: &Place, cores: &[usize]) -> Result<Place> {
        self.node.pod(place, cores)
    }

    /// Bytes that the proxy has moved so far, by tier.
    pub(crate) fn tier_bytes(&self) -> Result<TierBytes> {
        let mut command = self.topology.node.own("tiers")?;
        let admin = SocketAddr::from((Ipv4Addr::LOCALHOST, self.node.admin_port));
        let output = command.arg("--admin").arg(admin.to_string()).output()?;
        serde_json::from_slice(&output.stdout).context("asking the proxy for its bytes by tier")
    }

    /// Agent and proxy.
    pub(crate) fn processes(&self) -> [&Process; 2] {
        self.node.processes()
    }
}

/// An agent and a proxy, and the cgroup whose pods they serve.
pub(crate) struct Node {
    agent: Process,
    proxy: Process,
    program: PathBuf,
    run_directory: PathBuf,
    pins: PathBuf,
    admin_port: u16,
    // Last: a cgroup can only be removed when no process is left in it.
    cgroup: Cgroup,
}

impl Node {
    /// Starts both in the node's namespace; `yaml` is the proxy's configuration.
    pub(crate) fn start(task: &Task<'_>, topology: &Topology, yaml: &str) -> Result<Node> {
        ensure!(
            topology.is_isolated(),
            "captured pods need root: it makes namespaces and loads eBPF programs"
        );
        let cgroup = Cgroup::create()?;
        let name = cgroup.name();
        let run_directory = std::env::temp_dir().join(&name);
        fs::create_dir_all(&run_directory).with_context(|| format!("creating {}", run_directory.display()))?;
        let pins = Path::new("/sys/fs/bpf").join(&name);
        let node = topology.node.on(task.cores);
        let log = |role: &str| task.directory.join(format!("{}-{role}.log", task.name));
        let mut agent = node.in_cgroup(&cgroup.child("agent")?).command(task.program)?;
        agent.arg("agent").arg("--run-dir").arg(&run_directory);
        agent.arg("--pin-dir").arg(&pins).arg("--cgroup").arg(&cgroup.path);
        let mut agent = Process::start(agent, &log("agent"))?;
        let socket = run_directory.join("agent.sock");
        agent.wait_until("listen on agent.sock", START_DEADLINE, |_| Ok(socket.exists()))?;
        let configuration = task.directory.join(format!("{}.yaml", task.name));
        fs::write(&configuration, yaml)?;
        let mut proxy = node.in_cgroup(&cgroup.child("proxy")?).command(task.program)?;
        proxy
            .arg("proxy")
            .arg("--config")
            .arg(&configuration)
            .arg("--agent")
            .arg(&socket);
        let proxy = Process::start_proxy(proxy, &log("proxy"), task.admin_port)?;
        Ok(Node {
            agent,
            proxy,
            program: task.program.to_owned(),
            run_directory,
            pins,
            admin_port: task.admin_port,
            cgroup,
        })
    }

    /// A place in one of its pods, on `cores`.
    pub(crate) fn pod(&self, place: &Place, cores: &[usize]) -> Result<Place> {
        Ok(place.on(cores).in_cgroup(&self.cgroup.child("pods")?))
    }

    /// Agent and proxy.
    pub(crate) fn processes(&self) -> [&Process; 2] {
        [&self.proxy, &self.agent]
    }

    /// Enrols the pod in whose namespace process `pid` is.
    pub(crate) fn enrol(&self, uid: &str, pid: u32) -> Result<()> {
        self.command(&["enrol", "--pid", &pid.to_string(), "--uid", uid])
    }

    fn command(&self, arguments: &[&str]) -> Result<()> {
        let output = std::process::Command::new(&self.program)
            .args(arguments)
            .arg("--run-dir")
            .arg(&self.run_directory)
            .output()
            .with_context(|| format!("starting {}", self.program.display()))?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "underpass {}: {}",
            arguments.join(" "),
            said.trim()
        );
        Ok(())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let pins = self.pins.to_string_lossy().into_owned();
        if let Err(error) = self.command(&["detach", "--pin-dir", &pins]) {
            eprintln!("bench: capture could not be ended: {error:#}; run `underpass detach --pin-dir {pins}`");
        }
        let _ = fs::remove_dir_all(&self.run_directory);
    }
}

fn yaml(topology: &Topology, task: &Task<'_>) -> String {
    let (identities, of_mesh, policies) = match task.is_in_mesh {
        true => in_mesh(task.directory),
        false => Default::default(),
    };
    let workload = |name: &str, ip| {
        format!(
            "- {{uid: {name}, name: {name}, namespace: bench, service_account: {name}, node: bench, {of_mesh}addresses: [\"{ip}\"]}}\n"
        )
    };
    format!(
        "node:\n  name: bench\n  workers: {}\n  admin: \"127.0.0.1:{}\"\n  log: warn\n  access_log: {{format: \"off\"}}\n  \
         offload: {{enabled: {}, trust_readers: true}}\n{identities}workloads:\n{}{}{policies}",
        task.workers,
        task.admin_port,
        task.has_kernel_tier,
        workload("client", topology.client_address),
        workload("server", topology.server_address),
    )
}

/// What the mesh adds: to the node, to each workload, and the policies.
fn in_mesh(directory: &Path) -> (String, &'static str, &'static str) {
    let authority = Authority::new(&directory.join("certificates-mesh"));
    let identities = authority.identities(&["bench/client", "bench/server"]);
    (
        format!("  identities: {identities}\n"),
        "tunnel_protocol: hbone, ",
        "authorization_policies:\n\
         - {name: identity-required, namespace: bench, scope: NAMESPACE, action: DENY, groups: [{rules: [{matches: \
         [{not_principals: [{presence: {}}]}]}]}]}\n\
         - {name: clients, namespace: bench, scope: NAMESPACE, action: ALLOW, groups: [{rules: [{matches: \
         [{principals: [cluster.local/ns/bench/sa/client]}]}]}]}\n",
    )
}

/// A cgroup of the bench's, removed when dropped.
struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    fn create() -> Result<Cgroup> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = mount()?.join(format!("underpass-bench-{}-{number}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("creating cgroup {}", path.display()))?;
        Ok(Cgroup { path })
    }

    fn name(&self) -> String {
        self.path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default()
    }

    fn child(&self, name: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        fs::create_dir_all(&path).with_context(|| format!("creating cgroup {}", path.display()))?;
        Ok(path)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let children = fs::read_dir(&self.path).into_iter().flatten().flatten();
        for child in children.filter(|entry| entry.path().is_dir()) {
            let _ = fs::remove_dir(child.path());
        }
        if let Err(error) = fs::remove_dir(&self.path) {
            eprintln!("bench: cgroup {} could not be removed: {error}", self.path.display());
        }
    }
}

/// Where cgroup2 is mounted.
fn mount() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts")?;
    let mount = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let path = fields.next()?;
        (fields.next()? == "cgroup2").then(|| PathBuf::from(path))
    });
    mount.context("cgroup2 is not mounted; mount it with `mount -t cgroup2 none /sys/fs/cgroup/unified`")
}
