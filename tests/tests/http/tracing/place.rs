//! Both proxies with the same tables, each with an endpoint and a collector of its own.

use std::net::SocketAddr;

use serde_json::{Value, json};
use tokio::runtime::Runtime;
use underpass_tests::envoy::{self, address};
use underpass_tests::{Host, Process, Proxy, World};

use super::collector::Collector;
use crate::client::{Seen, ask};
use crate::endpoint::{Endpoint, Heard, Tries};

/// A table, each at a port of its own: how it is traced, in our words and in Envoy's.
pub(super) struct Table {
    pub(super) name: &'static str,
    pub(super) ours: Value,
    /// `HttpConnectionManager.tracing`, but for the provider.
    pub(super) envoys: Value,
    pub(super) direction: &'static str,
    /// `request_id_extension`
    pub(super) request_id: Value,
    pub(super) is_by_http: bool,
}

/// A log, in our words and in Envoy's.
pub(super) struct Log {
    pub(super) ours: Value,
    pub(super) envoys: Value,
}

/// What is seen of one request: the answer, and what its endpoint got.
pub(super) struct Passed {
    pub(super) seen: Seen,
    pub(super) heard: Vec<String>,
}

/// One side: a proxy, and whom it knows.
pub(super) struct Side {
    proxy: Host,
    pub(super) collector: Collector,
    heard: Heard,
    pub(super) names: Vec<(String, &'static str)>,
}

pub(super) struct Place {
    pub(super) client: Host,
    pub(super) ours: Side,
    pub(super) envoys: Side,
    _proxy: Proxy,
    _envoy: Process,
    _runtime: Runtime,
    _world: World,
}

const FIRST_PORT: u16 = 8080;

fn port(index: usize) -> u16 {
    FIRST_PORT + u16::try_from(index).expect("a few tables")
}

impl Side {
    fn start(world: &World, runtime: &Runtime) -> (Self, SocketAddr) {
        let (proxy, endpoint, collector) = (world.host(), world.host(), world.host());
        let heard = Heard::default();
        let web = Endpoint::heard(&endpoint, 9001, "web", Tries::default(), heard.clone()).address;
        let names = vec![(proxy.ip().to_string(), "PROXY"), (web.ip().to_string(), "WEB")];
        let side = Self {
            collector: Collector::start(runtime.handle(), &collector),
            proxy,
            heard,
            names,
        };
        (side, web)
    }

    /// Asks the table at `index`.
    pub(super) fn ask(&self, client: &Host, index: usize, request: &str) -> Passed {
        self.heard.lock().expect("no test panics with it").clear();
        let seen = ask(client, self.proxy.at(port(index)), request);
        Passed {
            seen,
            heard: std::mem::take(&mut *self.heard.lock().expect("no test panics with it")),
        }
    }
}

impl Place {
    pub(super) fn start(tables: &[Table], logs: &[Log]) -> Self {
        let world = World::loopback();
        let runtime = Runtime::new().expect("a runtime");
        let client = world.host();
        let (ours, web) = Side::start(&world, &runtime);
        let (envoys, envoys_web) = Side::start(&world, &runtime);
        let closed = world.host().at(9);
        let file = world.directory().join("http.yaml");
        let text = yaml(&ours, tables, logs, web, closed);
        std::fs::write(&file, text).expect("write the configuration");
        let config = envoys_config(&envoys, tables, logs, envoys_web, closed);
        Self {
            _proxy: Proxy::start_with_file(&world, &ours.proxy, file),
            _envoy: envoy::start(&world, &envoys.proxy, &config, envoys.proxy.at(FIRST_PORT)),
            client,
            ours,
            envoys,
            _runtime: runtime,
            _world: world,
        }
    }

    pub(super) fn sides(&self) -> [&Side; 2] {
        [&self.ours, &self.envoys]
    }
}

/// Routes: how they match, and what they do, in our words and in Envoy's.
fn routes() -> Vec<(&'static str, Value)> {
    vec![
        (
            "{match: {prefix: /direct}, direct: {status: 418, body: teapot}}",
            json!({"match": {"prefix": "/direct"}, "direct_response": {"status": 418, "body": {"inline_string": "teapot"}}}),
        ),
        (
            "{match: {prefix: /rewrite}, decorator: 'op/*', forward: {cluster: web, prefix_rewrite: /new, host_rewrite: inner.test}, request_headers: {set: {x-tenant: edited}}}",
            json!({"match": {"prefix": "/rewrite"}, "decorator": {"operation": "op/*"},
                "route": {"cluster": "web", "prefix_rewrite": "/new", "host_rewrite_literal": "inner.test"},
                "request_headers_to_add": [{"header": {"key": "x-tenant", "value": "edited"}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}]}),
        ),
        (
            "{match: {prefix: /quiet}, decorator: {operation: 'quiet/*', propagate: false}, forward: {cluster: web}}",
            json!({"match": {"prefix": "/quiet"}, "decorator": {"operation": "quiet/*", "propagate": false}, "route": {"cluster": "web"}}),
        ),
        (
            "{match: {prefix: /retried}, forward: {cluster: web, retry: {on: [5xx], retries: 1}}}",
            json!({"match": {"prefix": "/retried"}, "route": {"cluster": "web", "retry_policy": {"retry_on": "5xx", "num_retries": 1}}}),
        ),
        (
            "{match: {prefix: /void}, forward: {cluster: void}}",
            json!({"match": {"prefix": "/void"}, "route": {"cluster": "void"}}),
        ),
        (
            "{match: {prefix: /closed}, forward: {cluster: closed}}",
            json!({"match": {"prefix": "/closed"}, "route": {"cluster": "closed"}}),
        ),
        (
            "{match: {prefix: /shown}, decorator: 'web.test:80/*', forward: {cluster: web}, response_headers: {set: {x-envoy-decorator-operation: theirs}}}",
            json!({"match": {"prefix": "/shown"}, "decorator": {"operation": "web.test:80/*"}, "route": {"cluster": "web"},
                "response_headers_to_add": [{"header": {"key": "x-envoy-decorator-operation", "value": "theirs"}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}]}),
        ),
        (
            "{name: all, match: {prefix: /ok}, decorator: 'web.test:80/*', forward: {cluster: web}}",
            json!({"name": "all", "match": {"prefix": "/ok"}, "decorator": {"operation": "web.test:80/*"}, "route": {"cluster": "web"}}),
        ),
    ]
}

fn yaml(side: &Side, tables: &[Table], logs: &[Log], web: SocketAddr, closed: SocketAddr) -> String {
    let routes: String = routes().iter().map(|(ours, _)| format!("      - {ours}\n")).collect();
    let (mut listeners, mut written, mut logged) = (String::new(), String::new(), String::new());
    for (index, table) in tables.iter().enumerate() {
        let at = side.proxy.at(port(index));
        let mut ours = table.ours.clone();
        ours["provider"] = json!(if table.is_by_http { "by-http" } else { "by-grpc" });
        let name = table.name;
        listeners += &format!("  - {{name: {name}, address: '{at}', protocol: http, routes: {name}}}\n");
        written += &format!(
            "  - name: {name}\n    tracing: {ours}\n    authorization:\n    - {{name: trial, namespace: shop, action: DENY, dry_run: true, \
             rules: [{{to: [{{operation: {{paths: ['/ok/tried*']}}}}]}}]}}\n    virtual_hosts:\n    - name: web\n      domains: ['*']\n      routes:\n{routes}"
        );
    }
    for log in logs {
        logged += &format!("  - {}\n", log.ours);
    }
    let Collector { grpc, http, .. } = &side.collector;
    format!(
        "node:
  name: the-node
  locality: {{region: r, zone: the-zone}}
  admin: '{}'
  access_log:
  - {{format: 'off'}}
{logged}  listeners:
{listeners}http:
  clusters:
  - {{name: web, endpoints: ['{web}']}}
  - {{name: void}}
  - {{name: closed, endpoints: ['{closed}']}}
  - {{name: grpc-collector, endpoints: ['{grpc}'], protocol: http2}}
  - {{name: http-collector, endpoints: ['{http}']}}
  tracing_providers:
  - name: by-grpc
    opentelemetry: {{cluster: grpc-collector, authority: collector.test, service_name: shop, batching: {{items: 1}}, headers: {{x-token: secret}}}}
  - name: by-http
    opentelemetry: {{cluster: http-collector, authority: collector.test, http: {{}}, batching: {{items: 1}}, headers: {{x-token: secret}}}}
  routes:
{written}",
        side.proxy.at(15000),
    )
}

fn cluster(name: &str, endpoints: &[SocketAddr]) -> Value {
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|at| json!({"endpoint": {"address": address(*at)}}))
        .collect();
    json!({"name": name, "type": "STATIC", "connect_timeout": "5s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]}})
}

fn provider(is_by_http: bool) -> Value {
    let header = json!({"header": {"key": "x-token", "value": "secret"}});
    let mut config = json!({"@type": "type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig"});
    if is_by_http {
        config["http_service"] = json!({"http_uri": {"uri": "http://collector.test/v1/traces", "cluster": "http-collector", "timeout": "5s"},
            "request_headers_to_add": [header]});
    } else {
        config["service_name"] = json!("shop");
        config["grpc_service"] = json!({"envoy_grpc": {"cluster_name": "grpc-collector", "authority": "collector.test"}, "timeout": "5s",
            "initial_metadata": [{"key": "x-token", "value": "secret"}]});
    }
    json!({"name": "envoy.tracers.opentelemetry", "typed_config": config})
}

fn envoys_config(side: &Side, tables: &[Table], logs: &[Log], web: SocketAddr, closed: SocketAddr) -> Value {
    let routes: Vec<Value> = routes().into_iter().map(|(_, envoys)| envoys).collect();
    let logs: Vec<Value> = logs.iter().map(|log| log.envoys.clone()).collect();
    let rbac = json!({"@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC", "shadow_rules_stat_prefix": "istio_dry_run_deny_",
        "shadow_rules": {"action": "DENY", "policies": {
            "ns[shop]-policy[trial]-rule[0]": {"permissions": [{"url_path": {"path": {"prefix": "/ok/tried"}}}], "principals": [{"any": true}]}}}});
    let listeners: Vec<Value> = tables
        .iter()
        .enumerate()
        .map(|(index, table)| {
            let mut tracing = table.envoys.clone();
            tracing["provider"] = provider(table.is_by_http);
            let mut manager = json!({
                "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                "stat_prefix": "in",
                "tracing": tracing,
                "access_log": logs,
                "http_filters": [
                    {"name": "envoy.filters.http.rbac", "typed_config": rbac},
                    {"name": "envoy.filters.http.router", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}},
                ],
                "route_config": {"virtual_hosts": [{"name": "web", "domains": ["*"], "routes": routes}]},
            });
            if !table.request_id.is_null() {
                manager["request_id_extension"] = table.request_id.clone();
            }
            json!({"name": table.name, "address": address(side.proxy.at(port(index))), "traffic_direction": table.direction,
                "filter_chains": [{"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}]})
        })
        .collect();
    let mut by_grpc = cluster("grpc-collector", &[side.collector.grpc]);
    by_grpc["typed_extension_protocol_options"] = json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}}}});
    json!({
        "node": {"id": "the-node", "cluster": "Kubernetes", "locality": {"zone": "the-zone"}},
        "layered_runtime": {"layers": [{"name": "static", "static_layer": {"tracing.opentelemetry.min_flush_spans": 1}}]},
        "static_resources": {
            "listeners": listeners,
            "clusters": [cluster("web", &[web]), cluster("void", &[]), cluster("closed", &[closed]), by_grpc,
                cluster("http-collector", &[side.collector.http])],
        },
    })
}
