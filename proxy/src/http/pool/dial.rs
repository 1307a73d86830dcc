//! A new connection to an endpoint: TCP or a tunnel, the PROXY protocol's header, TLS, the codec. All of it within the cluster's `connect_timeout`.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;

use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt;
use tokio_util::either::Either;
use underpass_certs::OriginationError;
use underpass_config::http::{Cluster, ProxyProtocol};

use super::http1::{Carrier, Codec};
use super::http2::{self, Shared};
use super::slots::Slot;
use super::stream::Stream;
use super::way::Way;
use super::{Key, Speaks};
use crate::hbone::outbound::ToEndpoint;
use crate::hbone::pool::{DialError, OpenError};
use crate::hbone::proxy_protocol;
use crate::http::tunnelled::{Carried, Tunnelled};
use crate::http::upload::Attempt;
use crate::http::wire::{Moved, Wire};
use crate::node::Node;
use crate::socket::{self, Connecting};
use crate::stream;

/// Why there is no connection.
#[derive(Clone, Debug)]
pub enum NotConnected {
    /// It was refused, or there is no way.
    Failed(Arc<str>),
    /// The endpoint is not who it has to be, or does not speak TLS with us.
    Untrusted(Arc<str>),
    /// The endpoint did not answer in time.
    TimedOut,
    /// As many requests wait as may, or have a connection.
    Overflow,
}

impl From<io::Error> for NotConnected {
    fn from(error: io::Error) -> Self {
        Self::Failed(error.to_string().into())
    }
}

impl From<OriginationError> for NotConnected {
    fn from(error: OriginationError) -> Self {
        Self::Untrusted(error.to_string().into())
    }
}

impl From<OpenError> for NotConnected {
    fn from(error: OpenError) -> Self {
        let why = error.to_string().into();
        match error {
            OpenError::Dial(DialError::Timeout(_)) => Self::TimedOut,
            // The proxy there is not who it has to be, or does not want us.
            OpenError::Dial(DialError::Handshake { .. }) => Self::Untrusted(why),
            OpenError::Dial(_) | OpenError::Refused(_) | OpenError::Broken(_) => Self::Failed(why),
        }
    }
}

/// What a connection is made with.
#[derive(Debug)]
pub struct Dial {
    /// The node.
    pub node: Arc<Node>,
    /// The cluster.
    pub cluster: Arc<Cluster>,
    /// Where to, and as what.
    pub key: Key,
    /// What is to be spoken.
    pub speaks: Speaks,
}

/// A connection, with what is spoken on it.
#[derive(Debug)]
pub enum Opened {
    /// HTTP/1.1.
    Http1(Carrier),
    /// HTTP/2.
    Http2(Shared),
}

impl Dial {
    /// Connects. An endpoint that speaks HTTP/2 is taken to allow `allowed` streams until it says how many. It is the connection of `slot`.
    ///
    /// # Errors
    /// When the endpoint does not, or is not who it has to be.
    pub async fn open(&self, allowed: u32, slot: Slot) -> Result<Opened, NotConnected> {
        let stream = self.stream(slot).await?;
        match self.is_http2(&stream) {
            false => Ok(Opened::Http1(open_http1(stream).await?)),
            true => {
                let opened = http2::open(stream, &self.cluster.settings.connections, allowed).await;
                Ok(Opened::Http2(opened.map_err(failed)?))
            }
        }
    }

    /// Connects, and leaves what is spoken to the caller.
    ///
    /// # Errors
    /// As [`Dial::open`].
    pub async fn stream(&self, slot: Slot) -> Result<Stream, NotConnected> {
        let limit = self.cluster.settings.connect_timeout;
        let stream = tokio::time::timeout(limit, self.connect(slot));
        stream.await.map_err(|_| NotConnected::TimedOut)?
    }

    /// Whether HTTP/2 is spoken on `stream`.
    pub fn is_http2(&self, stream: &Stream) -> bool {
        match self.speaks {
            Speaks::Http1 | Speaks::Bytes => false,
            Speaks::Http2 => true,
            Speaks::Negotiated => stream.has_chosen_http2(),
        }
    }

    async fn connect(&self, slot: Slot) -> Result<Stream, NotConnected> {
        let mut carried = match self.tunnelled() {
            Some(to) => self.tunnel(to, slot).await?,
            None => {
                let socket = Arc::new(self.tcp().await?);
                Either::Left(Wire::new(socket, Default::default(), Arc::<Moved>::default()).holding(slot))
            }
        };
        if let (Some(version), Some((client, asked))) = (self.key.transport.proxy_protocol, self.key.client) {
            carried.write_all(&header(version, client, asked)).await?;
        }
        let origination = self.node.http.originations.of(&self.key.transport)?;
        let Some(origination) = origination else {
            return Ok(Stream::Plain(carried));
        };
        let name = self.key.server_name.as_deref().unwrap_or_default();
        let alpn: &[&[u8]] = match self.speaks {
            Speaks::Http1 => &[b"http/1.1"],
            Speaks::Http2 => &[b"h2"],
            Speaks::Negotiated => &[b"h2", b"http/1.1"],
            Speaks::Bytes => &[],
        };
        let alpn = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        let tls = origination.connect(carried, name, self.key.address.ip(), alpn).await?;
        Ok(Stream::Tls(Box::new(tls)))
    }

    /// The tunnel that the connection is a stream of, if of one.
    fn tunnelled(&self) -> Option<ToEndpoint> {
        let endpoint = self.key.address;
        match (&self.key.transport.hbone, &self.key.way) {
            (Some(hbone), _) => Some(ToEndpoint {
                client: hbone.client.clone(),
                gateway: SocketAddr::new(endpoint.ip(), hbone.port),
                expected: hbone.peers.clone(),
                endpoint,
            }),
            (None, Way::Tunnel(tunnel)) => Some(ToEndpoint {
                client: tunnel.client.clone(),
                gateway: tunnel.gateway,
                expected: tunnel.expected.clone(),
                endpoint,
            }),
            (None, Way::Direct | Way::Unannounced) => None,
        }
    }

    /// A tunnel of HBONE to the endpoint. The connection below is anybody's that is opened as the same client to the same peers.
    async fn tunnel(&self, to: ToEndpoint, slot: Slot) -> Result<Carried, NotConnected> {
        let lease = self.node.http.leases.of(&to.client).ok_or_else(|| {
            let why = format!("there is no certificate to open a tunnel as {} with", to.client);
            NotConnected::Failed(why.into())
        })?;
        let tunnel = to.open(&self.node, lease).await?;
        Ok(Either::Right(Box::new(Tunnelled::new(tunnel, slot))))
    }

    async fn tcp(&self) -> io::Result<stream::Stream> {
        let address = self.key.address;
        let socket = socket::tcp_socket(address)?;
        if self.key.way != Way::Unannounced
            && let Some(pod) = self.node.pods.at(address.ip())
        {
            // Many clients' requests go by it: its application sees the proxy.
            pod.announce(socket.as_fd(), None)?;
        }
        let stream = match socket::start_connect(socket, address)? {
            Connecting::Done(stream) => stream,
            Connecting::Underway(stream) => socket::finish_connect(stream).await?,
        };
        let keepalive = self.node.snapshot().config.node.keepalive;
        let keepalive = match &self.cluster.settings.connections.keepalive {
            Some(differs) => differs.over(keepalive),
            None => keepalive,
        };
        if let Err(error) = socket::set_keepalive(&stream, &keepalive) {
            tracing::debug!(%error, "keepalive could not be set");
        }
        Ok(stream)
    }
}

/// Tells an endpoint who its client is, and what it had connected to.
fn header(version: ProxyProtocol, client: SocketAddr, asked: SocketAddr) -> Vec<u8> {
    match version {
        ProxyProtocol::V1 => proxy_protocol::line(client, asked).into_bytes(),
        ProxyProtocol::V2 => proxy_protocol::header(client, asked, None),
    }
}

/// HTTP/1.1 on `stream`.
///
/// # Errors
/// When the stream breaks.
pub async fn open_http1(mut stream: Stream) -> Result<Carrier, NotConnected> {
    let (pulse, local) = (stream.pulse(), stream.local_address());
    if let Some(wire) = stream.wire_mut() {
        wire.hear_out();
    }
    // Of an answer's fields it takes as many as of a request's (`codec_of_http1`).
    let opened = http1::Builder::new()
        .handshake::<_, Attempt>(TokioIo::new(stream))
        .await;
    let (sender, connection) = opened.map_err(failed)?;
    let task = tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "an HTTP/1 connection to an endpoint ended");
        }
    });
    Ok(Carrier::new(sender, local, pulse, Codec::new(task.abort_handle())))
}

fn failed(error: impl std::error::Error) -> NotConnected {
    NotConnected::Failed(error.to_string().into())
}
