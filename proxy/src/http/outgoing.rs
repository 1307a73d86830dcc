//! A connection of the proxy's own to a cluster's endpoint: for what no client has asked for, such as keys of tokens, and what collectors are told.
//!
//! It is none of a core's pool: whoever has it speaks by it alone, one message after the other, and it ends when it is dropped. The cluster's limits of
//! connections hold for it, and its TLS.

use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::task::JoinSet;
use underpass_config::http::{Cluster, UpstreamProtocol, Wish};

use super::intake::MAX_HEADERS;
use super::pool::way::Way;
use super::pool::{Key, NotConnected, Speaks, Wanted};
use crate::node::Node;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum Unreached {
    /// There is no such cluster.
    #[error("there is no such cluster")]
    NoCluster,
    /// There is no endpoint that is well.
    #[error("the cluster has no endpoint that is well")]
    NoEndpoint,
    /// The endpoint can't be connected to; why.
    #[error("the endpoint can't be connected to: {0}")]
    NotConnected(Arc<str>),
    /// It took too long.
    #[error("the endpoint did not answer in time")]
    TimedOut,
    /// What is spoken on it could not begin.
    #[error("the connection broke off: {0}")]
    Broken(#[from] hyper::Error),
}

impl From<NotConnected> for Unreached {
    fn from(error: NotConnected) -> Self {
        match error {
            NotConnected::TimedOut => Self::TimedOut,
            NotConnected::Overflow => Self::NotConnected("the cluster's limit is reached".into()),
            NotConnected::Failed(why) | NotConnected::Untrusted(why) => Self::NotConnected(why),
        }
    }
}

/// The connection.
#[derive(Debug)]
pub struct Outgoing {
    cluster: Arc<Cluster>,
    sender: Sender,
    /// Its codec; it ends with this.
    _codec: JoinSet<hyper::Result<()>>,
}

#[derive(Debug)]
enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

impl Outgoing {
    /// Connects to one of a cluster's endpoints, which is asked for as `host` where it has TLS and no name is said for that.
    ///
    /// # Errors
    /// Why not.
    pub async fn connect(node: &Arc<Node>, cluster: &str, host: &str) -> Result<Self, Unreached> {
        let snapshot = node.snapshot();
        let cluster = snapshot.config.http.cluster(cluster).ok_or(Unreached::NoCluster)?;
        let endpoint = cluster.choose(&Wish::default(), || fastrand::u32(..));
        let endpoint = endpoint.ok_or(Unreached::NoEndpoint)?;
        let transport = &cluster.settings.transport;
        let server_name = transport.tls.as_ref().map(|tls| match &tls.server_name {
            Some(name) => name.clone(),
            None => host.into(),
        });
        let wanted = Wanted {
            node,
            // Its connection is its own, and none of a core's.
            core: 0,
            cluster,
            endpoint: &endpoint,
            key: Key {
                cluster: cluster.settings.name.clone(),
                address: endpoint.settings.address,
                transport: transport.clone(),
                edition: 0,
                server_name,
                client: None,
                way: Way::Direct,
            },
            speaks: match cluster.settings.protocol {
                UpstreamProtocol::Http1 | UpstreamProtocol::AsDownstream => Speaks::Http1,
                UpstreamProtocol::Http2 => Speaks::Http2,
                UpstreamProtocol::Negotiated => Speaks::Negotiated,
            },
        };
        let (dial, stream) = wanted.stream().await?;
        let is_http2 = dial.is_http2(&stream);
        let io = TokioIo::new(stream);
        let mut codec = JoinSet::new();
        let sender = match is_http2 {
            true => {
                let (sender, driver) = http2::handshake(TokioExecutor::new(), io).await?;
                codec.spawn(driver);
                Sender::Http2(sender)
            }
            false => {
                let mut builder = http1::Builder::new();
                builder.max_headers(MAX_HEADERS);
                let (sender, driver) = builder.handshake(io).await?;
                codec.spawn(driver);
                Sender::Http1(sender)
            }
        };
        Ok(Self {
            cluster: cluster.clone(),
            sender,
            _codec: codec,
        })
    }

    /// Whether HTTP/2 is spoken on it.
    pub fn is_http2(&self) -> bool {
        matches!(self.sender, Sender::Http2(_))
    }

    /// Whether it can be used again: it is open, and leads where the cluster of this name does now.
    pub fn is_good(&self, node: &Node) -> bool {
        let name = &self.cluster.settings.name;
        let is_the_same = node
            .snapshot()
            .config
            .http
            .cluster(name)
            .is_some_and(|cluster| Arc::ptr_eq(cluster, &self.cluster));
        let is_closed = match &self.sender {
            Sender::Http1(sender) => sender.is_closed(),
            Sender::Http2(sender) => sender.is_closed(),
        };
        is_the_same && !is_closed
    }

    /// Sends a request, and waits for the head of its answer.
    ///
    /// # Errors
    /// When none comes.
    pub async fn send(&mut self, request: Request<Full<Bytes>>) -> hyper::Result<Response<Incoming>> {
        match &mut self.sender {
            Sender::Http1(sender) => {
                sender.ready().await?;
                sender.send_request(request).await
            }
            Sender::Http2(sender) => {
                sender.ready().await?;
                sender.send_request(request).await
            }
        }
    }
}
