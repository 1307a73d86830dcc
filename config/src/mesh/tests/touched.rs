//! What a change says it may have altered, case by case.

use std::collections::HashSet;
use std::hash::Hash;

use super::*;
use crate::samples::policy_key;
use crate::{Authorization, Health, Touched};

fn set<T: Eq + Hash>(of: impl IntoIterator<Item = T>) -> HashSet<T> {
    of.into_iter().collect()
}

fn uids(names: &[&str]) -> HashSet<WorkloadUid> {
    set(names.iter().map(|name| uid(name)))
}

fn ips(addresses: &[&str]) -> HashSet<IpAddr> {
    set(addresses.iter().map(|address| ip(address)))
}

fn keys(names: &[&str]) -> HashSet<ServiceKey> {
    set(names.iter().map(|name| service_key(name)))
}

#[test]
fn what_is_already_so_touches_nothing() {
    let pod = MeshChange::Workload(serving(workload("a", &["10.0.0.1"]), &["web"]));
    let web = MeshChange::Service(service("web", &["10.96.0.1"]));
    let global = Authorization {
        scope: PolicyScope::Global,
        ..policy("p", Action::Deny)
    };
    let all = [pod, web, MeshChange::Policy(global)];
    let mut mesh = mesh(all.clone());
    let before = mesh.clone();
    assert!(mesh.apply(all).is_empty());
    assert!(Arc::ptr_eq(
        before.workload(&uid("a")).unwrap(),
        mesh.workload(&uid("a")).unwrap()
    ));

    let nothing_there = [
        MeshChange::RemoveWorkload(uid("b")),
        MeshChange::RemoveService(service_key("b")),
        MeshChange::RemovePolicy(policy_key("b")),
    ];
    assert!(mesh.apply(nothing_there).is_empty());
}

#[test]
fn a_workload_touches_itself_and_its_addresses_old_and_new() {
    let mut mesh = Mesh::default();
    let expected = |addresses| Touched {
        workloads: uids(&["a"]),
        addresses: ips(addresses),
        ..Touched::default()
    };

    let came = mesh.apply([MeshChange::Workload(workload("a", &["10.0.0.1", "::ffff:10.0.0.2"]))]);
    assert_eq!(came, expected(&["10.0.0.1", "10.0.0.2"]));

    let moved = workload("a", &["10.0.0.2", "10.0.0.3"]);
    let changed = mesh.apply([MeshChange::Workload(moved.clone())]);
    assert_eq!(changed, expected(&["10.0.0.1", "10.0.0.2", "10.0.0.3"]));

    let ill = mesh.apply([MeshChange::Workload(Workload {
        health: Health::Unhealthy,
        ..moved
    })]);
    assert_eq!(ill, expected(&["10.0.0.2", "10.0.0.3"]));

    let went = mesh.apply([MeshChange::RemoveWorkload(uid("a"))]);
    assert_eq!(went, expected(&["10.0.0.2", "10.0.0.3"]));
}

#[test]
fn an_address_that_changes_hands_touches_both_workloads() {
    let mut mesh = mesh([MeshChange::Workload(workload("a", &["10.0.0.1"]))]);
    let both = Touched {
        workloads: uids(&["a", "b"]),
        addresses: ips(&["10.0.0.1"]),
        ..Touched::default()
    };
    assert_eq!(mesh.apply([MeshChange::Workload(workload("b", &["10.0.0.1"]))]), both);
    assert_eq!(mesh.apply([MeshChange::RemoveWorkload(uid("b"))]), both);
}

#[test]
fn an_endpoint_touches_its_workload_and_not_its_services() {
    let mut mesh = mesh([MeshChange::Service(service("web", &[]))]);
    let touched = mesh.apply([MeshChange::Workload(serving(workload("a", &[]), &["web"]))]);
    assert_eq!(
        touched,
        Touched {
            workloads: uids(&["a"]),
            ..Touched::default()
        }
    );
}

#[test]
fn a_service_touches_itself_and_its_addresses_old_and_new() {
    let mut mesh = Mesh::default();
    let expected = |addresses| Touched {
        services: keys(&["web"]),
        addresses: ips(addresses),
        ..Touched::default()
    };
    assert_eq!(
        mesh.apply([MeshChange::Service(service("web", &["10.96.0.1"]))]),
        expected(&["10.96.0.1"])
    );
    let moved = mesh.apply([MeshChange::Service(service("web", &["10.96.0.2"]))]);
    assert_eq!(moved, expected(&["10.96.0.1", "10.96.0.2"]));
    assert_eq!(
        mesh.apply([MeshChange::RemoveService(service_key("web"))]),
        expected(&["10.96.0.2"])
    );
}

#[test]
fn a_name_or_address_that_changes_hands_touches_both_services() {
    let mut mesh = mesh([
        MeshChange::Service(service("web", &["10.96.0.1"])),
        MeshChange::Service(service("api", &[])),
    ]);
    let same_vip = service("new", &["10.96.0.1"]);
    let both = Touched {
        services: keys(&["web", "new"]),
        addresses: ips(&["10.96.0.1"]),
        ..Touched::default()
    };
    assert_eq!(mesh.apply([MeshChange::Service(same_vip)]), both);
    assert_eq!(mesh.apply([MeshChange::RemoveService(service_key("new"))]), both);

    let same_name = Service {
        hostname: "API.shop.svc.cluster.local".into(),
        ..service("new", &[])
    };
    let both = Touched {
        services: keys(&["api", "new"]),
        ..Touched::default()
    };
    assert_eq!(mesh.apply([MeshChange::Service(same_name)]), both);
    assert_eq!(mesh.apply([MeshChange::RemoveService(service_key("new"))]), both);
}

#[test]
fn a_policy_touches_what_it_guards_or_guarded() {
    let in_scope = |scope, namespace: &str| {
        MeshChange::Policy(Authorization {
            scope,
            namespace: namespace.into(),
            ..policy("p", Action::Deny)
        })
    };
    let expected = |namespaces: &[&str], everything| Touched {
        policies: vec![policy_key("p")],
        namespaces: set(namespaces.iter().map(|&namespace| namespace.into())),
        everything,
        ..Touched::default()
    };
    let mut mesh = Mesh::default();
    for (change, touched) in [
        (in_scope(PolicyScope::WorkloadSelector, "shop"), expected(&[], false)),
        (in_scope(PolicyScope::Namespace, "shop"), expected(&["shop"], false)),
        (
            in_scope(PolicyScope::Namespace, "bank"),
            expected(&["shop", "bank"], false),
        ),
        (in_scope(PolicyScope::Global, "bank"), expected(&["bank"], true)),
        (in_scope(PolicyScope::WorkloadSelector, "bank"), expected(&[], true)),
        (in_scope(PolicyScope::Namespace, "bank"), expected(&["bank"], false)),
        (MeshChange::RemovePolicy(policy_key("p")), expected(&["bank"], false)),
        (in_scope(PolicyScope::Global, ""), expected(&[], true)),
        (MeshChange::RemovePolicy(policy_key("p")), expected(&[], true)),
    ] {
        assert_eq!(mesh.apply([change.clone()]), touched, "{change:?}");
    }
}

#[test]
fn a_batch_touches_what_each_change_touches() {
    let mut mesh = Mesh::default();
    let touched = mesh.apply([
        MeshChange::Policy(policy("q", Action::Deny)),
        MeshChange::Policy(policy("p", Action::Deny)),
        MeshChange::Policy(policy("q", Action::Allow)),
        MeshChange::Workload(workload("a", &["10.0.0.1"])),
        MeshChange::RemoveWorkload(uid("a")),
    ]);
    let expected = Touched {
        workloads: uids(&["a"]),
        addresses: ips(&["10.0.0.1"]),
        policies: vec![policy_key("p"), policy_key("q")],
        ..Touched::default()
    };
    assert_eq!(touched, expected);
}
