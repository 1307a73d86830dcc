//! `timeout` and what else of a route's `forward` says how long a request may take.

use std::time::Duration;

use serde::Deserialize;

use super::super::reading::{Path, Reading};
use super::super::scalar::{Scalar, ScalarOr};
use crate::http::{GrpcTimeout, StreamDuration};

/// A limit, or a mapping that also says what becomes of `grpc-timeout`.
pub(super) type DurationShape<'a> = ScalarOr<'a, GrpcDurationShape<'a>>;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct GrpcDurationShape<'a> {
    #[serde(borrow)]
    limit: Option<Scalar<'a>>,
    grpc_timeout_header_max: Option<Scalar<'a>>,
    grpc_timeout_header_offset: Option<Scalar<'a>>,
}

/// Zero stands for no limit.
pub(super) fn limit(path: Path<'_>, value: Option<&Scalar<'_>>, reading: &mut Reading) -> Option<Duration> {
    let limit = reading.duration_or_zero(path, value, Duration::ZERO);
    (!limit.is_zero()).then_some(limit)
}

/// `max_grpc_timeout` and its offset.
pub(super) fn grpc_timeout(
    path: Path<'_>,
    (name, max): (&'static str, Option<&Scalar<'_>>),
    (offset_name, offset): (&'static str, Option<&Scalar<'_>>),
    reading: &mut Reading,
) -> Option<GrpcTimeout> {
    if max.is_none()
        && let Some(offset) = offset
    {
        let remedy = format!("write `{name}` too, 0s for no limit, or remove it");
        reading.report(path.field(offset_name), offset, "shortens nothing", remedy);
    }
    max.map(|max| GrpcTimeout {
        max: limit(path.field(name), Some(max), reading),
        offset: reading.duration_or_zero(path.field(offset_name), offset, Duration::ZERO),
    })
}

pub(super) fn duration(path: Path<'_>, shape: &DurationShape<'_>, reading: &mut Reading) -> StreamDuration {
    match shape {
        ScalarOr::Scalar(value) => StreamDuration {
            limit: limit(path, Some(value), reading),
            grpc: None,
        },
        ScalarOr::Mapping(shape) => {
            let max = ("grpc_timeout_header_max", shape.grpc_timeout_header_max.as_ref());
            let offset = ("grpc_timeout_header_offset", shape.grpc_timeout_header_offset.as_ref());
            StreamDuration {
                limit: limit(path.field("limit"), shape.limit.as_ref(), reading),
                grpc: grpc_timeout(path, max, offset, reading),
            }
        }
    }
}
