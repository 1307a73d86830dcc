//! The ways to a destination: directly, or through one of the proxy's listeners.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use crate::world::Host;

/// A handshake slower than this is a hang.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(20);

/// How a client reaches a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Without a proxy: what every other way must look like.
    Direct,
    /// A listener that relays to the destination whatever the client says.
    Fixed(SocketAddr),
    /// A SOCKS5 listener.
    Socks5(SocketAddr),
    /// An HTTP CONNECT listener.
    Connect(SocketAddr),
}

/// What a client asks a SOCKS5 or CONNECT listener for.
#[derive(Clone, Copy, Debug)]
pub enum Target<'a> {
    /// An address.
    Address(SocketAddr),
    /// A host name and a port.
    Name(&'a str, u16),
}

/// Why a connection was not opened.
#[derive(Debug)]
pub enum Refused {
    /// The connection to the listener (or the destination) failed or was reset.
    Io(io::Error),
    /// The SOCKS5 reply code (RFC 1928, section 6).
    Socks(u8),
    /// The status code of the answer to CONNECT.
    Http(u16),
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Opens a connection from `from` to `target`. On a fixed listener success only means that the listener accepted.
pub fn open(from: &Host, way: Way, target: Target<'_>) -> Result<TcpStream, Refused> {
    match (way, target) {
        (Way::Direct, Target::Address(address)) => Ok(from.connect(address)?),
        (Way::Direct, Target::Name(..)) => panic!("a direct connection needs an address"),
        (Way::Fixed(listener), _) => Ok(from.connect(listener)?),
        (Way::Socks5(listener), _) => socks5(from.connect(listener)?, target),
        (Way::Connect(listener), _) => connect(from.connect(listener)?, target),
    }
}

/// Whether an error is what a peer's reset looks like.
pub fn is_reset(error: &io::Error) -> bool {
    // EPIPE is how a reset shows on a socket that has already seen the peer's FIN (tcp_reset() in the kernel).
    matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)
}

fn socks5(mut stream: TcpStream, target: Target<'_>) -> Result<TcpStream, Refused> {
    stream.set_read_timeout(Some(HANDSHAKE_DEADLINE))?;
    stream.write_all(&[5, 1, 0])?;
    let mut method = [0; 2];
    stream.read_exact(&mut method)?;
    assert_eq!(method, [5, 0], "the listener takes clients without authentication");
    stream.write_all(&socks5_request(target))?;
    let mut head = [0; 4];
    stream.read_exact(&mut head)?;
    let address_length = match head[3] {
        1 => 4,
        4 => 16,
        other => panic!("SOCKS5 address type {other} in a reply"),
    };
    stream.read_exact(&mut vec![0; address_length + 2])?;
    stream.set_read_timeout(None)?;
    if head[1] == 0 {
        Ok(stream)
    } else {
        Err(Refused::Socks(head[1]))
    }
}

/// A CONNECT request of RFC 1928, section 4.
pub(crate) fn socks5_request(target: Target<'_>) -> Vec<u8> {
    let mut request = vec![5, 1, 0];
    let port = match target {
        Target::Address(address) => {
            match address.ip() {
                IpAddr::V4(v4) => {
                    request.push(1);
                    request.extend(v4.octets());
                }
                IpAddr::V6(v6) => {
                    request.push(4);
                    request.extend(v6.octets());
                }
            }
            address.port()
        }
        Target::Name(name, port) => {
            request.extend([3, u8::try_from(name.len()).expect("a short name")]);
            request.extend(name.as_bytes());
            port
        }
    };
    request.extend(port.to_be_bytes());
    request
}

fn connect(mut stream: TcpStream, target: Target<'_>) -> Result<TcpStream, Refused> {
    stream.set_read_timeout(Some(HANDSHAKE_DEADLINE))?;
    stream.write_all(connect_request(target).as_bytes())?;
    let mut head = Vec::new();
    // Byte by byte: what follows the head is the destination's.
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    stream.set_read_timeout(None)?;
    let head = String::from_utf8_lossy(&head).into_owned();
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    match status.unwrap_or_else(|| panic!("not an HTTP answer: {head:?}")) {
        200 => Ok(stream),
        other => Err(Refused::Http(other)),
    }
}

pub(crate) fn connect_request(target: Target<'_>) -> String {
    let authority = match target {
        Target::Address(address) => address.to_string(),
        Target::Name(name, port) => format!("{name}:{port}"),
    };
    format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n")
}
