//! `fault` of a route's `forward`.

use std::time::Duration;

use serde::Deserialize;

use super::super::reading::{Path, Reading, YES_OR_NO};
use super::super::scalar::Scalar;
use super::actions::status;
use crate::http::{Abort, Delay, Fault};

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct FaultShape<'a> {
    #[serde(borrow)]
    delay: Option<Scalar<'a>>,
    delay_by_header: Option<Scalar<'a>>,
    delay_percent: Option<Scalar<'a>>,
    abort: Option<Scalar<'a>>,
    abort_grpc: Option<Scalar<'a>>,
    abort_by_header: Option<Scalar<'a>>,
    abort_percent: Option<Scalar<'a>>,
}

impl FaultShape<'_> {
    pub(super) fn compile(&self, path: Path<'_>, reading: &mut Reading) -> Fault {
        let delay_share = parts(path.field("delay_percent"), self.delay_percent.as_ref(), reading);
        let abort_share = parts(path.field("abort_percent"), self.abort_percent.as_ref(), reading);
        let mut flag = |name, value: &Option<Scalar<'_>>| {
            let word = reading.choice(path.field(name), value.as_ref(), &YES_OR_NO);
            word.unwrap_or_default()
        };
        let delays = flag("delay_by_header", &self.delay_by_header);
        let aborts = flag("abort_by_header", &self.abort_by_header);
        only_one(
            path,
            "delay",
            [("delay", &self.delay), ("delay_by_header", &self.delay_by_header)],
            reading,
        );
        let ways = [
            ("abort", &self.abort),
            ("abort_grpc", &self.abort_grpc),
            ("abort_by_header", &self.abort_by_header),
        ];
        only_one(path, "abort", ways, reading);
        let delay = self.delay.as_ref();
        let delay = delay.map(|value| reading.duration(path.field("delay"), Some(value), Duration::ZERO));
        let of_http = self.abort.as_ref();
        let of_http = of_http.and_then(|value| status(path.field("abort"), value, reading));
        let of_grpc = self.abort_grpc.as_ref();
        // gRPC's statuses but for OK (gRPC's doc/statuscodes.md).
        let of_grpc = of_grpc.and_then(|value| reading.count(path.field("abort_grpc"), value, 1..=16));
        let of_grpc = of_grpc.and_then(|code| u16::try_from(code).ok());
        let delay = delay.map(Delay::Fixed).or(delays.then_some(Delay::Header));
        let abort = of_http.map(Abort::Http).or(of_grpc.map(Abort::Grpc));
        let abort = abort.or(aborts.then_some(Abort::Header));
        Fault {
            delay: delay.map(|delay| (delay, delay_share)),
            abort: abort.map(|abort| (abort, abort_share)),
        }
    }
}

/// A percentage, in parts of a million; all if there is none.
pub(super) fn parts(path: Path<'_>, value: Option<&Scalar<'_>>, reading: &mut Reading) -> u32 {
    let Some(value) = value else { return Fault::ALL };
    let percent = value
        .parse::<f64>()
        .ok()
        .filter(|percent| (0.0..=100.0).contains(percent));
    match percent {
        // At most a million.
        Some(percent) => (percent * 10_000.0).round() as u32,
        None => {
            reading.report(
                path,
                value,
                "is not a percentage",
                "write a number from 0 to 100, for example 0.5",
            );
            0
        }
    }
}

/// Reports a second way to say what is said once.
fn only_one<const N: usize>(
    path: Path<'_>,
    what: &str,
    ways: [(&'static str, &Option<Scalar<'_>>); N],
    reading: &mut Reading,
) {
    let mut given = ways.iter().filter_map(|(name, value)| Some((*name, value.as_ref()?)));
    if let (Some((first, _)), Some((second, value))) = (given.next(), given.next()) {
        let remedy = format!("a request has one {what}: remove one");
        reading.report(path.field(second), value, format!("`{first}` is given too"), remedy);
    }
}
