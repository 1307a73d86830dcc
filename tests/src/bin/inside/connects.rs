//! Ways to connect that a program may try in order not to be captured.

use std::fs;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use underpass_tests::wait;

use crate::outcome::Outcome;
use crate::raw;

/// A mark that other meshes and network plugins exempt their own proxies by.
const MARKS: [u32; 4] = [1, 0x200, 0x539, u32::MAX];
/// A connect that takes longer is taken for refused: the kernel drops what the guard doesn't let through, and says nothing.
const PATIENCE: Duration = Duration::from_secs(2);
const MESSAGE_OF_FASTOPEN: &[u8] = b"early";

/// Connects to `target` in the way that `how` names; `more` is what that way needs.
pub(crate) fn run(how: &str, target: SocketAddr, more: &[&str]) -> Outcome {
    let attempt = match (how, more) {
        ("plainly", []) => connect(&socket(target), target),
        ("marked", []) => marked(target),
        ("from-own-cgroup", []) => from_own_cgroup(target),
        ("from-cgroup", [cgroup]) => from_cgroup(cgroup.as_ref(), target),
        ("non-blocking", []) => non_blocking(target),
        ("mapped", []) => connect(&socket(mapped(target)), mapped(target)),
        ("fastopen-message", []) => fastopen_message(target),
        ("fastopen-connect", []) => fastopen_connect(target),
        ("freebind", [source]) => bound(target, source, |socket, v4| {
            if v4 {
                socket.set_freebind_v4(true)
            } else {
                socket.set_freebind_v6(true)
            }
        }),
        ("transparent", [source]) => bound(target, source, |socket, v4| {
            if v4 {
                socket.set_ip_transparent_v4(true)
            } else {
                raw::set_transparent_v6(socket)
            }
        }),
        ("bound", [source]) => bound(target, source, |_, _| Ok(())),
        ("on-device", [device]) => on_device(target, device),
        ("forked", []) => return forked(target),
        ("again", [other]) => again(target, other.parse().expect("an address")),
        ("mptcp", []) => return mptcp(target),
        ("repaired", []) => return repaired(target),
        ("thief", []) => return thief(target),
        ("threads", []) => return threads(target),
        _ => panic!("no such way: {how} {more:?}"),
    };
    Outcome::of(attempt)
}

fn socket(target: SocketAddr) -> Socket {
    Socket::new(Domain::for_address(target), Type::STREAM, None).expect("a socket")
}

fn connect(socket: &Socket, target: SocketAddr) -> io::Result<TcpStream> {
    socket.connect_timeout(&SockAddr::from(target), PATIENCE)?;
    Ok(socket.try_clone()?.into())
}

fn mapped(target: SocketAddr) -> SocketAddr {
    match target {
        SocketAddr::V4(v4) => (v4.ip().to_ipv6_mapped(), v4.port()).into(),
        v6 => v6,
    }
}

fn marked(target: SocketAddr) -> io::Result<TcpStream> {
    let mut last = Err(ErrorKind::NotConnected.into());
    for mark in MARKS {
        let socket = socket(target);
        socket.set_mark(mark)?;
        last = connect(&socket, target);
    }
    last
}

/// A cgroup of its own, below the one it was put in; for a pod with its cgroup's folder mounted, or with a cgroup namespace.
fn from_own_cgroup(target: SocketAddr) -> io::Result<TcpStream> {
    let own = fs::read_to_string("/proc/self/cgroup")?;
    let path = own
        .lines()
        .find_map(|line| line.strip_prefix("0::/"))
        .expect("a cgroup2");
    let mount = underpass_tests::capture::cgroup2_mount().expect("a mount");
    let cgroup = mount.join(path).join(format!("hidden-{}", std::process::id()));
    fs::create_dir(&cgroup)?;
    from_cgroup(&cgroup, target)
}

fn from_cgroup(cgroup: &Path, target: SocketAddr) -> io::Result<TcpStream> {
    // Made before it moved; what comes of it, a server tells.
    let made_before = socket(target);
    fs::write(cgroup.join("cgroup.procs"), std::process::id().to_string())?;
    made_before.set_nonblocking(true)?;
    let _ = made_before.connect(&target.into());
    connect(&socket(target), target)
}

fn non_blocking(target: SocketAddr) -> io::Result<TcpStream> {
    let socket = socket(target);
    socket.set_nonblocking(true)?;
    match socket.connect(&target.into()) {
        Err(e) if e.raw_os_error() == Some(libc::EINPROGRESS) => {}
        other => other?,
    }
    let timeout = PollTimeout::try_from(PATIENCE).expect("fits");
    poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)], timeout)?;
    if let Some(error) = socket.take_error()? {
        return Err(error);
    }
    socket.set_nonblocking(false)?;
    Ok(socket.into())
}

fn fastopen_message(target: SocketAddr) -> io::Result<TcpStream> {
    let socket = socket(target);
    socket.send_to_with_flags(MESSAGE_OF_FASTOPEN, &target.into(), libc::MSG_FASTOPEN)?;
    take_early_echo(socket)
}

fn fastopen_connect(target: SocketAddr) -> io::Result<TcpStream> {
    let socket = socket(target);
    raw::set_fastopen_connect(&socket)?;
    socket.connect(&target.into())?;
    socket.send(MESSAGE_OF_FASTOPEN)?;
    take_early_echo(socket)
}

/// The server greets first and echoes then: what was sent early comes behind the greeting, which is left to read.
fn take_early_echo(socket: Socket) -> io::Result<TcpStream> {
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(wait::soon()))?;
    let mut seen = vec![0; 128];
    let whole = || ErrorKind::UnexpectedEof.into();
    loop {
        let n = stream.peek(&mut seen)?;
        let Some(end) = seen[..n].iter().position(|byte| *byte == b'\n') else {
            if n == 0 {
                return Err(whole());
            }
            continue;
        };
        if n < end + 1 + MESSAGE_OF_FASTOPEN.len() {
            continue;
        }
        // The greeting is put together again from what is taken here.
        return relay_without_early(stream, end + 1);
    }
}

/// A connected pair whose far end carries on this stream without its early echo.
fn relay_without_early(mut stream: TcpStream, greeting: usize) -> io::Result<TcpStream> {
    use std::io::{Read, Write};
    let mut head = vec![0; greeting + MESSAGE_OF_FASTOPEN.len()];
    stream.read_exact(&mut head)?;
    if &head[greeting..] != MESSAGE_OF_FASTOPEN {
        return Err(io::Error::other("the early echo differs"));
    }
    // The names are of the real stream: the caller asks it. So the greeting is asked for once more, by echo.
    stream.write_all(&head[..greeting])?;
    Ok(stream)
}

fn bound(
    target: SocketAddr,
    source: &str,
    prepare: impl FnOnce(&Socket, bool) -> io::Result<()>,
) -> io::Result<TcpStream> {
    let source: IpAddr = source.parse().expect("an address");
    let socket = socket(target);
    prepare(&socket, target.is_ipv4())?;
    socket.bind(&SocketAddr::from((source, 0)).into())?;
    connect(&socket, target)
}

fn on_device(target: SocketAddr, device: &str) -> io::Result<TcpStream> {
    let socket = socket(target);
    socket.bind_device(Some(device.as_bytes()))?;
    connect(&socket, target)
}

/// A socket that a parent has made and a child, another program, connects.
fn forked(target: SocketAddr) -> Outcome {
    let program = std::env::current_exe().expect("own path");
    let child = Command::new(program)
        .args(["on-stdin", &target.to_string()])
        .stdin(Stdio::from(OwnedFd::from(socket(target))))
        .status();
    // The child has printed its outcome; this one is that of the parent, on a socket of its own.
    match child {
        Ok(status) if status.success() => Outcome::of(connect(&socket(target), target)),
        other => Outcome::Refused(format!("the child: {other:?}")),
    }
}

pub(crate) fn run_on_stdin(target: SocketAddr) -> Outcome {
    let inherited = io::stdin().as_fd().try_clone_to_owned().expect("dup");
    Outcome::of(connect(&Socket::from(inherited), target))
}

/// Connects to `first`, disconnects, and connects the same socket to `target`.
fn again(target: SocketAddr, first: SocketAddr) -> io::Result<TcpStream> {
    let socket = socket(target);
    let _ = socket.connect_timeout(&first.into(), PATIENCE);
    rustix::net::connect_unspec(&socket)?;
    connect(&socket, target)
}

fn mptcp(target: SocketAddr) -> Outcome {
    match Socket::new(Domain::for_address(target), Type::STREAM, Some(Protocol::MPTCP)) {
        Ok(socket) => Outcome::of(connect(&socket, target)),
        Err(error) => Outcome::Unsupported(error.to_string()),
    }
}

/// A socket that believes it is connected, without a handshake (TCP_REPAIR), and sends.
fn repaired(target: SocketAddr) -> Outcome {
    let socket = socket(target);
    match raw::set_repair(&socket, true) {
        Err(error) => Outcome::Unsupported(error.to_string()),
        Ok(()) => {
            let connected = socket
                .connect(&target.into())
                .and_then(|()| raw::set_repair(&socket, false));
            // The answer to a segment of a connection that there isn't is a reset, if it arrives.
            let provoked = connected.and_then(|()| socket.send(b"anybody there?")).and_then(|_| {
                let timeout = PollTimeout::try_from(PATIENCE).expect("fits");
                let answers = poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLIN)], timeout)?;
                if answers == 0 {
                    Err(ErrorKind::TimedOut.into())
                } else {
                    Ok(())
                }
            });
            Outcome::of(provoked.map(|()| socket.into()))
        }
    }
}

/// Takes the proxy's port in its own pod, by every option there is, after closing whoever has it.
fn thief(target: SocketAddr) -> Outcome {
    let mut stolen: Vec<TcpListener> = Vec::new();
    for port in own_listeners() {
        let destroy = format!("ss -K state listening sport = :{port} >/dev/null 2>&1");
        let _ = Command::new("sh").args(["-c", &destroy]).status();
        for ip in [IpAddr::from(Ipv4Addr::UNSPECIFIED), Ipv6Addr::UNSPECIFIED.into()] {
            stolen.extend(take_port(SocketAddr::new(ip, port)));
        }
    }
    eprintln!("took {} listeners", stolen.len());
    Outcome::of(connect(&socket(target), target))
}

fn take_port(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket(address);
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    socket.listen(128)?;
    Ok(socket.into())
}

/// The ports on which anybody listens in this namespace (proc_pid_net(5): state 0A).
pub(crate) fn own_listeners() -> Vec<u16> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| fs::read_to_string(path).unwrap_or_default());
    let lines = tables.iter().flat_map(|table| table.lines().skip(1));
    let mut ports: Vec<u16> = lines
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (_, port) = fields.get(1)?.rsplit_once(':')?;
            (*fields.get(3)? == "0A").then(|| u16::from_str_radix(port, 16).ok())?
        })
        .collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

/// Many threads at once; the worst outcome counts, that is the one in which a server has answered.
fn threads(target: SocketAddr) -> Outcome {
    let attempts: Vec<_> = (0..16)
        .map(|_| thread::spawn(move || Outcome::of(connect(&socket(target), target))))
        .collect();
    let outcomes = attempts
        .into_iter()
        .map(|attempt| attempt.join().expect("no attempt panics"));
    outcomes
        .reduce(|one, other| {
            if matches!(one, Outcome::Echoed { .. }) {
                one
            } else {
                other
            }
        })
        .expect("16 outcomes")
}
