//! HTTP/1.1 CONNECT (RFC 9110, section 9.3.6), the proxy's side.
//!
//! Only the head is HTTP; after the answer the connection is a plain stream. So the head is parsed with `httparse` from a bounded
//! buffer, and the socket stays ours. What the client sent behind the head belongs to the stream.

use underpass_config::Destination;

use super::{Answer, Handshake};
use crate::ending::Ending;
use crate::stream::Stream;

/// The largest head that is read, as in most HTTP servers.
const MAX_HEAD: usize = 16 * 1024;

/// The most header fields that are read; they are ignored, but must be well formed.
const MAX_FIELDS: usize = 64;

/// The answer to a client that is connected.
pub(super) const SUCCESS: &[u8] = b"HTTP/1.1 200 Connection established\r\n\r\n";

#[derive(Debug, PartialEq, Eq)]
enum Parsed {
    Partial,
    Complete(Destination, usize),
    /// Status to refuse it with, and why.
    Invalid(&'static str, String),
}

/// Reads a CONNECT request.
///
/// # Errors
/// `HandshakeFailed` after the client was told why.
pub async fn accept(downstream: &Stream) -> Result<Handshake, Ending> {
    let mut buffer = Vec::new();
    loop {
        match parse(&buffer) {
            Parsed::Complete(destination, length) => {
                let early = buffer.split_off(length);
                return Ok(Handshake {
                    destination,
                    answer: Answer::HttpConnect,
                    early,
                });
            }
            Parsed::Invalid(status, why) => {
                let _ = downstream.send_all(&response(status, &why)).await;
                super::linger_until_read(downstream).await;
                return Err(Ending::HandshakeFailed);
            }
            Parsed::Partial => {
                let mut chunk = [0; 2048];
                match downstream.receive(&mut chunk).await {
                    Ok(read) if read > 0 => buffer.extend_from_slice(&chunk[..read]),
                    _ => return Err(Ending::HandshakeFailed),
                }
            }
        }
    }
}

fn parse(bytes: &[u8]) -> Parsed {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    match request.parse(bytes) {
        Ok(httparse::Status::Partial) if bytes.len() < MAX_HEAD => Parsed::Partial,
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => Parsed::Invalid(
            "431 Request Header Fields Too Large",
            format!("the head may have {MAX_HEAD} bytes"),
        ),
        Err(error) => Parsed::Invalid("400 Bad Request", error.to_string()),
        Ok(httparse::Status::Complete(length)) => match (request.method, request.path) {
            (Some("CONNECT"), Some(authority)) => match authority.parse() {
                Ok(destination) => Parsed::Complete(destination, length),
                Err(error) => Parsed::Invalid("400 Bad Request", format!("{authority} {error}")),
            },
            _ => Parsed::Invalid("405 Method Not Allowed", "this listener serves CONNECT only".to_owned()),
        },
    }
}

/// The request in `bytes`, if it is a whole one, and its length.
#[cfg(any(test, fuzzing))]
pub(super) fn read(bytes: &[u8]) -> Option<(Option<Destination>, usize)> {
    match parse(bytes) {
        Parsed::Complete(destination, length) => Some((Some(destination), length)),
        Parsed::Partial | Parsed::Invalid(..) => None,
    }
}

fn response(status: &str, why: &str) -> Vec<u8> {
    let allow = if status.starts_with("405") {
        "allow: CONNECT\r\n"
    } else {
        ""
    };
    let body = format!("{why}\n");
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\n{allow}content-type: text/plain\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
    )
    .into_bytes()
}

/// The answer to a client that is not connected; its body is the ending's word.
pub(super) fn failure(ending: Ending) -> Vec<u8> {
    let status = match ending {
        Ending::PolicyDenied | Ending::PolicyRevoked => "403 Forbidden",
        Ending::ConnectTimeout => "504 Gateway Timeout",
        Ending::ConnectFailed | Ending::UnknownDestination => "502 Bad Gateway",
        _ => "503 Service Unavailable",
    };
    response(status, ending.word())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_request_is_read_whatever_its_header_fields() {
        let head = b"CONNECT web.shop.svc.cluster.local:80 HTTP/1.1\r\nHost: x\r\nUser-Agent: y\r\n\r\n";
        let bytes = [head.as_slice(), b"early"].concat();
        let expected = "web.shop.svc.cluster.local:80".parse().unwrap();
        assert_eq!(parse(&bytes), Parsed::Complete(expected, head.len()));
        for cut in 0..head.len() {
            assert_eq!(parse(&head[..cut]), Parsed::Partial, "cut at {cut}");
        }
    }

    #[test]
    fn what_is_refused_has_a_status() {
        let status = |bytes: &[u8]| match parse(bytes) {
            Parsed::Invalid(status, _) => status,
            other => panic!("{other:?}"),
        };
        assert_eq!(status(b"GET / HTTP/1.1\r\n\r\n"), "405 Method Not Allowed");
        assert_eq!(status(b"CONNECT web HTTP/1.1\r\n\r\n"), "400 Bad Request");
        assert_eq!(status(b"\x05\x01\x00"), "400 Bad Request");
        let endless = [b"CONNECT a.b:1 HTTP/1.1\r\nx: ".as_slice(), &[b'y'; MAX_HEAD]].concat();
        assert_eq!(status(&endless), "431 Request Header Fields Too Large");
    }

    #[test]
    fn denial_is_forbidden() {
        assert!(failure(Ending::PolicyDenied).starts_with(b"HTTP/1.1 403 "));
        assert!(failure(Ending::NoHealthyEndpoint).starts_with(b"HTTP/1.1 503 "));
    }

    proptest! {
        #[test]
        fn no_bytes_panic_or_claim_more_than_was_sent(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            if let Parsed::Complete(_, length) = parse(&bytes) {
                prop_assert!(length <= bytes.len());
            }
        }
    }
}
