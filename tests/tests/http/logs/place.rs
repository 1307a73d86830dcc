//! Both proxies with the same routes and logs, and what they have written.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde_json::{Value, json};
use underpass_tests::envoy::{self, address};
use underpass_tests::{Host, Process, Proxy, World, wait};

use super::endpoint;
use crate::client::Client;
pub(super) use crate::upstreams::place::merge;

/// A log, in our words and in Envoy's.
pub(super) struct Log {
    pub(super) name: &'static str,
    /// All but the path.
    pub(super) ours: Value,
    pub(super) log_format: Value,
    pub(super) filter: Value,
}

/// A request.
pub(super) struct Ask {
    pub(super) method: &'static str,
    pub(super) path: String,
    pub(super) host: &'static str,
    pub(super) lines: &'static str,
    pub(super) body: &'static str,
    /// Its client goes away before it has all of the answer.
    pub(super) is_abandoned: bool,
    /// Something is sent through it, and comes back.
    pub(super) is_tunnel: bool,
}

impl Ask {
    pub(super) fn of(method: &'static str, path: &str, lines: &'static str, body: &'static str) -> Self {
        Self {
            method,
            path: path.to_owned(),
            host: "web.test",
            lines,
            body,
            is_abandoned: false,
            is_tunnel: false,
        }
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
            "{match: {prefix: /redirect}, redirect: {path: /elsewhere}}",
            json!({"match": {"prefix": "/redirect"}, "redirect": {"path_redirect": "/elsewhere"}}),
        ),
        (
            "{match: {prefix: /rewrite}, forward: {cluster: web, prefix_rewrite: /new, host_rewrite: inner.test}, request_headers: {set: {x-more: edited}}}",
            json!({"match": {"prefix": "/rewrite"}, "route": {"cluster": "web", "prefix_rewrite": "/new", "host_rewrite_literal": "inner.test"},
                "request_headers_to_add": [{"header": {"key": "x-more", "value": "edited"}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}]}),
        ),
        (
            "{match: {prefix: /void}, forward: {cluster: void}}",
            json!({"match": {"prefix": "/void"}, "route": {"cluster": "void"}}),
        ),
        (
            "{match: {prefix: /closed-retried}, forward: {cluster: closed, retry: {on: [connect-failure], retries: 1}}}",
            json!({"match": {"prefix": "/closed-retried"}, "route": {"cluster": "closed", "retry_policy": {"retry_on": "connect-failure", "num_retries": 1}}}),
        ),
        (
            "{match: {prefix: /closed}, forward: {cluster: closed}}",
            json!({"match": {"prefix": "/closed"}, "route": {"cluster": "closed"}}),
        ),
        (
            "{match: {prefix: /retried}, forward: {cluster: web, retry: {on: [5xx], retries: 2}}}",
            json!({"match": {"prefix": "/retried"}, "route": {"cluster": "web", "retry_policy": {"retry_on": "5xx", "num_retries": 2}}}),
        ),
        (
            "{match: {prefix: /abort}, forward: {cluster: web, fault: {abort: 429}}}",
            json!({"match": {"prefix": "/abort"}, "route": {"cluster": "web"}, "typed_per_filter_config": {"envoy.filters.http.fault": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault",
                "abort": {"http_status": 429, "percentage": {"numerator": 100}}}}}),
        ),
        (
            "{match: {prefix: /slow}, forward: {cluster: web, timeout: 300ms}}",
            json!({"match": {"prefix": "/slow"}, "route": {"cluster": "web", "timeout": "0.3s"}}),
        ),
        (
            "{match: {prefix: /ws}, forward: {cluster: web, upgrades: [websocket]}}",
            json!({"match": {"prefix": "/ws"}, "route": {"cluster": "web", "upgrade_configs": [{"upgrade_type": "websocket"}]}}),
        ),
        (
            "{name: the-name, match: {prefix: /named}, forward: {cluster: web}}",
            json!({"name": "the-name", "match": {"prefix": "/named"}, "route": {"cluster": "web"}}),
        ),
        (
            "{forward: {cluster: web}}",
            json!({"match": {"prefix": "/"}, "route": {"cluster": "web"}}),
        ),
    ]
}

/// Both, running.
pub(super) struct Place {
    client: Host,
    ours: SocketAddr,
    envoys: SocketAddr,
    /// What stands for what in their lines.
    names: [Vec<(String, &'static str)>; 2],
    _proxy: Proxy,
    _envoy: Process,
    world: World,
}

impl Place {
    pub(super) fn start(logs: &[Log]) -> Self {
        let world = World::loopback();
        let (client, us, them, nobody) = (world.host(), world.host(), world.host(), world.host());
        let hosts = [world.host(), world.host()];
        let web = [endpoint::start(&hosts[0]), endpoint::start(&hosts[1])];
        let closed = nobody.at(9);
        let file = world.directory().join("http.yaml");
        std::fs::write(&file, yaml(&world, &us, logs, web[0], closed)).expect("write the configuration");
        let config = envoys_config(&world, &them, logs, web[1], closed);
        let names = |proxy: &Host, web: SocketAddr| {
            let web = format!("{}", web.ip());
            vec![
                (format!("{}", proxy.ip()), "PROXY"),
                (web, "WEB"),
                (format!("{}", client.ip()), "CLIENT"),
            ]
        };
        Self {
            names: [names(&us, web[0]), names(&them, web[1])],
            _proxy: Proxy::start_with_file(&world, &us, file),
            _envoy: envoy::start(&world, &them, &config, them.at(8080)),
            ours: us.at(8080),
            envoys: them.at(8080),
            client,
            world,
        }
    }

    /// Asks both, and waits for their answers.
    pub(super) fn ask(&self, number: usize, ask: &Ask) {
        let request = format!(
            "{} {}?n={number:02} HTTP/1.1\r\nhost: {}\r\n{}\r\n{}",
            ask.method, ask.path, ask.host, ask.lines, ask.body
        );
        let clients = [self.ours, self.envoys].map(|at| {
            let mut client = Client::connect(&self.client, at);
            client.send(request.as_bytes());
            client
        });
        for mut client in clients {
            if ask.is_abandoned {
                // What an endpoint that pauses has said is there by then; one that is slow has said nothing.
                if ask.lines.contains("pause") {
                    client.bytes(20).expect("the head");
                } else {
                    std::thread::sleep(std::time::Duration::from_millis(200));
                }
                continue;
            }
            client.answer(ask.method == "HEAD");
            if ask.is_tunnel {
                client.send(b"ping");
                assert_eq!(client.bytes(4).as_deref(), Some(&b"ping"[..]));
                // What is unread when it goes makes it a reset.
                client.send(b"pong");
                std::thread::sleep(std::time::Duration::from_millis(200));
            }
        }
    }

    /// The lines of a log, ours and Envoy's, by the number of their request. Waits for as many as are expected.
    pub(super) fn lines(&self, log: &Log, expected: Option<usize>) -> (Vec<String>, Vec<String>) {
        let read = |side: &str, names: &[(String, &str)]| {
            let path = file(&self.world, side, log.name);
            if let Some(expected) = expected {
                let count = || std::fs::read_to_string(&path).unwrap_or_default().lines().count();
                wait::eventually(wait::SOON, &format!("the lines of {side} {}", log.name), || {
                    count() >= expected
                });
            }
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            let mut lines = vec![String::new(); 100];
            for line in text.lines() {
                let number = line
                    .split("n=")
                    .nth(1)
                    .and_then(|rest| rest.get(..2)?.parse::<usize>().ok());
                lines[number.unwrap_or_else(|| panic!("no number in {line:?}"))].push_str(&normal(line, names));
            }
            lines
        };
        (read("ours", &self.names[0]), read("envoys", &self.names[1]))
    }
}

/// Without what differs from one run to the next. JSON is written in one order.
fn normal(line: &str, names: &[(String, &str)]) -> String {
    let mut line = line.to_owned();
    for (text, name) in names {
        line = line.replace(text, name);
    }
    if line.starts_with('{') {
        let mut value: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        normal_json(&mut value);
        return value.to_string();
    }
    let quoted: Vec<String> = line
        .split('"')
        .enumerate()
        .map(|(at, part)| {
            let words: Vec<String> = part
                .split(' ')
                .enumerate()
                .map(|(word_at, word)| match (at, word_at) {
                    // Of Istio's format: DURATION and the time of the service.
                    (4, 3 | 4) if word.parse::<u64>().is_ok() => "N".to_owned(),
                    _ => normal_word(word),
                })
                .collect();
            words.join(" ")
        })
        .collect();
    quoted.join("\"")
}

fn normal_json(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let is_time = name.ends_with("duration") || name == "upstream_service_time";
                if is_time && (value.is_number() || value.as_str().is_some_and(|text| text.parse::<u64>().is_ok())) {
                    *value = json!(if value.is_number() { "NUMBER" } else { "TEXT" });
                }
                normal_json(value);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(normal_json),
        Value::String(text) => *text = normal_word(text),
        _ => {}
    }
}

/// A time, an id, or an address with a port that the kernel has chosen.
fn normal_word(word: &str) -> String {
    let shape: String = word.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    if shape.trim_matches(['[', ']']) == "0000-00-00T00:00:00.000Z" {
        return "TIME".to_owned();
    }
    if word.len() == 36 && word.matches('-').count() == 4 {
        return "ID".to_owned();
    }
    match word.rsplit_once(':') {
        Some((host, port)) if port.parse::<u16>().is_ok_and(|port| port > 10_000) => format!("{host}:PORT"),
        _ => word.to_owned(),
    }
}

fn file(world: &World, side: &str, name: &str) -> PathBuf {
    world.directory().join(format!("{side}-{name}.log"))
}

fn yaml(world: &World, us: &Host, logs: &[Log], web: SocketAddr, closed: SocketAddr) -> String {
    let mut written = String::new();
    for log in logs {
        let mut ours = log.ours.clone();
        ours["path"] = json!(file(world, "ours", log.name).display().to_string());
        written += &format!("  - {ours}\n");
    }
    let routes: String = routes().iter().map(|(ours, _)| format!("      - {ours}\n")).collect();
    format!(
        "node:
  name: a
  admin: '{}'
  access_log:
{written}  listeners: [{{name: http, address: '{}', protocol: http, routes: t}}]
http:
  clusters: [{{name: web, endpoints: ['{web}']}}, {{name: void}}, {{name: closed, endpoints: ['{closed}']}}]
  routes:
  - name: t
    authorization:
    - {{name: deny, namespace: shop, action: DENY, rules: [{{to: [{{operation: {{paths: ['/denied*']}}}}]}}]}}
    virtual_hosts:
    - name: web
      domains: [web.test]
      routes:
{routes}",
        us.at(15000),
        us.at(8080)
    )
}

fn envoys_config(world: &World, them: &Host, logs: &[Log], web: SocketAddr, closed: SocketAddr) -> Value {
    let written: Vec<Value> = logs
        .iter()
        .map(|log| {
            let mut envoys = json!({"name": "file", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
                "path": file(world, "envoys", log.name).display().to_string(), "log_format": log.log_format}});
            if !log.filter.is_null() {
                envoys["filter"] = log.filter.clone();
            }
            envoys
        })
        .collect();
    let rbac = json!({"@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC", "rules": {"action": "DENY", "policies": {
        "ns[shop]-policy[deny]-rule[0]": {"permissions": [{"url_path": {"path": {"prefix": "/denied"}}}], "principals": [{"any": true}]}}}});
    let routes: Vec<Value> = routes().into_iter().map(|(_, envoys)| envoys).collect();
    let manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "in",
        "access_log": written,
        "upgrade_configs": [{"upgrade_type": "websocket", "enabled": false}],
        "http_filters": [
            {"name": "envoy.filters.http.rbac", "typed_config": rbac},
            {"name": "envoy.filters.http.fault", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault"}},
            {"name": "envoy.filters.http.router", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}},
        ],
        "route_config": {"virtual_hosts": [{"name": "web", "domains": ["web.test"], "routes": routes}]},
    });
    let cluster = |name: &str, endpoints: &[SocketAddr]| {
        let endpoints: Vec<Value> = endpoints
            .iter()
            .map(|at| json!({"endpoint": {"address": address(*at)}}))
            .collect();
        json!({"name": name, "type": "STATIC", "connect_timeout": "5s",
            "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]}})
    };
    let filter = json!({"name": "envoy.filters.network.http_connection_manager", "typed_config": manager});
    json!({"static_resources": {
        "listeners": [{"name": "in", "address": address(them.at(8080)), "filter_chains": [{"filters": [filter]}]}],
        "clusters": [cluster("web", &[web]), cluster("void", &[]), cluster("closed", &[closed])],
    }})
}
