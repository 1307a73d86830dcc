//! Socket calls that tokio and the standard library do not offer, behind safe functions.
//!
//! This is the proxy's only room with `unsafe`, and it holds five blocks: `getsockopt(TCP_INFO)`, whose answer has a length
//! that depends on the kernel, `setsockopt(TCP_WINDOW_CLAMP)`, the registration of a socket with the runtime, and two to receive into tokio's `ReadBuf`
//! without filling it with zeros first. Everything else goes through `rustix` and `socket2`.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SocketAddrAny, SocketFlags, SocketType};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::unix::AsyncFd;
use tokio::io::{Interest, ReadBuf};
use underpass_config::Keepalive;

use crate::stream::Stream;

/// Connections that may wait to be accepted; the kernel lowers it to `net.core.somaxconn`.
pub const BACKLOG: i32 = 4096;

/// The largest segment that a peer is asked to send. Over loopback it would be 64 KiB, and the receive window of a connection in the kernel
/// tier, which is its sender's brake, would have to be larger than that. What the kernel moves at once is no less for it: such segments
/// travel in one buffer.
pub const LARGEST_SEGMENT: u32 = 8 * 1024;

/// Opens a listening socket. What is set on it here (NODELAY, keepalive) is inherited by each accepted socket (Linux
/// `tcp_create_openreq_child`), so that an accept costs no further system call.
///
/// # Errors
/// Those of socket(2), bind(2) and listen(2).
pub fn listen(address: SocketAddr, keepalive: &Keepalive) -> io::Result<OwnedFd> {
    let socket = tcp_socket(address)?;
    let options = SockRef::from(&socket);
    options.set_reuse_address(true)?;
    if address.is_ipv6() {
        options.set_only_v6(false)?;
    }
    set_stream_options(&socket)?;
    options.set_tcp_mss(LARGEST_SEGMENT)?;
    set_keepalive(&socket, keepalive)?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// Begins to connect `socket` to `address`.
///
/// # Errors
/// Those of setsockopt(2) and connect(2).
pub fn start_connect(socket: OwnedFd, address: SocketAddr) -> io::Result<Connecting> {
    set_stream_options(&socket)?;
    if address.ip().is_loopback() {
        SockRef::from(&socket).set_tcp_mss(LARGEST_SEGMENT)?;
    }
    match rustix::net::connect(&socket, &address) {
        Ok(()) | Err(Errno::INPROGRESS) => {}
        Err(error) => return Err(error.into()),
    }
    // A peer name is there once the handshake is done (inet_getname in the kernel's af_inet.c). On this node it usually is by
    // now, and then the runtime need not be asked to wait, nor a timer be set.
    let established = rustix::net::getpeername(&socket).is_ok();
    let stream = Stream::new(socket)?;
    Ok(if established {
        Connecting::Done(stream)
    } else {
        Connecting::Underway(stream)
    })
}

/// A connection that was begun.
#[derive(Debug)]
pub enum Connecting {
    /// It is established.
    Done(Stream),
    /// The destination has not answered yet, or has answered and closed.
    Underway(Stream),
}

/// Waits until a connection is established.
///
/// Success is told from failure by looking for what has been received, not by `SO_ERROR`: a destination may accept, send and reset
/// before we look, and then there is an error pending *behind* bytes that belong to the client. (A SYN that is answered with
/// RST is `ECONNREFUSED`; `ECONNRESET` means that there was a connection: tcp_reset in the kernel's tcp_input.c.)
///
/// # Errors
/// `ConnectionReset` when the destination accepted and reset, having sent nothing; else those of connect(2).
pub async fn finish_connect(stream: Stream) -> io::Result<Stream> {
    stream.writable().await?;
    let mut first = [0];
    match rustix::net::recv(&stream, &mut first, RecvFlags::PEEK | RecvFlags::DONTWAIT) {
        Ok(_) | Err(Errno::AGAIN) => Ok(stream),
        Err(error) => Err(error.into()),
    }
}

/// A non-blocking, close-on-exec TCP socket of `address`' family.
///
/// # Errors
/// Those of socket(2), such as the process being out of file descriptors.
pub fn tcp_socket(address: SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    Ok(rustix::net::socket_with(family, SocketType::STREAM, flags, None)?)
}

/// Registers a socket with this thread's runtime. Unlike tokio's own listener, one that is registered so leaves accepted sockets
/// unregistered, for another core's runtime to take.
///
/// # Errors
/// Those of epoll_ctl(2).
pub fn register(socket: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is owned by the `AsyncFd`, so it stays open, and the same, for as long as it is registered.
    #[allow(unsafe_code)]
    let registered = unsafe { AsyncFd::register_with_interest(socket, interest) };
    Ok(registered?)
}

/// Receives once into the room that `buffer` has left, which is not overwritten first.
///
/// # Errors
/// Those of recv(2).
pub fn receive_into(socket: impl AsFd, buffer: &mut ReadBuf<'_>) -> Result<usize, Errno> {
    // SAFETY: recv(2) writes to the room, and takes nothing of what was initialized there.
    #[allow(unsafe_code)]
    let room = unsafe { buffer.unfilled_mut() };
    let ((received, _), _) = rustix::net::recv(socket, room, RecvFlags::empty())?;
    let length = received.len();
    // SAFETY: the kernel has written so many bytes from the beginning of the room on.
    #[allow(unsafe_code)]
    unsafe {
        buffer.assume_init(length);
    }
    buffer.advance(length);
    Ok(length)
}

/// Accepts one connection as a non-blocking socket, with its peer's canonical address.
///
/// # Errors
/// `WouldBlock` when none waits; otherwise those of accept4(2).
pub fn accept(listener: impl AsFd) -> io::Result<(OwnedFd, SocketAddr)> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let (socket, peer) = rustix::net::acceptfrom_with(listener, flags)?;
    let peer = peer
        .and_then(internet_address)
        .ok_or_else(|| io::Error::other("accepted a peer without an address"))?;
    Ok((socket, canonical(peer)))
}

fn internet_address(address: SocketAddrAny) -> Option<SocketAddr> {
    SocketAddr::try_from(address).ok()
}

/// The IPv4 address inside a v4-mapped IPv6 address (RFC 4291, 2.5.5.2); any other address as it is.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Sets what every proxied stream has from its first byte: no Nagle delay, and urgent data in its place in the stream
/// (RFC 6093: as an ordinary byte; otherwise it would be lost).
///
/// # Errors
/// Those of setsockopt(2).
pub fn set_stream_options(socket: &impl AsFd) -> io::Result<()> {
    let options = SockRef::from(socket);
    options.set_tcp_nodelay(true)?;
    options.set_out_of_band_inline(true)
}

/// Has the kernel probe an idle connection, so that a vanished peer is noticed.
///
/// # Errors
/// Those of setsockopt(2).
pub fn set_keepalive(socket: &impl AsFd, keepalive: &Keepalive) -> io::Result<()> {
    let probes = TcpKeepalive::new()
        .with_time(keepalive.time)
        .with_interval(keepalive.interval)
        .with_retries(keepalive.probes);
    SockRef::from(socket).set_tcp_keepalive(&probes)
}

/// Makes the next close of `socket` send RST instead of FIN (socket(7), SO_LINGER with a zero time).
pub fn reset_on_close(socket: &impl AsFd) {
    // Fails only on a descriptor that is no socket; then close has nothing to reset.
    let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
}

/// Takes [`reset_on_close`] back: the next close of `socket` sends FIN.
pub fn end_on_close(socket: &impl AsFd) {
    // As above: fails on nothing that could be closed.
    let _ = SockRef::from(socket).set_linger(None);
}

/// Has the kernel offer `socket`'s peer a window of no more than `bytes` (tcp(7), `TCP_WINDOW_CLAMP`). What was offered before stays so.
pub fn clamp_window(socket: &impl AsRawFd, bytes: u32) {
    let bytes = bytes as libc::c_int;
    // SAFETY: the option's value is an `int`, which lives until the call returns.
    #[allow(unsafe_code)]
    let outcome = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_WINDOW_CLAMP,
            (&raw const bytes).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if outcome != 0 {
        tracing::debug!(error = %io::Error::last_os_error(), "the receive window of a joined flow could not be clamped");
    }
}

/// What the kernel measured about one connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpQuality {
    /// Segments considered lost now (`tcpi_lost`).
    pub lost: u32,
    /// Retransmitted segments, over the connection's life (`tcpi_total_retrans`).
    pub retransmissions: u32,
    /// Smoothed round-trip time in microseconds (`tcpi_rtt`).
    pub smoothed_rtt_us: u32,
    /// Smallest round-trip time in microseconds (`tcpi_min_rtt`).
    pub min_rtt_us: u32,
}

/// Offsets in `struct tcp_info` (include/uapi/linux/tcp.h): part of the kernel's ABI, fields are only ever appended.
mod tcp_info_offset {
    pub(super) const UNACKED: usize = 24;
    pub(super) const LOST: usize = 32;
    pub(super) const LAST_ACK_RECV: usize = 56;
    pub(super) const RTT: usize = 68;
    pub(super) const ADVMSS: usize = 84;
    pub(super) const TOTAL_RETRANS: usize = 100;
    pub(super) const BYTES_ACKED: usize = 120;
    pub(super) const NOTSENT_BYTES: usize = 144;
    pub(super) const MIN_RTT: usize = 148;
    pub(super) const RCV_WND: usize = 232;
    pub(super) const END: usize = 236;
}

/// How far what was sent has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delivery {
    /// Bytes that the peer's kernel has taken since the connection began (`tcpi_bytes_acked`).
    pub taken: u64,
    /// Whether some wait here, because the peer has no room for them (`tcpi_notsent_bytes`). What has been sent and not acknowledged may have come
    /// all the same: acknowledgements are delayed.
    pub is_waiting: bool,
    /// Whether it has taken all (`tcpi_unacked` too).
    pub is_all: bool,
}

/// Bytes that the peer may send before it is offered more, as last told to it (`tcpi_rcv_wnd`, which kernels have since 6.2; 0 before).
pub fn receive_window(socket: &impl AsRawFd) -> u32 {
    tcp_info(socket).map_or(0, |raw| field(&raw, tcp_info_offset::RCV_WND))
}

/// Bytes of memory that wait in the receive queue of `socket` (`SO_MEMINFO`, `SK_MEMINFO_RMEM_ALLOC`).
pub fn receive_queue(socket: &impl AsRawFd) -> u32 {
    memory(socket)[0]
}

/// Keeps the receive buffer of `socket` at its present size: from now on it neither grows by itself nor is the window larger than that.
pub fn keep_receive_buffer(socket: &(impl AsFd + AsRawFd)) {
    // The kernel doubles what it is asked for.
    let [_, buffer] = memory(socket);
    if buffer > 0 {
        set_receive_buffer(socket, buffer / 2);
    }
}

/// Memory in the receive queue, and what there may be (linux/sock_diag.h). Zeros if the kernel does not answer.
fn memory(socket: &impl AsRawFd) -> [u32; 2] {
    let mut answer = [0u32; 2];
    let mut length = size_of_val(&answer) as libc::socklen_t;
    // SAFETY: `answer` is writable for `length` bytes, `length` says so, and the kernel writes no more than that.
    #[allow(unsafe_code)]
    unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            answer.as_mut_ptr().cast(),
            &mut length,
        );
    }
    answer
}

/// The largest segment that `socket` takes (`tcpi_advmss`).
pub fn largest_segment(socket: &impl AsRawFd) -> u32 {
    tcp_info(socket).map_or(0, |raw| field(&raw, tcp_info_offset::ADVMSS))
}

/// Sets how much the kernel queues for `socket` (socket(7), `SO_RCVBUF`).
pub fn set_receive_buffer(socket: &impl AsFd, bytes: u32) {
    // Fails on nothing that is a socket.
    let _ = SockRef::from(socket).set_recv_buffer_size(bytes as usize);
}

/// Reads from `TCP_INFO` how far what was sent has come. A kernel that does not answer says that nothing waits.
pub fn delivery(socket: &impl AsRawFd) -> Delivery {
    let raw = tcp_info(socket).unwrap_or([0; tcp_info_offset::END]);
    let acked = tcp_info_offset::BYTES_ACKED;
    let mut taken = [0; 8];
    taken.copy_from_slice(&raw[acked..acked + 8]);
    Delivery {
        taken: u64::from_ne_bytes(taken),
        is_waiting: field(&raw, tcp_info_offset::NOTSENT_BYTES) > 0,
        is_all: field(&raw, tcp_info_offset::NOTSENT_BYTES) == 0 && field(&raw, tcp_info_offset::UNACKED) == 0,
    }
}

/// Bytes that the peer's kernel has taken since the connection began, and how long ago it has acknowledged something
/// (`tcpi_last_ack_recv`, in milliseconds). A kernel that does not answer says that it has taken nothing.
pub fn taken(socket: &impl AsRawFd) -> (u64, Duration) {
    let since = tcp_info(socket).map_or(0, |raw| field(&raw, tcp_info_offset::LAST_ACK_RECV));
    (delivery(socket).taken, Duration::from_millis(since.into()))
}

/// Reads `TCP_INFO`. A kernel that does not answer gives zeros: these figures inform, they decide nothing.
pub fn quality(socket: &impl AsRawFd) -> TcpQuality {
    let Some(raw) = tcp_info(socket) else {
        return TcpQuality::default();
    };
    TcpQuality {
        lost: field(&raw, tcp_info_offset::LOST),
        retransmissions: field(&raw, tcp_info_offset::TOTAL_RETRANS),
        smoothed_rtt_us: field(&raw, tcp_info_offset::RTT),
        min_rtt_us: field(&raw, tcp_info_offset::MIN_RTT),
    }
}

fn field(raw: &[u8; tcp_info_offset::END], at: usize) -> u32 {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&raw[at..at + 4]);
    u32::from_ne_bytes(bytes)
}

fn tcp_info(socket: &impl AsRawFd) -> Option<[u8; tcp_info_offset::END]> {
    let mut raw = [0u8; tcp_info_offset::END];
    let mut length = raw.len() as libc::socklen_t;
    // SAFETY: `raw` is writable for `length` bytes, `length` says so, and the kernel writes no more than that.
    #[allow(unsafe_code)]
    let answer = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            raw.as_mut_ptr().cast(),
            &mut length,
        )
    };
    (answer == 0).then_some(raw)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn quality_of_a_live_connection_has_a_round_trip_time() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let measured = quality(&client);
        assert!(measured.smoothed_rtt_us > 0 && measured.min_rtt_us > 0, "{measured:?}");
        assert!(measured.min_rtt_us < 1_000_000, "{measured:?}");
    }

    #[test]
    fn what_waits_is_told_from_what_has_come() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let _server = listener.accept().unwrap();
        assert!(!delivery(&client).is_waiting);
        client.set_nonblocking(true).unwrap();
        let mut sent = 0;
        while let Ok(more) = client.write(&[0; 100_000]) {
            sent += more as u64;
        }
        let stuck = delivery(&client);
        assert!(
            stuck.is_waiting && (1..sent).contains(&stuck.taken),
            "{stuck:?} of {sent}"
        );
    }

    #[test]
    fn an_accepted_socket_inherits_nodelay_and_keepalive() {
        let keepalive = Keepalive {
            time: Duration::from_secs(77),
            interval: Duration::from_secs(5),
            probes: 3,
        };
        let listener = listen("127.0.0.1:0".parse().unwrap(), &keepalive).unwrap();
        let address = SockRef::from(&listener).local_addr().unwrap().as_socket().unwrap();
        let client = TcpStream::connect(address).unwrap();
        rustix::event::poll(
            &mut [rustix::event::PollFd::new(&listener, rustix::event::PollFlags::IN)],
            None,
        )
        .unwrap();
        let (accepted, peer) = accept(&listener).unwrap();
        assert_eq!(peer, client.local_addr().unwrap());
        assert!(SockRef::from(&accepted).tcp_nodelay().unwrap());
        assert_eq!(
            SockRef::from(&accepted).tcp_keepalive_time().unwrap(),
            Duration::from_secs(77)
        );
    }

    #[test]
    fn v4_mapped_addresses_are_canonicalised() {
        let mapped: SocketAddr = "[::ffff:10.0.0.1]:80".parse().unwrap();
        assert_eq!(canonical(mapped), "10.0.0.1:80".parse().unwrap());
        let v6: SocketAddr = "[fd00::1]:80".parse().unwrap();
        assert_eq!(canonical(v6), v6);
    }
}
