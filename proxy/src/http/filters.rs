//! What a request goes through before it is routed: the filters of its table, in their order, each of which may turn it away.
//!
//! A request is at the mercy of the first filter that refuses it; what a filter finds out (who sent it, which rule asks for a server) is for
//! those behind it alone. What filters ask of the connection is settled once for each configuration, and shared by its requests.

pub mod ext_authz;
mod found;
pub mod jwt;
mod rate_limit;
mod rbac;

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use http::header::{HeaderValue, WWW_AUTHENTICATE};
use http::{Response, StatusCode};
use underpass_config::Text;
use underpass_config::http::{Asking, Filter, Jwt, Override, Peer, Rbac, Route, RouteTable};

use super::arriving::Arriving;
use super::connection::Connection;
use super::download::Download;
use super::intake::Intake;
use super::record::Record;
use super::reply::{Audience, reply};
use super::upload::Upload;
use crate::node::Snapshot;
use crate::session::Session;
use crate::source::Source;
use crate::telemetry::Telemetry;
use ext_authz::ResponseChanges;
pub use found::Found;

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
    /// It asks nothing of the connection alone.
    Nothing,
    /// It is a route's own, which is asked anew by each request.
    Anew,
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
            Filter::LocalRateLimit(_) | Filter::ExtAuthz(_) | Filter::OfRoutes => SettledFilter::Nothing,
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
pub fn judge_connection(session: &Session, local: SocketAddr, routes: &str) -> Result<(), String> {
    let config = &session.node.snapshot().config;
    let Some(table) = config.http.tables.get(routes) else {
        return Err("its route table is gone".to_owned());
    };
    let source = session.source.refreshed(&config.mesh, &config.node);
    judge_by(&table.connection_rules, &source, local, Some(&session.node.telemetry))
}

/// Judges a connection of `source` that was going to `local` by rules. What shadow rules would have done is counted, where there is somewhere to count it.
///
/// # Errors
/// Why it does not go on.
pub fn judge_by(
    rules: &[Rbac],
    source: &Source,
    local: SocketAddr,
    telemetry: Option<&Telemetry>,
) -> Result<(), String> {
    let principal = source.identity().map(ToString::to_string);
    let peer = peer(principal.as_deref(), source.ip(), local);
    let judge = |rbac| rbac::judge_connection(rbac, &peer, telemetry);
    rules.iter().try_for_each(judge)
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
    /// What authorization servers have told of it, beside their verdicts.
    pub metadata: Option<Arc<serde_json::Value>>,
    /// Which policies shadow rules have matched, by [`Rbac::shadow_key`], and what these rules would have done, by [`Rbac::shadow_result_key`].
    pub shadow: Vec<(Text, Text)>,
    /// Its header fields are not what they were: it may be another route's.
    pub is_edited: bool,
    /// It was asked of nobody whether it may pass, since it had no route: it is given none.
    is_lost: bool,
    /// What is to be changed of its response.
    pub response: ResponseChanges,
}

/// The answer to a request that does not pass.
type Refused = Box<Response<Download>>;

/// A request on its way through the filters of its table.
pub struct Passing<'a> {
    /// The client's connection.
    pub connection: &'a Arc<Connection>,
    /// What it began with.
    pub snapshot: &'a Snapshot,
    /// It, which may be changed.
    pub intake: &'a mut Intake,
    /// Its body, of which a filter may want to know the beginning.
    pub body: &'a mut Arriving,
    /// Who waits for the answer.
    pub audience: Audience,
    /// Its account.
    pub record: &'a mut Record,
    /// What is known of it so far, also if it does not pass.
    pub findings: &'a mut Findings,
    /// The client's SPIFFE identity.
    pub principal: Option<&'a str>,
    /// The route that was found for it, if it has something in the place of filters.
    pub route: Option<Arc<Route>>,
    /// Drawn for it, to be routed by.
    pub random: u64,
}

/// Sends a request through the filters of its table, of whose findings nothing is known yet.
///
/// # Errors
/// The answer to one that does not pass.
pub async fn pass(table: &RouteTable, passing: Passing<'_>) -> Result<(), Response<Download>> {
    if table.filters.is_empty() {
        return Ok(());
    }
    let connection = passing.connection;
    let settled = connection.settled.of(connection, passing.snapshot, table);
    let peer = settled.peer(connection);
    let mut passing = Passing {
        principal: settled.principal.as_deref(),
        ..passing
    };
    if table.has_overrides() {
        // Whatever route it takes: what only the filter of tokens may write leads nobody to a route where that is off.
        for filter in &table.filters {
            if let Filter::Jwt(jwt) = filter {
                jwt::take_off_written(jwt, passing.intake, passing.findings);
            }
        }
    }
    for (place, (filter, of_connection)) in table.filters.iter().zip(&settled.filters).enumerate() {
        let own = passing.own(table);
        let different = own.as_ref().and_then(|route| route.overrides.at(place));
        let passed = match (filter, different) {
            (_, Some(Override::Off)) | (Filter::OfRoutes, None) => Ok(()),
            (Filter::Rbac(_) | Filter::OfRoutes, Some(Override::Rbac(rules))) => {
                passing.judge(rules, &SettledFilter::Anew, &peer)
            }
            (Filter::LocalRateLimit(_) | Filter::OfRoutes, Some(Override::LocalRateLimit(limit))) => {
                rate_limit::pass(limit, &mut passing)
            }
            (Filter::Rbac(rules), _) => passing.judge(rules, of_connection, &peer),
            (Filter::Jwt(jwt), _) => passing.verify(jwt, of_connection, &table.name).await,
            (Filter::LocalRateLimit(limit), _) => rate_limit::pass(limit, &mut passing),
            // Most tables have none: their requests' futures are not to be as large as its own.
            (Filter::ExtAuthz(asking), different) => {
                let context = match different {
                    Some(Override::Context(context)) => &**context,
                    _ => &[],
                };
                Box::pin(ext_authz::pass(asking, context, &mut passing)).await
            }
            // What no filter can have does not pass.
            (Filter::OfRoutes, Some(Override::Context(_))) => Err(passing.refused(rbac::refusal("none"))),
        };
        if let Err(mut refusal) = passed {
            passing.findings.response.apply(refusal.headers_mut());
            passing.note_read();
            return Err(*refusal);
        }
    }
    passing.findings.is_edited &= !passing.findings.is_lost;
    passing.note_read();
    Ok(())
}

impl Findings {
    /// What logs may ask for.
    pub fn found(&self) -> Found {
        Found {
            claims: self.claims.clone(),
            metadata: self.metadata.clone(),
            shadow: self.shadow.clone(),
        }
    }
}

impl Passing<'_> {
    /// The route whose word counts for the next filter: that which the request has as it is now. An edit may have led it to another, whose filters it then has to pass.
    fn own(&self, table: &RouteTable) -> Option<Arc<Route>> {
        if !table.has_overrides() {
            return None;
        }
        match self.findings.is_edited {
            false => self.route.clone(),
            true => table
                .route(&self.intake.view(), self.random)
                .map(|(_, route)| route.clone()),
        }
    }

    /// A body that was read to its end is no request that follows, even if it goes nowhere.
    fn note_read(&mut self) {
        if let Arriving::Kept(kept) = &*self.body
            && let Some(length) = kept.length_of_all()
        {
            self.record.upload = Some(Upload::read(length));
        }
    }

    fn judge(&mut self, rules: &Rbac, of_connection: &SettledFilter, peer: &Peer<'_>) -> Result<(), Refused> {
        let asking = Asking {
            request: self.intake.view(),
            claims: self.findings.claims.as_deref(),
            metadata: self.findings.metadata.as_deref(),
        };
        let telemetry = &self.connection.session.node.telemetry;
        let (outcome, shadow) = match of_connection {
            SettledFilter::Rbac(of_connection) => of_connection.judge(rules, peer, &asking, telemetry),
            SettledFilter::Anew => rbac::judge_anew(rules, peer, &asking, telemetry),
            // What was not settled is not known, and what is not known does not pass.
            SettledFilter::Nothing | SettledFilter::Jwt(_) => (Err(rbac::refusal("none")), [None, None]),
        };
        self.findings.shadow.extend(shadow.into_iter().flatten());
        outcome.map_err(|refusal| self.refused(refusal))
    }

    /// Looks at its tokens. `table` is where that is asked for.
    async fn verify(&mut self, jwt: &Jwt, of_connection: &SettledFilter, table: &Text) -> Result<(), Refused> {
        // What was not settled is not known, and what is not known does not pass.
        let SettledFilter::Jwt(of_connection) = of_connection else {
            return Err(self.refused(rbac::refusal("none")));
        };
        let core = self.connection.session.core;
        let judged = of_connection.judge(jwt, self.intake, core, self.findings).await;
        judged.map_err(|status| {
            let telemetry = &self.connection.session.node.telemetry;
            telemetry.count_jwt_refused(table, status.text());
            self.refused(jwt::refusal(status, self.intake))
        })
    }

    fn refused(&mut self, refusal: Refusal) -> Refused {
        self.record.details = refusal.details.into();
        let mut answer = reply(self.audience, refusal.status, refusal.text);
        if let Some(challenge) = refusal.challenge {
            answer.headers_mut().insert(WWW_AUTHENTICATE, challenge);
        }
        answer.into()
    }
}
