//! The server process of a sample.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Socket, Type};

use super::connection::Connection;
use super::{GREETING_SIZE, READ_SIZE, WRITE_SIZE, answers, prepare};

/// Threads that accept; twice the most connections that a scenario has open at a time.
const ACCEPTORS: usize = 32;
const BACKLOG: i32 = 4096;

/// What the server does with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Service {
    /// Reads whole messages of `size` bytes and sends each back.
    Echo { size: usize },
    /// One message back, then closes.
    AnswerOnce { size: usize },
    /// Reads to the end, then answers with the number of bytes (u64, little-endian).
    Sink,
    /// Writes until the client is gone.
    Source,
    /// Echoes one greeting and keeps the connection open, idle, for as long as the process lives.
    Keep,
    /// Answers HTTP requests.
    Answers,
}

/// Arguments of the hidden `serve` subcommand.
#[derive(clap::Args, Debug)]
pub(crate) struct Serve {
    /// Where to listen.
    #[arg(long)]
    address: SocketAddr,
    /// What to do, as JSON.
    #[arg(long, value_parser = |text: &str| serde_json::from_str::<Service>(text))]
    service: Service,
}

impl Serve {
    /// Listens, says `listening`, and serves until killed or standard input ends.
    pub(crate) fn run(self) -> Result<()> {
        let listener = listen(self.address)?;
        println!("listening");
        if self.service == Service::Keep {
            return keep(&listener);
        }
        if self.service == Service::Answers {
            return answers::serve(listener);
        }
        for _ in 0..ACCEPTORS {
            let listener = listener.try_clone()?;
            let service = self.service;
            std::thread::spawn(move || accept(&listener, service));
        }
        std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink())?;
        Ok(())
    }
}

fn listen(address: SocketAddr) -> Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket
        .bind(&address.into())
        .with_context(|| format!("binding {address}"))?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn accept(listener: &TcpListener, service: Service) {
    loop {
        match listener.accept() {
            // A connection that breaks is the client's to report: it knows what it expected.
            Ok((stream, _)) => drop(serve(stream, service)),
            Err(error) => eprintln!("accept: {error}"),
        }
    }
}

fn serve(mut stream: TcpStream, service: Service) -> Result<()> {
    prepare(&stream)?;
    match service {
        Service::Echo { size } => {
            let mut stream = Connection::new(stream)?;
            let mut message = vec![0; size];
            loop {
                stream.read_exact(&mut message)?;
                stream.write_all(&message)?;
            }
        }
        Service::AnswerOnce { size } => {
            let mut message = vec![0; size];
            stream.read_exact(&mut message)?;
            stream.write_all(&message)?;
        }
        Service::Sink => {
            let mut stream = Connection::new(stream)?;
            let mut chunk = vec![0; READ_SIZE];
            let mut total = 0u64;
            loop {
                match stream.read(&mut chunk)? {
                    0 => break,
                    read => total += read as u64,
                }
            }
            stream.write_all(&total.to_le_bytes())?;
        }
        Service::Source => {
            let mut stream = Connection::new(stream)?;
            let chunk = vec![0x5a; WRITE_SIZE];
            loop {
                stream.write_all(&chunk)?;
            }
        }
        Service::Keep | Service::Answers => unreachable!("served by `keep` and `answers`"),
    }
    Ok(())
}

/// One connection after the other: the clients open them so, and each sends its greeting at once.
fn keep(listener: &TcpListener) -> Result<()> {
    let mut kept = Vec::new();
    loop {
        let (mut stream, _) = listener.accept().context("accepting a connection to keep")?;
        prepare(&stream)?;
        let mut greeting = [0; GREETING_SIZE];
        stream.read_exact(&mut greeting)?;
        stream.write_all(&greeting)?;
        kept.push(stream);
    }
}
