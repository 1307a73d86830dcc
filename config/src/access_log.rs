//! Lines about requests that are over, in Envoy's words: what an access log's `log_format` and `filter` are there, and Istio's Telemetry makes of it.
//!
//! **One idea.** All that can be read is read when the configuration changes; a request is told only what some line asks for ([`WantedFields`]). Formats and
//! filters ask for the same facts ([`Facts`]), so that there is one who tells them.

mod expression;
mod filter;
mod format;
mod wanted;

use std::path::PathBuf;

use serde::{Serialize, Serializer};

pub use expression::{BadExpression, Expression};
pub use filter::{LogFilter, RESPONSE_FLAGS};
pub use format::{ISTIO_JSON, ISTIO_TEXT, JsonFormat, RequestFormat};
pub use wanted::WantedFields;

use crate::http::{Fact, Facts};

/// One log of requests.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RequestLog {
    /// A file that is appended to; `-` and `/dev/stdout` are standard output, `/dev/stderr` standard error.
    pub path: PathBuf,
    /// What a line says.
    #[serde(serialize_with = "as_written")]
    pub format: RequestFormat,
    /// Which requests have one.
    #[serde(skip_serializing_if = "LogFilter::is_empty")]
    pub filter: LogFilter,
}

fn as_written<S: Serializer>(format: &RequestFormat, serializer: S) -> Result<S::Ok, S::Error> {
    format!("{format:?}").serialize(serializer)
}

impl RequestLog {
    /// The line of a request, with its end; none, if it has none.
    pub fn line(&self, facts: &dyn Facts) -> Option<String> {
        let mut line = self.filter.passes(facts).then(|| self.format.line(facts))?;
        // Envoy leaves that to the format of a text, and Istio adds it.
        if !line.ends_with('\n') {
            line.push('\n');
        }
        Some(line)
    }

    /// What it asks for.
    fn facts<'a>(&'a self, found: &mut dyn FnMut(&'a Fact)) {
        self.format.facts(found);
        self.filter.facts(found);
    }
}
