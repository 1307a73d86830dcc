//! HTTP/1.1 or HTTP/2, told by the first bytes (RFC 9113, section 3.4).

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::net::TcpStream;

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
pub async fn sniff(socket: &TcpStream, idle: Duration, patience: Duration) -> Option<(Protocol, Bytes)> {
    let mut read = BytesMut::with_capacity(PREFACE.len());
    tokio::time::timeout(idle, socket.readable()).await.ok()?.ok()?;
    let decided = async {
        loop {
            socket.readable().await?;
            match socket.try_read_buf(&mut read) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => return Err(error),
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
