//! How one configuration becomes the next.

use std::collections::HashSet;
use std::sync::Arc;

use underpass_config::{Config, Endpoint, Health, ServiceKey, Touched, WorkloadUid};

use super::COMPLETE;

fn complete() -> Config {
    Config::from_yaml(COMPLETE).unwrap()
}

fn update(config: &Config, edits: &[(&str, &str)]) -> (Config, Touched) {
    config.updated(&edited(edits)).unwrap()
}

fn edited(edits: &[(&str, &str)]) -> String {
    edits.iter().fold(COMPLETE.to_owned(), |yaml, (old, new)| {
        assert_eq!(
            yaml.matches(old).count(),
            1,
            "{old:?} is not a unique part of the document"
        );
        yaml.replace(old, new)
    })
}

fn web() -> ServiceKey {
    ServiceKey::new("shop/web.shop.svc.cluster.local")
}

fn v2() -> WorkloadUid {
    WorkloadUid::new("east//Pod/shop/web-v2")
}

fn endpoint(config: &Config, name: &str) -> Arc<Endpoint> {
    let state = config.mesh.service(&web()).unwrap();
    state
        .endpoints()
        .find(|endpoint| &*endpoint.workload.name == name)
        .unwrap()
        .clone()
}

#[test]
fn the_same_document_changes_nothing() {
    let config = complete();
    let (next, touched) = update(&config, &[]);
    assert_eq!(touched, Touched::default());
    assert!(Arc::ptr_eq(&next.node, &config.node));
    for workload in config.mesh.workloads() {
        assert!(Arc::ptr_eq(next.mesh.workload(&workload.uid).unwrap(), workload));
    }
    for state in config.mesh.services() {
        assert!(Arc::ptr_eq(next.mesh.service(&state.service().key).unwrap(), state));
    }
    for policy in config.mesh.policies() {
        assert!(Arc::ptr_eq(next.mesh.policy(&policy.key).unwrap(), policy));
    }
}

#[test]
fn sections_may_be_reordered_without_changing_anything() {
    let (from, to) = (
        COMPLETE.find("- name: web\n  namespace: shop\n  vips").unwrap(),
        COMPLETE.find("- name: db").unwrap(),
    );
    let end = COMPLETE.find("authorization_policies:\n- name").unwrap();
    let reordered = [
        &COMPLETE[..from],
        &COMPLETE[to..end],
        &COMPLETE[from..to],
        &COMPLETE[end..],
    ]
    .concat();
    assert_ne!(reordered, COMPLETE);
    let (_, touched) = complete().updated(&reordered).unwrap();
    assert_eq!(touched, Touched::default());
}

#[test]
fn a_changed_workload_is_replaced_and_the_rest_is_kept_with_its_load() {
    let config = complete();
    let open = [
        endpoint(&config, "web-v1").load.acquire(),
        endpoint(&config, "web-v2").load.acquire(),
    ];
    let (next, touched) = update(
        &config,
        &[("10.244.1.20], workload", "10.244.1.20], health: unhealthy, workload")],
    );

    assert_eq!(touched.workloads, HashSet::from([v2()]));
    assert_eq!(touched.addresses, HashSet::from(["10.244.1.20".parse().unwrap()]));
    assert!(touched.services.is_empty() && touched.policies.is_empty() && !touched.everything);
    assert_eq!(endpoint(&next, "web-v2").workload.health, Health::Unhealthy);
    assert!(Arc::ptr_eq(&endpoint(&next, "web-v1"), &endpoint(&config, "web-v1")));
    assert!(Arc::ptr_eq(&next.node, &config.node));

    assert_eq!(endpoint(&next, "web-v2").load.outstanding(), 1);
    drop(open);
    assert_eq!(endpoint(&next, "web-v1").load.outstanding(), 0);
    assert_eq!(endpoint(&next, "web-v2").load.outstanding(), 0);
    // The older configuration is a value; who still uses it sees what it said.
    assert_eq!(endpoint(&config, "web-v2").workload.health, Health::Healthy);
}

#[test]
fn what_is_not_in_the_new_document_is_gone() {
    let config = complete();
    let (next, touched) = config.updated("node: {name: node-a}").unwrap();
    assert_eq!(
        next.mesh.workloads().count() + next.mesh.services().count() + next.mesh.policies().count(),
        0
    );
    assert_eq!(touched.workloads.len(), config.mesh.workloads().count());
    assert_eq!(touched.services.len(), config.mesh.services().count());
    assert_eq!(touched.policies.len(), config.mesh.policies().count());
    assert!(touched.everything, "a global policy went");
    assert_eq!(next.mesh.workload_at("main", "10.244.1.20".parse().unwrap()), None);
    assert!(!next.mesh.is_vip("main", "10.96.1.1".parse().unwrap()));
}

#[test]
fn removing_an_endpoint_from_a_service_changes_its_workload() {
    let config = complete();
    let (next, touched) = update(&config, &[("  - {workload: shop/web-v2, ports: {80: 8081}}\n", "")]);
    assert_eq!(touched.workloads, HashSet::from([v2()]));
    let names: Vec<_> = next
        .mesh
        .service(&web())
        .unwrap()
        .endpoints()
        .map(|one| one.workload.name.clone())
        .collect();
    assert_eq!(names, ["web-v1".into()]);
    assert_eq!(next.mesh.workload(&v2()).unwrap().services.len(), 1);
}

#[test]
fn an_address_can_move_from_one_workload_to_another_in_one_update() {
    let edits = [
        ("addresses: [10.244.1.20]", "addresses: [10.244.1.30]"),
        ("- name: client\n", "- name: client\n  addresses: [10.244.1.20]\n"),
    ];
    let (next, _) = update(&complete(), &edits);
    let at = |address: &str| {
        next.mesh
            .workload_at("main", address.parse().unwrap())
            .map(|workload| workload.name.clone())
    };
    assert_eq!(
        (at("10.244.1.20").as_deref(), at("10.244.1.30").as_deref()),
        (Some("client"), Some("web-v2"))
    );
}

#[test]
fn policies_and_services_are_changed_one_by_one() {
    let config = complete();
    let (next, touched) = update(
        &config,
        &[(
            "{name: nothing, namespace: shop, scope: NAMESPACE}",
            "{name: nothing, namespace: shop, scope: NAMESPACE, dry_run: true}",
        )],
    );
    assert_eq!(
        touched.policies.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["shop/nothing"]
    );
    assert!(touched.workloads.is_empty() && touched.services.is_empty());
    let (_, touched) = update(
        &next,
        &[
            ("{port: 5432, app_protocol: tcp}", "{port: 5433, app_protocol: tcp}"),
            (
                "{name: nothing, namespace: shop, scope: NAMESPACE}",
                "{name: nothing, namespace: shop, scope: NAMESPACE, dry_run: true}",
            ),
        ],
    );
    assert!(touched.services.contains(&ServiceKey::new("shop/db.example.org")));
    assert!(touched.policies.is_empty() && touched.workloads.is_empty());
}

#[test]
fn changed_settings_replace_the_settings_alone() {
    let config = complete();
    let (next, touched) = update(&config, &[("probes: 4", "probes: 5")]);
    assert_eq!(touched, Touched::default());
    assert!(!Arc::ptr_eq(&next.node, &config.node));
    assert_eq!((next.node.keepalive.probes, config.node.keepalive.probes), (5, 4));
}

#[test]
fn a_document_with_a_problem_changes_nothing() {
    let config = complete();
    let before: Vec<_> = config.mesh.workloads().cloned().collect();
    for broken in [
        "node: [",
        "",
        &edited(&[
            ("probes: 4", "probes: 0"),
            ("addresses: [10.244.1.20]", "addresses: [10.244.1.99]"),
        ]),
    ] {
        config.updated(broken).unwrap_err();
        assert_eq!(config.node.keepalive.probes, 4);
        assert!(
            before
                .iter()
                .all(|old| Arc::ptr_eq(config.mesh.workload(&old.uid).unwrap(), old))
        );
    }
}
