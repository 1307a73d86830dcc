//! `http.routes`: tables, virtual hosts, routes.

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::quality::RandomState;
use serde::Deserialize;

use super::super::reading::{Path, Reading};
use super::super::scalar::{Scalar, ScalarOr};
use super::AllProviders;
use super::actions::{DirectShape, RedirectShape};
use super::authentication::AuthenticationShape;
use super::authorization::{self, AuthorizationShape, Judged};
use super::cors::CorsShape;
use super::filters::{FiltersShape, OfTable, Placed};
use super::forward::ForwardShape;
use super::headers::EditsShape;
use super::matches::MatchShape;
use super::metrics::{self, MetricShape};
use super::rate_limit::RateLimitShape;
use super::tracing::{self, DecoratorShape, TracingShape};
use crate::Text;
use crate::http::{
    Cors, Domain, Filter, Http, Overrides, PathNormalization, Route, RouteAction, RouteTable, VirtualHost,
};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TableShape<'a> {
    #[serde(borrow)]
    name: Scalar<'a>,
    path_normalization: Option<Scalar<'a>>,
    local_rate_limit: Option<RateLimitShape<'a>>,
    #[serde(default)]
    request_authentication: Vec<AuthenticationShape<'a>>,
    #[serde(default)]
    authorization: Vec<AuthorizationShape<'a>>,
    #[serde(default)]
    metrics: Vec<MetricShape<'a>>,
    tracing: Option<TracingShape<'a>>,
    virtual_hosts: Vec<VirtualHostShape<'a>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct VirtualHostShape<'a> {
    #[serde(borrow)]
    name: Scalar<'a>,
    domains: Vec<Scalar<'a>>,
    #[serde(default)]
    routes: Vec<RouteShape<'a>>,
    cors: Option<CorsShape<'a>>,
    #[serde(default)]
    filters: FiltersShape<'a>,
    #[serde(default)]
    request_headers: EditsShape<'a>,
    #[serde(default)]
    response_headers: EditsShape<'a>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RouteShape<'a> {
    #[serde(borrow)]
    name: Option<Scalar<'a>>,
    r#match: MatchShape<'a>,
    decorator: Option<ScalarOr<'a, DecoratorShape<'a>>>,
    forward: Option<ForwardShape<'a>>,
    redirect: Option<RedirectShape<'a>>,
    direct: Option<DirectShape<'a>>,
    filters: FiltersShape<'a>,
    request_headers: EditsShape<'a>,
    response_headers: EditsShape<'a>,
}

const NORMALIZATIONS: [(&str, PathNormalization); 4] = [
    ("none", PathNormalization::None),
    ("base", PathNormalization::Base),
    ("merge-slashes", PathNormalization::MergeSlashes),
    ("decode-and-merge-slashes", PathNormalization::DecodeAndMergeSlashes),
];

/// A name that is compared and shown, and becomes part of nothing: istiod's have slashes and bars.
pub(super) fn any_name(path: Path<'_>, value: &Scalar<'_>, reading: &mut Reading) -> Text {
    if value.is_empty() || value.contains(char::is_control) {
        reading.report(path, value, "is not a name", "write a text without control characters");
    }
    reading.text(value)
}

impl TableShape<'_> {
    pub(super) fn compile(
        &self,
        path: Path<'_>,
        http: &Http,
        providers: &AllProviders,
        reading: &mut Reading,
    ) -> RouteTable {
        let name = any_name(path.field("name"), &self.name, reading);
        let hosts = path.field("virtual_hosts");
        let of_table = OfTable {
            path,
            local_rate_limit: self.local_rate_limit.as_ref(),
            request_authentication: &self.request_authentication,
            authorization: &self.authorization,
        };
        let of_hosts = self.virtual_hosts.iter().map(|host| &host.filters);
        let of_routes = self.virtual_hosts.iter().flat_map(|host| &host.routes);
        let different = of_hosts.chain(of_routes.map(|route| &route.filters));
        let placed = Placed::new(&of_table, different, (http, &providers.ext_authz), reading);
        let mut taken: HashMap<Domain, usize, RandomState> = HashMap::default();
        let mut compiled = Vec::with_capacity(self.virtual_hosts.len());
        for (index, shape) in self.virtual_hosts.iter().enumerate() {
            let path = hosts.item(index);
            let domains = shape.domains(path.field("domains"), index, &mut taken, reading);
            compiled.push((domains, shape.compile(path, http, &placed, reading)));
        }
        let mut table = RouteTable::new(name, compiled);
        let normalization = self.path_normalization.as_ref();
        let normalization = reading.choice(path.field("path_normalization"), normalization, &NORMALIZATIONS);
        table.normalization = normalization.unwrap_or_default();
        table.metrics = Arc::new(metrics::compile(path.field("metrics"), &self.metrics, reading));
        let tracing = self.tracing.as_ref();
        let tracing = tracing.and_then(|shape| shape.compile(path.field("tracing"), &providers.tracing, reading));
        table.tracing = tracing.map(Arc::new);
        table.filters = placed.filters;
        let (path, policies) = (path.field("authorization"), &self.authorization);
        // What is wrong with them has been reported.
        let unheard = &mut Reading::default();
        let of_connections =
            authorization::compile(path, policies, (Judged::Connections, &providers.ext_authz), unheard);
        let rules = of_connections.into_iter().filter_map(|(_, filter)| match filter {
            Filter::Rbac(rules) => Some(rules),
            _ => None,
        });
        table.connection_rules = rules.collect();
        table
    }
}

impl VirtualHostShape<'_> {
    fn compile(&self, path: Path<'_>, http: &Http, placed: &Placed, reading: &mut Reading) -> VirtualHost {
        let routes = path.field("routes");
        let of_all = self.filters.compile(path.field("filters"), placed, reading);
        let compiled = self.routes.iter().enumerate();
        let cors = self.cors.as_ref();
        let cors = cors.map(|cors| Arc::new(cors.compile(path.field("cors"), None, reading)));
        VirtualHost {
            name: any_name(path.field("name"), &self.name, reading),
            routes: compiled
                .map(|(index, route)| {
                    let path = routes.item(index);
                    let own = route.filters.compile(path.field("filters"), placed, reading);
                    let mut route = route.compile(path, http, cors.as_ref(), reading);
                    route.overrides = own.over(&of_all);
                    Arc::new(route)
                })
                .collect(),
            request_headers: self.request_headers.of_requests(path.field("request_headers"), reading),
            response_headers: self
                .response_headers
                .of_responses(path.field("response_headers"), reading),
        }
    }

    fn domains(
        &self,
        path: Path<'_>,
        host: usize,
        taken: &mut HashMap<Domain, usize, RandomState>,
        reading: &mut Reading,
    ) -> Vec<Domain> {
        if self.domains.is_empty() {
            let remedy = "add one, `\"*\"` for all";
            reading.report(path, "", "a virtual host needs a domain", remedy);
        }
        let mut domains = Vec::with_capacity(self.domains.len());
        for (index, value) in self.domains.iter().enumerate() {
            let path = path.item(index);
            match value.parse::<Domain>() {
                Err(error) => {
                    let remedy = "write for example web.example.com, \"*.example.com\", web.* or \"*\"";
                    reading.report(path, value, error.to_string(), remedy);
                }
                Ok(domain) => {
                    if let Some(first) = taken.insert(domain.clone(), host) {
                        let problem = format!("virtual_hosts[{first}] already has this domain");
                        reading.report(path, value, problem, "a domain leads to one virtual host: remove one");
                    }
                    domains.push(domain);
                }
            }
        }
        domains
    }
}

impl RouteShape<'_> {
    fn compile(&self, path: Path<'_>, http: &Http, of_host: Option<&Arc<Cors>>, reading: &mut Reading) -> Route {
        Route {
            name: reading.text_or_empty(self.name.as_ref()),
            matches: self.r#match.compile(path.field("match"), reading),
            decorator: tracing::decorator(path.field("decorator"), self.decorator.as_ref(), reading),
            action: self.action(path, http, of_host, reading),
            overrides: Overrides::default(),
            request_headers: self.request_headers.of_requests(path.field("request_headers"), reading),
            response_headers: self
                .response_headers
                .of_responses(path.field("response_headers"), reading),
        }
    }

    fn action(&self, path: Path<'_>, http: &Http, of_host: Option<&Arc<Cors>>, reading: &mut Reading) -> RouteAction {
        let given = [self.forward.is_some(), self.redirect.is_some(), self.direct.is_some()];
        if given.into_iter().filter(|given| *given).count() != 1 {
            let remedy = "write one of `forward`, `redirect` and `direct`, for example `forward: {cluster: web}`";
            reading.report(path, "", "a route does exactly one thing", remedy);
        }
        let forward = self.forward.as_ref();
        let forwarded = forward.and_then(|shape| shape.compile(path.field("forward"), http, of_host, reading));
        let redirect = (self.redirect.as_ref()).map(|shape| shape.compile(path.field("redirect"), reading));
        let direct = (self.direct.as_ref()).map(|shape| shape.compile(path.field("direct"), reading));
        match (forwarded, redirect) {
            (Some(forward), _) => RouteAction::Forward(Box::new(forward)),
            (None, Some(redirect)) => RouteAction::Redirect(redirect),
            (None, None) => RouteAction::Direct(direct.unwrap_or_default()),
        }
    }
}
