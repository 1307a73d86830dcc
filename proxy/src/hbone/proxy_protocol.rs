//! The PROXY protocol's header, for a pod that is told by it who its client is ("sandwich").
//!
//! A pod with an application tunnel takes all its streams on one port. The header (version 2, haproxy.org's `proxy-protocol.txt`) says what the
//! connection can't: from where and to where the client connected, and as whom (a TLV of ztunnel's, with the identity that the handshake verified).

use std::net::{IpAddr, SocketAddr};

use underpass_config::Identity;

/// What every header of version 2 begins with (section 2.2).
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, a connection on behalf of somebody.
const PROXY: u8 = 0x21;
/// TCP over IPv4, and over IPv6.
const FAMILIES: [u8; 2] = [0x11, 0x21];
/// The type of the TLV with the client's identity (ztunnel: `PROXY_PROTOCOL_AUTHORITY_TLV`).
const IDENTITY: u8 = 0xd0;

/// The header of a connection from `client`, who is `identity`, to `destination`.
pub fn header(client: SocketAddr, destination: SocketAddr, identity: Option<&Identity>) -> Vec<u8> {
    let identity = identity.map(ToString::to_string).unwrap_or_default();
    let both_v4 = client.is_ipv4() && destination.is_ipv4();
    let mut rest = Vec::new();
    for address in [client, destination] {
        match (address.ip(), both_v4) {
            (IpAddr::V4(v4), true) => rest.extend(v4.octets()),
            (IpAddr::V4(v4), false) => rest.extend(v4.to_ipv6_mapped().octets()),
            (IpAddr::V6(v6), _) => rest.extend(v6.octets()),
        }
    }
    for address in [client, destination] {
        rest.extend(address.port().to_be_bytes());
    }
    // A SPIFFE id has at most 2048 bytes.
    if let (false, Ok(length)) = (identity.is_empty(), u16::try_from(identity.len())) {
        rest.push(IDENTITY);
        rest.extend(length.to_be_bytes());
        rest.extend(identity.as_bytes());
    }
    let length = rest.len() as u16;
    let mut header = SIGNATURE.to_vec();
    header.extend([PROXY, FAMILIES[usize::from(!both_v4)]]);
    header.extend(length.to_be_bytes());
    header.extend(rest);
    header
}

/// The same in version 1, which says no more than from where to where (section 2.1).
pub fn line(client: SocketAddr, destination: SocketAddr) -> String {
    let both_v4 = client.is_ipv4() && destination.is_ipv4();
    let written = |ip: IpAddr| match (ip, both_v4) {
        (IpAddr::V4(v4), false) => v4.to_ipv6_mapped().to_string(),
        _ => ip.to_string(),
    };
    let family = if both_v4 { "TCP4" } else { "TCP6" };
    let (from, to) = (written(client.ip()), written(destination.ip()));
    format!(
        "PROXY {family} {from} {to} {} {}\r\n",
        client.port(),
        destination.port()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_says_who_and_from_where_to_where() {
        let identity: Identity = "spiffe://td/ns/a/sa/b".parse().unwrap();
        let header = header(
            "10.0.0.1:4711".parse().unwrap(),
            "10.96.0.1:80".parse().unwrap(),
            Some(&identity),
        );
        assert_eq!(header[..12], SIGNATURE);
        assert_eq!(header[12..16], [0x21, 0x11, 0, 12 + 3 + 21]);
        assert_eq!(header[16..28], [10, 0, 0, 1, 10, 96, 0, 1, 0x12, 0x67, 0, 80]);
        assert_eq!(header[28..31], [0xd0, 0, 21]);
        assert_eq!(&header[31..], b"spiffe://td/ns/a/sa/b");
    }

    #[test]
    fn a_line_says_the_same() {
        let text = |client: &str, to: &str| line(client.parse().unwrap(), to.parse().unwrap());
        assert_eq!(
            text("10.0.0.1:4711", "10.96.0.1:80"),
            "PROXY TCP4 10.0.0.1 10.96.0.1 4711 80\r\n"
        );
        assert_eq!(
            text("10.0.0.1:1", "[fd00::1]:2"),
            "PROXY TCP6 ::ffff:10.0.0.1 fd00::1 1 2\r\n"
        );
    }

    #[test]
    fn families_are_not_mixed() {
        let header = header("10.0.0.1:1".parse().unwrap(), "[fd00::1]:2".parse().unwrap(), None);
        assert_eq!((header[13], header.len()), (0x21, 16 + 36));
        assert_eq!(header[26..32], [0xff, 0xff, 10, 0, 0, 1]);
    }
}
