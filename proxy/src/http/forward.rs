//! A request's way to a cluster: an endpoint, a try, another try.
//!
//! A try is repeated only while the client has been sent nothing: what reaches it comes of one try. Limits are taken before the first try and held
//! until the response has ended (`Holds`).

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::SET_COOKIE;
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use tokio::time::Instant;
use underpass_config::http::{
    Cluster, ClusterEndpoint, Forward, Hashed, Held, Labels, Outcome, RetryPolicy, UpstreamProtocol, Wish, hash_request,
};

use super::arriving::Arriving;
use super::attempt::{Answer, Failure, attempt};
use super::connection::Connection;
use super::download::{Deadline, Download, End};
use super::failed::{Failed, failed};
use super::flags::Flags;
use super::intake::{Intake, X_ENVOY_SERVICE_TIME};
use super::mirror;
use super::permit::Permit;
use super::pool::way::{self, Way};
use super::pool::{Key, Lease, Speaks, Wanted};
use super::record::Record;
use super::reply::{Audience, closing, http_status, reply_with, said_grpc_status};
use super::switching;
use super::tunnel;
use super::upload::{self, Upload};
use super::{Broken, hygiene, outliers};

/// Of a response that is not passed on, so much is read to keep its connection.
const DISCARDED: usize = 64 * 1024;
/// Of a response that is not passed on, so long is read.
const DISCARD_PATIENCE: Duration = Duration::from_secs(1);

/// What a request holds of its cluster's limits.
#[derive(Debug, Default)]
pub struct Holds {
    retry: Option<Held>,
    endpoint: Option<Held>,
    permit: Option<Permit>,
}

/// A request that goes to a cluster.
pub struct Job<'a> {
    /// The client's connection.
    pub connection: &'a Arc<Connection>,
    /// How its route leads on.
    pub forward: &'a Forward,
    /// Where to.
    pub cluster: &'a Arc<Cluster>,
    /// And to which of its endpoints.
    pub labels: &'a Labels,
    /// The request, as it goes on.
    pub intake: &'a Intake,
    /// Its body.
    pub upload: &'a Upload,
    /// Who waits for the answer.
    pub audience: Audience,
    /// How long it may take.
    pub limits: Limits,
}

/// How long one request may take.
#[derive(Clone, Copy)]
pub struct Limits {
    /// From its end to the end of its answer.
    pub timeout: Option<Duration>,
    /// When it has to have ended, whatever moves.
    pub lasts_until: Option<Instant>,
}

impl Limits {
    /// Whether it should have ended by now.
    fn has_lasted(&self) -> bool {
        self.lasts_until.is_some_and(|end| end <= Instant::now())
    }
}

/// What came of a request.
pub struct Answered {
    /// The head of the response.
    pub response: Response<Arriving>,
    /// The connection that it comes by.
    pub lease: Lease,
    /// The endpoint's end of a tunnel, if it has agreed to one.
    pub switched: Option<tunnel::End>,
    /// What it holds.
    pub holds: Holds,
    /// When it has to have come to its end.
    pub end: End,
    /// What the client is to come to the same endpoint by.
    pub cookies: Vec<HeaderValue>,
}

impl Job<'_> {
    /// Sends it, until it is answered or can't be.
    ///
    /// # Errors
    /// The proxy's own answer.
    pub async fn send(&self, record: &mut Record) -> Result<Answered, Response<Download>> {
        let mut end = End {
            deadline: self.deadline(),
            lasts_until: self.limits.lasts_until,
            // That of each try, as long as there is no answer (`attempt`).
            stream_until: None,
            activity: self.upload.activity().clone(),
            limit: self.forward.idle_timeout,
        };
        let hashed = self.hashed();
        let current = Current::default();
        let result = {
            let trying = pin!(self.try_all(record, hashed.hash, &current));
            tokio::select! {
                biased;
                result = trying => result,
                why = end.came() => Err(match why {
                    Broken::Idle => Failed::idle(self.upload.is_complete()),
                    Broken::Lasted => Failed::lasted(self.upload.is_complete()),
                    Broken::StreamLasted => Failed::stream_lasted(self.upload.is_complete()),
                    _ => {
                        self.note(&current, Outcome::TimedOut);
                        Failed::timed_out()
                    }
                }),
            }
        };
        let answered = result.map(|(answer, holds)| {
            end.activity.note();
            end.stream_until = answer.stream_until;
            let of_try = self.forward.retry.as_ref().and_then(|retry| retry.per_try_idle_timeout);
            end.limit = end.limit.into_iter().chain(of_try).min();
            Answered {
                response: answer.response,
                lease: answer.lease,
                switched: answer.switched,
                holds,
                end,
                cookies: hashed.cookies,
            }
        });
        answered.map_err(|failed| {
            record.flags.add(failed.flags);
            record.details = failed.details.into();
            let text = Bytes::from(failed.text);
            let mut response = reply_with(self.audience, (failed.status, failed.grpc), text);
            if failed.status == StatusCode::REQUEST_TIMEOUT && self.intake.version < http::Version::HTTP_2 {
                // The rest of its body would be taken for a request.
                response = closing(response);
            }
            if failed.flags == Flags::OVERFLOW {
                let overloaded = HeaderValue::from_static("true");
                response.headers_mut().insert("x-envoy-overloaded", overloaded);
            }
            response
        })
    }

    /// Resolves when the request has had its time, which begins when the client has sent all of it, and within which the response has to end. What is not read, because it
    /// waits for a connection all that time, does not wait longer.
    fn deadline(&self) -> Option<Deadline> {
        let timeout = self.limits.timeout?;
        let upload = self.upload.clone();
        Some(Box::pin(async move {
            let in_time = tokio::time::timeout(timeout, upload.completed()).await;
            if in_time.is_err() && upload.attempts() == 0 {
                return;
            }
            upload.completed().await;
            tokio::time::sleep(timeout).await;
        }))
    }

    fn hashed(&self) -> Hashed {
        let policies = &self.forward.hash;
        if policies.is_empty() {
            return Hashed::default();
        }
        let source = self.connection.session.source.address();
        hash_request(policies, &self.intake.view(), source, self.connection.local)
    }

    async fn try_all(
        &self,
        record: &mut Record,
        hash: Option<u64>,
        current: &Current,
    ) -> Result<(Answer, Holds), Failed> {
        if self.limits.has_lasted() {
            // In a fault's delay: nobody is asked any more, no mirror either.
            return Err(Failed::lasted(self.upload.is_complete()));
        }
        let mut holds = Holds::default();
        let mut tried: Vec<SocketAddr> = Vec::new();
        let going = self.going().await?;
        loop {
            let avoided: &[SocketAddr] = match self.forward.retry.as_ref().is_some_and(|retry| retry.other_endpoints) {
                true => &tried,
                false => &[],
            };
            let wish = Wish {
                tried: avoided,
                hash,
                labels: Some(self.labels).filter(|labels| !labels.is_empty()),
                at: going.at(avoided),
            };
            let Some(endpoint) = self.cluster.choose(&wish, || fastrand::u32(..)) else {
                let text = "no healthy upstream";
                let flags = Flags::NO_HEALTHY_UPSTREAM;
                return Err(Failed::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    flags,
                    "no_healthy_upstream",
                    text,
                ));
            };
            let address = endpoint.settings.address;
            let permit = (self.connection.permits).ask(&self.connection.session, address, self.is_by_hbone(&endpoint));
            holds.permit = Some(permit.map_err(|denied| {
                let details = format!("policy: {}", denied.why);
                let text = "RBAC: access denied";
                Failed::new(StatusCode::FORBIDDEN, Flags::DENIED, &details, text)
            })?);
            self.refuse_the_proxys_own(address)?;
            holds.endpoint = Some(endpoint.hold());
            record.endpoint = Some(address);
            record.attempts += 1;
            if let (1, Some((_, route))) = (record.attempts, &record.route) {
                mirror::start(self, route, record.traced.as_deref());
            }
            current.began(&endpoint, self.upload.attempts());
            let tried_with = self.begin_try(address, record);
            let goes_on = tried_with.as_ref().unwrap_or(self.intake);
            let outcome = pin!(self.try_once(self.wanted(&endpoint), goes_on)).await;
            if let Some(outcome) = self.told(&outcome) {
                self.note(current, outcome);
            }
            if let Some(traced) = &mut record.traced {
                traced.end_try(outcome.as_ref().map(|answer| answer.response.version()));
            }
            record.service_time = Some(record.age());
            if let Some(pause) = self.goes_on(&outcome, record.attempts, &mut holds, record) {
                note_given_up(&outcome, record);
                // What the try had is others' while this one waits.
                if let Ok(answer) = outcome {
                    discard_later(answer.response, answer.lease);
                }
                holds.endpoint = None;
                tried.push(address);
                tokio::time::sleep(pause).await;
                continue;
            }
            return match outcome {
                Ok(answer) => {
                    self.upload.settle();
                    holds.retry = None;
                    record.answered_after = Some(record.age());
                    Ok((answer, holds))
                }
                Err(failure) => {
                    record.transport_failure = failure.of_transport();
                    Err(failed(&failure, record.attempts > 1, self.upload.is_complete()))
                }
            };
        }
    }

    /// Tells the cluster what came of the current try. Who has waited for a connection in vain, has not had to do with the endpoint.
    pub(super) fn note(&self, current: &Current, outcome: Outcome) {
        if let Some((endpoint, began, attempts)) = current.take()
            && (outcome != Outcome::TimedOut || self.upload.attempts() > attempts)
        {
            outliers::note(self.cluster, &endpoint, outcome, began.elapsed());
        }
    }

    /// What its cluster is told of a try; nothing of one whose end says nothing of the endpoint.
    pub(super) fn told(&self, outcome: &Result<Answer, Failure>) -> Option<Outcome> {
        match outcome {
            Ok(answer) => {
                let response = &answer.response;
                let of_grpc = self
                    .audience
                    .is_grpc
                    .then(|| status_of_grpc(response.headers()))
                    .flatten();
                Some(Outcome::Answered(of_grpc.unwrap_or(response.status().as_u16())))
            }
            Err(Failure::NotConnected(_) | Failure::Untrusted(_) | Failure::ConnectTimedOut) => {
                Some(Outcome::NotConnected)
            }
            Err(Failure::Refused | Failure::Reset | Failure::Closed | Failure::Malformed) => Some(Outcome::Broke),
            Err(Failure::TimedOut | Failure::Idle) => Some(Outcome::TimedOut),
            // Else whoever asks for what an endpoint does not speak could have it ejected.
            Err(Failure::NotSpoken(_)) => None,
            // As in Envoy: it may have been asked for what takes long.
            Err(Failure::Lasted) => None,
            Err(Failure::ClientGone | Failure::Unwritable | Failure::Overflow | Failure::Limited) => None,
        }
    }

    pub(super) fn wanted<'w>(&'w self, endpoint: &'w Arc<ClusterEndpoint>) -> Wanted<'w> {
        let (connection, settings) = (self.connection, &self.cluster.settings);
        let transport = &settings.transport;
        let server_name = (transport.tls.as_ref()).map(|tls| match &tls.server_name {
            Some(name) => name.clone(),
            None => self.intake.host().into(),
        });
        let client = (transport.proxy_protocol).map(|_| (connection.session.source.address(), connection.local));
        Wanted {
            node: &connection.session.node,
            core: connection.session.core,
            cluster: self.cluster,
            endpoint,
            key: Key {
                cluster: settings.name.clone(),
                address: endpoint.settings.address,
                transport: transport.clone(),
                edition: 0,
                server_name,
                client,
                way: match connection.session.entrance.is_waypoint() {
                    true => Way::Unannounced,
                    false => Way::Direct,
                },
            },
            speaks: self.speaks(),
        }
    }

    /// Whether an endpoint is reached through a tunnel.
    pub(super) fn is_by_hbone(&self, endpoint: &ClusterEndpoint) -> bool {
        way::is_by_hbone(self.cluster, &endpoint.settings)
    }

    fn speaks(&self) -> Speaks {
        match self.cluster.settings.protocol {
            UpstreamProtocol::Http1 => Speaks::Http1,
            UpstreamProtocol::Http2 => Speaks::Http2,
            UpstreamProtocol::Negotiated => Speaks::Negotiated,
            UpstreamProtocol::AsDownstream if self.intake.version == http::Version::HTTP_2 => Speaks::Http2,
            UpstreamProtocol::AsDownstream => Speaks::Http1,
        }
    }

    /// Begins a try's span, where tries have one; the request then tells the endpoint of it.
    fn begin_try(&self, endpoint: SocketAddr, record: &mut Record) -> Option<Intake> {
        let whither = (&self.cluster.settings.name, endpoint);
        let version = match self.speaks() {
            Speaks::Http1 => Some(http::Version::HTTP_11),
            Speaks::Http2 => Some(http::Version::HTTP_2),
            Speaks::Negotiated | Speaks::Bytes => None,
        };
        let traced = record.traced.as_mut()?;
        let headers = traced.begin_try(whither, version, &self.intake.headers)?;
        Some(self.intake.with_headers(headers))
    }

    async fn try_once(&self, wanted: Wanted<'_>, intake: &Intake) -> Result<Answer, Failure> {
        let mut attempt = pin!(async {
            match &intake.switch {
                None => pin!(attempt(wanted, intake, self.upload)).await,
                Some(switch) => {
                    let trying = switching::attempt(wanted, intake, self.upload, switch, self.forward.connect);
                    Box::pin(trying).await
                }
            }
        });
        let limits = self.forward.retry.as_ref();
        match limits.map(|retry| (retry.per_try_timeout, retry.per_try_idle_timeout)) {
            None | Some((None, None)) => attempt.as_mut().await,
            Some((limit, idle)) => {
                self.upload.activity().note();
                let in_time = async {
                    tokio::select! {
                        biased;
                        result = attempt.as_mut() => result,
                        () = self.per_try_timeout(limit) => Err(Failure::TimedOut),
                        () = self.upload.activity().ceased(idle) => Err(Failure::Idle),
                    }
                };
                in_time.await
            }
        }
    }

    /// As the overall one, it begins when the client has sent its request.
    async fn per_try_timeout(&self, limit: Option<Duration>) {
        let Some(limit) = limit else {
            return std::future::pending().await;
        };
        self.upload.completed().await;
        tokio::time::sleep(limit).await;
    }

    /// After which pause there is another try after `attempts`, for which room is then taken and the body kept.
    fn goes_on(
        &self,
        outcome: &Result<Answer, Failure>,
        attempts: u32,
        holds: &mut Holds,
        record: &mut Record,
    ) -> Option<Duration> {
        let retry = self.forward.retry.as_ref()?;
        if !is_retriable(retry, outcome) || !self.upload.can_replay() || self.intake.switch.is_some() {
            return None;
        }
        if attempts > retry.retries {
            record.flags.add(Flags::RETRIES_USED_UP);
            return None;
        }
        if holds.retry.is_none() {
            holds.retry = self.cluster.admit_retry();
        }
        if holds.retry.is_none() {
            record.flags.add(Flags::OVERFLOW);
            return None;
        }
        // A codec that was answered early may still read the body: from here on it gets no more, and what it has got is kept.
        if !self.upload.stop_for_another() {
            return None;
        }
        let answer = outcome.as_ref().ok().map(|answer| answer.response.headers());
        Some(
            match answer.and_then(|headers| retry.said_pause(headers, SystemTime::now())) {
                Some(said) => said.mul_f64(1.0 + fastrand::f64() / 2.0),
                None => retry.longest_pause(attempts).mul_f64(fastrand::f64()),
            },
        )
    }
}

/// The try that a request is at: its endpoint, since when, and how many bodies were begun before it.
#[derive(Debug, Default)]
pub(super) struct Current(Mutex<Option<Try>>);

type Try = (Arc<ClusterEndpoint>, Instant, u32);

impl Current {
    fn state(&self) -> MutexGuard<'_, Option<Try>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn began(&self, endpoint: &Arc<ClusterEndpoint>, attempts: u32) {
        *self.state() = Some((endpoint.clone(), Instant::now(), attempts));
    }

    fn take(&self) -> Option<Try> {
        self.state().take()
    }
}

/// The status of HTTP that one of gRPC, in the head of a response, stands for.
pub fn status_of_grpc(headers: &HeaderMap) -> Option<u16> {
    said_grpc_status(headers)?.map(http_status)
}

/// Notes that there will be another try, for the span of this one.
fn note_given_up(outcome: &Result<Answer, Failure>, record: &mut Record) {
    let Some(traced) = &mut record.traced else { return };
    match outcome {
        Ok(answer) => traced.give_up_try(answer.response.status().as_u16(), Flags::default()),
        Err(failure) => traced.give_up_try(0, failed(failure, false, true).flags),
    }
}

fn is_retriable(retry: &RetryPolicy, outcome: &Result<Answer, Failure>) -> bool {
    match outcome {
        Ok(answer) => retry.on.of_answer(answer.response.status(), answer.response.headers()),
        Err(Failure::NotConnected(_) | Failure::Untrusted(_) | Failure::ConnectTimedOut) => {
            retry.on.of_connect_failure()
        }
        Err(Failure::Refused) => retry.on.of_refused_stream(),
        Err(Failure::Reset | Failure::Closed | Failure::Limited | Failure::Malformed | Failure::Lasted) => {
            retry.on.of_reset()
        }
        Err(Failure::TimedOut | Failure::Idle) => retry.on.of_timeout(),
        Err(Failure::NotSpoken(_) | Failure::ClientGone | Failure::Unwritable | Failure::Overflow) => false,
    }
}

/// Reads a response to its end that another try takes the place of, if it is short, so that its connection can be used again.
fn discard_later(response: Response<Arriving>, lease: Lease) {
    tokio::spawn(async move {
        let discarded = upload::discard(response.into_body(), DISCARDED);
        if tokio::time::timeout(DISCARD_PATIENCE, discarded).await == Ok(true) {
            lease.give_back();
        }
    });
}

impl Answered {
    /// The response as it goes to the client, and its status.
    pub fn into_response(self, record: &mut Record) -> Response<Download> {
        let (mut parts, body) = self.response.into_parts();
        hygiene::strip_hop_by_hop(&mut parts.headers);
        if let Some(time) = record.service_time {
            let millis = HeaderValue::from(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
            parts.headers.insert(X_ENVOY_SERVICE_TIME, millis);
        }
        for cookie in self.cookies {
            parts.headers.append(SET_COOKIE, cookie);
        }
        record.details = "via_upstream".into();
        let mut response = Response::new(Download::streamed(body, self.lease, self.end, self.holds));
        *response.status_mut() = parts.status;
        *response.headers_mut() = parts.headers;
        response
    }
}
