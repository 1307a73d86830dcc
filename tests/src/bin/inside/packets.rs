//! Segments past the socket layer: a SYN written by hand (or data of no connection), through raw and packet sockets, and in shapes that are hard to recognise.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use socket2::{Domain, Protocol, Socket, Type};

use crate::raw;

/// From here the SYNs come; nothing else does.
const SOURCE_PORT: u16 = 4444;
/// A datagram to this port follows what was sent: when it has arrived, so has everything that was let through.
const BARRIER_PORT: u16 = 9999;
const TCP: u8 = 6;
const ETHERTYPE_V4: u16 = 0x0800;
const ETHERTYPE_V6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;

/// `packet raw|hdrincl|… TARGET DEVICE MAC SOURCE…`: sends segments in the shape that `how` names from each `SOURCE`, then the barrier. `MAC`
/// is the gateway's.
pub(crate) fn run(how: &str, target: SocketAddr, more: &[&str]) -> io::Result<()> {
    let [device, mac, sources @ ..] = more else {
        panic!("usage: packet {how} TARGET DEVICE MAC SOURCE…")
    };
    let link = Link {
        index: index_of(device)?,
        mac: parse_mac(mac),
    };
    // The neighbour is known before the packet that must not wait for it.
    barrier(target)?;
    for source in sources {
        send(how, &link, source.parse().expect("an address"), target)?;
    }
    barrier(target)
}

fn send(how: &str, link: &Link, source: IpAddr, target: SocketAddr) -> io::Result<()> {
    let syn = segment(source, target, SYN, b"");
    let data = segment(source, target, PUSH | ACK, b"in the middle of nothing");
    let whole = packet(source, target, &syn);
    match how {
        "raw" => through_raw_socket(target, &syn),
        "raw-data" => through_raw_socket(target, &data),
        "hdrincl" => through_header_socket(target, &whole),
        "link" => link.send(target, &whole),
        "link-data" => link.send(target, &packet(source, target, &data)),
        "frame" => link.send_frame(target, None, &whole),
        "bypass" => link.send_past_queues(target, &whole),
        "xdp" => refused_or(raw::send_by_xdp(link.index, &link.frame(target, None, &whole))),
        "vlan" => link.send_frame(target, Some(7), &whole),
        "fragments" => fragments(source, target, &syn)
            .iter()
            .try_for_each(|piece| link.send(target, piece)),
        "extended" => link.send(target, &extended(source, target, &syn)),
        "options" => link.send(target, &with_options(source, target, &syn)),
        _ => panic!("no such packet: {how}"),
    }
}

struct Link {
    index: u32,
    mac: [u8; 6],
}

impl Link {
    fn send(&self, target: SocketAddr, packet: &[u8]) -> io::Result<()> {
        let socket = Socket::new(Domain::PACKET, Type::DGRAM, None)?;
        refused_or(raw::send_link(&socket, self.index, ethertype(target), self.mac, packet))
    }

    fn send_past_queues(&self, target: SocketAddr, packet: &[u8]) -> io::Result<()> {
        let socket = Socket::new(Domain::PACKET, Type::DGRAM, None)?;
        refused_or(
            raw::set_queue_bypass(&socket)
                .and_then(|()| raw::send_link(&socket, self.index, ethertype(target), self.mac, packet)),
        )
    }

    fn send_frame(&self, target: SocketAddr, vlan: Option<u16>, packet: &[u8]) -> io::Result<()> {
        let socket = Socket::new(Domain::PACKET, Type::RAW, None)?;
        let protocol = vlan.map_or(ethertype(target), |_| ETHERTYPE_VLAN);
        refused_or(raw::send_link(
            &socket,
            self.index,
            protocol,
            self.mac,
            &self.frame(target, vlan, packet),
        ))
    }

    /// The packet with an Ethernet header, and a VLAN tag.
    fn frame(&self, target: SocketAddr, vlan: Option<u16>, packet: &[u8]) -> Vec<u8> {
        let mut frame = self.mac.to_vec();
        frame.extend([2, 0, 0, 0, 0, 1]);
        if let Some(tag) = vlan {
            frame.extend(ETHERTYPE_VLAN.to_be_bytes());
            frame.extend(tag.to_be_bytes());
        }
        frame.extend(ethertype(target).to_be_bytes());
        frame.extend(packet);
        frame
    }
}

fn through_raw_socket(target: SocketAddr, segment: &[u8]) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address(target), Type::RAW, Some(Protocol::TCP))?;
    // An IPv6 raw socket takes no port in its destination.
    let to = SocketAddr::new(target.ip(), 0);
    refused_or(socket.send_to(segment, &to.into()))
}

fn through_header_socket(target: SocketAddr, packet: &[u8]) -> io::Result<()> {
    let socket = Socket::new(
        Domain::for_address(target),
        Type::RAW,
        Some(Protocol::from(libc::IPPROTO_RAW)),
    )?;
    let to = SocketAddr::new(target.ip(), 0);
    refused_or(socket.send_to(packet, &to.into()))
}

/// That a packet is dropped may be told to its sender (EPERM and others): which is as good as a silent drop.
fn refused_or<T>(sent: io::Result<T>) -> io::Result<()> {
    if let Err(error) = sent {
        eprintln!("the kernel said: {error}");
    }
    Ok(())
}

fn barrier(target: SocketAddr) -> io::Result<()> {
    let any: IpAddr = if target.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket
        .send_to(b"barrier", SocketAddr::new(target.ip(), BARRIER_PORT))
        .map(|_| ())
}

fn index_of(device: &str) -> io::Result<u32> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    Ok(rustix::net::netdevice::name_to_index(&socket, device)?)
}

fn parse_mac(text: &str) -> [u8; 6] {
    let bytes: Vec<u8> = text
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16).expect("hex"))
        .collect();
    bytes.try_into().expect("six bytes")
}

fn ethertype(target: SocketAddr) -> u16 {
    if target.is_ipv4() { ETHERTYPE_V4 } else { ETHERTYPE_V6 }
}

/// Flags of TCP (RFC 9293, section 3.1).
const SYN: u8 = 2;
const PUSH: u8 = 8;
const ACK: u8 = 16;

/// A TCP segment without options (RFC 9293, section 3.1).
fn segment(source: IpAddr, target: SocketAddr, flags: u8, data: &[u8]) -> Vec<u8> {
    let mut segment = Vec::new();
    segment.extend(SOURCE_PORT.to_be_bytes());
    segment.extend(target.port().to_be_bytes());
    segment.extend(7u32.to_be_bytes());
    segment.extend([0; 4]);
    segment.extend([5 << 4, flags]);
    segment.extend(64000u16.to_be_bytes());
    segment.extend([0; 4]);
    segment.extend(data);
    let mut covered = pseudo_header(source, target.ip(), segment.len());
    covered.extend(&segment);
    let sum = checksum(&covered);
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    segment
}

fn pseudo_header(source: IpAddr, target: IpAddr, length: usize) -> Vec<u8> {
    let mut header = octets(source);
    header.extend(octets(target));
    header.extend(u32::try_from(length).expect("short").to_be_bytes());
    header.extend(u32::from(TCP).to_be_bytes());
    header
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn packet(source: IpAddr, target: SocketAddr, segment: &[u8]) -> Vec<u8> {
    if target.is_ipv4() {
        v4(source, target.ip(), 0, &[], segment)
    } else {
        v6(source, target.ip(), TCP, segment)
    }
}

/// `fragment` is the field with flags and offset; `options` a multiple of four bytes.
fn v4(source: IpAddr, target: IpAddr, fragment: u16, options: &[u8], payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(5 + options.len() / 4).expect("short");
    let total = u16::try_from(usize::from(length) * 4 + payload.len()).expect("short");
    let mut header = vec![4 << 4 | length, 0];
    header.extend(total.to_be_bytes());
    header.extend(77u16.to_be_bytes());
    header.extend(fragment.to_be_bytes());
    header.extend([64, TCP, 0, 0]);
    header.extend(octets(source));
    header.extend(octets(target));
    header.extend(options);
    let sum = checksum(&header);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    header.extend(payload);
    header
}

fn v6(source: IpAddr, target: IpAddr, next: u8, payload: &[u8]) -> Vec<u8> {
    let mut header = vec![6 << 4, 0, 0, 0];
    header.extend(u16::try_from(payload.len()).expect("short").to_be_bytes());
    header.extend([next, 64]);
    header.extend(octets(source));
    header.extend(octets(target));
    header.extend(payload);
    header
}

/// A first fragment that ends before TCP's flags, and the rest.
fn fragments(source: IpAddr, target: SocketAddr, segment: &[u8]) -> Vec<Vec<u8>> {
    const MORE: u16 = 1 << 13;
    let (first, rest) = segment.split_at(8);
    if target.is_ipv4() {
        return vec![
            v4(source, target.ip(), MORE, &[], first),
            v4(source, target.ip(), 1, &[], rest),
        ];
    }
    // Next header, reserved, offset and flags, identification (RFC 8200, section 4.5).
    let piece = |offset_and_more: u16, bytes: &[u8]| {
        let mut payload = vec![TCP, 0];
        payload.extend(offset_and_more.to_be_bytes());
        payload.extend(77u32.to_be_bytes());
        payload.extend(bytes);
        v6(source, target.ip(), 44, &payload)
    };
    vec![piece(1, first), piece(8, rest)]
}

/// IPv6 headers in front of TCP: hop-by-hop options, then destination options, all padding. IPv4 has none: options there.
fn extended(source: IpAddr, target: SocketAddr, segment: &[u8]) -> Vec<u8> {
    if target.is_ipv4() {
        return with_options(source, target, segment);
    }
    let padding = |next: u8| [next, 0, 1, 4, 0, 0, 0, 0];
    let mut payload = padding(60).to_vec();
    payload.extend(padding(TCP));
    payload.extend(segment);
    v6(source, target.ip(), 0, &payload)
}

/// IPv4 with options (padding), so that TCP begins elsewhere.
fn with_options(source: IpAddr, target: SocketAddr, segment: &[u8]) -> Vec<u8> {
    if target.is_ipv6() {
        return extended(source, target, segment);
    }
    v4(source, target.ip(), 0, &[1; 8], segment)
}
