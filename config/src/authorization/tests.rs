//! Istio's written semantics as tables: how one policy matches. (How policies decide together: `decision::tests`.)

use super::*;
use crate::Identity;
use crate::samples::{any_of, identity, ip, policy};

/// Every row is asked about these, in this order: no identity; `cluster.local/ns/shop/sa/client`;
/// `other.domain/ns/bank/sa/teller`, over IPv6 to another port.
const SOURCES: [&str; 3] = ["no identity", "client", "teller"];

fn facts<'a>(identities: &'a [Identity; 2]) -> [ConnectionFacts<'a>; 3] {
    let [client, teller] = identities;
    let web = "10.0.1.1:80".parse().unwrap();
    [
        ConnectionFacts {
            source: None,
            source_ip: ip("10.0.0.9"),
            destination: web,
        },
        ConnectionFacts {
            source: Some(client),
            source_ip: ip("10.0.0.1"),
            destination: web,
        },
        ConnectionFacts {
            source: Some(teller),
            source_ip: ip("fd00::1"),
            destination: "[fd00::2]:9000".parse().unwrap(),
        },
    ]
}

fn identities() -> [Identity; 2] {
    [
        identity("cluster.local", "shop", "client"),
        identity("other.domain", "bank", "teller"),
    ]
}

fn matching(action: Action, groups: Vec<Group>) -> [bool; 3] {
    let policy = Authorization {
        groups,
        ..policy("p", action)
    };
    facts(&identities()).map(|facts| policy.matches(&Facts::new(&facts)))
}

fn exact(text: &str) -> Vec<StringMatch> {
    vec![StringMatch::Exact(text.into())]
}

fn prefix(text: &str) -> Vec<StringMatch> {
    vec![StringMatch::Prefix(text.into())]
}

fn suffix(text: &str) -> Vec<StringMatch> {
    vec![StringMatch::Suffix(text.into())]
}

fn presence() -> Vec<StringMatch> {
    vec![StringMatch::Presence]
}

fn account(namespace: &str, service_account: &str) -> Vec<ServiceAccountMatch> {
    vec![ServiceAccountMatch {
        namespace: namespace.into(),
        service_account: service_account.into(),
    }]
}

fn nets(nets: &[&str]) -> Vec<IpNet> {
    nets.iter().map(|net| net.parse().unwrap()).collect()
}

/// A match of these fields.
macro_rules! one {
    ($($field:ident: $value:expr),*) => {
        Match { $($field: $value,)* ..Match::default() }
    };
}

#[track_caller]
fn check(rows: impl IntoIterator<Item = (Match, [bool; 3])>) {
    for (one, expected) in rows {
        for action in [Action::Allow, Action::Deny] {
            let found = matching(action, any_of([one.clone()]));
            assert_eq!(found, expected, "{action:?} {one:?} for {SOURCES:?}");
        }
    }
}

#[test]
fn empty_levels_mean_what_istio_says() {
    let rule = |matches: &[Match]| Rule {
        matches: matches.to_vec(),
    };
    let rows: [(&str, Vec<Group>, bool, bool); 7] = [
        ("no groups", vec![], false, false),
        ("a group without rules", vec![Group::default()], true, true),
        ("a rule without matches", any_of([]), true, true),
        ("a match without fields", any_of([one!()]), false, true),
        (
            "an empty match beside an empty rule",
            vec![Group {
                rules: vec![rule(&[one!()]), rule(&[])],
            }],
            false,
            true,
        ),
        (
            "an empty match in one group of two",
            [any_of([one!()]), any_of([])].concat(),
            true,
            true,
        ),
        (
            "an empty match beside one that never holds",
            any_of([one!(), one!(destination_ports: vec![1])]),
            false,
            true,
        ),
    ];
    for (what, groups, allow, deny) in rows {
        assert_eq!(matching(Action::Allow, groups.clone()), [allow; 3], "ALLOW, {what}");
        assert_eq!(matching(Action::Deny, groups), [deny; 3], "DENY, {what}");
    }
}

#[test]
fn namespaces_match_the_sources() {
    check([
        (one!(namespaces: exact("shop")), [false, true, false]),
        (one!(namespaces: exact("sho")), [false, false, false]),
        (one!(namespaces: exact("Shop")), [false, false, false]),
        (one!(namespaces: prefix("sh")), [false, true, false]),
        (one!(namespaces: prefix("hop")), [false, false, false]),
        (one!(namespaces: prefix("")), [false, true, true]),
        (one!(namespaces: suffix("op")), [false, true, false]),
        (one!(namespaces: suffix("sho")), [false, false, false]),
        (one!(namespaces: presence()), [false, true, true]),
        (one!(not_namespaces: exact("shop")), [true, false, true]),
        (one!(not_namespaces: prefix("sh")), [true, false, true]),
        (one!(not_namespaces: suffix("nk")), [true, true, false]),
        (one!(not_namespaces: presence()), [true, false, false]),
    ]);
}

#[test]
fn service_accounts_match_by_namespace_and_name() {
    check([
        (one!(service_accounts: account("shop", "client")), [false, true, false]),
        (one!(service_accounts: account("bank", "client")), [false, false, false]),
        (one!(service_accounts: account("shop", "teller")), [false, false, false]),
        (
            one!(not_service_accounts: account("shop", "client")),
            [true, false, true],
        ),
        (
            one!(not_service_accounts: account("shop", "teller")),
            [true, true, true],
        ),
    ]);
}

#[test]
fn principals_match_without_the_scheme() {
    let client = "cluster.local/ns/shop/sa/client";
    let client_id = "spiffe://cluster.local/ns/shop/sa/client";
    check([
        (one!(principals: exact(client)), [false, true, false]),
        (one!(principals: exact(client_id)), [false, true, false]),
        (
            one!(principals: exact("other.domain/ns/shop/sa/client")),
            [false, false, false],
        ),
        (one!(principals: prefix("cluster.local/ns/shop/")), [false, true, false]),
        (one!(principals: prefix("spiffe://other.domain/")), [false, false, true]),
        (one!(principals: suffix("/sa/client")), [false, true, false]),
        (one!(principals: suffix(client_id)), [false, true, false]),
        (
            one!(principals: suffix("spiffe://local/ns/shop/sa/client")),
            [false, false, false],
        ),
        (one!(principals: presence()), [false, true, true]),
        (one!(not_principals: exact(client)), [true, false, true]),
        (one!(not_principals: exact(client_id)), [true, false, true]),
        (one!(not_principals: prefix("other.")), [true, true, false]),
        (one!(not_principals: suffix("/sa/client")), [true, false, true]),
        (one!(not_principals: presence()), [true, false, false]),
    ]);
}

#[test]
fn addresses_match_by_network() {
    check([
        (one!(source_ips: nets(&["10.0.0.1/32"])), [false, true, false]),
        (one!(source_ips: nets(&["10.0.0.0/8"])), [true, true, false]),
        (one!(source_ips: nets(&["fd00::/16"])), [false, false, true]),
        (one!(source_ips: nets(&["0.0.0.0/0"])), [true, true, false]),
        (one!(source_ips: nets(&["::/0"])), [false, false, true]),
        (one!(source_ips: nets(&["10.0.1.1/32"])), [false, false, false]),
        (one!(not_source_ips: nets(&["10.0.0.1/32"])), [true, false, true]),
        (one!(not_source_ips: nets(&["fd00::1/128"])), [true, true, false]),
        (one!(destination_ips: nets(&["10.0.1.0/24"])), [true, true, false]),
        (one!(destination_ips: nets(&["fd00::2/128"])), [false, false, true]),
        (one!(not_destination_ips: nets(&["10.0.1.1/32"])), [false, false, true]),
        (one!(not_destination_ips: nets(&["10.0.0.1/32"])), [true, true, true]),
    ]);
}

#[test]
fn ports_match_the_endpoints() {
    check([
        (one!(destination_ports: vec![80]), [true, true, false]),
        (one!(destination_ports: vec![80, 9000]), [true, true, true]),
        (one!(destination_ports: vec![443]), [false, false, false]),
        (one!(not_destination_ports: vec![80]), [false, false, true]),
        (one!(not_destination_ports: vec![443]), [true, true, true]),
    ]);
}

#[test]
fn values_of_a_field_are_alternatives_and_fields_are_all_required() {
    let both = [exact("shop"), exact("bank")].concat();
    check([
        (one!(namespaces: both.clone()), [false, true, true]),
        (one!(not_namespaces: both.clone()), [true, false, false]),
        (
            one!(namespaces: both.clone(), not_namespaces: exact("bank")),
            [false, true, false],
        ),
        (
            one!(namespaces: exact("shop"), not_namespaces: prefix("sh")),
            [false, false, false],
        ),
        (
            one!(namespaces: both, destination_ports: vec![9000]),
            [false, false, true],
        ),
        (
            one!(source_ips: nets(&["10.0.0.0/8"]), not_principals: presence()),
            [true, false, false],
        ),
        (
            one!(source_ips: nets(&["10.0.0.0/8"]), not_source_ips: nets(&["10.0.0.9/32"])),
            [false, true, false],
        ),
    ]);
}

#[test]
fn groups_and_matches_are_alternatives_and_rules_are_all_required() {
    let shop = || one!(namespaces: exact("shop"));
    let bank = || one!(namespaces: exact("bank"));
    let port_80 = || one!(destination_ports: vec![80]);
    let group = |rules: &[&[Match]]| Group {
        rules: rules
            .iter()
            .map(|matches| Rule {
                matches: matches.to_vec(),
            })
            .collect(),
    };
    let rows = [
        (vec![group(&[&[shop(), bank()]])], [false, true, true]),
        (vec![group(&[&[shop()], &[bank()]])], [false, false, false]),
        (vec![group(&[&[shop()]]), group(&[&[bank()]])], [false, true, true]),
        (vec![group(&[&[shop(), bank()], &[port_80()]])], [false, true, false]),
        (
            vec![group(&[&[shop(), bank()], &[port_80()], &[]])],
            [false, true, false],
        ),
        (
            vec![group(&[&[bank()], &[port_80()]]), group(&[&[shop()], &[port_80()]])],
            [false, true, false],
        ),
    ];
    for (groups, expected) in rows {
        for action in [Action::Allow, Action::Deny] {
            assert_eq!(matching(action, groups.clone()), expected, "{action:?} {groups:?}");
        }
    }
}

#[test]
fn an_ipv4_address_in_ipv6_form_is_the_ipv4_address() {
    let source = identity("cluster.local", "shop", "client");
    let mapped = ConnectionFacts {
        source: Some(&source),
        source_ip: ip("::ffff:10.0.0.1"),
        destination: "[::ffff:10.0.1.1]:80".parse().unwrap(),
    };
    let plain = ConnectionFacts {
        source: Some(&source),
        source_ip: ip("10.0.0.1"),
        destination: "10.0.1.1:80".parse().unwrap(),
    };
    for (net, expected) in [
        ("10.0.0.0/24", true),
        ("10.0.1.0/24", false),
        ("::ffff:10.0.0.0/120", true),
        ("::ffff:10.0.1.0/120", false),
        ("::ffff:0.0.0.0/96", true),
        ("::ffff:0.0.0.0/95", false), // wider than the IPv4 addresses: an IPv6 network
    ] {
        let groups = any_of([one!(source_ips: nets(&[net]))]);
        let policy = Authorization {
            groups,
            ..policy("p", Action::Deny)
        };
        for facts in [mapped, plain] {
            assert_eq!(
                policy.matches(&Facts::new(&facts)),
                expected,
                "{net} for {}",
                facts.source_ip
            );
        }
    }
    let to_pod = any_of([one!(destination_ips: nets(&["10.0.1.1/32"]))]);
    assert!(
        Authorization {
            groups: to_pod,
            ..policy("p", Action::Deny)
        }
        .matches(&Facts::new(&mapped))
    );
}
