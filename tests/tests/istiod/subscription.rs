//! The xDS client and a real istiod: what is subscribed to comes, as little as possible of it, and survives istiod.

use std::fs;

use underpass_certs::{Istiod, IstiodSecurity};
use underpass_config::{Health, PolicyKey, ServiceKey, WorkloadUid};
use underpass_tests::istiod::{Istiod as RealIstiod, Pod, SERVER_NAME, Service};
use underpass_tests::wait;
use underpass_xds_client::{Connection, ResourceType, Status};

use crate::cluster::{NODE_TOKEN, address, cluster};
use crate::consumer::Consumer;

const WEB: &str = "Kubernetes//Pod/shop/web";
const WEB_SERVICE: &str = "shop/web.shop.svc.cluster.local";

/// A policy that selects `shop/web`.
const GUARD: &str = "---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {namespace: shop, name: guard}
spec:
  selector: {matchLabels: {app: web}}
  action: ALLOW
  rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/client]}}]}]
";

fn web() -> Pod {
    Pod::new("shop/web", address(1, 10))
}

fn fill(istiod: &RealIstiod) {
    istiod.apply("web", web());
    istiod.apply("client", Pod::new("shop/client", address(1, 11)));
    let service = Service::new("shop/web", "10.96.0.10".parse().unwrap());
    istiod.apply("web-service", service.port(80, 8080));
    istiod.apply("guard", GUARD);
}

fn uid(text: &str) -> WorkloadUid {
    WorkloadUid::new(text)
}

fn nacks(status: &Status) -> u64 {
    status.types.values().map(|of_type| of_type.nacks).sum()
}

fn secure(istiod: &RealIstiod, token: &str) -> Istiod {
    let security = IstiodSecurity::Tls {
        roots: istiod.roots(),
        server_name: Some(SERVER_NAME.to_owned()),
    };
    Istiod::new(istiod.secure().to_string(), security, Some(istiod.token(token)))
}

#[test]
fn the_mesh_comes_with_its_policies_and_then_each_change_of_it() {
    let Some((_world, istiod)) = cluster() else { return };
    fill(&istiod);
    let mut consumer = Consumer::plain(&istiod);
    consumer.apply_until("pods, a service, a policy", |mesh| {
        let web = mesh.workload(&uid(WEB));
        let is_guarded = web.is_some_and(|web| web.authorization_policies.contains(&PolicyKey::new("shop/guard")));
        let service = mesh.service(&ServiceKey::new(WEB_SERVICE));
        let is_endpoint = service.is_some_and(|service| service.endpoints().count() == 1);
        is_guarded && is_endpoint && mesh.policy(&PolicyKey::new("shop/guard")).is_some()
    });
    let web_now = consumer.mesh.workload(&uid(WEB)).unwrap().clone();
    assert_eq!(web_now.identity.to_string(), "spiffe://cluster.local/ns/shop/sa/web");
    assert_eq!((&*web_now.node, &*web_now.addresses), ("node-a", &[address(1, 10)][..]));

    istiod.apply("another", Pod::new("shop/another", address(2, 12)).on("node-b"));
    consumer.apply_until("a pod comes", Consumer::knows("shop/another"));
    istiod.apply("web", web().unready());
    consumer.apply_until("a pod is not ready", |mesh| {
        mesh.workload(&uid(WEB))
            .is_some_and(|web| web.health == Health::Unhealthy)
    });
    istiod.delete("another");
    consumer.apply_until("a pod goes", |mesh| !Consumer::knows("shop/another")(mesh));
    istiod.delete("guard");
    consumer.apply_until("a policy goes", |mesh| {
        let refers = mesh
            .workload(&uid(WEB))
            .is_some_and(|web| !web.authorization_policies.is_empty());
        mesh.policies().count() == 0 && !refers
    });
    istiod.delete("web-service");
    consumer.apply_until("a service goes", |mesh| mesh.services().count() == 0);

    let status = consumer.status();
    assert!(matches!(status.connection, Connection::Connected { .. }) && status.synced);
    assert_eq!(
        (nacks(&status), status.rejected_count, status.disconnects),
        (0, 0, 0),
        "{status:?}"
    );
    assert!(status.types.values().all(|of_type| of_type.acks > 0), "{status:?}");
    // It is told after the change has been handed on.
    let mesh = &consumer.mesh;
    wait::eventually(wait::SOON, "the status counts what the mesh has", || {
        let held = consumer.status().types[&ResourceType::Address].resources;
        held == mesh.workloads().count() + mesh.services().count()
    });
}

#[test]
fn one_pod_changed_costs_one_pod() {
    let Some((_world, istiod)) = cluster() else { return };
    fill(&istiod);
    let crowd: String = (20..220)
        .map(|pod| Pod::new(&format!("shop/crowd-{pod}"), address(2, pod)).to_string())
        .collect();
    istiod.apply("crowd", crowd);
    let mut consumer = Consumer::plain(&istiod);
    consumer.apply_until("the crowd", |mesh| mesh.workloads().count() >= 202);
    let before = consumer.updates.len();
    istiod.apply("late", Pod::new("shop/late", address(1, 99)));
    consumer.apply_until("another pod", Consumer::knows("shop/late"));
    let changes: usize = consumer.updates[before..].iter().sum();
    assert!(changes <= 2, "{:?}", consumer.updates);
}

/// What changed while there was no istiod is told by the next one, removals included, and what did not change is not told again.
#[test]
fn a_restarted_istiod_sends_the_difference() {
    let Some((_world, mut istiod)) = cluster() else { return };
    fill(&istiod);
    let crowd: String = (20..120)
        .map(|pod| Pod::new(&format!("shop/crowd-{pod}"), address(2, pod)).to_string())
        .collect();
    istiod.apply("crowd", crowd);
    let mut consumer = Consumer::plain(&istiod);
    consumer.apply_until("everything", |mesh| {
        mesh.workloads().count() >= 102 && mesh.policies().count() == 1 && mesh.services().count() == 1
    });
    istiod.kill();
    wait::eventually(wait::SOON, "the client has noticed", || {
        matches!(consumer.status().connection, Connection::Disconnected { .. })
    });
    istiod.delete("client");
    istiod.delete("guard");
    istiod.delete("web-service");
    istiod.apply("late", Pod::new("shop/late", address(1, 99)));
    let before = consumer.updates.len();
    istiod.start_again();
    consumer.apply_until("what changed meanwhile", |mesh| {
        let gone = !Consumer::knows("shop/client")(mesh);
        let refers = mesh
            .workload(&uid(WEB))
            .is_some_and(|web| !web.authorization_policies.is_empty());
        gone && Consumer::knows("shop/late")(mesh)
            && !refers
            && mesh.policies().count() == 0
            && mesh.services().count() == 0
    });
    let changes: usize = consumer.updates[before..].iter().sum();
    // The pod that came, the one that went, the service, the policy, and the pod that it selected and the service had.
    assert!(changes <= 8, "{:?}", consumer.updates);
    assert_eq!(nacks(&consumer.status()), 0);
}

#[test]
fn with_tls_istiod_wants_a_token_and_we_its_name() {
    let Some((_world, istiod)) = cluster() else { return };
    fill(&istiod);
    let mut consumer = Consumer::of(secure(&istiod, NODE_TOKEN));
    consumer.apply_until("the mesh", Consumer::knows("shop/web"));

    let reason = |consumer: &Consumer| match consumer.status().connection {
        Connection::Disconnected { reason, .. } => Some(reason),
        _ => None,
    };
    for (token, advice) in [
        ("nobody", "check the token file"),
        ("shop/web/web", "check that the token is of the namespace and account"),
    ] {
        let stranger = Consumer::of(secure(&istiod, token));
        let reason = wait::some(wait::SOON, "istiod refuses a token", || reason(&stranger));
        assert!(reason.contains(advice), "{token}: {reason}");
        assert!(!stranger.status().synced);
    }
    let impostor = Istiod {
        security: IstiodSecurity::Tls {
            roots: istiod.roots(),
            server_name: Some("istiod.elsewhere.svc".to_owned()),
        },
        ..secure(&istiod, NODE_TOKEN)
    };
    let deceived = Consumer::of(impostor);
    let reason = wait::some(wait::SOON, "we refuse a name", || reason(&deceived));
    assert!(reason.contains("certificate"), "{reason}");
}

#[test]
fn a_token_and_a_root_that_are_replaced_count_from_the_next_connection_on() {
    let Some((_world, mut istiod)) = cluster() else { return };
    fill(&istiod);
    let settings = secure(&istiod, NODE_TOKEN);
    let token = settings.token.clone().unwrap();
    fs::write(&token, "nobody").unwrap();
    let mut consumer = Consumer::of(settings);
    wait::eventually(wait::SOON, "the token is refused", || {
        matches!(consumer.status().connection, Connection::Disconnected { .. })
    });
    fs::write(&token, NODE_TOKEN).unwrap();
    consumer.apply_until("the mesh, with another token", Consumer::knows("shop/web"));

    istiod.kill();
    istiod.apply("late", Pod::new("shop/late", address(1, 99)));
    istiod.start_again_with_another_authority();
    consumer.apply_until("the mesh, from an istiod of another root", Consumer::knows("shop/late"));
}

/// With a wrong cluster id istiod has been seen to tell of nothing without an error (13-certificates of the recordings). Not so of what we
/// subscribe to; if it did, there would be a mesh without policies.
#[test]
fn a_node_of_another_cluster_is_told_the_same_mesh() {
    let Some((_world, istiod)) = cluster() else { return };
    fill(&istiod);
    let mut here = Consumer::plain(&istiod);
    let mut elsewhere = Consumer::plain_as(&istiod, |node| node.cluster_id = "elsewhere".into());
    for consumer in [&mut here, &mut elsewhere] {
        consumer.apply_until("the whole mesh", |mesh| {
            Consumer::knows("shop/web")(mesh) && mesh.services().count() == 1 && mesh.policies().count() == 1
        });
    }
}
