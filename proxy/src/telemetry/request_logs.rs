//! The logs of requests in Envoy's words, as they are at the moment, and where their lines go.

use std::sync::Arc;

use underpass_config::http::Facts;
use underpass_config::{RequestLog, WantedFields};

use super::line_writer::LineWriter;

/// All of them. A request keeps those that there were when it came.
#[derive(Debug)]
pub struct RequestLogs {
    logs: Vec<(RequestLog, Arc<LineWriter>)>,
    wanted: WantedFields,
}

impl RequestLogs {
    /// Those that there are, each with where its lines go; nothing, if there is none.
    pub(super) fn new(logs: Vec<(RequestLog, Arc<LineWriter>)>) -> Option<Arc<Self>> {
        let wanted = WantedFields::of(logs.iter().map(|(log, _)| log));
        (!logs.is_empty()).then(|| Arc::new(Self { logs, wanted }))
    }

    /// What of requests is to be kept for them.
    pub fn wanted(&self) -> &WantedFields {
        &self.wanted
    }

    /// Queues the lines of a request that is over.
    pub fn write(&self, facts: &dyn Facts) {
        for (log, writer) in &self.logs {
            if let Some(line) = log.line(facts) {
                writer.write(line);
            }
        }
    }
}
