//! What the proxy tells of its work: metrics, the access log, and the last refusals.
//!
//! A refused connection says why in three places with the same word ([`crate::ending::Ending`]): its access-log line, the
//! `response_flags` of the metrics, and `/refusals`.

mod access_log;
mod control_plane;
mod istio;
mod labels;
mod line_writer;
mod metrics;
mod mirrors;
mod offload;
mod outliers;
mod request_logs;
mod requests;
mod writers;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use crate::istiod::Standing;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use underpass_config::Action;
use underpass_config::http::Http;

pub use access_log::{AccessLogWriter, Line, Value};
pub use istio::{Amounts, IstioRequests, Outcome, RequestEnds, RequestSeries};
pub use request_logs::{Entry, RequestLogs};
pub use requests::{RequestCounts, RequestMetrics};
pub use writers::AccessLogError;

use crate::export::Exporters;
use crate::flow_table::FlowTable;
use crate::identities::Identities;
use crate::offload::Offload;

/// Counts what would have been done on one policy's word.
pub type DryRunCounter = Counter;

/// Refusals kept for `/refusals`.
const REFUSALS_KEPT: usize = 128;

/// What came of asking an authorization server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// It let the request pass.
    Allowed,
    /// It did not.
    Denied,
    /// It has said nothing, and the request did not pass.
    Failed,
    /// It has said nothing, and the request passed nevertheless.
    FailureModeAllowed,
    /// It asked for changes that no request can have.
    Invalid,
}

/// Metrics and access log of one process.
#[derive(Debug)]
pub struct Telemetry {
    registry: Registry,
    /// Where access-log lines go.
    pub access_log: Arc<AccessLogWriter>,
    /// Queues to collectors.
    pub exporters: Arc<Exporters>,
    refusals: Mutex<VecDeque<serde_json::Value>>,
    dry_run: Family<Vec<(&'static str, String)>, Counter>,
    checks: Family<Vec<(&'static str, String)>, Counter>,
    config_updates: Family<Vec<(&'static str, &'static str)>, Counter>,
    accept_errors: Counter,
    jwt_refused: Family<Vec<(&'static str, String)>, Counter>,
    jwks_fetches: Family<Vec<(&'static str, String)>, Counter>,
    /// HTTP requests, by route and cluster.
    pub requests: Arc<RequestMetrics>,
    /// The same, as Istio counts them.
    pub istio: Arc<IstioRequests>,
    /// The HTTP clusters in force.
    pub clusters: outliers::Clusters,
}

impl Telemetry {
    /// Telemetry that counts `flows` and what `offload` does, and logs to `access_log`.
    pub fn new(flows: &Arc<FlowTable>, offload: &Arc<Offload>, access_log: Arc<AccessLogWriter>) -> Self {
        let mut registry = Registry::default();
        let dry_run = Family::default();
        let checks = Family::default();
        let config_updates = Family::default();
        let accept_errors = Counter::default();
        registry.register(
            "underpass_authorization_dry_run",
            "Connections and requests about which dry-run policies would have decided, by policy and what would have been done",
            dry_run.clone(),
        );
        registry.register(
            "underpass_ext_authz_checks",
            "Requests that authorization servers were asked about, by provider and what came of it",
            checks.clone(),
        );
        registry.register(
            "underpass_config_updates",
            "Configuration updates, by whether they were applied or rejected",
            config_updates.clone(),
        );
        registry.register(
            "underpass_accept_errors",
            "Failed accepts, such as for want of descriptors",
            accept_errors.clone(),
        );
        let jwt_refused = Family::default();
        let jwks_fetches = Family::default();
        registry.register(
            "underpass_http_jwt_refused",
            "HTTP requests that were refused for their token, or for want of one, by route table and reason",
            jwt_refused.clone(),
        );
        registry.register(
            "underpass_http_jwt_key_fetches",
            "Requests for the keys of an issuer of tokens, by what came of them",
            jwks_fetches.clone(),
        );
        let exporters = access_log.exporters().clone();
        registry.register(
            "underpass_exported",
            "Spans and entries of logs for collectors, by signal, cluster and what became of them",
            exporters.counted(),
        );
        for result in ["applied", "rejected"] {
            let _ = config_updates.get_or_create(&vec![("result", result)]);
        }
        registry.register_collector(Box::new(metrics::ConnectionMetrics::new(flows.clone())));
        registry.register_collector(Box::new(offload::OffloadMetrics::new(flows.clone(), offload.clone())));
        registry.register_collector(Box::new(metrics::ProcessMetrics::new(
            flows.clone(),
            access_log.clone(),
        )));
        let requests = Arc::<RequestMetrics>::default();
        registry.register_collector(Box::new(requests::RequestCollector(requests.clone())));
        let istio = Arc::new(IstioRequests::new(flows.cores()));
        registry.register_collector(Box::new(istio::IstioCollector(istio.clone())));
        let clusters = outliers::Clusters::default();
        registry.register_collector(Box::new(outliers::OutlierCollector(clusters.clone())));
        registry.register_collector(Box::new(mirrors::MirrorCollector(clusters.clone())));
        let refusals = Mutex::new(VecDeque::with_capacity(REFUSALS_KEPT));
        Self {
            registry,
            access_log,
            exporters,
            refusals,
            dry_run,
            checks,
            config_updates,
            accept_errors,
            jwt_refused,
            jwks_fetches,
            requests,
            istio,
            clusters,
        }
    }

    /// The same, which also tells how what this node is told comes in.
    #[must_use]
    pub fn with_control_plane(mut self, istiod: Option<Standing>, identities: Option<Identities>) -> Self {
        let metrics = control_plane::ControlPlaneMetrics::new(istiod, identities);
        self.registry.register_collector(Box::new(metrics));
        self
    }

    /// Opens what `http` asks for to be told of requests: logs of its tables' own, and queues to collectors. What is in force stays.
    pub fn prepare(&self, http: &Http) {
        self.exporters.prepare(http);
        self.access_log.prepare_own(http);
    }

    /// Keeps what `http`, which is in force, asks for, and what somebody is still served by.
    pub fn keep(&self, http: &Http) {
        self.exporters.keep(http);
        self.access_log.keep_own(http);
    }

    /// The metrics in OpenMetrics text.
    ///
    /// # Errors
    /// Only what formatting into memory can fail with.
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }

    /// Counts what would have been done with a connection, were a dry-run policy in force, and on which policy's word.
    pub fn count_dry_run(&self, policy: &str, would: Action) {
        self.dry_run(policy, would).inc();
    }

    /// By which it is counted. To look it up takes a lock that all share: who counts often keeps it.
    pub fn dry_run(&self, policy: &str, would: Action) -> DryRunCounter {
        let would = match would {
            Action::Allow => "allow",
            Action::Deny => "deny",
        };
        let labels = vec![("policy", policy.to_owned()), ("would", would.to_owned())];
        self.dry_run.get_or_create_owned(&labels)
    }

    /// Counts what came of asking an authorization server.
    pub fn count_check(&self, provider: &str, check: Check) {
        let result = match check {
            Check::Allowed => "allowed",
            Check::Denied => "denied",
            Check::Failed => "error",
            Check::FailureModeAllowed => "failure_mode_allowed",
            Check::Invalid => "invalid",
        };
        let labels = vec![("provider", provider.to_owned()), ("result", result.to_owned())];
        self.checks.get_or_create(&labels).inc();
    }

    /// Counts a request that was refused for its token, or for want of one.
    pub fn count_jwt_refused(&self, table: &str, reason: &'static str) {
        let labels = vec![("routes", table.to_owned()), ("reason", reason.to_owned())];
        self.jwt_refused.get_or_create(&labels).inc();
    }

    /// Counts a request for the keys of an issuer.
    pub fn count_jwks_fetch(&self, issuer: &str, cluster: &str, result: &'static str) {
        let named = [("issuer", issuer), ("cluster", cluster), ("result", result)];
        let labels = named.map(|(name, value)| (name, value.to_owned()));
        self.jwks_fetches.get_or_create(&labels.to_vec()).inc();
    }

    /// Counts a configuration update.
    pub fn count_config_update(&self, applied: bool) {
        let result = if applied { "applied" } else { "rejected" };
        self.config_updates.get_or_create(&vec![("result", result)]).inc();
    }

    /// Counts a failed accept.
    pub fn count_accept_error(&self) {
        self.accept_errors.inc();
    }

    /// Writes the line of a connection that has ended, and keeps it for `/refusals` if it never began.
    pub fn connection_ended(&self, line: &Line<'_>, refused: bool) {
        self.access_log.write(line);
        if refused {
            let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
            if refusals.len() == REFUSALS_KEPT {
                refusals.pop_front();
            }
            refusals.push_back(line.to_json());
        }
    }

    /// The last refused connections, oldest first.
    pub fn refusals(&self) -> Vec<serde_json::Value> {
        self.refusals
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .cloned()
            .collect()
    }
}
