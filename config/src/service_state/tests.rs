//! Which endpoints a client is given, and that it is cheap to ask again.

use std::sync::Barrier;

use super::*;
use crate::samples::{mesh, service, service_key, serving, workload};
use crate::{BalanceMode, Health, HealthPolicy, LoadBalancing, Locality, MeshChange, Scope, Workload};

fn at(name: &str, region: &str, zone: &str, node: &str) -> Workload {
    let mut workload = serving(workload(name, &[]), &["web"]);
    workload.locality = Locality {
        region: region.into(),
        zone: zone.into(),
        subzone: "".into(),
    };
    workload.node = node.into();
    workload
}

fn unhealthy(workload: Workload) -> Workload {
    Workload {
        health: Health::Unhealthy,
        ..workload
    }
}

fn client() -> Position {
    Position::of(&at("client", "r1", "z1", "n1"))
}

fn balanced(mode: BalanceMode, scopes: &[Scope], health: HealthPolicy, endpoints: &[Workload]) -> Arc<ServiceState> {
    let mut web = service("web", &[]);
    web.load_balancing = LoadBalancing {
        mode,
        scopes: scopes.into(),
        health,
    };
    let endpoints = endpoints.iter().cloned().map(MeshChange::Workload);
    let mesh = mesh([MeshChange::Service(web)].into_iter().chain(endpoints));
    mesh.service(&service_key("web")).unwrap().clone()
}

fn names(candidates: &[Arc<Endpoint>]) -> Vec<&str> {
    candidates.iter().map(|endpoint| &*endpoint.workload.name).collect()
}

#[test]
fn candidates_are_the_best_rank_of_what_may_be_used() {
    use BalanceMode::{Any, Failover, Passthrough, Strict};
    use HealthPolicy::{AllowAll, OnlyHealthy};
    use Scope::{Node, Region, Zone};

    let near = || at("near", "r1", "z1", "n1");
    let zone = || at("zone", "r1", "z1", "n2");
    let region = || at("region", "r1", "z2", "n3");
    let far = || at("far", "r2", "z1", "n4"); // its zone's name is the client's, its region's is not
    let all = || vec![near(), zone(), region(), far()];
    let without_near = || vec![unhealthy(near()), zone(), region(), far()];
    let scopes: &[Scope] = &[Region, Zone, Node];
    let every = &["far", "near", "region", "zone"][..];

    type Row<'a> = (BalanceMode, &'a [Scope], HealthPolicy, Vec<Workload>, &'a [&'a str]);
    let rows: Vec<Row<'_>> = vec![
        (Any, scopes, OnlyHealthy, all(), every),
        (Any, scopes, OnlyHealthy, without_near(), &["far", "region", "zone"]),
        (Any, scopes, AllowAll, without_near(), every),
        (
            Passthrough,
            scopes,
            OnlyHealthy,
            without_near(),
            &["far", "region", "zone"],
        ),
        (Strict, scopes, OnlyHealthy, all(), &["near"]),
        (Strict, scopes, OnlyHealthy, without_near(), &[]),
        (Strict, scopes, AllowAll, without_near(), &["near"]),
        (Strict, &[Node], OnlyHealthy, all(), &["near"]),
        (Strict, &[Region, Zone], OnlyHealthy, all(), &["near", "zone"]),
        (Strict, &[Zone], OnlyHealthy, all(), &["far", "near", "zone"]),
        (Strict, &[], OnlyHealthy, all(), every),
        (Failover, scopes, OnlyHealthy, all(), &["near"]),
        (Failover, scopes, OnlyHealthy, without_near(), &["zone"]),
        (Failover, scopes, AllowAll, without_near(), &["near"]),
        (Failover, scopes, OnlyHealthy, vec![region(), far()], &["region"]),
        (Failover, scopes, OnlyHealthy, vec![far()], &["far"]),
        (Failover, scopes, OnlyHealthy, vec![far(), unhealthy(zone())], &["far"]),
        (Failover, scopes, OnlyHealthy, vec![unhealthy(far())], &[]),
        (
            Failover,
            &[Node, Region],
            OnlyHealthy,
            vec![zone(), region(), far()],
            &["far", "region", "zone"],
        ),
        (Failover, &[], OnlyHealthy, all(), every),
        (Failover, scopes, OnlyHealthy, vec![], &[]),
    ];
    for (mode, scopes, health, endpoints, expected) in rows {
        let state = balanced(mode, scopes, health, &endpoints);
        let what = format!("{mode:?} {scopes:?} {health:?} of {endpoints:?}");
        for _ in ["computed", "remembered"] {
            assert_eq!(names(&state.candidates(&client())), expected, "{what}");
        }
    }
}

#[test]
fn every_scope_compares_its_own_part_of_the_position() {
    type Move = fn(&mut Workload);
    let cases: [(Scope, Move); 6] = [
        (Scope::Region, |there| there.locality.region = "else".into()),
        (Scope::Zone, |there| there.locality.zone = "else".into()),
        (Scope::Subzone, |there| there.locality.subzone = "else".into()),
        (Scope::Node, |there| there.node = "else".into()),
        (Scope::Cluster, |there| there.cluster_id = "else".into()),
        (Scope::Network, |there| there.network = "else".into()),
    ];
    for (moved_in, change) in cases {
        let mut there = at("there", "r1", "z1", "n1");
        change(&mut there);
        for (scope, _) in cases {
            let state = balanced(
                BalanceMode::Strict,
                &[scope],
                HealthPolicy::OnlyHealthy,
                &[there.clone()],
            );
            let found = state.candidates(&client()).len();
            assert_eq!(
                found,
                usize::from(scope != moved_in),
                "{scope:?}, the endpoint differs in {moved_in:?}"
            );
        }
    }
}

#[test]
fn a_position_is_ranked_once_per_state() {
    let state = balanced(
        BalanceMode::Failover,
        &[Scope::Node],
        HealthPolicy::OnlyHealthy,
        &[at("a", "", "", "n1")],
    );
    let first = state.candidates(&client());
    assert!(Arc::ptr_eq(&first, &state.candidates(&client())));

    let elsewhere = Position {
        node: "n2".into(),
        ..client()
    };
    let other = state.candidates(&elsewhere);
    assert!(!Arc::ptr_eq(&first, &other));
    assert!(Arc::ptr_eq(&other, &state.candidates(&elsewhere)));
    assert!(
        Arc::ptr_eq(&first, &state.candidates(&client())),
        "the first is still remembered"
    );
}

#[test]
fn one_list_serves_all_positions_where_position_does_not_matter() {
    for mode in [BalanceMode::Any, BalanceMode::Passthrough] {
        let state = balanced(
            mode,
            &[Scope::Node],
            HealthPolicy::OnlyHealthy,
            &[at("a", "", "", "n1")],
        );
        let elsewhere = Position {
            node: "n2".into(),
            ..client()
        };
        assert!(
            Arc::ptr_eq(&state.candidates(&client()), &state.candidates(&elsewhere)),
            "{mode:?}"
        );
    }
}

#[test]
fn more_positions_than_are_remembered_are_still_ranked() {
    let endpoints: Vec<_> = (0..3 * REMEMBERED_POSITIONS)
        .map(|n| at(&format!("on-n{n}"), "", "", &format!("n{n}")))
        .collect();
    let state = balanced(
        BalanceMode::Strict,
        &[Scope::Node],
        HealthPolicy::OnlyHealthy,
        &endpoints,
    );
    for _ in 0..2 {
        for endpoint in &endpoints {
            assert_eq!(names(&state.candidates(&Position::of(endpoint))), [&*endpoint.name]);
        }
    }
    assert_eq!(
        state.ranked.load().as_ref().map(|known| known.len()),
        Some(REMEMBERED_POSITIONS)
    );
}

#[test]
fn clients_that_ask_at_once_are_all_answered_right() {
    let endpoints: Vec<_> = (0..4)
        .map(|n| at(&format!("on-n{n}"), "", "", &format!("n{n}")))
        .collect();
    let state = balanced(
        BalanceMode::Strict,
        &[Scope::Node],
        HealthPolicy::OnlyHealthy,
        &endpoints,
    );
    let start = Barrier::new(endpoints.len());
    std::thread::scope(|scope| {
        for endpoint in &endpoints {
            scope.spawn(|| {
                let position = Position::of(endpoint);
                start.wait();
                for _ in 0..1000 {
                    assert_eq!(names(&state.candidates(&position)), [&*endpoint.name]);
                }
            });
        }
    });
}
