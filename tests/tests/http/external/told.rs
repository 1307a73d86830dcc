//! What authorization servers are told by routes, and what they tell of requests beside their verdicts: for rules, and for logs.

use serde_json::{Value, json};
use tokio::runtime::Runtime;
use underpass_tests::{Need, World, available, wait};

use super::servers;
use crate::client::get;
use crate::endpoint::Heard;
use crate::pair::{Pair, Side, envoys_config, router};

const PORT: u16 = 8080;
/// What is logged, in both.
const LINE: &str = "%REQ(:PATH)% %RESPONSE_CODE% %DYNAMIC_METADATA(envoy.filters.http.ext_authz:tenant)% %DYNAMIC_METADATA(envoy.filters.http.ext_authz:in:deep)% \
    %DYNAMIC_METADATA(envoy.filters.http.ext_authz:list)% %DYNAMIC_METADATA(envoy.filters.http.ext_authz:ok)% %DYNAMIC_METADATA(envoy.filters.http.ext_authz:level)% \
    %DYNAMIC_METADATA(envoy.filters.http.ext_authz:tenant:x)% %DYNAMIC_METADATA(other:tenant)%\n";

fn yaml(side: &Side, world: &World, asked: std::net::SocketAddr) -> String {
    format!(
        "node:
  name: a
  admin: '{}'
  access_log: [{{path: '{}', text_format: {}}}]
  listeners: [{{name: in, address: '{}', protocol: http, routes: t}}]
http:
  clusters: [{{name: web, endpoints: ['{}']}}, {{name: authz, endpoints: ['{asked}'], protocol: http2}}]
  ext_authz_providers: [{{name: p, envoy_ext_authz_grpc: {{cluster: authz, timeout: 5s}}}}]
  routes:
  - name: t
    authorization:
    - {{name: ask, action: CUSTOM, provider: {{name: p}}, rules: [{{}}]}}
    - {{name: no, namespace: n, action: DENY, rules: [{{when: [{{key: 'experimental.envoy.filters.http.ext_authz[tenant]', values: [red]}}]}},
        {{when: [{{key: 'experimental.envoy.filters.http.ext_authz[list]', values: ['[gre*]']}}]}}]}}
    virtual_hosts:
    - name: all
      domains: ['*']
      filters: {{ext_authz: {{context_extensions: {{of: host}}}}}}
      routes:
      - {{match: {{prefix: /own}}, forward: {{cluster: web}}, filters: {{ext_authz: {{context_extensions: {{of: route, b: \"2\"}}}}}}}}
      - {{match: {{prefix: /off}}, forward: {{cluster: web}}, filters: {{off: [ext_authz]}}}}
      - {{forward: {{cluster: web}}}}
",
        side.host.at(15000),
        world.directory().join("ours.log").display(),
        json!(LINE),
        side.host.at(PORT),
        side.web,
    )
}

fn envoys(side: &Side, world: &World, asked: std::net::SocketAddr) -> Value {
    let typed = |kind: &str, mut value: Value| {
        value["@type"] = format!("type.googleapis.com/envoy.extensions.filters.http.{kind}").into();
        value
    };
    let told = |name: &str, value: Value| json!({"metadata": {"filter": "envoy.filters.http.ext_authz", "path": [{"key": name}], "value": value}});
    let policy = |permission: Value| json!({"permissions": [permission], "principals": [{"any": true}]});
    let deny = json!({"rules": {"action": "DENY", "policies": {
        "ns[n]-policy[no]-rule[0]": policy(told("tenant", json!({"string_match": {"exact": "red"}}))),
        "ns[n]-policy[no]-rule[1]": policy(told("list", json!({"list_match": {"one_of": {"string_match": {"prefix": "gre"}}}}))),
    }}});
    let asking = json!({"grpc_service": {"envoy_grpc": {"cluster_name": "authz"}, "timeout": "5s"}, "transport_api_version": "V3"});
    let context = |pairs: Value| {
        typed(
            "ext_authz.v3.ExtAuthzPerRoute",
            json!({"check_settings": {"context_extensions": pairs}}),
        )
    };
    let route = |prefix: &str, config: Value| json!({"match": {"prefix": prefix}, "route": {"cluster": "web"}, "typed_per_filter_config": {"envoy.filters.http.ext_authz": config}});
    let manager = json!({
        "access_log": [{"name": "file", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
            "path": world.directory().join("envoys.log").display().to_string(), "log_format": {"text_format_source": {"inline_string": LINE}}}}],
        "http_filters": [
            {"name": "envoy.filters.http.ext_authz", "typed_config": typed("ext_authz.v3.ExtAuthz", asking)},
            {"name": "envoy.filters.http.rbac", "typed_config": typed("rbac.v3.RBAC", deny)},
            router(),
        ],
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "typed_per_filter_config": {"envoy.filters.http.ext_authz": context(json!({"of": "host"}))}, "routes": [
            route("/own", context(json!({"of": "route", "b": "2"}))),
            route("/off", typed("ext_authz.v3.ExtAuthzPerRoute", json!({"disabled": true}))),
            {"match": {"prefix": "/"}, "route": {"cluster": "web"}},
        ]}]},
    });
    let mut config = envoys_config(
        vec![(side.host.at(PORT), manager)],
        &[("web", side.web), ("authz", asked)],
    );
    config["static_resources"]["clusters"][1]["typed_extension_protocol_options"] = json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}}}});
    config
}

/// What servers heard of `context_extensions`, since. Envoy's are of all words, the most specific last; ours of the most specific alone.
fn contexts(heard: &Heard) -> Vec<Vec<String>> {
    let heard = std::mem::take(&mut *heard.lock().expect("no panic"));
    let of = |text: &String| {
        text.lines()
            .filter_map(|line| line.strip_prefix("context ").map(str::to_owned))
            .collect()
    };
    heard.iter().map(of).collect()
}

#[test]
fn what_servers_are_told_by_routes_and_tell_besides_is_as_with_envoy() {
    if !available(&[Need::Envoy]) {
        return;
    }
    let runtime = Runtime::new().expect("a runtime");
    let heard = [Heard::default(), Heard::default()];
    let pair = Pair::start(
        |side, world| yaml(side, world, servers::grpc(runtime.handle(), &world.host(), &heard[0])),
        |side, world| envoys(side, world, servers::grpc(runtime.handle(), &world.host(), &heard[1])),
        PORT,
    );
    let asked = [
        ("/a", "tenant blue", 200, vec!["of=host"]),
        ("/own/b", "tenant blue", 200, vec!["b=2", "of=route"]),
        ("/c", "tenant red", 403, vec!["of=host"]),
        ("/d", "tenant green", 403, vec!["of=host"]),
        ("/e", "tenant none", 403, vec!["of=host"]),
        ("/f", "empty", 200, vec!["of=host"]),
    ];
    for (path, ask, status, context) in &asked {
        let seen = pair.both(PORT, &get(path, &format!("x-ask: {ask}\r\n")));
        assert_eq!(seen.map(|seen| seen.status), [*status; 2], "{path} {ask}");
        for (side, heard) in ["ours", "envoys"].into_iter().zip(&heard) {
            assert_eq!(contexts(heard), std::slice::from_ref(context), "{side} {path}");
        }
    }
    let seen = pair.both(PORT, &get("/off/x", "x-ask: tenant none\r\n"));
    assert_eq!(seen.map(|seen| seen.status), [200; 2]);
    assert!(heard.iter().all(|heard| contexts(heard).is_empty()), "nobody is asked");
    let logged = |name: &str| {
        let file = pair.world.directory().join(name);
        wait::some(wait::SOON, name, || {
            let text = std::fs::read_to_string(&file).unwrap_or_default();
            let lines: Vec<String> = text.lines().map(str::to_owned).collect();
            (lines.len() == asked.len() + 1).then_some(lines)
        })
    };
    let (ours, envoys) = (logged("ours.log"), logged("envoys.log"));
    assert_eq!(ours, envoys);
    assert_eq!(ours[0], "/a 200 blue x y [\"a\",\"blue\"] true 3 - -");
}
