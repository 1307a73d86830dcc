//! Languages with an event loop of their own under every program: Go and Node.

use std::path::{Path, PathBuf};
use std::process::Command;

use underpass_tests::{Need, Process};

use crate::place::{Place, command};

const GO: [Need; 1] = [Need::Program("go")];
const NODE: [Need; 1] = [Need::Program("node")];
const CONNECTIONS: usize = 4;
const REQUESTS: usize = 200;
const STREAMED: usize = 5_000_000;

#[test]
fn go_answers_its_client() {
    Place::relayed(8080, &GO).iter().for_each(ask_go);
}

#[test]
fn go_answers_its_client_between_captured_pods() {
    Place::captured(8080, &GO).iter().for_each(ask_go);
}

fn ask_go(place: &Place) {
    let program = go_program(place);
    let _server = place.serve(command(&format!("{program} serve {}", place.server.at(place.port))));
    place.run(&format!("{program} load {} {CONNECTIONS} {REQUESTS}", place.relay()));
    place.assert_in_kernel("Go, net/http", 0, CONNECTIONS);
}

/// `io.Copy` between connections splices.
#[test]
fn go_copies_connections() {
    Place::relayed(8080, &GO).iter().for_each(copy_by_go);
}

#[test]
fn go_copies_connections_between_captured_pods() {
    Place::captured_with_splicing(8080, &GO).iter().for_each(copy_by_go);
}

fn copy_by_go(place: &Place) {
    let program = go_program(place);
    let _server = place.serve(command(&format!(
        "{program} serve-copy {}",
        place.server.at(place.port)
    )));
    place.run(&format!(
        "{program} load-copy {} {CONNECTIONS} {STREAMED}",
        place.relay()
    ));
    place.assert_kept_out("Go, io.Copy", CONNECTIONS);
}

#[test]
fn node_answers_its_client() {
    Place::relayed(8080, &NODE).iter().for_each(ask_node);
}

#[test]
fn node_answers_its_client_between_captured_pods() {
    Place::captured(8080, &NODE).iter().for_each(ask_node);
}

fn ask_node(place: &Place) {
    let program = format!("node {}", source("node/program.js").display());
    let (host, port) = (place.server.ip(), place.port);
    let _server = place.serve(command(&format!("{program} serve {host} {port}")));
    let relay = place.relay();
    let (host, port) = (relay.ip(), relay.port());
    place.run(&format!("{program} load {host} {port} {CONNECTIONS} {REQUESTS}"));
    place.assert_in_kernel("Node, http", 0, CONNECTIONS);
}

fn source(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("programs").join(path)
}

/// The compiled program, which has no dependencies.
fn go_program(place: &Place) -> String {
    let program = place.path("program");
    let mut build: Command = Process::command("go");
    build
        .args(["build", "-o"])
        .arg(&program)
        .arg(".")
        .current_dir(source("go"))
        .env("GOFLAGS", "-mod=mod")
        .env("GOTOOLCHAIN", "local");
    let built = build.output().expect("start go");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    program.display().to_string()
}
