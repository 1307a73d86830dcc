//! Requests of which nothing moves.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::json;
use underpass_tests::{Need, available, wait};

use super::place::{ClusterPair, Place, endpoints};
use super::teller::Teller;
use crate::client::{Client, Seen};

/// Asks `at` for `path` with the beginning of a body, `pieces` of it one after the other, and says what comes and how long that took.
fn upload(
    place: &Place,
    at: SocketAddr,
    path: &str,
    length: usize,
    pieces: usize,
    pause: Duration,
) -> (Seen, Duration) {
    let mut client = Client::connect(&place.client, at);
    let pause_there = 20_000;
    client.send(
        format!(
            "POST {path} HTTP/1.1\r\nhost: web.test\r\nx-pause-ms: {pause_there}\r\ncontent-length: {length}\r\n\r\n"
        )
        .as_bytes(),
    );
    for _ in 0..pieces {
        client.send(b"x");
        std::thread::sleep(pause);
    }
    let began = Instant::now();
    let seen = client.answer(false);
    (seen, began.elapsed())
}

#[test]
fn a_request_of_which_nothing_moves_is_ended_as_by_envoy() {
    if !available(&[Need::Envoy]) {
        return;
    }
    let place = Place::new();
    let web = Teller::default().start(&place.world.host(), 9001);
    let pair = ClusterPair {
        name: "web",
        ours: format!("endpoints: ['{}']", web.address),
        envoys: json!({"type": "STATIC", "load_assignment": endpoints(&[web.address])}),
    };
    let ours = place.yaml(&[("web", pair.ours.clone())], ", timeout: 0s, idle_timeout: 2s");
    let _proxy = place.start(&ours);
    let route =
        json!({"match": {"prefix": "/web/"}, "route": {"cluster": "web", "timeout": "0s", "idle_timeout": "2s"}});
    let routes = json!({"route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]}});
    let _envoy = place.start_envoy(&[pair], routes);
    let pause = Duration::from_millis(700);
    for (name, length, pieces, status) in [("stuck", 100, 1, 408), ("slow", 100, 6, 408), ("unanswered", 3, 3, 504)] {
        for at in [place.ours(), place.envoys()] {
            let (seen, took) = upload(&place, at, &format!("/web/{name}"), length, pieces, pause);
            assert_eq!(
                (seen.status, &*seen.body),
                (status, "stream timeout"),
                "{name} {at}: {seen:?}"
            );
            assert!(
                took > Duration::from_millis(600),
                "{name} {at}: what moves was ended after {took:?}"
            );
            // Envoy, too, lets nothing follow a request that it has not read to its end.
            let closes = seen.header("connection") == Some("close");
            assert_eq!(closes, status == 408, "{name} {at}: {seen:?}");
        }
        wait::eventually(wait::SOON, "both have logged it", || {
            place.logged_by_envoy(&format!("/web/{name} {status} SI stream_idle_timeout")) == 1
                && place.logged(&format!("/web/{name}\"")) == 1
        });
    }
    assert_eq!(place.logged(r#""response_flags":"SI""#), 3);
}
