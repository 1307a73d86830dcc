//! `istio.security.Authorization`.
//!
//! A policy of which anything is not understood (a field or a value from a later Istio, a range that is none) denies
//! whatever it guards. Whom that is must be understood in turn: a scope that is not known is taken to be the policy's
//! namespace, or the whole mesh for a policy of the root namespace, which is as far as a policy can reach.

use prost::Message;
use underpass_config::{
    Action, Authorization, Group, Match, PolicyKey, PolicyScope, Rule, ServiceAccountMatch, StringMatch, Text,
};

use super::{Invalid, MeshFacts, network, required, undecodable};
use crate::proto::istio::security as wire;
use crate::unknown_fields;
use wire::string_match::MatchType;

/// A policy, and what of it is not understood; if anything, it denies.
pub(crate) struct Translated {
    pub(crate) policy: Authorization,
    pub(crate) not_understood: Option<String>,
}

/// Translates one `istio.security.Authorization`, or says that it is none.
pub(crate) fn translate(bytes: &[u8], mesh: &MeshFacts) -> Result<Translated, Invalid> {
    let wire = wire::Authorization::decode(bytes).map_err(undecodable)?;
    let namespace = required("namespace", &wire.namespace)?;
    let name = required("name", &wire.name)?;
    let mut policy = Authorization {
        key: PolicyKey::new(format!("{namespace}/{name}")),
        namespace: namespace.into(),
        scope: scope(wire.scope).unwrap_or_else(|| widest_scope(namespace, mesh)),
        action: Action::Deny,
        dry_run: wire.dry_run,
        groups: Vec::new(),
    };
    let not_understood = match understood(bytes, &wire) {
        Ok((action, groups)) => {
            policy.action = action;
            policy.groups = groups;
            None
        }
        Err(why) => {
            policy.groups = matching_everything();
            Some(why)
        }
    };
    Ok(Translated { policy, not_understood })
}

/// What stands for a policy of which nothing but the name is known, `NAMESPACE/NAME`.
pub(crate) fn of_unknown_content(name: &str, mesh: &MeshFacts) -> Option<Authorization> {
    let (namespace, _) = name.split_once('/')?;
    Some(Authorization {
        key: PolicyKey::new(name),
        namespace: namespace.into(),
        scope: widest_scope(namespace, mesh),
        action: Action::Deny,
        dry_run: false,
        groups: matching_everything(),
    })
}

fn widest_scope(namespace: &str, mesh: &MeshFacts) -> PolicyScope {
    if *namespace == *mesh.root_namespace {
        PolicyScope::Global
    } else {
        PolicyScope::Namespace
    }
}

/// A group without rules matches.
fn matching_everything() -> Vec<Group> {
    vec![Group::default()]
}

fn understood(bytes: &[u8], policy: &wire::Authorization) -> Result<(Action, Vec<Group>), String> {
    if let Some(path) = unknown_fields::first_unknown("istio.security.Authorization", bytes)? {
        return Err(format!("field {path} is not known"));
    }
    if let Some(extension) = policy.extensions.first() {
        return Err(format!("extension `{}` is not known", extension.name));
    }
    if scope(policy.scope).is_none() {
        return Err(format!("scope {} is not known", policy.scope));
    }
    let action = match wire::Action::try_from(policy.action) {
        Ok(wire::Action::Allow) => Action::Allow,
        Ok(wire::Action::Deny) => Action::Deny,
        Err(_) => return Err(format!("action {} is not known", policy.action)),
    };
    let groups = policy.groups.iter().map(group).collect::<Result<_, _>>()?;
    Ok((action, groups))
}

fn scope(value: i32) -> Option<PolicyScope> {
    match wire::Scope::try_from(value).ok()? {
        wire::Scope::Global => Some(PolicyScope::Global),
        wire::Scope::Namespace => Some(PolicyScope::Namespace),
        wire::Scope::WorkloadSelector => Some(PolicyScope::WorkloadSelector),
    }
}

fn group(group: &wire::Group) -> Result<Group, String> {
    let rules = group.rules.iter().map(rule).collect::<Result<_, _>>()?;
    Ok(Group { rules })
}

fn rule(rules: &wire::Rules) -> Result<Rule, String> {
    let matches = rules.matches.iter().map(one_match).collect::<Result<_, _>>()?;
    Ok(Rule { matches })
}

fn one_match(wire: &wire::Match) -> Result<Match, String> {
    // Taken apart by name, so that a new field can't be forgotten here.
    let wire::Match {
        namespaces,
        not_namespaces,
        service_accounts,
        not_service_accounts,
        principals,
        not_principals,
        source_ips,
        not_source_ips,
        destination_ips,
        not_destination_ips,
        destination_ports,
        not_destination_ports,
        extensions,
    } = wire;
    if let Some(extension) = extensions.first() {
        return Err(format!("extension `{}` of a match is not known", extension.name));
    }
    Ok(Match {
        namespaces: each(namespaces, text)?,
        not_namespaces: each(not_namespaces, text)?,
        service_accounts: each(service_accounts, service_account)?,
        not_service_accounts: each(not_service_accounts, service_account)?,
        principals: each(principals, text)?,
        not_principals: each(not_principals, text)?,
        source_ips: each(source_ips, |net| range("source_ips", net))?,
        not_source_ips: each(not_source_ips, |net| range("not_source_ips", net))?,
        destination_ips: each(destination_ips, |net| range("destination_ips", net))?,
        not_destination_ips: each(not_destination_ips, |net| range("not_destination_ips", net))?,
        destination_ports: each(destination_ports, |port| number("destination_ports", *port))?,
        not_destination_ports: each(not_destination_ports, |port| number("not_destination_ports", *port))?,
    })
}

fn each<W, M>(values: &[W], translate: impl Fn(&W) -> Result<M, String>) -> Result<Vec<M>, String> {
    values.iter().map(translate).collect()
}

fn text(pattern: &wire::StringMatch) -> Result<StringMatch, String> {
    let shared = |text: &String| Text::from(text.as_str());
    match &pattern.match_type {
        Some(MatchType::Exact(text)) => Ok(StringMatch::Exact(shared(text))),
        Some(MatchType::Prefix(text)) => Ok(StringMatch::Prefix(shared(text))),
        Some(MatchType::Suffix(text)) => Ok(StringMatch::Suffix(shared(text))),
        Some(MatchType::Presence(())) => Ok(StringMatch::Presence),
        None => Err("a text is to be matched in a way that is not known".into()),
    }
}

fn service_account(account: &wire::ServiceAccountMatch) -> Result<ServiceAccountMatch, String> {
    Ok(ServiceAccountMatch {
        namespace: account.namespace.as_str().into(),
        service_account: account.service_account.as_str().into(),
    })
}

fn range(field: &'static str, range: &wire::Address) -> Result<ipnet::IpNet, String> {
    network::net(field, &range.address, range.length).map_err(|invalid| invalid.to_string())
}

fn number(field: &'static str, port: u32) -> Result<u16, String> {
    network::port_or_zero(field, port).map_err(|invalid| invalid.to_string())
}
