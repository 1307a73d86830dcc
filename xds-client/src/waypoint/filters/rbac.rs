//! `config.rbac.v3.RBAC`: rules on who may ask for what, of requests and of connections.

use underpass_config::http::{
    ClaimMatch, Condition, PathTemplate, Policy, Rbac, RuleAction, Rules, TextMatch, ValueMatch,
};

use super::super::http::header;
use super::super::refusal::{At, Refused, each, only_if};
use super::super::values::{cidr, required_text_match, text_match, unpack};
use crate::proto::envoy::config::core::v3::TypedExtensionConfig;
use crate::proto::envoy::config::rbac::v3 as wire;
use crate::proto::envoy::extensions::path::r#match::uri_template::v3::UriTemplateMatchConfig;
use crate::proto::envoy::r#type::matcher::v3 as matcher;
use crate::proto::envoy::r#type::v3::Int32Range;
use matcher::value_matcher::MatchPattern;
use wire::permission::Rule;
use wire::principal::Identifier;

/// The peer's identity, as the listener of HBONE keeps it.
const PEER: &str = "io.istio.peer_principal";
/// Where the filter of tokens leaves what they claim.
const JWT: &str = "envoy.filters.http.jwt_authn";
pub(super) const PAYLOAD: &str = "payload";
/// Levels of a rule; istiod's have six.
const DEEPEST: usize = 32;

/// Rules of requests: those that decide, and those that only tell.
pub(super) fn translate(rules: [Option<&wire::Rbac>; 2], shadow_prefix: &str) -> Result<Rbac, Refused> {
    let [rules, shadow] = rules;
    Ok(Rbac {
        rules: rules.map(of_rules).transpose().at("rules")?,
        shadow: shadow.map(of_rules).transpose().at("shadow_rules")?,
        shadow_prefix: shadow_prefix.into(),
    })
}

/// Rules of connections, none of which may ask for a request.
pub(in super::super) fn of_connections(rules: [Option<&wire::Rbac>; 2], shadow_prefix: &str) -> Result<Rbac, Refused> {
    let rbac = translate(rules, shadow_prefix)?;
    for (field, rules) in [("rules", &rbac.rules), ("shadow_rules", &rbac.shadow)] {
        let asks = rules.as_ref().is_some_and(Rules::ask_for_requests);
        only_if(!asks, field, "ask for a request, and there is none")?;
    }
    Ok(rbac)
}

fn of_rules(wire: &wire::Rbac) -> Result<Rules, Refused> {
    let wire::Rbac { action, policies } = wire;
    let action = match wire::rbac::Action::try_from(*action) {
        Ok(wire::rbac::Action::Allow) => RuleAction::Allow,
        Ok(wire::rbac::Action::Deny) => RuleAction::Deny,
        Ok(wire::rbac::Action::Log) => RuleAction::Log,
        Err(_) => return Err(Refused::unsupported("action", action)),
    };
    let mut translated = Vec::with_capacity(policies.len());
    for (name, policy) in policies {
        translated.push(of_policy(name, policy).at(&format!("policies[{name}]"))?);
    }
    Ok(Rules::new(action, translated))
}

fn of_policy(name: &str, wire: &wire::Policy) -> Result<Policy, Refused> {
    let wire::Policy {
        permissions,
        principals,
    } = wire;
    // One of each has to hold; of none, none does.
    Ok(Policy {
        name: name.into(),
        permission: Condition::Either(each("permissions", permissions, |wire| permission(wire, 0))?),
        principal: Condition::Either(each("principals", principals, |wire| principal(wire, 0))?),
    })
}

fn no_deeper(depth: usize) -> Result<(), Refused> {
    only_if(depth < DEEPEST, "", "has too many levels")
}

fn any(is: bool) -> Result<Condition, Refused> {
    only_if(is, "any", "is false, which means nothing")?;
    Ok(Condition::Any)
}

fn permission(wire: &wire::Permission, depth: usize) -> Result<Condition, Refused> {
    no_deeper(depth)?;
    let all = |field: &str, set: &wire::permission::Set| {
        let wire::permission::Set { rules } = set;
        each("rules", rules, |wire| permission(wire, depth + 1)).at(field)
    };
    match &wire.rule {
        Some(Rule::AndRules(set)) => all("and_rules", set).map(Condition::All),
        Some(Rule::OrRules(set)) => all("or_rules", set).map(Condition::Either),
        Some(Rule::NotRule(inner)) => {
            let inner = permission(inner, depth + 1).at("not_rule")?;
            Ok(Condition::Not(Box::new(inner)))
        }
        Some(Rule::Any(is)) => any(*is),
        Some(Rule::Header(wire)) => header(wire).map(Condition::Header).at("header"),
        Some(Rule::UrlPath(wire)) => path(wire).at("url_path"),
        Some(Rule::UriTemplate(TypedExtensionConfig { name: _, typed_config })) => {
            let UriTemplateMatchConfig { path_template } = unpack(typed_config.as_ref()).at("uri_template")?;
            let template = PathTemplate::new(&path_template);
            let template = template.map_err(|why| Refused::new("uri_template", format!("`{path_template}`: {why}")))?;
            Ok(Condition::Template(template))
        }
        Some(Rule::DestinationIp(wire)) => cidr(wire).map(Condition::DestinationIp).at("destination_ip"),
        Some(Rule::DestinationPort(number)) => {
            let port = u16::try_from(*number).map_err(|_| Refused::new("destination_port", "is no port"))?;
            Ok(Condition::DestinationPort(port..=port))
        }
        Some(Rule::DestinationPortRange(Int32Range { start, end })) => {
            // Without its end.
            let first = u16::try_from(*start).ok();
            let last = end.checked_sub(1).and_then(|last| u16::try_from(last).ok());
            match (first, last) {
                (Some(first), Some(last)) if first <= last => Ok(Condition::DestinationPort(first..=last)),
                _ => Err(Refused::new("destination_port_range", "is no range of ports")),
            }
        }
        Some(Rule::RequestedServerName(wire)) => {
            text_match(wire).map(Condition::ServerName).at("requested_server_name")
        }
        None => Err(Refused::missing("rule")),
    }
}

fn principal(wire: &wire::Principal, depth: usize) -> Result<Condition, Refused> {
    no_deeper(depth)?;
    let all = |field: &str, set: &wire::principal::Set| {
        let wire::principal::Set { ids } = set;
        each("ids", ids, |wire| principal(wire, depth + 1)).at(field)
    };
    match &wire.identifier {
        Some(Identifier::AndIds(set)) => all("and_ids", set).map(Condition::All),
        Some(Identifier::OrIds(set)) => all("or_ids", set).map(Condition::Either),
        Some(Identifier::NotId(inner)) => {
            let inner = principal(inner, depth + 1).at("not_id")?;
            Ok(Condition::Not(Box::new(inner)))
        }
        Some(Identifier::Any(is)) => any(*is),
        Some(Identifier::Header(wire)) => header(wire).map(Condition::Header).at("header"),
        Some(Identifier::UrlPath(wire)) => path(wire).at("url_path"),
        Some(Identifier::DirectRemoteIp(wire)) => cidr(wire).map(Condition::PeerIp).at("direct_remote_ip"),
        Some(Identifier::RemoteIp(wire)) => cidr(wire).map(Condition::ClientIp).at("remote_ip"),
        Some(Identifier::FilterState(wire)) => peer(wire).at("filter_state"),
        Some(Identifier::Metadata(wire)) => claim(wire).at("metadata"),
        None => Err(Refused::missing("identifier")),
    }
}

fn path(wire: &matcher::PathMatcher) -> Result<Condition, Refused> {
    let path = wire.rule.as_ref().map(|matcher::path_matcher::Rule::Path(path)| path);
    required_text_match(path).map(Condition::Path).at("path")
}

fn peer(wire: &matcher::FilterStateMatcher) -> Result<Condition, Refused> {
    let matcher::FilterStateMatcher { key, matcher } = wire;
    only_if(key == PEER, "key", &format!("is `{key}`, of which nothing is known"))?;
    let text = matcher
        .as_ref()
        .map(|matcher::filter_state_matcher::Matcher::StringMatch(text)| text);
    let text: TextMatch = required_text_match(text).at("string_match")?;
    Ok(Condition::Principal(text))
}

fn claim(wire: &matcher::MetadataMatcher) -> Result<Condition, Refused> {
    use matcher::metadata_matcher::path_segment::Segment;
    let matcher::MetadataMatcher { filter, path, value } = wire;
    only_if(
        filter == JWT,
        "filter",
        &format!("is `{filter}`, which leaves nothing here"),
    )?;
    let names = each(
        "path",
        path,
        |segment: &matcher::metadata_matcher::PathSegment| match &segment.segment {
            Some(Segment::Key(key)) => Ok(key.as_str().into()),
            None => Err(Refused::missing("key")),
        },
    )?;
    let mut names = names.into_iter();
    let first: Option<underpass_config::Text> = names.next();
    only_if(first.as_deref() == Some(PAYLOAD), "path", "is not within `payload`")?;
    let value = value.as_ref().ok_or_else(|| Refused::missing("value"))?;
    Ok(Condition::Claim(ClaimMatch {
        path: names.collect(),
        value: of_value(value, 0).at("value")?,
    }))
}

fn of_value(wire: &matcher::ValueMatcher, depth: usize) -> Result<ValueMatch, Refused> {
    use matcher::double_matcher::MatchPattern as OfNumber;
    use matcher::list_matcher::MatchPattern as OfList;
    no_deeper(depth)?;
    match &wire.match_pattern {
        Some(MatchPattern::NullMatch(_)) => Ok(ValueMatch::Null),
        Some(MatchPattern::DoubleMatch(matcher::DoubleMatcher {
            match_pattern: Some(OfNumber::Exact(number)),
        })) => Ok(ValueMatch::Number(*number)),
        Some(MatchPattern::StringMatch(text)) => text_match(text).map(ValueMatch::Text).at("string_match"),
        Some(MatchPattern::BoolMatch(is)) => Ok(ValueMatch::Bool(*is)),
        Some(MatchPattern::PresentMatch(is)) => Ok(ValueMatch::Present(*is)),
        Some(MatchPattern::ListMatch(list)) => match &list.match_pattern {
            Some(OfList::OneOf(inner)) => {
                let inner = of_value(inner, depth + 1).at("list_match.one_of")?;
                Ok(ValueMatch::OneOf(Box::new(inner)))
            }
            None => Err(Refused::missing("list_match.one_of")),
        },
        Some(MatchPattern::OrMatch(matcher::OrMatcher { value_matchers })) => {
            let either = each("value_matchers", value_matchers, |wire| of_value(wire, depth + 1));
            either.map(ValueMatch::Either).at("or_match")
        }
        Some(MatchPattern::DoubleMatch(_)) => Err(Refused::missing("double_match.exact")),
        None => Err(Refused::missing("match_pattern")),
    }
}
