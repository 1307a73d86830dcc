//! `/routes`: what becomes of requests, and of how many it has. Of conditions on fields only names are shown, and of answers and edits nothing: their values may be
//! secrets.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use underpass_config::http::{Filter, Override, Rbac, Route, RouteAction, RouteMatch, RouteTable, RuleAction};
use underpass_config::{Config, ListenerProtocol, Text};

use crate::http::flags::Flags;
use crate::node::Node;

/// The whole view, by name.
pub(super) fn routes(node: &Node) -> Value {
    let snapshot = node.snapshot();
    let counts = Counts::of(node);
    let mut tables: Vec<_> = snapshot.config.http.tables.values().collect();
    tables.sort_by_key(|table| &table.name);
    let shown = tables.into_iter().map(|one| table(one, &snapshot.config, &counts));
    shown.collect()
}

/// What has been counted under one name.
#[derive(Debug, Default)]
struct Counted {
    requests: u64,
    retries: u64,
    by_code: BTreeMap<String, u64>,
    by_flags: BTreeMap<String, u64>,
}

/// By listener, virtual host, and route.
struct Counts(BTreeMap<[Text; 3], Counted>);

impl Counts {
    fn of(node: &Node) -> Self {
        let mut counts: BTreeMap<[Text; 3], Counted> = BTreeMap::new();
        for ([listener, host, route, _], of_cluster) in node.telemetry.requests.all() {
            let counted = counts.entry([listener, host, route]).or_default();
            counted.retries += of_cluster.retries();
            for (status, flags, count) in of_cluster.counts() {
                counted.requests += count;
                *counted.by_code.entry(status.to_string()).or_default() += count;
                if flags != Flags::default() {
                    *counted.by_flags.entry(flags.to_string()).or_default() += count;
                }
            }
        }
        Self(counts)
    }

    /// Of all `listeners`.
    fn told(&self, listeners: &[&Text], host: &Text, route: &Text) -> Value {
        let mut sum = Counted::default();
        for listener in listeners {
            let Some(counted) = self.0.get(&[(*listener).clone(), host.clone(), route.clone()]) else {
                continue;
            };
            sum.requests += counted.requests;
            sum.retries += counted.retries;
            for (into, from) in [
                (&mut sum.by_code, &counted.by_code),
                (&mut sum.by_flags, &counted.by_flags),
            ] {
                for (name, count) in from {
                    *into.entry(name.clone()).or_default() += count;
                }
            }
        }
        json!({
            "requests": sum.requests,
            "retries": sum.retries,
            "by_code": sum.by_code,
            "by_flags": sum.by_flags,
        })
    }
}

fn table(table: &RouteTable, config: &Config, counts: &Counts) -> Value {
    let serves = |protocol: &ListenerProtocol| matches!(protocol, ListenerProtocol::Http { routes, .. } if *routes == table.name);
    let listeners = config.node.listeners.iter().filter(|one| serves(&one.protocol));
    let listeners: Vec<&Text> = listeners.map(|one| &one.name).collect();
    let hosts = table.virtual_hosts().iter().zip(table.domains());
    json!({
        "table": &*table.name,
        "listeners": listeners.iter().map(|name| &***name).collect::<Vec<_>>(),
        "filters": table.filters.iter().map(filter).collect::<Vec<_>>(),
        "virtual_hosts": hosts.map(|(host, domains)| {
            let same_name = |name: &Text| host.routes.iter().filter(|other| other.name == *name).count();
            json!({
                "name": &*host.name,
                "domains": domains.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "routes": host.routes.iter().map(|one| {
                    let mut shown = route(one);
                    shown["counted"] = counts.told(&listeners, &host.name, &one.name);
                    // Requests are counted by names: what others have besides is not told apart.
                    shown["counted_with"] = (same_name(&one.name) - 1).into();
                    shown
                }).collect::<Vec<_>>(),
            })
        }).collect::<Vec<_>>(),
    })
}

fn filter(filter: &Filter) -> Value {
    match filter {
        Filter::LocalRateLimit(limit) => {
            let rate = limit.bucket.rate();
            json!({"kind": "local_rate_limit", "max_tokens": rate.max_tokens, "tokens_per_fill": rate.tokens_per_fill,
                "fill_interval": humantime::format_duration(rate.fill_interval).to_string()})
        }
        Filter::Jwt(jwt) => {
            let issuers = jwt.providers().iter().map(|provider| provider.issuer.to_string());
            json!({"kind": "jwt", "issuers": issuers.collect::<Vec<_>>()})
        }
        Filter::Rbac(Rbac { rules, shadow, .. }) => json!({
            "kind": "rbac",
            "action": rules.as_ref().map(|rules| action(rules.action)),
            "policies": rules.as_ref().map_or(0, |rules| rules.policies().len()),
            "dry_run": shadow.as_ref().map_or(0, |rules| rules.policies().len()),
        }),
        Filter::ExtAuthz(asking) => json!({"kind": "ext_authz", "provider": &*asking.provider.name}),
        Filter::OfRoutes => json!({"kind": "of_routes"}),
    }
}

fn action(action: RuleAction) -> &'static str {
    match action {
        RuleAction::Allow => "ALLOW",
        RuleAction::Deny => "DENY",
        RuleAction::Log => "LOG",
    }
}

fn route(route: &Route) -> Value {
    let mut shown = Map::new();
    let mut put = |name: &str, value: Value| drop(shown.insert(name.to_owned(), value));
    put("name", (&*route.name).into());
    put("match", matched(&route.matches).into());
    match &route.action {
        RouteAction::Forward(forward) => {
            put("action", "forward".into());
            let clusters = forward.clusters().iter();
            let clusters = clusters.map(|one| json!({"cluster": &*one.cluster, "weight": one.weight}));
            put("clusters", clusters.collect());
            let mirrors = forward.mirrors.iter().map(|mirror| mirror.cluster.to_string());
            put("mirrors", mirrors.collect());
            let timeout = forward
                .timeout
                .map(|timeout| humantime::format_duration(timeout).to_string());
            put("timeout", timeout.into());
            put("retries", forward.retry.as_ref().map(|retry| retry.retries).into());
        }
        RouteAction::Redirect(redirect) => {
            put("action", "redirect".into());
            put("status", redirect.status.as_u16().into());
        }
        RouteAction::Direct(direct) => {
            put("action", "direct".into());
            put("status", direct.status.as_u16().into());
        }
    }
    // By the places of the table's filters.
    let different = route.overrides.iter();
    put(
        "filters",
        different
            .map(|(place, different)| json!({"place": place, "is": word(different)}))
            .collect(),
    );
    Value::Object(shown)
}

fn word(different: &Override) -> &'static str {
    match different {
        Override::Off => "off",
        Override::LocalRateLimit(_) => "own limit",
        Override::Rbac(_) => "own policies",
        Override::Context(_) => "context",
    }
}

/// Which requests it is for, in a line.
fn matched(matches: &RouteMatch) -> String {
    let mut parts = vec![matches.path.to_string()];
    if !matches.case_sensitive {
        parts.push("in any case".to_owned());
    }
    let fields = matches.headers.iter().map(|one| format!("header {}", one.field));
    parts.extend(fields);
    parts.extend(matches.query.iter().map(|one| format!("parameter {}", one.name)));
    let fraction = matches.fraction.as_ref();
    parts.extend(fraction.map(|one| format!("{} of {}", one.numerator, one.denominator)));
    parts.join(", ")
}
