//! The waypoint as the Helm chart deploys it: its objects, its containers' arguments and environment and its file are the chart's, one instance on each node.

use serde_json::{Value, json};
use underpass_tests::capture::Pod;
use underpass_tests::deploy::{Placed, Release};
use underpass_tests::istiod::{Istiod, SERVER_NAME, namespace};
use underpass_tests::{Need, Proxy, available, wait};

use super::server::{Server, get};
use super::{GATEWAY, tell_of_web, web};
use crate::nodes::{Nodes, Side};
use crate::place::{PORT, ip};

/// Where the release is installed.
const NAMESPACE: &str = "mesh";
/// The address of its Service.
const SERVICE: &str = "10.96.0.15";

/// What a test says that in a cluster is where the chart expects it: istiod by its name, roots and token in the container.
fn values(istiod: &Istiod) -> Value {
    let token = istiod.token(&format!("{NAMESPACE}/{GATEWAY}"));
    json!({
        "istio": {"address": istiod.secure().to_string()},
        "waypoint": {
            "gateway": {"name": GATEWAY},
            "config": {"node": {"istiod": {"server_name": SERVER_NAME, "roots": istiod.roots(), "token": token}}},
        },
    })
}

/// Requests that an instance has answered.
fn answered(instance: &Proxy) -> u64 {
    instance.metrics().sum("underpass_http_requests_total", &[])
}

/// The name of an instance's pod, without the namespace.
fn name(pod: &Pod) -> &str {
    pod.name().split_once('/').expect("namespace/name").1
}

/// Mutant: without the label by which istiod knows whose the pod is, nothing is served.
#[test]
fn the_charts_objects_give_a_waypoint_on_each_node_for_the_clients_of_that_node() {
    let Some(nodes) = Nodes::start() else { return };
    if !available(&[Need::Deployment]) {
        return;
    }
    let release = Release::install("underpass", NAMESPACE, &values(&nodes.istiod));
    let sides: [&Side; 2] = [&nodes.a, &nodes.b];
    let pods = [&nodes.a, &nodes.b].map(|side| side.node.pod(&format!("{NAMESPACE}/{GATEWAY}-{}", side.node.name())));
    let placed = [0, 1].map(|at| Placed {
        name: name(&pods[at]),
        node: sides[at].node.name(),
        ip: pods[at].ip(),
    });
    let objects = release.in_cluster(GATEWAY, ip(SERVICE), &placed);
    nodes.istiod.apply("waypoint", namespace(NAMESPACE, "") + &objects);
    tell_of_web(&nodes, NAMESPACE);
    let instances = [0, 1].map(|at| release.start(sides[at].node.world(), &pods[at], GATEWAY, &placed[at]));
    let _servers = sides.map(|side| Server::start(&side.web, PORT, side.web.name()));

    for (side, own) in sides.into_iter().zip(&instances) {
        wait::eventually(
            2 * wait::SOON,
            "clients are answered through their own node's instance",
            || {
                let before = answered(own);
                let answer = get(&side.client, web(), "/", &[]);
                answer.is_ok_and(|answer| answer.status == 200) && answered(own) > before
            },
        );
    }
    let before = instances.each_ref().map(answered);
    for _ in 0..20 {
        assert_eq!(get(&nodes.a.client, web(), "/", &[]).expect("answered").status, 200);
    }
    let after = instances.each_ref().map(answered);
    assert_eq!(
        (after[0] - before[0], after[1] - before[1]),
        (20, 0),
        "only the client's own node's"
    );
    let status = instances[0].status();
    assert_eq!(status["istiod"]["rejected_count"], 0, "{status}");

    // What a user says of the waypoint's clients is said of who the chart says that it is.
    let identity = format!("spiffe://cluster.local/ns/{NAMESPACE}/sa/{GATEWAY}");
    let shown = status["identities"]["certificates"].as_array().expect("certificates");
    assert!(
        shown
            .iter()
            .any(|certificate| certificate["identity"] == identity.as_str()),
        "{status}"
    );
}
