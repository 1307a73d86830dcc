//! What outlier detection has found and done, cluster by cluster, under the names of Envoy's `outlier_detection.*`.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use underpass_config::http::{Cluster, Http, OutlierKind};

/// The clusters in force.
pub type Clusters = Arc<ArcSwap<Http>>;

/// Tells of them when asked.
#[derive(Debug)]
pub(super) struct OutlierCollector(pub(super) Clusters);

impl Collector for OutlierCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let http = self.0.load();
        let mut clusters: Vec<&Arc<Cluster>> = http.clusters.values().collect();
        clusters.retain(|cluster| cluster.settings.outliers.is_some());
        clusters.sort_by_key(|cluster| &cluster.settings.name);
        let name = |cluster: &Cluster| ("cluster", cluster.settings.name.to_string());
        let help = "Endpoints of HTTP clusters that are ejected";
        let mut family =
            encoder.encode_descriptor("underpass_http_outlier_ejections_active", help, None, MetricType::Gauge)?;
        for cluster in &clusters {
            let ejected = cluster
                .endpoints()
                .iter()
                .filter(|endpoint| endpoint.is_ejected())
                .count();
            let ejected = i64::try_from(ejected).unwrap_or(i64::MAX);
            ConstGauge::new(ejected).encode(family.encode_family(&[name(cluster)])?)?;
        }
        let help = "Endpoints that were not ejected because as many as may be were";
        let mut family = encoder.encode_descriptor(
            "underpass_http_outlier_ejections_overflow",
            help,
            None,
            MetricType::Counter,
        )?;
        for cluster in &clusters {
            let overflowed = cluster.detector().overflowed();
            ConstCounter::new(overflowed).encode(family.encode_family(&[name(cluster)])?)?;
        }
        type Of = fn((u64, u64)) -> u64;
        let kinds: [(&str, &str, Of); 2] = [
            (
                "underpass_http_outlier_ejections_detected",
                "Endpoints found to be outliers, by how",
                |(detected, _)| detected,
            ),
            (
                "underpass_http_outlier_ejections_enforced",
                "Endpoints ejected, by why",
                |(_, enforced)| enforced,
            ),
        ];
        for (metric, help, of) in kinds {
            let mut family = encoder.encode_descriptor(metric, help, None, MetricType::Counter)?;
            for cluster in &clusters {
                for kind in OutlierKind::ALL {
                    let labels = [name(cluster), ("type", kind.to_string())];
                    let count = of(cluster.detector().ejections(kind));
                    ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
                }
            }
        }
        Ok(())
    }
}
