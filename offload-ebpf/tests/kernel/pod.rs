//! A pod of the site: a namespace with a veth to the node, an application's place, and listeners in the proxy's place.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use underpass_ebpf::{Capture, Handshakes, PodSpec, netns_cookie};

use crate::site::{Namespace, Place, Site};
use crate::wait::{eventually, soon};

/// The port of the outbound listeners.
pub const OUTBOUND: u16 = 15001;

pub struct Pod {
    pub number: u8,
    pub namespace: Namespace,
    /// Where the pod's applications run.
    pub app: Place,
    /// The proxy, or rather its sockets in the pod's namespace.
    pub proxy: Place,
    pub cookie: u64,
    pub outbound_v4: TcpListener,
    pub outbound_v6: TcpListener,
    pub inbound_v4: TcpListener,
    pub inbound_v6: TcpListener,
}

/// A site with one enrolled pod.
pub fn enrolled() -> (Site, Capture, Pod) {
    let site = Site::new();
    let capture = site.start();
    let pod = Pod::new(&site, 1);
    capture.enrol(&pod.spec()).unwrap();
    (site, capture, pod)
}

/// Waits until the namespace of pod 1, whose handles are dropped, is gone: its end of the veth takes the node's with it.
pub fn await_end_of_first(site: &Site) {
    eventually("the namespace is gone", || {
        let node = site.node.place(None);
        let shown = node.run(|| std::fs::read_to_string("/proc/thread-self/net/dev").unwrap());
        !shown.contains("veth1")
    });
}

impl Pod {
    /// A pod with the addresses 10.9.NUMBER.2 and fd09:NUMBER::2, its gateway NUMBER.1 at the node.
    pub fn new(site: &Site, number: u8) -> Self {
        let namespace = Namespace::new();
        let pid = std::process::id();
        let peer = format!("/proc/{pid}/fd/{}", namespace.handle.as_raw_fd());
        site.node
            .ip(&format!("link add veth{number} type veth peer name eth0 netns {peer}"));
        site.node.ip(&format!("addr add 10.9.{number}.1/24 dev veth{number}"));
        site.node
            .ip(&format!("addr add fd09:{number}::1/64 dev veth{number} nodad"));
        site.node.ip(&format!("link set veth{number} up"));
        namespace.ip(&format!("addr add 10.9.{number}.2/24 dev eth0"));
        namespace.ip(&format!("addr add fd09:{number}::2/64 dev eth0 nodad"));
        namespace.ip("link set eth0 up");
        namespace.ip(&format!("route add default via 10.9.{number}.1"));
        namespace.ip(&format!("-6 route add default via fd09:{number}::1"));
        let agent = namespace.place(Some(&site.cgroup("agent")));
        let (v4, v6) = (address_v4(number), address_v6(number));
        let [outbound_v4, outbound_v6, inbound_v4, inbound_v6] = agent.run(move || {
            [
                SocketAddr::from((v4, OUTBOUND)),
                SocketAddr::from((v6, OUTBOUND)),
                SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
                SocketAddr::from((Ipv6Addr::LOCALHOST, 0)),
            ]
            .map(|address| TcpListener::bind(address).unwrap_or_else(|e| panic!("{address}: {e}")))
        });
        Self {
            number,
            app: namespace.place(Some(&site.cgroup("pods"))),
            proxy: namespace.place(Some(&site.cgroup("proxy"))),
            cookie: netns_cookie(outbound_v4.as_fd()).unwrap(),
            namespace,
            outbound_v4,
            outbound_v6,
            inbound_v4,
            inbound_v6,
        }
    }

    pub fn v4(&self, port: u16) -> SocketAddr {
        (address_v4(self.number), port).into()
    }

    pub fn v6(&self, port: u16) -> SocketAddr {
        (address_v6(self.number), port).into()
    }

    pub fn spec(&self) -> PodSpec<'_> {
        PodSpec {
            cookie: self.cookie,
            slot: self.number.into(),
            netns: self.namespace.handle.as_fd(),
            v4: Some((address_v4(self.number), OUTBOUND)),
            v6: Some((address_v6(self.number), OUTBOUND)),
            addresses: vec![address_v4(self.number).into(), address_v6(self.number).into()],
            inbound_v4: Some(self.inbound_v4.as_fd()),
            inbound_v6: Some(self.inbound_v6.as_fd()),
            handshake_limit: 1024,
        }
    }

    /// Accepts a captured connection as the proxy.
    #[track_caller]
    pub fn accept_outbound(&self, v6: bool) -> (TcpStream, SocketAddr) {
        let listener = if v6 { &self.outbound_v6 } else { &self.outbound_v4 };
        accept(&self.proxy, listener)
    }

    /// Accepts a steered connection as the proxy.
    #[track_caller]
    pub fn accept_inbound(&self, v6: bool) -> (TcpStream, SocketAddr) {
        let listener = if v6 { &self.inbound_v6 } else { &self.inbound_v4 };
        accept(&self.proxy, listener)
    }

    /// Whether a connection waits for the proxy at any of the pod's listeners.
    pub fn proxy_has_work(&self) -> bool {
        [&self.outbound_v4, &self.outbound_v6, &self.inbound_v4, &self.inbound_v6]
            .iter()
            .any(|listener| {
                listener.set_nonblocking(true).unwrap();
                let accepted = listener.accept();
                listener.set_nonblocking(false).unwrap();
                accepted.is_ok()
            })
    }

    /// An application's server, that answers each connection with the address that accept(2) gave, then that of getpeername(2), and
    /// then what it receives.
    pub fn serve(&self, address: &str) -> Server {
        serve(&self.app, address)
    }
}

/// See [`Pod::serve`].
pub fn serve(place: &Place, address: &str) -> Server {
    let address: SocketAddr = address.parse().unwrap();
    let listener = place.run(move || TcpListener::bind(address).unwrap_or_else(|e| panic!("{address}: {e}")));
    let port = listener.local_addr().unwrap().port();
    Server { listener, port }
}

/// An application's listener.
pub struct Server {
    pub listener: TcpListener,
    pub port: u16,
}

impl Server {
    /// Accepts one connection at `place`; what accept(2) says and what getpeername(2) says.
    #[track_caller]
    pub fn accept(&self, place: &Place) -> (TcpStream, SocketAddr, SocketAddr) {
        let (stream, accepted) = accept(place, &self.listener);
        let (stream, peer) = place.run(move || {
            let peer = stream.peer_addr().unwrap();
            (stream, peer)
        });
        (stream, accepted, peer)
    }
}

pub fn address_v4(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 9, number, 2)
}

pub fn address_v6(number: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd09, number.into(), 0, 0, 0, 0, 0, 2)
}

/// Accepts at `place`, or panics when nothing comes.
#[track_caller]
pub fn accept(place: &Place, listener: &TcpListener) -> (TcpStream, SocketAddr) {
    let listener = listener.try_clone().unwrap();
    place.run(move || {
        let end = std::time::Instant::now() + soon();
        listener.set_nonblocking(true).unwrap();
        loop {
            match listener.accept() {
                Ok((stream, peer)) => {
                    stream.set_nonblocking(false).unwrap();
                    stream.set_read_timeout(Some(soon())).unwrap();
                    return (stream, peer);
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    assert!(std::time::Instant::now() < end, "nothing to accept");
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(error) => panic!("accept: {error}"),
            }
        }
    })
}

/// Connects at `place`.
pub fn connect(place: &Place, address: SocketAddr) -> std::io::Result<TcpStream> {
    place.run(move || {
        let stream = TcpStream::connect_timeout(&address, soon())?;
        stream.set_read_timeout(Some(soon()))?;
        Ok(stream)
    })
}

/// What getpeername(2) says at `place`.
pub fn peer_name(place: &Place, stream: &TcpStream) -> SocketAddr {
    let stream = stream.try_clone().unwrap();
    place.run(move || stream.peer_addr().unwrap())
}

/// Bytes go both ways.
#[track_caller]
pub fn converse(a: &mut TcpStream, b: &mut TcpStream) {
    let mut buffer = [0; 4];
    a.write_all(b"ping").unwrap();
    b.read_exact(&mut buffer).unwrap();
    assert_eq!(&buffer, b"ping");
    b.write_all(b"pong").unwrap();
    a.read_exact(&mut buffer).unwrap();
    assert_eq!(&buffer, b"pong");
}

/// The proxy's view of the maps, made of descriptors as it gets them.
pub fn handshakes(capture: &Capture) -> Handshakes {
    let own = |fd: std::os::fd::BorrowedFd<'_>| -> OwnedFd { fd.try_clone_to_owned().unwrap() };
    Handshakes::from_fds(own(capture.handshakes_fd()), own(capture.notes_fd())).unwrap()
}

/// `ip:port`, IPv6 in brackets.
pub fn at(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse::<IpAddr>().unwrap(), port)
}
