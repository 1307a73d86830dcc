//! The `authorization_policies:` section: the shape of `istio.security.Authorization`, with the short forms of string
//! matches that Istio's own API has.
//!
//! A policy that is not understood whole is refused with the document: half a DENY is a hole.

use std::collections::HashMap;
use std::net::IpAddr;

use foldhash::quality::RandomState;
use ipnet::IpNet;
use serde::Deserialize;

use super::reading::{Path, Reading};
use super::scalar::{Scalar, ScalarOr};
use crate::{Action, Authorization, Group, Match, PolicyKey, PolicyScope, Rule, ServiceAccountMatch, StringMatch};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PolicyShape<'a> {
    #[serde(borrow)]
    name: Scalar<'a>,
    namespace: Scalar<'a>,
    scope: Scalar<'a>,
    action: Option<Scalar<'a>>,
    dry_run: Option<Scalar<'a>>,
    #[serde(default)]
    groups: Vec<GroupShape<'a>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct GroupShape<'a> {
    #[serde(borrow, default)]
    rules: Vec<RuleShape<'a>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleShape<'a> {
    #[serde(borrow, default)]
    matches: Vec<MatchShape<'a>>,
}

type Strings<'a> = Vec<ScalarOr<'a, StringMatchShape<'a>>>;
type ServiceAccounts<'a> = Vec<ScalarOr<'a, ServiceAccountShape<'a>>>;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[derive(Default)]
struct MatchShape<'a> {
    #[serde(borrow)]
    namespaces: Strings<'a>,
    not_namespaces: Strings<'a>,
    service_accounts: ServiceAccounts<'a>,
    not_service_accounts: ServiceAccounts<'a>,
    principals: Strings<'a>,
    not_principals: Strings<'a>,
    source_ips: Vec<Scalar<'a>>,
    not_source_ips: Vec<Scalar<'a>>,
    destination_ips: Vec<Scalar<'a>>,
    not_destination_ips: Vec<Scalar<'a>>,
    destination_ports: Vec<Scalar<'a>>,
    not_destination_ports: Vec<Scalar<'a>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct StringMatchShape<'a> {
    #[serde(borrow)]
    exact: Option<Scalar<'a>>,
    prefix: Option<Scalar<'a>>,
    suffix: Option<Scalar<'a>>,
    presence: Option<PresenceShape>,
}

/// `{}`, as protobuf's JSON writes an empty message.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PresenceShape {}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ServiceAccountShape<'a> {
    #[serde(borrow)]
    namespace: Scalar<'a>,
    service_account: Scalar<'a>,
}

const SCOPES: [(&str, PolicyScope); 3] = [
    ("GLOBAL", PolicyScope::Global),
    ("NAMESPACE", PolicyScope::Namespace),
    ("WORKLOAD_SELECTOR", PolicyScope::WorkloadSelector),
];
const ACTIONS: [(&str, Action); 2] = [("ALLOW", Action::Allow), ("DENY", Action::Deny)];
const BOOLEANS: [(&str, bool); 2] = [("true", true), ("false", false)];

/// The policies of a document.
#[derive(Default)]
pub(super) struct Policies {
    compiled: Vec<Authorization>,
    by_key: HashMap<PolicyKey, usize, RandomState>,
}

impl Policies {
    pub(super) fn compile(shapes: &[PolicyShape<'_>], reading: &mut Reading) -> Self {
        let mut policies = Self::default();
        let section = Path::Section("authorization_policies");
        for (index, shape) in shapes.iter().enumerate() {
            let path = section.item(index);
            let policy = shape.compile(path, reading);
            if let Some(first) = policies.by_key.insert(policy.key.clone(), index) {
                let problem = format!("authorization_policies[{first}] already has this name in this namespace");
                let remedy = "give one another `name`; one policy may have several `groups`";
                reading.report(path.field("name"), &shape.name, problem, remedy);
            }
            policies.compiled.push(policy);
        }
        policies
    }

    /// The policy that a workload of `namespace` refers to as `namespace/name`.
    pub(super) fn find(
        &self,
        path: Path<'_>,
        reference: &str,
        namespace: &str,
        reading: &mut Reading,
    ) -> Option<(&PolicyKey, PolicyScope)> {
        if let Some(index) = self.by_key.get(reference) {
            let policy = &self.compiled[*index];
            return Some((&policy.key, policy.scope));
        }
        let own = format!("{namespace}/{reference}");
        let near = match self.by_key.contains_key(&*own) {
            true => Some(&*own),
            false => reading.nearest(reference, self.by_key.keys().map(PolicyKey::as_str)),
        };
        let remedy = match near {
            Some(near) => format!("did you mean `{near}`?"),
            None => "write `namespace/name` of one under `authorization_policies`".to_owned(),
        };
        reading.report(path, reference, "there is no such policy", remedy);
        None
    }

    pub(super) fn finish(self) -> Vec<Authorization> {
        self.compiled
    }
}

impl PolicyShape<'_> {
    fn compile(&self, path: Path<'_>, reading: &mut Reading) -> Authorization {
        let name = reading.name(path.field("name"), &self.name);
        let namespace = reading.name(path.field("namespace"), &self.namespace);
        let scope = reading.choice(path.field("scope"), Some(&self.scope), &SCOPES);
        let groups_path = path.field("groups");
        let groups = self.groups.iter().enumerate().map(|(index, group)| {
            let rules_path = groups_path.item(index);
            let rules_path = rules_path.field("rules");
            let rules = group
                .rules
                .iter()
                .enumerate()
                .map(|(index, rule)| rule.compile(rules_path.item(index), reading));
            Group { rules: rules.collect() }
        });
        Authorization {
            key: PolicyKey::new(format!("{namespace}/{name}")),
            scope: scope.unwrap_or(PolicyScope::Global),
            groups: groups.collect(),
            action: reading
                .choice(path.field("action"), self.action.as_ref(), &ACTIONS)
                .unwrap_or_default(),
            dry_run: reading
                .choice(path.field("dry_run"), self.dry_run.as_ref(), &BOOLEANS)
                .unwrap_or_default(),
            namespace,
        }
    }
}

impl RuleShape<'_> {
    fn compile(&self, path: Path<'_>, reading: &mut Reading) -> Rule {
        let path = path.field("matches");
        let matches = self
            .matches
            .iter()
            .enumerate()
            .map(|(index, shape)| shape.compile(path.item(index), reading));
        Rule {
            matches: matches.collect(),
        }
    }
}

impl MatchShape<'_> {
    fn compile(&self, path: Path<'_>, reading: &mut Reading) -> Match {
        let path = |field| Path::Field(&path, field);
        Match {
            namespaces: all(path("namespaces"), &self.namespaces, reading, string_match),
            not_namespaces: all(path("not_namespaces"), &self.not_namespaces, reading, string_match),
            service_accounts: all(
                path("service_accounts"),
                &self.service_accounts,
                reading,
                service_account,
            ),
            not_service_accounts: all(
                path("not_service_accounts"),
                &self.not_service_accounts,
                reading,
                service_account,
            ),
            principals: all(path("principals"), &self.principals, reading, string_match),
            not_principals: all(path("not_principals"), &self.not_principals, reading, string_match),
            source_ips: all(path("source_ips"), &self.source_ips, reading, ip_range),
            not_source_ips: all(path("not_source_ips"), &self.not_source_ips, reading, ip_range),
            destination_ips: all(path("destination_ips"), &self.destination_ips, reading, ip_range),
            not_destination_ips: all(
                path("not_destination_ips"),
                &self.not_destination_ips,
                reading,
                ip_range,
            ),
            destination_ports: all(path("destination_ports"), &self.destination_ports, reading, port),
            not_destination_ports: all(
                path("not_destination_ports"),
                &self.not_destination_ports,
                reading,
                port,
            ),
        }
    }
}

/// Reads every item of a list; what can't be read has been reported.
fn all<S, V>(
    path: Path<'_>,
    shapes: &[S],
    reading: &mut Reading,
    read: fn(Path<'_>, &S, &mut Reading) -> Option<V>,
) -> Vec<V> {
    shapes
        .iter()
        .enumerate()
        .filter_map(|(index, shape)| read(path.item(index), shape, reading))
        .collect()
}

fn port(path: Path<'_>, value: &Scalar<'_>, reading: &mut Reading) -> Option<u16> {
    reading.port(path, value)
}

/// `*`, `prefix*`, `*suffix` or the exact text, as in Istio's AuthorizationPolicy; or the same spelt out.
fn string_match(
    path: Path<'_>,
    shape: &ScalarOr<'_, StringMatchShape<'_>>,
    reading: &mut Reading,
) -> Option<StringMatch> {
    let text = match shape {
        ScalarOr::Mapping(shape) => return shape.compile(path, reading),
        ScalarOr::Scalar(text) => &**text,
    };
    let (kind, pattern): (fn(_) -> _, _) = match (text.strip_prefix('*'), text.strip_suffix('*')) {
        _ if text == "*" => return Some(StringMatch::Presence),
        (Some(suffix), _) => (StringMatch::Suffix, suffix),
        (_, Some(prefix)) => (StringMatch::Prefix, prefix),
        _ => (StringMatch::Exact, text),
    };
    if pattern.is_empty() {
        reading.report(
            path,
            text,
            "is empty and so matches nothing",
            "write a text, or `\"*\"` for any",
        );
        return None;
    }
    if pattern.contains('*') {
        let remedy = "write `x*`, `*x` or `*`; a star that is meant literally goes into `{exact: …}`";
        reading.report(
            path,
            text,
            "has a star that is neither its beginning nor its end",
            remedy,
        );
        return None;
    }
    Some(kind(reading.text(pattern)))
}

impl StringMatchShape<'_> {
    fn compile(&self, path: Path<'_>, reading: &mut Reading) -> Option<StringMatch> {
        let kinds: [(_, fn(_) -> _); 3] = [
            (&self.exact, StringMatch::Exact),
            (&self.prefix, StringMatch::Prefix),
            (&self.suffix, StringMatch::Suffix),
        ];
        let mut given: Vec<StringMatch> = Vec::new();
        for (value, kind) in kinds {
            let Some(value) = value else { continue };
            if value.is_empty() {
                reading.report(
                    path,
                    value,
                    "has an empty text",
                    "write a text, or `{presence: {}}` for any",
                );
                return None;
            }
            given.push(kind(reading.text(value)));
        }
        given.extend(self.presence.as_ref().map(|PresenceShape {}| StringMatch::Presence));
        if given.len() != 1 {
            let problem = format!("has {} conditions", given.len());
            reading.report(
                path,
                "",
                problem,
                "write exactly one of `exact`, `prefix`, `suffix`, `presence`",
            );
            return None;
        }
        given.pop()
    }
}

/// `namespace/service-account`, or the same spelt out.
fn service_account(
    path: Path<'_>,
    shape: &ScalarOr<'_, ServiceAccountShape<'_>>,
    reading: &mut Reading,
) -> Option<ServiceAccountMatch> {
    match shape {
        ScalarOr::Mapping(shape) => Some(ServiceAccountMatch {
            namespace: reading.name(path.field("namespace"), &shape.namespace),
            service_account: reading.name(path.field("service_account"), &shape.service_account),
        }),
        ScalarOr::Scalar(text) => {
            let parts = text
                .split_once('/')
                .filter(|(namespace, name)| !namespace.is_empty() && !name.is_empty());
            let Some((namespace, name)) = parts else {
                reading.report(
                    path,
                    text,
                    "is not a service account",
                    "write `namespace/service-account`",
                );
                return None;
            };
            let namespace = reading.name(path, namespace);
            Some(ServiceAccountMatch {
                namespace,
                service_account: reading.name(path, name),
            })
        }
    }
}

/// An address or a CIDR block. Bits beyond the prefix are cleared, as Istio does; IPv4-mapped ranges become IPv4 ranges,
/// because that is what addresses are compared as.
fn ip_range(path: Path<'_>, value: &Scalar<'_>, reading: &mut Reading) -> Option<IpNet> {
    let range = value
        .parse::<IpNet>()
        .or_else(|_| value.parse::<IpAddr>().map(IpNet::from));
    let Ok(range) = range else {
        let remedy = "write an address or a block like 10.0.0.0/8 or fd00::/8";
        reading.report(path, value, "is not an IP address or CIDR block", remedy);
        return None;
    };
    let unmapped = match range {
        IpNet::V6(v6) if v6.prefix_len() >= MAPPED_PREFIX => v6.addr().to_ipv4_mapped().map(|v4| (v4, v6.prefix_len())),
        _ => None,
    };
    let unmapped = unmapped.and_then(|(v4, prefix)| IpNet::new(v4.into(), prefix - MAPPED_PREFIX).ok());
    Some(unmapped.unwrap_or(range).trunc())
}

/// `::ffff:0:0/96` (RFC 4291, section 2.5.5.2).
const MAPPED_PREFIX: u8 = 96;
