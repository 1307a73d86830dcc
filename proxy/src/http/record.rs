//! One request's account: counted and logged once, when it is over, however it comes to be over.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use http::{Method, StatusCode, Version};
use hyper::body::Frame;
use tokio::time::Instant;
use underpass_config::Text;
use underpass_config::http::{Route, RouteTable};

use super::Broken;
use super::connection::Connection;
use super::counting::Asked as WhomAsked;
use super::facts::Ends;
use super::filters::Findings;
use super::flags::Flags;
use super::intake::{Intake, X_FORWARDED_FOR, X_REQUEST_ID};
use super::logged::Heard;
use super::messages::Messages;
use super::reply::{grpc_status, said_grpc_status};
use super::traces::Traced;
use super::upload::Upload;
use crate::ending::Ending;
use crate::telemetry::{Amounts, Outcome, RequestCounts, Value};

/// What is told of a request. Dropping it tells.
#[derive(Debug)]
pub struct Record {
    connection: Arc<Connection>,
    began: Instant,
    started: SystemTime,
    asked: Option<Asked>,
    /// What logs in Envoy's words will say; none: there are none.
    heard: Option<Box<Heard>>,
    /// Where its table's are traced.
    pub traced: Option<Box<Traced>>,
    /// What it came by.
    pub version: Option<Version>,
    /// Whether there is something to come behind its head.
    pub has_body: bool,
    /// The status that the client was answered with; 0 while there is none.
    pub status: u16,
    /// What went wrong.
    pub flags: Flags,
    /// More about that (`%RESPONSE_CODE_DETAILS%`).
    pub details: Text,
    /// The route, and the name of its virtual host.
    pub route: Option<(Text, Arc<Route>)>,
    /// The cluster.
    pub cluster: Option<Text>,
    /// The endpoint of the last try.
    pub endpoint: Option<SocketAddr>,
    /// Why there was none.
    pub transport_failure: Option<Text>,
    /// Tries.
    pub attempts: u32,
    /// Until the head of the response came.
    pub service_time: Option<Duration>,
    /// The same, if it is the one that the client gets.
    pub answered_after: Option<Duration>,
    /// The request's body.
    pub upload: Option<Upload>,
    /// Bytes that a tunnel's client has sent through it.
    pub tunneled: u64,
    /// Bytes of the response's body, or of what a tunnel's client got.
    pub sent: u64,
    /// Where it is gRPC: the response's messages.
    pub messages: Option<Messages>,
    /// The status of gRPC that the response has.
    pub grpc_status: Option<u16>,
    /// Values of the labels that its table adds to metrics.
    pub labels: Box<[Text]>,
    /// Whether the client has all of the response.
    pub is_complete: bool,
    /// Whether the proxy has broken it off for what Envoy has no flag for.
    pub was_cut_off: bool,
}

/// The details of a request that has lasted too long: Envoy has no flag for it.
pub const MAX_DURATION: &str = "max_duration_timeout";

/// The details of one whose stream to the endpoint has lasted too long.
pub const MAX_STREAM_DURATION: &str = "upstream_max_stream_duration_reached";

/// What the client asked for, as the log has it.
#[derive(Debug)]
struct Asked {
    method: Method,
    target: String,
    version: Version,
    authority: HeaderValue,
    named: [Option<HeaderValue>; 3],
}

/// In the log's order.
const NAMED: [HeaderName; 3] = [X_FORWARDED_FOR, USER_AGENT, X_REQUEST_ID];

/// The status of gRPC that a header or trailer section has. One that there is none of is `UNKNOWN`.
pub fn grpc_status_in(fields: &HeaderMap) -> Option<u16> {
    let status = said_grpc_status(fields)?.and_then(|status| u16::try_from(status).ok());
    Some(status.filter(|status| *status <= 16).unwrap_or(2))
}

impl Record {
    /// Of a request that has just come, to be routed by `table`.
    pub fn new(connection: Arc<Connection>, table: Option<&RouteTable>) -> Self {
        connection.request_began();
        let own = table.and_then(|table| table.logs.as_ref());
        let logs = connection.session.node.telemetry.access_log.request_logs(own);
        Self {
            heard: logs.map(|logs| Box::new(Heard::new(logs))),
            traced: None,
            version: None,
            has_body: false,
            connection,
            began: Instant::now(),
            started: SystemTime::now(),
            asked: None,
            status: 0,
            flags: Flags::default(),
            details: "-".into(),
            route: None,
            cluster: None,
            endpoint: None,
            transport_failure: None,
            attempts: 0,
            service_time: None,
            answered_after: None,
            upload: None,
            tunneled: 0,
            sent: 0,
            messages: None,
            grpc_status: None,
            labels: Box::default(),
            is_complete: false,
            was_cut_off: false,
        }
    }

    /// Notes what is asked for, as it goes on, for logs in Envoy's words and for its span.
    pub fn note_edited(&mut self, intake: &Intake) {
        if let Some(traced) = &mut self.traced {
            traced.note_request(intake);
        }
        if let Some(heard) = &mut self.heard {
            heard.request(intake);
        }
    }

    /// Notes what filters have found out, for them.
    pub fn note_found(&mut self, findings: &Findings) {
        if let Some(traced) = &mut self.traced {
            traced.note_found(findings);
        }
        if let Some(heard) = &mut self.heard {
            heard.found(findings);
        }
    }

    /// Notes the head of the response, for them.
    pub fn note_response(&mut self, headers: &HeaderMap) {
        if let Some(traced) = &mut self.traced {
            traced.note_response(headers);
        }
        if let Some(heard) = &mut self.heard {
            heard.response(headers);
        }
    }

    /// Notes its trailers.
    fn note_trailers(&mut self, trailers: &HeaderMap) {
        if self.messages.is_some() {
            self.grpc_status = grpc_status_in(trailers).or(self.grpc_status);
        }
        if let Some(traced) = &mut self.traced {
            traced.note_trailers(trailers);
        }
        if let Some(heard) = &mut self.heard {
            heard.trailers(trailers);
        }
    }

    /// The status that its endpoint has answered with; 0: none has.
    pub fn answered_status(&self) -> u16 {
        if self.answered_after.is_some() { self.status } else { 0 }
    }

    /// Bytes that the client has sent.
    pub fn received(&self) -> u64 {
        self.upload.as_ref().map_or(0, Upload::received) + self.tunneled
    }

    /// Notes what was asked for, if a log wants to know.
    pub fn note_request(&mut self, intake: &Intake) {
        // A tunnel's request has no end but the tunnel's.
        self.has_body |= intake.switch.is_some();
        self.note_edited(intake);
        if !self.connection.session.node.telemetry.access_log.is_on() {
            return;
        }
        self.asked = Some(Asked {
            method: intake.method.clone(),
            target: intake.target.clone(),
            version: intake.version,
            authority: intake.authority.clone(),
            named: NAMED.map(|name| intake.headers.get(name).cloned()),
        });
    }

    /// Notes a frame of the response that goes to the client.
    pub fn pass(&mut self, frame: &Frame<Bytes>) {
        if let Some(data) = frame.data_ref() {
            self.sent += data.len() as u64;
            if let Some(messages) = &mut self.messages {
                messages.pass(data);
            }
        } else if let Some(trailers) = frame.trailers_ref() {
            self.note_trailers(trailers);
        }
    }

    /// What it came by.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// What it is between.
    pub fn ends(&self) -> Ends<'_> {
        Ends {
            session: &self.connection.session,
            local: self.connection.local,
            started: self.started,
            endpoint: self.endpoint,
            cluster: self.cluster.as_deref(),
        }
    }

    /// When it came, by the calendar.
    pub fn started(&self) -> SystemTime {
        self.started
    }

    /// When it came.
    pub fn began(&self) -> Instant {
        self.began
    }

    /// Since it came.
    pub fn age(&self) -> Duration {
        self.began.elapsed()
    }

    /// Notes that its response has broken off after its beginning, in Envoy's words.
    pub fn broke(&mut self, why: Broken) {
        let (flag, details) = match why {
            Broken::TimedOut => (Flags::UPSTREAM_TIMEOUT, "response_timeout"),
            Broken::Idle => (Flags::IDLE, "stream_idle_timeout"),
            Broken::Lasted => {
                self.was_cut_off = true;
                (Flags::default(), MAX_DURATION)
            }
            Broken::StreamLasted => (Flags::STREAM_LASTED, MAX_STREAM_DURATION),
            Broken::Reset => (
                Flags::UPSTREAM_RESET,
                "upstream_reset_after_response_started{remote_reset}",
            ),
            Broken::Downstream | Broken::Upstream | Broken::Superseded => (
                Flags::UPSTREAM_CLOSED,
                "upstream_reset_after_response_started{connection_termination}",
            ),
        };
        self.flags.add(flag);
        self.details = details.into();
    }

    /// Its client is gone, or was sent away by the proxy, which is then told as of the connection.
    pub fn lost_client(&mut self) {
        match self.connection.ending() {
            None | Some(Ending::DownstreamReset) => {
                self.flags.add(Flags::CLIENT_GONE);
                // A stream of HTTP/2 may be reset where its connection stays.
                if self.version.is_some_and(|version| version < Version::HTTP_2) {
                    self.details = "downstream_remote_disconnect".into();
                }
            }
            Some(ending) => {
                self.flags.add(Flags::of_ending(ending));
                self.details = ending.word().into();
            }
        }
    }

    /// The counters of its route and cluster.
    pub fn counts(&self) -> Arc<RequestCounts> {
        let (host, route) = match &self.route {
            Some((host, route)) => (&**host, &*route.name),
            None => ("-", "-"),
        };
        let cluster = self.cluster.as_deref().unwrap_or("-");
        self.connection.counts(host, route, cluster)
    }

    fn count_for_istio(&mut self) {
        let is_grpc = self.messages.is_some();
        // As Envoy has it where there is none.
        let of_status = || StatusCode::from_u16(self.status).map_or(2, grpc_status);
        let outcome = Outcome {
            status: self.status,
            grpc_status: is_grpc.then(|| self.grpc_status.unwrap_or_else(of_status)),
            flags: self.flags,
            added: std::mem::take(&mut self.labels),
        };
        let asked = WhomAsked {
            endpoint: self.endpoint,
            cluster: self.cluster.as_ref(),
            is_grpc,
        };
        let amounts = Amounts {
            duration: self.age(),
            bytes: [self.received(), self.sent],
            messages: [
                self.upload.as_ref().map_or(0, Upload::messages),
                self.messages.map_or(0, |messages| messages.count()),
            ],
        };
        self.connection
            .counting
            .count(&self.connection, asked, outcome, &amounts);
    }

    fn fields(&self) -> Vec<(&'static str, Value)> {
        let text = |value: &str| Value::Text(value.to_owned());
        let shown = |value: Option<String>| Value::Text(value.unwrap_or_else(|| "-".to_owned()));
        let session = &self.connection.session;
        let asked = self.asked.as_ref();
        let millis = |duration: Duration| duration.as_millis().try_into().unwrap_or(u64::MAX);
        let lossy = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let named = |index: usize| shown(asked.and_then(|asked| asked.named[index].as_ref()).map(lossy));
        let source = session.source.workload();
        vec![
            (
                "start_time",
                Value::Text(humantime::format_rfc3339_millis(self.started).to_string()),
            ),
            ("method", shown(asked.map(|asked| asked.method.to_string()))),
            ("path", shown(asked.map(|asked| asked.target.clone()))),
            ("protocol", shown(asked.map(|asked| format!("{:?}", asked.version)))),
            ("response_code", Value::Number(u64::from(self.status))),
            ("response_flags", Value::Text(self.flags.to_string())),
            ("response_code_details", text(&self.details)),
            ("bytes_received", Value::Number(self.received())),
            ("bytes_sent", Value::Number(self.sent)),
            ("duration", Value::Number(millis(self.age()))),
            (
                "upstream_service_time",
                shown(self.service_time.map(|time| millis(time).to_string())),
            ),
            ("x_forwarded_for", named(0)),
            ("user_agent", named(1)),
            ("request_id", named(2)),
            ("authority", shown(asked.map(|asked| lossy(&asked.authority)))),
            ("upstream_host", shown(self.endpoint.map(|address| address.to_string()))),
            (
                "upstream_cluster",
                shown(self.cluster.as_ref().map(ToString::to_string)),
            ),
            ("attempts", Value::Number(u64::from(self.attempts))),
            (
                "virtual_host",
                shown(self.route.as_ref().map(|(host, _)| host.to_string())),
            ),
            (
                "route_name",
                shown(
                    self.route
                        .as_ref()
                        .map(|(_, route)| route.name.to_string())
                        .filter(|name| !name.is_empty()),
                ),
            ),
            ("src.addr", Value::Text(session.source.address().to_string())),
            ("src.workload", shown(source.map(|workload| workload.name.to_string()))),
            (
                "src.identity",
                shown(session.source.identity().map(ToString::to_string)),
            ),
            (
                "downstream_local_address",
                Value::Text(self.connection.local.to_string()),
            ),
            ("listener", text(session.entrance.name())),
        ]
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if !self.is_complete && !self.was_cut_off && (self.flags == Flags::default() || self.status == 0) {
            // Nobody else broke it off.
            self.lost_client();
        }
        self.counts().count(self.status, self.flags, self.attempts);
        self.count_for_istio();
        let telemetry = &self.connection.session.node.telemetry;
        if telemetry.access_log.is_on() {
            telemetry
                .access_log
                .write_fields("request", SystemTime::now(), &self.fields());
        }
        if let Some(heard) = self.heard.take() {
            heard.write(self);
        }
        if let Some(traced) = self.traced.take() {
            traced.finish(self);
        }
        self.connection.request_ended();
    }
}
