//! One line for each connection, at its end, and for each HTTP request; logs of requests in Envoy's words are beside it (`request_logs`).
//!
//! The field names are Kmesh's, with identities, policy, reason, response flag and the kernel tier's bytes added; text and JSON carry the same
//! fields in the same order. Lines leave the cores through a bounded queue to a thread that writes them: a slow disk or terminal
//! never holds up traffic, and what the queue could not take is counted (`underpass_access_log_dropped_total`).

use std::convert::Infallible;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use underpass_config::http::Http;
use underpass_config::{AccessLog, Identity, LogFormat, NodeSettings, PolicyKey, RequestLog, ServiceKey, Workload};

use super::line_writer::LineWriter;
use super::request_logs::{Of, RequestLogs, Whither};
use super::writers::{AccessLogError, Writers};
use crate::ending::Ending;
use crate::entrance::Entrance;
use crate::export::Exporters;
use crate::opened::Opened;
use crate::socket::TcpQuality;

/// How long the last lines may take to be written when the process ends.
const LAST_LINES: Duration = Duration::from_secs(2);

/// Where the operator looks if a log of the node's cannot be opened.
const OF_NODE: &str = "node.access_log";

/// Where, if it is one that istiod has told of.
const OF_ISTIOD: &str = "the Telemetry and the extension provider that it comes from";

/// Everything a line says.
#[derive(Debug)]
pub struct Line<'a> {
    /// The client's address.
    pub source: SocketAddr,
    /// The client's workload.
    pub source_workload: Option<&'a Workload>,
    /// The identity that policy saw.
    pub source_identity: Option<&'a Identity>,
    /// The address connected to, or that would have been.
    pub destination: Option<SocketAddr>,
    /// The workload there.
    pub destination_workload: Option<&'a Workload>,
    /// The other end of the tunnel that carried it, if one did.
    pub tunnel: Option<SocketAddr>,
    /// The service asked for.
    pub service: Option<&'a ServiceKey>,
    /// When the client was accepted.
    pub started: SystemTime,
    /// Bytes from client to destination.
    pub sent: u64,
    /// Bytes from destination to client.
    pub received: u64,
    /// How many of the bytes sent, and of those received, went past the proxy.
    pub by_kernel: (u64, u64),
    /// What the kernel measured towards the destination.
    pub quality: TcpQuality,
    /// The way in.
    pub entrance: &'a Entrance,
    /// The policy that allowed or denied it.
    pub policy: Option<&'a PolicyKey>,
    /// How it ended.
    pub ending: Ending,
    /// More about that, in words.
    pub detail: Option<String>,
    /// When it ended.
    pub ended: SystemTime,
}

/// What a field of a line says.
#[derive(Debug)]
pub enum Value {
    /// A text.
    Text(String),
    /// A number.
    Number(u64),
}

impl Line<'_> {
    fn fields(&self) -> [(&'static str, Value); 29] {
        let text = |value: Option<String>| Value::Text(value.unwrap_or_else(|| "-".to_owned()));
        let workload = |w: Option<&Workload>| text(w.map(|w| w.name.to_string()));
        let namespace = |w: Option<&Workload>| text(w.map(|w| w.namespace.to_string()));
        let identity = |w: Option<&Workload>| text(w.map(|w| w.identity.to_string()));
        let hostname = |s: &ServiceKey| {
            s.as_ref()
                .split_once('/')
                .map_or(s.to_string(), |(_, host)| host.to_owned())
        };
        let lived = self.ended.duration_since(self.started).unwrap_or(Duration::ZERO);
        let word = |word: &str| Value::Text(word.to_owned());
        [
            ("src.addr", text(Some(self.source.to_string()))),
            ("src.workload", workload(self.source_workload)),
            ("src.namespace", namespace(self.source_workload)),
            ("src.identity", text(self.source_identity.map(ToString::to_string))),
            ("dst.addr", text(self.destination.map(|d| d.to_string()))),
            ("dst.service", text(self.service.map(hostname))),
            ("dst.workload", workload(self.destination_workload)),
            ("dst.namespace", namespace(self.destination_workload)),
            ("dst.identity", identity(self.destination_workload)),
            ("hbone.peer", text(self.tunnel.map(|peer| peer.to_string()))),
            (
                "connection_security_policy",
                text(self.tunnel.map(|_| "mutual_tls".to_owned())),
            ),
            (
                "start_time",
                text(Some(humantime::format_rfc3339_nanos(self.started).to_string())),
            ),
            ("direction", word(self.entrance.direction())),
            ("state", word("BPF_TCP_CLOSE")),
            ("sent_bytes", Value::Number(self.sent)),
            ("received_bytes", Value::Number(self.received)),
            ("kernel_sent_bytes", Value::Number(self.by_kernel.0)),
            ("kernel_received_bytes", Value::Number(self.by_kernel.1)),
            ("packet_loss", Value::Number(u64::from(self.quality.lost))),
            (
                "retransmissions",
                Value::Number(u64::from(self.quality.retransmissions)),
            ),
            ("srtt", text(Some(format!("{}us", self.quality.smoothed_rtt_us)))),
            ("min_rtt", text(Some(format!("{}us", self.quality.min_rtt_us)))),
            ("duration", text(Some(format!("{:.6}ms", lived.as_secs_f64() * 1000.0)))),
            ("listener", text(Some(self.entrance.name().to_string()))),
            ("policy", text(self.policy.map(ToString::to_string))),
            ("reason", word(self.ending.word())),
            ("response_flags", word(self.ending.response_flag())),
            ("detail", text(self.detail.clone())),
            (
                "time",
                text(Some(humantime::format_rfc3339_nanos(self.ended).to_string())),
            ),
        ]
    }

    /// The line as one JSON object.
    pub fn to_json(&self) -> serde_json::Value {
        json(&self.fields())
    }

    /// The line as `time access name=value …`.
    pub fn to_text(&self) -> String {
        text("access", self.ended, &self.fields())
    }
}

fn json(fields: &[(&'static str, Value)]) -> serde_json::Value {
    let fields = fields.iter().map(|(name, value)| {
        let value = match value {
            Value::Text(text) => serde_json::Value::String(text.clone()),
            Value::Number(number) => (*number).into(),
        };
        ((*name).to_owned(), value)
    });
    serde_json::Value::Object(fields.collect())
}

fn text(kind: &str, ended: SystemTime, fields: &[(&'static str, Value)]) -> String {
    let mut line = format!("{} {kind}", humantime::format_rfc3339_nanos(ended));
    for (name, value) in fields.iter().filter(|(name, _)| *name != "time") {
        let _ = match value {
            Value::Number(number) => write!(line, " {name}={number}"),
            Value::Text(text) if needs_quotes(text) => write!(line, " {name}={text:?}"),
            Value::Text(text) => write!(line, " {name}={text}"),
        };
    }
    line
}

fn needs_quotes(text: &str) -> bool {
    text.is_empty() || text.contains(|c: char| c.is_whitespace() || c.is_control() || c == '"' || c == '=')
}

#[derive(Debug)]
struct Sink {
    settings: AccessLog,
    of: Of,
    /// Where lines in the proxy's own format go; none: there are none.
    own: Option<Arc<LineWriter>>,
    requests: Option<Arc<RequestLogs>>,
}

/// The access logs, as `node.access_log` names them at the moment, and those that tables and chains have of their own.
#[derive(Debug)]
pub struct AccessLogWriter {
    sink: ArcSwap<Sink>,
    of_tables: Opened<Vec<RequestLog>, RequestLogs>,
    writers: Arc<Writers>,
    exporters: Arc<Exporters>,
}

impl AccessLogWriter {
    /// Opens the logs that the settings of `node` name; what others keep of them goes through `exporters`.
    ///
    /// # Errors
    /// When a file cannot be opened for appending.
    pub fn open(node: &NodeSettings, exporters: Arc<Exporters>) -> Result<Self, AccessLogError> {
        let writers = Arc::default();
        Ok(Self {
            sink: ArcSwap::from_pointee(Sink::open(node, &writers, &exporters)?),
            of_tables: Opened::default(),
            writers,
            exporters,
        })
    }

    /// One that writes nothing.
    #[cfg(test)]
    pub fn off() -> Self {
        let mut node = NodeSettings::default();
        node.access_log.format = LogFormat::Off;
        Self::open(&node, Arc::default()).expect("nothing is opened")
    }

    /// Where what others keep of logs goes through.
    pub fn exporters(&self) -> &Arc<Exporters> {
        &self.exporters
    }

    /// Checks that the settings of `node` can be put in force and returns what [`AccessLogWriter::replace`] takes; none when they are.
    ///
    /// # Errors
    /// When a file cannot be opened for appending.
    pub fn prepare(&self, node: &NodeSettings) -> Result<Option<Prepared>, AccessLogError> {
        let sink = self.sink.load();
        if sink.settings == node.access_log && sink.of == Of::node(node) {
            Ok(None)
        } else {
            Sink::open(node, &self.writers, &self.exporters).map(|s| Some(Prepared(s)))
        }
    }

    /// Puts what was prepared in force; lines already queued are still written where they belong.
    pub fn replace(&self, prepared: Prepared) {
        self.sink.store(Arc::new(prepared.0));
    }

    /// Opens the logs that `http` has of its own and that are not open yet. One whose file cannot be opened is told of and counted, is without it until that is tried
    /// again with the next configuration, and hinders nothing.
    pub fn prepare_own(&self, http: &Http) {
        let sink = self.sink.load();
        let fit = |opened: &RequestLogs| opened.is_whole() && *opened.of() == sink.of;
        let open = |logs: &Vec<RequestLog>| {
            let lines = |path: &Path| -> Result<Whither, Infallible> {
                Ok(match self.writers.try_open(path, OF_ISTIOD) {
                    Some(writer) => Whither::Lines(writer),
                    None => Whither::Nowhere(self.writers.clone()),
                })
            };
            let Ok(opened) = RequestLogs::open(logs, &sink.of, lines, &self.exporters);
            Arc::new(opened)
        };
        self.of_tables
            .prepare(http.logs().filter(|logs| !logs.is_empty()), fit, open);
    }

    /// Keeps those that `http` has of its own, and those that somebody is still served by.
    pub fn keep_own(&self, http: &Http) {
        self.prepare_own(http);
        self.of_tables.let_go();
    }

    /// Queues a line.
    pub fn write(&self, line: &Line<'_>) {
        let sink = self.sink.load();
        let Some(writer) = &sink.own else { return };
        let mut text = match sink.settings.format {
            LogFormat::Off => return,
            LogFormat::Text => line.to_text(),
            LogFormat::Json => line.to_json().to_string(),
        };
        text.push('\n');
        writer.write(text);
    }

    /// Queues a line of another kind than connections'.
    pub fn write_fields(&self, kind: &str, ended: SystemTime, fields: &[(&'static str, Value)]) {
        let sink = self.sink.load();
        let Some(writer) = &sink.own else { return };
        let mut line = match sink.settings.format {
            LogFormat::Off => return,
            LogFormat::Text => text(kind, ended, fields),
            LogFormat::Json => json(fields).to_string(),
        };
        line.push('\n');
        writer.write(line);
    }

    /// Whether lines in the proxy's own format are written at all.
    pub fn is_on(&self) -> bool {
        self.sink.load().own.is_some()
    }

    /// The logs in Envoy's words, if there are any, of those who have `own`; where these are none, the node's.
    pub fn request_logs(&self, own: Option<&Arc<Vec<RequestLog>>>) -> Option<Arc<RequestLogs>> {
        match own {
            Some(own) => self.of_tables.of(own),
            None => self.sink.load().requests.clone(),
        }
    }

    /// Lines that were dropped.
    pub fn dropped(&self) -> u64 {
        self.writers.dropped()
    }

    /// How often a file of a log that istiod has told of could not be opened.
    pub fn failures(&self) -> u64 {
        self.writers.failures()
    }

    /// Writes out what is queued, if that does not take too long, and stops.
    pub fn close(&self) {
        let deadline = Instant::now() + LAST_LINES;
        // Held until they have written: nobody else may hold them any more.
        let writers = self.writers.take();
        let sink = self.sink.load();
        self.sink.store(Arc::new(Sink::closed(&sink.settings, sink.of.clone())));
        self.of_tables.clear();
        for writer in writers {
            writer.finish(deadline);
        }
    }
}

/// An opened log that is not in force yet.
#[derive(Debug)]
pub struct Prepared(Sink);

impl Sink {
    fn open(node: &NodeSettings, writers: &Writers, exporters: &Exporters) -> Result<Self, AccessLogError> {
        let settings = &node.access_log;
        let mut sink = Self::closed(settings, Of::node(node));
        sink.settings = settings.clone();
        if settings.format != LogFormat::Off {
            sink.own = Some(writers.open(&settings.path, OF_NODE)?);
        }
        if settings.requests.is_empty() {
            return Ok(sink);
        }
        let lines = |path: &Path| writers.open(path, OF_NODE).map(Whither::Lines);
        let requests = RequestLogs::open(&settings.requests, &sink.of, lines, exporters)?;
        sink.requests = Some(Arc::new(requests));
        Ok(sink)
    }

    /// Nothing is written.
    fn closed(settings: &AccessLog, of: Of) -> Self {
        Self {
            of,
            settings: AccessLog {
                format: LogFormat::Off,
                path: settings.path.clone(),
                requests: Vec::new(),
            },
            own: None,
            requests: None,
        }
    }
}

#[cfg(test)]
mod tests;
