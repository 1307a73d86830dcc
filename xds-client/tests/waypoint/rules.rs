//! What users wrote as AuthorizationPolicy and RequestAuthentication, as they would say what it does.

use std::net::IpAddr;
use std::time::Duration;

use http::HeaderMap;
use serde_json::json;
use underpass_config::http::{
    Asking, AuthzService, ExtAuthz, Filter, Jwt, Peer, Rbac, RequestView, Requirement, RuleAction, Rules,
};
use underpass_xds_client::waypoint::Held;

use crate::{SERVER, SERVER_TCP, held, table, tcp};

const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/client";

fn rbacs(held: &Held, name: &str) -> Vec<Rbac> {
    let table = table(held, name);
    let filters = table.filters.iter();
    filters
        .filter_map(|filter| match filter {
            Filter::Rbac(rbac) => Some(rbac.clone()),
            _ => None,
        })
        .collect()
}

fn with_action(rbacs: &[Rbac], action: RuleAction) -> Rules {
    let mut rules = rbacs.iter().filter_map(|rbac| rbac.rules.clone());
    rules.find(|rules| rules.action == action).unwrap()
}

fn peer(principal: Option<&str>) -> Peer<'_> {
    Peer {
        principal,
        address: "10.245.1.10".parse::<IpAddr>().unwrap(),
        destination: "10.96.1.1:80".parse().unwrap(),
        server_name: None,
    }
}

/// Whether rules let a request pass, and the policy that says so.
fn ruling(
    rules: &Rules,
    peer: &Peer<'_>,
    (method, authority, path): (&str, &str, &str),
    fields: &[(&'static str, &str)],
    claims: Option<&serde_json::Value>,
) -> (bool, Option<String>) {
    let headers: HeaderMap = fields
        .iter()
        .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
        .collect();
    let asking = Asking {
        request: RequestView {
            method,
            scheme: "http",
            authority,
            path,
            query: None,
            headers: &headers,
        },
        claims,
        metadata: None,
    };
    let ruling = rules.rule(&rules.settle(peer), peer, &asking);
    (ruling.is_allowed, ruling.policy.map(ToString::to_string))
}

#[test]
fn who_may_read() {
    let held = held("03-l7-authorization");
    let rbacs = rbacs(&held, SERVER);
    let allow = with_action(&rbacs, RuleAction::Allow);
    let host = "other.test";
    let gold: &[(&'static str, &str)] = &[("x-tenant", "gold")];
    for (method, path, fields, expected) in [
        ("GET", "/api/x", gold, true),
        ("HEAD", "/a/status", gold, true),
        ("GET", "/exact", &[("x-tenant", "silver-2")], true),
        ("GET", "/users/7/info", gold, true),
        ("GET", "/users/7/8/info", gold, false),
        ("GET", "/files/a/b/c", gold, true),
        ("POST", "/api/x", gold, false),
        ("GET", "/api/admin", gold, false),
        ("GET", "/elsewhere", gold, false),
        ("GET", "/api/x", &[("x-tenant", "bronze")], false),
        ("GET", "/api/x", &[], false),
        ("GET", "/api/x", &[("x-tenant", "gold"), ("x-debug", "")], false),
    ] {
        let (is_allowed, policy) = ruling(&allow, &peer(Some(CLIENT)), (method, host, path), fields, None);
        assert_eq!(is_allowed, expected, "{method} {path} {fields:?}");
        assert_eq!(policy.is_some(), expected);
        let (others, _) = ruling(
            &allow,
            &peer(Some("spiffe://cluster.local/ns/untrusted/sa/client")),
            (method, host, path),
            fields,
            None,
        );
        assert!(!others, "{path}");
    }
    // By address and host: whoever it is.
    let from = |address: &str| Peer {
        address: address.parse().unwrap(),
        ..peer(None)
    };
    for (address, authority, forwarded, expected) in [
        ("10.244.3.3", "SERVER.shop.svc.cluster.local", "", true),
        ("10.244.3.3", "a.example.com", "", true),
        ("10.244.3.3", "example.com", "", false),
        ("10.245.3.3", "a.example.com", "", false),
        ("10.244.3.3", "a.example.com", "203.0.113.9", false),
    ] {
        let fields: &[(&'static str, &str)] = match forwarded {
            "" => &[],
            address => &[("x-forwarded-for", address)],
        };
        let (is_allowed, _) = ruling(&allow, &from(address), ("PUT", authority, "/"), fields, None);
        assert_eq!(is_allowed, expected, "{address} {authority} {forwarded}");
    }
}

#[test]
fn who_is_denied() {
    let held = held("03-l7-authorization");
    let deny = with_action(&rbacs(&held, SERVER), RuleAction::Deny);
    let of = |principal, method, path| ruling(&deny, &peer(principal), (method, "h", path), &[], None).0;
    assert!(of(Some(CLIENT), "GET", "/secure"));
    assert!(!of(None, "GET", "/secure"), "nobody without an identity");
    assert!(of(None, "GET", "/open"));
    assert!(!of(Some(CLIENT), "DELETE", "/open"));
    assert!(
        !of(Some("spiffe://cluster.local/ns/banned/sa/x"), "GET", "/open"),
        "the gateway's policy"
    );
}

#[test]
fn rules_stand_in_their_order_and_tell_what_they_have_to() {
    let held = held("03-l7-authorization");
    let order: Vec<&str> = table(&held, SERVER)
        .filters
        .iter()
        .map(|filter| match filter {
            Filter::Rbac(Rbac { rules: None, .. }) => "shadow",
            Filter::Rbac(Rbac { rules: Some(rules), .. }) => match rules.action {
                RuleAction::Allow => "allow",
                RuleAction::Deny => "deny",
                RuleAction::Log => "log",
            },
            Filter::ExtAuthz(_) => "ask",
            Filter::Jwt(_) => "jwt",
            Filter::LocalRateLimit(_) => "limit",
            Filter::OfRoutes => "of routes",
        })
        .collect();
    assert_eq!(order, ["shadow", "ask", "log", "deny", "allow"]);
    let dry = rbacs(&held, "inbound-vip|80|http|server-v2.shop.svc.cluster.local");
    let dry = dry.iter().find(|rbac| rbac.shadow.is_some()).unwrap();
    assert_eq!(&*dry.shadow_prefix, "istio_dry_run_deny_");
    let (passes, policy) = ruling(
        dry.shadow.as_ref().unwrap(),
        &peer(None),
        ("PATCH", "h", "/"),
        &[],
        None,
    );
    assert!(!passes && policy.unwrap().contains("dry-run-deny"));
}

fn asked(held: &Held, name: &str) -> ExtAuthz {
    let table = table(held, name);
    let mut filters = table.filters.iter();
    let asked = filters.find_map(|filter| match filter {
        Filter::ExtAuthz(asked) => Some(asked.clone()),
        _ => None,
    });
    asked.unwrap()
}

#[test]
fn who_is_asked_elsewhere() {
    let held = held("03-l7-authorization");
    let by_http = asked(&held, SERVER);
    let provider = &by_http.provider;
    assert_eq!(&*provider.name, "authz-http");
    assert_eq!(
        &*provider.forward.clusters()[0].cluster,
        "outbound|8000||ext-authz.auth.svc.cluster.local"
    );
    assert_eq!(provider.forward.timeout, Some(Duration::from_secs(2)));
    assert!(provider.failure_mode_allow);
    assert_eq!(provider.status_on_error.as_u16(), 503);
    let AuthzService::Http(http) = &provider.service else {
        panic!("{provider:?}")
    };
    assert_eq!(http.path_prefix, "/check");
    assert_eq!(http.headers_to_add.edits[0].name, "x-extra");
    let told = |name: &str| {
        provider
            .allowed_headers
            .as_ref()
            .unwrap()
            .iter()
            .any(|one| one.matches(name))
    };
    assert!(told("X-Ext-Authz") && told("cookie") && !told("x-other"));
    assert!(http.allowed_upstream_headers[0].matches("x-user"));
    let body = provider.request_body.unwrap();
    assert_eq!((body.max_request_bytes, body.allow_partial_message), (1024, true));
    let told = |policy: &str| vec![("istio_ext_authz_shadow_effective_policy_id".into(), policy.into())];
    let enabled = by_http.enabled_by.as_ref().unwrap();
    assert!(enabled.holds(&told("istio-ext-authz-authz-http-ns[shop]-policy[check-http]-rule[0]")));
    assert!(!enabled.holds(&told("istio-ext-authz-authz-grpc-ns[shop]-policy[check-grpc]-rule[0]")));

    let by_grpc = asked(&held, "inbound-vip|80|http|server-v1.shop.svc.cluster.local");
    let AuthzService::Grpc(authority) = &by_grpc.provider.service else {
        panic!("{by_grpc:?}")
    };
    assert_eq!(authority, "ext-authz.auth.svc.cluster.local");
    assert!(!by_grpc.provider.failure_mode_allow);
    assert!(by_grpc.provider.allowed_headers.is_none(), "all of them");
}

/// Policies of HTTP guard ports of TCP: what asks for a request is gone from them, and denies what is left.
#[test]
fn connections_are_judged_without_requests() {
    let held = held("03-l7-authorization");
    let rules = &tcp(&held, SERVER_TCP).rules;
    let pass = |principal: Option<&str>| {
        let mut decided = rules.iter().filter_map(|rbac| rbac.rules.as_ref());
        decided.all(|rules| rules.of_connection(&peer(principal)).unwrap().is_allowed)
    };
    assert_eq!(rules.len(), 3);
    for principal in [None, Some(CLIENT), Some("spiffe://cluster.local/ns/banned/sa/x")] {
        assert!(
            !pass(principal),
            "a rule on DELETE denies whatever is no request: {principal:?}"
        );
    }
    let held = crate::held("09-workload-waypoint");
    assert!(tcp(&held, "direct-tcp").rules.iter().all(|rbac| rbac.rules.is_some()));
}

#[test]
fn whose_tokens_and_what_they_may() {
    let held = held("04-jwt");
    let table = table(&held, SERVER);
    let Some(Filter::Jwt(jwt)) = table.filters.first() else {
        panic!("{:?}", table.filters)
    };
    let jwt: &Jwt = jwt;
    let issuers: Vec<&str> = jwt.providers().iter().map(|one| &*one.issuer).collect();
    assert_eq!(issuers, ["https://issuer.example.com", "https://second.example.com"]);
    let first = &jwt.providers()[0];
    assert!(first.audiences.allow(&["api".to_owned()]) && !first.audiences.allow(&["other".to_owned()]));
    assert!(first.forward && first.shows_claims && first.clear_route_cache);
    assert_eq!(first.forward_payload_header.as_ref().unwrap(), "x-jwt-payload");
    assert_eq!(
        (
            &*first.claim_to_headers[0].claim,
            first.claim_to_headers[0].header.as_str()
        ),
        ("sub", "x-jwt-sub")
    );
    let headers: Vec<_> = first
        .locations
        .headers()
        .map(|one| (one.place.name.as_str(), &*one.place.prefix))
        .collect();
    assert_eq!(headers, [("x-jwt", "Bearer ")]);
    assert_eq!(
        first.locations.params().map(|(name, _)| &**name).collect::<Vec<_>>(),
        ["access_token"]
    );
    let second = &jwt.providers()[1];
    assert_eq!(
        second.locations.cookies().map(|(name, _)| &**name).collect::<Vec<_>>(),
        ["session"]
    );
    assert!(jwt.bypass_cors_preflight);
    let optional = |place| Requirement::Any(vec![Requirement::Provider(place), Requirement::AllowMissing]);
    let expected = Requirement::Any(vec![
        Requirement::Provider(0),
        Requirement::Provider(1),
        Requirement::All(vec![optional(0), optional(1)]),
    ]);
    assert_eq!(jwt.required("/any"), &expected);

    let allow = with_action(&rbacs(&held, SERVER), RuleAction::Allow);
    let of = |path: &str, claims: Option<serde_json::Value>| {
        ruling(&allow, &peer(None), ("GET", "h", path), &[], claims.as_ref()).0
    };
    let good = json!({
        "iss": "https://issuer.example.com", "sub": "bob", "aud": "api",
        "groups": ["users", "dev-tools"], "nested": {"role": "owner"},
    });
    assert!(of("/x", Some(good.clone())));
    for (claim, value) in [
        ("iss", json!("https://second.example.com")),
        ("groups", json!(["users"])),
        ("aud", json!(["shop"])),
        ("nested", json!({"role": ["reader"]})),
    ] {
        let mut bad = good.clone();
        bad[claim] = value;
        assert!(!of("/x", Some(bad)), "{claim}");
    }
    assert!(of("/healthz", None) && !of("/x", None));
    assert!(of("/x", Some(json!({"iss": "any", "sub": "alice", "azp": "app-1"}))));
}
