//! Requests, counted by route and cluster.
//!
//! Whoever counts holds the counters of its route and cluster, looked up once for a connection: a request that went well is one atomic add.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use underpass_config::Text;

use crate::http::flags::Flags;

/// Statuses that are counted apart; a larger one is none of HTTP.
const STATUSES: usize = 600;

/// Listener, virtual host, route, cluster.
pub type Names = [Text; 4];
type Labels = Vec<(&'static str, String)>;

/// The counters of all routes and clusters.
#[derive(Debug, Default)]
pub struct RequestMetrics {
    series: Mutex<HashMap<Names, Arc<RequestCounts>>>,
}

/// The counters of one route and cluster.
#[derive(Debug)]
pub struct RequestCounts {
    clean: Box<[AtomicU64; STATUSES]>,
    flagged: Mutex<BTreeMap<(u16, Flags), u64>>,
    retries: AtomicU64,
    /// By tunnels' clients, and to them.
    tunneled: [AtomicU64; 2],
}

impl Default for RequestCounts {
    fn default() -> Self {
        Self {
            clean: Box::new([const { AtomicU64::new(0) }; STATUSES]),
            flagged: Mutex::default(),
            retries: AtomicU64::new(0),
            tunneled: Default::default(),
        }
    }
}

impl RequestCounts {
    /// Counts a request that is over; `status` 0 is one that was not answered.
    pub fn count(&self, status: u16, flags: Flags, attempts: u32) {
        if attempts > 1 {
            self.retries.fetch_add(u64::from(attempts - 1), Ordering::Relaxed);
        }
        match self.clean.get(usize::from(status)) {
            Some(counter) if flags == Flags::default() => {
                counter.fetch_add(1, Ordering::Relaxed);
            }
            _ => {
                let mut flagged = self.flagged.lock().unwrap_or_else(PoisonError::into_inner);
                *flagged.entry((status, flags)).or_default() += 1;
            }
        }
    }

    /// Counts bytes that a tunnel's client has sent, when its endpoint's side has taken them.
    pub fn tunnel_received(&self, bytes: u64) {
        self.tunneled[0].fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts bytes that a tunnel's client was sent.
    pub fn tunnel_sent(&self, bytes: u64) {
        self.tunneled[1].fetch_add(bytes, Ordering::Relaxed);
    }

    /// Tries after the first of each request.
    pub fn retries(&self) -> u64 {
        self.retries.load(Ordering::Relaxed)
    }

    /// Each status and flags with its count.
    pub fn counts(&self) -> Vec<(u16, Flags, u64)> {
        let clean = (0u16..).zip(self.clean.iter());
        let clean = clean.map(|(status, count)| (status, Flags::default(), count.load(Ordering::Relaxed)));
        let flagged = self.flagged.lock().unwrap_or_else(PoisonError::into_inner);
        let flagged = flagged.iter().map(|((status, flags), count)| (*status, *flags, *count));
        clean.chain(flagged).filter(|(.., count)| *count > 0).collect()
    }
}

impl RequestMetrics {
    /// The counters of a listener's requests to a virtual host, route and cluster.
    pub fn of(&self, listener: &Text, [host, route, cluster]: &[Text; 3]) -> Arc<RequestCounts> {
        let names = [listener.clone(), host.clone(), route.clone(), cluster.clone()];
        let mut series = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        series.entry(names).or_default().clone()
    }

    /// Names with their counters, in a lasting order.
    pub fn all(&self) -> BTreeMap<Names, Arc<RequestCounts>> {
        let series = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        series
            .iter()
            .map(|(names, counts)| (names.clone(), counts.clone()))
            .collect()
    }
}

fn labels(names: &Names) -> Labels {
    let labels = ["listener", "virtual_host", "route", "cluster"];
    labels.into_iter().zip(names.iter().map(ToString::to_string)).collect()
}

/// Tells of [`RequestMetrics`] when asked.
#[derive(Debug)]
pub(super) struct RequestCollector(pub(super) Arc<RequestMetrics>);

impl Collector for RequestCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let all = self.0.all();
        let help =
            "HTTP requests that are over, by what they were answered with (0: nothing) and Envoy's response flags";
        let mut family = encoder.encode_descriptor("underpass_http_requests", help, None, MetricType::Counter)?;
        for (names, counts) in &all {
            for (status, flags, count) in counts.counts() {
                let mut labels = labels(names);
                labels.push(("response_code", status.to_string()));
                labels.push(("response_flags", flags.to_string()));
                ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
            }
        }
        let help = "Tries of HTTP requests after their first";
        let mut family = encoder.encode_descriptor("underpass_http_retries", help, None, MetricType::Counter)?;
        for (names, counts) in &all {
            let retries = counts.retries.load(Ordering::Relaxed);
            ConstCounter::new(retries).encode(family.encode_family(&labels(names))?)?;
        }
        let help = "Bytes of tunnels (WebSockets, CONNECT), as they pass; received: from clients";
        let mut family = encoder.encode_descriptor("underpass_http_tunnel_bytes", help, None, MetricType::Counter)?;
        for (names, counts) in &all {
            for (direction, bytes) in ["received", "sent"].into_iter().zip(&counts.tunneled) {
                let bytes = bytes.load(Ordering::Relaxed);
                if bytes > 0 {
                    let mut labels = labels(names);
                    labels.push(("direction", direction.to_owned()));
                    ConstCounter::new(bytes).encode(family.encode_family(&labels)?)?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_status_and_flags() {
        let counts = RequestCounts::default();
        let mut flags = Flags::default();
        flags.add(Flags::CLIENT_GONE);
        counts.count(200, Flags::default(), 1);
        counts.count(200, Flags::default(), 3);
        counts.count(0, flags, 1);
        let expected = vec![(200, Flags::default(), 2), (0, flags, 1)];
        assert_eq!(counts.counts(), expected);
        assert_eq!(counts.retries.load(Ordering::Relaxed), 2);
    }
}
