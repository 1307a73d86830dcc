//! Routes that tell, in header fields, what they know of a request; and what is asked of them.

use serde_json::{Value, json};

use super::{RoutePair, header, pair};

const SET: &str = "OVERWRITE_IF_EXISTS_OR_ADD";
const ADD: &str = "APPEND_IF_EXISTS_OR_ADD";
const DEFAULT: &str = "ADD_IF_ABSENT";
const REPLACE: &str = "OVERWRITE_IF_EXISTS";

/// Those that each route has: field, value, action.
const OF_REQUESTS: [(&str, &str, &str); 20] = [
    ("x-told-path", "%REQ(:path)%", SET),
    ("x-told-method", "%REQ(:METHOD)%", SET),
    ("x-told-host", "%REQ(:authority)%", SET),
    ("x-told-user", "u=%REQ(X-User?x-other):4%;", SET),
    ("x-told-none", "%REQ(x-none)%", SET),
    ("x-told-all", "a%REQ(x-none)%b%REQ(x-user)%", SET),
    ("x-told-protocol", "%PROTOCOL%", SET),
    ("x-told-client", "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%", SET),
    ("x-told-port", "%DOWNSTREAM_LOCAL_PORT%", SET),
    ("x-told-cluster", "%UPSTREAM_CLUSTER%", SET),
    ("x-told-route", "%ROUTE_NAME%", SET),
    ("x-percent", "100%% %REQ(x-user)%", SET),
    ("x-set", "was %REQ(x-set)%", SET),
    ("x-more", "and %REQ(x-set)%", ADD),
    ("x-there", "default %REQ(x-set)%", DEFAULT),
    ("x-gone", "gone: %REQ(x-gone)%", DEFAULT),
    ("x-told-stage", "replaced %REQ(x-told-stage)%", REPLACE),
    ("x-told-other", "replaced", REPLACE),
    ("x-told-machine", "%HOSTNAME%", SET),
    ("x-told-peer", "%DOWNSTREAM_PEER_URI_SAN%", SET),
];

const OF_RESPONSES: [(&str, &str, &str); 10] = [
    ("x-of-path", "%REQ(:path)%", SET),
    ("x-of-original", "%REQ(x-envoy-original-path?:path)%", SET),
    (
        "x-of-user",
        "%REQ(x-user)% %REQ(x-told-user)% %RESP(x-endpoint?server)% %RESP(x-none)%",
        SET,
    ),
    ("x-of-endpoint", "%UPSTREAM_REMOTE_PORT%", SET),
    ("x-endpoint", "was %RESP(x-endpoint)%", REPLACE),
    ("x-more", "%PROTOCOL% %ROUTE_NAME%", ADD),
    ("x-of-code", "%RESPONSE_CODE%", SET),
    ("x-of-flags", "%RESPONSE_FLAGS%", SET),
    ("x-of-machine", "%HOSTNAME%", SET),
    ("x-of-peer", "%DOWNSTREAM_PEER_URI_SAN%", SET),
];

fn ours(fields: &[(&str, &str, &str)]) -> String {
    let of = |wanted: &str| {
        let some = fields.iter().filter(|(.., action)| *action == wanted);
        let some: Vec<String> = some.map(|(name, value, _)| format!("{name}: '{value}'")).collect();
        some.join(", ")
    };
    format!(
        "{{set: {{{}}}, add: {{{}}}, default: {{{}}}, replace: {{{}}}",
        of(SET),
        of(ADD),
        of(DEFAULT),
        of(REPLACE)
    )
}

fn envoys(fields: &[(&str, &str, &str)]) -> Vec<Value> {
    fields
        .iter()
        .map(|(name, value, action)| header(name, value, action))
        .collect()
}

pub(crate) fn routes() -> Vec<RoutePair> {
    let kinds = [
        (
            "/told/on",
            "forward: {cluster: web, prefix_rewrite: /new, host_rewrite: inner.test}",
            json!({"route": {"cluster": "web", "prefix_rewrite": "/new", "host_rewrite_literal": "inner.test"}}),
        ),
        (
            "/told/here",
            "direct: {status: 200, body: here}",
            json!({"direct_response": {"status": 200, "body": {"inline_string": "here"}}}),
        ),
        (
            "/told/away",
            "redirect: {path: /x}",
            json!({"redirect": {"path_redirect": "/x"}}),
        ),
        (
            "/told/void",
            "forward: {cluster: void}",
            json!({"route": {"cluster": "void"}}),
        ),
        (
            "/told/late",
            "forward: {cluster: web, timeout: 200ms}",
            json!({"route": {"cluster": "web", "timeout": "0.2s"}}),
        ),
        (
            "/told/closed",
            "forward: {cluster: closed, retry: {on: [connect-failure], retries: 1}}",
            json!({"route": {"cluster": "closed", "retry_policy": {"retry_on": "connect-failure", "num_retries": 1}}}),
        ),
    ];
    let pairs = kinds.into_iter().map(|(prefix, action, mut envoys_action)| {
        envoys_action["match"] = json!({"prefix": prefix});
        envoys_action["name"] = prefix.into();
        envoys_action["request_headers_to_add"] = envoys(&OF_REQUESTS).into();
        envoys_action["request_headers_to_remove"] = json!(["x-gone"]);
        envoys_action["response_headers_to_add"] = envoys(&OF_RESPONSES).into();
        let ours = format!(
            "{{name: {prefix}, match: {{prefix: {prefix}}}, {action}, request_headers: {}, remove: [x-gone]}}, response_headers: {}}}}}",
            ours(&OF_REQUESTS),
            ours(&OF_RESPONSES)
        );
        pair(ours, envoys_action)
    });
    pairs.collect()
}

/// What is asked of them: path and header lines.
pub(crate) fn asked() -> Vec<(String, String)> {
    let lines = [
        "",
        "x-user: alice\r\n",
        "x-other: bob-and-more\r\nx-set: old\r\nx-there: mine\r\nx-gone: 1\r\n",
        "x-user: alice\r\nx-user: eve\r\nx-told-stage: test\r\nx-more: first\r\n",
        "x-user:\r\nx-other: o\r\n",
        "x-told-peer: spiffe://forged/ns/a/sa/b\r\nx-told-machine: forged\r\n",
        "x-do: 503\r\n",
    ];
    let mut asked = Vec::new();
    for path in ["/told/on/a?b=c", "/told/here?x", "/told/away/y", "/told/void"] {
        for lines in lines {
            asked.push((path.to_owned(), lines.to_owned()));
        }
    }
    asked.push(("/told/late".to_owned(), "x-do: slow\r\n".to_owned()));
    asked.push(("/told/closed".to_owned(), String::new()));
    asked
}
