//! Whether a connection speaks HTTP at all, asked where its listener, or what a waypoint knows of its service, says what becomes of one that does not (Envoy's listener filter
//! `http_inspector`; Istio's protocol detection).
//!
//! Without a fallback, what does not begin as HTTP/2 is HTTP/1.1's to refuse (`sniff`). With one, HTTP has to show itself: by the preface of HTTP/2, or by a first
//! line with a method, a target and the beginning of a version. Whatever can't become that any more is TCP, at the byte that shows it; so is what is still open when the time
//! for it is over, or when the client ends its side (who half-closes may still be spoken to). What was read goes to the destination first.
//!
//! The verdict depends on the bytes, not on how they arrive, and each is looked at once.

use std::future::poll_fn;
use std::time::Duration;

use underpass_config::{NodeSettings, Timeouts};

use super::connection::last_word;
use super::downstream::Way;
use super::sniff::{PREFACE, Protocol};
use crate::ending::Ending;
use crate::flow_table::FlowGuard;
use crate::session::Session;
use crate::upstream::Refused;

/// The longest method: longer ones than any that is registered (IANA's list ends at 17), and shorter than what else is written without a blank.
const LONGEST_METHOD: usize = 32;
/// What is not decided by then is no HTTP (Envoy's `MAX_INSPECT_SIZE`, which is also the longest head that is taken, `intake`).
const MOST: usize = 64 * 1024;
/// What a version begins with (RFC 9112, section 2.3).
const VERSION: &[u8] = b"HTTP/";

/// What a client speaks that need not speak HTTP, and what was read to find out in `patience`; zero: what it says decides, in its own time. It is in the table meanwhile, and
/// ended as others are.
///
/// # Errors
/// When the client is gone, or has to go.
pub async fn detected(
    session: &Session,
    guard: &FlowGuard,
    way: &Way,
    settings: &NodeSettings,
    patience: Duration,
) -> Result<(Protocol, Vec<u8>), Refused> {
    let drained = async {
        match patience.is_zero() {
            true => {
                session.node.drain_started().await;
                tokio::time::sleep(last_word(settings)).await;
            }
            // It will not be long until it is clear.
            false => std::future::pending().await,
        }
    };
    let flow = guard.flow();
    let ending = tokio::select! {
        biased;
        ending = flow.ended() => ending,
        detected = detect(way, patience, &settings.timeouts) => match detected {
            Ok(detected) => return Ok(detected),
            Err(ending) => ending,
        },
        () = drained => Ending::Drained,
    };
    Err(Refused {
        detail: flow.denial().map(|denial| denial.why.to_string()),
        ..ending.into()
    })
}

/// Reads until it is clear what a client speaks, or does not matter any more. With what was read.
///
/// # Errors
/// When the client is gone, or has to go.
async fn detect(way: &Way, patience: Duration, timeouts: &Timeouts) -> Result<(Protocol, Vec<u8>), Ending> {
    let mut read = Vec::new();
    let deciding = decide(way, &mut read);
    let decided = match patience {
        // Only its bytes decide: they have their time from the first on.
        limit if limit.is_zero() => {
            let began = poll_fn(|cx| way.poll_readable(cx));
            let began = tokio::time::timeout(timeouts.idle, began).await;
            began
                .map_err(|_| Ending::IdleTimeout)?
                .map_err(|_| Ending::DownstreamReset)?;
            let decided = tokio::time::timeout(timeouts.handshake, deciding).await;
            decided.map_err(|_| Ending::HandshakeFailed)?
        }
        // Bytes that are there when the time is over count.
        limit => (tokio::time::timeout(limit, deciding).await).unwrap_or(Ok(Protocol::Neither)),
    };
    Ok((decided?, read))
}

async fn decide(way: &Way, read: &mut Vec<u8>) -> Result<Protocol, Ending> {
    let (mut inspector, mut part) = (Inspector::default(), [0; 1024]);
    loop {
        let received = way.receive(&mut part).await;
        let length = received.map_err(|_| Ending::DownstreamReset)?;
        read.extend_from_slice(&part[..length]);
        match inspector.take(&part[..length]) {
            Some(protocol) => return Ok(protocol),
            None if length == 0 => return Ok(Protocol::Neither),
            None => {}
        }
    }
}

/// What the bytes so far can be the beginning of.
#[derive(Debug, Default)]
pub struct Inspector {
    length: usize,
    /// Whether they are not all those of HTTP/2's preface.
    is_other: bool,
    line: Line,
}

/// How far a first line has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Line {
    /// Nowhere: empty lines may come before a request (RFC 9112, section 2.2).
    #[default]
    Before,
    /// So many bytes into the method.
    Method(usize),
    /// Behind the blank that ends the method, before the target.
    Blank,
    /// Into the target.
    Target,
    /// So many bytes into the version.
    Version(usize),
    /// It is a request's.
    Request,
    /// It is none.
    Other,
}

impl Inspector {
    /// Takes the next bytes. What is spoken, once that is clear; what comes after is not looked at.
    pub fn take(&mut self, bytes: &[u8]) -> Option<Protocol> {
        bytes.iter().find_map(|byte| self.take_one(*byte))
    }

    fn take_one(&mut self, byte: u8) -> Option<Protocol> {
        self.is_other |= PREFACE.get(self.length) != Some(&byte);
        self.length += 1;
        self.line = self.line.and(byte);
        match self.line {
            // The preface begins as a request's line, of which it is not yet clear whether it is one.
            _ if !self.is_other => (self.length == PREFACE.len()).then_some(Protocol::Http2),
            Line::Request => Some(Protocol::Http1),
            Line::Other => Some(Protocol::Neither),
            _ => (self.length >= MOST).then_some(Protocol::Neither),
        }
    }
}

impl Line {
    /// The same with one byte more (RFC 9112, section 3).
    fn and(self, byte: u8) -> Self {
        match (self, byte) {
            (Self::Request | Self::Other, _) => self,
            (Self::Before, b'\r' | b'\n') => Self::Before,
            (Self::Before, _) if is_of_token(byte) => Self::Method(1),
            (Self::Method(_), b' ') => Self::Blank,
            (Self::Method(length), _) if is_of_token(byte) && length < LONGEST_METHOD => Self::Method(length + 1),
            (Self::Target, b' ') => Self::Version(0),
            // Servers take letters beyond ASCII too: it is the version that decides.
            (Self::Blank | Self::Target, b'!'..=b'~' | 0x80..) => Self::Target,
            (Self::Version(length), _) if VERSION[length] == byte => match length + 1 == VERSION.len() {
                true => Self::Request,
                false => Self::Version(length + 1),
            },
            _ => Self::Other,
        }
    }
}

/// RFC 9110, section 5.6.2.
fn is_of_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What is decided, and at which byte.
    fn decided(bytes: &[u8]) -> Option<(Protocol, usize)> {
        let mut inspector = Inspector::default();
        let mut numbered = bytes.iter().zip(1..);
        numbered.find_map(|(byte, number)| inspector.take(&[*byte]).map(|protocol| (protocol, number)))
    }

    #[test]
    fn http_shows_itself_by_a_line_with_a_version() {
        for line in [
            "GET / HTTP/1.1",
            "\r\n\nGET / HTTP/1.0",
            "M-SEARCH * HTTP/1.1",
            "OPTIONS * HTTP/9",
            "CONNECT a:80 HTTP/1.1",
            "GET relative HTTP/2.0",
            "GET /\u{e4} HTTP/1.1",
            // Its end is not that of the preface.
            "PRI * HTTP/2.0\r\n\r\nXM",
            "PRI * HTTP/1.1",
        ] {
            let (protocol, at) = decided(line.as_bytes()).unwrap_or_else(|| panic!("{line} is not decided"));
            assert_eq!(protocol, Protocol::Http1, "{line}");
            let version = line.find("HTTP/").unwrap() + VERSION.len();
            assert!(at >= version, "{line}: decided at byte {at}");
        }
        assert_eq!(decided(PREFACE), Some((Protocol::Http2, PREFACE.len())));
    }

    #[test]
    fn what_cannot_become_http_is_tcp_at_the_byte_that_shows_it() {
        for (bytes, at) in [
            (&b"\x16\x03\x01"[..], 1),
            (b"\x00\x00\x00\x08", 1),
            (b"*1\r\n$4\r\nPING\r\n", 3),
            (b"PING\r\n", 5),
            (b"SSH-2.0-OpenSSH\r\n", 16),
            (b"GET key\r\n", 8),
            (b"GET  / HTTP/1.1", 5),
            (b" GET / HTTP/1.1", 1),
            (b"set a 0 0 1\r\n", 7),
            (b"GET /\t HTTP/1.1", 6),
            (b"GET / HTTX/1.1", 10),
            (b"GET / http/1.1", 7),
            (b"PRI * HTX", 9),
            (b"PRX/1", 4),
            (b"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", 33),
        ] {
            assert_eq!(
                decided(bytes),
                Some((Protocol::Neither, at)),
                "{}",
                bytes.escape_ascii()
            );
        }
    }

    #[test]
    fn a_beginning_is_open() {
        for beginning in [
            "",
            "\r\n",
            "G",
            "GET",
            "GET ",
            "GET /",
            "GET / ",
            "GET / HTTP",
            "PRI * HT",
        ] {
            assert_eq!(decided(beginning.as_bytes()), None, "{beginning}");
        }
        assert_eq!(decided(&PREFACE[..PREFACE.len() - 1]), None);
    }

    #[test]
    fn a_line_without_end_is_no_http() {
        let mut endless = b"GET /".to_vec();
        endless.resize(MOST - 1, b'a');
        assert_eq!(decided(&endless), None);
        endless.push(b'a');
        assert_eq!(decided(&endless), Some((Protocol::Neither, MOST)));
    }

    proptest! {
        #[test]
        fn how_bytes_arrive_does_not_matter(
            bytes in "(PRI \\* HTTP/2.0\r\n\r\nSM\r\n\r\n|GET |\r\n)?[ -~\r\n]{0,40}",
            cut in 0_usize..60,
        ) {
            let bytes = bytes.as_bytes();
            let cut = cut.min(bytes.len());
            let mut inspector = Inspector::default();
            let in_two = inspector.take(&bytes[..cut]).or_else(|| inspector.take(&bytes[cut..]));
            prop_assert_eq!(in_two, decided(bytes).map(|(protocol, _)| protocol));
        }
    }
}
