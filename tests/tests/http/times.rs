//! Requests that last too long: what the client sees, and what is logged, as by Envoy.

use std::io::{self, BufRead, BufReader, Write};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use underpass_tests::{Need, available, wait};

use super::client::{Client, get};
use super::endpoint::{Endpoint, Tries};
use super::upstreams::place::{ClusterPair, Place, endpoints, merge};

/// Where the request is cut: before its answer, in it, while it is sent.
const CASES: [(&str, &str, &str); 5] = [
    ("/web/slow", "GET", "x-do: slow\r\n"),
    ("/web/pause", "GET", "x-do: pause\r\n"),
    (
        "/web/slow-grpc",
        "GET",
        "x-do: slow\r\ncontent-type: application/grpc\r\n",
    ),
    ("/web/sending", "POST", "content-length: 10\r\n"),
    ("/web/quick", "GET", ""),
];

/// Our log, as Envoy's is written: path, code, flags, details.
fn our_lines(place: &Place) -> Vec<String> {
    let log = std::fs::read_to_string(place.world.directory().join("access.log")).unwrap_or_default();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let requests = lines.filter(|line| line["response_code"].is_number());
    let written = requests.map(|line| {
        let text = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
        let details = text("response_code_details");
        format!(
            "{} {} {} {details}",
            text("path"),
            line["response_code"],
            text("response_flags")
        )
    });
    sorted(written.collect())
}

fn envoys_lines(place: &Place) -> Vec<String> {
    let log = std::fs::read_to_string(place.world.directory().join("envoy.log")).unwrap_or_default();
    sorted(log.lines().map(str::to_owned).collect())
}

fn sorted(mut lines: Vec<String>) -> Vec<String> {
    lines.sort();
    lines
}

/// Asks both for `CASES`, and compares what they answer and what they log. `forward` and `cluster`: fields of each, in our words and in Envoy's.
fn compare(forward: (&str, Value), cluster: (&str, Value)) {
    if !available(&[Need::Envoy]) {
        return;
    }
    let place = Place::new();
    let web = [(); 2].map(|()| Endpoint::start(&place.world.host(), 9001, "w", Tries::default()).address);
    let ours = format!("endpoints: ['{}']{}", web[0], cluster.0);
    let _proxy = place.start(&place.yaml(&[("web", ours)], forward.0));
    let mut envoys = json!({"type": "STATIC", "load_assignment": endpoints(&[web[1]])});
    merge(&mut envoys, cluster.1);
    let clusters = [ClusterPair {
        name: "web",
        ours: String::new(),
        envoys,
    }];
    let mut action = json!({"cluster": "web"});
    merge(&mut action, forward.1);
    let route = json!({"match": {"prefix": "/"}, "route": action});
    let more = json!({"route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]}});
    let _envoy = place.start_envoy(&clusters, more);
    for (path, method, lines) in CASES {
        let seen = [place.ours(), place.envoys()].map(|at| {
            let mut client = Client::connect(&place.client, at);
            client.send(get(path, lines).replacen("GET", method, 1).as_bytes());
            let mut seen = client.answer(false);
            let shown = ["grpc-status", "grpc-message", "connection"].map(|name| seen.header(name).map(str::to_owned));
            if seen.body.starts_with("attempt") {
                seen.body.clear();
            }
            (seen.status, seen.is_whole, seen.body, shown)
        });
        assert_eq!(seen[0], seen[1], "{path}");
    }
    wait::eventually(wait::SOON, "all are logged", || our_lines(&place).len() == CASES.len());
    wait::eventually(wait::patient(wait::SOON), "all are logged by Envoy", || {
        envoys_lines(&place).len() == CASES.len()
    });
    assert_eq!(our_lines(&place), envoys_lines(&place));
}

#[test]
fn a_request_that_lasts_too_long_ends_as_by_envoy() {
    let limit = json!({"max_stream_duration": {"max_stream_duration": "0.5s"}});
    compare((", max_stream_duration: 500ms", limit), ("", json!({})));
}

fn of_cluster(limit: &str) -> Value {
    json!({"typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "common_http_protocol_options": {"max_stream_duration": limit},
        "explicit_http_config": {"http_protocol_options": {}},
    }}})
}

#[test]
fn a_request_that_lasts_longer_than_its_cluster_lets_it_ends_as_by_envoy() {
    compare(("", json!({})), (", max_stream_duration: 500ms", of_cluster("0.5s")));
}

/// Each try has its time.
#[test]
fn a_stream_that_its_cluster_ends_is_tried_again_as_by_envoy() {
    let retried = json!({"retry_policy": {"retry_on": "5xx", "num_retries": 2}});
    let cluster = (", max_stream_duration: 400ms", of_cluster("0.4s"));
    compare((", retry: {on: [5xx], retries: 2}", retried), cluster);
}

/// The shorter limit ends it, with its own words.
#[test]
fn of_two_durations_the_shorter_one_holds_as_by_envoy() {
    let route = |limit: &str| json!({"max_stream_duration": {"max_stream_duration": limit}});
    let long = (", max_stream_duration: 5s", of_cluster("5s"));
    compare((", max_stream_duration: 500ms", route("0.5s")), long);
    let short = (", max_stream_duration: 500ms", of_cluster("0.5s"));
    compare((", max_stream_duration: 5s", route("5s")), short);
}

/// A copy has the time that its own cluster gives it.
#[test]
fn a_copy_ends_when_it_has_lasted_as_long_as_its_cluster_lets_it() {
    let place = Place::new();
    let [web, copy] = [(); 2].map(|()| Endpoint::start(&place.world.host(), 9001, "w", Tries::default()).address);
    let clusters = [
        ("web", format!("endpoints: ['{web}']")),
        ("copy", format!("endpoints: ['{copy}'], max_stream_duration: 300ms")),
    ];
    let proxy = place.start(&place.yaml(&clusters, ", timeout: 0s, mirrors: [{cluster: copy}]"));
    // Before its answer, and in it; the requests themselves have more time.
    let clients = ["slow", "pause"].map(|deed| {
        let mut client = Client::connect(&place.client, place.ours());
        client.send(get("/web/", &format!("x-do: {deed}\r\n")).as_bytes());
        client
    });
    wait::eventually(wait::SOON, "both copies are counted as late", || {
        let labels = [("cluster", "copy"), ("result", "timed_out")];
        proxy.metrics().sum("underpass_http_mirrored_requests_total", &labels) == 2
    });
    drop(clients);
}

#[test]
fn a_tunnel_ends_when_it_has_lasted_as_long_as_it_may() {
    tunnel(", max_stream_duration: 700ms", "", "- max_duration_timeout");
}

#[test]
fn a_tunnel_ends_when_it_has_lasted_as_long_as_its_cluster_lets_it() {
    let details = "UMSDR upstream_max_stream_duration_reached";
    tunnel("", ", max_stream_duration: 700ms", details);
}

/// Whatever moves in it.
fn tunnel(forward: &str, cluster: &str, told: &str) {
    let place = Place::new();
    let web = Endpoint::start(&place.world.host(), 9001, "w", Tries::default()).address;
    let forward = format!(", upgrades: [websocket]{forward}");
    let _proxy = place.start(&place.yaml(&[("web", format!("endpoints: ['{web}']{cluster}"))], &forward));
    let mut client = Client::connect(&place.client, place.ours());
    let lines = "x-do: websocket\r\nconnection: upgrade\r\nupgrade: websocket\r\n";
    client.send(get("/web/", lines).as_bytes());
    assert_eq!(client.answer(false).status, 101);
    let began = Instant::now();
    loop {
        assert!(began.elapsed() < wait::soon(), "it goes on");
        client.send(b"x");
        match client.bytes(1) {
            Some(echoed) => assert_eq!(echoed, b"x"),
            None => break,
        }
    }
    wait::eventually(wait::SOON, "it is logged", || {
        our_lines(&place) == [format!("/web/ 101 {told}")]
    });
}

/// A client that sends on, and is listened to for a while so that it sees its answer, has only a part of the time that a drain has for
/// it: what does not end in time is reset.
#[test]
fn a_client_that_has_its_answer_does_not_take_all_of_a_drains_time() {
    const DRAIN: Duration = Duration::from_secs(4);
    let place = Place::new();
    let web = Endpoint::start(&place.world.host(), 9001, "w", Tries::default()).address;
    let yaml = place.yaml(&[("web", format!("endpoints: ['{web}']"))], "");
    let yaml = yaml.replace(
        "  workers: 1\n",
        &format!("  workers: 1\n  timeouts: {{drain: {}s}}\n", DRAIN.as_secs()),
    );
    let mut proxy = place.start(&yaml);
    let stream = place.client.connect(place.ours()).expect("the proxy accepts");
    let mut sending = stream.try_clone().expect("a socket");
    let (answered, was_answered) = mpsc::channel();
    thread::spawn(move || {
        let (mut read, mut line) = (BufReader::new(stream), String::new());
        let _ = read.read_line(&mut line);
        let _ = answered.send(line);
        let _ = io::copy(&mut read, &mut io::sink());
    });
    sending
        .write_all(get("/web/x", "connection: close\r\n").as_bytes())
        .expect("it is read");
    assert_eq!(
        was_answered.recv_timeout(wait::soon()).expect("an answer"),
        "HTTP/1.1 200 OK\r\n"
    );
    let sender = thread::spawn(move || while sending.write_all(&[b'x'; 1024]).is_ok() {});
    let began = Instant::now();
    assert!(proxy.terminate(wait::soon()).success());
    assert!(began.elapsed() < DRAIN * 3 / 4, "it took {:?}", began.elapsed());
    assert!(!proxy.log().contains("resetting those"), "{}", proxy.log());
    sender.join().expect("it sends until it is reset");
}
