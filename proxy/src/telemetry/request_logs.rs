//! The logs of requests in Envoy's words, as they are at the moment, and where their lines go.

use std::sync::Arc;

use underpass_config::http::Facts;
use underpass_config::{GrpcLog, LogTo, OtlpLog, RequestLog, WantedFields};

use super::line_writer::LineWriter;
use crate::export::Exporter;

/// A request that is over, as logs are told of it.
pub trait Entry: Facts {
    /// Its entry in a log of OpenTelemetry's, encoded.
    fn log_record(&self, log: &OtlpLog) -> Vec<u8>;

    /// Its entry in a log of Envoy's access log service, encoded.
    fn http_entry(&self, log: &GrpcLog) -> Vec<u8>;
}

/// Where what a log says goes.
#[derive(Debug)]
pub(super) enum Whither {
    /// Into a file, as lines.
    Lines(Arc<LineWriter>),
    /// To whoever keeps it.
    Collector(Arc<Exporter>),
}

/// All of them. A request keeps those that there were when it came.
#[derive(Debug)]
pub struct RequestLogs {
    logs: Vec<(RequestLog, Whither)>,
    wanted: WantedFields,
}

impl RequestLogs {
    /// Those that there are, each with where its entries go; nothing, if there is none.
    pub(super) fn new(logs: Vec<(RequestLog, Whither)>) -> Option<Arc<Self>> {
        let wanted = WantedFields::of(logs.iter().map(|(log, _)| log));
        (!logs.is_empty()).then(|| Arc::new(Self { logs, wanted }))
    }

    /// What of requests is to be kept for them.
    pub fn wanted(&self) -> &WantedFields {
        &self.wanted
    }

    /// Queues the entries of a request that is over.
    pub fn write<E: Entry>(&self, entry: &E) {
        for (log, whither) in &self.logs {
            if !log.filter.passes(entry) {
                continue;
            }
            match (&log.to, whither) {
                (LogTo::File { format, .. }, Whither::Lines(writer)) => writer.write(format.line(entry)),
                (LogTo::OpenTelemetry(log), Whither::Collector(exporter)) => exporter.push(entry.log_record(log)),
                (LogTo::Grpc(log), Whither::Collector(exporter)) => exporter.push(entry.http_entry(log)),
                // Each was opened for what it is.
                _ => {}
            }
        }
    }
}
