//! A policy from a later Istio, or a broken one: whatever of it is not understood, it denies and says so.

use prost::Message;
use underpass_config::{ConnectionFacts, Identity, Mesh, Workload};
use underpass_xds_client::proto::istio::security::string_match::MatchType;
use underpass_xds_client::proto::istio::security::{
    Action, Address, Authorization, Group, Match, Rules, Scope, ServiceAccountMatch, StringMatch,
};
use underpass_xds_client::proto::istio::workload as wds;
use underpass_xds_client::{MeshFacts, ResourceType, translate_response};

use super::{named, response};

/// `shop/web`, referred to by workload `web`: allows the client, on port 80, from 10.0.0.0/8.
fn policy() -> Authorization {
    Authorization {
        name: "web".into(),
        namespace: "shop".into(),
        scope: Scope::WorkloadSelector as i32,
        groups: vec![Group {
            rules: vec![Rules {
                matches: vec![Match {
                    principals: vec![StringMatch {
                        match_type: Some(MatchType::Exact("cluster.local/ns/shop/sa/client".into())),
                    }],
                    service_accounts: vec![ServiceAccountMatch {
                        namespace: "shop".into(),
                        service_account: "client".into(),
                    }],
                    source_ips: vec![Address {
                        address: vec![10, 0, 0, 0],
                        length: 8,
                    }],
                    destination_ports: vec![80],
                    ..Default::default()
                }],
            }],
        }],
        ..Default::default()
    }
}

fn web() -> Workload {
    let web = wds::Workload {
        uid: "web".into(),
        namespace: "shop".into(),
        authorization_policies: vec!["shop/web".into()],
        ..Default::default()
    };
    let address = wds::Address {
        r#type: Some(wds::address::Type::Workload(web)),
    };
    let accepted = translate_response(
        &response(ResourceType::Address, [named("web", &address)]),
        &MeshFacts::default(),
    );
    let mut mesh = Mesh::default();
    mesh.apply(accepted.unwrap().changes);
    let web = mesh.workloads().next().unwrap();
    Workload::clone(web)
}

/// Whether the client may reach `destination` on port 80, and what istiod is told of the policy.
fn allowed(policy: Vec<u8>, destination: &Workload) -> (bool, Vec<String>) {
    let accepted = translate_response(
        &response(ResourceType::Authorization, [("shop/web".to_owned(), policy)]),
        &MeshFacts::default(),
    )
    .unwrap();
    let mut mesh = Mesh::default();
    mesh.apply(accepted.changes);
    let client: Identity = "spiffe://cluster.local/ns/shop/sa/client".parse().unwrap();
    let facts = ConnectionFacts {
        source: Some(&client),
        source_ip: "10.0.0.1".parse().unwrap(),
        destination: "10.0.0.2:80".parse().unwrap(),
    };
    let rejections = accepted
        .rejections
        .into_iter()
        .map(|rejection| format!("{}: {}", rejection.name, rejection.reason));
    (
        mesh.authorize(&facts, destination).decision.is_allowed(),
        rejections.collect(),
    )
}

/// A field 99 with the number 1.
const UNKNOWN: [u8; 3] = [0x98, 0x06, 0x01];

/// A message inside another, as field `number`.
fn inside(number: u8, bytes: &[u8]) -> Vec<u8> {
    let length = u8::try_from(bytes.len()).unwrap();
    assert!(length < 128);
    [&[number << 3 | 2, length], bytes].concat()
}

/// A condition that only a later Istio knows, wherever it may stand, must not be dropped: the client of [`policy`] is
/// allowed without it.
#[test]
fn an_unknown_field_at_any_depth_denies_and_is_named() {
    let known = policy().encode_to_vec();
    assert_eq!(allowed(known.clone(), &web()), (true, Vec::new()));

    let in_match = |field: u8| inside(5, &inside(1, &inside(2, &inside(field, &UNKNOWN))));
    let rows = [
        (UNKNOWN.to_vec(), "field 99"),
        (inside(5, &UNKNOWN), "field groups.99"),
        (inside(5, &inside(1, &UNKNOWN)), "field groups.rules.99"),
        (
            inside(5, &inside(1, &inside(2, &UNKNOWN))),
            "field groups.rules.matches.99",
        ),
        (in_match(3), "field groups.rules.matches.principals.99"),
        (in_match(5), "field groups.rules.matches.source_ips.99"),
        (in_match(11), "field groups.rules.matches.service_accounts.99"),
    ];
    for (unknown, path) in rows {
        // A repeated field on the wire is one element more; the known part stays as it is and allows the client.
        let (is_allowed, rejections) = allowed([&known[..], &unknown].concat(), &web());
        assert!(!is_allowed, "{path}");
        assert_eq!(
            rejections,
            [format!(
                "shop/web: {path} is not known; until then it denies whatever it guards"
            )]
        );
    }
}

#[test]
fn a_value_that_is_not_understood_denies_and_is_named() {
    fn first(policy: &mut Authorization) -> &mut Match {
        &mut policy.groups[0].rules[0].matches[0]
    }
    let extension = || wds::Extension {
        name: "later".into(),
        config: None,
    };
    type Tamper = Box<dyn Fn(&mut Authorization)>;
    let rows: [(Tamper, &str); 8] = [
        (Box::new(|policy| policy.action = 2), "action 2 is not known"),
        (
            Box::new(move |policy| policy.extensions = vec![extension()]),
            "extension `later` is not known",
        ),
        (
            Box::new(move |policy| first(policy).extensions = vec![extension()]),
            "extension `later` of a match",
        ),
        (
            Box::new(|policy| first(policy).not_principals = vec![StringMatch { match_type: None }]),
            "a text is to be matched in a way",
        ),
        (
            Box::new(|policy| first(policy).destination_ports.push(70_000)),
            "`destination_ports` 70000 is not a port",
        ),
        (
            Box::new(|policy| first(policy).source_ips[0].length = 33),
            "`source_ips` has a prefix of 33 bits",
        ),
        (
            Box::new(|policy| first(policy).source_ips[0].address.push(1)),
            "`source_ips` is an address of 5 bytes",
        ),
        (
            Box::new(|policy| {
                first(policy).not_source_ips.push(Address {
                    address: Vec::new(),
                    length: 0,
                })
            }),
            "`not_source_ips` is an address of 0 bytes",
        ),
    ];
    for (tamper, expected) in rows {
        let mut policy = policy();
        tamper(&mut policy);
        let (is_allowed, rejections) = allowed(policy.encode_to_vec(), &web());
        assert!(!is_allowed, "{expected}");
        assert!(
            rejections.len() == 1 && rejections[0].contains(expected),
            "{expected}: {rejections:?}"
        );
    }
}

/// Istio's own action is the number 1: the tampered one must not have been denied for being DENY.
#[test]
fn the_rows_above_are_not_denied_for_another_reason() {
    let mut denying = policy();
    denying.action = Action::Deny as i32;
    assert_eq!(allowed(denying.encode_to_vec(), &web()), (false, Vec::new()));
}

#[test]
fn a_policy_that_is_no_policy_closes_its_namespace() {
    let elsewhere = Workload {
        namespace: "elsewhere".into(),
        authorization_policies: Box::default(),
        ..web()
    };
    let unguarded = Workload {
        authorization_policies: Box::default(),
        ..web()
    };
    for bytes in [vec![0xff; 10], Vec::new()] {
        let (in_namespace, rejections) = allowed(bytes.clone(), &unguarded);
        assert!(!in_namespace && rejections.len() == 1, "{rejections:?}");
        assert!(allowed(bytes, &elsewhere).0);
    }
}

/// What it guards is not known, so it guards as much as a policy of its namespace can.
#[test]
fn an_unknown_scope_is_the_namespace_or_for_the_root_namespace_the_mesh() {
    let rows = [
        ("shop", "shop", false),
        ("shop", "elsewhere", true),
        ("istio-system", "elsewhere", false),
    ];
    for (of_policy, of_workload, expected) in rows {
        let policy = Authorization {
            namespace: of_policy.into(),
            scope: 3,
            ..policy()
        };
        let name = format!("{of_policy}/web");
        let accepted = translate_response(
            &response(ResourceType::Authorization, [named(&name, &policy)]),
            &MeshFacts::default(),
        )
        .unwrap();
        let mut mesh = Mesh::default();
        mesh.apply(accepted.changes);
        let destination = Workload {
            namespace: of_workload.into(),
            authorization_policies: Box::default(),
            ..web()
        };
        let facts = ConnectionFacts {
            source: None,
            source_ip: "10.0.0.1".parse().unwrap(),
            destination: "10.0.0.2:80".parse().unwrap(),
        };
        let decision = mesh.authorize(&facts, &destination).decision;
        assert_eq!(decision.is_allowed(), expected, "{of_policy} guards {of_workload}");
    }
}

/// Dropped, a waypoint would be gone past; a tunnel that we do not speak would become plain text.
#[test]
fn a_workload_or_service_is_rejected_rather_than_understood_in_part() {
    let workload = || wds::Workload {
        uid: "web".into(),
        namespace: "shop".into(),
        ..Default::default()
    };
    let service = || wds::Service {
        name: "web".into(),
        namespace: "shop".into(),
        hostname: "web".into(),
        ..Default::default()
    };
    let nowhere = || wds::GatewayAddress {
        hbone_mtls_port: 15008,
        destination: None,
    };
    let port = |service_port| wds::Port {
        service_port,
        ..Default::default()
    };
    use wds::address::Type;
    let rows = [
        (
            Type::Workload(wds::Workload {
                waypoint: Some(nowhere()),
                ..workload()
            }),
            "`waypoint` is missing",
        ),
        (
            Type::Workload(wds::Workload {
                tunnel_protocol: 2,
                ..workload()
            }),
            "`tunnel_protocol` 2",
        ),
        (
            Type::Workload(wds::Workload {
                network_mode: 9,
                ..workload()
            }),
            "`network_mode` 9",
        ),
        (
            Type::Workload(wds::Workload {
                addresses: vec![vec![1, 2, 3]],
                ..workload()
            }),
            "address of 3 bytes",
        ),
        (
            Type::Workload(wds::Workload {
                uid: "other".into(),
                ..workload()
            }),
            "it says that it is `other`",
        ),
        (
            Type::Workload(wds::Workload {
                uid: String::new(),
                ..workload()
            }),
            "`uid` is missing",
        ),
        (
            Type::Service(wds::Service {
                waypoint: Some(nowhere()),
                ..service()
            }),
            "`waypoint` is missing",
        ),
        (
            Type::Service(wds::Service {
                ports: vec![port(0)],
                ..service()
            }),
            "`ports.service_port` 0",
        ),
        (
            Type::Service(wds::Service {
                ports: vec![port(65_536)],
                ..service()
            }),
            "`ports.service_port` 65536",
        ),
        (
            Type::Service(wds::Service {
                subject_alt_names: vec!["web.example.com".into()],
                ..service()
            }),
            "`subject_alt_names` `web.example.com`",
        ),
    ];
    for (kind, expected) in rows {
        let name = if matches!(kind, Type::Workload(_)) {
            "web"
        } else {
            "shop/web"
        };
        let address = wds::Address { r#type: Some(kind) };
        let accepted = translate_response(
            &response(ResourceType::Address, [named(name, &address)]),
            &MeshFacts::default(),
        )
        .unwrap();
        assert!(accepted.changes.is_empty(), "{expected}");
        assert_eq!(accepted.rejections.len(), 1, "{expected}");
        let reason = &accepted.rejections[0].reason;
        assert!(reason.contains(expected), "{expected}: {reason}");
    }
}
