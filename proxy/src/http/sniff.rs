//! HTTP/1.1 or HTTP/2, told by the first bytes (RFC 9113, section 3.4).

use std::future::poll_fn;
use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use crate::stream::Stream;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.x, or nothing that is known.
    Http1,
    /// HTTP/2.
    Http2,
}

/// Reads until it is clear what a client speaks. It may be silent for `idle`; what it has begun, it has to go on with in `patience`.
/// Nothing when it went, or took too long.
pub async fn sniff(socket: &Stream, idle: Duration, patience: Duration) -> Option<(Protocol, Bytes)> {
    let mut read = BytesMut::new();
    let mut part = [0; 1024];
    let began = poll_fn(|cx| socket.poll_readable(cx));
    tokio::time::timeout(idle, began).await.ok()?.ok()?;
    let decided = async {
        loop {
            match socket.receive(&mut part).await? {
                0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
                length => read.extend_from_slice(&part[..length]),
            }
            if let Some(protocol) = decide(&read) {
                return Ok(protocol);
            }
        }
    };
    let protocol = tokio::time::timeout(patience, decided).await.ok()?.ok()?;
    Some((protocol, read.freeze()))
}

fn decide(read: &[u8]) -> Option<Protocol> {
    let length = read.len().min(PREFACE.len());
    match read[..length] == PREFACE[..length] {
        false => Some(Protocol::Http1),
        true => (length == PREFACE.len()).then_some(Protocol::Http2),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beginning_is_not_decided_before_it_is_clear() {
        assert_eq!(decide(b"PR"), None);
        assert_eq!(decide(&PREFACE[..23]), None);
        assert_eq!(decide(PREFACE), Some(Protocol::Http2));
        // A method of WebDAV.
        assert_eq!(decide(b"PROPFIND"), Some(Protocol::Http1));
        assert_eq!(decide(b"G"), Some(Protocol::Http1));
    }
}
