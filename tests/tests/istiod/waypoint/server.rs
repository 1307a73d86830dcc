//! A server of HTTP/1.1 in a pod that tells what it was asked, and who asks it.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use underpass_tests::{Host, wait};

/// A running server; it serves until the test ends.
pub(crate) struct Server;

/// What was answered.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Names are in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Answer {
    /// The pod that has answered.
    pub(crate) fn pod(&self) -> &str {
        self.body.lines().next().unwrap_or_default()
    }

    /// A field of its head.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    /// What the server was asked: its first line and its fields, a line each.
    pub(crate) fn asked(&self) -> Vec<&str> {
        self.body.lines().skip(1).collect()
    }
}

impl Server {
    /// Serves on `host` as the pod `name`.
    pub(crate) fn start(host: &Host, port: u16, name: &str) -> Self {
        let (listener, name) = (host.listen(port), name.to_owned());
        thread::spawn(move || {
            for stream in listener.incoming() {
                let name = name.clone();
                thread::spawn(move || answer_all(stream.expect("accepted"), &name));
            }
        });
        Self
    }
}

/// Those who were asked for a flaky path already.
static ASKED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// Answers each request of a connection with 200, or as its path says: `/flaky/NAME` with 503 for the first time, whichever pod is asked; `/ill/POD` with 503 by that pod;
/// `/late/` after a second.
fn answer_all(mut stream: TcpStream, name: &str) {
    let mut pending = Vec::new();
    while let Ok(Some(head)) = head(&mut stream, &mut pending) {
        let path = head.split(' ').nth(1).unwrap_or_default();
        let is_first = path.starts_with("/flaky/") && ASKED.lock().expect("no holder panics").insert(path.to_owned());
        if path.starts_with("/late/") {
            thread::sleep(Duration::from_secs(1));
        }
        let body = format!("{name}\n{}", head.trim_end());
        let is_ill = path.split_once("/ill/").is_some_and(|(_, who)| name.ends_with(who));
        let status = if is_first || is_ill { 503 } else { 200 };
        let text = format!("HTTP/1.1 {status} -\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        if stream.write_all(text.as_bytes()).is_err() {
            return;
        }
    }
}

/// The next head; none at the end. Requests have no bodies here.
fn head(stream: &mut TcpStream, pending: &mut Vec<u8>) -> io::Result<Option<String>> {
    let mut chunk = [0; 4096];
    loop {
        if let Some(end) = pending.windows(4).position(|four| four == b"\r\n\r\n") {
            let head: Vec<u8> = pending.drain(..end + 4).collect();
            return Ok(Some(String::from_utf8_lossy(&head).into_owned()));
        }
        match stream.read(&mut chunk)? {
            0 => return Ok(None),
            length => pending.extend_from_slice(&chunk[..length]),
        }
    }
}

/// What a client on `host` is answered for a path, on a connection of its own.
pub(crate) fn get(host: &Host, to: SocketAddr, path: &str, headers: &[(&str, &str)]) -> io::Result<Answer> {
    let mut stream = host.connect_unbound(to)?;
    ask(&mut stream, path, headers, true)
}

/// The same on a connection that may be used again, unless it is to be the last request.
pub(crate) fn ask(stream: &mut TcpStream, path: &str, headers: &[(&str, &str)], is_last: bool) -> io::Result<Answer> {
    stream.set_read_timeout(Some(wait::patient(Duration::from_secs(20))))?;
    let is_given = |name: &str| headers.iter().any(|(known, _)| *known == name);
    let mut text = format!("GET {path} HTTP/1.1\r\n");
    if !is_given("host") {
        text.push_str("host: web\r\n");
    }
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str(if is_last { "connection: close\r\n\r\n" } else { "\r\n" });
    stream.write_all(text.as_bytes())?;
    let mut pending = Vec::new();
    let head = head(stream, &mut pending)?.ok_or(io::ErrorKind::UnexpectedEof)?;
    let mut lines = head.lines();
    let first = lines.next().unwrap_or_default();
    let status = first.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.ok_or_else(|| io::Error::other(format!("no answer: {first}")))?;
    let fields = lines.filter_map(|line| line.split_once(':'));
    let headers: Vec<_> = fields
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let length = headers.iter().find(|(name, _)| name == "content-length");
    let length: usize = length.and_then(|(_, value)| value.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length.saturating_sub(pending.len())];
    stream.read_exact(&mut body)?;
    pending.extend(body);
    if is_last {
        let _ = stream.shutdown(Shutdown::Both);
    }
    Ok(Answer {
        status,
        headers,
        body: String::from_utf8_lossy(&pending).into_owned(),
    })
}
