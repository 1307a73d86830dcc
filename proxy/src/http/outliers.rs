//! Outlier detection at work: what comes of requests is told to their cluster, intervals come to their end, and what happens to endpoints is logged in the words
//! of Envoy's event log.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use underpass_config::Text;
use underpass_config::http::{Cluster, ClusterEndpoint, Http, Outcome, OutlierAction, OutlierEvent};

use crate::node::Node;

/// Tells a cluster what came of a try at one of its endpoints.
pub fn note(cluster: &Cluster, endpoint: &Arc<ClusterEndpoint>, outcome: Outcome, took: Duration) {
    let events = cluster.note(endpoint, outcome, took, || fastrand::u32(..));
    tell(cluster, &events);
}

fn tell(cluster: &Cluster, events: &[OutlierEvent]) {
    for event in events {
        let (cluster, upstream_url, num_ejections) = (&cluster.settings.name, event.endpoint, event.ejections);
        match event.action {
            OutlierAction::Eject(kind, enforced) => {
                tracing::info!(%cluster, %upstream_url, r#type = %kind, num_ejections, enforced, "outlier detection: EJECT");
            }
            OutlierAction::Uneject => {
                tracing::info!(%cluster, %upstream_url, num_ejections, "outlier detection: UNEJECT");
            }
        }
    }
}

/// Ends the intervals of all clusters of the configuration in force, for as long as the node lives.
pub async fn follow(node: Arc<Node>) {
    let mut changes = node.changes();
    let node = Arc::downgrade(&node);
    let mut due: HashMap<Text, Instant> = HashMap::new();
    loop {
        let Some(next) = node.upgrade().map(|node| {
            let http = node.snapshot().config.http.clone();
            let next = end_intervals(&http, &mut due);
            node.telemetry.clusters.store(http);
            next
        }) else {
            return;
        };
        let wait = async {
            match next {
                Some(next) => tokio::time::sleep_until(next.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = wait => {}
        }
    }
}

/// Ends those that are over, and says when the next one is.
fn end_intervals(http: &Http, due: &mut HashMap<Text, Instant>) -> Option<Instant> {
    let now = Instant::now();
    due.retain(|name, _| {
        http.cluster(name)
            .is_some_and(|cluster| cluster.settings.outliers.is_some())
    });
    for (name, cluster) in &http.clusters {
        let Some(settings) = &cluster.settings.outliers else {
            continue;
        };
        let end = due.entry(name.clone()).or_insert_with(|| now + settings.interval);
        // Of one that has become shorter, no more than it is now is waited for.
        *end = (*end).min(now + settings.interval);
        if *end <= now {
            tell(cluster, &cluster.compare(now, || fastrand::u32(..)));
            *end = now + settings.interval;
        }
    }
    due.values().min().copied()
}
