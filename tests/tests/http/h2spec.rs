//! What RFC 9113 asks of a server, all of it, by a program that was made to ask.

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
    let output = Command::new(h2spec::program().expect("it is there"))
        .args(["--host", &us.ip().to_string(), "--port", "8080", "--timeout", "10"])
        .output()
        .expect("h2spec runs");
    let said = String::from_utf8_lossy(&output.stdout);
    let counts = said
        .lines()
        .rev()
        .find(|line| line.contains(" tests, "))
        .unwrap_or_default();
    println!("{counts}");
    assert!(!counts.is_empty() && !counts.starts_with("0 tests"), "{said}");
    assert!(counts.ends_with(" 0 failed"), "{said}");
}
