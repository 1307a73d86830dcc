//! What collectors are told of requests, spans and entries of logs: queued by the core that the request was served by, sent by the control thread.
//!
//! **Nobody waits for a collector.** A queue takes so many bytes ([`Batching::pending`](underpass_config::Batching)), from when they are queued until they
//! have been sent or given up; what does not fit is dropped and counted (`underpass_exported_total`), and so is a message that was not taken. Nothing is sent
//! twice.
//!
//! * [`sending`]: batches, and who they go to.
//! * [`message`]: what a batch is put into.

mod message;
mod sending;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use underpass_config::Export;
use underpass_config::http::{Http, TracingProvider};

pub use message::{Envelope, KeyValue, Otlp, text};
pub use sending::follow;

use crate::opened::Opened;

/// The messages of OpenTelemetry's protocol that are sent and read.
#[allow(missing_docs, clippy::all, reason = "generated")]
pub mod otlp {
    include!(concat!(env!("OUT_DIR"), "/underpass.otlp.rs"));
}

/// Those of Envoy's access log service.
#[allow(missing_docs, clippy::all, reason = "generated")]
pub mod als {
    include!(concat!(env!("OUT_DIR"), "/underpass.als.rs"));
}

/// What an item takes beside its bytes, while it waits.
const OVERHEAD: usize = 64;
/// Between two looks whether all has been sent, at the end.
const LOOK: Duration = Duration::from_millis(5);

/// Signal, cluster, result.
type Counted = Family<Vec<(&'static str, String)>, Counter>;

/// A queue to a collector, and what has become of what was queued.
#[derive(Debug)]
pub struct Exporter {
    queue: mpsc::UnboundedSender<Vec<u8>>,
    shared: Arc<Shared>,
}

/// What a queue and its sender know of each other.
#[derive(Debug)]
struct Shared {
    /// Bytes that wait, or are being sent.
    waiting: AtomicUsize,
    most: usize,
    /// What waits is to be sent at once.
    is_hurried: AtomicBool,
    hurry: Notify,
    counts: Counts,
}

/// What becomes of items.
#[derive(Debug)]
struct Counts {
    sent: Counter,
    /// There was no room for them.
    dropped: Counter,
    /// They were not taken.
    failed: Counter,
    /// The collector has said that it could not use them.
    rejected: Counter,
}

impl Counts {
    fn new(counted: &Counted, signal: &'static str, cluster: &str) -> Self {
        let counter = |result: &str| {
            let labels = vec![
                ("signal", signal.to_owned()),
                ("cluster", cluster.to_owned()),
                ("result", result.to_owned()),
            ];
            counted.get_or_create(&labels).clone()
        };
        Self {
            sent: counter("sent"),
            dropped: counter("dropped"),
            failed: counter("failed"),
            rejected: counter("rejected"),
        }
    }
}

impl Exporter {
    /// Queues an item, or drops it if there is no room.
    pub fn push(&self, item: Vec<u8>) {
        let shared = &self.shared;
        let size = item.len() + OVERHEAD;
        let before = shared.waiting.fetch_add(size, Ordering::Relaxed);
        // Who sends is gone only when the process ends.
        if before + size > shared.most || self.queue.send(item).is_err() {
            shared.waiting.fetch_sub(size, Ordering::Relaxed);
            shared.counts.dropped.inc();
        }
    }
}

/// A collector that is to be told, from now on until nobody queues for it any more.
#[derive(Debug)]
struct Route {
    export: Export,
    envelope: Envelope,
    queue: mpsc::UnboundedReceiver<Vec<u8>>,
    shared: Arc<Shared>,
}

/// All queues.
#[derive(Debug)]
pub struct Exporters {
    counted: Counted,
    /// Who sends for new ones.
    routes: mpsc::UnboundedSender<Route>,
    /// Those that nobody sends for yet.
    begun: Mutex<Option<mpsc::UnboundedReceiver<Route>>>,
    /// Of those that route tables name.
    providers: Opened<TracingProvider, Exporter>,
    /// All that there are, for the end.
    open: Mutex<Vec<std::sync::Weak<Shared>>>,
}

impl Default for Exporters {
    fn default() -> Self {
        let (routes, begun) = mpsc::unbounded_channel();
        Self {
            counted: Counted::default(),
            routes,
            begun: Mutex::new(Some(begun)),
            providers: Opened::default(),
            open: Mutex::default(),
        }
    }
}

impl Exporters {
    /// What is counted of them.
    pub fn counted(&self) -> Counted {
        self.counted.clone()
    }

    /// A queue to a collector, which is told in `envelope`s.
    pub fn open(&self, export: &Export, envelope: Envelope) -> Arc<Exporter> {
        let (queue, taken) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            waiting: AtomicUsize::new(0),
            most: export.batching.pending.0 as usize,
            is_hurried: AtomicBool::new(false),
            hurry: Notify::new(),
            counts: Counts::new(&self.counted, envelope.signal(), &export.cluster),
        });
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|shared| shared.strong_count() > 0);
        open.push(Arc::downgrade(&shared));
        drop(open);
        let _ = self.routes.send(Route {
            export: export.clone(),
            envelope,
            queue: taken,
            shared: shared.clone(),
        });
        Arc::new(Exporter { queue, shared })
    }

    /// The queue of a provider of a configuration that was prepared.
    pub fn of(&self, provider: &Arc<TracingProvider>) -> Option<Arc<Exporter>> {
        self.providers.of(provider)
    }

    /// Opens those that `http` asks for and that are not there yet; those of the configuration in force stay.
    pub fn prepare(&self, http: &Http) {
        let open = |said: &TracingProvider| self.open(&said.export, Envelope::Spans(Otlp::of_spans(&said.resource)));
        self.providers.prepare(http.tracing_providers(), |_| true, open);
    }

    /// Keeps those that `http` asks for, and those that somebody is still served by.
    pub fn keep(&self, http: &Http) {
        self.prepare(http);
        self.providers.let_go();
    }

    /// Sends what waits, if collectors take it within `patience`.
    pub async fn finish(&self, patience: Duration) {
        let open = std::mem::take(&mut *self.open.lock().unwrap_or_else(PoisonError::into_inner));
        let deadline = Instant::now() + patience;
        for shared in open.iter().filter_map(std::sync::Weak::upgrade) {
            shared.is_hurried.store(true, Ordering::Relaxed);
            shared.hurry.notify_one();
            while shared.waiting.load(Ordering::Relaxed) > 0 && Instant::now() < deadline {
                tokio::time::sleep(LOOK).await;
            }
        }
    }
}
