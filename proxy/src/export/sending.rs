//! Batches, sent one after the other.
//!
//! Whoever queues is not to wake who sends for each item: after one that ends an idle time it sleeps a moment and takes what has come meanwhile, as
//! the writer of lines does. What comes while a batch is being sent goes with the next one.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HOST, HeaderMap, HeaderValue, TE, USER_AGENT};
use http::{Request, StatusCode, Version};
use http_body_util::{BodyExt, Full};
use tokio::time::Instant;
use underpass_config::{Export, ExportProtocol};

use super::message::{Envelope, rejected};
use super::{OVERHEAD, Route, Shared};
use crate::http::outgoing::{Outgoing, Unreached};
use crate::node::Node;

/// After the first item of a batch, so long it is waited before others are looked for.
const PAUSE: Duration = Duration::from_millis(10);
/// More bytes of items do not go in one message: servers of gRPC take four million by default.
const LONGEST: usize = 1 << 20;
/// Of an answer, so much is read.
const ANSWER: usize = 64 * 1024;
/// After a message that was not taken, so long nothing is sent; what comes waits.
const RELIEF: Duration = Duration::from_secs(1);

/// Why a message was not taken.
#[derive(Debug, thiserror::Error)]
enum Untaken {
    #[error(transparent)]
    Unreached(#[from] Unreached),
    #[error("the answer broke off: {0}")]
    Broken(#[from] hyper::Error),
    #[error("the collector did not answer in time")]
    TimedOut,
    #[error("the answer is too long")]
    TooLong,
    #[error("the answer has status {0}")]
    Status(StatusCode),
    #[error("the answer has gRPC's status {0}")]
    GrpcStatus(String),
    #[error("the collector does not speak HTTP/2: write `protocol: http2` in its cluster")]
    NotHttp2,
    #[error("it can't be asked by that authority: {0}")]
    Unwritable(#[from] http::Error),
}

/// Sends for all queues, for as long as the node lives.
pub async fn follow(node: Arc<Node>) {
    let begun = {
        let mut begun = node
            .telemetry
            .exporters
            .begun
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        begun.take()
    };
    let node = Arc::downgrade(&node);
    let Some(mut begun) = begun else { return };
    while let Some(route) = begun.recv().await {
        let sender = Sender {
            node: node.clone(),
            export: route.export.clone(),
            connection: None,
            is_failing: false,
        };
        tokio::spawn(sender.send_all(route));
    }
}

/// Who sends for one queue.
struct Sender {
    node: Weak<Node>,
    export: Export,
    connection: Option<Outgoing>,
    /// Whether the last message was not taken; the first of a row is told of.
    is_failing: bool,
}

impl Sender {
    async fn send_all(mut self, mut route: Route) {
        while let Some(first) = route.queue.recv().await {
            let (items, is_last) = gather(first, &mut route, &self.export).await;
            let (count, size) = (items.len(), size(&items));
            self.tell(items, &route).await;
            route.shared.waiting.fetch_sub(size, Ordering::Relaxed);
            tracing::trace!(count, size, cluster = %self.export.cluster, "told");
            if self.is_failing && !is_last {
                tokio::select! {
                    () = tokio::time::sleep(RELIEF) => {}
                    () = route.shared.hurry.notified() => {}
                }
            }
        }
    }

    async fn tell(&mut self, items: Vec<Vec<u8>>, route: &Route) {
        let count = items.len() as u64;
        let counts = &route.shared.counts;
        let told = tokio::time::timeout(self.export.timeout, self.send(items, &route.envelope)).await;
        match told.unwrap_or(Err(Untaken::TimedOut)) {
            Ok(None) => {
                counts.sent.inc_by(count);
                self.is_failing = false;
            }
            Ok(Some(partial)) => {
                let lost = u64::try_from(partial.rejected).unwrap_or(0).min(count);
                counts.rejected.inc_by(lost);
                counts.sent.inc_by(count - lost);
                tracing::warn!(cluster = %self.export.cluster, rejected = lost, why = %partial.error_message, "a collector could not use what it was told");
            }
            Err(why) => {
                self.connection = None;
                counts.failed.inc_by(count);
                if !std::mem::replace(&mut self.is_failing, true) {
                    let signal = route.envelope.signal();
                    tracing::warn!(cluster = %self.export.cluster, signal, %why, "a collector can't be told, what it was to be told is lost until it can");
                }
            }
        }
    }

    /// Sends one message; answers what of it could not be used.
    async fn send(
        &mut self,
        items: Vec<Vec<u8>>,
        envelope: &Envelope,
    ) -> Result<Option<super::otlp::PartialSuccess>, Untaken> {
        let Some(node) = self.node.upgrade() else {
            return Err(Unreached::NoCluster.into());
        };
        let is_grpc = self.export.protocol == ExportProtocol::Grpc;
        let mut connection = match self.connection.take().filter(|connection| connection.is_good(&node)) {
            Some(connection) => connection,
            None => {
                let authority = self.export.authority.to_str().unwrap_or_default();
                let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
                Outgoing::connect(&node, &self.export.cluster, host).await?
            }
        };
        drop(node);
        if is_grpc && !connection.is_http2() {
            return Err(Untaken::NotHttp2);
        }
        let body = envelope.encoded(items, is_grpc);
        let request = self.request(envelope, body, connection.is_http2())?;
        let response = connection.send(request).await?;
        let (head, mut body) = response.into_parts();
        let (mut answer, mut trailers) = (BytesMut::new(), HeaderMap::new());
        while let Some(frame) = body.frame().await {
            match frame?.into_data() {
                Ok(data) if answer.len() + data.len() > ANSWER => return Err(Untaken::TooLong),
                Ok(data) => answer.extend_from_slice(&data),
                Err(other) => trailers = other.into_trailers().unwrap_or_default(),
            }
        }
        self.connection = Some(connection);
        if head.status != StatusCode::OK {
            return Err(Untaken::Status(head.status));
        }
        if is_grpc {
            let status = trailers.get("grpc-status").or(head.headers.get("grpc-status"));
            let status = status.map_or("none", |status| status.to_str().unwrap_or("none"));
            if status != "0" {
                return Err(Untaken::GrpcStatus(status.to_owned()));
            }
        }
        Ok(rejected(&answer, is_grpc).filter(|_| envelope.is_otlp()))
    }

    fn request(&self, envelope: &Envelope, body: Bytes, is_http2: bool) -> Result<Request<Full<Bytes>>, http::Error> {
        let (path, kind) = match &self.export.protocol {
            ExportProtocol::Grpc => (envelope.method(), "application/grpc"),
            ExportProtocol::Http(path) => (path.as_str(), "application/x-protobuf"),
        };
        let mut request = Request::post(path).header(CONTENT_TYPE, kind).header(
            USER_AGENT,
            concat!("OTel-OTLP-Exporter-underpass/", env!("CARGO_PKG_VERSION")),
        );
        if self.export.protocol == ExportProtocol::Grpc {
            request = request.header(TE, HeaderValue::from_static("trailers"));
            request = request.header(
                "grpc-timeout",
                format!("{}m", self.export.timeout.as_millis().min(99_999_999)),
            );
        }
        let authority = &self.export.authority;
        request = match is_http2 {
            true => request
                .version(Version::HTTP_2)
                .uri(format!("http://{}{path}", authority.to_str().unwrap_or_default())),
            false => request.header(HOST, authority),
        };
        for (name, value) in &self.export.headers {
            request = request.header(name, value);
        }
        request.body(Full::new(body))
    }
}

fn size(items: &[Vec<u8>]) -> usize {
    items.iter().map(|item| item.len() + OVERHEAD).sum()
}

/// A batch: until there are as many as are sent without waiting, or the first has waited as long as it may; then all that is there and fits in one
/// message. Also whether nothing will follow.
async fn gather(first: Vec<u8>, route: &mut Route, export: &Export) -> (Vec<Vec<u8>>, bool) {
    let due = Instant::now() + export.batching.interval;
    let enough = export.batching.items as usize;
    let (mut bytes, mut is_last) = (first.len(), false);
    let mut items = vec![first];
    while bytes < LONGEST {
        match route.queue.try_recv() {
            Ok(item) => {
                bytes += item.len();
                items.push(item);
                continue;
            }
            Err(_) if items.len() >= enough || is_hurried(&route.shared) => break,
            Err(_) => {}
        }
        tokio::select! {
            biased;
            () = tokio::time::sleep_until(due) => break,
            () = route.shared.hurry.notified() => {}
            item = route.queue.recv() => match item {
                Some(item) => {
                    bytes += item.len();
                    items.push(item);
                    tokio::time::sleep(PAUSE).await;
                }
                None => {
                    is_last = true;
                    break;
                }
            },
        }
    }
    (items, is_last)
}

fn is_hurried(shared: &Shared) -> bool {
    shared.is_hurried.load(Ordering::Relaxed)
}
