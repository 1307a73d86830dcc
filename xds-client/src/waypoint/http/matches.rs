//! `RouteMatch`, `HeaderMatcher`, `QueryParameterMatcher`.

use underpass_config::http::{Field, Fraction, HeaderMatch, PathMatch, QueryMatch, RouteMatch};

use super::super::refusal::{At, Refused, each};
use super::super::values::{text_match, whole};
use crate::proto::envoy::config::core::v3::RuntimeFractionalPercent;
use crate::proto::envoy::config::route::v3 as wire;
use crate::proto::envoy::r#type::v3::FractionalPercent;
use crate::proto::envoy::r#type::v3::fractional_percent::DenominatorType;
use wire::header_matcher::HeaderMatchSpecifier;
use wire::query_parameter_matcher::QueryParameterMatchSpecifier;
use wire::route_match::PathSpecifier;

pub(in super::super) fn route_match(wire: &wire::RouteMatch) -> Result<RouteMatch, Refused> {
    let wire::RouteMatch {
        path_specifier,
        case_sensitive,
        headers,
        query_parameters,
        runtime_fraction,
    } = wire;
    let path = match path_specifier {
        Some(PathSpecifier::Prefix(prefix)) => PathMatch::Prefix(prefix.clone()),
        Some(PathSpecifier::Path(exact)) => PathMatch::Exact(exact.clone()),
        Some(PathSpecifier::PathSeparatedPrefix(prefix)) => PathMatch::Segments(prefix.clone()),
        Some(PathSpecifier::SafeRegex(pattern)) => PathMatch::Regex(whole(&pattern.regex).at("safe_regex.regex")?),
        Some(PathSpecifier::ConnectMatcher(_)) => {
            return Err(Refused::unsupported("connect_matcher", "for wiring only"));
        }
        None => return Err(Refused::missing("path_specifier")),
    };
    let fraction = match fraction(runtime_fraction.as_ref()) {
        None => None,
        Some(FractionalPercent { numerator, denominator }) => {
            let denominator = match DenominatorType::try_from(*denominator) {
                Ok(DenominatorType::Hundred) => 100,
                Ok(DenominatorType::TenThousand) => 10_000,
                Ok(DenominatorType::Million) => 1_000_000,
                Err(_) => return Err(Refused::unsupported("runtime_fraction", denominator)),
            };
            Some(Fraction {
                numerator: *numerator,
                denominator,
            })
        }
    };
    let mut query = each("query_parameters", query_parameters, query_match)?;
    // They come in any order, and all have to hold.
    query.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(RouteMatch {
        path,
        case_sensitive: case_sensitive.unwrap_or(true),
        headers: each("headers", headers, header)?,
        query,
        fraction,
    })
}

/// There is no runtime here that could say another than the default.
pub(super) fn fraction(wire: Option<&RuntimeFractionalPercent>) -> Option<&FractionalPercent> {
    let RuntimeFractionalPercent {
        default_value,
        runtime_key: _,
    } = wire?;
    default_value.as_ref()
}

pub(in super::super) fn header(wire: &wire::HeaderMatcher) -> Result<HeaderMatch, Refused> {
    let wire::HeaderMatcher {
        name,
        header_match_specifier,
        invert_match,
        treat_missing_header_as_empty,
    } = wire;
    let field = Field::named(name);
    let field =
        field.ok_or_else(|| Refused::new("name", format!("is `{name}`, which is no name of a header field")))?;
    let (value, invert) = match header_match_specifier {
        // Envoy's: without a word, that it is there.
        None => (None, false),
        Some(HeaderMatchSpecifier::PresentMatch(is_there)) => (None, !is_there),
        Some(HeaderMatchSpecifier::StringMatch(wire)) => (Some(text_match(wire).at("string_match")?), false),
    };
    Ok(HeaderMatch {
        field,
        value,
        invert: invert != *invert_match,
        missing_is_empty: *treat_missing_header_as_empty,
    })
}

fn query_match(wire: &wire::QueryParameterMatcher) -> Result<QueryMatch, Refused> {
    let wire::QueryParameterMatcher {
        name,
        query_parameter_match_specifier,
    } = wire;
    let value = match query_parameter_match_specifier {
        None | Some(QueryParameterMatchSpecifier::PresentMatch(true)) => None,
        Some(QueryParameterMatchSpecifier::PresentMatch(false)) => {
            return Err(Refused::unsupported("present_match", "false"));
        }
        Some(QueryParameterMatchSpecifier::StringMatch(wire)) => Some(text_match(wire).at("string_match")?),
    };
    Ok(QueryMatch {
        name: name.clone(),
        value,
    })
}
