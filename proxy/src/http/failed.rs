//! Requests without an answer of an endpoint: what their clients are told in its place, in Envoy's words.

use http::StatusCode;

use super::attempt::Failure;
use super::flags::Flags;
use super::record::{MAX_DURATION, MAX_STREAM_DURATION};
use super::reply::grpc_status;

/// Why there is no response to pass on.
pub struct Failed {
    /// What the client is answered.
    pub status: StatusCode,
    /// What the log says.
    pub flags: Flags,
    /// Why, for the operator.
    pub details: String,
    /// Why, for the client.
    pub text: String,
    /// gRPC's status.
    pub grpc: u16,
}

impl Failed {
    /// An answer by these words.
    pub fn new(status: StatusCode, flags: Flags, details: &str, text: impl Into<String>) -> Self {
        Self {
            status,
            flags,
            details: details.to_owned(),
            text: text.into(),
            grpc: grpc_status(status),
        }
    }

    /// The request has had its time.
    pub fn timed_out() -> Self {
        let text = "upstream request timeout";
        Self::new(
            StatusCode::GATEWAY_TIMEOUT,
            Flags::UPSTREAM_TIMEOUT,
            "response_timeout",
            text,
        )
    }

    /// Nothing of it moved for too long.
    pub fn idle(is_asked_whole: bool) -> Self {
        let status = late(is_asked_whole);
        Self::new(status, Flags::IDLE, "stream_idle_timeout", "stream timeout")
    }

    /// Its stream has lasted longer than one to its cluster may.
    pub fn stream_lasted(is_asked_whole: bool) -> Self {
        let text = "upstream max stream duration reached";
        Self::new(late(is_asked_whole), Flags::STREAM_LASTED, MAX_STREAM_DURATION, text)
    }

    /// It has lasted longer than it may.
    pub fn lasted(is_asked_whole: bool) -> Self {
        let text = "downstream duration timeout";
        Self {
            // DEADLINE_EXCEEDED
            grpc: 4,
            ..Self::new(late(is_asked_whole), Flags::default(), MAX_DURATION, text)
        }
    }
}

/// As Envoy's: who has asked for all of it is not told that it was slow.
fn late(is_asked_whole: bool) -> StatusCode {
    match is_asked_whole {
        true => StatusCode::GATEWAY_TIMEOUT,
        false => StatusCode::REQUEST_TIMEOUT,
    }
}

fn overflow() -> Failed {
    let text = "upstream connect error or disconnect/reset before headers. reset reason: overflow";
    let details = "upstream_reset_before_response_started{overflow}";
    Failed::new(StatusCode::SERVICE_UNAVAILABLE, Flags::OVERFLOW, details, text)
}

/// The proxy's own answer to a request whose last try failed, in Envoy's words.
pub fn failed(failure: &Failure, is_retried: bool, is_asked_whole: bool) -> Failed {
    let reset = |flags, reason: &str| {
        let text = match is_retried {
            false => format!("upstream connect error or disconnect/reset before headers. reset reason: {reason}"),
            true => format!(
                "upstream connect error or disconnect/reset before headers. retried and the latest reset reason: {reason}"
            ),
        };
        let details = format!("upstream_reset_before_response_started{{{}}}", reason.replace(' ', "_"));
        Failed::new(StatusCode::SERVICE_UNAVAILABLE, flags, &details, text)
    };
    match failure {
        Failure::Overflow => overflow(),
        // Why, is for the operator: the client is told no more than that.
        Failure::NotConnected(_) | Failure::Untrusted(_) => {
            let mut failed = reset(Flags::CONNECT_FAILED, "remote connection failure");
            if let Some(why) = failure.of_transport() {
                failed.details = format!("upstream_reset_before_response_started{{remote_connection_failure|{why}}}");
            }
            failed
        }
        Failure::ConnectTimedOut => reset(Flags::CONNECT_FAILED, "connection timeout"),
        Failure::Refused => reset(Flags::UPSTREAM_RESET, "remote refused stream reset"),
        Failure::Reset => reset(Flags::UPSTREAM_RESET, "remote reset"),
        Failure::Closed | Failure::Limited => reset(Flags::UPSTREAM_CLOSED, "connection termination"),
        Failure::Malformed => not_understood(reset(Flags::PROTOCOL_ERROR, "protocol error")),
        Failure::NotSpoken(why) => {
            let mut failed = not_understood(reset(Flags::PROTOCOL_ERROR, "protocol error"));
            failed.details = format!("{}: {why}", failed.details);
            failed
        }
        Failure::TimedOut => Failed {
            details: "upstream_per_try_timeout".to_owned(),
            ..Failed::timed_out()
        },
        Failure::Idle => Failed {
            details: "upstream_per_try_idle_timeout".to_owned(),
            ..Failed::timed_out()
        },
        Failure::Lasted => Failed::stream_lasted(is_asked_whole),
        Failure::ClientGone => Failed::new(
            StatusCode::BAD_REQUEST,
            Flags::CLIENT_GONE,
            "downstream_remote_disconnect",
            "",
        ),
        Failure::Unwritable => {
            let details = "rewritten_request_is_invalid";
            Failed::new(StatusCode::INTERNAL_SERVER_ERROR, Flags::default(), details, "")
        }
    }
}

/// The endpoint is there, and does not speak as it has to.
fn not_understood(failed: Failed) -> Failed {
    Failed {
        status: StatusCode::BAD_GATEWAY,
        ..failed
    }
}
