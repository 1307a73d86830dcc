//! Requests that last too long: what the client sees, and what is logged, as by Envoy.

use std::io::{self, BufRead, BufReader, Write};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use underpass_tests::{Need, available, wait};

use super::client::{Client, get};
use super::endpoint::{Endpoint, Tries};
use super::upstreams::place::{ClusterPair, Place, endpoints};

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

#[test]
fn a_request_that_lasts_too_long_ends_as_by_envoy() {
    if !available(&[Need::Envoy]) {
        return;
    }
    let place = Place::new();
    let web = [(); 2].map(|()| Endpoint::start(&place.world.host(), 9001, "w", Tries::default()).address);
    let _proxy = place.start(&place.yaml(
        &[("web", format!("endpoints: ['{}']", web[0]))],
        ", max_stream_duration: 500ms",
    ));
    let clusters = [ClusterPair {
        name: "web",
        ours: String::new(),
        envoys: json!({"type": "STATIC", "load_assignment": endpoints(&[web[1]])}),
    }];
    let route = json!({"match": {"prefix": "/"}, "route": {"cluster": "web", "max_stream_duration": {"max_stream_duration": "0.5s"}}});
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

/// Whatever moves in it.
#[test]
fn a_tunnel_ends_when_it_has_lasted_as_long_as_it_may() {
    let place = Place::new();
    let web = Endpoint::start(&place.world.host(), 9001, "w", Tries::default()).address;
    let forward = ", upgrades: [websocket], max_stream_duration: 700ms";
    let _proxy = place.start(&place.yaml(&[("web", format!("endpoints: ['{web}']"))], forward));
    let mut client = Client::connect(&place.client, place.ours());
    let lines = "x-do: websocket\r\nconnection: upgrade\r\nupgrade: websocket\r\n";
    client.send(get("/web/", lines).as_bytes());
    assert_eq!(client.answer(false).status, 101);
    loop {
        client.send(b"x");
        match client.bytes(1) {
            Some(echoed) => assert_eq!(echoed, b"x"),
            None => break,
        }
    }
    wait::eventually(wait::SOON, "it is logged", || {
        our_lines(&place) == ["/web/ 101 - max_duration_timeout"]
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
