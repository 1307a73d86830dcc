//! What the mesh answers and how it changes, case by case. Random sequences of changes are in `random`.

mod random;
mod touched;

use super::*;
use crate::samples::{ip, mesh, policy, service, service_key, serving, workload};
use crate::{Action, Membership, NetworkMode, PortMapping, Service, Vip};

fn uid(name: &str) -> WorkloadUid {
    WorkloadUid::new(name)
}

fn name_at<'a>(mesh: &'a Mesh, address: &str) -> Option<&'a str> {
    mesh.workload_at("", ip(address)).map(|workload| &*workload.name)
}

fn endpoint_names(mesh: &Mesh, name: &str) -> Vec<String> {
    mesh.service(&service_key(name))
        .unwrap()
        .endpoints()
        .map(|endpoint| endpoint.workload.name.to_string())
        .collect()
}

#[test]
fn workloads_are_found_by_uid_and_by_each_address_on_their_network() {
    let remote = Workload {
        network: "remote".into(),
        ..workload("b", &["10.0.0.1"])
    };
    let mesh = mesh([
        MeshChange::Workload(workload("a", &["10.0.0.1", "fd00::1"])),
        MeshChange::Workload(remote),
    ]);
    assert_eq!(mesh.workload(&uid("a")).map(|found| &*found.name), Some("a"));
    assert_eq!(mesh.workload(&uid("c")), None);
    for (address, expected) in [
        ("10.0.0.1", Some("a")),
        ("fd00::1", Some("a")),
        ("::ffff:10.0.0.1", Some("a")),
        ("10.0.0.2", None),
        ("::10.0.0.1", None),
    ] {
        assert_eq!(name_at(&mesh, address), expected, "{address}");
    }
    assert_eq!(
        mesh.workload_at("remote", ip("10.0.0.1")).map(|found| &*found.name),
        Some("b")
    );
    assert_eq!(mesh.workload_at("remote", ip("fd00::1")), None);
    assert_eq!(mesh.workload_at("elsewhere", ip("10.0.0.1")), None);
}

#[test]
fn an_address_registered_in_ipv6_form_is_found_by_its_ipv4_form() {
    let mut web = service("web", &["::ffff:10.96.0.1"]);
    web.ports[0].port = 443;
    let mesh = mesh([
        MeshChange::Workload(workload("a", &["::ffff:10.0.0.1"])),
        MeshChange::Service(web),
    ]);
    assert_eq!(name_at(&mesh, "10.0.0.1"), Some("a"));
    assert!(mesh.service_at("", ip("10.96.0.1"), 443).is_some());
}

#[test]
fn services_are_found_by_key_by_host_name_and_by_address_with_port() {
    let mut web = service("web", &["10.96.0.1", "fd00:96::1"]);
    web.hostname = "Web.shop.svc.cluster.local".into();
    let mesh = mesh([MeshChange::Service(web)]);
    assert!(mesh.service(&service_key("web")).is_some());
    assert!(mesh.service(&service_key("other")).is_none());
    for (hostname, found) in [
        ("web.shop.svc.cluster.local", true),
        ("web.shop.svc.cluster.local.", true),
        ("WEB.shop.SVC.cluster.local.", true),
        ("web.shop.svc.cluster.local..", false),
        ("web", false),
        ("", false),
    ] {
        assert_eq!(mesh.service_named(hostname).is_some(), found, "{hostname}");
    }
    for (network, vip, port, found, is_vip) in [
        ("", "10.96.0.1", 80, true, true),
        ("", "fd00:96::1", 80, true, true),
        ("", "::ffff:10.96.0.1", 80, true, true),
        ("", "10.96.0.1", 8080, false, true),
        ("", "10.96.0.2", 80, false, false),
        ("remote", "10.96.0.1", 80, false, false),
    ] {
        assert_eq!(
            mesh.service_at(network, ip(vip), port).is_some(),
            found,
            "{network}/{vip}:{port}"
        );
        assert_eq!(mesh.is_vip(network, ip(vip)), is_vip, "{network}/{vip}");
    }
}

#[test]
fn two_services_may_share_an_address_on_different_ports() {
    let mut metrics = service("metrics", &["10.96.0.1"]);
    metrics.ports[0].port = 9090;
    let mut mesh = mesh([
        MeshChange::Service(service("web", &["10.96.0.1"])),
        MeshChange::Service(metrics),
    ]);
    let at = |mesh: &Mesh, port| {
        mesh.service_at("", ip("10.96.0.1"), port)
            .map(|state| state.service().name.to_string())
    };
    assert_eq!(
        [at(&mesh, 80).as_deref(), at(&mesh, 9090).as_deref()],
        [Some("web"), Some("metrics")]
    );
    mesh.apply([MeshChange::RemoveService(service_key("web"))]);
    assert_eq!(
        [at(&mesh, 80).as_deref(), at(&mesh, 9090).as_deref()],
        [None, Some("metrics")]
    );
    mesh.apply([MeshChange::RemoveService(service_key("metrics"))]);
    assert!(!mesh.is_vip("", ip("10.96.0.1")));
}

#[test]
fn the_last_to_claim_an_address_has_it_until_it_goes() {
    let mut mesh = Mesh::default();
    let mut steps = Vec::new();
    for change in [
        MeshChange::Workload(workload("a", &["10.0.0.1"])),
        MeshChange::Workload(workload("b", &["10.0.0.1", "10.0.0.2"])),
        MeshChange::Workload(workload("c", &["10.0.0.1"])),
        MeshChange::Workload(workload("b", &["10.0.0.2"])),
        MeshChange::RemoveWorkload(uid("c")),
        MeshChange::RemoveWorkload(uid("a")),
    ] {
        mesh.apply([change]);
        steps.push([name_at(&mesh, "10.0.0.1"), name_at(&mesh, "10.0.0.2")].map(|name| name.unwrap_or("-").to_owned()));
    }
    assert_eq!(
        steps,
        [["a", "-"], ["b", "b"], ["c", "b"], ["c", "b"], ["a", "b"], ["-", "b"]]
    );
}

#[test]
fn a_pods_address_may_pass_to_the_next_pod_in_either_order() {
    let old = MeshChange::Workload(workload("old", &["10.0.0.1"]));
    let new = MeshChange::Workload(workload("new", &["10.0.0.1"]));
    let gone = MeshChange::RemoveWorkload(uid("old"));
    for order in [[old.clone(), gone.clone(), new.clone()], [old, new, gone]] {
        let mesh = mesh(order);
        assert_eq!(name_at(&mesh, "10.0.0.1"), Some("new"));
        assert_eq!(mesh.workloads().count(), 1);
    }
}

#[test]
fn a_host_name_and_a_virtual_address_pass_between_services_likewise() {
    let green = Service {
        hostname: "web.shop.svc.cluster.local".into(),
        ..service("green", &["10.96.0.1"])
    };
    let mut mesh = mesh([
        MeshChange::Service(service("web", &["10.96.0.1"])),
        MeshChange::Service(green),
    ]);
    let found = |mesh: &Mesh| {
        let named = mesh
            .service_named("web.shop.svc.cluster.local")
            .unwrap()
            .service()
            .name
            .to_string();
        let at = mesh
            .service_at("", ip("10.96.0.1"), 80)
            .unwrap()
            .service()
            .name
            .to_string();
        [named, at]
    };
    assert_eq!(found(&mesh), ["green", "green"]);
    mesh.apply([MeshChange::RemoveService(service_key("green"))]);
    assert_eq!(found(&mesh), ["web", "web"]);
}

#[test]
fn memberships_hold_in_any_order_of_arrival() {
    let web = || MeshChange::Service(service("web", &[]));
    let pod = |name: &str| MeshChange::Workload(serving(workload(name, &[]), &["web"]));
    for order in [
        [web(), pod("a"), pod("b")],
        [pod("a"), web(), pod("b")],
        [pod("b"), pod("a"), web()],
    ] {
        assert_eq!(endpoint_names(&mesh(order.clone()), "web"), ["a", "b"], "{order:?}");
    }
}

#[test]
fn endpoints_outlive_the_removal_of_their_service_but_not_their_own() {
    let web = || MeshChange::Service(service("web", &[]));
    let mut mesh = mesh([
        web(),
        MeshChange::Workload(serving(workload("a", &[]), &["web"])),
        MeshChange::Workload(serving(workload("b", &[]), &["web"])),
        MeshChange::RemoveService(service_key("web")),
    ]);
    assert!(mesh.service(&service_key("web")).is_none());
    mesh.apply([MeshChange::RemoveWorkload(uid("a")), web()]);
    assert_eq!(endpoint_names(&mesh, "web"), ["b"]);

    mesh.apply([
        MeshChange::RemoveService(service_key("web")),
        MeshChange::RemoveWorkload(uid("b")),
    ]);
    assert!(mesh.waiting.is_empty(), "nothing is remembered of what is gone");
    mesh.apply([web()]);
    assert_eq!(endpoint_names(&mesh, "web"), [""; 0]);
}

#[test]
fn a_workload_leaves_the_services_it_no_longer_lists() {
    let mut mesh = mesh([
        MeshChange::Service(service("web", &[])),
        MeshChange::Service(service("api", &[])),
        MeshChange::Workload(serving(workload("a", &[]), &["web", "not-there"])),
    ]);
    mesh.apply([MeshChange::Workload(serving(workload("a", &[]), &["api"]))]);
    assert_eq!(endpoint_names(&mesh, "web"), [""; 0]);
    assert_eq!(endpoint_names(&mesh, "api"), ["a"]);
    assert!(mesh.waiting.is_empty());
}

#[test]
fn an_update_keeps_the_load_of_every_endpoint() {
    let pod = serving(workload("a", &["10.0.0.1"]), &["web"]);
    let mut mesh = mesh([
        MeshChange::Service(service("web", &[])),
        MeshChange::Workload(pod.clone()),
    ]);
    let endpoint = |mesh: &Mesh| {
        mesh.service(&service_key("web"))
            .unwrap()
            .endpoints()
            .next()
            .unwrap()
            .clone()
    };
    let before = endpoint(&mesh);
    let held = before.load.acquire();

    let mut changed = pod.clone();
    changed.health = crate::Health::Unhealthy;
    changed.services[0].ports = Box::new([PortMapping {
        service_port: 80,
        target_port: 8081,
    }]);
    mesh.apply([MeshChange::Workload(changed)]);
    let after = endpoint(&mesh);
    assert_eq!((after.ports.len(), after.load.outstanding()), (1, 1));
    assert!(Arc::ptr_eq(&before.load, &after.load));

    let mut renamed = service("web", &["10.96.0.1"]);
    renamed.ports[0].target_port = 9999;
    mesh.apply([MeshChange::Service(renamed)]);
    assert!(
        Arc::ptr_eq(&before.load, &endpoint(&mesh).load),
        "a change of the service"
    );

    mesh.apply([
        MeshChange::RemoveService(service_key("web")),
        MeshChange::Service(service("web", &[])),
    ]);
    assert!(
        Arc::ptr_eq(&before.load, &endpoint(&mesh).load),
        "the service went and came back"
    );
    drop(held);
    assert_eq!(endpoint(&mesh).load.outstanding(), 0);
}

#[test]
fn loads_of_one_workload_in_two_services_are_apart() {
    let mesh = mesh([
        MeshChange::Service(service("web", &[])),
        MeshChange::Service(service("api", &[])),
        MeshChange::Workload(serving(workload("a", &[]), &["web", "api"])),
    ]);
    let load = |name| {
        mesh.service(&service_key(name))
            .unwrap()
            .endpoints()
            .next()
            .unwrap()
            .load
            .clone()
    };
    let _held = load("web").acquire();
    assert_eq!([load("web").outstanding(), load("api").outstanding()], [1, 0]);
}

#[test]
fn a_workload_on_the_host_network_is_an_endpoint_but_not_found_by_its_nodes_address() {
    let on_host = |network_mode| {
        MeshChange::Workload(Workload {
            network_mode,
            ..serving(workload("agent", &["10.0.0.9"]), &["web"])
        })
    };
    let mut mesh = mesh([
        MeshChange::Service(service("web", &[])),
        on_host(NetworkMode::HostNetwork),
    ]);
    assert_eq!(name_at(&mesh, "10.0.0.9"), None);
    assert_eq!(endpoint_names(&mesh, "web"), ["agent"]);
    mesh.apply([on_host(NetworkMode::Standard)]);
    assert_eq!(name_at(&mesh, "10.0.0.9"), Some("agent"));
    mesh.apply([on_host(NetworkMode::HostNetwork)]);
    assert_eq!(name_at(&mesh, "10.0.0.9"), None);
}

#[test]
fn an_update_of_one_endpoint_copies_nothing_else() {
    let pod = |service: usize, replica: usize| {
        let name = format!("s{service}-{replica}");
        let address = format!("10.0.{service}.{replica}");
        serving(workload(&name, &[&address]), &[&format!("s{service}")])
    };
    let mut mesh = Mesh::default();
    for index in 0..200 {
        mesh.apply([MeshChange::Service(service(&format!("s{index}"), &[]))]);
        mesh.apply((0..10).map(|replica| MeshChange::Workload(pod(index, replica))));
    }
    let before = mesh.clone();
    mesh.apply([MeshChange::Workload(Workload {
        health: crate::Health::Unhealthy,
        ..pod(7, 3)
    })]);

    for workload in before.workloads() {
        let changed = &*workload.name == "s7-3";
        let after = mesh.workload(&workload.uid).unwrap();
        assert_eq!(Arc::ptr_eq(workload, after), !changed, "{}", workload.uid);
        let at = mesh.workload_at("", workload.addresses[0]).unwrap();
        assert!(Arc::ptr_eq(at, after), "{} by address", workload.uid);
    }
    for state in before.services() {
        let changed = &*state.service().name == "s7";
        let after = mesh.service(&state.service().key).unwrap();
        assert_eq!(Arc::ptr_eq(state, after), !changed, "{}", state.service().key);
        assert!(Arc::ptr_eq(state.service(), after.service()), "{}", state.service().key);
        for (old, new) in state.endpoints().zip(after.endpoints()) {
            let changed = &*old.workload.name == "s7-3";
            assert_eq!(Arc::ptr_eq(old, new), !changed, "{}", old.workload.uid);
        }
    }
}

#[test]
fn candidates_follow_the_update_and_older_snapshots_keep_theirs() {
    let pod = |name: &str| serving(workload(name, &[]), &["web"]);
    let mut mesh = mesh([
        MeshChange::Service(service("web", &[])),
        MeshChange::Workload(pod("a")),
        MeshChange::Workload(pod("b")),
    ]);
    let client = crate::Position::default();
    let count = |mesh: &Mesh| mesh.service(&service_key("web")).unwrap().candidates(&client).len();
    assert_eq!(count(&mesh), 2);
    let before = mesh.clone();
    mesh.apply([MeshChange::RemoveWorkload(uid("b"))]);
    assert_eq!([count(&mesh), count(&before)], [1, 2]);
    // Not shared with a snapshot any more, so this one is changed in place.
    drop(before);
    mesh.apply([MeshChange::Workload(Workload {
        health: crate::Health::Unhealthy,
        ..pod("a")
    })]);
    assert_eq!(count(&mesh), 0);
}

#[test]
fn what_is_listed_twice_counts_once() {
    let mut twice = workload("a", &["10.0.0.1", "::ffff:10.0.0.1"]);
    let membership = |target_port| Membership {
        service: service_key("web"),
        ports: Box::new([PortMapping {
            service_port: 80,
            target_port,
        }]),
    };
    twice.services = Box::new([membership(1), membership(2)]);
    let mut web = service("web", &["10.96.0.1"]);
    web.vips = [web.vips[0].clone(), web.vips[0].clone()].into();
    let mut mesh = mesh([MeshChange::Service(web), MeshChange::Workload(twice)]);
    let ports: Vec<_> = mesh
        .service(&service_key("web"))
        .unwrap()
        .endpoints()
        .map(|endpoint| endpoint.ports[0].target_port)
        .collect();
    assert_eq!(ports, [2], "the last says");

    mesh.apply([
        MeshChange::RemoveWorkload(uid("a")),
        MeshChange::RemoveService(service_key("web")),
    ]);
    assert_eq!(name_at(&mesh, "10.0.0.1"), None);
    assert!(!mesh.is_vip("", ip("10.96.0.1")));
}

#[test]
fn iterators_name_everything() {
    let mesh = mesh([
        MeshChange::Workload(workload("a", &[])),
        MeshChange::Service(service("web", &[])),
        MeshChange::Policy(policy("p", Action::Deny)),
    ]);
    assert_eq!(
        mesh.workloads().map(|workload| &*workload.name).collect::<Vec<_>>(),
        ["a"]
    );
    assert_eq!(
        mesh.services().map(|state| &*state.service().name).collect::<Vec<_>>(),
        ["web"]
    );
    assert_eq!(
        mesh.policies().map(|policy| policy.key.as_str()).collect::<Vec<_>>(),
        ["shop/p"]
    );
}

#[test]
fn a_virtual_address_belongs_to_its_network() {
    let mut web = service("web", &[]);
    web.vips = Box::new([Vip {
        network: "remote".into(),
        address: ip("10.96.0.1"),
    }]);
    let mesh = mesh([MeshChange::Service(web)]);
    assert!(mesh.service_at("remote", ip("10.96.0.1"), 80).is_some());
    assert!(mesh.service_at("", ip("10.96.0.1"), 80).is_none());
}
