//! The metrics of the kernel tier.
//!
//! Direction *sent* is from client to destination, as in the access log.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::flow_table::FlowTable;
use crate::offload::{Offload, TierCounts};

/// A label set.
type Labels = Vec<(&'static str, &'static str)>;

/// One family's series.
type Series = Vec<(Labels, u64)>;

/// Names of the directions, in the order of their counts.
const DIRECTIONS: [&str; 2] = ["sent", "received"];

#[derive(Debug)]
pub(super) struct OffloadMetrics {
    flows: Arc<FlowTable>,
    offload: Arc<Offload>,
}

impl OffloadMetrics {
    pub(super) fn new(flows: Arc<FlowTable>, offload: Arc<Offload>) -> Self {
        Self { flows, offload }
    }
}

impl Collector for OffloadMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let tiers = self.flows.tiers();
        let counts = &self.offload.counts;
        let gauge = ConstGauge::new(tiers.joined);
        let help = "Connections that are in the kernel now";
        let metric = encoder.encode_descriptor("underpass_offload_connections", help, None, gauge.metric_type())?;
        gauge.encode(metric)?;
        let refusals = counts.refusals().filter(|(_, count)| *count > 0);
        let families: [(&str, &str, Series); 5] = [
            (
                "underpass_offload_joins",
                "Connections moved into the kernel",
                vec![(Vec::new(), counts.joins())],
            ),
            (
                "underpass_offload_refusals",
                "Times that a connection was to be moved into the kernel and was not, by reason",
                refusals
                    .map(|(why, count)| (vec![("reason", why.word())], count))
                    .collect(),
            ),
            (
                "underpass_offload_parks",
                "Times that a sender had to wait until its receiver had read what the kernel had brought it",
                vec![(Vec::new(), counts.parks())],
            ),
            (
                "underpass_offload_messages",
                "Messages of connections in the kernel: those that passed by the proxy, and those that came to it because earlier \
                 ones were on their way there (behind), the receiver had no room (full) or was in a long system call (busy)",
                messages(&tiers),
            ),
            (
                "underpass_tier_bytes",
                "Bytes moved, by the tier that moved them",
                bytes(&tiers),
            ),
        ];
        for (name, help, series) in families {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (labels, value) in series {
                ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

fn messages(tiers: &TierCounts) -> Series {
    let outcomes = DIRECTIONS.into_iter().zip(tiers.kernel).flat_map(|(direction, tally)| {
        [
            (direction, "bypassed", tally.bypassed_messages),
            (direction, "behind", tally.behind),
            (direction, "full", tally.full),
            (direction, "busy", tally.busy),
        ]
    });
    outcomes
        .map(|(direction, outcome, count)| (vec![("direction", direction), ("outcome", outcome)], count))
        .collect()
}

fn bytes(tiers: &TierCounts) -> Series {
    let by_tier = DIRECTIONS.into_iter().enumerate().flat_map(|(place, direction)| {
        [
            (direction, "relay", tiers.relayed[place]),
            (direction, "kernel", tiers.kernel[place].bypassed_bytes),
        ]
    });
    by_tier
        .map(|(direction, tier, count)| (vec![("direction", direction), ("tier", tier)], count))
        .collect()
}
