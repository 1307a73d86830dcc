//! One configuration, in our words and in Envoy's, route by route.

pub(crate) mod cors;
pub(crate) mod operators;
pub(crate) mod times;

use std::net::SocketAddr;

use serde_json::{Value, json};

/// One route: its match and what it does, in our YAML and in Envoy's JSON. `{}` of the scene's clusters: `web`, `void` (no endpoints),
/// `closed` (nothing listens there).
pub(crate) struct RoutePair {
    pub(crate) ours: String,
    pub(crate) envoys: Value,
}

fn pair(ours: impl Into<String>, envoys: Value) -> RoutePair {
    let ours = ours.into();
    RoutePair { ours, envoys }
}

fn header(name: &str, value: &str, action: &str) -> Value {
    json!({"header": {"key": name, "value": value}, "append_action": action})
}

/// The routes of `web.test`, in their order.
pub(crate) fn routes() -> Vec<RoutePair> {
    const APPEND: &str = "APPEND_IF_EXISTS_OR_ADD";
    const SET: &str = "OVERWRITE_IF_EXISTS_OR_ADD";
    const ABSENT: &str = "ADD_IF_ABSENT";
    let mut routes = cors::routes();
    routes.extend(times::routes());
    routes.extend(operators::routes());
    routes.extend([
        pair(
            "{match: {path: /direct}, direct: {status: 418, body: teapot}, response_headers: {set: {x-kind: direct}}}",
            json!({"match": {"path": "/direct"}, "direct_response": {"status": 418, "body": {"inline_string": "teapot"}},
                "response_headers_to_add": [header("x-kind", "direct", SET)]}),
        ),
        pair(
            "{match: {path: /empty}, direct: {status: 200}}",
            json!({"match": {"path": "/empty"}, "direct_response": {"status": 200}}),
        ),
        pair(
            "{match: {prefix: /fraction/none, runtime_fraction: {numerator: 0}}, direct: {status: 200, body: never}}",
            json!({"match": {"prefix": "/fraction/none", "runtime_fraction": {"default_value": {"numerator": 0}}},
                "direct_response": {"status": 200, "body": {"inline_string": "never"}}}),
        ),
        pair(
            "{match: {prefix: /fraction/all, runtime_fraction: {numerator: 1000000, denominator: 1000000}}, direct: {status: 200, body: always}}",
            json!({"match": {"prefix": "/fraction/all", "runtime_fraction": {"default_value": {"numerator": 1000000, "denominator": "MILLION"}}},
                "direct_response": {"status": 200, "body": {"inline_string": "always"}}}),
        ),
        pair(
            "{match: {prefix: /redirect/path}, redirect: {path: /elsewhere, status: '302'}}",
            json!({"match": {"prefix": "/redirect/path"}, "redirect": {"path_redirect": "/elsewhere", "response_code": "FOUND"}}),
        ),
        pair(
            "{match: {prefix: /redirect/prefix}, redirect: {prefix: /p, status: '307'}}",
            json!({"match": {"prefix": "/redirect/prefix"}, "redirect": {"prefix_rewrite": "/p", "response_code": "TEMPORARY_REDIRECT"}}),
        ),
        pair(
            "{match: {prefix: /redirect/host}, redirect: {host: other.test, port: 8443, scheme: https}}",
            json!({"match": {"prefix": "/redirect/host"}, "redirect": {"host_redirect": "other.test", "port_redirect": 8443, "scheme_redirect": "https"}}),
        ),
        pair(
            "{match: {prefix: /rewrite/prefix}, forward: {cluster: web, prefix_rewrite: /new}}",
            json!({"match": {"prefix": "/rewrite/prefix"}, "route": {"cluster": "web", "prefix_rewrite": "/new"}}),
        ),
        pair(
            "{match: {prefix: /rewrite/regex}, forward: {cluster: web, regex_rewrite: {pattern: '/rewrite/regex/([0-9]+)/(.*)', substitution: '/\\2/number/\\1'}}}",
            json!({"match": {"prefix": "/rewrite/regex"}, "route": {"cluster": "web", "regex_rewrite": {
                "pattern": {"regex": "/rewrite/regex/([0-9]+)/(.*)"}, "substitution": "/\\2/number/\\1"}}}),
        ),
        pair(
            "{match: {prefix: /rewrite/host}, forward: {cluster: web, host_rewrite: 'inner.test:8080'}}",
            json!({"match": {"prefix": "/rewrite/host"}, "route": {"cluster": "web", "host_rewrite_literal": "inner.test:8080"}}),
        ),
        pair(
            "{match: {segments: /segments}, forward: {cluster: web}, response_headers: {set: {x-route: segments}}}",
            json!({"match": {"path_separated_prefix": "/segments"}, "route": {"cluster": "web"},
                "response_headers_to_add": [header("x-route", "segments", SET)]}),
        ),
        pair(
            "{match: {regex: '/regex/[a-z]+'}, forward: {cluster: web}, response_headers: {set: {x-route: regex}}}",
            json!({"match": {"safe_regex": {"regex": "/regex/[a-z]+"}}, "route": {"cluster": "web"},
                "response_headers_to_add": [header("x-route", "regex", SET)]}),
        ),
        pair(
            "{match: {prefix: /Case, case_sensitive: false}, forward: {cluster: web}, response_headers: {set: {x-route: case}}}",
            json!({"match": {"prefix": "/Case", "case_sensitive": false}, "route": {"cluster": "web"},
                "response_headers_to_add": [header("x-route", "case", SET)]}),
        ),
        pair(
            "{match: {headers: {x-canary: {exact: 'yes'}, x-stage: {prefix: be, invert: true, missing_is_empty: true}}, query: {v: '2'}}, forward: {cluster: web}, response_headers: {set: {x-route: canary}}}",
            json!({"match": {"prefix": "/",
                "headers": [{"name": "x-canary", "string_match": {"exact": "yes"}},
                    {"name": "x-stage", "string_match": {"prefix": "be"}, "invert_match": true, "treat_missing_header_as_empty": true}],
                "query_parameters": [{"name": "v", "string_match": {"exact": "2"}}]}, "route": {"cluster": "web"},
                "response_headers_to_add": [header("x-route", "canary", SET)]}),
        ),
        pair(
            "{match: {method: DELETE, headers: {x-id: {present: true}}}, forward: {cluster: web}, response_headers: {set: {x-route: delete}}}",
            json!({"match": {"prefix": "/", "headers": [{"name": ":method", "string_match": {"exact": "DELETE"}}, {"name": "x-id", "present_match": true}]},
                "route": {"cluster": "web"}, "response_headers_to_add": [header("x-route", "delete", SET)]}),
        ),
        pair(
            "{match: {prefix: /edit}, forward: {cluster: web}, request_headers: {remove: [x-gone], set: {x-set: new}, add: {x-more: b}, default: {x-there: no}}, response_headers: {remove: [x-endpoint], add: {x-more: r}}}",
            json!({"match": {"prefix": "/edit"}, "route": {"cluster": "web"},
                "request_headers_to_remove": ["x-gone"],
                "request_headers_to_add": [header("x-set", "new", SET), header("x-more", "b", APPEND), header("x-there", "no", ABSENT)],
                "response_headers_to_remove": ["x-endpoint"], "response_headers_to_add": [header("x-more", "r", APPEND)]}),
        ),
        pair(
            "{match: {prefix: /split}, forward: {clusters: [{cluster: void, weight: 0}, {cluster: web, weight: 5, request_headers: {set: {x-part: web}}, response_headers: {set: {x-part: web}}}]}}",
            json!({"match": {"prefix": "/split"}, "route": {"weighted_clusters": {"clusters": [{"name": "void", "weight": 0},
                {"name": "web", "weight": 5, "request_headers_to_add": [header("x-part", "web", SET)], "response_headers_to_add": [header("x-part", "web", SET)]}]}}}),
        ),
        pair(
            "{match: {prefix: /void}, forward: {cluster: void}}",
            json!({"match": {"prefix": "/void"}, "route": {"cluster": "void"}}),
        ),
        pair(
            "{match: {prefix: /closed/retried}, forward: {cluster: closed, retry: {on: [connect-failure], retries: 2}}}",
            json!({"match": {"prefix": "/closed/retried"}, "route": {"cluster": "closed", "retry_policy": {"retry_on": "connect-failure", "num_retries": 2}}}),
        ),
        pair(
            "{match: {prefix: /closed}, forward: {cluster: closed}}",
            json!({"match": {"prefix": "/closed"}, "route": {"cluster": "closed"}}),
        ),
        pair(
            "{match: {prefix: /timeout}, forward: {cluster: web, timeout: 300ms}}",
            json!({"match": {"prefix": "/timeout"}, "route": {"cluster": "web", "timeout": "0.3s"}}),
        ),
        pair(
            "{match: {prefix: /try-timeout}, forward: {cluster: web, timeout: 5s, retry: {on: [5xx], retries: 1, per_try_timeout: 400ms}}}",
            json!({"match": {"prefix": "/try-timeout"}, "route": {"cluster": "web", "timeout": "5s", "retry_policy": {"retry_on": "5xx", "num_retries": 1, "per_try_timeout": "0.4s"}}}),
        ),
        pair(
            "{match: {prefix: /retry/5xx}, forward: {cluster: web, retry: {on: [5xx], retries: 2}}}",
            json!({"match": {"prefix": "/retry/5xx"}, "route": {"cluster": "web", "retry_policy": {"retry_on": "5xx", "num_retries": 2}}}),
        ),
        pair(
            "{match: {prefix: /retry/gateway}, forward: {cluster: web, retry: {on: [gateway-error, retriable-4xx], retries: 1}}}",
            json!({"match": {"prefix": "/retry/gateway"}, "route": {"cluster": "web", "retry_policy": {"retry_on": "gateway-error,retriable-4xx", "num_retries": 1}}}),
        ),
        pair(
            "{match: {prefix: /retry/reset}, forward: {cluster: web, retry: {on: [reset], retries: 3}}}",
            json!({"match": {"prefix": "/retry/reset"}, "route": {"cluster": "web", "retry_policy": {"retry_on": "reset", "num_retries": 3}}}),
        ),
        pair(
            "{match: {prefix: /retry/status}, forward: {cluster: web, retry: {on: [retriable-status-codes], statuses: [418, 404], retries: 2}}}",
            json!({"match": {"prefix": "/retry/status"}, "route": {"cluster": "web", "retry_policy": {"retry_on": "retriable-status-codes", "retriable_status_codes": [418, 404], "num_retries": 2}}}),
        ),
        pair(
            "{match: {prefix: /retry/words}, forward: {cluster: web, retry: {on: [retriable-headers, envoy-ratelimited, unavailable, cancelled, reset-before-request, http3-post-connect-failure], headers: {x-try-again: {prefix: 'y'}}, retries: 2}}}",
            json!({"match": {"prefix": "/retry/words"}, "route": {"cluster": "web", "retry_policy": {"retry_on": "retriable-headers,envoy-ratelimited,unavailable,cancelled,reset-before-request,http3-post-connect-failure",
                "retriable_headers": [{"name": "x-try-again", "string_match": {"prefix": "y"}}], "num_retries": 2}}}),
        ),
        pair(
            "{match: {prefix: /retry/idle}, forward: {cluster: web, retry: {on: [5xx], retries: 1, per_try_idle_timeout: 400ms}}}",
            json!({"match": {"prefix": "/retry/idle"}, "route": {"cluster": "web", "retry_policy": {"retry_on": "5xx", "num_retries": 1, "per_try_idle_timeout": "0.4s"}}}),
        ),
        pair(
            "{match: {prefix: /retry/wait}, forward: {cluster: web, retry: {on: [retriable-status-codes], statuses: [429], retries: 1, reset_headers: [{name: x-none, format: unix-timestamp}, {name: retry-after}]}}}",
            json!({"match": {"prefix": "/retry/wait"}, "route": {"cluster": "web", "retry_policy": {"retry_on": "retriable-status-codes", "retriable_status_codes": [429], "num_retries": 1,
                "rate_limited_retry_back_off": {"reset_headers": [{"name": "x-none", "format": "UNIX_TIMESTAMP"}, {"name": "retry-after", "format": "SECONDS"}]}}}}),
        ),
        pair(
            "{match: {prefix: /abort}, forward: {cluster: web, fault: {abort: 429}}}",
            json!({"match": {"prefix": "/abort"}, "route": {"cluster": "web"}, "typed_per_filter_config": {"envoy.filters.http.fault": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault",
                "abort": {"http_status": 429, "percentage": {"numerator": 100}}}}}),
        ),
        pair(
            "{match: {prefix: /ws}, forward: {cluster: web, upgrades: [websocket]}}",
            json!({"match": {"prefix": "/ws"}, "route": {"cluster": "web", "upgrade_configs": [{"upgrade_type": "websocket"}]}}),
        ),
        pair(
            "{match: {prefix: /}, forward: {cluster: web}}",
            json!({"match": {"prefix": "/"}, "route": {"cluster": "web"}}),
        ),
    ]);
    routes
}

/// Our file.
pub(crate) fn ours(listen: SocketAddr, admin: SocketAddr, log: &str, web: &[SocketAddr], closed: SocketAddr) -> String {
    let routes: Vec<String> = routes().into_iter().map(|pair| pair.ours).collect();
    let web: Vec<String> = web.iter().map(|address| format!("'{address}'")).collect();
    format!(
        "node:
  name: node-a
  admin: '{admin}'
  access_log: {{path: '{log}', format: json}}
  listeners: [{{name: http, address: '{listen}', protocol: http, routes: t}}]
http:
  clusters:
  - {{name: web, balancing: round-robin, endpoints: [{}]}}
  - {{name: void}}
  - {{name: closed, endpoints: ['{closed}']}}
  routes:
  - name: t
    virtual_hosts:
    - name: web
      domains: [web.test, '*.web.test']
      request_headers: {{set: {{x-of-host: web}}}}
      response_headers: {{add: {{x-more: h}}}}
      routes:
      - {}
    - name: other
      domains: [other.*]
      routes: [{{direct: {{status: 200, body: other}}}}]
    - {}
",
        web.join(", "),
        routes.join("\n      - "),
        cors::our_host(),
    )
}

/// Envoy's virtual hosts.
pub(crate) fn envoys() -> Value {
    let routes: Vec<Value> = routes().into_iter().map(|pair| pair.envoys).collect();
    json!([
        {"name": "web", "domains": ["web.test", "*.web.test"], "routes": routes,
            "request_headers_to_add": [header("x-of-host", "web", "OVERWRITE_IF_EXISTS_OR_ADD")],
            "response_headers_to_add": [header("x-more", "h", "APPEND_IF_EXISTS_OR_ADD")]},
        {"name": "other", "domains": ["other.*"],
            "routes": [{"match": {"prefix": "/"}, "direct_response": {"status": 200, "body": {"inline_string": "other"}}}]},
        cors::envoys_host(),
    ])
}
