//! Packets made by hand, and a look at what arrives.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;

use socket2::{Domain, Protocol, Socket, Type};

pub const SYN: u8 = 0x02;
pub const SYN_ACK: u8 = 0x12;
pub const ACK: u8 = 0x10;
pub const RST: u8 = 0x04;
pub const FIN_ACK: u8 = 0x11;

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;

pub const IPV4: u16 = 0x0800;
pub const IPV6: u16 = 0x86dd;
pub const ARP: u16 = 0x0806;
pub const VLAN: u16 = 0x8100;

/// A TCP segment to `port`.
pub fn tcp(flags: u8, port: u16, data: &[u8]) -> Vec<u8> {
    let mut segment = vec![0; 20];
    segment[0..2].copy_from_slice(&50_000u16.to_be_bytes());
    segment[2..4].copy_from_slice(&port.to_be_bytes());
    segment[12] = 5 << 4;
    segment[13] = flags;
    segment.extend_from_slice(data);
    segment
}

/// A UDP datagram to `port`.
pub fn udp(port: u16) -> Vec<u8> {
    let port = port.to_be_bytes();
    vec![0xc3, 0x50, port[0], port[1], 0, 8, 0, 0]
}

/// An IPv4 packet from pod 1 to its gateway. `fragment` is the field of that name: 0x2000 for more, and the offset in 8 bytes.
pub fn ipv4(protocol: u8, options: usize, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let words = 5 + options;
    let mut packet = vec![0; words * 4];
    packet[0] = 0x40 | words as u8;
    packet[2..4].copy_from_slice(&((words * 4 + payload.len()) as u16).to_be_bytes());
    packet[6..8].copy_from_slice(&fragment.to_be_bytes());
    packet[8] = 64;
    packet[9] = protocol;
    packet[12..16].copy_from_slice(&Ipv4Addr::new(10, 9, 1, 2).octets());
    packet[16..20].copy_from_slice(&Ipv4Addr::new(10, 9, 1, 1).octets());
    packet[20..].fill(1);
    packet.extend_from_slice(payload);
    packet
}

/// An IPv6 packet from pod 1 to its gateway.
pub fn ipv6(next: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; 40];
    packet[0] = 0x60;
    packet[4..6].copy_from_slice(&(payload.len() as u16).to_be_bytes());
    packet[6] = next;
    packet[7] = 64;
    packet[8..24].copy_from_slice(&Ipv6Addr::new(0xfd09, 1, 0, 0, 0, 0, 0, 2).octets());
    packet[24..40].copy_from_slice(&Ipv6Addr::new(0xfd09, 1, 0, 0, 0, 0, 0, 1).octets());
    packet.extend_from_slice(payload);
    packet
}

/// An IPv6 extension header of 8 bytes before `rest`.
pub fn extension(next: u8, rest: &[u8]) -> Vec<u8> {
    [&[next, 0, 1, 4, 0, 0, 0, 0], rest].concat()
}

/// An IPv6 fragment header before `rest`.
pub fn fragment(next: u8, offset: u16, more: bool, rest: &[u8]) -> Vec<u8> {
    let field = (offset << 3 | u16::from(more)).to_be_bytes();
    [&[next, 0, field[0], field[1], 0, 0, 0, 7], rest].concat()
}

/// An Ethernet frame to whoever is at the other end.
pub fn ethernet(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&[0xff; 6][..], &[2, 0, 0, 0, 0, 1], &ethertype.to_be_bytes(), payload].concat()
}

/// A packet socket at a device of this thread's namespace.
pub struct Wire {
    socket: Socket,
    device: i32,
}

impl Wire {
    pub fn open(device: &str) -> Self {
        let all = i32::from((libc::ETH_P_ALL as u16).to_be());
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(all))).unwrap();
        let device = rustix::net::netdevice::name_to_index(&socket, device).unwrap() as i32;
        Self { socket, device }
    }

    /// Sends a frame, saying that it is of `protocol`.
    pub fn send(&self, protocol: u16, frame: &[u8]) -> io::Result<()> {
        // SAFETY: all zeroes is a value of this struct of numbers.
        let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        to.sll_family = libc::AF_PACKET as u16;
        to.sll_protocol = protocol.to_be();
        to.sll_ifindex = self.device;
        // SAFETY: a frame and an address, with their lengths.
        let sent = unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const to).cast(),
                size_of::<libc::sockaddr_ll>() as u32,
            )
        };
        if sent < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }

    /// Whether a frame has been received; takes it.
    pub fn has_received(&self) -> bool {
        self.socket.set_nonblocking(true).unwrap();
        let received = self.socket.recv(&mut [std::mem::MaybeUninit::uninit(); 2048]);
        self.socket.set_nonblocking(false).unwrap();
        received.is_ok()
    }

    /// Receives frames until one ends with `mark`; those before it.
    pub fn receive_until(&self, mark: &[u8]) -> Vec<Vec<u8>> {
        self.socket.set_read_timeout(Some(crate::wait::soon())).unwrap();
        let mut frames = Vec::new();
        loop {
            let mut buffer = Vec::with_capacity(4096);
            let len = self
                .socket
                .recv(buffer.spare_capacity_mut())
                .expect("the mark has not come");
            // SAFETY: so many bytes were received.
            unsafe { buffer.set_len(len) };
            if buffer.ends_with(mark) {
                return frames;
            }
            frames.push(buffer);
        }
    }
}
