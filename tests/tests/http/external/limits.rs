//! So many requests of a table pass: the same as of Envoy's, and no more however many ask at once.

use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use super::*;

const TOKENS: u32 = 20;

fn ours(at: SocketAddr, admin: SocketAddr, log: &str, interval: &str) -> String {
    format!(
        "node:
  name: a
  admin: '{admin}'
  workers: 2
  access_log: {{path: '{log}', format: json}}
  listeners: [{{name: http, address: '{at}', protocol: http, routes: t}}]
http:
  routes:
  - name: t
    local_rate_limit: {{max_tokens: {TOKENS}, tokens_per_fill: 1, fill_interval: {interval}, response_headers: {{set: {{x-limited: 'yes'}}}}}}
    virtual_hosts: [{{name: all, domains: [web.test], routes: [{{match: {{path: /}}, direct: {{status: 200, body: here}}}}]}}]
"
    )
}

fn envoys(at: SocketAddr, log: &str) -> Value {
    let always = json!({"default_value": {"numerator": 100, "denominator": "HUNDRED"}});
    let limit = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
        "stat_prefix": "limit", "filter_enabled": always, "filter_enforced": always,
        "token_bucket": {"max_tokens": TOKENS, "tokens_per_fill": 1, "fill_interval": "3600s"},
        "response_headers_to_add": [{"header": {"key": "x-limited", "value": "yes"}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}],
    });
    let filters = vec![
        json!({"name": "envoy.filters.http.local_ratelimit", "typed_config": limit}),
        json!({"name": "envoy.filters.http.router", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}),
    ];
    let routes =
        json!([{"match": {"path": "/"}, "direct_response": {"status": 200, "body": {"inline_string": "here"}}}]);
    json!({"static_resources": {"listeners": [envoys_listener(at, "in", log, filters, routes)]}})
}

#[test]
fn a_burst_is_limited_as_by_envoy() {
    if !available(&[Need::Envoy]) {
        return;
    }
    let world = World::loopback();
    let (client, us, them) = (world.host(), world.host(), world.host());
    let log = |name: &str| world.directory().join(name).display().to_string();
    let file = world.directory().join("http.yaml");
    std::fs::write(&file, ours(us.at(8080), us.at(15000), &log("access.log"), "1h")).expect("write");
    let _proxy = Proxy::start_with_file(&world, &us, file);
    let _envoy = envoy::start(&world, &them, &envoys(them.at(8080), &log("envoy.log")), them.at(8080));
    let mut limited = 0;
    for id in 0..TOKENS + 12 {
        let (method, more, path) = match id % 4 {
            0 => ("GET", "", "/"),
            1 => ("HEAD", "", "/"),
            // Also what has no route.
            2 => ("GET", "", "/nowhere"),
            _ => ("GET", "content-type: application/grpc\r\n", "/"),
        };
        let request = format!("{method} {path} HTTP/1.1\r\nhost: web.test\r\nx-id: {id}\r\n{more}\r\n");
        let [ours, envoys] = [us.at(8080), them.at(8080)].map(|at| without_the_incidental(ask(&client, at, &request)));
        assert_eq!(ours, envoys, "{request}");
        let is_limited = ours.header("x-limited").is_some();
        assert_eq!(is_limited, id >= TOKENS, "request {id}: {ours:?}");
        limited += u32::from(is_limited);
    }
    assert_eq!(limited, 12);
    let lines = |file: &str| std::fs::read_to_string(world.directory().join(file)).unwrap_or_default();
    wait::eventually(wait::SOON, "logs are written", || {
        ["access.log", "envoy.log"]
            .iter()
            .all(|file| lines(file).lines().count() == (TOKENS + 12) as usize)
    });
    let of_envoy = lines("envoy.log");
    for (line, theirs) in lines("access.log").lines().zip(of_envoy.lines()) {
        let line: Value = serde_json::from_str(line).expect("JSON");
        let field = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
        let ours = format!(
            "{} {} {}",
            line["response_code"],
            field("response_flags"),
            field("response_code_details")
        );
        assert!(theirs.ends_with(&ours), "{theirs}: {ours}");
    }
}

/// And an update that does not change the limit does not fill it.
#[test]
fn exactly_as_many_pass_however_many_ask_at_once() {
    let world = World::loopback();
    let us = world.host();
    let log = world.directory().join("access.log").display().to_string();
    let file = world.directory().join("http.yaml");
    let written = ours(us.at(8080), us.at(15000), &log, "1h");
    std::fs::write(&file, &written).expect("write");
    let proxy = Proxy::start_with_file(&world, &us, file.clone());
    let clients: Vec<Host> = (0..8).map(|_| world.host()).collect();
    let burst = || {
        let passed = AtomicU32::new(0);
        thread::scope(|scope| {
            for client in &clients {
                let (passed, at) = (&passed, us.at(8080));
                scope.spawn(move || {
                    for _ in 0..25 {
                        let seen = ask(client, at, "GET / HTTP/1.1\r\nhost: web.test\r\n\r\n");
                        passed.fetch_add(u32::from(seen.status == 200), Ordering::Relaxed);
                    }
                });
            }
        });
        passed.into_inner()
    };
    assert_eq!(burst(), TOKENS);
    let before = proxy
        .metrics()
        .sum("underpass_config_updates_total", &[("result", "applied")]);
    std::fs::write(&file, written.replace("body: here", "body: there")).expect("write");
    wait::eventually(wait::SOON, "the update is applied", || {
        proxy
            .metrics()
            .sum("underpass_config_updates_total", &[("result", "applied")])
            > before
    });
    assert_eq!(burst(), 0, "an update has filled the bucket");
    std::fs::write(&file, written.replace("max_tokens: 20", "max_tokens: 7")).expect("write");
    wait::eventually(wait::SOON, "the update is applied", || {
        proxy
            .metrics()
            .sum("underpass_config_updates_total", &[("result", "applied")])
            > before + 1
    });
    assert_eq!(burst(), 7);
}
