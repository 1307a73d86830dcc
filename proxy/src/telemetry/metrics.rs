//! The connection metrics, gathered from the flow table when they are asked for.
//!
//! Nothing is formatted or looked up while bytes move: a scrape walks the paths, turns each into its label sets, and adds up
//! paths that have the same (each core has its own). Directions: for Istio, *received* is what the client sent and *sent* what
//! it got back, for both reporters. For Kmesh, *sent* is what the reporter's own side sent.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::AccessLogWriter;
use super::labels::{self, Labels, Reporter};
use crate::ending::Ending;
use crate::flow_table::{FlowTable, PathCounts, PathEnds, Transport};

/// One family's series.
type Series = BTreeMap<Labels, u64>;

/// The twelve connection metrics.
#[derive(Debug)]
pub(super) struct ConnectionMetrics {
    flows: Arc<FlowTable>,
}

/// Series of one owner (Istio, Kmesh's workloads, Kmesh's services), by what they count.
#[derive(Default)]
struct Group {
    opened: Series,
    closed: Series,
    sent: Series,
    received: Series,
}

#[derive(Default)]
struct Scrape {
    istio: Group,
    kmesh_workload: Group,
    kmesh_service: Group,
}

fn add(series: &mut Series, labels: Labels, value: u64) {
    *series.entry(labels).or_default() += value;
}

impl Group {
    fn add_established(&mut self, labels: Labels, reporter: Reporter, counts: &PathCounts) {
        let (sent, received) = match reporter {
            Reporter::Source => (counts.sent, counts.received),
            Reporter::Destination => (counts.received, counts.sent),
        };
        if counts.established_ended + counts.established_open == 0 {
            return;
        }
        add(
            &mut self.opened,
            labels.clone(),
            counts.established_ended + counts.established_open,
        );
        add(&mut self.closed, labels.clone(), counts.established_ended);
        add(&mut self.sent, labels.clone(), sent);
        add(&mut self.received, labels, received);
    }

    /// Istio counts refused connections too, as opened and closed at once, with the flag that says why.
    fn add_all(&mut self, labels: impl Fn(&'static str) -> Labels, counts: &PathCounts) {
        let open = labels("-");
        let ended: u64 = counts.ended.iter().sum();
        add(&mut self.opened, open.clone(), ended + counts.established_open);
        for (ending, count) in Ending::ALL.into_iter().zip(counts.ended) {
            if count > 0 {
                add(&mut self.closed, labels(ending.response_flag()), count);
            }
        }
        add(&mut self.sent, open.clone(), counts.received);
        add(&mut self.received, open, counts.sent);
    }

    fn encode(&self, prefix: &str, subject: &str, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let families = [
            ("connections_opened", "Connections opened", &self.opened),
            ("connections_closed", "Connections closed", &self.closed),
            ("sent_bytes", "Bytes sent, on open connections too", &self.sent),
            (
                "received_bytes",
                "Bytes received, on open connections too",
                &self.received,
            ),
        ];
        for (name, help, series) in families {
            let (name, help) = (format!("{prefix}_{name}"), format!("{help}, {subject}"));
            let mut family = encoder.encode_descriptor(&name, &help, None, MetricType::Counter)?;
            for (labels, value) in series {
                ConstCounter::new(*value).encode(family.encode_family(labels)?)?;
            }
        }
        Ok(())
    }
}

impl Scrape {
    fn add(&mut self, ends: &PathEnds, reporter: Reporter, counts: &PathCounts) {
        let labels = |flags| labels::istio(ends, reporter, flags);
        self.istio.add_all(labels, counts);
        self.kmesh_workload
            .add_established(labels::kmesh_workload(ends, reporter), reporter, counts);
        if let Some(labels) = labels::kmesh_service(ends, reporter) {
            self.kmesh_service.add_established(labels, reporter, counts);
        }
    }
}

impl ConnectionMetrics {
    pub(super) fn new(flows: Arc<FlowTable>) -> Self {
        Self { flows }
    }

    fn scrape(&self) -> Scrape {
        let mut scrape = Scrape::default();
        for (ends, counts) in self.flows.paths() {
            let (source, destination) = match &ends.transport {
                Transport::Plain => (true, ends.destination_is_local),
                Transport::TunnelOut => (true, false),
                Transport::TunnelIn(_) => (false, true),
                Transport::Waypoint { service, .. } => {
                    let labels = |flags| labels::waypoint_tcp(&ends, service.as_deref(), flags);
                    scrape.istio.add_all(labels, &counts);
                    continue;
                }
            };
            if source {
                scrape.add(&ends, Reporter::Source, &counts);
            }
            if destination {
                scrape.add(&ends, Reporter::Destination, &counts);
            }
        }
        scrape
    }
}

impl Collector for ConnectionMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let scrape = self.scrape();
        scrape.istio.encode("istio_tcp", "as Istio counts them", &mut encoder)?;
        scrape
            .kmesh_workload
            .encode("kmesh_tcp_workload", "by destination workload", &mut encoder)?;
        scrape
            .kmesh_service
            .encode("kmesh_tcp", "by destination service", &mut encoder)
    }
}

/// Figures of the process itself.
#[derive(Debug)]
pub(super) struct ProcessMetrics {
    flows: Arc<FlowTable>,
    access_log: Arc<AccessLogWriter>,
}

impl ProcessMetrics {
    pub(super) fn new(flows: Arc<FlowTable>, access_log: Arc<AccessLogWriter>) -> Self {
        Self { flows, access_log }
    }
}

impl Collector for ProcessMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let open = ConstGauge::new(i64::from(self.flows.open_connections().total()));
        let help = "Client connections open now, those still being connected included";
        let metric = encoder.encode_descriptor("underpass_connections_open", help, None, open.metric_type())?;
        open.encode(metric)?;
        let parked = ConstGauge::new(i64::from(self.flows.open_connections().parked()));
        let help = "Client connections of HTTP/1.1 that wait for a request and hold nothing but their socket";
        let metric =
            encoder.encode_descriptor("underpass_http_parked_connections", help, None, parked.metric_type())?;
        parked.encode(metric)?;
        self.encode_tunnels(&mut encoder)?;
        let dropped = ConstCounter::new(self.access_log.dropped());
        let help = "Access-log lines dropped because their destination was too slow, or could not be opened";
        let metric = encoder.encode_descriptor("underpass_access_log_dropped", help, None, dropped.metric_type())?;
        dropped.encode(metric)?;
        let failures = ConstCounter::new(self.access_log.failures());
        let help = "How often the file of an access log that istiod tells of could not be opened";
        let name = "underpass_access_log_open_failures";
        failures.encode(encoder.encode_descriptor(name, help, None, failures.metric_type())?)
    }
}

impl ProcessMetrics {
    fn encode_tunnels(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let budget = &self.flows.open_connections().tunnels().budget;
        let reserved = ConstGauge::new(budget.reserved());
        let help = "What HBONE peers may send to this node, or have sent and nobody has taken (node.hbone.buffer)";
        let name = "underpass_hbone_reserved_bytes";
        reserved.encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)?;
        for (name, help, count) in [
            (
                "underpass_hbone_connections_without_buffer",
                "HBONE connections that were refused because node.hbone.buffer was spent",
                budget.refused(),
            ),
            (
                "underpass_hbone_windows_held_back",
                "Windows of HBONE connections that were to grow and could not, for want of node.hbone.buffer",
                budget.held_back(),
            ),
        ] {
            ConstCounter::new(count).encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)?;
        }
        Ok(())
    }
}
