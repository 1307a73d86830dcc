//! Every example in the repository is a configuration.

use std::path::{Path, PathBuf};

use underpass_config::{Config, ConnectionFacts, Destination, ListenerProtocol, Position, WorkloadUid};

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples")
}

fn load(name: &str) -> Config {
    Config::load(&examples().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

#[test]
fn every_example_loads() {
    let mut names: Vec<_> = (std::fs::read_dir(examples()).unwrap())
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".yaml"))
        .collect();
    names.sort();
    for name in &names {
        load(name);
    }
    for known in [
        "capture.yaml",
        "http.yaml",
        "mirror.yaml",
        "node.yaml",
        "policy.yaml",
        "proxies.yaml",
        "relay.yaml",
        "routes.yaml",
        "services.yaml",
        "tracing.yaml",
        "upstreams.yaml",
        "waypoint.yaml",
        "balancing.yaml",
    ] {
        assert!(names.iter().any(|name| name == known), "{known} is missing");
    }
}

#[test]
fn the_relay_is_where_everyone_expects_it() {
    let node = load("relay.yaml").node;
    assert_eq!(node.admin.to_string(), "127.0.0.1:15000");
    assert_eq!(node.listeners.len(), 1);
    assert_eq!(node.listeners[0].address.to_string(), "127.0.0.1:15001");
    let destination = Destination::Address("127.0.0.1:9001".parse().unwrap());
    assert_eq!(node.listeners[0].protocol, ListenerProtocol::Fixed { destination });
}

#[test]
fn http_is_served_where_everyone_expects_it() {
    let config = load("http.yaml");
    assert_eq!(config.node.listeners[0].address.to_string(), "127.0.0.1:8080");
    let endpoints = config.http.cluster("web").unwrap().endpoints();
    let addresses: Vec<String> = endpoints.iter().map(|e| e.settings.address.to_string()).collect();
    assert_eq!(addresses, ["127.0.0.1:9001", "127.0.0.1:9002"]);
}

#[test]
fn the_node_writes_out_the_defaults() {
    let node = load("node.yaml").node;
    let defaults = Config::from_yaml("node: {role: node, name: worker-1, istiod: {}}")
        .unwrap()
        .node;
    assert_eq!(*node, *defaults);
}

#[test]
fn the_service_fails_over_as_its_comments_say() {
    let config = load("services.yaml");
    let shopper = config.mesh.workload_at("", "127.0.0.1".parse().unwrap()).unwrap();
    let chosen = |config: &Config| {
        let web = config.mesh.service_named("web.shop.svc.cluster.local").unwrap();
        let mut names: Vec<_> = web
            .candidates(&Position::of(shopper))
            .iter()
            .map(|endpoint| endpoint.workload.name.to_string())
            .collect();
        names.sort();
        names
    };
    assert_eq!(chosen(&config), ["web-v1-a", "web-v2-a"]);
    let yaml = std::fs::read_to_string(examples().join("services.yaml")).unwrap();
    let (sick, _) = config
        .updated(&yaml.replace("health: healthy", "health: unhealthy"))
        .unwrap();
    assert_eq!(chosen(&sick), ["web-v1-b"]);
}

#[test]
fn the_policies_decide_as_their_comments_say() {
    let config = load("policy.yaml");
    let web = config
        .mesh
        .workload(&WorkloadUid::new("Kubernetes//Pod/shop/web"))
        .unwrap();
    let allowed = |source: &str| {
        let source_ip = source.parse().unwrap();
        let workload = config.mesh.workload_at("", source_ip);
        let source = workload.map(|workload| &workload.identity);
        let facts = ConnectionFacts {
            source,
            source_ip,
            destination: "127.0.0.11:9001".parse().unwrap(),
        };
        config.mesh.authorize(&facts, web).decision.is_allowed()
    };
    assert!(allowed("127.0.0.21"), "the shopper");
    assert!(!allowed("127.0.0.22"), "the crawler");
    assert!(allowed("127.0.0.23"), "monitoring");
    assert!(!allowed("127.0.0.99"), "a stranger");
}
