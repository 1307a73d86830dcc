//! What a user writes of where requests go: balancing, endpoints that fail, hosts outside the mesh; and what is counted of it.

use std::collections::BTreeSet;

use serde_json::Value;
use underpass_tests::wait;

use super::server::{Server, get};
use super::{Mesh, web};
use crate::place::{PORT, ip};

fn rule(policy: &str) -> String {
    format!(
        "---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{namespace: shop, name: web}}
spec: {{host: web.shop.svc.cluster.local, trafficPolicy: {{{policy}}}}}
"
    )
}

#[test]
fn a_hash_leads_a_user_to_the_same_pod() {
    let Some(mesh) = Mesh::start() else { return };
    mesh.apply(
        "rule",
        &rule("loadBalancer: {consistentHash: {httpHeaderName: x-user}}"),
    );
    let users: Vec<String> = (0..20).map(|number| format!("user-{number}")).collect();
    let pods_of = |user: &str| {
        let asked = (0..5).map(|_| get(mesh.client(), web(), "/", &[("x-user", user)]));
        let pods: Option<BTreeSet<String>> = asked.map(|answer| Some(answer.ok()?.pod().to_owned())).collect();
        pods.unwrap_or_default()
    };
    wait::eventually(wait::SOON, "each user has a pod", || {
        let all: Vec<_> = users.iter().map(|user| pods_of(user)).collect();
        let pods: BTreeSet<_> = all.iter().flatten().collect();
        all.iter().all(|pods| pods.len() == 1) && pods.len() == 2
    });
}

#[test]
fn a_pod_that_fails_is_left_alone() {
    let Some(mesh) = Mesh::start() else { return };
    mesh.apply(
        "rule",
        &rule("outlierDetection: {consecutive5xxErrors: 3, interval: 1s, baseEjectionTime: 300s, maxEjectionPercent: 100}"),
    );
    let ask = || mesh.get("/ill/web-a").expect("answered");
    wait::eventually(wait::SOON, "nobody is led to the pod that fails", || {
        let answers: Vec<_> = (0..20).map(|_| ask()).collect();
        answers
            .iter()
            .all(|answer| answer.status == 200 && answer.pod() == "shop/web-b")
    });
    let clusters: Vec<Value> = serde_json::from_str(&mesh.waypoint.request("GET", "/clusters").body).expect("JSON");
    let endpoints = clusters
        .iter()
        .flat_map(|cluster| cluster["endpoints"].as_array().into_iter().flatten());
    let ejected: BTreeSet<_> = endpoints
        .filter(|endpoint| endpoint["health"] == "ejected")
        .map(|endpoint| endpoint["address"].as_str().expect("an address").to_owned())
        .collect();
    assert_eq!(ejected, BTreeSet::from([mesh.nodes.a.web.at(PORT).to_string()]));
}

#[test]
fn a_host_outside_the_mesh_is_reached_through_the_waypoint() {
    let Some(mesh) = Mesh::start() else { return };
    let outside = &mesh.nodes.b.stranger;
    let _server = Server::start(outside, PORT, "outside");
    let entry = format!(
        "---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{namespace: shop, name: outside}}
spec:
  hosts: [outside.test]
  addresses: [240.1.0.11]
  ports: [{{number: 80, name: http, protocol: HTTP, targetPort: {PORT}}}]
  location: MESH_EXTERNAL
  resolution: STATIC
  endpoints: [{{address: {}}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{namespace: shop, name: outside}}
spec:
  hosts: [outside.test]
  http: [{{headers: {{response: {{set: {{x-by: waypoint}}}}}}, route: [{{destination: {{host: outside.test}}}}]}}]
",
        outside.ip()
    );
    mesh.apply("outside", &entry);
    let at = (ip("240.1.0.11"), 80).into();
    wait::eventually(wait::SOON, "it is answered through the waypoint", || {
        get(mesh.client(), at, "/", &[("host", "outside.test")])
            .is_ok_and(|answer| answer.pod() == "outside" && answer.header("x-by") == Some("waypoint"))
    });
}

#[test]
fn requests_are_counted_as_istio_counts_them() {
    let Some(mesh) = Mesh::start() else { return };
    let count = |code: &str| {
        let metrics = mesh.waypoint.request("GET", "/metrics").body;
        let of = |line: &&str| {
            [
                "istio_requests_total",
                "reporter=\"waypoint\"",
                "source_workload=\"client-a\"",
                "source_principal=\"spiffe://cluster.local/ns/shop/sa/client\"",
                "destination_service=\"web.shop.svc.cluster.local\"",
                "destination_service_namespace=\"shop\"",
                &format!("response_code=\"{code}\""),
            ]
            .iter()
            .all(|part| line.contains(part))
        };
        let values = metrics
            .lines()
            .filter(of)
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        values.sum::<f64>() as u64
    };
    let before = count("200");
    for _ in 0..25 {
        assert_eq!(mesh.get("/counted").expect("answered").status, 200);
    }
    assert_eq!(count("200") - before, 25);
}
