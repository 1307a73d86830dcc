//! An endpoint that tells what it got, and does what the request asks it to (`x-do`).

pub(crate) mod streams;

use std::collections::{BTreeMap, HashMap};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use underpass_tests::Host;

/// What `x-do: slow` waits; routes with a time-out have a shorter one.
pub(crate) const SLOW: Duration = Duration::from_millis(1500);

/// Tries of one `x-id`, counted over all endpoints that share it.
pub(crate) type Tries = Arc<Mutex<HashMap<String, u32>>>;

/// What an endpoint got, in the order in which it had all of it.
pub(crate) type Heard = Arc<Mutex<Vec<String>>>;

/// A running endpoint. It ends with the test's process.
pub(crate) struct Endpoint {
    pub(crate) address: SocketAddr,
}

struct Got {
    line: String,
    headers: BTreeMap<String, Vec<String>>,
    body: Vec<u8>,
}

impl Got {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |values| values[0].as_str())
    }

    /// All of it, in one text.
    fn told(&self, attempt: u32) -> String {
        let mut told = format!("attempt {attempt}\n{}\n", self.line);
        for (name, values) in &self.headers {
            told += &format!("{name}: {}\n", values.join(" | "));
        }
        told + &format!("body {}: {}", self.body.len(), String::from_utf8_lossy(&self.body))
    }
}

impl Endpoint {
    /// Named in its responses.
    pub(crate) fn start(host: &Host, port: u16, name: &'static str, tries: Tries) -> Self {
        Self::heard(host, port, name, tries, Heard::default())
    }

    /// One whose requests are told of by `heard` too.
    pub(crate) fn heard(host: &Host, port: u16, name: &'static str, tries: Tries, heard: Heard) -> Self {
        let listener = host.listen(port);
        let address = listener.local_addr().expect("a socket");
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (tries, heard) = (tries.clone(), heard.clone());
                thread::spawn(move || serve(&stream, name, &tries, &heard));
            }
        });
        Self { address }
    }
}

fn serve(stream: &TcpStream, name: &str, tries: &Tries, heard: &Heard) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    while let Some(got) = read(&mut reader)? {
        let attempt = {
            let mut tries = tries.lock().expect("no test panics with it");
            let attempt = tries.entry(got.header("x-id").to_owned()).or_default();
            *attempt += 1;
            *attempt
        };
        heard.lock().expect("no test panics with it").push(got.told(attempt));
        if !answer(stream, &got, name, attempt)? {
            return Ok(());
        }
    }
    Ok(())
}

fn read(reader: &mut impl BufRead) -> io::Result<Option<Got>> {
    let line = read_line(reader)?;
    if line.is_empty() {
        return Ok(None);
    }
    let mut headers: BTreeMap<String, Vec<String>> = BTreeMap::new();
    loop {
        let line = read_line(reader)?;
        let Some((name, value)) = line.split_once(':') else {
            break;
        };
        let values = headers.entry(name.to_ascii_lowercase()).or_default();
        values.push(value.trim().to_owned());
    }
    let mut got = Got {
        line,
        headers,
        body: Vec::new(),
    };
    if got.header("x-do") == "early" {
        // It knows enough when it has seen the beginning.
        reader.read_exact(&mut [0])?;
    } else if got.header("transfer-encoding") == "chunked" {
        loop {
            let size = usize::from_str_radix(read_line(reader)?.trim(), 16).map_err(io::Error::other)?;
            let mut chunk = vec![0; size];
            reader.read_exact(&mut chunk)?;
            read_line(reader)?;
            if size == 0 {
                break;
            }
            got.body.extend(chunk);
        }
    } else {
        got.body = vec![0; got.header("content-length").parse().unwrap_or(0)];
        reader.read_exact(&mut got.body)?;
    }
    Ok(Some(got))
}

fn read_line(reader: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    Ok(line.trim_end().to_owned())
}

/// False when the connection ends with it.
fn answer(mut stream: &TcpStream, got: &Got, name: &str, attempt: u32) -> io::Result<bool> {
    let told = got.told(attempt);
    let plain = |status: &str, more: &str| {
        format!(
            "HTTP/1.1 {status}\r\nx-endpoint: {name}\r\n{more}content-length: {}\r\n\r\n{}",
            told.len(),
            if got.line.starts_with("HEAD ") { "" } else { &told }
        )
    };
    let wanted = got.header("x-do");
    let (what, times) = wanted.split_once(" first ").unwrap_or((wanted, "4294967295"));
    let does = attempt <= times.parse().unwrap_or(0);
    let text = match what {
        "close" if does => return Ok(false),
        "garbage" => "SSH-2.0-what\r\n\r\n".to_owned(),
        "slow" if does => {
            thread::sleep(SLOW);
            plain("200 OK", "")
        }
        "again" if does => plain("200 OK", "x-try-again: yes\r\n"),
        "limited" if does => plain("503 Limited", "x-envoy-ratelimited: true\r\n"),
        "grpc" if does => plain("200 OK", "grpc-status: 14\r\n"),
        "wait" if does => plain("429 Slower", "retry-after: 1\r\n"),
        "chunked" => format!(
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{told}\r\n0\r\n\r\n",
            told.len()
        ),
        "early" => plain("413 Content Too Large", ""),
        "endless" => {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000000\r\n\r\n")?;
            loop {
                stream.write_all(&[b'x'; 64 * 1024])?;
            }
        }
        "pause" => {
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n{told}");
            stream.write_all(head.as_bytes())?;
            // Until whoever asked has enough of it.
            let _ = stream.read(&mut [0]);
            return Ok(false);
        }
        "ambiguous" => plain("200 OK", "transfer-encoding: gzip, chunked\r\n"),
        "until-close" => format!("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{told}"),
        "truncated" => format!("HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n{told}"),
        "hop" => plain(
            "200 OK",
            "connection: x-private\r\nx-private: 1\r\nkeep-alive: timeout=5\r\n",
        ),
        "cookies" => plain("200 OK", "set-cookie: a=1\r\nset-cookie: b=2\r\nserver: mine\r\n"),
        "allows" => plain(
            "200 OK",
            "access-control-allow-origin: *\r\naccess-control-allow-credentials: false\r\naccess-control-expose-headers: x-own\r\n",
        ),
        "none" => "HTTP/1.1 204 No Content\r\n\r\n".to_owned(),
        "unmodified" => "HTTP/1.1 304 Not Modified\r\netag: \"a\"\r\n\r\n".to_owned(),
        "interim" => format!("HTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\n{}", plain("200 OK", "")),
        "websocket" => return switch(stream),
        status if does && status.parse::<u16>().is_ok() => plain(&format!("{status} Whatever"), ""),
        _ => plain("200 OK", ""),
    };
    stream.write_all(text.as_bytes())?;
    Ok(!matches!(what, "until-close" | "truncated" | "garbage"))
}

/// Echoes, after the handshake.
fn switch(mut stream: &TcpStream) -> io::Result<bool> {
    stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")?;
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(false),
            length => stream.write_all(&buffer[..length])?,
        }
    }
}
