//! Collectors that are slow, or not there: requests don't notice, what waits is bounded, what is lost is counted.

use std::io::Read;
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use underpass_tests::{Host, Proxy, World, wait};

use crate::client::{Client, get};

/// Bytes that may wait for a collector.
const PENDING: u64 = 64 * 1024;
const REQUESTS: u64 = 2000;

fn start(world: &World, us: &Host, collector: SocketAddr) -> Proxy {
    let file = world.directory().join("http.yaml");
    let at = |port| us.at(port);
    let yaml = format!(
        "node:
  name: a
  admin: '{}'
  access_log:
  - {{format: 'off'}}
  - envoy_otel_als: {{cluster: collector, timeout: 1s, batching: {{pending: 64KiB}}, log_format: {{labels: {{path: '%REQ(:PATH)%'}}}}}}
  listeners: [{{name: http, address: '{}', protocol: http, routes: t}}]
http:
  clusters: [{{name: collector, endpoints: ['{collector}'], protocol: http2, connect_timeout: 1s}}]
  tracing_providers: [{{name: otel, opentelemetry: {{cluster: collector, timeout: 1s, batching: {{pending: 64KiB}}}}}}]
  routes:
  - name: t
    tracing: {{provider: otel}}
    virtual_hosts: [{{name: all, domains: ['*'], routes: [{{direct: {{status: 200}}}}]}}]
",
        at(15000),
        at(8080)
    );
    std::fs::write(&file, yaml).expect("write the configuration");
    Proxy::start_with_file(world, us, file)
}

/// All of one signal, and of that what has become of it.
fn counted(proxy: &Proxy, signal: &str, result: &str) -> u64 {
    let labels = [("cluster", "collector"), ("signal", signal), ("result", result)];
    proxy.metrics().sum("underpass_exported_total", &labels)
}

fn ask(client: &Host, us: &Host, requests: u64) {
    let mut connection = Client::connect(client, us.at(8080));
    for number in 0..requests {
        connection.send(get(&format!("/{number}"), "").as_bytes());
        assert_eq!(connection.answer(false).status, 200);
    }
}

/// Takes connections, reads, and says nothing.
fn silent(host: &Host) -> SocketAddr {
    let listener = host.listen(4317);
    let address = listener.local_addr().expect("a socket");
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || while matches!(stream.read(&mut [0; 4096]), Ok(length) if length > 0) {});
        }
    });
    address
}

#[test]
fn a_collector_that_says_nothing_is_no_hindrance() {
    let world = World::loopback();
    let (client, us, collector) = (world.host(), world.host(), world.host());
    let proxy = start(&world, &us, silent(&collector));
    // What serving takes by itself is there before.
    ask(&client, &us, 200);
    let before = proxy.anonymous_bytes();
    ask(&client, &us, REQUESTS);
    for signal in ["spans", "logs"] {
        let dropped = counted(&proxy, signal, "dropped");
        // An item takes more than 64 bytes: no more of them than this waited, and were in the one message that timed out meanwhile.
        let most = 3 * PENDING / 64;
        assert!(dropped + most >= REQUESTS && dropped > 0, "{signal}: {dropped}");
    }
    let grown = proxy.anonymous_bytes().saturating_sub(before);
    assert!(grown < 4 << 20, "{grown} bytes");
    wait::eventually(Duration::from_secs(60), "all are accounted for", || {
        ["spans", "logs"].iter().all(|signal| {
            let results = ["sent", "dropped", "failed", "rejected"].map(|result| counted(&proxy, signal, result));
            assert_eq!(results[0], 0, "nobody has taken any");
            results.iter().sum::<u64>() == REQUESTS + 200
        })
    });
    assert!(proxy.log().contains("a collector can't be told"), "{}", proxy.log());
}

#[test]
fn a_collector_that_is_not_there_is_told_of_when_it_comes() {
    let world = World::loopback();
    let (client, us, host) = (world.host(), world.host(), world.host());
    let address = host.at(4317);
    let proxy = start(&world, &us, address);
    ask(&client, &us, 20);
    wait::eventually(Duration::from_secs(30), "what was to be told is lost", || {
        counted(&proxy, "spans", "failed") > 0 && counted(&proxy, "logs", "failed") > 0
    });
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let collector = super::collector::Collector::start(runtime.handle(), &host);
    wait::eventually(Duration::from_secs(30), "it is told again", || {
        ask(&client, &us, 10);
        let told = collector.told();
        !told.spans.is_empty() && !told.logs.is_empty()
    });
    assert!(counted(&proxy, "spans", "sent") > 0);
}

/// What waits when the process ends is told first.
#[test]
fn the_last_spans_are_told() {
    let world = World::loopback();
    let (client, us, host) = (world.host(), world.host(), world.host());
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let collector = super::collector::Collector::start(runtime.handle(), &host);
    let mut proxy = start(&world, &us, collector.grpc);
    // Fewer than are sent without waiting for more.
    ask(&client, &us, 3);
    assert!(proxy.terminate(wait::SOON).success());
    let told = collector.told();
    assert_eq!((told.spans.len(), told.logs.len()), (3, 3));
}
