//! Values that many messages have: texts that are matched, times, shares, names.

use std::collections::BTreeMap;
use std::time::Duration;

use http::header::HeaderName;
use http::{HeaderValue, StatusCode};
use ipnet::IpNet;
use prost::{Message, Name};
use prost_types::{Any, Struct, Value, value::Kind};
use underpass_config::http::{Fault, Regex, TextMatch, whole_pattern};

use super::inspection::type_name;
use super::refusal::{At, Refused};
use crate::proto::envoy::config::core::v3 as base;
use crate::proto::envoy::r#type::matcher::v3 as matcher;
use crate::proto::envoy::r#type::v3 as types;
use matcher::string_matcher::MatchPattern;

/// What is in an `Any`, which must be an `M`.
pub(super) fn unpack<M: Message + Name + Default>(any: Option<&Any>) -> Result<M, Refused> {
    let any = any.ok_or_else(|| Refused::missing(""))?;
    let name = type_name(any);
    if name != M::full_name() {
        return Err(Refused::unsupported("", format!("a `{name}`")));
    }
    M::decode(&*any.value).map_err(|error| Refused::new("", format!("can't be decoded: {error}")))
}

/// A condition on a text.
pub(super) fn text_match(wire: &matcher::StringMatcher) -> Result<TextMatch, Refused> {
    let matcher::StringMatcher {
        ignore_case,
        match_pattern,
    } = wire;
    let matched = match match_pattern {
        Some(MatchPattern::Exact(text)) => TextMatch::Exact(text.clone()),
        Some(MatchPattern::Prefix(text)) => TextMatch::Prefix(text.clone()),
        Some(MatchPattern::Suffix(text)) => TextMatch::Suffix(text.clone()),
        Some(MatchPattern::Contains(text)) => TextMatch::Contains(text.clone()),
        Some(MatchPattern::SafeRegex(pattern)) => {
            // As with Envoy, patterns say so themselves.
            return whole(&pattern.regex).map(TextMatch::Regex).at("safe_regex.regex");
        }
        None => return Err(Refused::missing("match_pattern")),
    };
    Ok(match ignore_case {
        true => TextMatch::IgnoreCase(Box::new(matched)),
        false => matched,
    })
}

/// A condition that has to be there.
pub(super) fn required_text_match(wire: Option<&matcher::StringMatcher>) -> Result<TextMatch, Refused> {
    text_match(wire.ok_or_else(|| Refused::missing(""))?)
}

/// A pattern that the whole of a text has to match.
pub(super) fn whole(pattern: &str) -> Result<Regex, Refused> {
    whole_pattern(pattern).map_err(|error| Refused::new("", error.to_string()))
}

/// A time, which is not negative.
pub(super) fn duration(wire: &prost_types::Duration) -> Result<Duration, Refused> {
    Duration::try_from(*wire).map_err(|_| Refused::new("", format!("is {wire}, which is no length of time")))
}

/// A time; none, if it is not said.
pub(super) fn said(field: &str, wire: Option<&prost_types::Duration>) -> Result<Option<Duration>, Refused> {
    wire.map(duration).transpose().at(field)
}

/// A limit, of which zero stands for none; `default` if it is not said.
pub(super) fn limit(
    field: &str,
    wire: Option<&prost_types::Duration>,
    default: Option<Duration>,
) -> Result<Option<Duration>, Refused> {
    Ok(match said(field, wire)? {
        None => default,
        said => said.filter(|time| !time.is_zero()),
    })
}

/// A share, in parts of a million.
pub(super) fn parts(wire: &types::FractionalPercent) -> Result<u32, Refused> {
    use types::fractional_percent::DenominatorType;
    let types::FractionalPercent { numerator, denominator } = wire;
    let each = match DenominatorType::try_from(*denominator) {
        Ok(DenominatorType::Hundred) => 10_000,
        Ok(DenominatorType::TenThousand) => 100,
        Ok(DenominatorType::Million) => 1,
        Err(_) => return Err(Refused::unsupported("denominator", denominator)),
    };
    Ok(numerator.saturating_mul(each).min(Fault::ALL))
}

/// Percent, as a whole number.
pub(super) fn percent(wire: &types::Percent) -> Result<u32, Refused> {
    let types::Percent { value } = wire;
    match (0.0..=100.0).contains(value) {
        // At most a hundred.
        true => Ok(value.round() as u32),
        false => Err(Refused::new("value", format!("is {value}, which is no percentage"))),
    }
}

/// The name of a header field.
pub(super) fn field_name(name: &str) -> Result<HeaderName, Refused> {
    HeaderName::try_from(name).map_err(|_| Refused::new("", format!("is `{name}`, which is no name of a header field")))
}

/// The value of a header field.
pub(super) fn field_value(value: &str) -> Result<HeaderValue, Refused> {
    HeaderValue::try_from(value)
        .map_err(|_| Refused::new("", format!("is `{value}`, which is no value of a header field")))
}

/// A status that a proxy may answer with.
pub(super) fn status(code: u32) -> Result<StatusCode, Refused> {
    let is_one = (200..=599).contains(&code);
    let status = u16::try_from(code)
        .ok()
        .and_then(|code| StatusCode::from_u16(code).ok());
    status.filter(|_| is_one).ok_or_else(|| Refused::unsupported("", code))
}

/// A port that can be connected to.
pub(super) fn port(number: u32) -> Result<u16, Refused> {
    let port = u16::try_from(number).ok().filter(|port| *port != 0);
    port.ok_or_else(|| Refused::new("", format!("is {number}, which is no port")))
}

/// A range of addresses.
pub(super) fn range(address: &str, length: Option<u32>) -> Result<IpNet, Refused> {
    let address = address
        .parse()
        .map_err(|_| Refused::new("address_prefix", format!("is `{address}`, which is no address")))?;
    // Envoy's: a range that says no length has all addresses.
    let length = u8::try_from(length.unwrap_or(0)).ok();
    let net = length.and_then(|length| IpNet::new(address, length).ok());
    let net = net.ok_or_else(|| Refused::new("prefix_len", "is longer than the address"))?;
    Ok(net.trunc())
}

/// A range of addresses, as rules have it.
pub(super) fn cidr(wire: &base::CidrRange) -> Result<IpNet, Refused> {
    let base::CidrRange {
        address_prefix,
        prefix_len,
    } = wire;
    range(address_prefix, *prefix_len)
}

/// What `filter_metadata` says under a name.
pub(super) fn metadata<'m>(wire: Option<&'m base::Metadata>, name: &str) -> Option<&'m BTreeMap<String, Value>> {
    Some(&wire?.filter_metadata.get(name)?.fields)
}

/// A text of a struct.
pub(super) fn text<'m>(fields: Option<&'m BTreeMap<String, Value>>, name: &str) -> Option<&'m str> {
    match fields?.get(name)?.kind.as_ref()? {
        Kind::StringValue(text) => Some(text),
        _ => None,
    }
}

/// What a struct has under a name, as another.
pub(super) fn object<'m>(
    fields: Option<&'m BTreeMap<String, Value>>,
    name: &str,
) -> Option<&'m BTreeMap<String, Value>> {
    match fields?.get(name)?.kind.as_ref()? {
        Kind::StructValue(Struct { fields }) => Some(fields),
        _ => None,
    }
}
