//! A client that writes whatever bytes it is told to, and reads what an HTTP/1.1 client would read.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use underpass_tests::Host;

/// A response that takes longer is a hang. (Proxies and endpoints of these tests may be stopped for a minute where the machine measures something.)
const DEADLINE: Duration = Duration::from_secs(60);

/// A response, or why there is none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// 0: the connection ended without one.
    pub(crate) status: u16,
    /// By name in lower case; values in their order.
    pub(crate) headers: BTreeMap<String, Vec<String>>,
    pub(crate) body: String,
    /// Whether the body ended as its framing promised.
    pub(crate) is_whole: bool,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.first().map(String::as_str)
    }
}

/// A connection to a proxy.
pub(crate) struct Client {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Client {
    pub(crate) fn connect(from: &Host, to: SocketAddr) -> Self {
        let stream = from.connect(to).expect("the proxy accepts");
        stream.set_read_timeout(Some(DEADLINE)).expect("a socket");
        Self {
            stream,
            read: Vec::new(),
        }
    }

    /// Its own address.
    pub(crate) fn address(&self) -> SocketAddr {
        self.stream.local_addr().expect("a socket")
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        // A proxy that has answered and closed already is judged by its answer.
        let _ = self.stream.write_all(bytes);
    }

    pub(crate) fn end(&self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// The answer to one request; `to_head`: it has no body.
    pub(crate) fn answer(&mut self, to_head: bool) -> Seen {
        loop {
            let Some(seen) = self.head() else {
                return Seen::default();
            };
            // Interim responses come before the one that counts.
            if seen.status >= 200 || seen.status == 101 {
                return self.body(seen, to_head);
            }
        }
    }

    /// Whether the proxy has nothing more to say: it closes (or resets) before it says anything.
    pub(crate) fn is_closed(&mut self) -> bool {
        // A read that has run into its deadline is no end.
        let is_end = match self.more() {
            Ok(length) => length == 0,
            Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
        };
        self.read.is_empty() && is_end
    }

    /// Whether the proxy resets the connection before it says anything.
    pub(crate) fn is_reset(&mut self) -> bool {
        self.read.is_empty()
            && self
                .more()
                .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset)
    }

    /// Whether the connection ends, whatever is said before.
    pub(crate) fn ends(&mut self) -> bool {
        let mut chunk = [0; 64 * 1024];
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => return error.kind() == io::ErrorKind::ConnectionReset,
            }
        }
    }

    /// Reads what is there.
    fn more(&mut self) -> io::Result<usize> {
        let mut chunk = [0; 16 * 1024];
        let length = self.stream.read(&mut chunk)?;
        self.read.extend_from_slice(&chunk[..length]);
        Ok(length)
    }

    /// Exactly so many bytes that the peer sends.
    pub(crate) fn bytes(&mut self, length: usize) -> Option<Vec<u8>> {
        while self.read.len() < length {
            if !matches!(self.more(), Ok(length) if length > 0) {
                return None;
            }
        }
        Some(self.read.drain(..length).collect())
    }

    fn line(&mut self) -> Option<String> {
        let end = loop {
            match self.read.windows(2).position(|two| two == b"\r\n") {
                Some(end) => break end,
                None => {
                    if !matches!(self.more(), Ok(length) if length > 0) {
                        return None;
                    }
                }
            }
        };
        let line = self.read.drain(..end + 2).take(end).collect::<Vec<_>>();
        Some(String::from_utf8_lossy(&line).into_owned())
    }

    fn head(&mut self) -> Option<Seen> {
        let first = self.line()?;
        let mut seen = Seen {
            status: first.split(' ').nth(1)?.parse().ok()?,
            ..Seen::default()
        };
        loop {
            let line = self.line()?;
            if line.is_empty() {
                return Some(seen);
            }
            let (name, value) = line.split_once(':')?;
            let values = seen.headers.entry(name.to_ascii_lowercase()).or_default();
            values.push(value.trim().to_owned());
        }
    }

    fn body(&mut self, mut seen: Seen, to_head: bool) -> Seen {
        if to_head || matches!(seen.status, 101 | 204 | 304) {
            seen.is_whole = true;
            return seen;
        }
        let body = match (seen.header("transfer-encoding"), seen.header("content-length")) {
            (Some("chunked"), _) => self.chunks(),
            (_, Some(length)) => length.parse().ok().and_then(|length| self.bytes(length)),
            _ => {
                while matches!(self.more(), Ok(length) if length > 0) {}
                Some(std::mem::take(&mut self.read))
            }
        };
        seen.is_whole = body.is_some();
        let body = body.unwrap_or_else(|| std::mem::take(&mut self.read));
        seen.body = String::from_utf8_lossy(&body).into_owned();
        seen
    }

    fn chunks(&mut self) -> Option<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let size = usize::from_str_radix(self.line()?.split(';').next()?.trim(), 16).ok()?;
            if size == 0 {
                while !self.line()?.is_empty() {}
                return Some(body);
            }
            body.extend(self.bytes(size)?);
            self.line()?;
        }
    }
}

/// One request on a connection of its own.
pub(crate) fn ask(from: &Host, to: SocketAddr, request: &str) -> Seen {
    let mut client = Client::connect(from, to);
    client.send(request.as_bytes());
    client.answer(request.starts_with("HEAD "))
}

/// `GET path` with header lines, each ended by `\r\n`.
pub(crate) fn get(path: &str, lines: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: web.test\r\n{lines}\r\n")
}
