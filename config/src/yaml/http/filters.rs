//! The filters of a route table, and `filters:` of virtual hosts and routes: what is different there.
//!
//! A filter is at the same place for all routes. What only some of them have is a place at which the table has nothing. What a route says is said in the place of
//! what its virtual host and its table say, not beside it.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;

use super::super::reading::{Path, Reading};
use super::super::scalar::Scalar;
use super::authentication::{self, AuthenticationShape};
use super::authorization::{self, Action, AuthorizationShape, Judged};
use super::ext_authz::Providers;
use super::rate_limit::RateLimitShape;
use crate::Text;
use crate::http::{Filter, Http, Override, Overrides};

/// What a virtual host or a route has in the place of its table's filters.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct FiltersShape<'a> {
    #[serde(borrow)]
    off: Vec<Scalar<'a>>,
    local_rate_limit: Option<RateLimitShape<'a>>,
    authorization: Option<Vec<AuthorizationShape<'a>>>,
    ext_authz: Option<AskedShape<'a>>,
}

/// What an authorization server is told besides.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AskedShape<'a> {
    #[serde(borrow)]
    context_extensions: BTreeMap<Scalar<'a>, Scalar<'a>>,
}

/// What can be turned off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Section {
    LocalRateLimit,
    RequestAuthentication,
    ExtAuthz,
    Authorization,
}

const SECTIONS: [(&str, Section); 4] = [
    ("local_rate_limit", Section::LocalRateLimit),
    ("request_authentication", Section::RequestAuthentication),
    ("ext_authz", Section::ExtAuthz),
    ("authorization", Section::Authorization),
];

/// What is at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    LocalRateLimit,
    Tokens,
    /// Says whom CUSTOM policies ask about.
    Asking,
    ExtAuthz,
    Rules(Action),
}

impl Kind {
    fn section(self) -> Section {
        match self {
            Self::LocalRateLimit => Section::LocalRateLimit,
            Self::Tokens => Section::RequestAuthentication,
            Self::Asking | Self::ExtAuthz => Section::ExtAuthz,
            Self::Rules(_) => Section::Authorization,
        }
    }
}

/// The filters of a table, and what each is.
#[derive(Debug, Default)]
pub(super) struct Placed {
    pub(super) filters: Vec<Filter>,
    kinds: Vec<Kind>,
}

/// What a table says of its filters.
pub(super) struct OfTable<'s, 'a> {
    pub(super) path: Path<'s>,
    pub(super) local_rate_limit: Option<&'s RateLimitShape<'a>>,
    pub(super) request_authentication: &'s [AuthenticationShape<'a>],
    pub(super) authorization: &'s [AuthorizationShape<'a>],
}

impl Placed {
    /// Those of a table, and places for what only `routes` (or virtual hosts) have.
    pub(super) fn new<'s, 'a: 's>(
        table: &OfTable<'_, 'a>,
        routes: impl Iterator<Item = &'s FiltersShape<'a>> + Clone,
        (http, providers): (&Http, &Providers),
        reading: &mut Reading,
    ) -> Self {
        let mut placed = Self::default();
        match table.local_rate_limit {
            Some(shape) => {
                let limit = shape.compile(table.path.field("local_rate_limit"), reading);
                placed.push(Kind::LocalRateLimit, Filter::LocalRateLimit(Arc::new(limit)));
            }
            None if routes.clone().any(|route| route.local_rate_limit.is_some()) => {
                placed.push(Kind::LocalRateLimit, Filter::OfRoutes);
            }
            None => {}
        }
        let list = table.path.field("request_authentication");
        if let Some(tokens) = authentication::compile(list, table.request_authentication, http, reading) {
            placed.push(Kind::Tokens, tokens);
        }
        let list = table.path.field("authorization");
        let mut of_table = authorization::compile(list, table.authorization, (Judged::Requests, providers), reading);
        for (_, filter) in of_table.extract_if(.., |(action, _)| *action == Action::Custom) {
            let kind = match filter {
                Filter::ExtAuthz(_) => Kind::ExtAuthz,
                _ => Kind::Asking,
            };
            placed.push(kind, filter);
        }
        for action in Action::DECIDING {
            let own = of_table.iter().position(|(of, _)| *of == action);
            let is_of_routes = || routes.clone().any(|route| route.says_of(action));
            match own {
                Some(own) => placed.push(Kind::Rules(action), of_table.swap_remove(own).1),
                None if is_of_routes() => placed.push(Kind::Rules(action), Filter::OfRoutes),
                None => {}
            }
        }
        placed
    }

    fn push(&mut self, kind: Kind, filter: Filter) {
        self.kinds.push(kind);
        self.filters.push(filter);
    }
}

impl FiltersShape<'_> {
    fn says_of(&self, action: Action) -> bool {
        let policies = self.authorization.iter().flatten();
        policies.into_iter().any(|policy| policy.is_of(action))
    }

    pub(super) fn compile(&self, path: Path<'_>, placed: &Placed, reading: &mut Reading) -> Overrides {
        let off = self.turned_off(path, reading);
        let is_off = |kind: &Kind| off.contains(&kind.section());
        let mut overrides: Vec<(usize, Override)> = Vec::new();
        let mut put = |wanted: &dyn Fn(Kind) -> bool, different: &Override| {
            for (place, _) in placed.kinds.iter().enumerate().filter(|(_, kind)| wanted(**kind)) {
                overrides.push((place, different.clone()));
            }
        };
        put(&|kind| is_off(&kind), &Override::Off);
        if let Some(shape) = &self.local_rate_limit {
            let limit = shape.compile(path.field("local_rate_limit"), reading);
            put(
                &|kind| kind == Kind::LocalRateLimit && !is_off(&kind),
                &Override::LocalRateLimit(Arc::new(limit)),
            );
        }
        if let Some(policies) = &self.authorization {
            let list = path.field("authorization");
            let providers = &Providers::default();
            let of_custom = policies
                .iter()
                .enumerate()
                .filter(|(_, policy)| policy.is_of(Action::Custom));
            for (index, _) in of_custom.clone() {
                let remedy =
                    "write it into the table's `authorization`, and turn `ext_authz` off where nobody is to be asked";
                reading.report(
                    list.item(index).field("action"),
                    "CUSTOM",
                    "is for whole tables",
                    remedy,
                );
            }
            if of_custom.count() > 0 {
                return Overrides::default();
            }
            let compiled = authorization::compile(list, policies, (Judged::Requests, providers), reading);
            for action in Action::DECIDING {
                let own = compiled.iter().find_map(|(of, filter)| match filter {
                    Filter::Rbac(rules) if *of == action => Some(Override::Rbac(Arc::new(rules.clone()))),
                    _ => None,
                });
                let kind = Kind::Rules(action);
                put(&|other| other == kind && !is_off(&kind), &own.unwrap_or(Override::Off));
            }
        }
        if let Some(asked) = &self.ext_authz {
            let told = asked.context_extensions.iter();
            let told: Arc<[(Text, Text)]> = told
                .map(|(name, value)| (reading.text(name), reading.text(value)))
                .collect();
            if !placed.kinds.contains(&Kind::ExtAuthz) {
                let remedy = "add a CUSTOM policy to the table's `authorization`, or remove it";
                reading.report(path.field("ext_authz"), "", "nobody is asked by this table", remedy);
            }
            put(
                &|kind| kind == Kind::ExtAuthz && !is_off(&kind),
                &Override::Context(told),
            );
        }
        Overrides::new(overrides)
    }

    fn turned_off(&self, path: Path<'_>, reading: &mut Reading) -> Vec<Section> {
        let list = path.field("off");
        let mut off = Vec::with_capacity(self.off.len());
        for (index, name) in self.off.iter().enumerate() {
            let item = list.item(index);
            let Some(section) = reading.choice(item, Some(name), &SECTIONS) else {
                continue;
            };
            let is_given = match section {
                Section::LocalRateLimit => self.local_rate_limit.is_some(),
                Section::RequestAuthentication => false,
                Section::ExtAuthz => self.ext_authz.is_some(),
                Section::Authorization => self.authorization.is_some(),
            };
            if is_given {
                reading.report(list.item(index), name, "is given here, too", "remove one");
            }
            off.push(section);
        }
        off
    }
}
