//! HTTP/2 by hand: frames and header blocks that no well-meaning client would write.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use super::Place;

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(super) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(super) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

/// A frame (RFC 9113, section 4.1).
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a frame is short").to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// The next frame of a peer: kind, flags, stream, payload.
pub(crate) fn read_frame(mut from: impl Read) -> io::Result<(u8, u8, u32, Vec<u8>)> {
    let mut head = [0; 9];
    from.read_exact(&mut head)?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
    let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
    let mut payload = vec![0; length];
    from.read_exact(&mut payload)?;
    Ok((head[3], head[4], stream, payload))
}

/// A header block of literals that are neither indexed nor compressed (RFC 7541, section 6.2.2).
pub(super) fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            integer(&mut block, 7, text.len());
            block.extend(text.as_bytes());
        }
    }
    block
}

/// RFC 7541, section 5.1; the bits before it are zero.
fn integer(block: &mut Vec<u8>, bits: u32, value: usize) {
    let most = (1 << bits) - 1;
    if value < most {
        return block.push(value as u8);
    }
    block.push(most as u8);
    let mut rest = value - most;
    while rest >= 128 {
        block.push((rest % 128) as u8 | 128);
        rest /= 128;
    }
    block.push(rest as u8);
}

/// The pseudo-header fields of a request to `web.test`.
pub(super) fn pseudo<'a>(method: &'a str, path: &'a str) -> Vec<(&'a str, &'a str)> {
    vec![
        (":method", method),
        (":scheme", "http"),
        (":authority", "web.test"),
        (":path", path),
    ]
}

/// A connection whose preface is sent.
pub(super) struct Peer {
    pub(super) stream: TcpStream,
}

/// How the proxy ended a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// With GOAWAY and this error code.
    GoAway(u32),
    /// Without a word.
    Silently,
    /// Not at all.
    Open,
}

impl Peer {
    /// `settings`: the payload of the first SETTINGS.
    pub(super) fn connect(place: &Place, settings: &[u8]) -> Self {
        let mut stream = place.client.connect(place.at).expect("the proxy accepts");
        let mut preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        preface.extend(frame(SETTINGS, 0, 0, settings));
        stream.write_all(&preface).expect("the proxy reads");
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .expect("a socket");
        Self { stream }
    }

    pub(super) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    pub(super) fn frame(&mut self) -> io::Result<(u8, u8, u32, Vec<u8>)> {
        read_frame(&mut self.stream)
    }

    /// Reads until the proxy ends the connection, or says nothing for so long.
    pub(super) fn end(&mut self, patience: Duration) -> Ended {
        self.stream.set_read_timeout(Some(patience)).expect("a socket");
        let mut ended = Ended::Silently;
        loop {
            match self.frame() {
                Ok((GOAWAY, _, _, payload)) if payload.len() >= 8 => {
                    let code = u32::from_be_bytes([payload[4], payload[5], payload[6], payload[7]]);
                    ended = Ended::GoAway(code);
                }
                Ok(_) => {}
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    return Ended::Open;
                }
                Err(_) => return ended,
            }
        }
    }
}
