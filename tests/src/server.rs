//! Destinations: a server that says who it is and echoes, and an address that never answers.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use socket2::Socket;

use crate::wait;
use crate::world::Host;

/// Sends its name and a newline to everyone who connects, then echoes until EOF.
pub struct Server {
    address: SocketAddr,
    listener: Socket,
    state: Arc<State>,
    acceptor: Option<JoinHandle<()>>,
}

/// A connection as the server saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// The client, as accept(2) named it.
    pub accepted_from: SocketAddr,
    /// The client, as getpeername(2) named it.
    pub peer: SocketAddr,
    /// Where it arrived, as getsockname(2) named it.
    pub local: SocketAddr,
}

#[derive(Default)]
struct State {
    arrivals: Mutex<Vec<Arrival>>,
    received: AtomicU64,
    accepted: AtomicUsize,
    open: AtomicUsize,
    resets: AtomicUsize,
    /// A second handle of every open connection, by its number, to end it when the server goes.
    streams: Mutex<HashMap<usize, TcpStream>>,
}

impl Server {
    /// Serves on `host`, which is also where its greeting comes from: the address is its name.
    pub fn start(host: &Host, port: u16) -> Self {
        Self::start_at(host, host.at(port))
    }

    /// As [`Server::start`], on any address of the host.
    pub fn start_at(host: &Host, address: SocketAddr) -> Self {
        Self::serve_on(host.listen_with_backlog(address, 4096), address)
    }

    /// As [`Server::start_at`], on a socket that listens already.
    pub fn serve_on(listener: Socket, address: SocketAddr) -> Self {
        let state = Arc::new(State::default());
        let (accepting, shared) = (listener.try_clone().expect("dup"), state.clone());
        let acceptor = thread::spawn(move || {
            // accept() fails once the listener is shut down, by stop().
            while let Ok((stream, client)) = accepting.accept() {
                let (stream, shared) = (TcpStream::from(stream), shared.clone());
                shared.note_arrival(client.as_socket().expect("an internet address"), &stream);
                let number = shared.accepted.fetch_add(1, Ordering::SeqCst);
                shared.open.fetch_add(1, Ordering::SeqCst);
                thread::spawn(move || shared.serve(number, stream, address));
            }
        });
        Self {
            address,
            listener,
            state,
            acceptor: Some(acceptor),
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections it has ever accepted.
    pub fn accepted(&self) -> usize {
        self.state.accepted.load(Ordering::SeqCst)
    }

    /// All connections it has ever accepted, in order.
    pub fn arrivals(&self) -> Vec<Arrival> {
        self.state.arrivals.lock().expect("no holder panics").clone()
    }

    /// How many bytes it has ever received.
    pub fn received(&self) -> u64 {
        self.state.received.load(Ordering::SeqCst)
    }

    /// How many connections are open.
    pub fn open(&self) -> usize {
        self.state.open.load(Ordering::SeqCst)
    }

    /// How many connections were reset by their client.
    pub fn resets(&self) -> usize {
        self.state.resets.load(Ordering::SeqCst)
    }

    /// Reads a server's greeting: which server it is.
    pub fn greeting(stream: &mut TcpStream) -> io::Result<SocketAddr> {
        stream.set_read_timeout(Some(wait::soon()))?;
        let mut name = Vec::new();
        loop {
            // A read with a time-out may be interrupted for no reason of ours; read_exact() then reads again.
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            if byte[0] == b'\n' {
                break;
            }
            name.push(byte[0]);
        }
        let name = String::from_utf8_lossy(&name).into_owned();
        name.parse()
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, format!("{name:?}: {e}")))
    }

    /// Sends `message` and reads its echo.
    pub fn echo(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
        stream.set_read_timeout(Some(wait::soon()))?;
        stream.write_all(message)?;
        let mut echo = vec![0; message.len()];
        stream.read_exact(&mut echo)?;
        if echo == message {
            Ok(())
        } else {
            Err(io::Error::other("the echo differs from the message"))
        }
    }
}

impl State {
    fn note_arrival(&self, accepted_from: SocketAddr, stream: &TcpStream) {
        // A client that has reset already has no name any more.
        if let (Ok(peer), Ok(local)) = (stream.peer_addr(), stream.local_addr()) {
            let arrival = Arrival {
                accepted_from,
                peer,
                local,
            };
            self.arrivals.lock().expect("no holder panics").push(arrival);
        }
    }

    fn serve(&self, number: usize, mut stream: TcpStream, address: SocketAddr) {
        if let Ok(other) = stream.try_clone() {
            self.streams.lock().expect("no holder panics").insert(number, other);
        }
        if let Err(error) = self.greet_and_echo(&mut stream, address)
            && crate::client::is_reset(&error)
        {
            self.resets.fetch_add(1, Ordering::SeqCst);
        }
        self.streams.lock().expect("no holder panics").remove(&number);
        self.open.fetch_sub(1, Ordering::SeqCst);
    }

    fn greet_and_echo(&self, stream: &mut TcpStream, address: SocketAddr) -> io::Result<()> {
        stream.set_nodelay(true)?;
        stream.write_all(format!("{address}\n").as_bytes())?;
        let mut buffer = vec![0; 16 * 1024];
        loop {
            match stream.read(&mut buffer)? {
                0 => return Ok(()),
                n => {
                    self.received.fetch_add(n as u64, Ordering::SeqCst);
                    stream.write_all(&buffer[..n])?;
                }
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.listener.shutdown(Shutdown::Both);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
        for stream in self.state.streams.lock().expect("no holder panics").values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// An address that takes no SYN: its accept queue is full, so that the kernel drops what comes (tcp_conn_request()). A connect
/// to it neither succeeds nor fails.
pub struct Blackhole {
    _listener: Socket,
    _fill: Vec<Socket>,
}

impl Blackhole {
    /// Swallows connects to `host` at `port`.
    pub fn start(host: &Host, port: u16) -> Self {
        let address = host.at(port);
        let listener = host.listen_with_backlog(address, 0);
        let fill = (0..4).map(|_| {
            let socket = host.socket(address);
            socket.set_nonblocking(true).expect("O_NONBLOCK");
            let _ = socket.connect(&address.into());
            socket
        });
        Self {
            _fill: fill.collect(),
            _listener: listener,
        }
    }
}
