//! Places to run things: hosts with addresses of their own, on loopback or in network namespaces.
//!
//! A loopback world claims one /24 of 127.0.0.0/8 by binding a socket in it, which the kernel grants to one world only: parallel
//! tests (and test processes) never collide, ports can be fixed numbers, and every host has an address that a policy can tell
//! from the others. It needs no privilege. A cluster is nodes and pods in namespaces: pods hang on their node by a veth, nodes on one
//! link, and nodes route, as with the simplest of Kubernetes network plugins.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tempfile::TempDir;

use crate::capture::Inside;
use crate::namespace::Namespace;

/// How long a connect may take before a test gives up on it: longer than any time-out that a test sets in a proxy.
const CONNECT_DEADLINE: Duration = Duration::from_secs(20);
/// Bound in a /24 of loopback by the world that has claimed it. Below the ephemeral range, so that no connection gets it.
const CLAIM: (u8, u16) = (254, 15999);
/// Deep enough that no test overflows it by accident (the default of std, 128, is not).
const BACKLOG: i32 = 4096;

/// What a test runs in; see the module's head.
pub struct World {
    place: Place,
    directory: TempDir,
}

enum Place {
    Loopback {
        prefix: [u8; 3],
        next: AtomicU8,
        _claim: Socket,
    },
    Cluster {
        nodes: Vec<Node>,
    },
}

struct Node {
    number: u8,
    namespace: Arc<Namespace>,
    next_pod: AtomicU8,
}

impl World {
    /// A /24 of loopback addresses that no other world has, and none of this process has had: threads of a test may listen there when its world is gone.
    pub fn loopback() -> Self {
        static HAD: Mutex<BTreeSet<[u8; 3]>> = Mutex::new(BTreeSet::new());
        let mut random = fastrand::Rng::new();
        let (prefix, claim) = crate::wait::some(crate::wait::SOON, "a free /24 of 127.0.0.0/8", || {
            let prefix = [127, random.u8(64..=127), random.u8(..)];
            let address = SocketAddr::from(([prefix[0], prefix[1], prefix[2], CLAIM.0], CLAIM.1));
            let claim = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
            let is_free = claim.bind(&address.into()).is_ok();
            let mut had = HAD.lock().unwrap_or_else(PoisonError::into_inner);
            (is_free && had.insert(prefix)).then_some((prefix, claim))
        });
        Self::at(Place::Loopback {
            prefix,
            next: AtomicU8::new(1),
            _claim: claim,
        })
    }

    /// `nodes` nodes, each a namespace that routes for its pods; node 0 is the first. Needs root.
    pub fn cluster(nodes: u8) -> Self {
        let nodes: Vec<Node> = (0..nodes).map(Node::new).collect();
        for (a, one) in nodes.iter().enumerate() {
            for other in &nodes[a + 1..] {
                one.join(other);
            }
        }
        Self::at(Place::Cluster { nodes })
    }

    fn at(place: Place) -> Self {
        let directory = tempfile::Builder::new()
            .prefix("underpass-")
            .tempdir()
            .expect("a temporary directory");
        Self { place, directory }
    }

    /// A folder of the world's own, removed with it.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A new host: on loopback the next address, in a cluster a new pod of node 0.
    pub fn host(&self) -> Host {
        match &self.place {
            Place::Loopback {
                prefix: [a, b, c],
                next,
                ..
            } => {
                let last = next.fetch_add(1, Ordering::Relaxed);
                assert!(last < CLAIM.0, "a loopback world has at most {} hosts", CLAIM.0 - 1);
                Host {
                    address: Ipv4Addr::new(*a, *b, *c, last).into(),
                    address6: None,
                    namespace: None,
                    receive_buffer: None,
                    inside: None,
                }
            }
            Place::Cluster { .. } => self.pod(0),
        }
    }

    /// A new pod of node `node`. Panics in a loopback world.
    pub fn pod(&self, node: usize) -> Host {
        self.pod_with(node, Families::Both)
    }

    /// As [`World::pod`], with addresses of these families only.
    pub fn pod_with(&self, node: usize, families: Families) -> Host {
        self.node_state(node).new_pod(families)
    }

    /// The node itself, as a host. Panics in a loopback world.
    pub fn node(&self, node: usize) -> Host {
        let state = self.node_state(node);
        let (address, address6) = addresses(state.number, 1);
        Host {
            address,
            address6: Some(address6),
            namespace: Some(state.namespace.clone()),
            receive_buffer: None,
            inside: None,
        }
    }

    fn node_state(&self, node: usize) -> &Node {
        match &self.place {
            Place::Cluster { nodes } => &nodes[node],
            Place::Loopback { .. } => panic!("a loopback world has hosts, not nodes and pods"),
        }
    }
}

/// Addresses of host `host` of node `node`; host 1 is the node.
fn addresses(node: u8, host: u8) -> (IpAddr, IpAddr) {
    let v6 = Ipv6Addr::new(0xfd00, 10, 244, node.into(), 0, 0, 0, host.into());
    (Ipv4Addr::new(10, 244, node, host).into(), v6.into())
}

/// The network of `bits` bits around an address, as `ip route` wants it.
fn subnet(address: IpAddr, bits: u8) -> String {
    match address {
        IpAddr::V4(v4) => format!(
            "{}/{bits}",
            Ipv4Addr::from_bits(v4.to_bits() & (u32::MAX << (32 - bits)))
        ),
        IpAddr::V6(v6) => format!(
            "{}/{bits}",
            Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << (128 - bits)))
        ),
    }
}

impl Node {
    fn new(number: u8) -> Self {
        let namespace = Namespace::with_mounts(&format!("node {number}"));
        namespace.sysctl("ipv4/ip_forward", "1");
        namespace.sysctl("ipv6/conf/all/forwarding", "1");
        let (v4, v6) = addresses(number, 1);
        namespace.ip(&format!("addr add {v4}/32 dev lo"));
        namespace.ip(&format!("addr add {v6}/128 dev lo nodad"));
        Self {
            number,
            namespace: Arc::new(namespace),
            next_pod: AtomicU8::new(2),
        }
    }

    /// One link between two nodes, and the routes to each other's pods.
    fn join(&self, other: &Node) {
        let (here, there) = (format!("to-node{}", other.number), format!("to-node{}", self.number));
        self.namespace.link(&here, &other.namespace, &there);
        for (from, to, device) in [(self, other, &here), (other, self, &there)] {
            let ((own, own6), (gateway, gateway6)) = (addresses(from.number, 1), addresses(to.number, 1));
            // IPv6 answers neighbour requests only for addresses of the device itself; IPv4 for any of the host's.
            from.namespace.ip(&format!("addr add {own6}/128 dev {device} nodad"));
            for (net, via, src) in [
                (subnet(gateway, 24), gateway, own),
                (subnet(gateway6, 64), gateway6, own6),
            ] {
                from.namespace
                    .ip(&format!("route add {net} via {via} dev {device} onlink src {src}"));
            }
        }
    }

    fn new_pod(&self, families: Families) -> Host {
        let number = self.next_pod.fetch_add(1, Ordering::Relaxed);
        let (address, address6) = addresses(self.number, number);
        let (node, node6) = addresses(self.number, 1);
        let namespace = Namespace::new(&format!("pod {address}"));
        let device = pod_device(number);
        self.namespace.link(&device, &namespace, "eth0");
        if families != Families::V6 {
            self.namespace
                .ip(&format!("route add {address}/32 dev {device} src {node}"));
            namespace.ip(&format!("addr add {address}/32 dev eth0"));
            namespace.ip(&format!("route add {node}/32 dev eth0"));
            namespace.ip(&format!("route add default via {node} dev eth0"));
        }
        if families != Families::V4 {
            self.namespace.ip(&format!("addr add {node6}/128 dev {device} nodad"));
            namespace.ip(&format!("addr add {address6}/128 dev eth0 nodad"));
            self.namespace
                .ip(&format!("-6 route add {address6}/128 dev {device} src {node6}"));
            namespace.ip(&format!("-6 route add {node6}/128 dev eth0"));
            namespace.ip(&format!("-6 route add default via {node6} dev eth0"));
        }
        Host {
            address: if families == Families::V6 { address6 } else { address },
            address6: (families != Families::V4).then_some(address6),
            namespace: Some(Arc::new(namespace)),
            receive_buffer: None,
            inside: None,
        }
    }
}

/// The node's end of the veth of its pod `number`.
fn pod_device(number: u8) -> String {
    format!("pod{number}")
}

/// The address families of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Families {
    /// Dual stack.
    Both,
    /// IPv4 only.
    V4,
    /// IPv6 only.
    V6,
}

/// A place with an address: sockets that it opens have that address, programs that it starts see its network.
#[derive(Clone)]
pub struct Host {
    address: IpAddr,
    address6: Option<IpAddr>,
    namespace: Option<Arc<Namespace>>,
    receive_buffer: Option<usize>,
    /// What its sockets and programs belong to beside the namespace.
    inside: Option<Arc<Inside>>,
}

impl Host {
    /// Its IPv4 address, or IPv6 if it has no other.
    pub fn ip(&self) -> IpAddr {
        self.address
    }

    /// Its IPv6 address; only hosts of a cluster have one.
    pub fn ip6(&self) -> IpAddr {
        self.address6.expect("only hosts of a cluster have IPv6 addresses")
    }

    /// All its addresses.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let mut addresses = vec![self.address];
        addresses.extend(self.address6.filter(|other| *other != self.address));
        addresses
    }

    /// Its IPv6 address with a port.
    pub fn at6(&self, port: u16) -> SocketAddr {
        (self.ip6(), port).into()
    }

    /// Its address with a port.
    pub fn at(&self, port: u16) -> SocketAddr {
        (self.address, port).into()
    }

    /// The same place by a loopback address: what a process there means by "only from here".
    pub fn loopback(&self) -> Self {
        match self.namespace {
            Some(_) => self.at_ip(Ipv4Addr::LOCALHOST.into()),
            None => self.clone(),
        }
    }

    /// The same place by another of its addresses.
    pub fn at_ip(&self, address: IpAddr) -> Self {
        Self {
            address,
            ..self.clone()
        }
    }

    /// The same place, whose sockets have receive buffers of this size instead of the system's choice.
    pub fn with_receive_buffer(&self, bytes: usize) -> Self {
        Self {
            receive_buffer: Some(bytes),
            ..self.clone()
        }
    }

    /// Listens on its address.
    pub fn listen(&self, port: u16) -> TcpListener {
        self.listen_with_backlog(self.at(port), BACKLOG).into()
    }

    pub(crate) fn listen_with_backlog(&self, address: SocketAddr, backlog: i32) -> Socket {
        Self::listen_on(self.socket(address), address, backlog)
    }

    fn listen_on(socket: Socket, address: SocketAddr, backlog: i32) -> Socket {
        socket.set_reuse_address(true).expect("SO_REUSEADDR");
        socket
            .bind(&address.into())
            .unwrap_or_else(|e| panic!("bind {address}: {e}"));
        socket
            .listen(backlog)
            .unwrap_or_else(|e| panic!("listen on {address}: {e}"));
        socket
    }

    /// The same place, in whose namespace sockets and programs begin in a cgroup too.
    pub(crate) fn inside(&self, inside: Arc<Inside>) -> Self {
        Self {
            inside: Some(inside),
            ..self.clone()
        }
    }

    pub(crate) fn namespace(&self) -> &Arc<Namespace> {
        self.namespace.as_ref().expect("a host in a namespace")
    }

    /// Connects to `to` as most programs do: the kernel chooses the source address.
    pub fn connect_unbound(&self, to: SocketAddr) -> io::Result<TcpStream> {
        Self::finish(self.socket(to), to)
    }

    /// Connects to `to` as event loops do: the socket is non-blocking from its beginning, and not waited for.
    pub fn connect_non_blocking(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let socket = self.socket(to);
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        socket.bind(&SocketAddr::from((self.address, 0)).into())?;
        match socket.connect(&to.into()) {
            Err(e) if e.raw_os_error() == Some(libc::EINPROGRESS) => Ok(socket.into()),
            other => other.map(|()| socket.into()),
        }
    }

    /// Connects to `to` from its own address of the same family.
    pub fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let socket = self.socket(to);
        // A port that is taken by bind(2) is nobody else's for as long as the connection is remembered, whatever the addresses: a test that
        // makes many connections would leave others none. Left to connect(2), it is the connection's.
        setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
        let own = self.own(to);
        let bound = socket.bind(&SocketAddr::from((own, 0)).into());
        bound.unwrap_or_else(|e| panic!("bind {own}: {e}"));
        Self::finish(socket, to)
    }

    /// As [`Host::connect`]; answers the source address too, which a log names even if the connect fails.
    pub fn dial(&self, to: SocketAddr) -> (SocketAddr, io::Result<TcpStream>) {
        let socket = self.socket(to);
        let own = self.own(to);
        socket
            .bind(&SocketAddr::from((own, 0)).into())
            .unwrap_or_else(|e| panic!("bind {own}: {e}"));
        let source = socket
            .local_addr()
            .expect("bound")
            .as_socket()
            .expect("an internet address");
        (source, Self::finish(socket, to))
    }

    fn own(&self, to: SocketAddr) -> IpAddr {
        if to.is_ipv4() { self.address } else { self.ip6() }
    }

    fn finish(socket: Socket, to: SocketAddr) -> io::Result<TcpStream> {
        socket.connect_timeout(&SockAddr::from(to), CONNECT_DEADLINE)?;
        socket.set_tcp_nodelay(true)?;
        Ok(socket.into())
    }

    /// A socket that belongs to the host's network, whichever thread uses it.
    pub fn socket(&self, family_of: SocketAddr) -> Socket {
        self.socket_of(Domain::for_address(family_of), Type::STREAM)
    }

    /// As [`Host::socket`], of any kind.
    pub fn socket_of(&self, domain: Domain, kind: Type) -> Socket {
        self.try_socket(domain, kind, None).expect("a socket")
    }

    /// As [`Host::socket_of`], of a protocol that the kernel may not have.
    pub fn try_socket(&self, domain: Domain, kind: Type, protocol: Option<Protocol>) -> io::Result<Socket> {
        let make = move || Socket::new(domain, kind, protocol);
        let socket = match (&self.inside, &self.namespace) {
            (Some(inside), _) => inside.socket(domain, kind, protocol),
            (None, Some(namespace)) => namespace.run(make),
            (None, None) => make(),
        }?;
        // Before it connects or listens: the window offered at first can't be taken back.
        if let Some(bytes) = self.receive_buffer {
            socket.set_recv_buffer_size(bytes).expect("SO_RCVBUF");
        }
        Ok(socket)
    }

    /// `command` as it is to be started here; its standard streams are set afterwards.
    pub(crate) fn prepare(&self, command: Command) -> Command {
        match &self.inside {
            Some(inside) => inside.enter(&command),
            None => command,
        }
    }

    /// Starts a prepared `command` in the host's network. On loopback the child ends with the calling thread, in a namespace with the host.
    pub(crate) fn spawn(&self, mut command: Command) -> io::Result<Child> {
        match &self.namespace {
            Some(namespace) => namespace.run(move || command.spawn()),
            None => command.spawn(),
        }
    }

    /// Runs `ip ARGUMENTS` in the host's namespace; answers what it printed. Panics on loopback.
    pub fn ip_command(&self, arguments: &str) -> String {
        self.namespace().ip(arguments)
    }

    /// The number of a device of the host: the scope of its link-local addresses.
    pub fn device_index(&self, device: &str) -> u32 {
        let line = self.ip_command(&format!("-o link show dev {device}"));
        let index = line.split(':').next().and_then(|index| index.parse().ok());
        index.unwrap_or_else(|| panic!("not a device: {line}"))
    }
}
