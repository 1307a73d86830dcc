//! An endpoint that reads as RFC 9112 wants messages to be *written*, and keeps what it was sent. What a lenient reader could read otherwise (a bare LF, a
//! second length, a coding beside a length) is an offence. So whatever arrives without one is the same request to every reader.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use underpass_tests::Host;

/// A request that arrived.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Arrived {
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
}

/// What arrived, and what was wrong with it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) arrived: Vec<Arrived>,
    pub(crate) offences: Vec<String>,
}

/// A running endpoint; it ends with the test's process.
pub(crate) struct Strict {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Seen>>,
}

impl Strict {
    pub(crate) fn start(host: &Host) -> Self {
        let listener = host.listen(9001);
        let address = listener.local_addr().expect("a socket");
        let seen = Arc::<Mutex<Seen>>::default();
        let kept = seen.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let kept = kept.clone();
                thread::spawn(move || serve(&stream, &kept));
            }
        });
        Self { address, seen }
    }

    /// All that arrived so far.
    pub(crate) fn seen(&self) -> Seen {
        self.seen.lock().expect("nobody panics").clone()
    }
}

fn serve(mut stream: &TcpStream, seen: &Mutex<Seen>) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let request = match read(&mut reader) {
            Ok(Some(request)) => request,
            Ok(None) => return Ok(()),
            Err(Fault::Io(error)) => return Err(error),
            Err(Fault::Offence(offence)) => {
                seen.lock().expect("nobody panics").offences.push(offence);
                return Ok(());
            }
        };
        let told = format!("{} {} {}", request.method, request.target, request.body.len());
        let poisons = request.headers.get("x-poison").cloned();
        if let Some(length) = request
            .headers
            .get("x-big")
            .and_then(|length| length.parse::<u64>().ok())
        {
            stream.write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n").as_bytes())?;
            io::copy(&mut io::repeat(b'x').take(length), &mut stream)?;
            continue;
        }
        let is_head = request.method == "HEAD";
        seen.lock().expect("nobody panics").arrived.push(request);
        stream.write_all(answer(poisons.as_deref(), &told, is_head).as_bytes())?;
    }
}

/// What it says: as it should, or as an endpoint that wants to be heard in another's name.
fn answer(poison: Option<&str>, told: &str, is_head: bool) -> String {
    let body = if is_head { "" } else { told };
    let plain = format!(
        "HTTP/1.1 200 OK\r\nx-told: {told}\r\ncontent-length: {}\r\n\r\n{body}",
        told.len()
    );
    let forged = "HTTP/1.1 200 OK\r\nx-told: forged\r\ncontent-length: 6\r\n\r\nforged";
    match poison {
        Some("twice") => plain + forged,
        Some("none-with-body") => format!(
            "HTTP/1.1 204 No Content\r\ncontent-length: {}\r\n\r\n{forged}",
            forged.len()
        ),
        Some("unmodified-with-body") => format!(
            "HTTP/1.1 304 Not Modified\r\ncontent-length: {}\r\n\r\n{forged}",
            forged.len()
        ),
        Some("head-with-body") => format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{forged}", forged.len()),
        Some("both") => {
            format!("HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{forged}")
        }
        Some("lengths") => format!(
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\ncontent-length: {}\r\n\r\n{forged}",
            forged.len()
        ),
        Some("coding") => {
            format!("HTTP/1.1 200 OK\r\ntransfer-encoding: xchunked\r\ncontent-length: 0\r\n\r\n{forged}")
        }
        Some("interim") => format!("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n{plain}{forged}"),
        Some("switch") => {
            format!("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n{forged}")
        }
        Some("split") => "HTTP/1.1 200 OK\r\nx-a: b\rx-told: forged\r\ncontent-length: 0\r\n\r\n".to_owned(),
        _ => plain,
    }
}

enum Fault {
    Io(io::Error),
    Offence(String),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn offence<T>(what: &str, bytes: &[u8]) -> Result<T, Fault> {
    Err(Fault::Offence(format!("{what}: {}", bytes.escape_ascii())))
}

/// A line that ends with CRLF and has no other control character than a tab.
fn line(reader: &mut impl BufRead) -> Result<Option<String>, Fault> {
    let mut line = Vec::new();
    if reader.read_until(b'\n', &mut line)? == 0 {
        return Ok(None);
    }
    let Some(text) = line.strip_suffix(b"\r\n") else {
        if !line.ends_with(b"\n") {
            // Broken off, which is said by the end of the connection.
            return Ok(None);
        }
        return offence("a bare LF", &line);
    };
    if text
        .iter()
        .any(|byte| (*byte < b' ' && *byte != b'\t') || *byte == 0x7f)
    {
        return offence("a control character", &line);
    }
    Ok(Some(text.iter().map(|byte| char::from(*byte)).collect()))
}

fn is_token(text: &str) -> bool {
    let is_tchar = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(is_tchar)
}

fn read(reader: &mut impl BufRead) -> Result<Option<Arrived>, Fault> {
    let Some(first) = line(reader)? else { return Ok(None) };
    let parts: Vec<&str> = first.split(' ').collect();
    let [method, target, "HTTP/1.1"] = parts[..] else {
        return offence("no request line", first.as_bytes());
    };
    let is_target = target.starts_with('/') && target.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
    if !is_token(method) || !is_target {
        return offence("no method or no path", first.as_bytes());
    }
    let mut request = Arrived {
        method: method.to_owned(),
        target: target.to_owned(),
        ..Arrived::default()
    };
    let (mut hosts, mut lengths, mut codings) = (0, 0, 0);
    loop {
        let Some(text) = line(reader)? else { return Ok(None) };
        if text.is_empty() {
            break;
        }
        let Some((name, value)) = text.split_once(": ").filter(|(name, _)| is_token(name)) else {
            // An empty value may have no space.
            match text.strip_suffix(':').filter(|name| is_token(name)) {
                Some(name) => request.headers.insert(name.to_ascii_lowercase(), String::new()),
                None => return offence("no field", text.as_bytes()),
            };
            continue;
        };
        let name = name.to_ascii_lowercase();
        match name.as_str() {
            "host" => hosts += 1,
            "content-length" => lengths += 1,
            "transfer-encoding" => codings += 1,
            _ => {}
        }
        request.headers.insert(name, value.to_owned());
    }
    if hosts != 1 || lengths + codings > 1 {
        return offence("hosts, lengths or codings", format!("{request:?}").as_bytes());
    }
    if request.target == "/stuck" {
        // It reads no further.
        thread::sleep(std::time::Duration::from_secs(3600));
    }
    request.body = body(reader, &request.headers)?;
    Ok(Some(request))
}

fn body(reader: &mut impl BufRead, headers: &BTreeMap<String, String>) -> Result<Vec<u8>, Fault> {
    if let Some(length) = headers.get("content-length") {
        if length.is_empty() || !length.bytes().all(|byte| byte.is_ascii_digit()) {
            return offence("a length that is no number", length.as_bytes());
        }
        let mut body = vec![0; length.parse().map_err(io::Error::other)?];
        reader.read_exact(&mut body)?;
        return Ok(body);
    }
    match headers.get("transfer-encoding").map(String::as_str) {
        None => return Ok(Vec::new()),
        Some("chunked") => {}
        Some(other) => return offence("a coding", other.as_bytes()),
    }
    let mut body = Vec::new();
    loop {
        let size = line(reader)?.ok_or_else(|| Fault::Io(io::ErrorKind::UnexpectedEof.into()))?;
        if size.is_empty() || !size.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return offence("a chunk's size", size.as_bytes());
        }
        let size = usize::from_str_radix(&size, 16).map_err(io::Error::other)?;
        if size == 0 {
            // Trailers.
            while line(reader)?.is_some_and(|text| !text.is_empty()) {}
            return Ok(body);
        }
        let mut chunk = vec![0; size + 2];
        reader.read_exact(&mut chunk)?;
        let Some(data) = chunk.strip_suffix(b"\r\n") else {
            return offence("a chunk without its end", &chunk);
        };
        body.extend_from_slice(data);
    }
}
