//! The stretch of network that is measured: client → node → server.
//!
//! As root these are three anonymous network namespaces joined by two veth pairs, and the node routes between them, as a
//! Kubernetes node does for its pods:
//!
//! ```text
//!   client 10.81.1.2 ── veth ── 10.81.1.1 node 10.81.2.1 ── veth ── 10.81.2.2 server
//! ```
//!
//! `direct` is a connection routed through the node; the proxies listen in the node's namespace. So direct and relayed
//! bytes cross the same two links, and what differs is the proxy alone. Without the privilege all three are
//! the loopback interface.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use nix::unistd::geteuid;

use crate::place::Place;
use crate::process::Process;

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 81, 1, 2);
const NODE_TO_CLIENT: Ipv4Addr = Ipv4Addr::new(10, 81, 1, 1);
const NODE_TO_SERVER: Ipv4Addr = Ipv4Addr::new(10, 81, 2, 1);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 81, 2, 2);
/// First port handed out in namespaces of our own, below the ephemeral range and apart from 15001, where captured pods are listened for.
const FIRST_PORT: u16 = 12_000;

/// Three places and the addresses by which they reach each other.
pub(crate) struct Topology {
    /// Where the load is made.
    pub(crate) client: Place,
    /// Where proxies run.
    pub(crate) node: Place,
    /// Where the load ends.
    pub(crate) server: Place,
    /// Address of the node that the client connects to.
    pub(crate) node_address: IpAddr,
    /// Address of the client.
    pub(crate) client_address: IpAddr,
    /// Address of the server that the client (direct) or the proxy connects to.
    pub(crate) server_address: IpAddr,
    namespaces: Vec<Process>,
    next_port: u16,
}

impl Topology {
    /// Whether there will be namespaces: as root, if loopback is not asked for.
    pub(crate) fn may_be_isolated(force_loopback: bool) -> bool {
        !force_loopback && geteuid().is_root()
    }

    /// Namespaces as root, else loopback.
    pub(crate) fn new(force_loopback: bool, logs: &Path) -> Result<Topology> {
        if Topology::may_be_isolated(force_loopback) {
            Topology::namespaces(logs)
        } else {
            Ok(Topology::loopback())
        }
    }

    /// Client, node and server on 127.0.0.1, in the bench's own namespace.
    pub(crate) fn loopback() -> Topology {
        Topology {
            client: Place::default(),
            node: Place::default(),
            server: Place::default(),
            node_address: Ipv4Addr::LOCALHOST.into(),
            client_address: Ipv4Addr::LOCALHOST.into(),
            server_address: Ipv4Addr::LOCALHOST.into(),
            namespaces: Vec::new(),
            next_port: FIRST_PORT,
        }
    }

    fn namespaces(logs: &Path) -> Result<Topology> {
        let mut held = Vec::new();
        for name in ["client", "node", "server"] {
            held.push(hold_namespace(&logs.join(format!("namespace-{name}.log")))?);
        }
        let [client, node, server] = &held[..] else {
            bail!("three namespaces were made, not {}", held.len())
        };
        let place = |holder: &Process| Place {
            namespace: Some(holder.namespace()),
            ..Place::default()
        };
        let topology = Topology {
            client: place(client),
            node: place(node),
            server: place(server),
            node_address: NODE_TO_CLIENT.into(),
            client_address: CLIENT.into(),
            server_address: SERVER.into(),
            next_port: FIRST_PORT,
            namespaces: Vec::new(),
        };
        configure(
            &topology.node,
            &format!(
                "link set lo up\n\
                 link add client type veth peer name eth0 netns {}\n\
                 link add server type veth peer name eth0 netns {}\n\
                 addr add {NODE_TO_CLIENT}/24 dev client\naddr add {NODE_TO_SERVER}/24 dev server\n\
                 link set client up\nlink set server up\n",
                client.id(),
                server.id()
            ),
        )?;
        for (place, address, gateway) in [
            (&topology.client, CLIENT, NODE_TO_CLIENT),
            (&topology.server, SERVER, NODE_TO_SERVER),
        ] {
            configure(
                place,
                &format!(
                    "link set lo up\naddr add {address}/24 dev eth0\nlink set eth0 up\nroute add default via {gateway}\n"
                ),
            )?;
        }
        forward(&topology.node)?;
        Ok(Topology {
            namespaces: held,
            ..topology
        })
    }

    /// Whether the three places are namespaces of their own.
    pub(crate) fn is_isolated(&self) -> bool {
        !self.namespaces.is_empty()
    }

    /// Process that holds the client's namespace.
    pub(crate) fn client_holder(&self) -> Result<u32> {
        self.holder(0)
    }

    /// Process that holds the server's namespace.
    pub(crate) fn server_holder(&self) -> Result<u32> {
        self.holder(2)
    }

    fn holder(&self, place: usize) -> Result<u32> {
        let holder = self.namespaces.get(place).context("there are no namespaces")?;
        Ok(holder.id())
    }

    /// A sentence for the report.
    pub(crate) fn description(&self) -> &'static str {
        if self.is_isolated() {
            "client, node and server in three network namespaces joined by veth pairs; the node routes"
        } else {
            "loopback (no namespaces: not root, or asked for); figures differ from those of the routed set-up"
        }
    }

    /// A port nobody listens on.
    pub(crate) fn port(&mut self) -> Result<u16> {
        if self.is_isolated() {
            self.next_port += 1;
            return Ok(self.next_port);
        }
        free_port()
    }

    /// The server's address with a port.
    pub(crate) fn server_at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.server_address, port)
    }

    /// The node's address with a port.
    pub(crate) fn node_at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.node_address, port)
    }
}

/// A free port of 127.0.0.1. Somebody else may take it before it is used; on a machine that is being measured nobody does.
pub(crate) fn free_port() -> Result<u16> {
    let probe = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port on 127.0.0.1")?;
    Ok(probe.local_addr()?.port())
}

fn hold_namespace(log: &Path) -> Result<Process> {
    let mut command = std::process::Command::new(std::env::current_exe()?);
    command
        .arg("namespace")
        .arg("--parent")
        .arg(std::process::id().to_string());
    let mut holder = Process::start(command, log)?;
    holder.line()?;
    Ok(holder)
}

/// Runs lines of `ip -batch` in `place`.
fn configure(place: &Place, batch: &str) -> Result<()> {
    let program = PathBuf::from("ip");
    let mut command = place.command(&program)?;
    let mut child = command
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting ip(8)")?;
    if let Some(mut stdin) = child.stdin.take() {
        std::io::Write::write_all(&mut stdin, batch.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!(
            "ip -batch failed (is iproute2 installed? scripts/bench-setup.sh does it): {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}

/// Makes the namespace route. `/proc/sys/net` shows the namespace of whoever opens it, hence the child.
fn forward(node: &Place) -> Result<()> {
    let status = node
        .command(Path::new("sh"))?
        .args(["-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"])
        .status()
        .context("sh")?;
    if !status.success() {
        bail!("the node's namespace can't be made to route: /proc/sys is not writable here; try --loopback");
    }
    Ok(())
}
