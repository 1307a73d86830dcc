//! How a connection is made: a socket of the client pod's namespace, TLS with its certificate, HTTP/2.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use h2::client::{Builder, Connection, SendRequest};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use underpass_certs::{ClientTls, Lease, Trust};
use underpass_config::Keepalive;

use super::super::chunk::Chunk;
use super::super::tunnel::Ends;
use super::super::{CONNECTION_WINDOW, FRAME, HEADERS, SEND_BUFFER, STREAM_WINDOW, STREAMS};
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
}

/// Where a connection leaves from.
#[derive(Clone, Debug)]
pub enum Origin {
    /// A pod's network namespace.
    Pod(Arc<Pod>),
    /// The proxy's own, in tests.
    #[cfg(test)]
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

pub(super) type Made = (SendRequest<Chunk>, Connection<TlsStream<TcpStream>, Chunk>, Ends);

impl Dial {
    pub(super) async fn connect(&self) -> Result<Made, DialError> {
        let gateway = self.key.gateway;
        let (connecting, handshaking) = self.patience;
        let ready = self.certificate.ready(handshaking).await;
        ready.map_err(|unavailable| DialError::NoCertificate(unavailable.to_string()))?;
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
        let (sender, connection) = tokio::time::timeout(handshaking, self.shake_hands(socket))
            .await
            .map_err(late)??;
        Ok((sender, connection, ends))
    }

    async fn socket(&self) -> io::Result<TcpStream> {
        let gateway = self.key.gateway;
        let socket: OwnedFd = match &self.origin {
            Origin::Pod(pod) => pod.sockets.take(Family::of(gateway.ip())).await?,
            #[cfg(test)]
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
    ) -> Result<(SendRequest<Chunk>, Connection<TlsStream<TcpStream>, Chunk>), DialError> {
        let gateway = self.key.gateway;
        let failed = |reason, error: String| DialError::Handshake { gateway, reason, error };
        let (slot, trust) = (self.certificate.slot().clone(), self.trust.clone());
        let tls = ClientTls::new(slot, trust, self.key.expected.clone()).map_err(|e| failed("tls", e.to_string()))?;
        let (stream, _) = tls
            .connect(socket, gateway.ip())
            .await
            .map_err(|error| failed(error.reason(), error.to_string()))?;
        settings()
            .handshake(stream)
            .await
            .map_err(|error| failed("http2", error.to_string()))
    }
}

fn settings() -> Builder {
    let mut settings = Builder::new();
    settings
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME)
        .max_header_list_size(HEADERS)
        .max_send_buffer_size(SEND_BUFFER)
        .initial_max_send_streams(STREAMS as usize)
        .enable_push(false);
    settings
}
