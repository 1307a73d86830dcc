//! The policies of istiod's recording 03: Envoy has the filters as istiod sent them, we have the policies that it made them of.

use serde_json::Value;

use super::place::{ALL, Place, Policies};
use crate::cases::Case;
use crate::differential::{Speaks, seed};
use underpass_tests::{Need, available};

/// What istiod sent a waypoint: `server`, `server-v2`, and what it sent for TCP ports of `server`.
const RECORDED: &str = include_str!("recorded-03.json");

/// Requests that nobody thought of, for each client and protocol.
const ANY: usize = 120;

/// `allow-reads`, `deny-deletes`, `audit-posts` and `gateway-deny` of the scenario; `BLOCK` is where its pods are.
const SERVER: &str = r#"- name: allow-reads
  namespace: shop
  action: ALLOW
  rules:
  - from:
    - source: {principals: [cluster.local/ns/shop/sa/client], notNamespaces: [untrusted]}
    to:
    - operation: {methods: [GET, HEAD], paths: [/api/*, "*/status", /exact, "/users/{*}/info", "/files/{**}"], notPaths: [/api/admin*]}
    when:
    - {key: "request.headers[x-tenant]", values: [gold, "silver*"]}
    - {key: "request.headers[x-debug]", notValues: ["*"]}
  - to:
    - operation: {hosts: [server.shop.svc.cluster.local, "*.example.com"], ports: ["80"]}
    when:
    - {key: source.ip, values: [BLOCK]}
    - {key: remote.ip, notValues: [203.0.113.0/24]}
  - from:
    - source: {namespaces: [istio-system], serviceAccounts: [shop/client]}
- name: deny-deletes
  namespace: shop
  action: DENY
  rules:
  - to: [{operation: {methods: [DELETE]}}]
  - from: [{source: {notPrincipals: ["*"]}}]
    to: [{operation: {paths: [/secure]}}]
- name: audit-posts
  namespace: shop
  action: AUDIT
  rules:
  - to: [{operation: {methods: [POST]}}]
- name: gateway-deny
  namespace: shop
  action: DENY
  rules:
  - from: [{source: {namespaces: [banned]}}]
"#;

/// `dry-run-deny` and `gateway-deny`.
const SERVER_V2: &str = r#"- name: dry-run-deny
  namespace: shop
  action: DENY
  dry_run: true
  rules:
  - to: [{operation: {methods: [PATCH]}}]
- name: gateway-deny
  namespace: shop
  action: DENY
  rules:
  - from: [{source: {namespaces: [banned]}}]
"#;

/// The pods of the scenario are in 10.244.0.0/16; those of the tests are in the loopback network.
fn sets() -> Vec<Policies> {
    let recorded: Value = serde_json::from_str(RECORDED).expect("a recording");
    let policies = |ours: &str, name: &str| {
        let text = recorded[name].to_string();
        let text = text.replace(
            r#""address_prefix":"10.244.0.0","prefix_len":16"#,
            r#""address_prefix":"127.0.0.0","prefix_len":8"#,
        );
        Policies {
            ours: ours.replace("BLOCK", "127.0.0.0/8"),
            envoys: serde_json::from_str(&text).expect("still JSON"),
        }
    };
    vec![policies(SERVER, "server"), policies(SERVER_V2, "server-v2")]
}

#[test]
fn recorded_policies_decide_as_in_envoy() {
    if !available(&[Need::Envoy]) {
        return;
    }
    let place = Place::start(|_| sets());
    let mut random = fastrand::Rng::with_seed(seed());
    for set in 0..2 {
        for who in ALL {
            for speaks in [Speaks::Http1, Speaks::Http2] {
                let cases: Vec<Case> = (0..ANY).map(|_| one(&mut random)).collect();
                place.sides(who, set, speaks).compare(&cases);
            }
        }
    }
    let metrics = place.proxy.metrics();
    let dry = |would| metrics.sum("underpass_authorization_dry_run_total", &[("would", would)]);
    assert!(
        dry("deny") > 0 && dry("allow") > 0,
        "what a dry run would have done is counted"
    );
}

fn one(random: &mut fastrand::Rng) -> Case {
    let mut pick = |from: &[&'static str]| from[random.usize(..from.len())];
    let method = pick(&[
        "GET", "GET", "HEAD", "POST", "DELETE", "PATCH", "OPTIONS", "get", "DELETEX",
    ]);
    let path = pick(PATHS);
    let host = pick(&[
        "server.shop.svc.cluster.local",
        "SERVER.shop.svc.cluster.local",
        "server.shop.svc.cluster.local:80",
        "a.example.com",
        "a.EXAMPLE.com",
        ".example.com",
        "example.com",
        "a.example.com.evil.test",
    ]);
    let tenant = pick(&[
        "x-tenant: gold\r\n",
        "x-tenant: gold\r\n",
        "x-tenant: silverback\r\n",
        "X-Tenant: gold\r\n",
        "x-tenant: Gold\r\n",
        "x-tenant: bronze\r\nx-tenant: gold\r\n",
        "x-tenant: bronze,gold\r\n",
        "",
    ]);
    let debug = pick(&["", "", "x-debug: 1\r\n", "x-debug:\r\n"]);
    let forwarded = pick(FORWARDED);
    Case::new(format!(
        "{method} {path} HTTP/1.1\r\nhost: {host}\r\nx-id: {}\r\n{tenant}{debug}{forwarded}\r\n",
        random.u64(..)
    ))
}

/// What paths are asked for, in as many writings as were thought of.
pub(super) const PATHS: &[&str] = &[
    "/",
    "/api/x",
    "/api/",
    "/api",
    "/API/x",
    "/api/admin",
    "/api/admin/x",
    "/api/administer",
    "/api/./admin",
    "/api/x/../admin",
    "/api/%2e%2e/secure",
    "/api%2fadmin",
    "/api/%61dmin",
    "/api//admin",
    "//api/admin",
    "/api/admin?x",
    "/api/x?/../admin",
    "/api/x;/../admin",
    "/x/status",
    "/status",
    "/x/status/",
    "/x/status?y",
    "/exact",
    "/exact/",
    "/exact?x=y",
    "/exacT",
    "/users/7/info",
    "/users/7/8/info",
    "/users//info",
    "/users/%2f/info",
    "/users/a*b/info",
    "/users/a;b@c:d/info",
    "/users/7/info/",
    "/files",
    "/files/",
    "/files/a",
    "/files/a/b/c",
    "/files//a",
    "/files/a*b",
    "/files/%00",
    "/secure",
    "/secure/",
    "/secure?x",
    "/./secure",
    "/x/../secure",
    "/%73ecure",
    "/secure%20",
    "/secure;x",
    "/%2fsecure",
    "/SECURE",
];

/// Who an x-forwarded-for says the client is.
pub(super) const FORWARDED: &[&str] = &[
    "",
    "",
    "x-forwarded-for: 203.0.113.9\r\n",
    "x-forwarded-for: 203.0.113.9, 192.0.2.1\r\n",
    "x-forwarded-for: 192.0.2.1, 203.0.113.9\r\n",
    "x-forwarded-for: 192.0.2.1,203.0.113.9 \r\n",
    "x-forwarded-for: 203.0.113.9\r\nx-forwarded-for: 192.0.2.1\r\n",
    "x-forwarded-for: garbage\r\n",
    "x-forwarded-for: 203.0.113.9:80\r\n",
    "x-forwarded-for: ::ffff:203.0.113.9\r\n",
    "x-forwarded-for: 203.0.113.9,\r\n",
];
