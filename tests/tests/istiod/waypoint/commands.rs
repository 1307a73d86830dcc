//! The commands that look at what istiod says to a waypoint.

use std::fs;

use underpass_tests::{Proxy, wait};

use super::Mesh;
use super::server::get;
use super::web;

const ROUTES: &str = "---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {namespace: shop, name: web}
spec:
  hosts: [web.shop.svc.cluster.local]
  http:
  - match: [{uri: {exact: /then}}]
    directResponse: {status: 218, body: {string: then}}
  - headers: {response: {set: {x-route: then}}}
    route: [{destination: {host: web.shop.svc.cluster.local}}]
";

impl Mesh {
    /// What `underpass ARGUMENTS` prints in the waypoint's pod, which it has to do in time and with success.
    fn run(&self, arguments: &[&str]) -> String {
        let mut process = Proxy::command(self.nodes.a.node.world(), &self.pod, arguments);
        let status = wait::some(wait::SOON, "the command ends", || process.exit_status());
        assert!(status.success(), "{arguments:?}: {}", process.last_output());
        process.output()
    }
}

#[test]
fn what_istiod_said_once_is_served_as_it_was_then() {
    let Some(mut mesh) = Mesh::start() else { return };
    mesh.apply("routes", ROUTES);
    mesh.wait_for("/then", "the routes are there", |answer| answer.status == 218);
    let config = mesh.waypoint.file().display().to_string();
    let dump = mesh.nodes.a.node.world().directory().join("dump.json");
    let dump = dump.display().to_string();
    let said = mesh.run(&["config", "dump", "--config", &config, "--output", &dump]);
    assert!(said.contains(" Listener") && !said.contains(", 0 Listener"), "{said}");
    let text = fs::read_to_string(&dump).expect("a dump");
    assert!(text.contains("\"underpass_istiod_dump\": 1") && text.contains("main_internal"));

    let checked = mesh.run(&["check", "--config", &config, "--replay", &dump]);
    assert!(checked.ends_with("all of it is served\n"), "{checked}");
    let asked = mesh.run(&["check", "--config", &config]);
    assert_eq!(asked, checked, "istiod says the same now");

    // What a user changes now, who serves by the file does not hear of.
    mesh.nodes.istiod.delete("routes");
    mesh.wait_for("/then", "the routes are gone", |answer| answer.status == 200);
    mesh.waypoint.terminate(wait::SOON);
    let world = mesh.nodes.a.node.world();
    let replaying = mesh.waypoint.start_again_with(world, &mesh.pod, &["--replay", &dump]);
    wait::eventually(wait::SOON, "the file is served", || {
        get(mesh.client(), web(), "/then", &[]).is_ok_and(|answer| answer.status == 218 && answer.body == "then")
    });
    let answer = get(mesh.client(), web(), "/", &[]).expect("answered");
    assert_eq!(
        (answer.status, answer.header("x-route")),
        (200, Some("then")),
        "{answer:?}"
    );
    let status = replaying.status();
    assert!(
        status["istiod"]["reason"]
            .as_str()
            .is_some_and(|reason| reason.contains("is replayed")),
        "{status}"
    );
}

/// A policy by which only `shop/client` may ask, and not for `/secret`.
const POLICIES: &str = "---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {namespace: shop, name: only}
spec:
  targetRefs: [{group: '', kind: Service, name: web}]
  action: ALLOW
  rules:
  - from: [{source: {principals: [cluster.local/ns/shop/sa/client]}}]
    to: [{operation: {notPaths: [/secret]}}]
";

/// What it says is what happens: each question is asked of the proxy, and then done.
#[test]
fn a_waypoint_explains_what_becomes_of_a_request() {
    let Some(mesh) = Mesh::start() else { return };
    mesh.apply("routes", ROUTES);
    mesh.apply("policies", POLICIES);
    mesh.wait_for("/then", "the routes are there", |answer| answer.status == 218);
    mesh.wait_for("/secret", "is denied", |answer| answer.status == 403);
    let admin = mesh.waypoint.admin().to_string();
    let explain = |from: &str, path: &str| {
        let to = "web.shop.svc.cluster.local:80";
        mesh.run(&["explain", from, to, "--path", path, "--admin", &admin])
    };
    let (client, other) = (mesh.nodes.a.client.name(), mesh.nodes.a.other.name());
    for (from, path, expected, status) in [
        (
            client,
            "/then",
            vec![
                "spiffe://cluster.local/ns/shop/sa/client",
                "passes",
                "answered with 218",
            ],
            218,
        ),
        (
            client,
            "/",
            vec![
                "inbound-vip|80|http|web.shop.svc.cluster.local",
                "2 of 2 endpoints",
                "ns/shop/sa/web",
            ],
            200,
        ),
        (client, "/secret", vec!["DENIED", "no policy matches"], 403),
        (
            other,
            "/",
            vec!["spiffe://cluster.local/ns/else/sa/other", "DENIED"],
            403,
        ),
    ] {
        let text = explain(from, path);
        for part in expected {
            assert!(text.contains(part), "{from} {path}: {part}:\n{text}");
        }
        let host = if from == client {
            mesh.client()
        } else {
            &*mesh.nodes.a.other
        };
        assert_eq!(
            get(host, web(), path, &[]).expect("answered").status,
            status,
            "{from} {path}"
        );
    }
    let mut lost = Proxy::command(
        mesh.nodes.a.node.world(),
        &mesh.pod,
        &["explain", "shop/nobody", "10.96.0.80:80", "--admin", &admin],
    );
    let status = wait::some(wait::SOON, "the command ends", || lost.exit_status());
    assert!(
        !status.success() && lost.output().contains("the mesh has no pod `shop/nobody`"),
        "{}",
        lost.output()
    );
}
