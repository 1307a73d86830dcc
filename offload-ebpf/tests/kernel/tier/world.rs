//! A node with the tier, and flows through it: client A, proxy's sockets PA and H, server B.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use underpass_ebpf::tier::{Direction, FlowMemory, JoinRequest, JoinedFlow, NotJoined, Tally, Ticket, Tier, Variant};
use underpass_ebpf::{Capture, Error};

use super::relay::Join;
use crate::pod::accept;
use crate::site::{Place, Site, is_root, skip};
use crate::wait::soon;

/// What tests have waiting at a receiver at most.
pub const LIMIT: u32 = 256 * 1024;

/// Largest segment that the proxy's sockets take. Over loopback it would be 64 KiB, and a sender of such segments waits
/// for its timer (200 ms) when the window that it is given is smaller.
const SEGMENT: i32 = 4096;

pub struct World {
    pub tier: Arc<Tier>,
    pub memory: Arc<FlowMemory>,
    /// Where applications run.
    pub app: Place,
    pub proxy: Place,
    pub agent: Place,
    pub capture: Capture,
    pub site: Site,
}

/// The proxy's view of the tier, made of descriptors as it gets them.
pub fn memory(tier: &Tier) -> Arc<FlowMemory> {
    let own = |fd: BorrowedFd<'_>| -> OwnedFd { fd.try_clone_to_owned().unwrap() };
    Arc::new(FlowMemory::from_fds(own(tier.flows_fd()), own(tier.measure_fd())).unwrap())
}

impl World {
    /// None, having said why, if there can be no tier here.
    pub fn new() -> Option<Self> {
        if !is_root() {
            return None;
        }
        let site = Site::new();
        let capture = site.start();
        match Tier::start(&capture) {
            Ok(tier) => Some(Self::of(site, capture, tier)),
            Err(Error::TierOff { reason }) => {
                skip(&format!("this kernel has no kernel tier: {reason}"));
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// With a tier whether or not the kernel treats redirected bytes as applications expect.
    pub fn untested() -> Option<Self> {
        if !is_root() {
            return None;
        }
        let site = Site::new();
        let capture = site.start();
        let tier = Tier::start_untested(&capture, Variant::Plain).unwrap();
        Some(Self::of(site, capture, tier))
    }

    /// With a tier that is started.
    pub fn of(site: Site, capture: Capture, tier: Tier) -> Self {
        let tier = Arc::new(tier);
        Self {
            memory: memory(&tier),
            app: site.node.place(Some(&site.cgroup("pods"))),
            proxy: site.node.place(Some(&site.cgroup("proxy"))),
            agent: site.node.place(Some(&site.cgroup("agent"))),
            site,
            capture,
            tier,
        }
    }

    /// A flow over IPv4 loopback whose applications are non-blocking.
    pub fn flow(&self) -> Flow {
        self.flow_at("127.0.0.1", "127.0.0.1")
    }

    /// A flow through listeners at `address`, to which the clients connect by the name `by`.
    pub fn flow_at(&self, address: &str, by: &str) -> Flow {
        let [front, back] = [&self.proxy, &self.app].map(|place| listen(place, address));
        let at = |listener: &TcpListener| SocketAddr::new(by.parse().unwrap(), listener.local_addr().unwrap().port());
        set_option(&front, libc::IPPROTO_TCP, libc::TCP_MAXSEG, SEGMENT);
        let a = connect(&self.app, at(&front));
        let pa = accept(&self.proxy, &front).0;
        let h = connect_as_proxy(&self.proxy, at(&back));
        let b = accept(&self.app, &back).0;
        Flow::new(a, pa, h, b)
    }

    /// As the agent joins a flow.
    pub fn join(&self, flow: &Flow) -> Result<Ticket, NotJoined> {
        self.join_as(&flow.pa, &flow.h, LIMIT, None)
    }

    pub fn join_as(
        &self,
        pa: &TcpStream,
        h: &TcpStream,
        limit: u32,
        variant: Option<Variant>,
    ) -> Result<Ticket, NotJoined> {
        let namespace = self.site.node.handle.try_clone().unwrap();
        join_between(
            &self.agent,
            &self.tier,
            pa,
            h,
            [namespace.as_fd(), namespace.as_fd()],
            limit,
            variant,
        )
    }

    /// How a relay asks the agent.
    pub fn joiner(&self, variant: Variant) -> Join {
        let (tier, namespace) = (self.tier.clone(), self.site.node.handle.try_clone().unwrap());
        let agent = self.site.node.place(Some(&self.site.cgroup("agent")));
        Box::new(move |pa, h| {
            let namespaces = [namespace.as_fd(), namespace.as_fd()];
            join_between(&agent, &tier, pa, h, namespaces, LIMIT, Some(variant))
        })
    }

    /// Joins and arms.
    #[track_caller]
    pub fn joined(&self, flow: &Flow) -> JoinedFlow {
        self.joined_as(flow, self.tier.variant())
    }

    #[track_caller]
    pub fn joined_as(&self, flow: &Flow, variant: Variant) -> JoinedFlow {
        let ticket = self.join_as(&flow.pa, &flow.h, LIMIT, Some(variant)).unwrap();
        let joined = self.memory.flow(ticket);
        joined.arm(Direction::Out);
        joined.arm(Direction::In);
        joined
    }
}

pub fn join_between(
    agent: &Place,
    tier: &Arc<Tier>,
    pa: &TcpStream,
    h: &TcpStream,
    netns: [BorrowedFd<'_>; 2],
    limit: u32,
    variant: Option<Variant>,
) -> Result<Ticket, NotJoined> {
    let (pa, h) = (pa.try_clone().unwrap(), h.try_clone().unwrap());
    let [client, server] = netns.map(|netns| netns.try_clone_to_owned().unwrap());
    let tier = tier.clone();
    agent.run(move || {
        let before = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        let joined = tier.join(&JoinRequest {
            downstream: pa.as_fd(),
            upstream: h.as_fd(),
            client_netns: client.as_fd(),
            server_netns: server.as_fd(),
            limit,
            variant,
        });
        assert_eq!(std::fs::read_link("/proc/thread-self/ns/net").unwrap(), before);
        joined
    })
}

pub fn listen(place: &Place, address: &str) -> TcpListener {
    let address = SocketAddr::new(address.parse().unwrap(), 0);
    place.run(move || TcpListener::bind(address).unwrap_or_else(|e| panic!("{address}: {e}")))
}

pub fn connect(place: &Place, to: SocketAddr) -> TcpStream {
    place.run(move || TcpStream::connect_timeout(&to, soon()).unwrap_or_else(|e| panic!("{to}: {e}")))
}

fn connect_as_proxy(place: &Place, to: SocketAddr) -> TcpStream {
    place.run(move || {
        let socket = socket2::Socket::new(socket2::Domain::for_address(to), socket2::Type::STREAM, None).unwrap();
        set_option(&socket, libc::IPPROTO_TCP, libc::TCP_MAXSEG, SEGMENT);
        socket.connect(&to.into()).unwrap_or_else(|e| panic!("{to}: {e}"));
        socket.into()
    })
}

/// Four sockets.
pub struct Flow {
    pub a: TcpStream,
    pub pa: TcpStream,
    pub h: TcpStream,
    pub b: TcpStream,
}

impl Flow {
    pub fn new(a: TcpStream, pa: TcpStream, h: TcpStream, b: TcpStream) -> Self {
        for socket in [&a, &pa, &h, &b] {
            socket.set_nonblocking(true).unwrap();
            socket.set_nodelay(true).unwrap();
        }
        Self { a, pa, h, b }
    }

    /// Relays `bytes` from A to B as a proxy that has them in hand.
    #[track_caller]
    pub fn relay_out(&self, bytes: usize) {
        let relayed = read(&self.pa, bytes);
        write(&self.h, &relayed);
    }
}

/// Reads exactly so many bytes from a non-blocking socket.
#[track_caller]
pub fn read(mut socket: &TcpStream, bytes: usize) -> Vec<u8> {
    let mut buffer = vec![0; bytes];
    let mut filled = 0;
    let end = Instant::now() + soon();
    while filled < bytes {
        match socket.read(&mut buffer[filled..]) {
            Ok(0) => panic!("end after {filled} of {bytes} bytes"),
            Ok(len) => filled += len,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                assert!(Instant::now() < end, "only {filled} of {bytes} bytes");
                wait(socket, libc::POLLIN);
            }
            Err(error) => panic!("after {filled} of {bytes} bytes: {error}"),
        }
    }
    buffer
}

/// Reads what there is up to the end, and how it ended.
#[track_caller]
pub fn read_to_end(socket: &TcpStream) -> (Vec<u8>, Option<ErrorKind>) {
    let mut all = Vec::new();
    let end = drain(socket, |bytes| all.extend_from_slice(bytes));
    (all, end)
}

/// Gives away what there is up to the end, and says how it ended.
#[track_caller]
pub fn drain(mut socket: &TcpStream, mut each: impl FnMut(&[u8])) -> Option<ErrorKind> {
    let mut buffer = [0; 65536];
    let end = Instant::now() + soon();
    loop {
        match socket.read(&mut buffer) {
            Ok(0) => return None,
            Ok(len) => each(&buffer[..len]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                assert!(Instant::now() < end, "no end");
                wait(socket, libc::POLLIN);
            }
            Err(error) => return Some(error.kind()),
        }
    }
}

/// Writes all.
#[track_caller]
pub fn write(mut socket: &TcpStream, mut bytes: &[u8]) {
    let end = Instant::now() + soon();
    while !bytes.is_empty() {
        match socket.write(bytes) {
            Ok(len) => bytes = &bytes[len..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                assert!(Instant::now() < end, "{} bytes left to write", bytes.len());
                wait(socket, libc::POLLOUT);
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// Nothing is there to be read.
#[track_caller]
pub fn assert_nothing(mut socket: &TcpStream) {
    let answer = socket.read(&mut [0; 1]);
    assert_eq!(answer.unwrap_err().kind(), ErrorKind::WouldBlock);
}

/// Waits for an event, for a little while at most.
pub fn wait(socket: &TcpStream, event: i16) {
    let mut poll = libc::pollfd {
        fd: socket.as_raw_fd(),
        events: event,
        revents: 0,
    };
    // SAFETY: one pollfd.
    unsafe { libc::poll(&mut poll, 1, 10) };
}

/// A tally with only these counts.
pub fn bypassed(bytes: u64, messages: u64) -> Tally {
    Tally {
        bypassed_bytes: bytes,
        bypassed_messages: messages,
        ..Tally::default()
    }
}

/// Sets an option to a number; false if the kernel does not want to.
pub fn set_option(socket: &impl AsRawFd, level: i32, name: i32, value: i32) -> bool {
    let (at, len) = (std::ptr::from_ref(&value).cast(), size_of::<i32>() as u32);
    // SAFETY: `len` bytes at `at`.
    unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, at, len) == 0 }
}

/// Bytes that TCP has delivered, in order or not (`tcpi_bytes_received`).
pub fn tcp_bytes_received(socket: &TcpStream) -> u64 {
    // After 104 bytes, two pacing rates and the bytes acknowledged.
    tcp_info(socket)[16]
}

/// `struct tcp_info` (linux/tcp.h).
fn tcp_info(socket: &TcpStream) -> [u64; 32] {
    let mut info: [u64; 32] = [0; 32];
    let mut len = size_of_val(&info) as u32;
    let fd = socket.as_raw_fd();
    // SAFETY: at most `len` bytes are written.
    let result = unsafe {
        let info = info.as_mut_ptr().cast();
        libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, info, &mut len)
    };
    assert_eq!(result, 0);
    info
}

/// Segments, an end among them, that the peer has not yet acknowledged (`tcpi_unacked`).
pub fn unacknowledged(socket: &TcpStream) -> u32 {
    // After eight single bytes, the fifth number.
    tcp_info(socket)[3] as u32
}

/// What the application asked for, or was given: `TCP_NOTSENT_LOWAT`.
pub fn notsent_lowat(socket: &TcpStream) -> i32 {
    let (mut value, mut len) = (0i32, size_of::<i32>() as u32);
    let fd = socket.as_raw_fd();
    let at = std::ptr::from_mut(&mut value).cast();
    // SAFETY: at most `len` bytes are written to `value`.
    let result = unsafe { libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, at, &mut len) };
    assert_eq!(result, 0);
    value
}
