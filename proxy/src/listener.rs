//! Where connections come in, and how a listener learns where each wants to go.
//!
//! A listener is opened before the configuration that asks for it is put in force, so that an address that cannot be
//! bound rejects the update whole. Each listener is accepted from on one core; the connection is then served by the core that has
//! the fewest.

pub mod http_connect;
pub mod socks5;

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use underpass_config::{Destination, Keepalive, Listener};

use crate::cores::Cores;
use crate::ending::Ending;
use crate::entrance::Entrance;
use crate::node::Node;
use crate::serve::Accepted;
use crate::socket;
use crate::stream::Stream;
use crate::upstream::{NamedBy, Upstream};

/// Pause after a failed accept. When descriptors have run out, trying at once would spin.
const ACCEPT_RETRY: Duration = Duration::from_millis(20);

/// A listener's address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("listener {name} cannot listen on {address}: {source}; free the address or change the listener's")]
pub struct ListenError {
    name: String,
    address: SocketAddr,
    source: io::Error,
}

impl ListenError {
    fn new(listener: &Listener, source: io::Error) -> Self {
        Self {
            name: listener.name.to_string(),
            address: listener.address,
            source,
        }
    }
}

/// What each protocol's parser makes of a client's first bytes: where it wants to go, if the message says it, and how long the message is.
#[cfg(any(test, fuzzing))]
pub fn read_all_ways(bytes: &[u8]) -> Vec<(Option<Destination>, usize)> {
    let connect = http_connect::read(bytes).into_iter();
    connect.chain(socks5::read_both(bytes)).collect()
}

/// An open listening socket that is not accepted from yet.
#[derive(Debug)]
pub struct OpenListener {
    settings: Listener,
    socket: OwnedFd,
    accepting: OwnedFd,
}

/// A listener that is accepted from; dropping it closes it after everything that already waits has been accepted.
#[derive(Debug)]
pub struct RunningListener {
    settings: Arc<ArcSwap<Listener>>,
    socket: OwnedFd,
    _accepting: Accepting,
}

/// A listening socket that is accepted from; dropping this closes it after everything that already waits has been accepted.
#[derive(Debug)]
pub struct Accepting {
    _stop: watch::Sender<()>,
}

/// What a connection accepted from a socket has come in by.
#[derive(Clone, Debug)]
pub enum Door {
    /// A listener of the configuration, whose settings may change.
    Plain(Arc<ArcSwap<Listener>>),
    /// A socket in a pod's network namespace.
    Captured(Entrance),
}

impl Door {
    fn entrance(&self) -> Entrance {
        match self {
            Self::Plain(settings) => Entrance::Plain(settings.load_full()),
            Self::Captured(entrance) => entrance.clone(),
        }
    }
}

impl Accepting {
    /// Starts to accept from `socket`, on the core whose turn it is.
    pub fn start(socket: OwnedFd, door: Door, node: Arc<Node>, cores: Arc<Cores>) -> Self {
        let (stop, stopped) = watch::channel(());
        let core = cores.next_accepting();
        let on = cores.clone();
        on.spawn_on(core, accept_until_stopped(socket, door, node, cores, core, stopped));
        Self { _stop: stop }
    }
}

impl OpenListener {
    /// Binds and listens.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub fn open(settings: &Listener, keepalive: &Keepalive) -> Result<Self, ListenError> {
        let failed = |source| ListenError::new(settings, source);
        let address = settings.address;
        let listening = match socket::listen(address, keepalive) {
            // Everywhere is everywhere that there is: a machine may have no IPv6.
            Err(_) if address.ip() == Ipv6Addr::UNSPECIFIED => {
                socket::listen((Ipv4Addr::UNSPECIFIED, address.port()).into(), keepalive)
            }
            listening => listening,
        };
        let socket = listening.map_err(failed)?;
        let accepting = socket.try_clone().map_err(failed)?;
        Ok(Self {
            settings: settings.clone(),
            socket,
            accepting,
        })
    }

    /// Starts to accept, on the core whose turn it is.
    pub fn run(self, node: Arc<Node>, cores: Arc<Cores>) -> RunningListener {
        let settings = Arc::new(ArcSwap::from_pointee(self.settings));
        RunningListener {
            _accepting: Accepting::start(self.accepting, Door::Plain(settings.clone()), node, cores),
            settings,
            socket: self.socket,
        }
    }
}

impl RunningListener {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.settings.load().address
    }

    /// Gives the listener other settings for the same address; the next connection accepted has them.
    pub fn change(&self, settings: Listener, keepalive: &Keepalive) {
        if let Err(error) = socket::set_keepalive(&self.socket, keepalive) {
            tracing::warn!(listener = %settings.name, %error, "keepalive could not be changed");
        }
        self.settings.store(Arc::new(settings));
    }
}

async fn accept_until_stopped(
    socket: OwnedFd,
    door: Door,
    node: Arc<Node>,
    cores: Arc<Cores>,
    core: usize,
    mut stopped: watch::Receiver<()>,
) {
    let listener = match socket::register(socket, Interest::READABLE) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(listener = %door.entrance().name(), %error, "cannot be polled; it accepts nothing");
            return;
        }
    };
    let acceptor = Acceptor {
        listener: &listener,
        door,
        node: node.clone(),
        cores,
        core,
    };
    let accepting = async {
        node.mesh_came().await;
        acceptor.accept_all().await;
    };
    tokio::select! {
        biased;
        _ = stopped.changed() => {}
        () = node.drain_started() => {}
        () = accepting => {}
    }
    if node.awaits_mesh() {
        return; // Who waits was never anybody's client.
    }
    // Clients whose connect() has already succeeded are served, not reset by the close.
    acceptor.accept_waiting();
}

struct Acceptor<'a> {
    listener: &'a AsyncFd<OwnedFd>,
    door: Door,
    node: Arc<Node>,
    cores: Arc<Cores>,
    core: usize,
}

impl Acceptor<'_> {
    async fn accept_all(&self) {
        loop {
            // A flood of connections must not keep this core from serving those it has.
            tokio::task::consume_budget().await;
            let Ok(mut ready) = self.listener.readable().await else {
                return;
            };
            match ready.try_io(|_| self.accept_one()) {
                Ok(Ok(())) | Err(_) => {}
                Ok(Err(error)) if is_of_the_client(&error) => {}
                Ok(Err(error)) => {
                    self.node.telemetry.count_accept_error();
                    tracing::warn!(listener = %self.door.entrance().name(), %error, "accept failed; trying again");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            }
        }
    }

    /// Accepts what is in the queue, and no more than the queue holds.
    fn accept_waiting(&self) {
        for _ in 0..socket::BACKLOG {
            match self.accept_one() {
                Ok(()) => {}
                Err(error) if is_of_the_client(&error) => {}
                Err(_) => return,
            }
        }
    }

    fn accept_one(&self) -> io::Result<()> {
        let (socket, peer) = socket::accept(self.listener.get_ref())?;
        let (node, entrance) = (self.node.clone(), self.door.entrance());
        self.cores.serve(
            Accepted {
                node,
                entrance,
                socket,
                peer,
            },
            self.core,
        );
        Ok(())
    }
}

/// The client gave up between its SYN and our accept (accept(2) lists these as errors to be treated like EAGAIN).
fn is_of_the_client(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted | io::ErrorKind::ConnectionReset
    )
}

/// What the client asked for, and how it is to be answered.
#[derive(Debug)]
pub struct Handshake {
    /// Where it wants to go.
    pub destination: Destination,
    answer: Answer,
    /// Bytes of the stream that came with the request.
    early: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
enum Answer {
    None,
    Socks5,
    HttpConnect,
}

impl Handshake {
    /// The client does not say where to go, because it is known.
    pub fn without_request(destination: Destination) -> Self {
        Self {
            destination,
            answer: Answer::None,
            early: Vec::new(),
        }
    }

    /// The same, of a client that has already sent this of its stream.
    #[must_use]
    pub fn with_early(self, early: Vec<u8>) -> Self {
        Self { early, ..self }
    }

    /// Who said where to go.
    pub fn named_by(&self) -> NamedBy {
        match self.answer {
            Answer::None => NamedBy::Us,
            Answer::Socks5 | Answer::HttpConnect => NamedBy::Client,
        }
    }

    /// Tells the client that it is connected, and returns what it has already sent of its stream.
    ///
    /// # Errors
    /// When the client has gone.
    pub async fn accepted(self, downstream: &Stream, upstream: &Upstream) -> io::Result<Vec<u8>> {
        let answer = match self.answer {
            Answer::None => return Ok(self.early),
            Answer::Socks5 => socks5::success(upstream.local_address()?),
            Answer::HttpConnect => http_connect::SUCCESS.to_vec(),
        };
        downstream.send_all(&answer).await?;
        Ok(self.early)
    }

    /// Tells the client why it is not connected, in its protocol's words. A client that is not there any more is not told.
    pub async fn refused(&self, downstream: &Stream, ending: Ending) {
        let answer = match self.answer {
            Answer::None => return,
            Answer::Socks5 => socks5::failure(ending),
            Answer::HttpConnect => http_connect::failure(ending),
        };
        if downstream.send_all(&answer).await.is_ok() {
            // The reset that follows must not overtake the answer in the client's queue: let the client see FIN first.
            linger_until_read(downstream).await;
        }
    }
}

/// Sends FIN and waits, briefly, for the client to close or send nothing more.
async fn linger_until_read(downstream: &Stream) {
    let _ = downstream.end();
    let mut scrap = [0; 512];
    let drained = async { while downstream.receive(&mut scrap).await.is_ok_and(|n| n > 0) {} };
    let _ = tokio::time::timeout(Duration::from_secs(1), drained).await;
}
