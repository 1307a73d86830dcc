//! What istiod really sends, loaded into the model: the policies decide and the services balance as the Kubernetes
//! objects behind them say. Provenance: `recordings/README.md`.

#![allow(
    clippy::unwrap_used,
    reason = "clippy takes the helpers of an integration test for something else"
)]

#[path = "recordings/proto_json.rs"]
mod proto_json;

use std::net::{IpAddr, SocketAddr};

use underpass_config::{
    Authorization, ConnectionFacts, Decision, DenyReason, Identity, Mesh, PolicyKey, Position, ServiceKey, Workload,
    WorkloadUid,
};

const L4_POLICY: [&str; 2] = [
    include_str!("recordings/02-l4-policy/ztunnel-authz.json"),
    include_str!("recordings/02-l4-policy/ztunnel-wds.json"),
];
const LOCALITY: [&str; 2] = [
    include_str!("recordings/12-locality/ztunnel-authz.json"),
    include_str!("recordings/12-locality/ztunnel-wds.json"),
];

const CLIENT: &str = "Kubernetes//Pod/shop/client-7c6b-c1";
const SERVER_V1: &str = "Kubernetes//Pod/shop/server-v1-5d8f-s1";
const SERVER_V2: &str = "Kubernetes//Pod/shop/server-v2-5d9a-s2";
const WAYPOINT: &str = "Kubernetes//Pod/shop/waypoint-6f9d-w1";

fn mesh(recordings: [&str; 2]) -> Mesh {
    let mut mesh = Mesh::default();
    for recording in recordings {
        mesh.apply(proto_json::changes(recording).unwrap());
    }
    mesh
}

fn workload<'a>(mesh: &'a Mesh, uid: &str) -> &'a Workload {
    mesh.workload(&WorkloadUid::new(uid)).unwrap()
}

/// `td/namespace/account`, or nobody.
fn identity(text: &str) -> Option<Identity> {
    let mut parts = text.split('/');
    Some(Identity {
        trust_domain: parts.next()?.into(),
        namespace: parts.next()?.into(),
        service_account: parts.next()?.into(),
    })
}

fn decide(mesh: &Mesh, source: &str, source_ip: &str, destination: &Workload, port: u16) -> Decision {
    let source = identity(source);
    let facts = ConnectionFacts {
        source: source.as_ref(),
        source_ip: source_ip.parse().unwrap(),
        destination: SocketAddr::new(destination.addresses[0], port),
    };
    mesh.authorize(&facts, destination).decision
}

/// `destination` as if it referred to these policies only.
fn guarded_by(destination: &Workload, policies: &[&str]) -> Workload {
    let known = |name: &&&str| {
        destination
            .authorization_policies
            .iter()
            .any(|key| key.as_str() == **name)
    };
    assert!(
        policies.iter().all(|name| known(&name)),
        "{policies:?} of {}",
        destination.uid
    );
    Workload {
        authorization_policies: policies.iter().map(|&name| PolicyKey::new(name)).collect(),
        ..destination.clone()
    }
}

fn matched_deny(policy: &str) -> Decision {
    Decision::Deny {
        policy: Some(PolicyKey::new(policy)),
        why: DenyReason::MatchedDeny,
    }
}

fn no_allow() -> Decision {
    Decision::Deny {
        policy: None,
        why: DenyReason::NoAllowMatched,
    }
}

fn allowed(policy: Option<&str>) -> Decision {
    Decision::Allow {
        policy: policy.map(PolicyKey::new),
    }
}

const SHOP_CLIENT: &str = "cluster.local/shop/client";

#[test]
fn every_recorded_resource_is_in_the_mesh() {
    let mesh = mesh(L4_POLICY);
    assert_eq!(
        (
            mesh.workloads().count(),
            mesh.services().count(),
            mesh.policies().count()
        ),
        (4, 4, 8)
    );
    for workload in mesh.workloads() {
        for address in &workload.addresses {
            assert_eq!(mesh.workload_at("", *address), Some(workload));
        }
        for policy in &workload.authorization_policies {
            assert!(mesh.policy(policy).is_some(), "{policy} of {}", workload.uid);
        }
        for membership in &workload.services {
            let state = mesh.service(&membership.service).unwrap();
            assert!(
                state.endpoints().any(|endpoint| endpoint.workload == *workload),
                "{}",
                membership.service
            );
        }
    }
    let vip: IpAddr = "10.96.1.1".parse().unwrap();
    let server = mesh.service_at("", vip, 80).unwrap();
    assert_eq!(&*server.service().hostname, "server.shop.svc.cluster.local");
    assert!(mesh.service_at("", vip, 9000).is_some() && mesh.service_at("", vip, 22).is_none());
    let targets: Vec<_> = server
        .endpoints()
        .map(|endpoint| [80, 9000, 22].map(|port| endpoint.target_port(server.service(), port)))
        .collect();
    assert_eq!(targets, [[Some(8080), Some(9000), None]; 2]);
}

/// `server-allow-client`: from the client, `cluster.local`'s namespace `other`, or `shop`, on 8080 and 9000; or
/// from 10.244.0.0/16 but 10.244.9.9, to 10.244.1.0/24, not on 22.
#[test]
fn server_allow_client_allows_whom_it_names() {
    let mesh = mesh(L4_POLICY);
    let policy = "shop/server-allow-client";
    let v1 = guarded_by(workload(&mesh, SERVER_V1), &[policy]);
    let v2 = guarded_by(workload(&mesh, SERVER_V2), &[policy]);
    let rows = [
        (SHOP_CLIENT, "192.168.7.7", &v2, 8080, true), // the principal
        (SHOP_CLIENT, "192.168.7.7", &v2, 9000, true),
        (SHOP_CLIENT, "192.168.7.7", &v2, 8081, false),
        ("cluster.local/other/any", "192.168.7.7", &v2, 8080, true), // the prefix
        ("cluster.local/others/any", "192.168.7.7", &v2, 8080, false),
        ("other.domain/other/any", "192.168.7.7", &v2, 8080, false),
        ("other.domain/shop/any", "192.168.7.7", &v2, 8080, true), // the namespace
        ("", "192.168.7.7", &v2, 8080, false),
        ("", "10.244.3.3", &v1, 8080, true), // the address, whoever it is
        ("", "10.244.3.3", &v1, 8081, true),
        ("", "10.244.3.3", &v1, 22, false),
        ("", "10.244.9.9", &v1, 8080, false),
        ("", "10.245.3.3", &v1, 8080, false),
        ("", "10.244.3.3", &v2, 8080, false), // 10.244.2.11 is not in 10.244.1.0/24
        (SHOP_CLIENT, "10.244.9.9", &v1, 8080, true), // not the address, but the principal
        (SHOP_CLIENT, "10.244.1.10", &v1, 22, false),
    ];
    for (source, source_ip, destination, port, is_allowed) in rows {
        let expected = if is_allowed { allowed(Some(policy)) } else { no_allow() };
        let found = decide(&mesh, source, source_ip, destination, port);
        assert_eq!(
            found, expected,
            "{source} from {source_ip} to {} port {port}",
            destination.name
        );
    }
}

/// What istiod leaves of PeerAuthentication: STRICT is a DENY of who has no identity, PERMISSIVE on a port an
/// exception.
#[test]
fn peer_authentication_denies_who_has_no_identity() {
    let mesh = mesh(L4_POLICY);
    let permissive = "shop/converted_peer_authentication_permissive-port";
    let v1 = guarded_by(workload(&mesh, SERVER_V1), &[permissive]);
    let rows = [
        ("", 8080, matched_deny(permissive)),
        ("", 9000, allowed(None)),
        (SHOP_CLIENT, 8080, allowed(None)),
        (SHOP_CLIENT, 9000, allowed(None)),
    ];
    for (source, port, expected) in rows {
        assert_eq!(
            decide(&mesh, source, "10.244.1.10", &v1, port),
            expected,
            "{source} to {port}"
        );
    }
    let strict = "istio-system/istio_converted_static_strict";
    let waypoint = workload(&mesh, WAYPOINT);
    assert_eq!(decide(&mesh, "", "10.244.1.10", waypoint, 15008), matched_deny(strict));
    assert_eq!(
        decide(&mesh, SHOP_CLIENT, "10.244.1.10", waypoint, 15008),
        allowed(None)
    );
}

#[test]
fn allow_nothing_admits_nobody_to_the_client() {
    let mesh = mesh(L4_POLICY);
    let client = workload(&mesh, CLIENT);
    for source in [
        SHOP_CLIENT,
        "cluster.local/shop/server",
        "cluster.local/istio-system/ztunnel",
    ] {
        assert_eq!(decide(&mesh, source, "10.244.1.11", client, 80), no_allow(), "{source}");
    }
    let strict = "istio-system/istio_converted_static_strict";
    assert_eq!(
        decide(&mesh, "", "10.244.1.11", client, 80),
        matched_deny(strict),
        "DENY is the first to say why"
    );
}

#[test]
fn mesh_deny_bans_an_account_everywhere_and_namespace_deny_a_namespace_here() {
    let mesh = mesh(L4_POLICY);
    let unguarded = Workload {
        authorization_policies: Box::default(),
        ..workload(&mesh, SERVER_V1).clone()
    };
    let elsewhere = Workload {
        namespace: "elsewhere".into(),
        ..unguarded.clone()
    };
    let banned = matched_deny("istio-system/mesh-deny");
    let untrusted = matched_deny("shop/namespace-deny");
    let rows = [
        ("cluster.local/shop/banned", &unguarded, banned.clone()),
        ("other.domain/any/banned", &unguarded, banned.clone()),
        ("cluster.local/untrusted/banned", &elsewhere, banned),
        ("cluster.local/shop/unbanned", &unguarded, allowed(None)), // the suffix is /sa/banned
        ("cluster.local/banned/any", &unguarded, allowed(None)),
        ("cluster.local/untrusted/any", &unguarded, untrusted),
        ("cluster.local/untrusted/any", &elsewhere, allowed(None)),
        ("cluster.local/untrusted-not/any", &unguarded, allowed(None)),
        ("", &unguarded, allowed(None)),
    ];
    for (source, destination, expected) in rows {
        let found = decide(&mesh, source, "10.244.1.10", destination, 8080);
        assert_eq!(found, expected, "{source} to namespace {}", destination.namespace);
    }
}

/// An ALLOW rule with methods or paths is not sent, and of a DENY rule all but those is. Both leave less allowed, never
/// more.
#[test]
fn what_is_left_of_l7_rules_fails_closed() {
    let mesh = mesh(L4_POLICY);
    let server = workload(&mesh, SERVER_V1);
    let (l7_allow, l7_deny) = ("shop/selector-with-l7-allow", "shop/selector-with-l7-deny");
    let rows: [(&[&str], Decision); 4] = [
        (&[l7_allow], no_allow()),
        (&[l7_deny], matched_deny(l7_deny)),
        (
            &[l7_allow, "shop/server-allow-client"],
            allowed(Some("shop/server-allow-client")),
        ),
        (&["shop/server-allow-client", l7_deny], matched_deny(l7_deny)),
    ];
    for (policies, expected) in rows {
        let found = decide(&mesh, SHOP_CLIENT, "10.244.1.10", &guarded_by(server, policies), 8080);
        assert_eq!(found, expected, "{policies:?}");
    }
}

/// All policies of server-v1 as sent, and as they would be without the L7 DENY rule, which alone closes it to
/// everybody.
#[test]
fn who_reaches_server_v1() {
    let mesh = mesh(L4_POLICY);
    let as_sent = workload(&mesh, SERVER_V1);
    let l4_only = guarded_by(
        as_sent,
        &[
            "shop/selector-with-l7-allow",
            "shop/server-allow-client",
            "shop/converted_peer_authentication_permissive-port",
        ],
    );
    let by_name = || allowed(Some("shop/server-allow-client"));
    let strict = || matched_deny("shop/converted_peer_authentication_permissive-port");
    let rows = [
        (SHOP_CLIENT, "10.244.1.10", 8080, by_name()),
        (SHOP_CLIENT, "10.244.1.10", 9000, by_name()),
        (SHOP_CLIENT, "10.244.1.10", 22, no_allow()),
        ("cluster.local/other/any", "172.16.0.1", 8080, by_name()),
        ("cluster.local/stranger/any", "172.16.0.1", 8080, no_allow()),
        ("cluster.local/stranger/any", "10.244.3.3", 8080, by_name()),
        (
            "cluster.local/untrusted/any",
            "10.244.3.3",
            8080,
            matched_deny("shop/namespace-deny"),
        ),
        (
            "cluster.local/shop/banned",
            "10.244.3.3",
            8080,
            matched_deny("istio-system/mesh-deny"),
        ),
        ("", "10.244.3.3", 8080, strict()),
        ("", "10.244.3.3", 9000, by_name()), // permissive on this port, and allowed by its address
        ("", "172.16.0.1", 9000, no_allow()),
    ];
    for (source, source_ip, port, expected) in rows {
        let found = decide(&mesh, source, source_ip, &l4_only, port);
        assert_eq!(found, expected, "{source} from {source_ip} to port {port}");
        assert!(
            !decide(&mesh, source, source_ip, as_sent, port).is_allowed(),
            "{source} from {source_ip} to {port}"
        );
    }
}

#[test]
fn a_policy_with_an_unknown_field_is_refused() {
    let policy = |extra_in_policy: &str, extra_in_match: &str| {
        format!(
            r#"{{"@type": "type.googleapis.com/istio.security.Authorization",
                 "name": "p", "namespace": "shop"{extra_in_policy},
                 "groups": [{{"rules": [{{"matches": [{{"destination_ports": [80]{extra_in_match}}}]}}]}}]}}"#
        )
    };
    let known: Authorization = proto_json::authorization(&policy("", "")).unwrap();
    assert_eq!(known.key, PolicyKey::new("shop/p"));
    for (in_policy, in_match) in [(r#", "extensions": []"#, ""), ("", r#", "request_methods": ["GET"]"#)] {
        let refused = proto_json::authorization(&policy(in_policy, in_match))
            .unwrap_err()
            .to_string();
        assert!(refused.contains("unknown field"), "{refused}");
    }
}

/// The client is on node-a in zone-a, as are server-v1's two pods, of which s9 is not ready; server-v2 is on node-b in
/// zone-b.
#[test]
fn traffic_distribution_chooses_the_endpoints() {
    let mesh = mesh(LOCALITY);
    let from_client = Position::of(workload(&mesh, CLIENT));
    let from_v2 = Position::of(workload(&mesh, SERVER_V2));
    let from_afar = Position {
        node: "node-c".into(),
        locality: Default::default(),
        ..from_client.clone()
    };
    let (s1, s2, s9) = ("server-v1-5d8f-s1", "server-v2-5d9a-s2", "server-v1-5d8f-s9");
    let candidates = |service: &str, from: &Position| -> Vec<String> {
        let key = ServiceKey::new(format!("shop/{service}.shop.svc.cluster.local"));
        let candidates = mesh.service(&key).unwrap().candidates(from);
        candidates
            .iter()
            .map(|endpoint| endpoint.workload.name.to_string())
            .collect()
    };
    type Names<'a> = &'a [&'a str];
    let rows: [(&str, [Names<'_>; 3]); 9] = [
        ("server", [&[s1, s2], &[s1, s2], &[s1, s2]]),              // no preference
        ("session", [&[s1, s2], &[s1, s2], &[s1, s2]]),             // session affinity is not in WDS
        ("headless", [&[s1, s2], &[s1, s2], &[s1, s2]]),            // no address, but endpoints
        ("zonal", [&[s1], &[s2], &[s1, s2]]),                       // PreferSameZone
        ("close", [&[s1], &[s2], &[s1, s2]]),                       // PreferClose
        ("nodal", [&[s1], &[s2], &[s1, s2]]),                       // PreferSameNode
        ("annotated", [&[s1], &[s2], &[s1, s2]]),                   // the same, by annotation
        ("local", [&[s1], &[s2], &[]]),                             // internalTrafficPolicy: Local
        ("unready", [&[s1, s9, s2], &[s1, s9, s2], &[s1, s9, s2]]), // publishNotReadyAddresses
    ];
    for (service, [client, v2, afar]) in rows {
        assert_eq!(candidates(service, &from_client), client, "{service} from the client");
        assert_eq!(candidates(service, &from_v2), v2, "{service} from server-v2");
        assert_eq!(candidates(service, &from_afar), afar, "{service} from afar");
    }
}
