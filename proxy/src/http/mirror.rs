//! Copies of requests to other clusters, whose answers nobody waits for (Envoy's shadows).
//!
//! A copy is what the request's endpoint gets, under another host, and is sent when the request is: one that has no endpoint, or that policy keeps from it, is not
//! copied. From then on it is alone: a task of its own, judged and limited as its client's requests to the copy's cluster are, watched by
//! policy until it ends, read from a [`tap`](super::tap) that never holds the request up. What comes of it is counted (`underpass_http_mirrored_requests_total`).

use std::future::poll_fn;
use std::sync::Arc;

use http::HeaderValue;
use http_body_util::BodyExt;
use underpass_config::http::{Cluster, Fault, Forward, Mirror, MirrorEnd, Outcome, Route, RouteAction, Wish};

use super::Broken;
use super::attempt::{Answer, Failure, attempt, in_time};
use super::connection::Connection;
use super::download::{Deadline, End};
use super::forward::{Current, Job, Limits};
use super::intake::Intake;
use super::permit::Permits;
use super::reply::Audience;
use super::tap::Pace;
use super::traces::Traced;
use super::upload::Upload;

/// A copy, and what it takes to send it.
struct Copied {
    connection: Arc<Connection>,
    route: Arc<Route>,
    /// Which of the route's mirrors it goes to.
    place: usize,
    cluster: Arc<Cluster>,
    intake: Intake,
    upload: Upload,
    /// Nothing, if there is no body.
    pace: Option<Pace>,
    audience: Audience,
    /// Those of the request.
    limits: Limits,
}

/// Begins to send copies of a request, of whose body nothing was read yet, to the mirrors of its route. What becomes a tunnel is not copied.
pub fn start(job: &Job<'_>, route: &Arc<Route>, traced: Option<&Traced>) {
    if job.intake.switch.is_some() {
        return;
    }
    for (place, mirror) in job.forward.mirrors.iter().enumerate() {
        if mirror.strikes(fastrand::u32(..Fault::ALL))
            && let Some(copied) = Copied::new(job, route, (place, mirror), traced)
        {
            tokio::spawn(async move { copied.send().await });
        }
    }
}

impl Copied {
    fn new(
        job: &Job<'_>,
        route: &Arc<Route>,
        (place, mirror): (usize, &Mirror),
        traced: Option<&Traced>,
    ) -> Option<Self> {
        let snapshot = job.connection.session.node.snapshot();
        // One that an update has taken away meanwhile gets no more copies.
        let cluster = snapshot.config.http.cluster(&mirror.cluster)?.clone();
        let mut intake = job.intake.clone();
        if let Some(traced) = traced {
            traced.inject_copy(&mut intake.headers);
        }
        let host = mirror.host(intake.authority.to_str().ok()?);
        intake.authority = HeaderValue::try_from(host).ok()?;
        let (body, pace) = job.upload.tapped(mirror.buffer);
        Some(Self {
            connection: job.connection.clone(),
            route: route.clone(),
            place,
            cluster,
            intake,
            upload: Upload::new(body, 0, false),
            pace,
            audience: job.audience,
            limits: job.limits,
        })
    }

    async fn send(&self) {
        let RouteAction::Forward(forward) = &self.route.action else {
            return;
        };
        let job = Job {
            connection: &self.connection,
            forward,
            cluster: &self.cluster,
            labels: &forward.mirrors[self.place].labels,
            intake: &self.intake,
            upload: &self.upload,
            audience: self.audience,
            limits: self.limits,
        };
        let end = match job.send_unheard(self.pace.clone()).await {
            MirrorEnd::CutOff | MirrorEnd::TimedOut if self.pace.as_ref().is_some_and(Pace::was_slow) => {
                MirrorEnd::Slow
            }
            end => end,
        };
        self.cluster.mirrored().count(end);
    }
}

impl Job<'_> {
    /// When the answer is waited for no more: the time-out is its request's, or Envoy's default where that has no end, and begins when
    /// all of the copy has come. What of it is read does not count: a mirror that has answered may read none.
    fn patience(&self, pace: Option<Pace>) -> Option<Deadline> {
        let timeout = match (self.limits.timeout, self.limits.lasts_until) {
            (None, Some(_)) => return None,
            (timeout, _) => timeout.unwrap_or(Forward::DEFAULT_TIMEOUT),
        };
        Some(Box::pin(async move {
            if let Some(pace) = pace {
                pace.over().await;
            }
            tokio::time::sleep(timeout).await;
        }))
    }

    /// Sends it once, and reads what comes back, which is for nobody.
    async fn send_unheard(&self, pace: Option<Pace>) -> MirrorEnd {
        let Ok(going) = self.going().await else {
            return MirrorEnd::NoEndpoint;
        };
        let wish = Wish {
            at: going.at(&[]),
            labels: Some(self.labels).filter(|labels| !labels.is_empty()),
            ..Wish::default()
        };
        let Some(endpoint) = self.cluster.choose(&wish, || fastrand::u32(..)) else {
            return MirrorEnd::NoEndpoint;
        };
        let address = endpoint.settings.address;
        // Its own: a denial at a mirror is no denial of the connection.
        let permits = Permits::default();
        let Ok(_permit) = permits.ask(&self.connection.session, address, self.is_by_hbone(&endpoint)) else {
            return MirrorEnd::Denied;
        };
        if self.refuse_the_proxys_own(address).is_err() {
            return MirrorEnd::Denied;
        }
        let _load = endpoint.hold();
        let current = Current::default();
        current.began(&endpoint, 0);
        let mut end = End {
            deadline: self.patience(pace),
            lasts_until: self.limits.lasts_until,
            stream_until: None,
            activity: self.upload.activity().clone(),
            limit: self.forward.idle_timeout,
        };
        let exchange = async {
            let outcome = attempt(self.wanted(&endpoint), self.intake, self.upload).await;
            if let Some(outcome) = self.told(&outcome) {
                self.note(&current, outcome);
            }
            let stream_until = outcome.as_ref().ok().and_then(|answer| answer.stream_until);
            let read = in_time(stream_until, self.read_out(outcome)).await;
            read.unwrap_or(MirrorEnd::TimedOut)
        };
        tokio::select! {
            biased;
            _ = poll_fn(|cx| permits.poll_revoked(cx)) => MirrorEnd::Denied,
            ended = exchange => ended,
            why = end.came() => {
                if why == Broken::TimedOut {
                    self.note(&current, Outcome::TimedOut);
                }
                MirrorEnd::TimedOut
            }
        }
    }

    async fn read_out(&self, outcome: Result<Answer, Failure>) -> MirrorEnd {
        let (mut body, lease) = match outcome {
            Ok(answer) => (answer.response.into_body(), answer.lease),
            Err(Failure::ClientGone) => return MirrorEnd::CutOff,
            Err(Failure::Overflow) => return MirrorEnd::Overflow,
            Err(Failure::Lasted) => return MirrorEnd::TimedOut,
            Err(_) => return MirrorEnd::Failed,
        };
        while let Some(frame) = body.frame().await {
            self.upload.activity().note();
            if let Err(why) = frame {
                lease.broke(why);
                return match self.upload.has_broken() {
                    true => MirrorEnd::CutOff,
                    false => MirrorEnd::Failed,
                };
            }
        }
        lease.give_back();
        MirrorEnd::Answered
    }
}
