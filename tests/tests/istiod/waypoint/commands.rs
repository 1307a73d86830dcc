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
