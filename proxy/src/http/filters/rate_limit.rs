//! So many requests of a table pass.

use std::time::Instant;

use underpass_config::http::LocalRateLimit;

use super::{Passing, Refused};
use crate::http::facts::Known;
use crate::http::flags::Flags;
use crate::http::reply::reply;

/// Counts a request.
///
/// # Errors
/// The answer to one too many, in Envoy's words.
pub fn pass(limit: &LocalRateLimit, passing: &mut Passing<'_>) -> Result<(), Refused> {
    if limit.bucket.take(Instant::now()) {
        return Ok(());
    }
    passing.record.flags.add(Flags::RATE_LIMITED);
    passing.record.details = "local_rate_limited".into();
    let mut response = reply(passing.audience, limit.status, "local_rate_limited");
    let known = Known::for_response(passing.intake, passing.record, limit.status);
    limit.response_headers.apply(response.headers_mut(), &known);
    Err(response.into())
}
