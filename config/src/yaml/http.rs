//! The `http:` section: route tables and clusters.

mod actions;
mod authentication;
mod authorization;
mod balancing;
mod carried;
mod clusters;
mod cors;
mod ext_authz;
mod fault;
mod filters;
mod forward;
mod hash;
mod hbone;
mod headers;
mod matches;
mod metrics;
mod mirror;
mod outliers;
mod rate_limit;
mod retry;
mod routes;
mod served;
mod times;
mod tracing;
mod transport;

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::quality::RandomState;
use regex::Regex;
use serde::Deserialize;

use super::reading::{Path, Reading};
use super::scalar::Scalar;
use crate::http::{Cluster, Http, part_pattern, whole_pattern};
use crate::{NodeSettings, Text};
use clusters::ClusterShape;
use ext_authz::{ProviderShape, Providers};
pub(super) use forward::check_cluster;
pub(super) use hbone::{check_identity, identity};
use routes::TableShape;
use served::ServedShape;
use tracing::{TracingProviderShape, TracingProviders};

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct HttpShape<'a> {
    #[serde(borrow)]
    client: Option<Scalar<'a>>,
    routes: Vec<TableShape<'a>>,
    clusters: Vec<ClusterShape<'a>>,
    ext_authz_providers: Vec<ProviderShape<'a>>,
    services: Vec<ServedShape<'a>>,
    tracing_providers: Vec<TracingProviderShape<'a>>,
}

/// Who tables may name.
struct AllProviders {
    ext_authz: Providers,
    tracing: TracingProviders,
}

const SECTION: Path<'_> = Path::Section("http");

impl HttpShape<'_> {
    /// Whether there is nothing in it.
    pub(super) fn is_empty(&self) -> bool {
        let Self {
            client,
            routes,
            clusters,
            ext_authz_providers,
            services,
            tracing_providers,
        } = self;
        client.is_none()
            && routes.is_empty()
            && clusters.is_empty()
            && ext_authz_providers.is_empty()
            && services.is_empty()
            && tracing_providers.is_empty()
    }

    pub(super) fn compile(&self, reading: &mut Reading) -> Http {
        let mut http = Http {
            client: (self.client.as_ref()).and_then(|client| identity(SECTION.field("client"), client, reading)),
            ..Http::default()
        };
        let mut places = HashMap::default();
        for (index, shape) in self.clusters.iter().enumerate() {
            let clusters = SECTION.field("clusters");
            let path = clusters.item(index);
            let settings = shape.compile(path, reading);
            claim(path.field("name"), &settings.name, index, &mut places, reading);
            shape.check_reach(path, self.client.is_some(), reading);
            http.clusters
                .insert(settings.name.clone(), Arc::new(Cluster::new(settings)));
        }
        let providers = AllProviders {
            ext_authz: self.providers(&http, reading),
            tracing: self.tracing_providers(&http, reading),
        };
        places.clear();
        for (index, shape) in self.routes.iter().enumerate() {
            let tables = SECTION.field("routes");
            let path = tables.item(index);
            let table = shape.compile(path, &http, &providers, reading);
            claim(path.field("name"), &table.name, index, &mut places, reading);
            http.tables.insert(table.name.clone(), Arc::new(table));
        }
        http.waypoint = served::compile(&self.services, &mut http, &providers.ext_authz, reading).map(Arc::new);
        http
    }

    fn providers(&self, http: &Http, reading: &mut Reading) -> Providers {
        let (mut providers, mut places) = (Providers::default(), HashMap::default());
        for (index, shape) in self.ext_authz_providers.iter().enumerate() {
            let list = SECTION.field("ext_authz_providers");
            let path = list.item(index);
            let name = reading.text(&shape.name);
            claim(path.field("name"), &name, index, &mut places, reading);
            if let Some(provider) = shape.compile(path, http, reading) {
                providers.insert(name, Arc::new(provider));
            }
        }
        providers
    }

    fn tracing_providers(&self, http: &Http, reading: &mut Reading) -> TracingProviders {
        let (mut providers, mut places) = (TracingProviders::default(), HashMap::default());
        for (index, shape) in self.tracing_providers.iter().enumerate() {
            let list = SECTION.field("tracing_providers");
            let path = list.item(index);
            let provider = shape.compile(path, http, reading);
            claim(path.field("name"), &provider.name, index, &mut places, reading);
            providers.insert(provider.name.clone(), Arc::new(provider));
        }
        providers
    }

    /// Reports identities that tunnels to endpoints are to be opened as, and that `node` can't show.
    pub(super) fn check_identities(&self, node: &NodeSettings, reading: &mut Reading) {
        if let Some(client) = &self.client {
            check_identity(SECTION.field("client"), client, node, reading);
        }
        for (index, shape) in self.clusters.iter().enumerate() {
            let clusters = SECTION.field("clusters");
            shape.check_identity(clusters.item(index), node, reading);
        }
    }

    /// Reports a name that no route table has.
    pub(super) fn check_table(path: Path<'_>, name: &str, http: &Http, reading: &mut Reading) {
        if !http.tables.contains_key(name) {
            let known = http.tables.keys().map(|name| &**name);
            report_unknown(path, name, "is not one of `http.routes`", known, reading);
        }
    }
}

/// Notes the place of a name, and reports it if another has it.
fn claim(
    path: Path<'_>,
    name: &Text,
    index: usize,
    places: &mut HashMap<Text, usize, RandomState>,
    reading: &mut Reading,
) {
    if let Some(first) = places.insert(name.clone(), index) {
        let problem = format!("the one at [{first}] already has this name");
        reading.report(path, name, problem, "give each its own");
    }
}

fn report_unknown<'k>(
    path: Path<'_>,
    name: &str,
    problem: &str,
    known: impl Iterator<Item = &'k str>,
    reading: &mut Reading,
) {
    let mut known: Vec<&str> = known.collect();
    known.sort_unstable();
    let remedy = match (reading.nearest(name, known.iter().copied()), known.is_empty()) {
        (Some(near), _) => format!("did you mean `{near}`?"),
        (None, true) => "there is none yet: add it there".to_owned(),
        (None, false) => format!("add it there, or write one of: {}", known.join(", ")),
    };
    reading.report(path, name, problem, remedy);
}

/// A regular expression that has to match the whole of a text, or else (`whole` false) parts of it.
fn regex(path: Path<'_>, value: &Scalar<'_>, whole: bool, reading: &mut Reading) -> Option<Regex> {
    let compiled = match whole {
        true => whole_pattern(value),
        false => part_pattern(value),
    };
    match compiled {
        Ok(regex) => Some(regex),
        Err(error) => {
            let remedy = "write RE2's syntax (no look-around, no back-references)";
            reading.report(path, value, error.to_string(), remedy);
            None
        }
    }
}
