//! What conditions hold for, and that settling changes nothing.

use std::net::IpAddr;

use http::{HeaderMap, HeaderName, HeaderValue};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::{Field, HeaderMatch, RequestView, TextMatch};
use super::*;

const NOBODY: Peer<'_> = Peer {
    principal: None,
    address: IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 9)),
    destination: std::net::SocketAddr::V4(std::net::SocketAddrV4::new(std::net::Ipv4Addr::new(10, 96, 0, 1), 80)),
    server_name: None,
};
const CLIENT: Peer<'_> = Peer {
    principal: Some("spiffe://cluster.local/ns/shop/sa/client"),
    ..NOBODY
};

fn view<'a>(path: &'a str, headers: &'a HeaderMap) -> RequestView<'a> {
    RequestView {
        method: "GET",
        scheme: "http",
        authority: "web.test",
        path,
        query: None,
        headers,
    }
}

fn fields(fields: &[(&'static str, &'static str)]) -> HeaderMap {
    let pairs = fields
        .iter()
        .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
    pairs.collect()
}

#[test]
fn templates_are_of_whole_segments() {
    for (template, path, expected) in [
        ("/users/*/info", "/users/7/info", true),
        ("/users/*/info", "/users//info", false),
        ("/users/*/info", "/users/7/8/info", false),
        ("/files/**", "/files/", true),
        ("/files/**", "/files/a/b", true),
        ("/files/**", "/files", false),
        ("/a/**/z", "/a/b/c/z", true),
        ("/a.b/*", "/axb/c", false),
        ("/*", "/a\nb", false),
    ] {
        assert_eq!(
            PathTemplate::new(template).unwrap().matches(path),
            expected,
            "{template} {path}"
        );
    }
    for (template, error) in [
        ("users/*", BadTemplate::Slash),
        ("/users/a*", BadTemplate::Star("a*".to_owned())),
        ("/**/*", BadTemplate::Star("*".to_owned())),
        ("/{name}", BadTemplate::Segment("{name}".to_owned())),
        ("/a?b", BadTemplate::Segment("a?b".to_owned())),
    ] {
        assert_eq!(PathTemplate::new(template).unwrap_err(), error, "{template}");
    }
}

#[test]
fn a_claim_is_looked_for_by_its_whole_path() {
    let claims =
        json!({"sub": "alice", "aud": ["api", "shop"], "realm": {"role": "owner"}, "n": 7, "ok": true, "none": null});
    let text = |text: &str| ValueMatch::Text(TextMatch::Exact(text.to_owned()));
    let cases: Vec<(&[&str], ValueMatch, bool)> = vec![
        (&["sub"], text("alice"), true),
        (&["sub"], text("bob"), false),
        (&["sub", "alice"], text("alice"), false),
        (&["aud"], text("api"), false),
        (&["aud"], ValueMatch::OneOf(text("api").into()), true),
        (&["sub"], ValueMatch::OneOf(text("alice").into()), false),
        (&["realm", "role"], text("owner"), true),
        (&["realm"], text("owner"), false),
        (&["n"], ValueMatch::Number(7.0), true),
        (&["n"], text("7"), false),
        (&["ok"], ValueMatch::Bool(true), true),
        (&["none"], ValueMatch::Null, true),
        (&["gone"], ValueMatch::Null, false),
        (&["gone"], ValueMatch::Present(false), true),
        (&["none"], ValueMatch::Present(true), true),
    ];
    for (path, value, expected) in cases {
        let claim = ClaimMatch {
            path: path.iter().map(|name| Text::from(*name)).collect(),
            value,
        };
        assert_eq!(claim.matches(Some(&claims)), expected, "{claim:?}");
    }
    let absent = ClaimMatch {
        path: vec!["sub".into()],
        value: text("alice"),
    };
    assert!(!absent.matches(None), "nobody has claimed anything");
}

#[test]
fn a_client_is_who_the_last_proxy_says_it_is() {
    for (forwarded, expected) in [
        (&[][..], "10.0.0.9"),
        (&["192.0.2.1"], "192.0.2.1"),
        (&["203.0.113.1, 192.0.2.1"], "192.0.2.1"),
        (&["203.0.113.1", "192.0.2.1"], "192.0.2.1"),
        (&["::ffff:192.0.2.1"], "192.0.2.1"),
        (&["garbage"], "10.0.0.9"),
        (&["192.0.2.1,"], "10.0.0.9"),
        (&["192.0.2.1:80"], "10.0.0.9"),
    ] {
        let pairs: Vec<_> = forwarded.iter().map(|value| ("x-forwarded-for", *value)).collect();
        let headers = fields(&pairs);
        let asking = Asking {
            request: view("/", &headers),
            claims: None,
            metadata: None,
        };
        assert_eq!(asking.client(NOBODY.address).to_string(), expected, "{forwarded:?}");
    }
}

/// Conditions on both, with few values, so that each holds often.
fn condition() -> impl Strategy<Value = Condition> {
    let text = |text: &str| TextMatch::Exact(text.to_owned());
    let leaf = prop_oneof![
        Just(Condition::Any),
        Just(Condition::Principal(TextMatch::Prefix(String::new()))),
        Just(Condition::Path(text("/a"))),
        Just(Condition::DestinationPort(80..=80)),
        Just(Condition::DestinationPort(81..=81)),
        Just(Condition::ClientIp("10.0.0.0/8".parse().unwrap())),
        Just(Condition::Header(HeaderMatch {
            field: Field::Header(HeaderName::from_static("x-a")),
            value: Some(text("1")),
            invert: false,
            missing_is_empty: false,
        })),
        Just(Condition::Claim(ClaimMatch {
            path: vec!["sub".into()],
            value: ValueMatch::Text(text("alice")),
        })),
    ];
    leaf.prop_recursive(4, 24, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Condition::All),
            prop::collection::vec(inner.clone(), 0..4).prop_map(Condition::Either),
            inner.prop_map(|not| Condition::Not(Box::new(not))),
        ]
    })
}

proptest! {
    /// Whatever is settled for a connection, a request is judged as if nothing had been.
    #[test]
    fn settling_changes_nothing(
        conditions in prop::collection::vec((condition(), condition()), 0..5),
        action in prop::sample::select(vec![RuleAction::Allow, RuleAction::Deny, RuleAction::Log]),
        is_known in any::<bool>(),
        (is_a, has_header, is_alice) in any::<(bool, bool, bool)>(),
    ) {
        let peer = if is_known { CLIENT } else { NOBODY };
        let headers = if has_header { fields(&[("x-a", "1"), ("x-forwarded-for", "192.0.2.1")]) } else { HeaderMap::new() };
        let claims: Value = json!({"sub": "alice"});
        let asking = Asking { request: view(if is_a { "/a" } else { "/b" }, &headers), claims: is_alice.then_some(&claims), metadata: None };
        let held = conditions.iter().position(|(one, other)| one.holds(&peer, &asking) && other.holds(&peer, &asking));
        for (one, _) in &conditions {
            if let Some(settled) = one.settled(&peer) {
                prop_assert_eq!(settled, one.holds(&peer, &asking));
            }
        }
        let named = conditions.into_iter().enumerate().map(|(place, (permission, principal))| Policy {
            name: format!("{place}").into(), permission, principal,
        });
        let rules = Rules::new(action, named.collect());
        let ruling = rules.rule(&rules.settle(&peer), &peer, &asking);
        let expected = held.map(|place| place.to_string());
        prop_assert_eq!(ruling.policy.map(|name| name.to_string()), expected.clone());
        let is_allowed = match action {
            RuleAction::Allow => expected.is_some(),
            RuleAction::Deny => expected.is_none(),
            RuleAction::Log => true,
        };
        prop_assert_eq!(ruling.is_allowed, is_allowed);
        if let Some(of_connection) = rules.of_connection(&peer) {
            prop_assert_eq!(of_connection, ruling);
        }
    }
}

mod as_istio_writes_it {
    use crate::Config;

    use super::*;

    fn table(policies: &str) -> std::sync::Arc<super::super::super::RouteTable> {
        let yaml = format!(
            "http: {{clusters: [{{name: c, protocol: http2}}], ext_authz_providers: [{{name: asked, envoy_ext_authz_grpc: {{cluster: c}}}}], routes: [{{name: t, authorization: [{policies}], virtual_hosts: [{{name: h, domains: ['*'], routes: [{{direct: {{status: 200}}}}]}}]}}]}}"
        );
        Config::from_yaml(&yaml)
            .unwrap_or_else(|error| panic!("{error}"))
            .http
            .tables["t"]
            .clone()
    }

    /// Where there is no HTTP, a DENY rule that asks for it denies more, and an ALLOW rule allows nothing.
    #[test]
    fn what_a_connection_does_not_have_makes_no_hole() {
        for (policy, expected) in [
            (
                "{name: p, action: DENY, rules: [{to: [{operation: {methods: [GET]}}]}]}",
                Some("p"),
            ),
            (
                "{name: p, action: DENY, rules: [{to: [{operation: {methods: [GET], ports: ['81']}}]}]}",
                None,
            ),
            (
                "{name: p, action: DENY, rules: [{to: [{operation: {methods: [GET], ports: ['80']}}]}]}",
                Some("p"),
            ),
            (
                "{name: p, action: DENY, rules: [{when: [{key: 'request.headers[x]', notValues: ['1']}]}]}",
                Some("p"),
            ),
            (
                "{name: p, action: DENY, rules: [{from: [{source: {notRequestPrincipals: ['*']}}]}]}",
                Some("p"),
            ),
            (
                "{name: p, action: DENY, rules: [{from: [{source: {namespaces: [other]}}], to: [{operation: {paths: [/x]}}]}]}",
                None,
            ),
            (
                "{name: p, action: ALLOW, rules: [{to: [{operation: {methods: [GET]}}]}]}",
                Some("none"),
            ),
            (
                "{name: p, action: ALLOW, rules: [{to: [{operation: {notMethods: [GET]}}]}]}",
                Some("none"),
            ),
            (
                "{name: p, action: ALLOW, rules: [{to: [{operation: {methods: [GET]}}, {operation: {ports: ['80']}}]}]}",
                None,
            ),
            (
                "{name: p, action: ALLOW, rules: [{when: [{key: remote.ip, values: ['10.0.0.0/8']}]}]}",
                Some("none"),
            ),
            (
                "{name: p, action: ALLOW, rules: [{from: [{source: {namespaces: [shop]}}]}]}",
                None,
            ),
            ("{name: p, action: ALLOW, rules: [{}]}", None),
            ("{name: p, action: ALLOW}", Some("none")),
            ("{name: p, action: DENY}", None),
            ("{name: p, action: AUDIT, rules: [{}]}", None),
            // Nobody can be asked about it.
            (
                "{name: p, action: CUSTOM, provider: {name: asked}, rules: [{to: [{operation: {paths: [/x]}}]}]}",
                Some("istio-ext-authz-asked-p"),
            ),
            (
                "{name: p, action: CUSTOM, provider: {name: asked}, rules: [{to: [{operation: {ports: ['81']}}]}]}",
                None,
            ),
        ] {
            let table = table(policy);
            let mut denied = None;
            for rbac in &table.connection_rules {
                let ruling = rbac
                    .rules
                    .as_ref()
                    .unwrap()
                    .of_connection(&CLIENT)
                    .expect("nothing of it is of requests");
                if !ruling.is_allowed {
                    denied = Some(ruling.policy.map_or("none".to_owned(), |name| {
                        name.replace("ns[default]-policy[", "").replace("]-rule[0]", "")
                    }));
                }
            }
            assert_eq!(denied.as_deref(), expected, "{policy}");
        }
    }

    #[test]
    fn what_is_not_understood_is_refused_with_the_document() {
        for (policies, problem) in [
            (
                "{name: p, rules: [{from: [{source: {principal: [a]}}]}]}",
                "is not a field here",
            ),
            (
                "{name: p, rules: [{to: [{operation: {principals: [a]}}]}]}",
                "is not a field here",
            ),
            ("{name: p, rules: [{to: [{operation: {}}]}]}", "says nothing"),
            (
                "{name: p, rules: [{to: [{operation: {methods: []}}]}]}",
                "is an empty list",
            ),
            (
                "{name: p, rules: [{to: [{operation: {ports: [http]}}]}]}",
                "is not a port",
            ),
            ("{name: p, rules: [{to: [{operation: {paths: ['/a/{*']}}]}]}", "neither"),
            (
                "{name: p, rules: [{from: [{source: {ipBlocks: [10.0.0]}}]}]}",
                "is not a block",
            ),
            (
                "{name: p, rules: [{from: [{source: {serviceAccounts: ['a/b/c']}}]}]}",
                "is not a service account",
            ),
            (
                "{name: p, rules: [{when: [{key: request.header}]}]}",
                "is no key that is known",
            ),
            (
                "{name: p, rules: [{when: [{key: 'request.headers[]', values: [a]}]}]}",
                "names no header field",
            ),
            (
                "{name: p, rules: [{when: [{key: 'request.auth.claims[a][]', values: [a]}]}]}",
                "names no claim",
            ),
            ("{name: p, rules: [{when: [{key: source.ip}]}]}", "asks for nothing"),
            ("{name: p, action: BLOCK}", "is not a known value"),
        ] {
            let yaml = format!("http: {{routes: [{{name: t, authorization: [{policies}], virtual_hosts: []}}]}}");
            let error = Config::from_yaml(&yaml).expect_err(policies).to_string();
            assert!(error.contains(problem), "{policies}: {error}");
        }
    }
}
