//! Logs in Envoy's words, of requests and of connections that nothing is known of above TCP: where their entries go, and what of a request is to be kept for them.

use std::path::Path;
use std::sync::Arc;

use underpass_config::http::Facts;
use underpass_config::{GrpcLog, LogTo, NodeSettings, OtlpLog, RequestLog, Text, WantedFields};

use super::line_writer::LineWriter;
use super::writers::Writers;
use crate::export::{self, Envelope, Exporter, Exporters, Otlp, als};

/// A request or a connection that is over, as logs are told of it.
pub trait Entry: Facts {
    /// Its entry in a log of OpenTelemetry's, encoded.
    fn log_record(&self, log: &OtlpLog) -> Vec<u8>;

    /// Its entry in a log of Envoy's access log service, encoded.
    fn http_entry(&self, log: &GrpcLog) -> Vec<u8>;
}

/// Of whom logs that others keep say that they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Of {
    name: Text,
    cluster: Text,
    zone: Text,
}

impl Of {
    pub(super) fn node(node: &NodeSettings) -> Self {
        Self {
            name: node.name.clone(),
            cluster: node.cluster_id.clone(),
            zone: node.locality.zone.clone(),
        }
    }

    /// The labels of a log of OpenTelemetry's, in Envoy's words, and what else it is said to be of.
    fn otlp(&self, log: &OtlpLog) -> Envelope {
        let own = [
            ("log_name", &log.log_name),
            ("zone_name", &self.zone),
            ("cluster_name", &self.cluster),
            ("node_name", &self.name),
        ];
        let own = own.into_iter().filter(|_| log.has_builtin_labels);
        let own = own.map(|(name, value)| export::text(name, &**value));
        let said = log.resource.iter().map(|(name, value)| export::text(name, &**value));
        Envelope::Logs(Otlp::of_logs(own.chain(said).collect()))
    }

    fn entries(&self, log: &GrpcLog) -> Envelope {
        Envelope::Entries(als::Identifier {
            node: Some(als::Node {
                id: self.name.to_string(),
                cluster: self.cluster.to_string(),
            }),
            log_name: log.log_name.to_string(),
        })
    }
}

/// Where what a log says goes.
#[derive(Debug)]
pub(super) enum Whither {
    /// Into a file, as lines.
    Lines(Arc<LineWriter>),
    /// Its file could not be opened: there its lines are counted.
    Nowhere(Arc<Writers>),
    /// To whoever keeps it.
    Collector(Arc<Exporter>),
}

/// Logs that belong together. A request keeps those that there were when it came.
#[derive(Debug)]
pub struct RequestLogs {
    logs: Vec<(RequestLog, Whither)>,
    of: Of,
    wanted: WantedFields,
}

impl RequestLogs {
    /// Opens `logs`, whose files `lines` opens.
    ///
    /// # Errors
    /// Those of `lines`.
    pub(super) fn open<E>(
        logs: &[RequestLog],
        of: &Of,
        lines: impl Fn(&Path) -> Result<Whither, E>,
        exporters: &Exporters,
    ) -> Result<Self, E> {
        let opened = logs.iter().map(|log| {
            let whither = match &log.to {
                LogTo::File { path, .. } => lines(path)?,
                LogTo::OpenTelemetry(otlp) => Whither::Collector(exporters.open(&otlp.export, of.otlp(otlp))),
                LogTo::Grpc(grpc) => Whither::Collector(exporters.open(&grpc.export, of.entries(grpc))),
            };
            Ok((log.clone(), whither))
        });
        Ok(Self {
            logs: opened.collect::<Result<_, E>>()?,
            of: of.clone(),
            wanted: WantedFields::of(logs),
        })
    }

    /// Whether each of them has somewhere to go.
    pub(super) fn is_whole(&self) -> bool {
        let is_lost = |(_, whither): &(_, Whither)| matches!(whither, Whither::Nowhere(_));
        !self.logs.iter().any(is_lost)
    }

    /// Of whom they say that they are.
    pub(super) fn of(&self) -> &Of {
        &self.of
    }

    /// What of requests is to be kept for them.
    pub fn wanted(&self) -> &WantedFields {
        &self.wanted
    }

    /// Queues the entries of a request, or connection, that is over.
    pub fn write<E: Entry>(&self, entry: &E) {
        for (log, whither) in &self.logs {
            if !log.filter.passes(entry) {
                continue;
            }
            match (&log.to, whither) {
                (LogTo::File { format, .. }, Whither::Lines(writer)) => writer.write(format.line(entry)),
                (LogTo::File { .. }, Whither::Nowhere(writers)) => writers.drop_line(),
                (LogTo::OpenTelemetry(log), Whither::Collector(exporter)) => exporter.push(entry.log_record(log)),
                (LogTo::Grpc(log), Whither::Collector(exporter)) => exporter.push(entry.http_entry(log)),
                // Each was opened for what it is.
                _ => {}
            }
        }
    }
}
