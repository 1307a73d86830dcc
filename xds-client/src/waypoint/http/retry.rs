//! `RetryPolicy`.

use prost_types::Any;
use underpass_config::http::{ResetFormat, ResetHeader, RetryConditions, RetryPolicy, RetryWord};

use super::super::refusal::{At, Refused, each, only_if};
use super::super::values::{field_name, limit, said, status, unpack};
use super::header;
use crate::proto::envoy::config::route::v3 as wire;
use crate::proto::envoy::extensions::retry::host::previous_hosts::v3::PreviousHostsPredicate;
use wire::retry_policy::retry_host_predicate::ConfigType;
use wire::retry_policy::{ResetHeaderFormat, RetryHostPredicate};

pub(super) fn translate(wire: &wire::RetryPolicy) -> Result<RetryPolicy, Refused> {
    let wire::RetryPolicy {
        retry_on,
        num_retries,
        per_try_timeout,
        per_try_idle_timeout,
        retry_host_predicate,
        // How often Envoy draws for another endpoint; ours looks for one.
        host_selection_retry_max_attempts: _,
        retriable_status_codes,
        retry_back_off,
        rate_limited_retry_back_off,
        retriable_headers,
    } = wire;
    let mut on = RetryConditions::default();
    let (mut by_status, mut by_header) = (false, false);
    for word in retry_on.split(',').map(str::trim).filter(|word| !word.is_empty()) {
        match RetryWord::named(word) {
            Some(RetryWord::Statuses) => by_status = true,
            Some(RetryWord::Headers) => by_header = true,
            Some(known) => on.add(known),
            None => return Err(Refused::unsupported("retry_on", format!("`{word}`"))),
        }
    }
    let statuses = each("retriable_status_codes", retriable_status_codes, |code: &u32| {
        status(*code)
    })?;
    let headers = each("retriable_headers", retriable_headers, header)?;
    // Lists without their word say nothing, as with Envoy.
    if by_status {
        on.statuses = statuses;
    }
    if by_header {
        on.headers = headers;
    }
    let (base, longest) = match retry_back_off {
        None => (None, None),
        Some(wire::retry_policy::RetryBackOff {
            base_interval,
            max_interval,
        }) => (
            said("base_interval", base_interval.as_ref()).at("retry_back_off")?,
            said("max_interval", max_interval.as_ref()).at("retry_back_off")?,
        ),
    };
    let base = base.unwrap_or(RetryPolicy::DEFAULT_BASE);
    only_if(!base.is_zero(), "retry_back_off.base_interval", "is 0")?;
    let longest = longest.unwrap_or(base.saturating_mul(10));
    only_if(
        longest >= base,
        "retry_back_off.max_interval",
        "is below `base_interval`",
    )?;
    let (reset_headers, reset_max) = match rate_limited_retry_back_off {
        None => (Vec::new(), None),
        Some(wire::retry_policy::RateLimitedRetryBackOff {
            reset_headers,
            max_interval,
        }) => (
            each("reset_headers", reset_headers, reset_header).at("rate_limited_retry_back_off")?,
            said("max_interval", max_interval.as_ref()).at("rate_limited_retry_back_off")?,
        ),
    };
    each("retry_host_predicate", retry_host_predicate, previous_hosts)?;
    Ok(RetryPolicy {
        on,
        retries: num_retries.unwrap_or(1),
        per_try_timeout: limit("per_try_timeout", per_try_timeout.as_ref(), None)?,
        per_try_idle_timeout: limit("per_try_idle_timeout", per_try_idle_timeout.as_ref(), None)?,
        reset_headers,
        reset_max_interval: reset_max.unwrap_or(RetryPolicy::DEFAULT_RESET),
        base_interval: base,
        max_interval: longest,
        other_endpoints: !retry_host_predicate.is_empty(),
        replay: RetryPolicy::DEFAULT_REPLAY,
    })
}

fn reset_header(wire: &wire::retry_policy::ResetHeader) -> Result<ResetHeader, Refused> {
    let wire::retry_policy::ResetHeader { name, format } = wire;
    Ok(ResetHeader {
        name: field_name(name).at("name")?,
        format: match ResetHeaderFormat::try_from(*format) {
            Ok(ResetHeaderFormat::Seconds) => ResetFormat::Seconds,
            Ok(ResetHeaderFormat::UnixTimestamp) => ResetFormat::UnixTimestamp,
            Err(_) => return Err(Refused::unsupported("format", format)),
        },
    })
}

fn previous_hosts(wire: &RetryHostPredicate) -> Result<(), Refused> {
    let RetryHostPredicate {
        // A label: the type decides.
        name: _,
        config_type,
    } = wire;
    let any: Option<&Any> = config_type.as_ref().map(|ConfigType::TypedConfig(any)| any);
    let PreviousHostsPredicate {} = unpack(any).at("typed_config")?;
    Ok(())
}
