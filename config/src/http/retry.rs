//! When a request is tried again (`config.route.v3.RetryPolicy`).

use std::time::{Duration, SystemTime};

use http::header::HeaderName;
use http::{HeaderMap, StatusCode};

use super::{HeaderMatch, RequestView};

/// What makes a try one that another may follow: `retry_on`, with Envoy's words and meanings.
#[derive(Clone, Debug, Default)]
pub struct RetryConditions {
    /// `5xx`: any 5xx, a reset, a connection that failed, a try that took too long.
    pub server_error: bool,
    /// `gateway-error`: 502, 503 or 504, and as `5xx` where there was no answer.
    pub gateway_error: bool,
    /// `reset`: there was no answer.
    pub reset: bool,
    /// `connect-failure`
    pub connect_failure: bool,
    /// `refused-stream`: RST_STREAM with REFUSED_STREAM.
    pub refused_stream: bool,
    /// `reset-before-request`: nothing of the request was sent.
    pub reset_before_request: bool,
    /// `envoy-ratelimited`: an answer with `x-envoy-ratelimited`, which else nothing follows.
    pub rate_limited: bool,
    /// `retriable-4xx`: 409.
    pub retriable_4xx: bool,
    /// `retriable-headers`, whose list this is: fields of an answer, any of them.
    pub headers: Vec<HeaderMatch>,
    /// `retriable-status-codes`, whose list this is.
    pub statuses: Vec<StatusCode>,
    /// `cancelled`, `deadline-exceeded`, `internal`, `resource-exhausted`, `unavailable`: statuses of gRPC, in the header of an answer.
    pub grpc: Vec<u32>,
}

impl RetryConditions {
    /// The words that stand for something by themselves, with what they stand for in gRPC.
    pub const GRPC: [(&'static str, u32); 5] = [
        ("cancelled", 1),
        ("deadline-exceeded", 4),
        ("resource-exhausted", 8),
        ("internal", 13),
        ("unavailable", 14),
    ];

    /// Adds what a word stands for. Lists are the caller's.
    pub fn add(&mut self, word: RetryWord) {
        match word {
            RetryWord::ServerError => self.server_error = true,
            RetryWord::GatewayError => self.gateway_error = true,
            RetryWord::Reset => self.reset = true,
            RetryWord::ConnectFailure => self.connect_failure = true,
            RetryWord::RefusedStream => self.refused_stream = true,
            RetryWord::Retriable4xx => self.retriable_4xx = true,
            RetryWord::BeforeRequest => self.reset_before_request = true,
            RetryWord::RateLimited => self.rate_limited = true,
            RetryWord::Grpc(code) => self.grpc.push(code),
            RetryWord::Never | RetryWord::Statuses | RetryWord::Headers => {}
        }
    }

    /// Whether another try may follow an answer.
    pub fn of_answer(&self, status: StatusCode, headers: &HeaderMap) -> bool {
        if headers.contains_key("x-envoy-ratelimited") {
            return self.rate_limited;
        }
        let is_gateway = matches!(status.as_u16(), 502..=504);
        if (self.server_error && status.is_server_error())
            || (self.gateway_error && is_gateway)
            || (self.retriable_4xx && status == StatusCode::CONFLICT)
            || self.statuses.contains(&status)
            || self.of_fields(headers)
        {
            return true;
        }
        let grpc = (!self.grpc.is_empty()).then(|| headers.get("grpc-status")).flatten();
        let code = grpc.and_then(|value| value.to_str().ok()?.parse().ok());
        code.is_some_and(|code: u32| self.grpc.contains(&code))
    }

    fn of_fields(&self, headers: &HeaderMap) -> bool {
        // An answer has none of a request's own fields.
        let answer = RequestView {
            method: "",
            scheme: "",
            authority: "",
            path: "",
            query: None,
            headers,
        };
        self.headers.iter().any(|field| field.matches(&answer))
    }

    /// Whether another try may follow one that no connection was had for.
    pub fn of_connect_failure(&self) -> bool {
        self.connect_failure || self.reset_before_request || self.of_reset()
    }

    /// Whether another try may follow one that was cut off before its answer.
    pub fn of_reset(&self) -> bool {
        self.reset || self.server_error || self.gateway_error
    }

    /// Whether another try may follow one that took too long (Envoy: only `5xx` and `gateway-error`, which count it as a 504, and `reset`).
    pub fn of_timeout(&self) -> bool {
        self.of_reset()
    }

    /// Whether another try may follow a stream that was refused.
    pub fn of_refused_stream(&self) -> bool {
        self.refused_stream || self.of_reset()
    }
}

/// A word of `retry_on`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryWord {
    /// `5xx`
    ServerError,
    /// `gateway-error`
    GatewayError,
    /// `reset`
    Reset,
    /// `connect-failure`
    ConnectFailure,
    /// `refused-stream`
    RefusedStream,
    /// `retriable-4xx`
    Retriable4xx,
    /// `reset-before-request`
    BeforeRequest,
    /// `envoy-ratelimited`
    RateLimited,
    /// What this proxy never has a reason for: `http3-post-connect-failure`.
    Never,
    /// `retriable-status-codes`: those of a list.
    Statuses,
    /// `retriable-headers`: those of a list.
    Headers,
    /// A status of gRPC.
    Grpc(u32),
}

impl RetryWord {
    /// All of them, as they are written.
    pub fn all() -> Vec<(&'static str, Self)> {
        let mut all = vec![
            ("5xx", Self::ServerError),
            ("gateway-error", Self::GatewayError),
            ("reset", Self::Reset),
            ("connect-failure", Self::ConnectFailure),
            ("refused-stream", Self::RefusedStream),
            ("retriable-4xx", Self::Retriable4xx),
            ("retriable-status-codes", Self::Statuses),
            ("retriable-headers", Self::Headers),
            ("reset-before-request", Self::BeforeRequest),
            ("envoy-ratelimited", Self::RateLimited),
            ("http3-post-connect-failure", Self::Never),
        ];
        all.extend(RetryConditions::GRPC.map(|(word, code)| (word, Self::Grpc(code))));
        all
    }

    /// That which is written so.
    pub fn named(word: &str) -> Option<Self> {
        let mut all = Self::all().into_iter();
        all.find(|(known, _)| *known == word).map(|(_, word)| word)
    }
}

/// How often and how fast a request is tried again.
#[derive(Clone, Debug)]
pub struct RetryPolicy {
    /// When.
    pub on: RetryConditions,
    /// Tries after the first. Default 1.
    pub retries: u32,
    /// How long one try may take to be answered; none: as long as the request may.
    pub per_try_timeout: Option<Duration>,
    /// How long nothing of one try may move; none: as long as nothing of the request may.
    pub per_try_idle_timeout: Option<Duration>,
    /// Fields of an answer that say when another try is welcome; the first that says something counts (`rate_limited_retry_back_off`).
    pub reset_headers: Vec<ResetHeader>,
    /// What says a longer time says nothing. Default 300 s.
    pub reset_max_interval: Duration,
    /// The first pause is up to this. Default 25 ms.
    pub base_interval: Duration,
    /// No pause is longer. Default ten times the base.
    pub max_interval: Duration,
    /// Whether a try goes to an endpoint that no earlier one went to, while there is one (`previous_hosts`). Default yes.
    pub other_endpoints: bool,
    /// How much of a request's body is kept to be sent again, in bytes. A longer one is tried once. Default 64 KiB.
    pub replay: usize,
}

/// A field that says when another try is welcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResetHeader {
    /// Its name, for example `retry-after`.
    pub name: HeaderName,
    /// What its number is.
    pub format: ResetFormat,
}

/// What a number says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ResetFormat {
    /// Seconds from now on.
    #[default]
    Seconds,
    /// Seconds since 1970.
    UnixTimestamp,
}

impl ResetHeader {
    /// How long after `now` another try is welcome, if an answer says so.
    fn interval(&self, headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
        let seconds: u64 = headers.get(&self.name)?.to_str().ok()?.trim().parse().ok()?;
        match self.format {
            ResetFormat::Seconds => Some(Duration::from_secs(seconds)),
            ResetFormat::UnixTimestamp => {
                let at = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))?;
                at.duration_since(now).ok()
            }
        }
    }
}

impl RetryPolicy {
    /// Default of [`RetryPolicy::reset_max_interval`], Envoy's.
    pub const DEFAULT_RESET: Duration = Duration::from_secs(300);
    /// Default of [`RetryPolicy::base_interval`], Envoy's.
    pub const DEFAULT_BASE: Duration = Duration::from_millis(25);
    /// Default of [`RetryPolicy::replay`].
    pub const DEFAULT_REPLAY: usize = 64 * 1024;

    /// How long to wait for what an answer's fields say, at least; up to half as much more is waited, so that not all come back together.
    pub fn said_pause(&self, headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
        let said = self
            .reset_headers
            .iter()
            .filter_map(|field| field.interval(headers, now));
        said.into_iter().find(|interval| *interval <= self.reset_max_interval)
    }

    /// The longest pause before retry `number`, counted from 1: `base × (2^number − 1)`, of which a random part is waited (Envoy's
    /// `JitteredExponentialBackOffStrategy`).
    pub fn longest_pause(&self, number: u32) -> Duration {
        let factor = 1u32.checked_shl(number.min(30)).map_or(u32::MAX, |power| power - 1);
        self.base_interval.saturating_mul(factor).min(self.max_interval)
    }
}
