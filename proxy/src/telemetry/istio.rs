//! Istio's metrics of requests, with the labels that a waypoint gives them (docs/metrics.md).
//!
//! **A request costs a few additions.** Who asked whom is a group of series, and what came of it one of these; a connection keeps those that
//! it has counted by, and each core has its own, so that nobody waits for anybody. Labels are made, and what cores counted under the same
//! ones is added up, when it is asked for.
//!
//! **As many as there may be**: beyond [`MOST_SERIES`] those are forgotten that nobody counts by any more, and where that is not enough,
//! requests are counted under labels that say nothing of the two ends: nobody makes the proxy remember more by asking in ever new ways.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use foldhash::quality::RandomState;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use underpass_config::http::{MetricSettings, RequestMetric, ServiceName};
use underpass_config::{Text, Workload};

use super::labels;
use crate::flow_table::{PathEnds, Transport};
use crate::http::flags::Flags;

/// Series of all cores together.
const MOST_SERIES: usize = 20_000;
/// When there are so many, those by which nothing was counted for this long are forgotten: of pods that are gone, for the most part.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(300);

/// A label set; equal sets are one time series.
type Labels = Vec<(Cow<'static, str>, String)>;

/// The upper bounds of the buckets, Envoy's, in milliseconds or bytes.
const BOUNDS: [f64; 19] = [
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1000.0,
    2500.0,
    5000.0,
    10_000.0,
    30_000.0,
    60_000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
];
/// Sums are kept in such parts.
const PARTS: f64 = 1000.0;

/// Who asked whom.
#[derive(Clone, Debug)]
pub struct RequestEnds {
    /// The workloads, and by what the client came.
    pub ends: PathEnds,
    /// The service of the cluster.
    pub service: Option<Arc<ServiceName>>,
    /// How the table counts.
    pub settings: Arc<MetricSettings>,
    /// Whether it is gRPC.
    pub is_grpc: bool,
}

/// What came of a request, as far as labels tell.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Outcome {
    /// The status; 0: none was sent.
    pub status: u16,
    /// gRPC's, if there was one.
    pub grpc_status: Option<u16>,
    /// Response flags.
    pub flags: Flags,
    /// Values of the labels that the table adds.
    pub added: Box<[Text]>,
}

/// What one request adds.
#[derive(Clone, Copy, Debug)]
pub struct Amounts {
    /// From its head to the end of the response.
    pub duration: Duration,
    /// Bytes of the bodies: the request's, the response's.
    pub bytes: [u64; 2],
    /// Messages of gRPC in them.
    pub messages: [u64; 2],
}

/// The numbers of one label set, on one core.
#[derive(Debug, Default)]
pub struct RequestSeries {
    requests: AtomicU64,
    /// How many there were when it was last asked whether it can be forgotten.
    had: AtomicU64,
    duration: Histogram,
    bytes: [Histogram; 2],
    messages: [AtomicU64; 2],
}

impl RequestSeries {
    /// Counts a request that is over.
    pub fn count(&self, amounts: &Amounts) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.duration.add(amounts.duration.as_secs_f64() * 1000.0);
        for (histogram, bytes) in self.bytes.iter().zip(amounts.bytes) {
            histogram.add(bytes as f64);
        }
        for (counter, messages) in self.messages.iter().zip(amounts.messages) {
            if messages > 0 {
                counter.fetch_add(messages, Ordering::Relaxed);
            }
        }
    }
}

#[derive(Debug, Default)]
struct Histogram {
    /// By bound; the last has all that is larger.
    buckets: [AtomicU64; BOUNDS.len() + 1],
    sum: AtomicU64,
}

impl Histogram {
    fn add(&self, value: f64) {
        let bucket = BOUNDS.partition_point(|bound| *bound < value);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add((value * PARTS) as u64, Ordering::Relaxed);
    }
}

/// A histogram as it is told.
#[derive(Clone, Debug, Default)]
struct Told {
    buckets: [u64; BOUNDS.len() + 1],
    sum: u64,
}

impl Told {
    fn add(&mut self, histogram: &Histogram) {
        for (told, counted) in self.buckets.iter_mut().zip(&histogram.buckets) {
            *told += counted.load(Ordering::Relaxed);
        }
        self.sum += histogram.sum.load(Ordering::Relaxed);
    }
}

/// What makes a group: objects of the configuration are told apart by where they are, and held for as long.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Key {
    source: Option<usize>,
    transport: Transport,
    destination: Option<usize>,
    service: Option<Arc<ServiceName>>,
    settings: usize,
    is_grpc: bool,
}

fn place(workload: &Option<Arc<Workload>>) -> Option<usize> {
    workload.as_ref().map(|workload| Arc::as_ptr(workload) as usize)
}

impl RequestEnds {
    /// Tells of nobody.
    fn is_nobody(&mut self) {
        (self.ends.source, self.ends.destination, self.service) = (None, None, None);
        self.ends.transport = Transport::Plain;
        self.settings = MetricSettings::unsaid();
    }

    fn key(&self) -> Key {
        Key {
            source: place(&self.ends.source),
            transport: self.ends.transport.clone(),
            destination: place(&self.ends.destination),
            service: self.service.clone(),
            settings: Arc::as_ptr(&self.settings) as usize,
            is_grpc: self.is_grpc,
        }
    }
}

/// Series of one pair of ends, on one core.
#[derive(Debug)]
struct Group {
    ends: RequestEnds,
    series: HashMap<Outcome, Arc<RequestSeries>, RandomState>,
}

/// What one core counts by.
#[derive(Debug, Default)]
struct Core {
    groups: HashMap<Key, Group, RandomState>,
    /// When it was last looked for series to forget.
    looked: Option<Instant>,
}

impl Core {
    /// Forgets what nobody holds and nothing was counted by since this was last done; how many those were.
    fn forget(&mut self) -> usize {
        if self.looked.is_some_and(|looked| looked.elapsed() < FORGOTTEN_AFTER) {
            return 0;
        }
        self.looked = Some(Instant::now());
        let mut forgotten = 0;
        for group in self.groups.values_mut() {
            group.series.retain(|_, series| {
                let requests = series.requests.load(Ordering::Relaxed);
                let is_old = series.had.swap(requests, Ordering::Relaxed) == requests;
                let is_kept = !is_old || Arc::strong_count(series) > 1;
                forgotten += usize::from(!is_kept);
                is_kept
            });
        }
        self.groups.retain(|_, group| !group.series.is_empty());
        forgotten
    }
}

/// All of them.
#[derive(Debug)]
pub struct IstioRequests {
    cores: Box<[Mutex<Core>]>,
    series: AtomicUsize,
    /// Series that were not begun.
    overflows: AtomicU64,
}

impl IstioRequests {
    /// For so many cores.
    pub fn new(cores: usize) -> Self {
        Self {
            cores: (0..cores.max(1)).map(|_| Mutex::default()).collect(),
            series: AtomicUsize::new(0),
            overflows: AtomicU64::new(0),
        }
    }

    /// By what requests between `ends` are counted that come to `outcome`, on a core.
    pub fn of(&self, core: usize, ends: &RequestEnds, outcome: &Outcome) -> Arc<RequestSeries> {
        let mut counted = locked(&self.cores[core % self.cores.len()]);
        let known = counted.groups.get(&ends.key());
        if let Some(known) = known.and_then(|group| group.series.get(outcome)) {
            return known.clone();
        }
        if self.series.load(Ordering::Relaxed) >= MOST_SERIES {
            self.series.fetch_sub(counted.forget(), Ordering::Relaxed);
        }
        let (mut ends, mut outcome) = (ends.clone(), outcome.clone());
        if self.series.load(Ordering::Relaxed) >= MOST_SERIES {
            self.overflows.fetch_add(1, Ordering::Relaxed);
            ends.is_nobody();
            outcome.added = Box::default();
        }
        let group = counted.groups.entry(ends.key()).or_insert_with(|| Group {
            ends,
            series: HashMap::default(),
        });
        let series = group.series.entry(outcome).or_insert_with(|| {
            self.series.fetch_add(1, Ordering::Relaxed);
            Arc::default()
        });
        series.clone()
    }

    fn told(&self) -> Tellings {
        let mut tellings = Tellings::default();
        for core in &self.cores {
            for group in locked(core).groups.values() {
                let ends = &group.ends;
                let labels = labels::waypoint(&ends.ends, ends.service.as_deref());
                let labels: Labels = labels.into_iter().map(|(name, value)| (name.into(), value)).collect();
                for (outcome, series) in &group.series {
                    tellings.add(ends, &labels, outcome, series);
                }
            }
        }
        tellings
    }
}

fn locked(core: &Mutex<Core>) -> MutexGuard<'_, Core> {
    core.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All series, added up by labels.
#[derive(Default)]
struct Tellings {
    counters: BTreeMap<(RequestMetric, Labels), u64>,
    histograms: BTreeMap<(RequestMetric, Labels), Told>,
}

impl Tellings {
    /// `of_ends`: the labels that all series of these ends have.
    fn add(&mut self, ends: &RequestEnds, of_ends: &Labels, outcome: &Outcome, series: &RequestSeries) {
        for metric in RequestMetric::ALL {
            let is_of_grpc = matches!(metric, RequestMetric::RequestMessages | RequestMetric::ResponseMessages);
            if ends.settings.disabled.contains(&metric) || is_of_grpc && !ends.is_grpc {
                continue;
            }
            let mut labels = of_ends.clone();
            if !is_of_grpc {
                labels.extend(of_outcome(ends, outcome));
            }
            let key = (metric, overridden(labels, metric, ends, outcome));
            let counter = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
            match metric {
                RequestMetric::Count => *self.counters.entry(key).or_default() += counter(&series.requests),
                RequestMetric::RequestMessages => {
                    *self.counters.entry(key).or_default() += counter(&series.messages[0]);
                }
                RequestMetric::ResponseMessages => {
                    *self.counters.entry(key).or_default() += counter(&series.messages[1]);
                }
                RequestMetric::Duration => self.histograms.entry(key).or_default().add(&series.duration),
                RequestMetric::RequestBytes => self.histograms.entry(key).or_default().add(&series.bytes[0]),
                RequestMetric::ResponseBytes => self.histograms.entry(key).or_default().add(&series.bytes[1]),
            }
        }
    }
}

fn of_outcome(ends: &RequestEnds, outcome: &Outcome) -> Labels {
    let protocol = if ends.is_grpc { "grpc" } else { "http" };
    let is_mutual = ends.ends.transport.peer().is_some();
    let mut labels = vec![
        ("request_protocol".into(), protocol.to_owned()),
        ("response_code".into(), outcome.status.to_string()),
        ("response_flags".into(), outcome.flags.to_string()),
        (
            "connection_security_policy".into(),
            if is_mutual { "mutual_tls" } else { "none" }.to_owned(),
        ),
    ];
    // An empty label is none.
    if let Some(status) = outcome.grpc_status.filter(|_| ends.is_grpc) {
        labels.push(("grpc_response_status".into(), status.to_string()));
    }
    labels
}

/// With the labels that its table takes off and adds.
fn overridden(mut labels: Labels, metric: RequestMetric, ends: &RequestEnds, outcome: &Outcome) -> Labels {
    let settings = &ends.settings;
    for (added, value) in settings.added.iter().zip(&outcome.added) {
        if added.metrics.contains(&metric) {
            labels.retain(|(name, _)| **name != *added.name);
            labels.push((added.name.to_string().into(), value.to_string()));
        }
    }
    labels.retain(|(name, _)| {
        let is_it = |(of, removed): &(RequestMetric, Text)| *of == metric && **removed == **name;
        !settings.removed.iter().any(is_it)
    });
    labels
}

/// Tells of [`IstioRequests`] when asked.
#[derive(Debug)]
pub(super) struct IstioCollector(pub(super) Arc<IstioRequests>);

const FAMILIES: [(RequestMetric, &str, &str); 6] = [
    (
        RequestMetric::Count,
        "istio_requests",
        "Requests that are over, as Istio counts them",
    ),
    (
        RequestMetric::Duration,
        "istio_request_duration_milliseconds",
        "From the head of a request to the end of its response, in milliseconds",
    ),
    (
        RequestMetric::RequestBytes,
        "istio_request_bytes",
        "Bytes of requests' bodies",
    ),
    (
        RequestMetric::ResponseBytes,
        "istio_response_bytes",
        "Bytes of responses' bodies",
    ),
    (
        RequestMetric::RequestMessages,
        "istio_request_messages",
        "Messages of gRPC in requests",
    ),
    (
        RequestMetric::ResponseMessages,
        "istio_response_messages",
        "Messages of gRPC in responses",
    ),
];

impl Collector for IstioCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let told = self.0.told();
        for (metric, name, help) in FAMILIES {
            let of_it = told.counters.iter().filter(|((of, _), _)| *of == metric);
            let mut of_it = of_it.peekable();
            if of_it.peek().is_some() {
                let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
                for ((_, labels), count) in of_it {
                    ConstCounter::new(*count).encode(family.encode_family(labels)?)?;
                }
            }
            let mut of_it = told.histograms.iter().filter(|((of, _), _)| *of == metric).peekable();
            if of_it.peek().is_some() {
                let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
                for ((_, labels), told) in of_it {
                    let bounds = BOUNDS.into_iter().chain([f64::MAX]);
                    let buckets: Vec<(f64, u64)> = bounds.zip(told.buckets).collect();
                    let count = told.buckets.iter().sum();
                    let sum = told.sum as f64 / PARTS;
                    family
                        .encode_family(labels)?
                        .encode_histogram::<Labels>(sum, count, &buckets, None)?;
                }
            }
        }
        let help =
            "Series of Istio's metrics that were not begun, since there are too many: of these the ends are unknown";
        let overflows = ConstCounter::new(self.0.overflows.load(Ordering::Relaxed));
        let name = "underpass_http_metrics_overflows";
        overflows.encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)
    }
}

#[cfg(test)]
mod tests;
