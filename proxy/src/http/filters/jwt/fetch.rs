//! Asks for keys, again and again, for each provider whose keys are elsewhere.
//!
//! Whoever answers is believed as far as the cluster's TLS goes; what it says is bounded in length and time, and is keys or nothing: where it is
//! nothing, the keys that were there stay in force. Requests wait for the first keys only.

use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, HOST};
use http::{Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use tokio::task::AbortHandle;
use underpass_config::http::{BadKeys, Jwks, JwksSource, RemoteJwks};

use super::key_sets::ProvidersKeys;
use crate::http::outgoing::{Outgoing, Unreached};
use crate::node::Node;

/// A longer set of keys is none: what issuers have is a hundredth of it.
const LONGEST: usize = 1 << 20;
/// Keys are asked for anew so long before they need be, as with Envoy (`RefetchBeforeExpiredSec`).
const BEFORE: Duration = Duration::from_secs(5);

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
enum NoKeys {
    #[error(transparent)]
    Unreached(#[from] Unreached),
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
            Self::Unreached(Unreached::NoCluster | Unreached::NoEndpoint) => "no-endpoint",
            Self::Unreached(Unreached::NotConnected(_)) => "not-connected",
            Self::Unreached(Unreached::TimedOut) | Self::TimedOut => "timed-out",
            Self::Unreached(Unreached::Broken(_)) | Self::Broken(_) => "broken",
            Self::Status(_) => "status",
            Self::NotKeys(_) => "not-keys",
            Self::Unwritable(_) => "unwritable",
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
    let mut connection = Outgoing::connect(node, &remote.cluster, remote.authority.host()).await?;
    let request = request(remote, connection.is_http2()).map_err(NoKeys::Unwritable)?;
    let response = connection.send(request).await?;
    read(response).await
}

fn request(remote: &RemoteJwks, is_http2: bool) -> Result<Request<Full<Bytes>>, http::Error> {
    let request = Request::get(remote.path.as_str()).header(ACCEPT, "application/json");
    match is_http2 {
        false => request.header(HOST, remote.authority.as_str()),
        true => request
            .version(Version::HTTP_2)
            .uri(format!("http://{}{}", remote.authority, remote.path)),
    }
    .body(Full::default())
}

async fn read(response: Response<Incoming>) -> Result<Jwks, NoKeys> {
    if response.status() != StatusCode::OK {
        return Err(NoKeys::Status(response.status()));
    }
    let body = Limited::new(response.into_body(), LONGEST).collect();
    let body = body.await.map_err(NoKeys::Broken)?;
    Jwks::parse(&body.to_bytes()).map_err(NoKeys::NotKeys)
}
