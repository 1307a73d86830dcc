//! What RFC 9113 asks of a server, all of it, by a program that was made to ask.

use std::net::IpAddr;
use std::path::Path;
use std::process::Command;

use underpass_tests::{Need, Proxy, World, available, h2spec};

use super::endpoint::{Endpoint, Tries};

/// The example that users begin with, at this test's addresses.
fn example(at: &str, admin: &str, endpoints: [String; 2]) -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/http.yaml");
    let yaml = std::fs::read_to_string(file).expect("the example");
    let [one, two] = endpoints;
    yaml.replace("127.0.0.1:8080", at)
        .replace("127.0.0.1:9001", &one)
        .replace("127.0.0.1:9002", &two)
        .replace("  name: laptop\n", &format!("  name: laptop\n  admin: '{admin}'\n"))
}

#[test]
fn every_test_of_h2spec_is_passed() {
    if !available(&[Need::H2spec]) {
        return;
    }
    let world = World::loopback();
    let us = world.host();
    let endpoints = [world.host(), world.host()]
        .map(|host| Endpoint::start(&host, 9001, "e", Tries::default()).address.to_string());
    let (at, admin) = (us.at(8080).to_string(), us.at(15000).to_string());
    let file = world.directory().join("http.yaml");
    std::fs::write(&file, example(&at, &admin, endpoints)).expect("write the configuration");
    let _proxy = Proxy::start_with_file(&world, &us, file);
    // Some cases send frames one after the other and look at the next one that comes: an answer that crosses with the last of them fails the case,
    // which then has not been asked. What is wrong is wrong each time.
    let said: Vec<String> = (0..RUNS).map_while(|_| failing_run(us.ip())).collect();
    assert!(said.len() < RUNS, "{}", said.join("\n"));
}

/// How often it is run at most.
const RUNS: usize = 3;

/// What a run said in which a test failed; nothing when none did.
fn failing_run(at: IpAddr) -> Option<String> {
    let output = Command::new(h2spec::program().expect("it is there"))
        .args(["--host", &at.to_string(), "--port", "8080", "--timeout", "10"])
        .output()
        .expect("h2spec runs");
    let said = String::from_utf8_lossy(&output.stdout);
    let counts = said.lines().rev().find(|line| line.contains(" tests, "));
    let counts = counts.unwrap_or_default();
    println!("{counts}");
    assert!(!counts.is_empty() && !counts.starts_with("0 tests"), "{said}");
    let failures = said.split_once("Failures:").map_or(&*said, |(_, failures)| failures);
    (!counts.ends_with(" 0 failed")).then(|| failures.to_owned())
}
