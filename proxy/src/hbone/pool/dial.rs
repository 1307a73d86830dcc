//! How a connection is made: a socket of the client pod's namespace, or of ours, TLS with the client's certificate, HTTP/2.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use h2::client::{self, Builder, SendRequest};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use underpass_certs::{ClientTls, Lease, Trust, WorkloadCertificate};
use underpass_config::{HboneSettings, Keepalive};

use super::super::chunk::Chunk;
use super::super::credentials::Credentials;
use super::super::paced::Paced;
use super::super::tunnel::Ends;
use super::super::windows::{self, Budget, Spent, Valve, Window};
use super::super::{FRAME, FRAMES_KEPT, HEADERS, SEALED, SEND_BUFFER};
use super::Key;
use crate::capture::Pod;
use crate::handover::Family;
use crate::socket::{self, Connecting};

/// Everything that a connection of a key is made with.
#[derive(Clone, Debug)]
pub struct Dial {
    /// The key.
    pub key: Key,
    /// Where it leaves from.
    pub origin: Origin,
    /// The certificate of [`Key::client`].
    pub certificate: Arc<Lease>,
    /// Whom to believe.
    pub trust: Arc<Trust>,
    /// How long connecting may take, and then the handshakes.
    pub patience: (Duration, Duration),
    /// How the connection is probed.
    pub keepalive: Keepalive,
    /// How it is kept.
    pub hbone: HboneSettings,
    /// What its window is cut from.
    pub budget: Arc<Budget>,
}

/// Where a connection leaves from.
#[derive(Clone, Debug)]
pub enum Origin {
    /// A pod's network namespace.
    Pod(Arc<Pod>),
    /// The proxy's own.
    Host,
}

/// Why a connection could not be made.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DialError {
    /// We can't show who we are.
    #[error("{0}")]
    NoCertificate(String),
    /// The gateway does not answer.
    #[error("{gateway} can't be connected to: {error}")]
    Connect {
        /// Where.
        gateway: SocketAddr,
        /// Why.
        error: String,
    },
    /// It does not answer in time.
    #[error("{0} does not answer in time")]
    Timeout(SocketAddr),
    /// Its connections take no streams.
    #[error("{0} takes no streams on the connections that were opened to it")]
    NoRoom(SocketAddr),
    /// There is no room to receive in.
    #[error(transparent)]
    NoBuffer(#[from] Spent),
    /// The handshake failed, on which side ever.
    #[error("{gateway}: {reason}: {error}")]
    Handshake {
        /// With whom.
        gateway: SocketAddr,
        /// The word for it.
        reason: &'static str,
        /// Why.
        error: String,
    },
}

pub(super) type Connection = client::Connection<Paced<TlsStream<TcpStream>>, Chunk>;

/// A connection that may carry streams.
pub(super) struct Made {
    pub(super) sender: SendRequest<Chunk>,
    pub(super) connection: Connection,
    pub(super) ends: Ends,
    pub(super) credentials: Credentials,
    pub(super) valve: Valve,
}

impl Dial {
    pub(super) async fn connect(&self) -> Result<Made, DialError> {
        let gateway = self.key.gateway;
        let (connecting, handshaking) = self.patience;
        let ready = self.certificate.ready(handshaking).await;
        let own = ready.map_err(|unavailable| DialError::NoCertificate(unavailable.to_string()))?;
        let failed = |error: io::Error| DialError::Connect {
            gateway,
            error: error.to_string(),
        };
        let late = |_| DialError::Timeout(gateway);
        let socket = tokio::time::timeout(connecting, self.socket())
            .await
            .map_err(late)?
            .map_err(failed)?;
        let ends = self.ends_of(&socket).map_err(failed)?;
        let (sender, connection, credentials) = tokio::time::timeout(handshaking, self.shake_hands(socket, own))
            .await
            .map_err(late)??;
        let peer = credentials.peer().identity();
        let window = Window::new(&self.budget, &self.hbone, peer)?;
        Ok(Made {
            sender,
            connection,
            ends,
            credentials,
            valve: Valve::new(window),
        })
    }

    async fn socket(&self) -> io::Result<TcpStream> {
        let gateway = self.key.gateway;
        let socket: OwnedFd = match &self.origin {
            Origin::Pod(pod) => pod.sockets.take(Family::of(gateway.ip())).await?,
            Origin::Host => socket::tcp_socket(gateway)?,
        };
        socket::set_keepalive(&socket, &self.keepalive)?;
        let stream = match socket::start_connect(socket, gateway)? {
            Connecting::Done(stream) => stream,
            Connecting::Underway(stream) => socket::finish_connect(stream).await?,
        };
        TcpStream::from_std(stream.into_socket().into())
    }

    fn ends_of(&self, socket: &TcpStream) -> io::Result<Ends> {
        Ok(Ends {
            local: socket::canonical(socket.local_addr()?),
            peer: self.key.gateway,
        })
    }

    async fn shake_hands(
        &self,
        socket: TcpStream,
        own: Arc<WorkloadCertificate>,
    ) -> Result<(SendRequest<Chunk>, Connection, Credentials), DialError> {
        let gateway = self.key.gateway;
        let failed = |reason, error: String| DialError::Handshake { gateway, reason, error };
        let (slot, trust) = (self.certificate.slot().clone(), self.trust.clone());
        let tls = ClientTls::new(slot.clone(), trust.clone(), self.key.expected.clone());
        let tls = tls.map_err(|error| failed("tls", error.to_string()))?;
        let (mut stream, peer) = tls
            .connect(socket, gateway.ip())
            .await
            .map_err(|error| failed(error.reason(), error.to_string()))?;
        stream.get_mut().1.set_buffer_limit(Some(SEALED));
        let (sender, connection) = settings(&self.hbone)
            .handshake(Paced::new(stream))
            .await
            .map_err(|error| failed("http2", error.to_string()))?;
        Ok((sender, connection, Credentials::new(peer, own, slot, trust)))
    }
}

fn settings(hbone: &HboneSettings) -> Builder {
    let mut settings = Builder::new();
    settings
        .initial_window_size(hbone.stream_window.0)
        .initial_connection_window_size(windows::LEAST)
        .max_frame_size(FRAME)
        .max_header_list_size(HEADERS)
        .max_send_buffer_size(SEND_BUFFER)
        .data_frame_budget(FRAMES_KEPT)
        .initial_max_send_streams(hbone.streams as usize)
        .enable_push(false);
    settings
}
