//! `typed_per_filter_config` of a route: what goes wrong on purpose, and which pages may read its answers.

use std::collections::BTreeMap;
use std::time::Duration;

use http::HeaderValue;
use prost_types::Any;
use underpass_config::http::{Abort, Cors, CorsList, CorsOrigins, Delay, Fault};

use super::super::refusal::{At, Refused, each, only_if};
use super::super::values::{duration, field_value, parts, status, text_match, unpack};
use super::matches::fraction;
use crate::proto::envoy::extensions::filters::common::fault::v3 as common;
use crate::proto::envoy::extensions::filters::http::cors::v3::CorsPolicy;
use crate::proto::envoy::extensions::filters::http::fault::v3 as fault;
use crate::proto::envoy::r#type::v3::FractionalPercent;
use common::fault_delay::FaultDelaySecifier as DelayKind;
use fault::fault_abort::ErrorType;

/// What a route says to filters.
#[derive(Default)]
pub(super) struct Overrides {
    pub(super) fault: Option<Fault>,
    pub(super) cors: Option<Cors>,
}

pub(super) fn translate(configs: &BTreeMap<String, Any>) -> Result<Overrides, Refused> {
    let mut overrides = Overrides::default();
    for (filter, any) in configs {
        let field = format!("[{filter}]");
        match filter.as_str() {
            "envoy.filters.http.fault" => {
                overrides.fault = Some(unpack(Some(any)).and_then(|wire| of_fault(&wire)).at(&field)?);
            }
            "envoy.filters.http.cors" => {
                overrides.cors = Some(unpack(Some(any)).and_then(|wire| of_cors(&wire)).at(&field)?);
            }
            other => return Err(Refused::unsupported("", format!("for the filter `{other}`"))),
        }
    }
    Ok(overrides)
}

fn of_fault(wire: &fault::HttpFault) -> Result<Fault, Refused> {
    let fault::HttpFault { delay, abort } = wire;
    Ok(Fault {
        delay: delay.as_ref().map(of_delay).transpose().at("delay")?,
        abort: abort.as_ref().map(of_abort).transpose().at("abort")?,
    })
}

/// Envoy's: what says no share befalls nobody.
fn share(wire: Option<&FractionalPercent>) -> Result<u32, Refused> {
    wire.map_or(Ok(0), parts).at("percentage")
}

fn of_delay(wire: &common::FaultDelay) -> Result<(Delay, u32), Refused> {
    let common::FaultDelay {
        fault_delay_secifier,
        percentage,
    } = wire;
    let delay = match fault_delay_secifier {
        Some(DelayKind::FixedDelay(time)) => Delay::Fixed(duration(time).at("fixed_delay")?),
        Some(DelayKind::HeaderDelay(_)) => Delay::Header,
        None => return Err(Refused::missing("fault_delay_secifier")),
    };
    Ok((delay, share(percentage.as_ref())?))
}

fn of_abort(wire: &fault::FaultAbort) -> Result<(Abort, u32), Refused> {
    let fault::FaultAbort { error_type, percentage } = wire;
    let abort = match error_type {
        Some(ErrorType::HttpStatus(code)) => Abort::Http(status(*code).at("http_status")?),
        Some(ErrorType::GrpcStatus(code)) => {
            let code = u16::try_from(*code).ok().filter(|code| *code <= 16);
            Abort::Grpc(code.ok_or_else(|| Refused::new("grpc_status", "is no status of gRPC"))?)
        }
        Some(ErrorType::HeaderAbort(_)) => Abort::Header,
        None => return Err(Refused::missing("error_type")),
    };
    Ok((abort, share(percentage.as_ref())?))
}

fn of_cors(wire: &CorsPolicy) -> Result<Cors, Refused> {
    let CorsPolicy {
        allow_origin_string_match,
        allow_methods,
        allow_headers,
        expose_headers,
        max_age,
        allow_credentials,
        filter_enabled,
        forward_not_matching_preflights,
    } = wire;
    let enabled = fraction(filter_enabled.as_ref()).map(parts).transpose();
    let is_always = enabled.at("filter_enabled")?.is_none_or(|share| share == Fault::ALL);
    only_if(
        is_always,
        "filter_enabled",
        "is a share of requests, which is not supported",
    )?;
    let origins = each("allow_origin_string_match", allow_origin_string_match, text_match)?;
    Ok(Cors {
        origins: CorsOrigins::new(origins),
        methods: list(allow_methods).at("allow_methods")?,
        headers: list(allow_headers).at("allow_headers")?,
        exposed: said(expose_headers).at("expose_headers")?,
        max_age: match max_age.as_str() {
            "" => None,
            seconds => {
                let seconds = seconds.parse::<u64>();
                let seconds = seconds.map_err(|_| Refused::new("max_age", "is no number of seconds"))?;
                Some(HeaderValue::from(Duration::from_secs(seconds).as_secs()))
            }
        },
        credentials: *allow_credentials,
        forward_unmatched: *forward_not_matching_preflights,
    })
}

fn said(text: &str) -> Result<Option<HeaderValue>, Refused> {
    match text {
        "" => Ok(None),
        text => field_value(text).map(Some),
    }
}

fn list(text: &str) -> Result<CorsList, Refused> {
    match text {
        "*" => Ok(CorsList::Asked),
        text => Ok(said(text)?.map_or(CorsList::Nothing, CorsList::Only)),
    }
}
