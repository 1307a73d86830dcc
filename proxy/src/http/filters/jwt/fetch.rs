//! Asks for keys, again and again, for each provider whose keys are elsewhere.
//!
//! Whoever answers is believed as far as the cluster's TLS goes; what it says is bounded in length and time, and is keys or nothing: where it is
//! nothing, the keys that were there stay in force. Requests wait for the first keys only.

use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, HOST};
use http::{Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::task::{AbortHandle, JoinSet};
use underpass_config::http::{BadKeys, Jwks, JwksSource, RemoteJwks, UpstreamProtocol, Wish};

use super::key_sets::ProvidersKeys;
use crate::http::intake::MAX_HEADERS;
use crate::http::pool::{Key, NotConnected, Speaks, Wanted};
use crate::node::Node;

/// A longer set of keys is none: what issuers have is a hundredth of it.
const LONGEST: usize = 1 << 20;
/// Keys are asked for anew so long before they need be, as with Envoy (`RefetchBeforeExpiredSec`).
const BEFORE: Duration = Duration::from_secs(5);

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
enum NoKeys {
    #[error("there is no such cluster")]
    NoCluster,
    #[error("the cluster has no endpoint that is well")]
    NoEndpoint,
    #[error("the endpoint can't be connected to: {0}")]
    NotConnected(Arc<str>),
    #[error("the endpoint did not answer in time")]
    TimedOut,
    #[error("the answer broke off: {0}")]
    Broken(Box<dyn std::error::Error + Send + Sync>),
    #[error("the answer has status {0}: only 200 has keys, redirects are not followed")]
    Status(StatusCode),
    #[error("the answer {0}")]
    NotKeys(BadKeys),
    #[error("the proxy can't ask for {0}")]
    Unwritable(http::Error),
}

impl NoKeys {
    /// For metrics.
    fn word(&self) -> &'static str {
        match self {
            Self::NoCluster | Self::NoEndpoint => "no-endpoint",
            Self::NotConnected(_) => "not-connected",
            Self::TimedOut => "timed-out",
            Self::Broken(_) => "broken",
            Self::Status(_) => "status",
            Self::NotKeys(_) => "not-keys",
            Self::Unwritable(_) => "unwritable",
        }
    }
}

impl From<NotConnected> for NoKeys {
    fn from(error: NotConnected) -> Self {
        match error {
            NotConnected::TimedOut => Self::TimedOut,
            NotConnected::Overflow => Self::NotConnected("the cluster's limit is reached".into()),
            NotConnected::Failed(why) | NotConnected::Untrusted(why) => Self::NotConnected(why),
        }
    }
}

impl From<hyper::Error> for NoKeys {
    fn from(error: hyper::Error) -> Self {
        Self::Broken(error.into())
    }
}

/// Asks for as long as the node lives, for the providers of the configuration in force.
pub async fn follow(node: Arc<Node>) {
    let mut changes = node.changes();
    let node = Arc::downgrade(&node);
    let mut asking: Vec<(Arc<ProvidersKeys>, AbortHandle)> = Vec::new();
    loop {
        let Some(wanted) = node
            .upgrade()
            .map(|node| node.key_sets.keep(&node.snapshot().config.http))
        else {
            return;
        };
        asking.retain(|(keys, task)| {
            let is_wanted = wanted.iter().any(|one| Arc::ptr_eq(one, keys));
            if !is_wanted {
                task.abort();
            }
            is_wanted
        });
        for keys in wanted {
            if !asking.iter().any(|(one, _)| Arc::ptr_eq(one, &keys)) {
                let task = tokio::spawn(ask_again_and_again(node.clone(), keys.clone()));
                asking.push((keys, task.abort_handle()));
            }
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

async fn ask_again_and_again(node: Weak<Node>, keys: Arc<ProvidersKeys>) {
    let JwksSource::Remote(remote) = &keys.provider.keys else {
        return;
    };
    let (issuer, cluster) = (&keys.provider.issuer, &remote.cluster);
    loop {
        let Some(node) = node.upgrade() else { return };
        let asked = tokio::time::timeout(remote.timeout, ask(&node, remote)).await;
        let mut failed = None;
        let (result, pause) = match asked.unwrap_or(Err(NoKeys::TimedOut)) {
            Ok(set) => {
                keys.replace(set);
                let holds = remote.cache_duration;
                // Not all providers, nor all nodes, ask at once.
                let early = 0.1 * fastrand::f64();
                ("keys", holds.checked_sub(BEFORE).unwrap_or(holds).mul_f64(1.0 - early))
            }
            Err(why) => {
                tracing::warn!(%issuer, %cluster, path = %remote.path, %why, "keys of tokens can't be fetched: those that were there stay in force");
                keys.note_asked();
                failed = Some(why.to_string());
                (why.word(), remote.failed_refetch.mul_f64(0.5 + fastrand::f64()))
            }
        };
        keys.note_fetch(failed, pause);
        node.telemetry.count_jwks_fetch(issuer, cluster, result);
        drop(node);
        tokio::time::sleep(pause).await;
    }
}

async fn ask(node: &Arc<Node>, remote: &RemoteJwks) -> Result<Jwks, NoKeys> {
    let snapshot = node.snapshot();
    let cluster = snapshot.config.http.cluster(&remote.cluster).ok_or(NoKeys::NoCluster)?;
    let endpoint = cluster.choose(&Wish::default(), || fastrand::u32(..));
    let endpoint = endpoint.ok_or(NoKeys::NoEndpoint)?;
    let transport = &cluster.settings.transport;
    let server_name = transport.tls.as_ref().map(|tls| match &tls.server_name {
        Some(name) => name.clone(),
        None => remote.authority.host().into(),
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
        },
        speaks: match cluster.settings.protocol {
            UpstreamProtocol::Http1 | UpstreamProtocol::AsDownstream => Speaks::Http1,
            UpstreamProtocol::Http2 => Speaks::Http2,
            UpstreamProtocol::Negotiated => Speaks::Negotiated,
        },
    };
    let _load = endpoint.hold();
    let (dial, stream) = wanted.stream().await?;
    let is_http2 = dial.is_http2(&stream);
    let request = request(remote, is_http2).map_err(NoKeys::Unwritable)?;
    // It ends with this.
    let mut connection = JoinSet::new();
    let io = TokioIo::new(stream);
    let response = match is_http2 {
        true => {
            let (mut sender, driver) = http2::handshake(TokioExecutor::new(), io).await?;
            connection.spawn(driver);
            sender.send_request(request).await?
        }
        false => {
            let mut builder = http1::Builder::new();
            builder.max_headers(MAX_HEADERS);
            let (mut sender, driver) = builder.handshake(io).await?;
            connection.spawn(driver);
            sender.send_request(request).await?
        }
    };
    read(response).await
}

fn request(remote: &RemoteJwks, is_http2: bool) -> Result<Request<Empty<Bytes>>, http::Error> {
    let request = Request::get(remote.path.as_str()).header(ACCEPT, "application/json");
    match is_http2 {
        false => request.header(HOST, remote.authority.as_str()),
        true => request
            .version(Version::HTTP_2)
            .uri(format!("http://{}{}", remote.authority, remote.path)),
    }
    .body(Empty::new())
}

async fn read(response: Response<Incoming>) -> Result<Jwks, NoKeys> {
    if response.status() != StatusCode::OK {
        return Err(NoKeys::Status(response.status()));
    }
    let body = Limited::new(response.into_body(), LONGEST).collect();
    let body = body.await.map_err(NoKeys::Broken)?;
    Jwks::parse(&body.to_bytes()).map_err(NoKeys::NotKeys)
}
