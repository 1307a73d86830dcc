//! HTTP/1.1 or HTTP/2, told by the first bytes (RFC 9113, section 3.4); or neither.
//!
//! What begins otherwise than HTTP/2 is HTTP/1.1's to refuse, in its words. Who has sent a line that has nothing of a request's, neither a target in any form nor a version
//! of HTTP, would not understand them: if it speaks HTTP/2, it would take a response for frames. Its connection ends without a word, as HTTP/2 wants it
//! after a preface that is none.

use std::future::poll_fn;
use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::downstream::Way;

/// What a client of HTTP/2 begins with.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.x, or something that it has an answer to.
    Http1,
    /// HTTP/2.
    Http2,
    /// Nothing that an answer could be written in.
    Neither,
}

/// Reads until it is clear what a client speaks. It may be silent for `idle`; what it has begun, it has to go on with in `patience`.
/// Nothing when it went, or took too long.
pub async fn sniff(way: &Way, idle: Duration, patience: Duration) -> Option<(Protocol, Bytes)> {
    let mut read = BytesMut::new();
    let mut part = [0; 1024];
    let began = poll_fn(|cx| way.poll_readable(cx));
    tokio::time::timeout(idle, began).await.ok()?.ok()?;
    let decided = async {
        loop {
            match way.receive(&mut part).await? {
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

/// What the bytes that have come so far are the beginning of, if that is clear.
pub fn decide(read: &[u8]) -> Option<Protocol> {
    let length = read.len().min(PREFACE.len());
    match read[..length] == PREFACE[..length] {
        true => (length == PREFACE.len()).then_some(Protocol::Http2),
        false if is_no_request(read) => Some(Protocol::Neither),
        false => Some(Protocol::Http1),
    }
}

/// Whether the first line is there, and has words, of which none is what a request's line has behind its method (RFC 9112, section 3): a target that begins with a slash, is an
/// asterisk or has a colon (that of a port, if not of a scheme), or a version.
fn is_no_request(read: &[u8]) -> bool {
    let Some(end) = read.iter().position(|byte| *byte == b'\n') else {
        return false;
    };
    let mut words = read[..end].trim_ascii().split(|byte| *byte == b' ');
    let is_of_request =
        |word: &[u8]| word.starts_with(b"/") || word == b"*" || word.contains(&b':') || word.starts_with(b"HTTP/");
    // An empty line may come before a request (RFC 9112, section 2.2).
    words.next().is_some_and(|method| !method.is_empty()) && !words.any(is_of_request)
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

    #[test]
    fn what_has_something_of_a_request_is_answered_as_one() {
        for line in [
            "GET / HTTP/1.1",
            "GET /",
            "GET / HTTX/1.1",
            "GET relative HTTP/1.1",
            "OPTIONS * HTTP/1.1",
            "CONNECT web.test:80 HTTP/1.1",
            "GET http://web.test/",
            "",
        ] {
            assert_eq!(
                decide(format!("{line}\r\nhost: a\r\n\r\n").as_bytes()),
                Some(Protocol::Http1),
                "{line}"
            );
        }
    }

    #[test]
    fn what_has_nothing_of_a_request_is_neither() {
        for line in ["INVALID CONNECTION PREFACE", "hello", "EHLO mail.test"] {
            let bytes = format!("{line}\r\n\r\n");
            assert_eq!(decide(bytes.as_bytes()), Some(Protocol::Neither), "{line}");
            // Nobody is kept waiting for the rest of a line.
            assert_eq!(decide(line.as_bytes()), Some(Protocol::Http1), "{line}");
        }
    }
}
