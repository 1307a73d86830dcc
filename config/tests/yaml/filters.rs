//! What requests go through: in Istio's order, and with who may be asked.

use std::time::Duration;

use underpass_config::Config;
use underpass_config::http::{AuthzService, Filter, RuleAction};

use super::problems;

fn document(more: &str, table: &str) -> String {
    format!(
        "node:
  name: a
  listeners: [{{name: l, address: '127.0.0.1:1', protocol: http, routes: t}}]
http:
  clusters: [{{name: plain, endpoints: ['127.0.0.1:2']}}, {{name: grpc, protocol: http2, endpoints: ['127.0.0.1:3']}}]
  ext_authz_providers:
  - {{name: b, envoy_ext_authz_http: {{cluster: plain}}}}
  - {{name: bb, envoy_ext_authz_grpc: {{cluster: grpc, timeout: 1s}}}}
{more}
  routes:
  - name: t
{table}
    virtual_hosts: [{{name: v, domains: ['*'], routes: [{{direct: {{status: 200}}}}]}}]
"
    )
}

#[test]
fn who_is_asked_comes_behind_the_limit_and_before_the_rules() {
    let policies = "    local_rate_limit: {max_tokens: 5, fill_interval: 1s}
    request_authentication:
    - jwt_rules: [{issuer: i, jwks: '{\"keys\": [{\"kty\": \"oct\", \"k\": \"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8\"}]}'}]
    authorization:
    - {name: d, action: DENY, rules: [{}]}
    - {name: c, namespace: n, action: CUSTOM, provider: {name: bb}, rules: [{to: [{operation: {paths: [/x]}}]}, {}]}
    - {name: c2, action: CUSTOM, provider: {name: b}, rules: [{}]}";
    let config = Config::from_yaml(&document("", policies)).unwrap();
    let filters = &config.http.tables["t"].filters;
    let told: Vec<String> = filters
        .iter()
        .map(|filter| match filter {
            Filter::LocalRateLimit(limit) => format!("limit {}", limit.bucket.rate().max_tokens),
            Filter::Jwt(_) => "tokens".to_owned(),
            Filter::Rbac(rbac) => {
                let action = |rules: &Option<underpass_config::http::Rules>| rules.as_ref().map(|rules| rules.action);
                assert_ne!(rbac.rules.is_some(), rbac.shadow.is_some());
                assert_eq!(action(&rbac.rules).or(action(&rbac.shadow)), Some(RuleAction::Deny));
                format!("rules {}", rbac.shadow_prefix)
            }
            Filter::OfRoutes => panic!("no route has its own"),
            Filter::ExtAuthz(asking) => {
                let enabled_by = asking.enabled_by.as_ref().unwrap();
                assert_eq!(&*enabled_by.key, "istio_ext_authz_shadow_effective_policy_id");
                format!("{} if {}", asking.provider.name, enabled_by.prefix)
            }
        })
        .collect();
    assert_eq!(
        told,
        [
            "limit 5",
            "tokens",
            "rules istio_ext_authz_",
            "b if istio-ext-authz-b-ns[",
            "rules istio_ext_authz_",
            "bb if istio-ext-authz-bb-ns[",
            "rules istio_dry_run_deny_",
        ]
    );
    let Filter::ExtAuthz(asking) = &filters[3] else {
        panic!("{:?}", filters[3])
    };
    let provider = &asking.provider;
    assert_eq!(provider.forward.timeout, Some(Duration::from_secs(600)), "istiod's");
    assert!(!provider.failure_mode_allow && provider.status_on_error == 403);
    assert!(matches!(&provider.service, AuthzService::Http(http) if http.path_prefix.is_empty()));
}

#[test]
fn nobody_is_asked_who_is_not_there() {
    let told = |more: &str, table: &str| {
        let problems = problems(&document(more, table));
        problems
            .iter()
            .map(|problem| format!("{}: {}", problem.path, problem.problem))
            .collect::<Vec<_>>()
            .join("; ")
    };
    for (policy, expected) in [
        (
            "action: CUSTOM, provider: {name: c}",
            "provider.name: is not one of `http.ext_authz_providers`",
        ),
        ("action: CUSTOM", "provider: a CUSTOM policy needs one"),
        (
            "action: DENY, provider: {name: b}",
            "provider.name: is asked by CUSTOM policies only",
        ),
        (
            "action: CUSTOM, provider: {name: b}, dry_run: true",
            "dry_run: is not for CUSTOM",
        ),
    ] {
        let told = told(
            "",
            &format!("    authorization: [{{name: p, rules: [{{}}], {policy}}}]"),
        );
        assert_eq!(told, format!("http.routes[0].authorization[0].{expected}"));
    }
    for (provider, expected) in [
        (
            "name: b, envoy_ext_authz_http: {cluster: plain}",
            "name: the one at [0] already has this name",
        ),
        ("name: c", ": speaks exactly one protocol"),
        (
            "name: c, envoy_ext_authz_http: {cluster: none}",
            "envoy_ext_authz_http.cluster: is not one of `http.clusters`",
        ),
        (
            "name: c, envoy_ext_authz_grpc: {cluster: plain}",
            "envoy_ext_authz_grpc.cluster: does not speak HTTP/2",
        ),
        (
            "name: c, envoy_ext_authz_http: {cluster: plain, path_prefix: check}",
            "envoy_ext_authz_http.path_prefix: is not a path",
        ),
        (
            "name: c, envoy_ext_authz_http: {cluster: plain, include_additional_headers_in_check: {content-length: '1'}}",
            "envoy_ext_authz_http.include_additional_headers_in_check.content-length: frames the message, and is the proxy's own",
        ),
        (
            "name: c, envoy_ext_authz_http: {cluster: plain, include_request_headers_in_check: ['x-*-y']}",
            "envoy_ext_authz_http.include_request_headers_in_check[0]: is not the name of a header field",
        ),
        (
            "name: c, envoy_ext_authz_grpc: {cluster: grpc, include_request_body_in_check: {max_request_bytes: 0}}",
            "envoy_ext_authz_grpc.include_request_body_in_check.max_request_bytes: is not a valid number here",
        ),
    ] {
        let told = told(&format!("  - {{{provider}}}"), "");
        let dot = if expected.starts_with(':') { "" } else { "." };
        assert_eq!(told, format!("http.ext_authz_providers[2]{dot}{expected}"));
    }
    let told = told("", "    local_rate_limit: {max_tokens: 4000000000, fill_interval: 1h}");
    assert_eq!(told, "http.routes[0].local_rate_limit: never fills");
}

#[test]
fn what_only_routes_have_has_a_place_and_what_is_wrong_with_it_is_said() {
    let routes = |filters: &str| {
        format!(
            "    virtual_hosts: [{{name: v, domains: ['*'], routes: [{{direct: {{status: 200}}, filters: {filters}}}]}}]"
        )
    };
    let table = |table: &str, filters: &str| {
        document("", table).replace(
            "    virtual_hosts: [{name: v, domains: ['*'], routes: [{direct: {status: 200}}]}]",
            &routes(filters),
        )
    };
    let own = "{local_rate_limit: {max_tokens: 1, fill_interval: 1s}, authorization: [{name: p, rules: [{}]}]}";
    let config = Config::from_yaml(&table("", own)).unwrap();
    let found = &config.http.tables["t"];
    assert!(matches!(found.filters[..], [Filter::OfRoutes, Filter::OfRoutes]) && found.has_overrides());
    assert!(!Config::from_yaml(&document("", "")).unwrap().http.tables["t"].has_overrides());
    for (filters, problem) in [
        ("{off: [tokens]}", "is not a known value"),
        ("{off: [authorization], authorization: []}", "is given here, too"),
        (
            "{authorization: [{name: c, action: CUSTOM, provider: {name: b}, rules: [{}]}]}",
            "is for whole tables",
        ),
        (
            "{ext_authz: {context_extensions: {a: b}}}",
            "nobody is asked by this table",
        ),
        (
            "{authorization: [{name: c, action: WHAT, rules: [{}]}]}",
            "is not a known value",
        ),
        ("{local_rate_limit: {max_tokens: 0, fill_interval: 1s}}", "max_tokens"),
    ] {
        let found = problems(&table("", filters));
        assert!(
            found.iter().any(|one| one.to_string().contains(problem)),
            "{filters}: {found:?}"
        );
    }
}
