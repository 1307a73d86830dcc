//! SOCKS5 (RFC 1928), the server's side: no authentication, CONNECT only.
//!
//! The request is parsed from a growing buffer by a pure function, so that every way of splitting it across packets is the
//! same case, and so that it can be tested byte by byte.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use underpass_config::Destination;

use super::{Answer, Handshake};
use crate::ending::Ending;
use crate::stream::Stream;

const VERSION: u8 = 5;
const NO_AUTHENTICATION: u8 = 0;
const NO_ACCEPTABLE_METHOD: u8 = 0xff;
const CONNECT: u8 = 1;
const IPV4: u8 = 1;
const DOMAIN: u8 = 3;
const IPV6: u8 = 4;

/// Reply codes, RFC 1928 section 6.
mod reply {
    pub(super) const SUCCEEDED: u8 = 0;
    pub(super) const GENERAL_FAILURE: u8 = 1;
    pub(super) const NOT_ALLOWED: u8 = 2;
    pub(super) const HOST_UNREACHABLE: u8 = 4;
    pub(super) const CONNECTION_REFUSED: u8 = 5;
    pub(super) const TTL_EXPIRED: u8 = 6;
    pub(super) const COMMAND_NOT_SUPPORTED: u8 = 7;
    pub(super) const ADDRESS_TYPE_NOT_SUPPORTED: u8 = 8;
}

/// The longest message: a request with a name of 255 bytes, and a greeting of 255 methods before it.
const MAX_MESSAGE: usize = 2 + 255 + 4 + 1 + 255 + 2;

/// What the bytes so far amount to.
#[derive(Debug, PartialEq, Eq)]
enum Parsed<T> {
    /// More bytes are needed.
    Partial,
    /// This, in the first so many bytes.
    Complete(T, usize),
    /// It can't become a message; what to answer.
    Invalid(Vec<u8>),
}

/// Reads a client's greeting and request.
///
/// # Errors
/// `HandshakeFailed` after the client was told why, if it spoke SOCKS5 at all.
pub async fn accept(downstream: &Stream) -> Result<Handshake, Ending> {
    let mut buffer = Vec::new();
    parse_next(downstream, &mut buffer, parse_greeting).await?;
    downstream
        .send_all(&[VERSION, NO_AUTHENTICATION])
        .await
        .map_err(|_| Ending::HandshakeFailed)?;
    let destination = parse_next(downstream, &mut buffer, parse_request).await?;
    Ok(Handshake {
        destination,
        answer: Answer::Socks5,
        early: buffer,
    })
}

/// Reads until `parse` has a message, which is then taken off the buffer.
async fn parse_next<T>(
    downstream: &Stream,
    buffer: &mut Vec<u8>,
    parse: impl Fn(&[u8]) -> Parsed<T>,
) -> Result<T, Ending> {
    loop {
        match parse(buffer) {
            Parsed::Complete(message, length) => {
                buffer.drain(..length);
                return Ok(message);
            }
            Parsed::Invalid(answer) => {
                let _ = downstream.send_all(&answer).await;
                super::linger_until_read(downstream).await;
                return Err(Ending::HandshakeFailed);
            }
            Parsed::Partial => {
                let mut chunk = [0; MAX_MESSAGE];
                match downstream.receive(&mut chunk).await {
                    Ok(read) if read > 0 => buffer.extend_from_slice(&chunk[..read]),
                    _ => return Err(Ending::HandshakeFailed),
                }
            }
        }
    }
}

/// `VER NMETHODS METHODS…`
fn parse_greeting(bytes: &[u8]) -> Parsed<()> {
    let &[version, ref rest @ ..] = bytes else {
        return Parsed::Partial;
    };
    if version != VERSION {
        // Another protocol (SOCKS4, HTTP, TLS…): no answer of ours would be understood.
        return Parsed::Invalid(Vec::new());
    }
    let &[count, ref methods @ ..] = rest else {
        return Parsed::Partial;
    };
    let Some(methods) = methods.get(..usize::from(count)) else {
        return Parsed::Partial;
    };
    if methods.contains(&NO_AUTHENTICATION) {
        Parsed::Complete((), 2 + methods.len())
    } else {
        Parsed::Invalid(vec![VERSION, NO_ACCEPTABLE_METHOD])
    }
}

/// `VER CMD RSV ATYP DST.ADDR DST.PORT`
fn parse_request(bytes: &[u8]) -> Parsed<Destination> {
    let &[version, command, _reserved, kind, ref rest @ ..] = bytes else {
        return Parsed::Partial;
    };
    if version != VERSION {
        return Parsed::Invalid(message(reply::GENERAL_FAILURE, unspecified()));
    }
    if command != CONNECT {
        return Parsed::Invalid(message(reply::COMMAND_NOT_SUPPORTED, unspecified()));
    }
    let (host_length, prefix) = match kind {
        IPV4 => (4, 0),
        IPV6 => (16, 0),
        DOMAIN => match rest.first() {
            Some(&length) => (usize::from(length), 1),
            None => return Parsed::Partial,
        },
        _ => return Parsed::Invalid(message(reply::ADDRESS_TYPE_NOT_SUPPORTED, unspecified())),
    };
    let Some(host) = rest.get(prefix..prefix + host_length) else {
        return Parsed::Partial;
    };
    let Some(&[high, low]) = rest.get(prefix + host_length..prefix + host_length + 2) else {
        return Parsed::Partial;
    };
    match destination(host, kind, u16::from_be_bytes([high, low])) {
        Some(destination) => Parsed::Complete(destination, 4 + prefix + host_length + 2),
        None => Parsed::Invalid(message(reply::GENERAL_FAILURE, unspecified())),
    }
}

/// What `bytes` are as a greeting and as a request, if they are a whole one, and its length.
#[cfg(any(test, fuzzing))]
pub(super) fn read_both(bytes: &[u8]) -> impl Iterator<Item = (Option<Destination>, usize)> {
    let greeting = match parse_greeting(bytes) {
        Parsed::Complete((), length) => Some((None, length)),
        Parsed::Partial | Parsed::Invalid(_) => None,
    };
    let request = match parse_request(bytes) {
        Parsed::Complete(destination, length) => Some((Some(destination), length)),
        Parsed::Partial | Parsed::Invalid(_) => None,
    };
    greeting.into_iter().chain(request)
}

fn destination(host: &[u8], kind: u8, port: u16) -> Option<Destination> {
    let ip = match kind {
        IPV4 => <[u8; 4]>::try_from(host)
            .ok()
            .map(|octets| IpAddr::V4(Ipv4Addr::from(octets))),
        IPV6 => <[u8; 16]>::try_from(host)
            .ok()
            .map(|octets| IpAddr::V6(Ipv6Addr::from(octets))),
        _ => {
            let name = std::str::from_utf8(host).ok()?;
            match name.parse() {
                // Some clients send an address as a name.
                Ok(ip) => Some(ip),
                // A name is checked by the type that holds it.
                Err(_) => return format!("{name}:{port}").parse().ok(),
            }
        }
    };
    ip.filter(|_| port != 0)
        .map(|ip| Destination::Address(SocketAddr::new(ip, port)))
}

fn unspecified() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))
}

/// `VER REP RSV ATYP BND.ADDR BND.PORT`
fn message(code: u8, bound: SocketAddr) -> Vec<u8> {
    let mut message = vec![VERSION, code, 0];
    match bound.ip() {
        IpAddr::V4(ip) => {
            message.push(IPV4);
            message.extend(ip.octets());
        }
        IpAddr::V6(ip) => {
            message.push(IPV6);
            message.extend(ip.octets());
        }
    }
    message.extend(bound.port().to_be_bytes());
    message
}

/// The answer to a client that is connected, from `bound`.
pub(super) fn success(bound: SocketAddr) -> Vec<u8> {
    message(reply::SUCCEEDED, bound)
}

/// The answer to a client that is not.
pub(super) fn failure(ending: Ending) -> Vec<u8> {
    let code = match ending {
        Ending::PolicyDenied | Ending::PolicyRevoked | Ending::ConnectionLimit => reply::NOT_ALLOWED,
        Ending::UnknownDestination | Ending::NoHealthyEndpoint => reply::HOST_UNREACHABLE,
        Ending::ConnectFailed => reply::CONNECTION_REFUSED,
        Ending::ConnectTimeout => reply::TTL_EXPIRED,
        _ => reply::GENERAL_FAILURE,
    };
    message(code, unspecified())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request(kind: u8, host: &[u8], port: u16) -> Vec<u8> {
        let mut bytes = vec![5, 1, 0, kind];
        if kind == DOMAIN {
            bytes.push(host.len() as u8);
        }
        bytes.extend(host);
        bytes.extend(port.to_be_bytes());
        bytes
    }

    #[test]
    fn requests_of_each_kind_are_read() {
        let cases = [
            (request(IPV4, &[10, 0, 0, 1], 80), "10.0.0.1:80"),
            (request(IPV6, &Ipv6Addr::LOCALHOST.octets(), 80), "[::1]:80"),
            (
                request(DOMAIN, b"web.shop.svc.cluster.local", 443),
                "web.shop.svc.cluster.local:443",
            ),
            (request(DOMAIN, b"10.0.0.1", 80), "10.0.0.1:80"),
            (request(DOMAIN, b"fd00::1", 80), "[fd00::1]:80"),
        ];
        for (bytes, expected) in cases {
            assert_eq!(
                parse_request(&bytes),
                Parsed::Complete(expected.parse().unwrap(), bytes.len()),
                "{expected}"
            );
            for cut in 0..bytes.len() {
                assert_eq!(parse_request(&bytes[..cut]), Parsed::Partial, "{expected} cut at {cut}");
            }
        }
    }

    #[test]
    fn what_is_not_supported_is_answered_with_its_code() {
        let code = |bytes: &[u8]| match parse_request(bytes) {
            Parsed::Invalid(answer) => answer[1],
            other => panic!("{other:?}"),
        };
        assert_eq!(code(&[5, 2, 0, 1, 1, 1, 1, 1, 0, 80]), reply::COMMAND_NOT_SUPPORTED);
        assert_eq!(
            code(&[5, 1, 0, 9, 1, 1, 1, 1, 0, 80]),
            reply::ADDRESS_TYPE_NOT_SUPPORTED
        );
        assert_eq!(code(&request(IPV4, &[1, 1, 1, 1], 0)), reply::GENERAL_FAILURE);
        assert_eq!(code(&request(DOMAIN, b"bad name", 80)), reply::GENERAL_FAILURE);
        assert_eq!(code(&request(DOMAIN, b"", 80)), reply::GENERAL_FAILURE);
    }

    #[test]
    fn a_greeting_without_a_method_we_have_is_told_so() {
        assert_eq!(parse_greeting(&[5, 2, 1, 2]), Parsed::Invalid(vec![5, 0xff]));
        assert_eq!(parse_greeting(&[5, 2, 1, 0]), Parsed::Complete((), 4));
        assert_eq!(parse_greeting(&[5, 3, 1, 0]), Parsed::Partial);
        assert_eq!(parse_greeting(b"GET / HTTP/1.1"), Parsed::Invalid(vec![]));
    }

    #[test]
    fn denials_and_failures_have_different_codes() {
        assert_eq!(failure(Ending::PolicyDenied)[1], reply::NOT_ALLOWED);
        assert_eq!(failure(Ending::ConnectFailed)[1], reply::CONNECTION_REFUSED);
        assert_eq!(success("10.0.0.1:9".parse().unwrap()), [5, 0, 0, 1, 10, 0, 0, 1, 0, 9]);
    }

    proptest! {
        #[test]
        fn no_bytes_panic_or_claim_more_than_was_sent(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            if let Parsed::Complete((), length) = parse_greeting(&bytes) {
                prop_assert!(length <= bytes.len());
            }
            if let Parsed::Complete(_, length) = parse_request(&bytes) {
                prop_assert!(length <= bytes.len());
            }
        }
    }
}
