//! `authorization:` of a route table: Istio's `AuthorizationPolicy`, in its own words, compiled as istiod does.
//!
//! A policy matches if one of its rules does; a rule if one of `from`, one of `to` and all of `when` do. CUSTOM asks an authorization server,
//! then AUDIT notes, then DENY, then ALLOW decide; policies of one action are one filter. What only requests have is unknown where bytes go on
//! as TCP: there an ALLOW rule that asks for it never matches, and a DENY rule matches as if it had not asked.

mod attributes;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;

use super::super::reading::{Path, Reading, YES_OR_NO};
use super::super::scalar::Scalar;
use super::ext_authz::Providers;
use super::report_unknown;
use super::routes::any_name;
use crate::Text;
use crate::http::{AuthzProvider, Condition, ExtAuthz, Filter, Policy, Rbac, RuleAction, Rules, ShadowMatch};
use attributes::{Attribute, Place};

/// Istio's `AuthorizationPolicy`, as far as it says what to do. Its fields may be written as Istio writes them.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AuthorizationShape<'a> {
    #[serde(borrow)]
    name: Scalar<'a>,
    namespace: Option<Scalar<'a>>,
    action: Option<Scalar<'a>>,
    provider: Option<ProviderName<'a>>,
    dry_run: Option<Scalar<'a>>,
    #[serde(default)]
    rules: Vec<RuleShape<'a>>,
}

/// Who is asked, if the action is CUSTOM.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ProviderName<'a> {
    #[serde(borrow)]
    name: Scalar<'a>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RuleShape<'a> {
    #[serde(borrow)]
    from: Vec<FromShape<'a>>,
    to: Vec<ToShape<'a>>,
    when: Vec<WhenShape<'a>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FromShape<'a> {
    #[serde(borrow)]
    source: BTreeMap<Scalar<'a>, Vec<Scalar<'a>>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ToShape<'a> {
    #[serde(borrow)]
    operation: BTreeMap<Scalar<'a>, Vec<Scalar<'a>>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WhenShape<'a> {
    #[serde(borrow)]
    key: Scalar<'a>,
    #[serde(default)]
    values: Vec<Scalar<'a>>,
    #[serde(default, alias = "notValues")]
    not_values: Vec<Scalar<'a>>,
}

/// What a policy does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Action {
    Custom,
    Audit,
    Deny,
    Allow,
}

const ACTIONS: [(&str, Action); 4] = [
    ("ALLOW", Action::Allow),
    ("DENY", Action::Deny),
    ("AUDIT", Action::Audit),
    ("CUSTOM", Action::Custom),
];

impl Action {
    /// Those that decide by themselves, in their order.
    pub(super) const DECIDING: [Self; 3] = [Self::Audit, Self::Deny, Self::Allow];

    fn of_rules(self) -> RuleAction {
        match self {
            Self::Allow => RuleAction::Allow,
            Self::Deny | Self::Custom => RuleAction::Deny,
            Self::Audit => RuleAction::Log,
        }
    }

    /// istiod's `shadow_rules_stat_prefix`.
    fn shadow_prefix(self) -> &'static str {
        match self {
            Self::Deny => "istio_dry_run_deny_",
            Self::Allow | Self::Audit => "istio_dry_run_allow_",
            Self::Custom => Rbac::ASKING_PREFIX,
        }
    }
}

/// Who is judged: a request, or a connection of which there is nothing but bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Judged {
    Requests,
    Connections,
}

/// The rules of one action.
#[derive(Default)]
struct Gathered {
    rules: Option<Vec<Policy>>,
    shadow: Option<Vec<Policy>>,
}

/// The filters that policies are, each with what its policies do, in Istio's order.
pub(super) fn compile(
    path: Path<'_>,
    shapes: &[AuthorizationShape<'_>],
    (judged, providers): (Judged, &Providers),
    reading: &mut Reading,
) -> Vec<(Action, Filter)> {
    let mut gathered: BTreeMap<(Action, Text), Gathered> = BTreeMap::new();
    for (place, shape) in shapes.iter().enumerate() {
        let path = path.item(place);
        let action = reading.choice(path.field("action"), shape.action.as_ref(), &ACTIONS);
        let action = action.unwrap_or(Action::Allow);
        let provider = shape.provider(path, action, providers, reading);
        let dry_run = reading.choice(path.field("dry_run"), shape.dry_run.as_ref(), &YES_OR_NO);
        let dry_run = dry_run.unwrap_or(false);
        if let (true, Action::Custom, Some(value)) = (dry_run, action, &shape.dry_run) {
            let remedy = "remove it: who is asked decides";
            reading.report(path.field("dry_run"), value, "is not for CUSTOM", remedy);
        }
        let policies = shape.policies(path, (action, &provider), judged, reading);
        let of_action = gathered.entry((action, provider)).or_default();
        // About what is no request nobody can be asked: it is denied.
        let is_asked = action == Action::Custom && judged == Judged::Requests;
        let side = match dry_run || is_asked {
            true => &mut of_action.shadow,
            false => &mut of_action.rules,
        };
        side.get_or_insert_default().extend(policies);
    }
    let mut filters = Vec::with_capacity(gathered.len());
    for ((action, provider), Gathered { rules, shadow }) in gathered {
        let rules_of = |policies| Rules::new(action.of_rules(), policies);
        let rbac = Rbac {
            rules: rules.map(rules_of),
            shadow: shadow.map(rules_of),
            shadow_prefix: action.shadow_prefix().into(),
        };
        filters.push((action, Filter::Rbac(rbac)));
        if action == Action::Custom && judged == Judged::Requests {
            let asked = providers.get(&provider);
            filters.extend(asked.map(|asked| (action, Filter::ExtAuthz(asking(asked)))));
        }
    }
    filters
}

/// The filter behind the shadow rules that say what `provider` is asked about.
fn asking(provider: &Arc<AuthzProvider>) -> ExtAuthz {
    ExtAuthz {
        enabled_by: Some(ShadowMatch {
            key: Rbac::shadow_key(Rbac::ASKING_PREFIX),
            // istiod leaves out the end, and so asks a provider about what is another's whose name begins as its own does.
            prefix: format!("istio-ext-authz-{}-ns[", provider.name).into(),
        }),
        provider: provider.clone(),
    }
}

impl AuthorizationShape<'_> {
    /// Whether it does this.
    pub(super) fn is_of(&self, action: Action) -> bool {
        let own = self.action.as_deref().unwrap_or("ALLOW");
        ACTIONS.iter().any(|(word, of)| *of == action && *word == own)
    }

    /// The name of who is asked; nothing for other actions than CUSTOM.
    fn provider(&self, path: Path<'_>, action: Action, providers: &Providers, reading: &mut Reading) -> Text {
        let path = path.field("provider");
        match (&self.provider, action) {
            (Some(provider), Action::Custom) => {
                let name = reading.text(&provider.name);
                if !providers.contains_key(&name) {
                    let known = providers.keys().map(|name| &**name);
                    let problem = "is not one of `http.ext_authz_providers`";
                    report_unknown(path.field("name"), &name, problem, known, reading);
                }
                return name;
            }
            (None, Action::Custom) => {
                let remedy = "write for example `provider: {name: my-provider}`";
                reading.report(path, "", "a CUSTOM policy needs one", remedy);
            }
            (Some(provider), _) => {
                let remedy = "write `action: CUSTOM`, or remove it";
                reading.report(
                    path.field("name"),
                    &provider.name,
                    "is asked by CUSTOM policies only",
                    remedy,
                );
            }
            (None, _) => {}
        }
        Text::default()
    }

    /// One of each rule, named as istiod names them.
    fn policies(
        &self,
        path: Path<'_>,
        (action, provider): (Action, &Text),
        judged: Judged,
        reading: &mut Reading,
    ) -> Vec<Policy> {
        let name = any_name(path.field("name"), &self.name, reading);
        let namespace = reading.text_or(self.namespace.as_ref(), &Text::from("default"));
        let before = match action {
            Action::Custom => format!("istio-ext-authz-{provider}-"),
            _ => String::new(),
        };
        let rules = path.field("rules");
        let compiled = self.rules.iter().enumerate().filter_map(|(place, rule)| {
            let clause = Clause {
                namespace: &namespace,
                judged,
                is_deny: action.of_rules() == RuleAction::Deny,
                is_impossible: false,
            };
            let conditions = rule.compile(rules.item(place), clause, reading)?;
            Some(Policy {
                name: format!("{before}ns[{namespace}]-policy[{name}]-rule[{place}]").into(),
                permission: conditions.permission,
                principal: conditions.principal,
            })
        });
        compiled.collect()
    }
}

/// What a rule is made of.
struct Compiled {
    permission: Condition,
    principal: Condition,
}

impl RuleShape<'_> {
    /// None: it never matches.
    fn compile(&self, path: Path<'_>, mut clause: Clause<'_>, reading: &mut Reading) -> Option<Compiled> {
        let (mut permission, mut principal) = (Vec::new(), Vec::new());
        for (index, when) in self.when.iter().enumerate() {
            let list = path.field("when");
            let (place, conditions) = when.compile(list.item(index), &mut clause, reading);
            match place {
                Place::Permission => permission.extend(conditions),
                Place::Principal => principal.extend(conditions),
            }
        }
        let (to, from) = (path.field("to"), path.field("from"));
        let mut operations = Vec::with_capacity(self.to.len());
        for (index, alternative) in self.to.iter().enumerate() {
            let item = to.item(index);
            let fields = clause.fields(
                item.field("operation"),
                &alternative.operation,
                Place::Permission,
                reading,
            );
            operations.extend(fields);
        }
        let mut sources = Vec::with_capacity(self.from.len());
        for (index, alternative) in self.from.iter().enumerate() {
            let item = from.item(index);
            let fields = clause.fields(item.field("source"), &alternative.source, Place::Principal, reading);
            sources.extend(fields);
        }
        // What was there and can't hold is no alternative; without any there is nothing to match.
        let is_lost = |given: usize, left: &[Condition]| given > 0 && left.is_empty();
        if clause.is_impossible || is_lost(self.to.len(), &operations) || is_lost(self.from.len(), &sources) {
            return None;
        }
        permission.extend(one_of(operations));
        principal.extend(one_of(sources));
        Some(Compiled {
            permission: all_of(permission),
            principal: all_of(principal),
        })
    }
}

fn one_of(mut conditions: Vec<Condition>) -> Option<Condition> {
    match conditions.len() {
        0 | 1 => conditions.pop(),
        _ => Some(Condition::Either(conditions)),
    }
}

fn all_of(mut conditions: Vec<Condition>) -> Condition {
    match conditions.len() {
        0 => Condition::Any,
        1 => conditions.swap_remove(0),
        _ => Condition::All(conditions),
    }
}

/// How the attributes of a rule are read.
#[derive(Clone, Copy)]
struct Clause<'a> {
    /// The policy's.
    namespace: &'a str,
    judged: Judged,
    is_deny: bool,
    /// It asks, in `when`, for what a connection does not have.
    is_impossible: bool,
}

impl Clause<'_> {
    /// An alternative of `to` or `from`: all that it says; none: that can't be.
    fn fields(
        &self,
        path: Path<'_>,
        fields: &BTreeMap<Scalar<'_>, Vec<Scalar<'_>>>,
        place: Place,
        reading: &mut Reading,
    ) -> Option<Condition> {
        let mut conditions = Vec::new();
        let mut is_impossible = false;
        if fields.is_empty() {
            reading.report(path, "", "says nothing", "write what it asks for, or remove it");
        }
        for (name, values) in fields {
            let path = path.key(name);
            let Some((attribute, is_negative)) = Attribute::of_field(name, place) else {
                let remedy = format!("write one of: {}", place.fields());
                reading.report(path, name, "is not a field here", remedy);
                continue;
            };
            if values.is_empty() {
                reading.report(path, "", "is an empty list", "give it a value, or remove it");
            }
            match self.values(path, &attribute, values, reading) {
                Known::Not => is_impossible |= !self.is_deny,
                Known::So(condition) if is_negative => conditions.push(Condition::Not(condition.into())),
                Known::So(condition) => conditions.push(condition),
            }
        }
        (!is_impossible).then(|| all_of(conditions))
    }

    /// One of several values.
    fn values(&self, path: Path<'_>, attribute: &Attribute, values: &[Scalar<'_>], reading: &mut Reading) -> Known {
        let mut alternatives = Vec::with_capacity(values.len());
        for (index, value) in values.iter().enumerate() {
            match attribute.condition(value, self.namespace) {
                Ok(condition) => alternatives.push(condition),
                Err(bad) => reading.report(path.item(index), value, bad.problem, bad.remedy),
            }
        }
        match self.judged == Judged::Connections && attribute.is_of_requests() {
            true => Known::Not,
            false => Known::So(one_of(alternatives).unwrap_or(Condition::Either(Vec::new()))),
        }
    }
}

/// What can be said of an attribute.
enum Known {
    So(Condition),
    /// Only requests have it.
    Not,
}

impl WhenShape<'_> {
    fn compile(&self, path: Path<'_>, clause: &mut Clause<'_>, reading: &mut Reading) -> (Place, Vec<Condition>) {
        let attribute = match Attribute::of_key(&self.key) {
            Ok(attribute) => attribute,
            Err(bad) => {
                reading.report(path.field("key"), &self.key, bad.problem, bad.remedy);
                return (Place::Permission, Vec::new());
            }
        };
        if self.values.is_empty() && self.not_values.is_empty() {
            let remedy = "give it `values`, or `not_values`";
            reading.report(path, &self.key, "asks for nothing", remedy);
        }
        let mut conditions = Vec::new();
        for (field, values, is_negative) in [("values", &self.values, false), ("not_values", &self.not_values, true)] {
            if values.is_empty() {
                continue;
            }
            match clause.values(path.field(field), &attribute, values, reading) {
                Known::Not => clause.is_impossible |= !clause.is_deny,
                Known::So(condition) if is_negative => conditions.push(Condition::Not(condition.into())),
                Known::So(condition) => conditions.push(condition),
            }
        }
        (attribute.place(), conditions)
    }
}
