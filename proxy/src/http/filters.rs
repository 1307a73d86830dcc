//! What a request goes through before it is routed: the filters of its table, in their order, each of which may turn it away.
//!
//! A request is at the mercy of the first filter that refuses it; what a filter finds out (who sent it, which rule asks for a server) is for
//! those behind it alone. What filters ask of the connection is settled once for each configuration, and shared by its requests.

mod rbac;

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use http::{Response, StatusCode};
use underpass_config::Text;
use underpass_config::http::{Asking, Filter, Peer, RouteTable};

use super::connection::Connection;
use super::download::Download;
use super::intake::Intake;
use super::record::Record;
use super::reply::{Audience, reply};
use crate::node::Snapshot;
use crate::session::Session;

/// What filters have settled for a connection.
#[derive(Debug)]
pub struct Settled {
    /// Of the configuration that it was settled by.
    generation: u64,
    /// The client's SPIFFE identity.
    principal: Option<String>,
    /// Of each filter, in the table's order; none: it asks nothing of the connection alone.
    filters: Vec<Option<rbac::SettledRbac>>,
}

/// Where a connection keeps it.
#[derive(Debug, Default)]
pub struct SettledOnce(Mutex<Option<Arc<Settled>>>);

impl SettledOnce {
    fn of(&self, connection: &Connection, snapshot: &Snapshot, table: &RouteTable) -> Arc<Settled> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(settled) = kept.as_ref().filter(|kept| kept.generation == snapshot.generation) {
            return settled.clone();
        }
        let settled = Arc::new(Settled::new(connection, snapshot, table));
        *kept = Some(settled.clone());
        settled
    }
}

impl Settled {
    fn new(connection: &Connection, snapshot: &Snapshot, table: &RouteTable) -> Self {
        let config = &snapshot.config;
        let source = connection.session.source.refreshed(&config.mesh, &config.node);
        let mut settled = Self {
            generation: snapshot.generation,
            principal: source.identity().map(ToString::to_string),
            filters: Vec::new(),
        };
        let peer = settled.peer(connection);
        let filters = table.filters.iter().map(|filter| match filter {
            Filter::Rbac(rbac) => Some(rbac::SettledRbac::new(rbac, &peer)),
        });
        settled.filters = filters.collect();
        settled
    }

    fn peer<'a>(&'a self, connection: &Connection) -> Peer<'a> {
        peer(
            self.principal.as_deref(),
            connection.session.source.ip(),
            connection.local,
        )
    }
}

fn peer(principal: Option<&str>, address: IpAddr, destination: SocketAddr) -> Peer<'_> {
    Peer {
        principal,
        address,
        destination,
        // A listener has no TLS of its own.
        server_name: None,
    }
}

/// Judges a connection that came to `local`, and carries no HTTP, by the policies of the table that its requests would have been routed by.
///
/// # Errors
/// Why it does not go on.
pub fn judge_connection(session: &Session, local: SocketAddr, table: Option<&RouteTable>) -> Result<(), String> {
    let Some(table) = table else {
        return Err("its route table is gone".to_owned());
    };
    let config = &session.node.snapshot().config;
    let source = session.source.refreshed(&config.mesh, &config.node);
    let principal = source.identity().map(ToString::to_string);
    let peer = peer(principal.as_deref(), source.ip(), local);
    for rbac in &table.connection_rules {
        rbac::judge_connection(rbac, &peer, &session.node.telemetry)?;
    }
    Ok(())
}

/// Why a request does not pass.
struct Refusal {
    status: StatusCode,
    text: &'static str,
    /// `%RESPONSE_CODE_DETAILS%`.
    details: String,
}

/// What filters have found out of a request, for those behind them and for its answer.
#[derive(Debug, Default)]
pub struct Findings {
    /// What its token claims, which was verified.
    pub claims: Option<Arc<serde_json::Value>>,
    /// Which policies shadow rules have matched: by the name under which Envoy's tell it, prefix and all
    /// (`PREFIXshadow_effective_policy_id`).
    pub shadow: Vec<(String, Text)>,
    /// Its header fields are not what they were: it may be another route's.
    pub is_edited: bool,
}

/// Sends a request through the filters of its table.
///
/// # Errors
/// The answer to one that does not pass.
pub async fn pass(
    connection: &Connection,
    snapshot: &Snapshot,
    table: &RouteTable,
    intake: &mut Intake,
    audience: Audience,
    record: &mut Record,
) -> Result<Findings, Response<Download>> {
    let mut findings = Findings::default();
    if table.filters.is_empty() {
        return Ok(findings);
    }
    let settled = connection.settled.of(connection, snapshot, table);
    let peer = settled.peer(connection);
    for (filter, of_connection) in table.filters.iter().zip(&settled.filters) {
        let outcome = match (filter, of_connection) {
            (Filter::Rbac(rules), Some(of_connection)) => {
                let asking = Asking {
                    request: intake.view(),
                    claims: findings.claims.as_deref(),
                };
                let (outcome, shadow) = of_connection.judge(rules, &peer, &asking, &connection.session.node.telemetry);
                findings.shadow.extend(shadow);
                outcome
            }
            // What was not settled is not known, and what is not known does not pass.
            (Filter::Rbac(_), None) => Err(rbac::refusal("none")),
        };
        if let Err(refusal) = outcome {
            record.details = refusal.details.into();
            return Err(reply(audience, refusal.status, refusal.text));
        }
    }
    Ok(findings)
}
