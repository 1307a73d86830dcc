//! By what the requests of a connection are counted: looked up when something of it is new to the connection, and kept.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use underpass_config::Text;
use underpass_config::http::MetricSettings;

use super::connection::Connection;
use crate::flow_table::PathEnds;
use crate::telemetry::{Amounts, Outcome, RequestEnds, RequestSeries};

/// Where a connection keeps what it was counted by last.
#[derive(Debug, Default)]
pub struct Counting(Mutex<Vec<Kept>>);

/// More than these are not kept: a client that asks in ever new ways is looked up anew.
const MOST_KEPT: usize = 16;

#[derive(Debug)]
struct Kept {
    /// Of the configuration by which the ends were found.
    generation: u64,
    endpoint: Option<SocketAddr>,
    cluster: Option<Text>,
    is_grpc: bool,
    outcome: Outcome,
    series: Arc<RequestSeries>,
}

/// Whom a request asked.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// The endpoint of the last try.
    pub endpoint: Option<SocketAddr>,
    /// The cluster. (Its name is shared by all cores: it is looked at, not held.)
    pub cluster: Option<&'a Text>,
    /// Whether it is gRPC.
    pub is_grpc: bool,
}

impl Counting {
    /// Counts a request of `connection` that is over.
    pub fn count(&self, connection: &Connection, asked: Asked<'_>, outcome: Outcome, amounts: &Amounts) {
        let generation = connection.session.node.generation();
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_it = |kept: &&Kept| {
            kept.generation == generation
                && (kept.endpoint, kept.cluster.as_ref(), kept.is_grpc)
                    == (asked.endpoint, asked.cluster, asked.is_grpc)
                && kept.outcome == outcome
        };
        if let Some(known) = kept.iter().find(is_it) {
            return known.series.count(amounts);
        }
        kept.retain(|kept| kept.generation == generation);
        if kept.len() >= MOST_KEPT {
            kept.clear();
        }
        let node = &connection.session.node;
        let series = node
            .telemetry
            .istio
            .of(connection.session.core, &ends(connection, asked), &outcome);
        series.count(amounts);
        kept.push(Kept {
            generation,
            endpoint: asked.endpoint,
            cluster: asked.cluster.cloned(),
            is_grpc: asked.is_grpc,
            outcome,
            series,
        });
    }
}

fn ends(connection: &Connection, asked: Asked<'_>) -> RequestEnds {
    let session = &connection.session;
    let config = &session.node.snapshot().config;
    let source = session.source.refreshed(&config.mesh, &config.node);
    let destination = (asked.endpoint).and_then(|endpoint| {
        config
            .mesh
            .workload_at(&config.node.network, endpoint.ip().to_canonical())
    });
    let ends = PathEnds::new(source.workload(), destination, None, &config.node);
    let cluster = asked.cluster.and_then(|cluster| config.http.cluster(cluster));
    let table = config.http.tables.get(&connection.routes);
    RequestEnds {
        ends: ends.carried_by(session.entrance.transport(&session.source)),
        service: cluster.and_then(|cluster| cluster.settings.service.clone()),
        settings: table.map_or_else(MetricSettings::unsaid, |table| table.metrics.clone()),
        is_grpc: asked.is_grpc,
    }
}
