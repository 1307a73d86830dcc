//! A client process that opens connections, uses each once, and keeps them open and idle until told to stop.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use socket2::{Domain, Socket, Type};

use super::{GREETING_SIZE, SOCKET_TIMEOUT, prepare};

/// Bytes of an answer's body.
const ANSWER: usize = 64;

/// Arguments of the hidden `hold` subcommand.
#[derive(clap::Args, Debug)]
pub(crate) struct Hold {
    /// Where to connect to.
    #[arg(long)]
    target: SocketAddr,
    /// Address to connect from; its ephemeral ports bound the number of connections.
    #[arg(long)]
    source: IpAddr,
    /// How many.
    #[arg(long)]
    connections: usize,
    /// Use each by a request of HTTP/1.1 instead of a greeting.
    #[arg(long)]
    http: bool,
}

impl Hold {
    /// Opens the connections, says `open`, and resets them all when standard input ends.
    pub(crate) fn run(self) -> Result<()> {
        let mut held = Vec::with_capacity(self.connections);
        for number in 0..self.connections {
            held.push(self.open().with_context(|| format!("after {number} connections"))?);
        }
        println!("open");
        std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink())?;
        // Resets leave no TIME_WAIT behind, whose memory would be counted against the next measurement.
        for stream in held {
            Socket::from(stream).set_linger(Some(Duration::ZERO))?;
        }
        Ok(())
    }

    /// One connection that has carried something both ways, so that the proxy has connected and its buffers were used.
    fn open(&self) -> Result<TcpStream> {
        let socket = Socket::new(Domain::for_address(self.target), Type::STREAM, None)?;
        socket.bind(&SocketAddr::new(self.source, 0).into())?;
        socket
            .connect_timeout(&self.target.into(), SOCKET_TIMEOUT)
            .with_context(|| format!("connecting from {} to {}", self.source, self.target))?;
        let mut stream = TcpStream::from(socket);
        prepare(&stream)?;
        if self.http {
            ask(&mut stream)?;
            return Ok(stream);
        }
        let greeting = [0x47; GREETING_SIZE];
        let mut answer = [0; GREETING_SIZE];
        stream.write_all(&greeting)?;
        stream.read_exact(&mut answer).context("reading the echo")?;
        ensure!(answer == greeting, "the echo differs from what was sent");
        Ok(stream)
    }
}

/// One request, and its answer to the last byte.
fn ask(stream: &mut TcpStream) -> Result<()> {
    write!(stream, "GET /{ANSWER} HTTP/1.1\r\nhost: bench\r\n\r\n")?;
    let mut answer = Vec::new();
    let mut part = [0; 1024];
    let head = loop {
        match stream.read(&mut part).context("reading the answer")? {
            0 => bail!("no whole answer: {}", String::from_utf8_lossy(&answer)),
            length => answer.extend_from_slice(&part[..length]),
        }
        if let Some(end) = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            break end + 4;
        }
    };
    ensure!(
        answer.starts_with(b"HTTP/1.1 200 "),
        "the answer is {}",
        String::from_utf8_lossy(&answer)
    );
    let missing = (head + ANSWER)
        .checked_sub(answer.len())
        .context("more than an answer")?;
    stream
        .read_exact(&mut part[..missing])
        .context("reading the answer's body")?;
    Ok(())
}
