//! What came of copies of requests, cluster by cluster.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use underpass_config::http::{Cluster, MirrorEnd};

use super::outliers::Clusters;

/// Tells of them when asked.
#[derive(Debug)]
pub(super) struct MirrorCollector(pub(super) Clusters);

impl Collector for MirrorCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let http = self.0.load();
        let mut clusters: Vec<&Arc<Cluster>> = http.clusters.values().collect();
        clusters.retain(|cluster| !cluster.mirrored().is_empty());
        clusters.sort_by_key(|cluster| &cluster.settings.name);
        let help = "Copies of HTTP requests to a cluster, by what came of them";
        let name = "underpass_http_mirrored_requests";
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for cluster in &clusters {
            for (end, word) in MirrorEnd::ALL {
                let labels = [
                    ("cluster", cluster.settings.name.to_string()),
                    ("result", word.to_owned()),
                ];
                ConstCounter::new(cluster.mirrored().of(end)).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}
