//! Authorization servers: asked as Envoy asks them, with the same configuration, and what comes of what they say; what a table's requests are limited to.

mod failures;
mod limits;
mod messages;
mod requests;
mod servers;
mod told;

use std::net::SocketAddr;

use serde_json::{Value, json};
use tokio::runtime::Runtime;
use underpass_tests::envoy::{self, address};
use underpass_tests::{Host, Need, Process, Proxy, World, available, wait};

use super::cases::Case;
use super::client::{Seen, ask};
use super::differences::without_the_incidental;
use super::endpoint::{Endpoint, Heard, Tries};
use super::streams;

/// What Envoy tells a server of itself, and we don't.
const ENVOYS_OWN: [&str; 2] = ["x-envoy-internal: ", "x-forwarded-for: "];
/// Requests that nobody thought of, for each table.
const ANY: usize = 120;

/// Tables, each on a port of its own: its name, the policy's rule, and the provider.
struct Table {
    name: &'static str,
    provider: &'static str,
    /// The filter in Envoy, without what enables it.
    envoys: Value,
    is_grpc: bool,
}

/// In our words: those of istiod's mesh configuration, of which `envoys` has what istiod makes (the first of each as it was recorded).
fn providers(http: SocketAddr, grpc: SocketAddr) -> String {
    let listed = "headers_to_upstream_on_allow: [x-user], headers_to_downstream_on_deny: [x-reason], headers_to_downstream_on_allow: [x-allowed]";
    format!(
        "  clusters:
  - {{name: 'authz-http', endpoints: ['{http}']}}
  - {{name: 'authz-grpc', endpoints: ['{grpc}'], protocol: http2}}
  - {{name: 'void'}}
  - {{name: web, endpoints: [WEB]}}
  ext_authz_providers:
  - name: authz-http
    envoy_ext_authz_http: {{cluster: authz-http, timeout: 2s, path_prefix: /check, fail_open: true, status_on_error: 503, include_request_headers_in_check: [X-Ext-Authz, cookie, x-ask],
      include_additional_headers_in_check: {{x-extra: value}}, {listed}, include_request_body_in_check: {{max_request_bytes: 1024, allow_partial_message: true}}}}
  - name: authz-http-all
    envoy_ext_authz_http: {{cluster: authz-http, timeout: 2s, include_request_headers_in_check: [x-*], headers_to_upstream_on_allow: ['x-user*']}}
  - name: authz-grpc
    envoy_ext_authz_grpc: {{cluster: authz-grpc, authority: ext-authz.auth.svc.cluster.local, timeout: 1s}}
  - name: authz-grpc-body
    envoy_ext_authz_grpc: {{cluster: authz-grpc, authority: ext-authz.auth.svc.cluster.local, timeout: 1s, fail_open: true, clear_route_cache: true,
      include_request_body_in_check: {{max_request_bytes: 64, allow_partial_message: true, pack_as_bytes: true}}}}
  - name: void
    envoy_ext_authz_http: {{cluster: void, status_on_error: 502}}
"
    )
}

fn exact(name: &str) -> Value {
    json!({"exact": name, "ignore_case": true})
}

fn tables() -> Vec<Table> {
    let http = |more: Value| {
        let mut service = json!({"server_uri": {"uri": "http://ext-authz.auth.svc.cluster.local", "cluster": "authz-http", "timeout": "2s"}});
        merge(&mut service, more);
        service
    };
    let grpc = || json!({"envoy_grpc": {"cluster_name": "authz-grpc", "authority": "ext-authz.auth.svc.cluster.local"}, "timeout": "1s"});
    vec![
        Table {
            name: "http",
            provider: "authz-http",
            is_grpc: false,
            envoys: json!({
                "http_service": http(json!({
                    "path_prefix": "/check",
                    "authorization_request": {"headers_to_add": [{"key": "x-extra", "value": "value"}]},
                    "authorization_response": {
                        "allowed_upstream_headers": {"patterns": [exact("x-user")]},
                        "allowed_client_headers": {"patterns": [exact("x-reason")]},
                        "allowed_client_headers_on_success": {"patterns": [exact("x-allowed")]},
                    }})),
                "failure_mode_allow": true,
                "with_request_body": {"max_request_bytes": 1024, "allow_partial_message": true},
                "status_on_error": {"code": "ServiceUnavailable"},
                "allowed_headers": {"patterns": [exact("x-ext-authz"), exact("cookie"), exact("x-ask")]},
            }),
        },
        Table {
            name: "http-all",
            provider: "authz-http-all",
            is_grpc: false,
            envoys: json!({
                "http_service": http(json!({"authorization_response": {
                    "allowed_upstream_headers": {"patterns": [{"prefix": "x-user", "ignore_case": true}]}}})),
                "allowed_headers": {"patterns": [{"prefix": "x-", "ignore_case": true}]},
            }),
        },
        Table {
            name: "grpc",
            provider: "authz-grpc",
            is_grpc: true,
            envoys: json!({"grpc_service": grpc()}),
        },
        Table {
            name: "grpc-body",
            provider: "authz-grpc-body",
            is_grpc: true,
            envoys: json!({
                "grpc_service": grpc(), "failure_mode_allow": true, "clear_route_cache": true,
                "with_request_body": {"max_request_bytes": 64, "allow_partial_message": true, "pack_as_bytes": true}}),
        },
        Table {
            name: "void",
            provider: "void",
            is_grpc: false,
            envoys: json!({
                "http_service": {"server_uri": {"uri": "http://void", "cluster": "void", "timeout": "600s"}},
                "status_on_error": {"code": 502}}),
        },
    ]
}

fn merge(into: &mut Value, more: Value) {
    let (Some(into), Value::Object(more)) = (into.as_object_mut(), more) else {
        panic!("two objects are merged");
    };
    into.extend(more);
}

const ROUTES: &str = "[{match: {path: /nowhere-else}, direct: {status: 200, body: direct}}, {match: {prefix: /elsewhere}, direct: {status: 203, body: elsewhere}}, {match: {prefix: /}, forward: {cluster: web}}]";

fn envoys_routes() -> Value {
    json!([{"match": {"path": "/nowhere-else"}, "direct_response": {"status": 200, "body": {"inline_string": "direct"}}},
        {"match": {"prefix": "/elsewhere"}, "direct_response": {"status": 203, "body": {"inline_string": "elsewhere"}}},
        {"match": {"prefix": "/"}, "route": {"cluster": "web"}}])
}

/// One of the two proxies, and what its servers heard.
struct Side {
    host: Host,
    http: Heard,
    grpc: Heard,
    authz_http: SocketAddr,
    authz_grpc: SocketAddr,
    web: SocketAddr,
}

impl Side {
    fn start(world: &World, runtime: &Runtime) -> Self {
        let (http, grpc) = (Heard::default(), Heard::default());
        Self {
            host: world.host(),
            authz_http: servers::http(&world.host(), &http),
            authz_grpc: servers::grpc(runtime.handle(), &world.host(), &grpc),
            web: Endpoint::start(&world.host(), 9001, "e", Tries::default()).address,
            http,
            grpc,
        }
    }

    fn at(&self, table: usize) -> SocketAddr {
        self.host.at(8080 + table as u16)
    }

    /// What was heard since.
    fn heard(&self) -> Vec<String> {
        let take = |heard: &Heard| std::mem::take(&mut *heard.lock().expect("no panic"));
        let all = take(&self.http).into_iter().chain(take(&self.grpc));
        let told = all.map(|text| {
            let lines = text
                .lines()
                .filter(|line| !ENVOYS_OWN.iter().any(|own| line.starts_with(own)));
            let lines = lines.map(|line| match line.strip_prefix("x-request-id: ") {
                Some(id) if id.len() == 36 => "x-request-id: UUID",
                _ => line,
            });
            lines.collect::<Vec<_>>().join("\n")
        });
        told.collect()
    }
}

struct Pair {
    client: Host,
    sides: [Side; 2],
    _proxy: Proxy,
    _envoy: Process,
    world: World,
    runtime: Runtime,
}

impl Pair {
    fn start() -> Self {
        let world = World::loopback();
        let runtime = Runtime::new().expect("a runtime");
        let sides = [(); 2].map(|()| Side::start(&world, &runtime));
        let yaml = yaml(&world, &sides[0]);
        let file = world.directory().join("http.yaml");
        std::fs::write(&file, yaml).expect("write the configuration");
        Self {
            client: world.host(),
            _proxy: Proxy::start_with_file(&world, &sides[0].host, file),
            _envoy: start_envoy(&world, &sides[1]),
            sides,
            world,
            runtime,
        }
    }

    /// What a client sees of each, and what each asked its server.
    fn both(&self, table: usize, request: &str, by_http2: bool) -> [(Seen, Vec<String>); 2] {
        [0, 1].map(|side| {
            let side = &self.sides[side];
            let at = side.at(table);
            let seen = without_the_incidental(match by_http2.then(|| as_http2(request)).flatten() {
                Some((request, body)) => self.runtime.block_on(streams::ask(&self.client, at, request, body)),
                None => ask(&self.client, at, request),
            });
            let mut seen = without_attempts(seen);
            if request.starts_with("HEAD ") {
                // Envoy says of an answer to HEAD that has no length how it would be framed.
                seen.headers.remove("transfer-encoding");
            }
            // We close behind a body that was not read, Envoy if it has not come yet.
            seen.headers.remove("connection");
            (seen, side.heard())
        })
    }

    fn logged(&self, file: &str) -> Vec<String> {
        let log = std::fs::read_to_string(self.world.directory().join(file)).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }
}

/// The same request, if HTTP/2 can say it.
fn as_http2(request: &str) -> Option<(http::Request<()>, bytes::Bytes)> {
    let case = Case {
        request: request.to_owned(),
    };
    streams::request(&case)
}

/// Tries are counted over all requests, and those of two runs are not the same.
fn without_attempts(mut seen: Seen) -> Seen {
    if let Some((_, told)) = seen
        .body
        .split_once('\n')
        .filter(|(first, _)| first.starts_with("attempt "))
    {
        seen.body = told.to_owned();
        seen.headers.remove("content-length");
    }
    seen
}

fn yaml(world: &World, side: &Side) -> String {
    let (mut listeners, mut routes) = (String::new(), String::new());
    for (port, table) in tables().iter().enumerate() {
        let (name, provider) = (table.name, table.provider);
        listeners += &format!(
            "  - {{name: {name}, address: '{}', protocol: http, routes: {name}}}\n",
            side.at(port)
        );
        routes += &format!(
            "  - name: {name}
    authorization:
    - {{name: check, namespace: shop, action: CUSTOM, provider: {{name: {provider}}}, rules: [{{to: [{{operation: {{paths: [/protected/*, /nowhere*]}}}}]}}]}}
    - {{name: no, namespace: shop, action: DENY, rules: [{{to: [{{operation: {{paths: ['*/denied']}}}}]}}]}}
    virtual_hosts: [{{name: all, domains: [web.test], routes: {ROUTES}}}]
"
        );
    }
    format!(
        "node:\n  name: a\n  admin: '{}'\n  access_log: {{path: '{}', format: json}}\n  listeners:\n{listeners}http:\n{}  routes:\n{routes}",
        side.host.at(15000),
        world.directory().join("access.log").display(),
        providers(side.authz_http, side.authz_grpc).replace("WEB", &format!("'{}'", side.web)),
    )
}

/// The filters of a table, as istiod writes them.
fn envoys_filters(table: &Table) -> Vec<Value> {
    let rbac = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC";
    let path = |matcher: Value| json!({"url_path": {"path": matcher}});
    let paths =
        json!({"or_rules": {"rules": [path(json!({"prefix": "/protected/"})), path(json!({"prefix": "/nowhere"}))]}});
    let policy = |permissions: Value| json!({"permissions": [{"and_rules": {"rules": [permissions]}}], "principals": [{"and_ids": {"ids": [{"any": true}]}}]});
    let name = format!("istio-ext-authz-{}-ns[shop]-policy[check]-rule[0]", table.provider);
    let mut asking = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz",
        "transport_api_version": "V3",
        "filter_enabled_metadata": {
            "filter": "envoy.filters.http.rbac",
            "path": [{"key": "istio_ext_authz_shadow_effective_policy_id"}],
            "value": {"string_match": {"prefix": format!("istio-ext-authz-{}", table.provider)}},
        },
    });
    merge(&mut asking, table.envoys.clone());
    vec![
        json!({"name": "envoy.filters.http.rbac", "typed_config": {"@type": rbac,
            "shadow_rules": {"action": "DENY", "policies": {name: policy(paths)}}, "shadow_rules_stat_prefix": "istio_ext_authz_"}}),
        json!({"name": "envoy.filters.http.ext_authz", "typed_config": asking}),
        json!({"name": "envoy.filters.http.rbac", "typed_config": {"@type": rbac, "rules": {"action": "DENY", "policies": {
            "ns[shop]-policy[no]-rule[0]": policy(path(json!({"suffix": "/denied"})))}}}}),
        json!({"name": "envoy.filters.http.router", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}),
    ]
}

fn start_envoy(world: &World, side: &Side) -> Process {
    let log = world.directory().join("envoy.log").display().to_string();
    let tables = tables();
    let listeners = tables
        .iter()
        .enumerate()
        .map(|(port, table)| envoys_listener(side.at(port), table.name, &log, envoys_filters(table), envoys_routes()));
    let listeners: Vec<Value> = listeners.collect();
    let mut grpc = envoys_cluster("authz-grpc", &[side.authz_grpc]);
    grpc["typed_extension_protocol_options"] = json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}}}});
    let clusters = [
        envoys_cluster("authz-http", &[side.authz_http]),
        grpc,
        envoys_cluster("void", &[]),
        envoys_cluster("web", &[side.web]),
    ];
    let config = json!({"static_resources": {"listeners": listeners, "clusters": clusters}});
    envoy::start(world, &side.host, &config, side.at(tables.len() - 1))
}

fn envoys_listener(at: SocketAddr, name: &str, log: &str, filters: Vec<Value>, routes: Value) -> Value {
    let manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": name, "codec_type": "AUTO",
        "access_log": [{"name": "file", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog", "path": log,
            "log_format": {"text_format_source": {"inline_string": "%REQ(X-ID)% %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS%\n"}}}}],
        "http_filters": filters,
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["web.test"], "routes": routes}]},
    });
    let filter = json!({"name": "envoy.filters.network.http_connection_manager", "typed_config": manager});
    json!({"name": name, "address": address(at), "filter_chains": [{"filters": [filter]}]})
}

fn envoys_cluster(name: &str, endpoints: &[SocketAddr]) -> Value {
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|at| json!({"endpoint": {"address": address(*at)}}))
        .collect();
    json!({"name": name, "type": "STATIC", "connect_timeout": "5s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]}})
}

/// `HTTP_SEED=n` repeats a run.
#[test]
fn authorization_servers_are_asked_and_followed_as_by_envoy() {
    if !available(&[Need::Envoy]) {
        return;
    }
    let pair = Pair::start();
    let mut random = fastrand::Rng::with_seed(super::differential::seed());
    let (mut differing, mut compared) = (Vec::new(), Vec::new());
    for (port, table) in tables().iter().enumerate() {
        for id in 0..ANY {
            let request = requests::any(id, table, &mut random);
            let [ours, mut envoys] = pair.both(port, &request, id % 3 == 0);
            if !ours.0.headers.contains_key("x-envoy-upstream-service-time") {
                // How long the server took is not the client's to know; where all fields are passed on, Envoy tells.
                envoys.0.headers.remove("x-envoy-upstream-service-time");
            }
            compared.push(format!("{}-{id}", table.name));
            if ours != envoys {
                differing.push(format!("{request:?}\n   ours: {ours:?}\n  envoy: {envoys:?}"));
            }
        }
    }
    let shown = std::env::var("SHOWN").map_or(6, |shown| shown.parse().expect("a number"));
    let first: Vec<&String> = differing.iter().take(shown).collect();
    println!("{} requests were compared", compared.len());
    assert!(
        differing.is_empty(),
        "{} of {} differ:\n{}",
        differing.len(),
        compared.len(),
        first.iter().map(|text| text.as_str()).collect::<Vec<_>>().join("\n")
    );
    pair.compare_logs(&compared);
}

impl Pair {
    /// Flags and details, request by request.
    fn compare_logs(&self, ids: &[String]) {
        wait::eventually(wait::SOON, "Envoy has written its log", || {
            self.logged("envoy.log").len() >= ids.len()
        });
        wait::eventually(wait::SOON, "we have written ours", || {
            self.logged("access.log").len() >= ids.len()
        });
        let envoys = self.logged("envoy.log");
        let mut differing = Vec::new();
        let mut refused = 0;
        for (line, id) in self.logged("access.log").iter().zip(ids) {
            let line: Value = serde_json::from_str(line).expect("JSON");
            let field = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
            // Behind a colon is what Envoy has no word for.
            let details = field("response_code_details");
            let details = details.split(": ").next().unwrap_or_default();
            let ours = format!("{id} {} {} {details}", line["response_code"], field("response_flags"));
            let theirs = envoys
                .iter()
                .find(|line| line.starts_with(&format!("{id} ")))
                .cloned()
                .unwrap_or_default();
            refused += usize::from(ours.contains(" UAEX "));
            if ours != theirs {
                differing.push((ours, theirs));
            }
        }
        assert!(refused > 50, "only {refused} were refused");
        assert!(differing.is_empty(), "{differing:#?}");
    }
}
