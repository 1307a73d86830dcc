//! `/explain`: what would become of a connection or request now, step by step, and why. Nothing is connected, and nothing is counted.
//!
//! Each step asks the configuration in force what traffic asks it; where that depends on more than is known here (a token, an authorization server, whose turn it is),
//! the step says so.

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};
use underpass_config::http::{
    Asking, Cluster, ClusterEndpoint, Discovery, Filter, Peer, Reach, RequestView, RouteAction, RouteTable,
};
use underpass_config::waypoint::{Chain, Going, Lead};
use underpass_config::{Config, Decision, Destination, Text, TunnelProtocol, Workload};

use crate::authorization::judge;
use crate::destination::{self, Resolved};
use crate::hbone::route;
use crate::node::Node;
use crate::source::Source;

/// What is asked about.
#[derive(Debug)]
struct Question {
    from: String,
    to: Destination,
    method: String,
    authority: Option<String>,
    path: String,
    headers: HeaderMap,
}

/// The steps, in their order.
#[derive(Debug, Default)]
struct Steps(Vec<Value>);

impl Steps {
    fn add(&mut self, step: &str, is: impl Into<String>, why: impl Into<String>) {
        self.0.push(json!({"step": step, "is": is.into(), "why": why.into()}));
    }
}

/// What would become of it, as a list of steps.
///
/// # Errors
/// What is wrong with the question, in words.
pub(super) fn explain(node: &Node, query: &str) -> Result<Value, String> {
    let question = Question::read(query)?;
    let snapshot = node.snapshot();
    let config = &snapshot.config;
    let mut steps = Steps::default();
    let source = client(config, &question.from, &mut steps)?;
    let resolved = match destination::resolve(config, &question.to) {
        Ok(resolved) => resolved,
        Err(ending) => {
            steps.add(
                "destination",
                "refused",
                format!("{ending}: the mesh has no such port or address"),
            );
            return Ok(Value::Array(steps.0));
        }
    };
    let explaining = Explaining {
        config,
        node,
        source: &source,
        question: &question,
    };
    explaining.follow(&resolved, &mut steps);
    Ok(Value::Array(steps.0))
}

impl Question {
    fn read(query: &str) -> Result<Self, String> {
        let (mut from, mut to) = (None, None);
        let mut question = Self {
            from: String::new(),
            to: Destination::Host {
                host: "".into(),
                port: 0,
            },
            method: "GET".to_owned(),
            authority: None,
            path: "/".to_owned(),
            headers: HeaderMap::new(),
        };
        for part in query.split('&').filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let value = percent_decode_str(value).decode_utf8_lossy().into_owned();
            match name {
                "from" => from = Some(value),
                "to" => to = Some(value),
                "method" => question.method = value,
                "path" => question.path = value,
                "header" => {
                    let (name, value) = value.split_once(':').ok_or("a header is NAME:VALUE")?;
                    let field =
                        HeaderName::try_from(name.trim()).map_err(|_| format!("`{name}` is no header's name"))?;
                    let text =
                        HeaderValue::try_from(value.trim()).map_err(|_| format!("`{value}` is no header's value"))?;
                    match field.as_str() {
                        "host" => question.authority = Some(value.trim().to_owned()),
                        _ => drop(question.headers.append(field, text)),
                    }
                }
                other => {
                    return Err(format!(
                        "`{other}` is not asked; there are from, to, method, path, header"
                    ));
                }
            }
        }
        question.from = from.ok_or("from is missing: NAMESPACE/POD, or an address")?;
        let to = to.ok_or("to is missing: HOST:PORT or ADDRESS:PORT")?;
        question.to = to.parse().map_err(|error| format!("to: `{to}`: {error}"))?;
        question.authority.get_or_insert(to);
        Ok(question)
    }

    fn view(&self) -> RequestView<'_> {
        let (path, query) = match self.path.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (&*self.path, None),
        };
        RequestView {
            method: &self.method,
            scheme: "http",
            authority: self.authority.as_deref().unwrap_or_default(),
            path,
            query,
            headers: &self.headers,
        }
    }
}

fn client(config: &Config, from: &str, steps: &mut Steps) -> Result<Source, String> {
    let by_name = || {
        let (namespace, name) = from.split_once('/')?;
        config.mesh.pod(&config.node.cluster_id, namespace, name)
    };
    let by_address = || {
        let ip: IpAddr = from.parse().ok()?;
        config.mesh.workload_at(&config.node.network, ip)
    };
    let source = match by_name().or_else(by_address) {
        Some(workload) => {
            let ip = workload.addresses.first().copied();
            let peer = SocketAddr::new(ip.unwrap_or(IpAddr::from([0, 0, 0, 0])), 0);
            steps.add(
                "client",
                workload.identity.to_string(),
                format!("the mesh knows {}", workload.uid),
            );
            Source::captured(&config.mesh, &workload.uid, peer)
        }
        None => {
            let ip: IpAddr = from
                .parse()
                .map_err(|_| format!("from: the mesh has no pod `{from}`; write NAMESPACE/POD, or an address"))?;
            steps.add(
                "client",
                "nobody",
                format!("the mesh knows no workload at {ip}: it has no identity"),
            );
            Some(Source::unidentified(SocketAddr::new(ip, 0)))
        }
    };
    source.ok_or_else(|| format!("from: `{from}` has left the mesh"))
}

struct Explaining<'a> {
    config: &'a Config,
    node: &'a Node,
    source: &'a Source,
    question: &'a Question,
}

impl Explaining<'_> {
    fn follow(&self, resolved: &Resolved, steps: &mut Steps) {
        let going = self.going(resolved, steps);
        let own = self.config.node.istiod.as_ref().map(|istiod| istiod.pod_ip);
        match route::waypoint(self.config, resolved, self.source) {
            Some(waypoint) => {
                let name = waypoint.name();
                let is_here =
                    self.config.node.waypoint().is_some() && own.is_some_and(|own| waypoint.is_at(self.config, own));
                match is_here {
                    true => steps.add("waypoint", name, "it is this proxy: what follows is decided here"),
                    false => {
                        steps.add(
                            "waypoint",
                            name,
                            "the connection is led there by HBONE, and decided there: ask that proxy",
                        );
                        return;
                    }
                }
            }
            None if self.config.http.waypoint.is_some() && going.is_some() => {
                steps.add(
                    "waypoint",
                    "this proxy",
                    "what comes by tunnel for this destination is decided here",
                );
            }
            None => return self.directly(resolved, steps),
        }
        if let Some(going) = going {
            self.chain(going, steps);
        }
    }

    /// The address that is asked for.
    fn going(&self, resolved: &Resolved, steps: &mut Steps) -> Option<SocketAddr> {
        match resolved {
            Resolved::Service {
                service,
                port,
                requested,
            } => {
                let state = service.service();
                let address = state.vips.first().map(|vip| SocketAddr::new(vip.address, *port));
                let endpoints = service.endpoints().count();
                steps.add(
                    "destination",
                    format!("{}:{port}", state.hostname),
                    format!("a service of the mesh with {endpoints} endpoints"),
                );
                requested.or(address)
            }
            Resolved::Address(address) => {
                let workload = self.config.mesh.workload_at(&self.config.node.network, address.ip());
                let why = match workload {
                    Some(workload) => format!("the mesh knows {} there", workload.uid),
                    None => "the mesh knows nobody there".to_owned(),
                };
                steps.add("destination", address.to_string(), why);
                Some(*address)
            }
            Resolved::Named { service, .. } => {
                steps.add(
                    "destination",
                    service.hostname.to_string(),
                    "its endpoints are known by name, which DNS is asked for",
                );
                None
            }
            Resolved::Name(name, port) => {
                steps.add(
                    "destination",
                    format!("{name}:{port}"),
                    "the mesh does not know the name: DNS is asked",
                );
                None
            }
        }
    }

    /// As a node's proxy does what has no waypoint: policies of the destination, and how it is reached.
    fn directly(&self, resolved: &Resolved, steps: &mut Steps) {
        let Some(target) = destination::choose(self.config, resolved, self.source, &[]) else {
            return steps.add(
                "endpoint",
                "none",
                "there is none that is healthy, or it is known to DNS only",
            );
        };
        let workload = target.workload.as_deref();
        let why = match workload {
            Some(workload) => format!("the best for this client, or one of several: {}", workload.uid),
            None => "where it was going".to_owned(),
        };
        steps.add("endpoint", target.address.to_string(), why);
        self.policies(target.address, workload, steps);
        let is_tunnelled = workload.is_some_and(|workload| workload.tunnel_protocol == TunnelProtocol::Hbone);
        match self.node.pods.at(target.address.ip()) {
            Some(pod) => steps.add(
                "tier",
                "local",
                format!(
                    "{} is enrolled on this node: no tunnel, and the kernel may carry the bytes",
                    pod.uid
                ),
            ),
            None if is_tunnelled => steps.add(
                "tier",
                "hbone",
                format!("by mutual TLS to {}:15008", target.address.ip()),
            ),
            None => steps.add("tier", "plain", "it speaks no HBONE: plain TCP"),
        }
    }

    fn policies(&self, address: SocketAddr, workload: Option<&Workload>, steps: &mut Steps) {
        let verdict = judge(self.config, self.source, address, workload);
        match verdict.decision {
            Decision::Allow { policy: Some(policy) } => steps.add("policies", "allowed", format!("by {policy}")),
            Decision::Allow { policy: None } => steps.add("policies", "allowed", "no policy guards it"),
            Decision::Deny { why, .. } => steps.add("policies", "DENIED", why.to_string()),
        }
    }

    /// As a waypoint does.
    fn chain(&self, to: SocketAddr, steps: &mut Steps) {
        let config = self.config;
        let authority = self.question.to.to_string().to_ascii_lowercase();
        let going = Going {
            authority: Some(&authority),
            to,
        };
        let lead = (config.http.waypoint.as_ref()).and_then(|place| place.lead(&going));
        let name = match lead {
            None => return steps.add("chain", "none", "this waypoint is not told to serve it: refused"),
            Some(Lead::Closed(why)) => return steps.add("chain", "CLOSED", why.to_string()),
            Some(Lead::Chain(name)) => name,
            Some(Lead::Protocol { http, other }) => {
                let other = other.map_or("nowhere", |name| &**name);
                steps.add(
                    "protocol",
                    "asked for",
                    format!("HTTP is what follows; anything else leads to {other}"),
                );
                match http {
                    Some(name) => name,
                    None => return steps.add("chain", "none", "HTTP leads nowhere: refused"),
                }
            }
        };
        match config.http.chains.get(name).map(|chain| chain.as_deref()) {
            Some(Err(why)) => steps.add("chain", "CLOSED", format!("{name}: {why}")),
            Some(Ok(Chain::Tcp(tcp))) => {
                let clusters: Vec<_> = tcp
                    .clusters
                    .iter()
                    .map(|one| format!("{} ({})", one.cluster, one.weight))
                    .collect();
                steps.add("chain", name.to_string(), format!("TCP, to {}", clusters.join(", ")));
                tcp.clusters.iter().for_each(|one| self.cluster(&one.cluster, steps));
            }
            Some(Ok(Chain::Http(_))) | None => match config.http.tables.get(name) {
                Some(table) => {
                    steps.add("chain", name.to_string(), "HTTP");
                    self.request(table, to, steps);
                }
                None => steps.add("chain", "none", format!("{name} is not there: refused")),
            },
        }
    }

    fn request(&self, table: &RouteTable, to: SocketAddr, steps: &mut Steps) {
        let view = self.question.view();
        let principal = self.source.identity().map(ToString::to_string);
        let peer = Peer {
            principal: principal.as_deref(),
            address: self.source.ip(),
            destination: to,
            server_name: None,
        };
        let asking = Asking {
            request: view,
            claims: None,
            metadata: None,
        };
        for filter in &table.filters {
            match filter {
                Filter::Jwt(_) => steps.add(
                    "filter",
                    "jwt",
                    "a token is verified, if there is one; rules on claims are asked here as of none",
                ),
                Filter::LocalRateLimit(_) => steps.add("filter", "rate limit", "passes while there are tokens"),
                Filter::ExtAuthz(_) => steps.add("filter", "ext_authz", "an authorization server is asked"),
                Filter::OfRoutes => {}
                Filter::Rbac(rbac) => {
                    let Some(rules) = &rbac.rules else { continue };
                    let ruling = rules.rule_anew(&peer, &asking);
                    let named = ruling
                        .policy
                        .map_or("no policy matches".to_owned(), |policy| format!("{policy} matches"));
                    let is = if ruling.is_allowed { "passes" } else { "DENIED" };
                    steps.add(
                        "filter",
                        format!("rules: {is}"),
                        format!("{:?}: {named}", rules.action).to_lowercase(),
                    );
                    if !ruling.is_allowed {
                        return;
                    }
                }
            }
        }
        let Some((host, found)) = table.route(&view, 0) else {
            return steps.add(
                "route",
                "none",
                "404: no route of its virtual host matches, or no virtual host",
            );
        };
        let named = if found.name.is_empty() {
            "without a name"
        } else {
            &*found.name
        };
        match &found.action {
            RouteAction::Redirect(redirect) => {
                let location = redirect.location(&found.matches, &view);
                steps.add("route", named, format!("{}: redirected to {location}", host.name));
            }
            RouteAction::Direct(direct) => {
                steps.add(
                    "route",
                    named,
                    format!("{}: answered with {} here", host.name, direct.status.as_u16()),
                );
            }
            RouteAction::Forward(forward) => {
                let clusters = forward.clusters();
                let shares: Vec<_> = clusters
                    .iter()
                    .map(|one| format!("{} ({})", one.cluster, one.weight))
                    .collect();
                steps.add("route", named, format!("{}: to {}", host.name, shares.join(", ")));
                clusters
                    .iter()
                    .filter(|one| one.weight > 0)
                    .for_each(|one| self.cluster(&one.cluster, steps));
            }
        }
    }

    fn cluster(&self, name: &Text, steps: &mut Steps) {
        let Some(cluster) = self.config.http.clusters.get(name) else {
            return steps.add(
                "cluster",
                name.to_string(),
                "is not there: its requests are answered with an error",
            );
        };
        let is_well = |endpoint: &&Arc<ClusterEndpoint>| endpoint.settings.is_well && !endpoint.is_ejected();
        let well = cluster.endpoints().iter().filter(is_well).count();
        let all = cluster.endpoints().len();
        let how = match cluster.settings.discovery {
            Discovery::Static => "told",
            _ => "found when asked for, or by DNS",
        };
        steps.add(
            "cluster",
            name.to_string(),
            format!(
                "{:?}; {well} of {all} endpoints are well ({how})",
                cluster.settings.balancing
            ),
        );
        self.endpoints(cluster, steps);
    }

    fn endpoints(&self, cluster: &Cluster, steps: &mut Steps) {
        for endpoint in cluster.endpoints().iter().take(LISTED) {
            let settings = &endpoint.settings;
            let mut why = match &settings.reach {
                Reach::Direct if cluster.settings.transport.hbone.is_some() => "by HBONE".to_owned(),
                Reach::Direct => "at its address".to_owned(),
                Reach::Hbone { via: None } => "by HBONE".to_owned(),
                Reach::Hbone { via: Some(via) } => format!("by HBONE through {via}"),
                Reach::Network { target } => format!("by HBONE to another network, there to {target}"),
            };
            let workload = self
                .config
                .mesh
                .workload_at(&self.config.node.network, settings.address.ip());
            if let Some(workload) = workload {
                let _ = write!(why, ", {} of {}", workload.identity, workload.uid);
            }
            if !settings.is_well {
                why.push_str("; not ready");
            }
            if endpoint.is_ejected() {
                why.push_str("; ejected");
            }
            steps.add("endpoint", settings.address.to_string(), why);
        }
        let more = cluster.endpoints().len().saturating_sub(LISTED);
        if more > 0 {
            steps.add("endpoint", format!("and {more} more"), "");
        }
    }
}

/// Endpoints of a cluster that are told of.
const LISTED: usize = 10;
