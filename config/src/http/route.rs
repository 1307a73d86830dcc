//! Route tables: from a request to what becomes of it (`config.route.v3`).

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, StatusCode};

use super::domains::DomainIndex;
use super::path_index::PathIndex;
use super::{
    Cluster, Cors, Decorator, Domain, Fault, Filter, GrpcTimeout, HashPolicy, HeaderEdits, Labels, MetricSettings,
    Mirror, Overrides, PathNormalization, PathRewrite, Rbac, RequestView, RetryPolicy, RouteMatch, StreamDuration,
    Tracing,
};
use crate::{RequestLog, Text};

/// The routes of one listener.
pub struct RouteTable {
    /// Unique name.
    pub name: Text,
    /// What becomes of paths before they are looked at.
    pub normalization: PathNormalization,
    /// What requests go through before they are routed, in this order.
    pub filters: Vec<Filter>,
    /// What a connection that carries no HTTP goes through, where it is let on as TCP: the same policies, of which some ask for what it
    /// does not have.
    pub connection_rules: Vec<Rbac>,
    /// What they are counted by.
    pub metrics: Arc<MetricSettings>,
    /// How they are traced; none: they are not.
    pub tracing: Option<Arc<Tracing>>,
    /// Logs of its own, in the place of the node's ([`AccessLog::requests`](crate::AccessLog::requests)); none: it has none.
    pub logs: Option<Arc<Vec<RequestLog>>>,
    has_overrides: bool,
    virtual_hosts: Vec<Arc<VirtualHost>>,
    /// Of each virtual host.
    domains: Vec<Vec<Domain>>,
    index: DomainIndex,
    /// Of each virtual host's routes.
    paths: Vec<PathIndex>,
}

/// Routes for some domains.
#[derive(Debug)]
pub struct VirtualHost {
    /// Its name.
    pub name: Text,
    /// In their order: the first that matches is taken.
    pub routes: Vec<Arc<Route>>,
    /// Edits of each request, after the route's.
    pub request_headers: HeaderEdits,
    /// Edits of each response, after the route's.
    pub response_headers: HeaderEdits,
}

/// One route.
#[derive(Debug)]
pub struct Route {
    /// Its name, which may be empty.
    pub name: Text,
    /// Which requests it is for.
    pub matches: RouteMatch,
    /// What they are called in their spans; none: as those of no route.
    pub decorator: Option<Decorator>,
    /// What becomes of them.
    pub action: RouteAction,
    /// Edits of the request.
    pub request_headers: HeaderEdits,
    /// Edits of the response.
    pub response_headers: HeaderEdits,
    /// What its requests meet in the place of the table's filters, its virtual host's word included.
    pub overrides: Overrides,
}

/// What becomes of a request.
#[derive(Debug)]
pub enum RouteAction {
    /// It goes to a cluster.
    Forward(Box<Forward>),
    /// The client is sent elsewhere.
    Redirect(Redirect),
    /// The proxy answers it.
    Direct(DirectResponse),
}

/// One of the clusters that a route leads to.
#[derive(Clone, Debug)]
pub struct WeightedCluster {
    /// Its name.
    pub cluster: Text,
    /// Its share, of the sum of all.
    pub weight: u32,
    /// The subset of its endpoints that they go to; empty: as the cluster says.
    pub labels: Labels,
    /// Edits of the requests that go to it, before the route's.
    pub request_headers: HeaderEdits,
    /// Edits of its responses, before the route's.
    pub response_headers: HeaderEdits,
}

/// How requests reach a cluster.
#[derive(Debug)]
pub struct Forward {
    /// At least one, with a weight.
    clusters: Vec<WeightedCluster>,
    total_weight: u32,
    /// What is answered where its cluster is not there (`cluster_not_found_response_code`). Default 503.
    pub not_found: StatusCode,
    /// How the path changes.
    pub path: PathRewrite,
    /// The host that the request names from here on.
    pub host: Option<HeaderValue>,
    /// From the request's end to the response's; none: no limit. Default 15 s.
    pub timeout: Option<Duration>,
    /// What takes its place for gRPC; none: nothing does.
    pub grpc_timeout: Option<GrpcTimeout>,
    /// What takes the place of both.
    pub duration: Option<StreamDuration>,
    /// How long nothing of it may move, neither from the client nor from the endpoint; none: no limit. Default 5 min (`idle_timeout`).
    pub idle_timeout: Option<Duration>,
    /// When it is tried again.
    pub retry: Option<RetryPolicy>,
    /// Protocols that a connection may change to (`upgrade_configs`), in lower case.
    pub upgrades: Vec<String>,
    /// What becomes of CONNECT; none: it is refused.
    pub connect: Option<ConnectMode>,
    /// What goes wrong on purpose.
    pub fault: Option<Fault>,
    /// What decides which endpoint it goes to, where the cluster goes by that.
    pub hash: Vec<HashPolicy>,
    /// Which pages of other origins may read its answers, by its own words and its virtual host's; none: nothing is said of that.
    pub cors: Option<Arc<Cors>>,
    /// Who gets copies.
    pub mirrors: Vec<Mirror>,
}

/// What becomes of CONNECT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectMode {
    /// The proxy agrees, and its bytes go to the endpoint as TCP (`connect_config`).
    Tcp,
    /// The endpoint is asked by CONNECT in its turn.
    Pass,
}

impl Forward {
    /// Default of [`Forward::timeout`], Envoy's.
    pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(15);

    /// Default of [`Forward::idle_timeout`], that of Envoy's `stream_idle_timeout`.
    pub const DEFAULT_IDLE_TIMEOUT: Duration = Duration::from_secs(300);

    /// To `clusters`; none if they have no weight, or more than 2³² − 1.
    pub fn new(clusters: Vec<WeightedCluster>) -> Option<Self> {
        let sum = clusters.iter().try_fold(0u32, |sum, c| sum.checked_add(c.weight))?;
        (sum > 0).then_some(Self {
            clusters,
            total_weight: sum,
            not_found: StatusCode::SERVICE_UNAVAILABLE,
            path: PathRewrite::None,
            host: None,
            timeout: Some(Self::DEFAULT_TIMEOUT),
            grpc_timeout: None,
            duration: None,
            idle_timeout: Some(Self::DEFAULT_IDLE_TIMEOUT),
            retry: None,
            upgrades: Vec::new(),
            connect: None,
            fault: None,
            hash: Vec::new(),
            cors: None,
            mirrors: Vec::new(),
        })
    }

    /// The clusters, in their order.
    pub fn clusters(&self) -> &[WeightedCluster] {
        &self.clusters
    }

    /// The cluster for a request; `random` is any number.
    pub fn choose(&self, random: u32) -> &WeightedCluster {
        let mut point = random % self.total_weight;
        for cluster in &self.clusters {
            match point.checked_sub(cluster.weight) {
                None => return cluster,
                Some(rest) => point = rest,
            }
        }
        // The point is below the sum of the weights.
        &self.clusters[self.clusters.len() - 1]
    }
}

/// Where a client is sent (`config.route.v3.RedirectAction`); what is not given stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// 301, 302, 303, 307 or 308. Default 301.
    pub status: StatusCode,
    /// The scheme.
    pub scheme: Option<String>,
    /// The host, without the port.
    pub host: Option<String>,
    /// The port.
    pub port: Option<u16>,
    /// The path, perhaps with a query, which then takes the place of the client's.
    pub path: Option<String>,
    /// What takes the place of the matched prefix.
    pub prefix: Option<String>,
}

impl Redirect {
    /// The value of `Location`.
    pub fn location(&self, matched: &RouteMatch, request: &RequestView<'_>) -> String {
        let scheme = self.scheme.as_deref().unwrap_or(request.scheme);
        let authority = self.authority(scheme, request);
        let path = match (&self.path, &self.prefix) {
            (Some(path), _) => path.clone(),
            (None, Some(prefix)) => {
                let rewrite = PathRewrite::Matched(prefix.clone());
                rewrite.apply(matched, request.path).unwrap_or_default()
            }
            (None, None) => request.path.to_owned(),
        };
        let query = request.query.filter(|_| !path.contains('?'));
        match query {
            Some(query) => format!("{scheme}://{authority}{path}?{query}"),
            None => format!("{scheme}://{authority}{path}"),
        }
    }

    /// Host and port. The port that the client named goes with the scheme that it came by, if that is the scheme's own.
    fn authority(&self, scheme: &str, request: &RequestView<'_>) -> String {
        let host = super::domains::without_port(request.authority);
        let port = &request.authority[host.len()..];
        let is_own = matches!((request.scheme, port), ("http", ":80") | ("https", ":443"));
        let kept = match self.host.is_some() || (is_own && scheme != request.scheme) {
            true => "",
            false => port,
        };
        let host = self.host.as_deref().unwrap_or(host);
        match self.port {
            Some(port) => format!("{host}:{port}"),
            None => format!("{host}{kept}"),
        }
    }
}

/// The proxy's own answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DirectResponse {
    /// 200 to 599.
    pub status: StatusCode,
    /// May be empty.
    pub body: String,
}

impl RouteTable {
    /// A table of virtual hosts, each with its domains.
    pub fn new(name: Text, virtual_hosts: Vec<(Vec<Domain>, VirtualHost)>) -> Self {
        let domains = virtual_hosts.iter().enumerate();
        let index = DomainIndex::new(domains.flat_map(|(place, (domains, _))| domains.iter().map(move |d| (d, place))));
        let (domains, virtual_hosts): (Vec<_>, Vec<_>) = virtual_hosts
            .into_iter()
            .map(|(domains, host)| (domains, Arc::new(host)))
            .unzip();
        let routes = virtual_hosts.iter().map(|host| host.routes.iter().map(Arc::as_ref));
        let paths = routes.map(PathIndex::new).collect();
        Self {
            name,
            normalization: PathNormalization::None,
            filters: Vec::new(),
            connection_rules: Vec::new(),
            metrics: Arc::default(),
            tracing: None,
            logs: None,
            has_overrides: virtual_hosts
                .iter()
                .any(|host| host.routes.iter().any(|route| !route.overrides.is_empty())),
            virtual_hosts,
            domains,
            index,
            paths,
        }
    }

    /// Whether some route has something in the place of a filter.
    pub fn has_overrides(&self) -> bool {
        self.has_overrides
    }

    /// Takes over what the same filters and routes of `before` have counted. Nobody is served by it yet.
    pub(crate) fn continues(&mut self, before: &Self) {
        for (filter, old) in self.filters.iter_mut().zip(&before.filters) {
            filter.continues(old);
        }
        if self.metrics == before.metrics {
            // What requests are counted by is told apart by it.
            self.metrics = before.metrics.clone();
        }
        for host in &mut self.virtual_hosts {
            let old = before.virtual_hosts.iter().find(|old| old.name == host.name);
            let (Some(old), Some(host)) = (old, Arc::get_mut(host)) else {
                continue;
            };
            for (route, old) in host.routes.iter_mut().zip(&old.routes) {
                if let Some(route) = Arc::get_mut(route) {
                    route.overrides.continues(&old.overrides);
                }
            }
        }
    }

    /// The virtual host for an authority.
    pub fn virtual_host(&self, authority: &str) -> Option<&Arc<VirtualHost>> {
        self.index.find(authority).map(|place| &self.virtual_hosts[place])
    }

    /// The clusters that its requests may go to, or copies of them.
    pub fn clusters<'t>(&'t self, found: &mut dyn FnMut(&'t Text)) {
        for route in self.virtual_hosts.iter().flat_map(|host| &host.routes) {
            if let RouteAction::Forward(forward) = &route.action {
                forward.clusters.iter().for_each(|weighted| found(&weighted.cluster));
                forward.mirrors.iter().for_each(|mirror| found(&mirror.cluster));
            }
        }
    }

    /// The virtual hosts, in their order.
    pub fn virtual_hosts(&self) -> &[Arc<VirtualHost>] {
        &self.virtual_hosts
    }

    /// The domains of each, in the same order.
    pub fn domains(&self) -> &[Vec<Domain>] {
        &self.domains
    }

    /// The route for a request, with its virtual host; `random` is any number, drawn for this request ([`RouteMatch::matches`]).
    pub fn route(&self, request: &RequestView<'_>, random: u64) -> Option<(&Arc<VirtualHost>, &Arc<Route>)> {
        let place = self.index.find(request.authority)?;
        let host = &self.virtual_hosts[place];
        let matches = |route: usize| host.routes[route].matches.matches(request, random);
        let route = self.paths[place].first(request.path, matches)?;
        Some((host, &host.routes[route]))
    }
}

/// Without what only finds routes sooner, so that what is written of two tables differs where they do.
impl fmt::Debug for RouteTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RouteTable")
            .field("name", &self.name)
            .field("normalization", &self.normalization)
            .field("filters", &self.filters)
            .field("connection_rules", &self.connection_rules)
            .field("metrics", &self.metrics)
            .field("tracing", &self.tracing)
            .field("logs", &self.logs)
            .field("virtual_hosts", &self.virtual_hosts)
            .field("domains", &self.index)
            .finish_non_exhaustive()
    }
}

impl super::Http {
    /// The cluster of this name.
    pub fn cluster(&self, name: &str) -> Option<&Arc<Cluster>> {
        self.clusters.get(name)
    }
}
