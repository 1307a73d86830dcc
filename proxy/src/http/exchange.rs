//! One request, from its head to the head of its response.

use std::borrow::Cow;
use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{HeaderValue, LOCATION, SEC_WEBSOCKET_KEY, SERVER, SET_COOKIE, UPGRADE};
use http::{HeaderMap, Method, Request, Response, StatusCode, Version};
use hyper::body::Body;
use underpass_config::Text;
use underpass_config::http::{
    Abort, Fault, Forward, HeaderEdits, MetricSettings, Route, RouteAction, RouteTable, VirtualHost, WeightedCluster,
};

use super::arriving::Arriving;
use super::connection::Connection;
use super::cors::Crossing;
use super::download::{Download, until};
use super::facts::Known;
use super::filters::{self, Findings, Passing};
use super::flags::Flags;
use super::forward::{Answered, Holds, Job, Limits};
use super::hygiene;
use super::intake::{Intake, NO_PATH, Unfit};
use super::messages::Messages;
use super::pool::Lease;
use super::record::{Record, grpc_status_in};
use super::reply::{Audience, closing, grpc_status, reply, reply_with};
use super::switch::Switch;
use super::traces::Traced;
use super::tunnel::{End, Terms, Tunnel};
use super::upload::Upload;
use crate::node::Snapshot;

/// What our responses say they are from, as Envoy's say `envoy`.
const SERVER_NAME: HeaderValue = HeaderValue::from_static("underpass");

/// Of the value of a label that a table adds, so many bytes are told.
const LONGEST_LABEL: usize = 128;

/// What becomes of a request.
pub struct Served {
    /// The answer: whatever went wrong is answered.
    pub response: Response<Download>,
    /// What goes on when that is sent.
    pub tunnel: Option<Box<Tunnel>>,
}

/// Serves one request.
pub async fn serve(connection: Arc<Connection>, request: Request<Arriving>) -> Served {
    let snapshot = connection.session.node.snapshot();
    let tables = &snapshot.config.http.tables;
    let table = tables.get(&connection.routes).map(|table| &**table);
    let mut record = Box::new(Record::new(connection.clone(), table));
    let (parts, body) = request.into_parts();
    let (is_http1, has_body) = (parts.version < Version::HTTP_2, !body.is_end_stream());
    record.version = Some(parts.version);
    record.has_body = has_body;
    let is_connect = parts.method == Method::CONNECT;
    let audience = Audience::of(&parts.method, &parts.headers);
    let mut exchange = Exchange {
        connection: &connection,
        snapshot: &snapshot,
        table,
        audience,
        switched: None,
    };
    let taken = Intake::new(parts).and_then(|intake| exchange.normalized(intake));
    let mut response = match taken {
        Ok(intake) => {
            record.note_request(&intake);
            record.messages = audience.is_grpc.then(Messages::default);
            // Made where it stays: a future that is boxed is made first, and moved whole.
            let place = Box::new_uninit();
            let routing = Box::write(place, exchange.route(intake, body, &mut record));
            Box::into_pin(routing).await
        }
        Err(unfit) => {
            record.details = unfit.details.into();
            match unfit.status {
                StatusCode::NOT_FOUND => record.flags.add(Flags::NO_ROUTE),
                _ => record.flags.add(Flags::PROTOCOL_ERROR),
            }
            let response = reply(audience, unfit.status, unfit.text);
            match is_http1 && unfit.status != StatusCode::NOT_FOUND {
                true => closing(response),
                false => response,
            }
        }
    };
    response.headers_mut().insert(SERVER, SERVER_NAME);
    if let Some(traced) = &mut record.traced {
        traced.edit_response(response.headers_mut());
    }
    // Whoever is answered before its body was looked at may go on sending it: nothing that follows it would be read.
    let is_unread = has_body && record.upload.as_ref().is_none_or(|upload| !upload.was_asked_for());
    // Nor is what follows one that may have ended elsewhere.
    let is_doubtful = (record.upload.as_ref()).is_some_and(|upload| has_body && !upload.has_plain_end());
    let is_refused = is_connect && exchange.switched.is_none();
    let is_last = connection.session.node.is_draining() && exchange.switched.is_none();
    if is_http1 && (is_unread || is_doubtful || is_refused || is_last) {
        response = closing(response);
    }
    record.status = response.status().as_u16();
    if audience.is_grpc {
        record.grpc_status = grpc_status_in(response.headers());
    }
    record.note_response(response.headers());
    match exchange.switched.take() {
        Some(switched) => Served {
            response,
            tunnel: Some(switched.tunnel(record)),
        },
        None => Served {
            response: response.map(|body| body.recorded(record)),
            tunnel: None,
        },
    }
}

struct Exchange<'a> {
    connection: &'a Arc<Connection>,
    snapshot: &'a Snapshot,
    /// What it is routed by; none: an update has taken it away.
    table: Option<&'a RouteTable>,
    audience: Audience,
    switched: Option<Switched>,
}

/// What a tunnel is made of, but for the request's account.
struct Switched {
    endpoint: End,
    lease: Lease,
    holds: Holds,
    terms: Terms,
}

impl Switched {
    fn tunnel(self, record: Box<Record>) -> Box<Tunnel> {
        let tunnel = Tunnel::new(self.endpoint, self.terms, record, self.lease, self.holds);
        Box::new(tunnel)
    }
}

impl Exchange<'_> {
    /// With what the table wants done to paths before they are looked at.
    fn normalized(&self, mut intake: Intake) -> Result<Intake, Unfit> {
        let normalization = self.table.map(|table| table.normalization).unwrap_or_default();
        let normal = match normalization.apply(intake.view().path) {
            Some(Cow::Borrowed(_)) => return Ok(intake),
            Some(Cow::Owned(normal)) => normal,
            None => return Err(NO_PATH),
        };
        intake.set_path(&normal);
        Ok(intake)
    }

    /// The route for a request, and its virtual host, of which its account is told. `random`: drawn for it.
    fn find(&self, intake: &Intake, random: u64, record: &mut Record) -> Option<(Arc<VirtualHost>, Arc<Route>)> {
        let found = self.table.and_then(|table| table.route(&intake.view(), random));
        record.route = found.map(|(host, route)| (host.name.clone(), route.clone()));
        found.map(|(host, route)| (host.clone(), route.clone()))
    }

    async fn route(&mut self, mut intake: Intake, mut body: Arriving, record: &mut Record) -> Response<Download> {
        let random = fastrand::u64(..);
        let mut found = self.find(&intake, random, record);
        let mut findings = Findings::default();
        if let Some(tracing) = self.table.and_then(|table| table.tracing.as_ref()) {
            let route = found.as_ref().map(|(_, route)| &**route);
            record.traced = Some(Traced::begin(
                tracing,
                &mut intake,
                route,
                &self.connection.session.node,
            ));
            // Its id may say now that it is traced.
            record.note_request(&intake);
        }
        if let Some(table) = self.table.filter(|table| !table.metrics.added.is_empty()) {
            record.labels = labels(&table.metrics, &intake, record);
        }
        if let Some(table) = self.table {
            let passing = Passing {
                connection: self.connection,
                snapshot: self.snapshot,
                intake: &mut intake,
                body: &mut body,
                audience: self.audience,
                record,
                findings: &mut findings,
                principal: None,
                route: found
                    .as_ref()
                    .filter(|_| table.has_overrides())
                    .map(|(_, route)| route.clone()),
                random,
            };
            let passed = filters::pass(table, passing).await;
            record.note_found(&findings);
            if findings.is_edited {
                found = self.find(&intake, random, record);
                record.note_edited(&intake);
            }
            if let Err(refusal) = passed {
                return match &found {
                    // A route that forwards edits whatever is answered in its endpoint's place (Envoy's `sendLocalReply`).
                    Some((host, route)) if matches!(route.action, RouteAction::Forward(_)) => {
                        edited(refusal, (host, route, None), &intake, record)
                    }
                    _ => refusal,
                };
            }
        }
        let changes = findings.response;
        let mut response = pin!(self.follow(found, intake, body, record)).await;
        changes.apply(response.headers_mut());
        response
    }

    /// Does with a request what its route says.
    async fn follow(
        &mut self,
        found: Option<(Arc<VirtualHost>, Arc<Route>)>,
        mut intake: Intake,
        body: Arriving,
        record: &mut Record,
    ) -> Response<Download> {
        let Some((host, route)) = found else {
            record.flags.add(Flags::NO_ROUTE);
            record.details = "route_not_found".into();
            return reply(self.audience, StatusCode::NOT_FOUND, Bytes::new());
        };
        let forward = match &route.action {
            RouteAction::Forward(forward) => forward,
            RouteAction::Redirect(redirect) => {
                record.details = "direct_response".into();
                let location = redirect.location(&route.matches, &intake.view());
                let mut response = reply(self.audience, redirect.status, Bytes::new());
                if let Ok(location) = HeaderValue::try_from(location) {
                    response.headers_mut().insert(LOCATION, location);
                }
                return edited(response, (&host, &route, None), &intake, record);
            }
            RouteAction::Direct(direct) => {
                record.details = "direct_response".into();
                let body = Bytes::copy_from_slice(direct.body.as_bytes());
                let response = reply(self.audience, direct.status, body);
                return edited(response, (&host, &route, None), &intake, record);
            }
        };
        let times = forward.times(&mut intake.headers, self.audience.is_grpc);
        let limits = Limits {
            timeout: times.timeout,
            lasts_until: times.duration.and_then(|duration| record.began().checked_add(duration)),
        };
        // Before the pages of other origins, as istiod orders a waypoint's filters.
        if let Some(refusal) = inject(forward.fault.as_ref(), &intake.headers, self.audience, limits, record).await {
            return edited(refusal, (&host, &route, None), &intake, record);
        }
        let crossing = Crossing::of(forward.cors.as_deref(), &intake.headers);
        if let Some(answer) = crossing.as_ref().and_then(|crossing| crossing.preflight(&intake)) {
            record.details = "cors_response".into();
            return answer;
        }
        let mut response = pin!(self.lead_on(intake, body, (&host, &route, forward, limits), record)).await;
        if let Some(crossing) = crossing {
            crossing.allow(response.headers_mut());
        }
        response
    }

    /// The route's way to a cluster: edits, the endpoint.
    async fn lead_on(
        &mut self,
        mut intake: Intake,
        body: Arriving,
        (host, route, forward, limits): (&VirtualHost, &Route, &Forward, Limits),
        record: &mut Record,
    ) -> Response<Download> {
        let chosen = forward.choose(fastrand::u32(..));
        record.cluster = Some(chosen.cluster.clone());
        let edit = |intake: &mut Intake, edits: &HeaderEdits| {
            let (headers, known) = Known::for_request(intake, record);
            edits.apply(headers, &known);
        };
        if !rewrite(&mut intake, (host, route, forward), chosen, edit) {
            record.details = "rewritten_path_is_invalid".into();
            let refusal = reply(self.audience, StatusCode::INTERNAL_SERVER_ERROR, Bytes::new());
            return edited(refusal, (host, route, None), &intake, record);
        }
        if let Some(traced) = &record.traced {
            traced.inject(&mut intake.headers);
        }
        record.note_edited(&intake);
        let response = pin!(self.forward(&intake, body, (forward, chosen, limits), record)).await;
        edited(response, (host, route, Some(&chosen.response_headers)), &intake, record)
    }

    async fn forward(
        &mut self,
        intake: &Intake,
        body: Arriving,
        (forward, chosen, limits): (&Forward, &WeightedCluster, Limits),
        record: &mut Record,
    ) -> Response<Download> {
        let Some(cluster) = self.snapshot.config.http.cluster(&chosen.cluster) else {
            record.flags.add(Flags::NO_CLUSTER);
            record.details = "cluster_not_found".into();
            return reply(self.audience, forward.not_found, Bytes::new());
        };
        let is_let_to = match &intake.switch {
            None => true,
            Some(Switch::Upgrade(protocol)) => forward.upgrades.contains(protocol),
            Some(Switch::Connect) => forward.connect.is_some(),
        };
        if !is_let_to {
            record.details = "upgrade_failed".into();
            return closing(reply(self.audience, StatusCode::FORBIDDEN, Bytes::new()));
        }
        if intake.switch.is_some() && !body.is_end_stream() {
            // Where the body ends and the other protocol begins, the endpoint may see otherwise.
            record.flags.add(Flags::PROTOCOL_ERROR);
            record.details = "upgrade_with_body".into();
            return closing(reply(self.audience, StatusCode::BAD_REQUEST, Bytes::new()));
        }
        let room = forward.retry.as_ref().map_or(0, |retry| retry.replay);
        let upload = Upload::new(body, room, self.audience.is_grpc);
        record.upload = Some(upload.clone());
        let job = Job {
            connection: self.connection,
            forward,
            cluster,
            labels: &chosen.labels,
            intake,
            upload: &upload,
            audience: self.audience,
            limits,
        };
        let answered = pin!(job.send(record)).await;
        match answered {
            // Whoever asked may send what it wanted to speak without having waited for the answer.
            Err(response) if intake.switch.is_some() => closing(response),
            Err(response) => response,
            Ok(answered)
                if answered.response.status() == StatusCode::SWITCHING_PROTOCOLS || answered.switched.is_some() =>
            {
                self.switch(intake, (forward, limits), answered, record)
            }
            Ok(answered) => answered.into_response(record),
        }
    }

    /// The endpoint has changed to another protocol: so does the client.
    fn switch(
        &mut self,
        intake: &Intake,
        (forward, limits): (&Forward, Limits),
        answered: Answered,
        record: &mut Record,
    ) -> Response<Download> {
        let Answered {
            response,
            holds,
            lease,
            switched,
            cookies,
            end,
        } = answered;
        let (Some(switch), Some(endpoint)) = (&intake.switch, switched) else {
            // Nobody has asked for it.
            record.flags.add(Flags::PROTOCOL_ERROR);
            record.details = "unexpected_switch_of_protocols".into();
            return reply(self.audience, StatusCode::BAD_GATEWAY, Bytes::new());
        };
        let protocol = response.headers().get(UPGRADE).cloned();
        let (mut parts, _) = response.into_parts();
        hygiene::strip_hop_by_hop(&mut parts.headers);
        if let Some(protocol) = protocol {
            parts.headers.insert(UPGRADE, protocol);
        }
        for cookie in cookies {
            parts.headers.append(SET_COOKIE, cookie);
        }
        let key = intake.headers.get(SEC_WEBSOCKET_KEY);
        let status = switch.agree(&mut parts.headers, intake.version, key);
        record.details = "via_upstream".into();
        self.switched = Some(Switched {
            endpoint,
            lease,
            holds,
            terms: Terms {
                idle_timeout: forward.idle_timeout,
                lasts_until: limits.lasts_until,
                stream_until: end.stream_until,
                stalled: None,
                reason: switch.reset_reason(),
            },
        });
        let mut agreed = Response::new(Download::whole(Bytes::new()));
        *agreed.status_mut() = status;
        *agreed.headers_mut() = parts.headers;
        agreed
    }
}

/// What the labels are for a request that its table adds.
fn labels(settings: &MetricSettings, intake: &Intake, record: &Record) -> Box<[Text]> {
    let known = Known::of_request(intake, record);
    let values = settings.added.iter().map(|label| {
        let value = label.value.written(&intake.headers, &known);
        let value = String::from_utf8_lossy(&value[..value.len().min(LONGEST_LABEL)]);
        if value.is_empty() {
            "unknown".into()
        } else {
            value.into()
        }
    });
    values.collect()
}

/// What the route makes of a request before it goes on; `edit` does its header edits. False: of its path, something that is none.
pub fn rewrite(
    intake: &mut Intake,
    (host, route, forward): (&VirtualHost, &Route, &Forward),
    chosen: &WeightedCluster,
    edit: impl Fn(&mut Intake, &HeaderEdits),
) -> bool {
    for edits in [&chosen.request_headers, &route.request_headers, &host.request_headers] {
        edit(intake, edits);
    }
    if let Some(authority) = &forward.host {
        let original = std::mem::replace(&mut intake.authority, authority.clone());
        intake.headers.insert("x-envoy-original-host", original);
    }
    if let Some(path) = forward.path.apply(&route.matches, intake.view().path) {
        if !path.starts_with('/') {
            return false;
        }
        if let Ok(original) = HeaderValue::try_from(intake.target.as_str()) {
            intake.headers.insert("x-envoy-original-path", original);
        }
        intake.set_path(&path);
    }
    true
}

fn edited(
    mut response: Response<Download>,
    (host, route, of_cluster): (&VirtualHost, &Route, Option<&HeaderEdits>),
    intake: &Intake,
    record: &Record,
) -> Response<Download> {
    let known = Known::for_response(intake, record, response.status());
    let headers = response.headers_mut();
    for edits in of_cluster
        .into_iter()
        .chain([&route.response_headers, &host.response_headers])
    {
        edits.apply(headers, &known);
    }
    response
}

/// Does to a request what the route says is to go wrong; the answer, if it is refused.
async fn inject(
    fault: Option<&Fault>,
    headers: &HeaderMap,
    audience: Audience,
    limits: Limits,
    record: &mut Record,
) -> Option<Response<Download>> {
    let fault = fault?;
    let random = || fastrand::u32(..Fault::ALL);
    if let Some(delay) = fault.delay(headers, random) {
        record.flags.add(Flags::DELAY_INJECTED);
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            // Its time is then found to be over.
            () = until(limits.lasts_until) => return None,
        }
    }
    let statuses = match fault.abort(headers, random)? {
        Abort::Http(status) => (status, grpc_status(status)),
        Abort::Grpc(code) => (StatusCode::OK, code),
        // It has said nothing.
        Abort::Header => return None,
    };
    record.flags.add(Flags::FAULT_INJECTED);
    record.details = "fault_filter_abort".into();
    Some(reply_with(audience, statuses, "fault filter abort"))
}
