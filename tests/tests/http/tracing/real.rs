//! A real collector (OpenTelemetry's own) is told of a request that goes through two proxies, by gRPC of one and by HTTP of the other.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use underpass_tests::{Host, Need, Process, Proxy, World, available, collector, wait};

use crate::client::{ask, get};
use crate::endpoint::{Endpoint, Heard, Tries};

/// A proxy whose requests go on to `next`.
fn proxy(world: &World, us: &Host, name: &str, next: SocketAddr, export: &str) -> Proxy {
    let file = world.directory().join(format!("{name}.yaml"));
    let yaml = format!(
        "node:
  name: {name}
  admin: '{}'
  listeners: [{{name: http, address: '{}', protocol: http, routes: t}}]
http:
  clusters:
  - {{name: next, endpoints: ['{next}']}}
  - {export}
  tracing_providers: [{{name: otel, opentelemetry: {{cluster: collector, service_name: {name}, batching: {{items: 1}}{}}}}}]
  routes:
  - name: t
    tracing: {{provider: otel, spawn_upstream_span: true, custom_tags: {{hop: {{literal: {{value: {name}}}}}}}}}
    virtual_hosts: [{{name: all, domains: ['*'], routes: [{{decorator: '{name}/*', forward: {{cluster: next}}}}]}}]
",
        us.at(15000),
        us.at(8080),
        if export.contains("http2") { "" } else { ", http: {}" },
    );
    std::fs::write(&file, yaml).expect("write the configuration");
    Proxy::start_with_file(world, us, file)
}

/// A span as the collector prints it: `Trace ID : …`, and attributes as `-> name: Str(value)`.
type Printed = BTreeMap<String, String>;

fn printed(output: &str) -> Vec<Printed> {
    let mut spans: Vec<Printed> = Vec::new();
    let mut service = String::new();
    for line in output.lines() {
        let line = line.trim();
        if line.starts_with("Span #") {
            spans.push(Printed::from([("service".to_owned(), service.clone())]));
        } else if let Some((name, value)) = line.strip_prefix("-> ").and_then(|line| line.split_once(": Str(")) {
            let value = value.trim_end_matches(')').to_owned();
            match name {
                "service.name" => service = value,
                _ => drop(spans.last_mut().map(|span| span.insert(name.to_owned(), value))),
            }
        } else if let (Some((name, value)), Some(span)) = (line.split_once(':'), spans.last_mut()) {
            span.entry(name.trim().to_owned())
                .or_insert_with(|| value.trim().to_owned());
        }
    }
    spans
}

#[test]
fn a_real_collector_sees_two_hops_as_one_trace() {
    if !available(&[Need::Collector]) {
        return;
    }
    let world = World::loopback();
    let (client, first, second, endpoint, host) =
        (world.host(), world.host(), world.host(), world.host(), world.host());
    let (by_grpc, by_http) = (host.at(4317), host.at(4318));
    let running: Process = collector::start(&world, &host, by_grpc, by_http);
    let heard = Heard::default();
    let web = Endpoint::heard(&endpoint, 9001, "web", Tries::default(), heard.clone()).address;
    let to_http = format!("{{name: collector, endpoints: ['{by_http}']}}");
    let to_grpc = format!("{{name: collector, endpoints: ['{by_grpc}'], protocol: http2}}");
    let _second = proxy(&world, &second, "second", web, &to_http);
    let _first = proxy(&world, &first, "first", second.at(8080), &to_grpc);
    assert_eq!(ask(&client, first.at(8080), &get("/two/hops", "")).status, 200);
    let spans = wait::some(wait::SOON, "four spans", || {
        let spans = printed(&running.output());
        (spans.len() >= 4 && spans.iter().all(|span| span.contains_key("response_flags"))).then_some(spans)
    });
    assert_eq!(spans.len(), 4, "{spans:?}");
    let find = |service: &str, name: &str| {
        let is_it = |span: &&Printed| span["service"] == service && span["Name"] == name;
        spans
            .iter()
            .find(is_it)
            .unwrap_or_else(|| panic!("no {name} of {service}: {spans:?}"))
    };
    let way = [
        find("first", "first/*"),
        find("first", "router next egress"),
        find("second", "second/*"),
        find("second", "router next egress"),
    ];
    for (above, below) in way.iter().zip(&way[1..]) {
        assert_eq!(above["Trace ID"], below["Trace ID"]);
        assert_eq!(above["ID"], below["Parent ID"], "{above:?} {below:?}");
    }
    assert_eq!(way[0]["Parent ID"], "");
    assert_eq!(
        way.map(|span| (&*span["Kind"], &*span["http.status_code"])),
        [
            ("Server", "200"),
            ("Client", "200"),
            ("Server", "200"),
            ("Client", "200")
        ]
    );
    assert!(way[2]["http.url"].ends_with("/two/hops") && way[2]["hop"] == "second");
    // And the endpoint is told of the last of them.
    let last = heard.lock().expect("no panic").pop().expect("it was asked");
    assert!(
        last.contains(&format!("00-{}-{}-01", way[3]["Trace ID"], way[3]["ID"])),
        "{last}"
    );
}
