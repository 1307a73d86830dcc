//! What goes wrong on purpose (`extensions.filters.http.fault.v3`).

use std::time::Duration;

use http::{HeaderMap, StatusCode};

/// What goes wrong on purpose, each with how many requests it befalls, in parts of a million.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fault {
    /// How long a request waits.
    pub delay: Option<(Delay, u32)>,
    /// With what a request is refused.
    pub abort: Option<(Abort, u32)>,
}

/// How long a request waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delay {
    /// So long.
    Fixed(Duration),
    /// As many milliseconds as the request's `x-envoy-fault-delay-request` says (`header_delay`).
    Header,
}

/// With what a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abort {
    /// A status of HTTP.
    Http(StatusCode),
    /// A status of gRPC; who does not speak that gets 200 (as from Envoy).
    Grpc(u16),
    /// What the request's `x-envoy-fault-abort-request`, or else its `x-envoy-fault-abort-grpc-request`, says (`header_abort`).
    Header,
}

impl Fault {
    /// All requests.
    pub const ALL: u32 = 1_000_000;
    /// One percent of them.
    const PERCENT: u32 = Self::ALL / 100;

    /// How long a request with these fields waits, if it does; `random` gives numbers below [`Fault::ALL`].
    pub fn delay(&self, headers: &HeaderMap, random: impl FnOnce() -> u32) -> Option<Duration> {
        let (delay, share) = self.delay?;
        let (delay, share) = match delay {
            Delay::Fixed(delay) => (delay, share),
            Delay::Header => {
                let millis = number(headers, "x-envoy-fault-delay-request")?;
                let wished = number(headers, "x-envoy-fault-delay-request-percentage");
                (Duration::from_millis(millis.into()), least(share, wished))
            }
        };
        (random() < share).then_some(delay)
    }

    /// With what a request with these fields is refused, if it is.
    pub fn abort(&self, headers: &HeaderMap, random: impl FnOnce() -> u32) -> Option<Abort> {
        let (abort, share) = self.abort?;
        let (abort, share) = match abort {
            Abort::Header => {
                let wished = number(headers, "x-envoy-fault-abort-request-percentage");
                (said(headers)?, least(share, wished))
            }
            said => (said, share),
        };
        (random() < share).then_some(abort)
    }
}

/// What a request says that it is to be refused with.
fn said(headers: &HeaderMap) -> Option<Abort> {
    let of_http = number(headers, "x-envoy-fault-abort-request").and_then(|code| u16::try_from(code).ok());
    let of_http = of_http.filter(|code| (200..600).contains(code));
    if let Some(status) = of_http.and_then(|code| StatusCode::from_u16(code).ok()) {
        return Some(Abort::Http(status));
    }
    let of_grpc = number(headers, "x-envoy-fault-abort-grpc-request")?;
    u16::try_from(of_grpc).ok().filter(|code| *code <= 16).map(Abort::Grpc)
}

/// No more than the configuration lets be, and no more than the request says, in percent.
fn least(share: u32, wished: Option<u32>) -> u32 {
    wished.map_or(share, |percent| share.min(percent.saturating_mul(Fault::PERCENT)))
}

fn number(headers: &HeaderMap, name: &str) -> Option<u32> {
    headers.get(name)?.to_str().ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        let fields = fields.iter();
        fields
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
            .collect()
    }

    #[test]
    fn a_request_says_what_is_to_befall_it_where_it_may() {
        let fault = Fault {
            delay: Some((Delay::Header, Fault::ALL / 2)),
            abort: Some((Abort::Header, Fault::ALL)),
        };
        let delay = |fields: &[_], random| fault.delay(&headers(fields), || random);
        let said = ("x-envoy-fault-delay-request", "70");
        assert_eq!(delay(&[], 0), None);
        assert_eq!(delay(&[said], 0), Some(Duration::from_millis(70)));
        assert_eq!(delay(&[said], 500_000), None);
        let some = ("x-envoy-fault-delay-request-percentage", "10");
        assert_eq!(delay(&[said, some], 99_999), Some(Duration::from_millis(70)));
        assert_eq!(delay(&[said, some], 100_000), None);
        let all = ("x-envoy-fault-delay-request-percentage", "100");
        assert_eq!(
            delay(&[said, all], 500_000),
            None,
            "no more than the configuration lets be"
        );
        let http = |code| Some(Abort::Http(StatusCode::from_u16(code).unwrap()));
        for (fields, expected) in [
            (&[][..], None),
            (&[("x-envoy-fault-abort-request", "418")], http(418)),
            (&[("x-envoy-fault-abort-request", "100")], None),
            (&[("x-envoy-fault-abort-request", "teapot")], None),
            (&[("x-envoy-fault-abort-grpc-request", "5")], Some(Abort::Grpc(5))),
            (&[("x-envoy-fault-abort-grpc-request", "17")], None),
            (
                &[
                    ("x-envoy-fault-abort-request", "503"),
                    ("x-envoy-fault-abort-grpc-request", "5"),
                ],
                http(503),
            ),
        ] {
            assert_eq!(fault.abort(&headers(fields), || 0), expected, "{fields:?}");
        }
    }

    #[test]
    fn without_its_leave_a_request_says_nothing() {
        let fault = Fault {
            delay: None,
            abort: Some((Abort::Grpc(14), 1)),
        };
        let fields = headers(&[
            ("x-envoy-fault-abort-request", "418"),
            ("x-envoy-fault-delay-request", "7"),
        ]);
        assert_eq!(fault.delay(&fields, || 0), None);
        assert_eq!(fault.abort(&fields, || 0), Some(Abort::Grpc(14)));
        assert_eq!(fault.abort(&fields, || 1), None);
    }
}
