//! A proxy from start to end as its operator sees it: time-outs, draining, readiness, log level, metrics and their labels, the access
//! log, memory.

use std::collections::BTreeSet;
use std::io::Read;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use underpass_tests::{Config, Host, Listen, Metrics, Proxy, Server, World, is_reset, wait};

/// Issue 3.
const IDLE_MEMORY: u64 = 10 * 1024 * 1024;
/// Of that, what is its own. The rest are pages of its file that it has run, which the kernel shares and takes back when it needs them: more of them
/// once it has served.
const OWN_MEMORY: u64 = 5 * 1024 * 1024;
const IDLE_MEMORY_AFTER: u64 = 15 * 1024 * 1024;

/// reference: Kmesh, `pkg/controller/telemetry/metric.go`; Istio, "Istio Standard Metrics".
const COMMON_LABELS: [&str; 20] = [
    "reporter",
    "source_workload",
    "source_canonical_service",
    "source_canonical_revision",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
    "destination_workload",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_cluster",
    "request_protocol",
    "response_flags",
    "connection_security_policy",
];
const POD_LABELS: [&str; 3] = [
    "destination_pod_address",
    "destination_pod_namespace",
    "destination_pod_name",
];
const SERVICE_LABELS: [&str; 3] = [
    "destination_service",
    "destination_service_namespace",
    "destination_service_name",
];
const COUNTS: [&str; 4] = [
    "connections_opened_total",
    "connections_closed_total",
    "sent_bytes_total",
    "received_bytes_total",
];

/// Selects the source's view of what the client did.
const OF_CLIENT: [(&str, &str); 2] = [("reporter", "source"), ("source_workload", "client")];

const LINE_KEYS: [&str; 26] = [
    "src.addr",
    "src.workload",
    "src.namespace",
    "src.identity",
    "dst.addr",
    "dst.service",
    "dst.workload",
    "dst.namespace",
    "dst.identity",
    "start_time",
    "direction",
    "state",
    "sent_bytes",
    "received_bytes",
    "kernel_sent_bytes",
    "kernel_received_bytes",
    "packet_loss",
    "retransmissions",
    "srtt",
    "min_rtt",
    "duration",
    "listener",
    "policy",
    "reason",
    "response_flags",
    "detail",
];

#[test]
fn a_connection_in_which_nothing_moves_is_ended() {
    let place = Place::start("timeouts: {idle: 400ms}");
    let (mut idle, mut busy) = (place.reach(), place.reach());
    let (start, source) = (Instant::now(), idle.local_addr().expect("connected"));
    wait::eventually(wait::SOON, "the idle connection is ended", || {
        Server::echo(&mut busy, b"busy").expect("traffic keeps a connection");
        place.proxy.connections().len() == 1
    });
    assert!(
        start.elapsed() >= Duration::from_millis(300),
        "not before its time: {:?}",
        start.elapsed()
    );
    let end = idle.read(&mut [0]).expect_err("a reset");
    assert!(is_reset(&end), "{end}");
    place.proxy.access_line(source).assert_reason("idle_timeout", "SI");
    wait::eventually(wait::SOON, "the server has seen it too", || place.server.resets() == 1);
    Server::echo(&mut busy, b"busy").expect("the other goes on");
}

#[test]
fn sigterm_lets_connections_finish_and_refuses_new_ones() {
    let mut place = Place::start("timeouts: {drain: 20s}");
    let mut stream = place.reach();
    let source = stream.local_addr().expect("connected");
    place.proxy.process().signal(Signal::SIGTERM).expect("it runs");
    wait::eventually(wait::SOON, "not ready", || {
        place.proxy.request("GET", "/ready").status == 503
    });
    wait::eventually(wait::SOON, "new connections are refused", || {
        place.client.connect(place.relay()).is_err()
    });
    Server::echo(&mut stream, b"take your time").expect("open connections go on");
    assert!(place.proxy.process().exit_status().is_none());
    drop(stream);
    let status = place.proxy.process().wait(wait::SOON);
    assert_eq!(status.code(), Some(0), "{}", place.proxy.log());
    place.proxy.access_line(source).assert_reason("completed", "-");
}

#[test]
fn what_does_not_finish_in_the_drain_time_is_reset() {
    for signal in [Some(Signal::SIGTERM), Some(Signal::SIGINT), None] {
        let mut place = Place::start("timeouts: {drain: 300ms}");
        let mut stream = place.reach();
        let source = stream.local_addr().expect("connected");
        let start = Instant::now();
        if let Some(signal) = signal {
            place.proxy.process().signal(signal).expect("it runs");
        } else {
            assert_eq!(place.proxy.request("POST", "/drain").status, 200);
        }
        let end = stream.read(&mut [0]).expect_err("a reset");
        assert!(is_reset(&end), "{end}");
        assert!(start.elapsed() >= Duration::from_millis(300), "not before its time");
        assert_eq!(
            place.proxy.process().wait(wait::SOON).code(),
            Some(0),
            "{}",
            place.proxy.log()
        );
        place.proxy.access_line(source).assert_reason("drained", "DRAIN");
        wait::eventually(wait::SOON, "the server has seen it too", || place.server.resets() == 1);
    }
}

#[test]
fn draining_is_asked_for_by_post_only_and_shows_in_ready() {
    let mut place = Place::start("timeouts: {drain: 20s}");
    let stream = place.reach();
    assert_eq!(place.proxy.request("GET", "/ready").body, "ready\n");
    assert_eq!(
        place.proxy.request("GET", "/drain").status,
        405,
        "a crawler must not stop the node"
    );
    assert_eq!(place.proxy.request("GET", "/ready").status, 200);
    assert_eq!(place.proxy.request("POST", "/drain").status, 200);
    wait::eventually(wait::SOON, "not ready", || {
        let answer = place.proxy.request("GET", "/ready");
        answer.status == 503 && answer.body.contains("drain")
    });
    drop(stream);
    assert_eq!(place.proxy.process().wait(wait::SOON).code(), Some(0));
}

#[test]
fn the_log_level_changes_while_it_runs() {
    let place = Place::start("log: info");
    assert_eq!(place.proxy.request("POST", "/logging?level=debgu").status, 400);
    assert!(place.proxy.request("GET", "/logging").body.contains("info"));
    let applied = |proxy: &Proxy| proxy.log().matches("configuration update applied").count();
    place.proxy.apply(&place.config("timeouts: {idle: 1m}", "text", true));
    assert_eq!(applied(&place.proxy), 1, "an update is worth a word at level info");

    assert_eq!(place.proxy.request("POST", "/logging?level=error").status, 200);
    assert!(place.proxy.request("GET", "/logging").body.contains("error"));
    place.proxy.apply(&place.config("timeouts: {idle: 2m}", "text", true));
    assert_eq!(place.proxy.request("POST", "/logging?level=info").status, 200);
    place.proxy.apply(&place.config("timeouts: {idle: 3m}", "text", true));
    wait::eventually(wait::SOON, "the last update is logged", || applied(&place.proxy) >= 2);
    assert_eq!(applied(&place.proxy), 2, "the one before is not");
}

#[test]
fn counters_move_while_a_connection_is_open() {
    let place = Place::start("timeouts: {idle: 1h}");
    let mut stream = place.reach();
    Server::echo(&mut stream, &[7; 5000]).expect("an echo");
    let greeting = format!("{}\n", place.server.address()).len() as u64;
    // Counted once the receiver's kernel has them, so a receiver may be a moment ahead of the count.
    wait::eventually(wait::SOON, "the bytes of both directions are counted", || {
        let metrics = place.proxy.metrics();
        metrics.sum("kmesh_tcp_workload_sent_bytes_total", &OF_CLIENT) == 5000
            && metrics.sum("kmesh_tcp_workload_received_bytes_total", &OF_CLIENT) == 5000 + greeting
    });
    let metrics = place.proxy.metrics();
    assert_eq!(metrics.sum("istio_tcp_connections_opened_total", &OF_CLIENT), 1);
    assert_eq!(metrics.sum("istio_tcp_connections_closed_total", &OF_CLIENT), 0);
    let listed = &place.proxy.connections()[0];
    assert_eq!(
        (&listed["sent_bytes"], &listed["received_bytes"]),
        (&5000.into(), &(5000 + greeting).into())
    );
    assert_eq!(listed["src_workload"], "client");
    assert_eq!(listed["state"], "open");
}

#[test]
fn every_metric_has_its_labels() {
    let place = Place::start("timeouts: {idle: 1h}");
    let source = place.reach().local_addr().expect("connected");
    place.proxy.access_line(source);
    let metrics = place.proxy.metrics();
    let families = [
        ("kmesh_tcp_workload", POD_LABELS),
        ("kmesh_tcp", SERVICE_LABELS),
        ("istio_tcp", SERVICE_LABELS),
    ];
    for (family, more) in families {
        let expected: BTreeSet<&str> = COMMON_LABELS.into_iter().chain(more).collect();
        for count in COUNTS {
            let name = format!("{family}_{count}");
            let samples: Vec<_> = metrics.find(&name, &OF_CLIENT).collect();
            assert_eq!(
                samples.len(),
                1,
                "{name}: one label set for one client, destination and service"
            );
            let labels: BTreeSet<&str> = samples[0].labels.keys().map(String::as_str).collect();
            assert_eq!(labels, expected, "{name}");
        }
    }
    let sample = metrics
        .find("kmesh_tcp_sent_bytes_total", &OF_CLIENT)
        .next()
        .expect("counted above");
    for (label, value) in [
        ("source_workload_namespace", "shop"),
        ("source_principal", "spiffe://cluster.local/ns/shop/sa/client"),
        ("source_app", "storefront"),
        ("source_version", "v3"),
        ("source_cluster", "Kubernetes"),
        ("destination_workload", "web-1"),
        ("destination_service", "web.shop.svc.cluster.local"),
        ("destination_service_name", "web"),
        ("destination_service_namespace", "shop"),
        ("request_protocol", "tcp"),
        ("response_flags", "-"),
    ] {
        assert_eq!(sample.labels[label], value, "{label}");
    }
}

/// The destination's side of a connection is reported by the destination's own node, and from its own point of view.
#[test]
fn a_destination_on_this_node_reports_too() {
    let place = Place::start("timeouts: {idle: 1h}");
    let of = |metrics: &Metrics, reporter, family| {
        let labels = [("reporter", reporter), ("destination_workload", "web-1")];
        ["sent", "received"].map(|what| metrics.sum(&format!("{family}_{what}_bytes_total"), &labels))
    };
    let mut stream = place.reach();
    Server::echo(&mut stream, b"hello").expect("an echo");
    let metrics = place.proxy.metrics();
    assert_eq!(
        of(&metrics, "destination", "kmesh_tcp_workload"),
        [0, 0],
        "the destination is on no node"
    );

    let text = place
        .proxy
        .config_text()
        .replace("name: web-1,", "name: web-1, node: node-a,");
    place.proxy.replace_file(&text);
    wait::eventually(wait::SOON, "the configuration is applied", || {
        place.proxy.config_updates("applied") == 1
    });
    let mut stream = place.reach();
    Server::echo(&mut stream, &[1; 1000]).expect("an echo");
    let metrics = place.proxy.metrics();
    for family in ["kmesh_tcp_workload", "kmesh_tcp"] {
        let [sent, received] = of(&metrics, "destination", family);
        assert!(
            received >= 1000 && sent > received,
            "{family}: it sent a greeting and {received} bytes, not {sent}"
        );
    }
    let [source, destination] = ["source", "destination"].map(|reporter| of(&metrics, reporter, "istio_tcp"));
    assert!(
        destination[0] >= 1000 && destination[0] <= source[0],
        "Istio counts requests and answers for both alike"
    );
}

#[test]
fn label_sets_of_workloads_that_are_gone_are_dropped() {
    let place = Place::start("timeouts: {idle: 1h}");
    let address = {
        let mut stream = place.reach();
        Server::echo(&mut stream, b"hello").expect("an echo");
        stream.local_addr().expect("connected")
    };
    place.proxy.access_line(address);
    let mentions = |place: &Place, workload: &str| {
        let metrics = place.proxy.metrics();
        let names = |label: &str| {
            metrics
                .samples()
                .iter()
                .any(|sample| sample.labels.get(label).is_some_and(|v| v == workload))
        };
        names("source_workload") || names("destination_workload")
    };
    assert!(mentions(&place, "client"));
    // The workload goes while a connection of it is open: its series go with the last connection.
    let stream = place.reach();
    place.proxy.apply(&place.config("timeouts: {idle: 1h}", "text", false));
    drop(stream);
    wait::eventually(wait::SOON, "no series of the workload", || !mentions(&place, "client"));
    place.reach();
    wait::eventually(wait::SOON, "the others' are there", || mentions(&place, "web-1"));
}

#[test]
fn the_access_log_is_whole_in_both_formats() {
    for format in ["text", "json"] {
        let place = Place::start_with_log("log: info", format);
        let mut stream = place.reach();
        Server::echo(&mut stream, b"hello").expect("an echo");
        let source = stream.local_addr().expect("connected");
        drop(stream);
        let line = place.proxy.access_line(source);
        let keys: BTreeSet<&str> = line.keys().collect();
        let missing: Vec<&str> = LINE_KEYS.into_iter().filter(|key| !keys.contains(key)).collect();
        assert!(missing.is_empty(), "{format}: no {missing:?} in {}", line.text);
        for (key, value) in [
            ("src.workload", "client"),
            ("src.identity", "spiffe://cluster.local/ns/shop/sa/client"),
            ("dst.service", "web.shop.svc.cluster.local"),
            ("dst.workload", "web-1"),
            ("dst.namespace", "shop"),
            ("direction", "OUTBOUND"),
            ("state", "BPF_TCP_CLOSE"),
            ("listener", "relay"),
            ("policy", "-"),
            ("sent_bytes", "5"),
        ] {
            assert_eq!(line.field(key), value, "{format}: {key} in {}", line.text);
        }
        assert!(
            line.field("duration").ends_with("ms") && line.field("srtt").ends_with("us"),
            "{}",
            line.text
        );
    }
}

#[test]
fn an_idle_proxy_is_small() {
    let place = Place::start("log: info");
    wait::eventually(wait::SOON, "a fresh proxy is small", || {
        place.proxy.resident_bytes() <= IDLE_MEMORY
    });
    for _ in 0..200 {
        place.reach();
    }
    wait::eventually(wait::SOON, "all connections are gone", || {
        place.proxy.connections().is_empty()
    });
    let what = "idle again, it is small again";
    wait::eventually(Duration::from_secs(30), what, || {
        place.proxy.resident_bytes() <= IDLE_MEMORY_AFTER && place.proxy.anonymous_bytes() <= OWN_MEMORY
    });
}

struct Place {
    proxy: Proxy,
    proxy_host: Host,
    client: Host,
    server: Server,
    _world: World,
}

impl Place {
    fn start(node_setting: &str) -> Self {
        Self::start_with_log(node_setting, "text")
    }

    fn start_with_log(node_setting: &str, format: &'static str) -> Self {
        let world = World::loopback();
        let [proxy_host, client, server] = [(); 3].map(|()| world.host());
        let server = Server::start(&server, 8080);
        let config = config(&proxy_host, &client, &server, node_setting, format, true);
        let proxy = Proxy::start(&world, &proxy_host, &config);
        Self {
            proxy,
            proxy_host,
            client,
            server,
            _world: world,
        }
    }

    fn config(&self, node_setting: &str, format: &'static str, with_client: bool) -> Config {
        config(
            &self.proxy_host,
            &self.client,
            &self.server,
            node_setting,
            format,
            with_client,
        )
    }

    fn relay(&self) -> SocketAddr {
        self.proxy_host.at(15001)
    }

    fn reach(&self) -> std::net::TcpStream {
        let mut stream = self.client.connect(self.relay()).expect("connect");
        Server::greeting(&mut stream).expect("a greeting");
        stream
    }
}

fn config(
    proxy: &Host,
    client: &Host,
    server: &Server,
    setting: &str,
    format: &'static str,
    with_client: bool,
) -> Config {
    let config = Config::new()
        .node(setting)
        .access_log_format(format)
        .listener("relay", proxy.at(15001), Listen::fixed("web.shop.svc.cluster.local:80"))
        .workload("shop/web-1", server.address().ip(), "")
        .service(
            "shop/web",
            "ports: [{port: 80, target_port: 8080}], endpoints: [shop/web-1]",
        );
    if with_client {
        let fields = "service_account: client, canonical_name: storefront, canonical_revision: v3";
        config.workload("shop/client", client.ip(), fields)
    } else {
        config
    }
}
