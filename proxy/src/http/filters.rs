//! What a request goes through before it is routed: the filters of its table, in their order, each of which may turn it away.
//!
//! A request is at the mercy of the first filter that refuses it; what a filter finds out (who sent it, which rule asks for a server) is for
//! those behind it alone. What filters ask of the connection is settled once for each configuration, and shared by its requests.

pub mod jwt;
mod rbac;

use std::sync::{Arc, Mutex, PoisonError};

use http::header::{HeaderValue, WWW_AUTHENTICATE};
use http::{Response, StatusCode};
use underpass_config::Text;
use underpass_config::http::{Asking, Filter, Peer, RouteTable};

use super::connection::Connection;
use super::download::Download;
use super::intake::Intake;
use super::record::Record;
use super::reply::{Audience, reply};
use crate::node::Snapshot;

/// What filters have settled for a connection.
#[derive(Debug)]
pub struct Settled {
    /// Of the configuration that it was settled by.
    generation: u64,
    /// The client's SPIFFE identity.
    principal: Option<String>,
    /// Of each filter, in the table's order.
    filters: Vec<SettledFilter>,
}

#[derive(Debug)]
enum SettledFilter {
    Jwt(jwt::SettledJwt),
    Rbac(rbac::SettledRbac),
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
            Filter::Jwt(jwt) => SettledFilter::Jwt(jwt::SettledJwt::new(jwt, &connection.session.node.key_sets)),
            Filter::Rbac(rbac) => SettledFilter::Rbac(rbac::SettledRbac::new(rbac, &peer)),
        });
        settled.filters = filters.collect();
        settled
    }

    fn peer<'a>(&'a self, connection: &Connection) -> Peer<'a> {
        Peer {
            principal: self.principal.as_deref(),
            address: connection.session.source.ip(),
            destination: connection.local,
            // A listener has no TLS of its own.
            server_name: None,
        }
    }
}

/// Why a request does not pass.
struct Refusal {
    status: StatusCode,
    text: &'static str,
    /// `%RESPONSE_CODE_DETAILS%`.
    details: String,
    /// What would let it pass (RFC 9110, section 11.6.1).
    challenge: Option<HeaderValue>,
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

/// Sends a request through the filters of its table. What they find out is in `findings`, also of one that does not pass.
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
    findings: &mut Findings,
) -> Result<(), Response<Download>> {
    if table.filters.is_empty() {
        return Ok(());
    }
    let settled = connection.settled.of(connection, snapshot, table);
    let peer = settled.peer(connection);
    for (filter, of_connection) in table.filters.iter().zip(&settled.filters) {
        let outcome = match (filter, of_connection) {
            (Filter::Jwt(jwt), SettledFilter::Jwt(of_connection)) => {
                let judged = of_connection
                    .judge(jwt, intake, connection.session.core, findings)
                    .await;
                judged.map_err(|status| {
                    let telemetry = &connection.session.node.telemetry;
                    telemetry.count_jwt_refused(&table.name, status.text());
                    jwt::refusal(status, intake)
                })
            }
            (Filter::Rbac(rules), SettledFilter::Rbac(of_connection)) => {
                let asking = Asking {
                    request: intake.view(),
                    claims: findings.claims.as_deref(),
                };
                let (outcome, shadow) = of_connection.judge(rules, &peer, &asking, &connection.session.node.telemetry);
                findings.shadow.extend(shadow);
                outcome
            }
            // What was not settled is not known, and what is not known does not pass.
            (Filter::Rbac(_) | Filter::Jwt(_), _) => Err(rbac::refusal("none")),
        };
        if let Err(refusal) = outcome {
            record.details = refusal.details.into();
            let mut answer = reply(audience, refusal.status, refusal.text);
            if let Some(challenge) = refusal.challenge {
                answer.headers_mut().insert(WWW_AUTHENTICATE, challenge);
            }
            return Err(answer);
        }
    }
    Ok(())
}
