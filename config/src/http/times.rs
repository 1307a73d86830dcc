//! How long a request may take: what its route says, and what a client of gRPC asks for (`RouteAction.timeout`, `max_grpc_timeout`, `max_stream_duration`).
//!
//! Two ways to say it, of which a route uses one. A *time-out* begins when the client has sent its request, and covers tries and pauses. A *duration* begins with
//! the request's head, and covers all of it, streams that never end included; a route that has one has no time-out (Envoy's `usingNewTimeouts`).

use std::time::Duration;

use http::header::{HeaderMap, HeaderName, HeaderValue};

/// What a client of gRPC says its call may take.
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// What an endpoint is told of the time that it has, in milliseconds.
const EXPECTED_TIMEOUT: HeaderName = HeaderName::from_static("x-envoy-expected-rq-timeout-ms");

/// The largest number in a `grpc-timeout` (gRPC's PROTOCOL-HTTP2.md: at most eight digits).
const LARGEST: u64 = 99_999_999;

/// For gRPC, `grpc-timeout` takes the place of the route's time-out (`max_grpc_timeout`, deprecated in Envoy, and what Istio uses).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrpcTimeout {
    /// No client gets more, whether or not it says something; none: it gets what it asks for, or no limit.
    pub max: Option<Duration>,
    /// So much less than the client asks for, if that leaves anything: the answer has to get back to it. Default none.
    pub offset: Duration,
}

/// How long a request may last, from its head to the end of its answer (`MaxStreamDuration`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamDuration {
    /// None: no limit.
    pub limit: Option<Duration>,
    /// For requests with a `grpc-timeout`, that takes the place of `limit`; none: it is not looked at.
    pub grpc: Option<GrpcTimeout>,
}

/// What holds for one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// From the end of the request to the end of its answer.
    pub timeout: Option<Duration>,
    /// From its head to the end of its answer.
    pub duration: Option<Duration>,
}

impl super::Forward {
    /// How long a request may take. `headers` are told how long its endpoint has for it.
    pub fn times(&self, headers: &mut HeaderMap, is_grpc: bool) -> Times {
        if let Some(duration) = &self.duration {
            return self.lasting(duration, headers, is_grpc);
        }
        let of_grpc = self.grpc_timeout.as_ref().filter(|_| is_grpc);
        let timeout = match of_grpc {
            Some(grpc) => grpc.timeout(asked(headers)),
            None => self.timeout,
        };
        if let Some(expected) = self.expect(timeout, headers)
            && of_grpc.is_some()
        {
            headers.insert(GRPC_TIMEOUT, written(expected));
        }
        Times {
            timeout,
            duration: None,
        }
    }

    fn lasting(&self, duration: &StreamDuration, headers: &mut HeaderMap, is_grpc: bool) -> Times {
        let limit = match (duration.grpc, asked(headers)) {
            (Some(grpc), Some(asked)) => Some(grpc.duration(asked)),
            _ => duration.limit,
        };
        if let (Some(limit), true) = (limit, is_grpc) {
            headers.insert(GRPC_TIMEOUT, written(limit));
        }
        self.expect(None, headers);
        Times {
            timeout: None,
            duration: limit,
        }
    }

    /// Tells the endpoint how long one try may take.
    fn expect(&self, timeout: Option<Duration>, headers: &mut HeaderMap) -> Option<Duration> {
        let per_try = self.retry.as_ref().and_then(|retry| retry.per_try_timeout);
        let expected = per_try.into_iter().chain(timeout).min()?;
        headers.insert(EXPECTED_TIMEOUT, HeaderValue::from(millis(expected)));
        Some(expected)
    }
}

impl GrpcTimeout {
    fn timeout(&self, asked: Option<Duration>) -> Option<Duration> {
        let asked = asked.filter(|asked| !asked.is_zero());
        let less = asked.map(|asked| match self.offset < asked {
            true => asked - self.offset,
            false => asked,
        });
        less.into_iter().chain(self.max).min()
    }

    fn duration(&self, asked: Duration) -> Duration {
        let most = self.max.map_or(asked, |max| asked.min(max));
        most.saturating_sub(self.offset)
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// What a client says its call may take, in whole milliseconds, rounded up; nothing if it says nothing that can be understood.
fn asked(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(GRPC_TIMEOUT)?.to_str().ok()?;
    let unit = value.len().checked_sub(1)?;
    let (number, unit) = (value.get(..unit)?, value.get(unit..)?);
    let number: u64 = Some(number)
        .filter(|number| number.bytes().all(|byte| byte.is_ascii_digit()))?
        .parse()
        .ok()
        .filter(|number| *number <= LARGEST)?;
    Some(Duration::from_millis(match unit {
        "H" => number * 3_600_000,
        "M" => number * 60_000,
        "S" => number * 1000,
        "m" => number,
        "u" => number.div_ceil(1000),
        "n" => number.div_ceil(1_000_000),
        _ => return None,
    }))
}

/// A time as gRPC writes it: in the finest unit from milliseconds on in which it has eight digits.
fn written(duration: Duration) -> HeaderValue {
    let millis = millis(duration);
    let (number, unit) = match millis {
        0..=LARGEST => (millis, 'm'),
        _ if millis / 1000 <= LARGEST => (millis / 1000, 'S'),
        _ if millis / 60_000 <= LARGEST => (millis / 60_000, 'M'),
        _ => ((millis / 3_600_000).min(LARGEST), 'H'),
    };
    HeaderValue::try_from(format!("{number}{unit}")).unwrap_or(HeaderValue::from_static("99999999H"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{Forward, WeightedCluster};

    fn forward() -> Forward {
        let cluster = WeightedCluster {
            cluster: "a".into(),
            weight: 1,
            labels: Default::default(),
            request_headers: Default::default(),
            response_headers: Default::default(),
        };
        Forward::new(vec![cluster]).unwrap()
    }

    fn says(value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if !value.is_empty() {
            headers.insert(GRPC_TIMEOUT, value.parse().unwrap());
        }
        headers
    }

    const fn ms(millis: u64) -> Option<Duration> {
        Some(Duration::from_millis(millis))
    }

    #[test]
    fn grpc_times_are_read_as_grpc_writes_them() {
        for (text, expected) in [
            ("5S", ms(5000)),
            ("2H", ms(7_200_000)),
            ("3M", ms(180_000)),
            ("7m", ms(7)),
            ("1u", ms(1)),
            ("1001u", ms(2)),
            ("99999999n", ms(100)),
            ("0S", ms(0)),
            ("100000000m", None),
            ("S", None),
            ("5", None),
            ("5s", None),
            ("-5S", None),
            ("+5S", None),
            ("5 S", None),
            ("5\u{b5}", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(GRPC_TIMEOUT, HeaderValue::from_bytes(text.as_bytes()).unwrap());
            assert_eq!(asked(&headers), expected, "{text}");
        }
        assert_eq!(asked(&HeaderMap::new()), None);
    }

    #[test]
    fn grpc_times_are_written_with_eight_digits() {
        for (millis, expected) in [
            (0, "0m"),
            (99_999_999, "99999999m"),
            (100_000_000, "100000S"),
            (u64::MAX, "99999999H"),
        ] {
            assert_eq!(written(Duration::from_millis(millis)), expected);
        }
    }

    #[test]
    fn a_grpc_timeout_is_capped_and_shortened() {
        let seconds = Duration::from_secs;
        let mut forward = forward();
        for (max, offset, says_, expected) in [
            (Some(10), 0, "5S", ms(5000)),
            (Some(10), 0, "20S", ms(10_000)),
            (Some(10), 0, "", ms(10_000)),
            (Some(10), 0, "0S", ms(10_000)),
            (None, 0, "20S", ms(20_000)),
            (None, 0, "", None),
            (Some(10), 1, "5S", ms(4000)),
            (Some(10), 1, "500m", ms(500)),
        ] {
            forward.grpc_timeout = Some(GrpcTimeout {
                max: max.map(seconds),
                offset: seconds(offset),
            });
            let mut headers = says(says_);
            assert_eq!(
                forward.times(&mut headers, true).timeout,
                expected,
                "{max:?} {offset} {says_}"
            );
            let told = headers
                .get(GRPC_TIMEOUT)
                .map(|value| value.to_str().unwrap().to_owned());
            let told_ms = expected.map(|time| format!("{}m", time.as_millis()));
            assert_eq!(told, told_ms.or((!says_.is_empty()).then(|| says_.to_owned())));
            // Others have the route's.
            assert_eq!(forward.times(&mut says(says_), false).timeout, ms(15_000));
        }
    }

    #[test]
    fn a_duration_takes_the_place_of_a_timeout() {
        let seconds = Duration::from_secs;
        let mut forward = forward();
        let grpc = |max, offset| {
            let max = Some(seconds(max)).filter(|max| !max.is_zero());
            Some(GrpcTimeout {
                max,
                offset: seconds(offset),
            })
        };
        for (limit, grpc, says_, expected) in [
            (Some(30), None, "5S", ms(30_000)),
            (Some(30), grpc(10, 0), "5S", ms(5000)),
            (Some(30), grpc(10, 0), "20S", ms(10_000)),
            (Some(30), grpc(0, 0), "20S", ms(20_000)),
            (Some(30), grpc(10, 1), "20S", ms(9000)),
            (Some(30), grpc(10, 6), "5S", ms(0)),
            (Some(30), grpc(10, 0), "", ms(30_000)),
            (None, grpc(10, 0), "", None),
        ] {
            forward.duration = Some(StreamDuration {
                limit: limit.map(seconds),
                grpc,
            });
            let times = forward.times(&mut says(says_), true);
            assert_eq!(times.duration, expected, "{limit:?} {grpc:?} {says_}");
            assert_eq!(times.timeout, None);
        }
    }
}
