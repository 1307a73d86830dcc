//! `local_rate_limit` of a route table.

use std::time::{Duration, Instant};

use serde::Deserialize;

use super::super::reading::{Path, Reading};
use super::super::scalar::Scalar;
use super::actions::status;
use super::headers::EditsShape;
use crate::http::{LocalRateLimit, TokenBucket, TokenRate};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RateLimitShape<'a> {
    #[serde(borrow)]
    max_tokens: Scalar<'a>,
    tokens_per_fill: Option<Scalar<'a>>,
    fill_interval: Scalar<'a>,
    status: Option<Scalar<'a>>,
    #[serde(default)]
    response_headers: EditsShape<'a>,
}

impl RateLimitShape<'_> {
    pub(super) fn compile(&self, path: Path<'_>, reading: &mut Reading) -> LocalRateLimit {
        let count = 1..=u32::MAX;
        let max_tokens = reading.count(path.field("max_tokens"), &self.max_tokens, count.clone());
        let per_fill = self.tokens_per_fill.as_ref();
        let per_fill = per_fill.and_then(|value| reading.count(path.field("tokens_per_fill"), value, count));
        let interval = path.field("fill_interval");
        let rate = TokenRate {
            max_tokens: max_tokens.unwrap_or(1),
            tokens_per_fill: per_fill.unwrap_or(1),
            fill_interval: reading.duration(interval, Some(&self.fill_interval), Duration::from_secs(1)),
        };
        if !rate.fills_in_time() {
            let remedy = "fewer tokens, more of them per fill, or a shorter interval: it is to be full within a year";
            reading.report(path, &self.max_tokens, "never fills", remedy);
        }
        let of_answer = self.status.as_ref();
        let of_answer = of_answer.and_then(|value| status(path.field("status"), value, reading));
        LocalRateLimit {
            bucket: TokenBucket::new(rate, Instant::now()),
            status: of_answer.unwrap_or(http::StatusCode::TOO_MANY_REQUESTS),
            response_headers: self
                .response_headers
                .of_responses(path.field("response_headers"), reading),
        }
    }
}
