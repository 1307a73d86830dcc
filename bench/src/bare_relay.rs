//! The least that a userspace relay can do: one thread for each direction of a connection that blocks in read, then
//! in write, and nothing else. No event loop, no policy, no metrics, no limits, no time-outs.
//!
//! As the system `bare-relay` it shows how much of a relay's round trip is the kernel's doing (two more traversals of TCP,
//! two more wake-ups) and can't be saved by any relay, and how much is the relay's own.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};

use anyhow::{Context, Result};

const BUFFER_SIZE: usize = 64 * 1024;

/// Arguments of the hidden `bare-relay` subcommand.
#[derive(clap::Args, Debug)]
pub(crate) struct BareRelay {
    /// Where to listen.
    #[arg(long)]
    listen: SocketAddr,
    /// Where to connect to.
    #[arg(long)]
    destination: SocketAddr,
}

impl BareRelay {
    /// Relays until killed.
    pub(crate) fn run(self) -> Result<()> {
        let listener = TcpListener::bind(self.listen).with_context(|| format!("binding {}", self.listen))?;
        loop {
            let (client, _) = listener.accept().context("accepting")?;
            let destination = self.destination;
            std::thread::spawn(move || {
                if let Err(error) = relay(client, destination) {
                    eprintln!("{error:#}");
                }
            });
        }
    }
}

fn relay(client: TcpStream, destination: SocketAddr) -> Result<()> {
    let server = TcpStream::connect(destination).with_context(|| format!("connecting to {destination}"))?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let back = (server.try_clone()?, client.try_clone()?);
    std::thread::spawn(move || pump(back.0, back.1));
    pump(client, server);
    Ok(())
}

/// Copies until the end or an error, which the other side learns as the end: the load's ends notice a stream cut short.
fn pump(mut from: TcpStream, mut to: TcpStream) {
    let mut buffer = vec![0; BUFFER_SIZE];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    // The peer may be gone already.
    let _ = to.shutdown(Shutdown::Write);
}
