//! Limits of clusters: what is refused beyond them, and that they hold for the node.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use underpass_tests::{Need, available, wait};

use super::place::{ClusterPair, Place, endpoints};
use super::teller::{Running, Teller};
use crate::client::{Client, Seen, ask, get};

/// Answers to requests that are all open at once.
fn ask_at_once(place: &Place, at: SocketAddr, path: &str, lines: &str, requests: usize) -> Vec<Seen> {
    thread::scope(|scope| {
        let asked: Vec<_> = (0..requests)
            .map(|_| scope.spawn(|| ask(&place.client, at, &get(path, lines))))
            .collect();
        asked
            .into_iter()
            .map(|asked| asked.join().expect("an answer"))
            .collect()
    })
}

fn is_overflow(seen: &Seen) -> bool {
    seen.status == 503
        && seen.header("x-envoy-overloaded") == Some("true")
        && seen.body.ends_with("reset reason: overflow")
}

/// Requests that have a connection, and requests that wait for one, are counted as by Envoy.
#[test]
fn requests_beyond_a_limit_are_refused_as_by_envoy() {
    if !available(&[Need::Envoy]) {
        return;
    }
    let place = Place::new();
    let teller = |is_mute| {
        Teller {
            is_mute,
            ..Teller::default()
        }
        .start(&place.world.host(), 9001)
    };
    let (web, mute) = (teller(false), teller(true));
    let pair = |name, at: &Running, ours: &str, envoys: serde_json::Value, tls: (&str, serde_json::Value)| {
        ClusterPair {
            name,
            ours: format!("endpoints: ['{}'], limits: {{{ours}}}{}", at.address, tls.0),
            envoys: {
                let mut cluster = json!({"type": "STATIC", "load_assignment": endpoints(&[at.address]), "circuit_breakers": {"thresholds": [envoys]}});
                if !tls.1.is_null() {
                    cluster["transport_socket"] = tls.1;
                }
                cluster
            },
        }
    };
    // Its handshake does not end, so that its requests wait.
    let handshake = (
        ", tls: {server_name: a.test, insecure_skip_verify: true}",
        json!({"name": "envoy.transport_sockets.tls", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"}}),
    );
    let clear = || ("", json!(null));
    let clusters = [
        pair("requests", &web, "requests: 2", json!({"max_requests": 2}), clear()),
        pair(
            "pending",
            &mute,
            "pending_requests: 2",
            json!({"max_pending_requests": 2}),
            handshake,
        ),
        pair(
            "nothing",
            &web,
            "pending_requests: 0",
            json!({"max_pending_requests": 0}),
            clear(),
        ),
    ];
    let _both = place.start_both(&clusters);
    for at in [place.ours(), place.envoys()] {
        for (name, requests, refused) in [("requests", 5, 3), ("pending", 5, 3), ("nothing", 3, 3)] {
            let answers = ask_at_once(&place, at, &format!("/{name}/x"), "x-pause-ms: 2500\r\n", requests);
            let overflows = answers.iter().filter(|seen| is_overflow(seen)).count();
            assert_eq!(overflows, refused, "{at} {name}: {answers:?}");
        }
        assert_eq!(ask(&place.client, at, &get("/requests/x", "")).status, 200, "{at}");
    }
    wait::eventually(wait::SOON, "both have logged it", || {
        let details = "503 UO upstream_reset_before_response_started{overflow}";
        place.logged_by_envoy(details) == 9 && place.logged(r#""response_flags":"UO""#) == 9
    });
    assert_eq!(place.logged("upstream_reset_before_response_started{overflow}"), 9);
}

/// There are never more connections than may be, on whichever cores requests come, and nobody waits for ever.
#[test]
fn there_are_no_more_connections_than_may_be_and_whoever_waits_gets_one() {
    let place = Place::new();
    let teller = |is_http2| {
        Teller {
            is_http2,
            ..Teller::default()
        }
        .start(&place.world.host(), 9001)
    };
    let (one, two, other) = (teller(false), teller(true), teller(false));
    let clusters = [
        (
            "one",
            format!("endpoints: ['{}'], limits: {{connections: 2}}", one.address),
        ),
        (
            "two",
            format!(
                "protocol: http2, connections: {{streams: 1}}, endpoints: ['{}'], limits: {{connections: 2}}",
                two.address
            ),
        ),
        (
            "both",
            format!(
                "balancing: round-robin, endpoints: ['{}', '{}'], limits: {{connections: 1}}",
                other.address, one.address
            ),
        ),
    ];
    let yaml = place.yaml(&clusters, "").replace("  workers: 1\n", "  workers: 3\n");
    let _proxy = place.start(&yaml);
    for (name, endpoint) in [("one", &one), ("two", &two)] {
        let answers = ask_at_once(&place, place.ours(), &format!("/{name}/x"), "x-pause-ms: 100\r\n", 12);
        assert!(answers.iter().all(|seen| seen.status == 200), "{name}: {answers:?}");
        assert!(endpoint.most() <= 2, "{name}: {}", endpoint.most());
    }
    // An idle connection to one endpoint, on whichever core, makes room for one to another.
    for n in 0..8 {
        assert_eq!(place.ask("/both/x", "").status, 200, "{n}");
    }
    assert_eq!(other.most(), 1);
}

/// Whoever waits for a connection has it as soon as its holder is done, and does not connect anew if it is of the same kind.
#[test]
fn a_connection_is_handed_to_whoever_waits_for_it() {
    let place = Place::new();
    let one = Teller::default().start(&place.world.host(), 9001);
    let fields = format!("endpoints: ['{}'], limits: {{connections: 1}}", one.address);
    let _proxy = place.start(&place.yaml(&[("one", fields)], ""));
    let mut slow = Client::connect(&place.client, place.ours());
    slow.send(get("/one/x", "x-pause-ms: 700\r\n").as_bytes());
    wait::eventually(wait::SOON, "it has come", || one.accepted() == 1);
    let began = Instant::now();
    let answers = ask_at_once(&place, place.ours(), "/one/x", "", 5);
    assert!(answers.iter().all(|seen| seen.status == 200), "{answers:?}");
    assert!(began.elapsed() >= Duration::from_millis(300), "they waited");
    assert_eq!(slow.answer(false).status, 200);
    assert_eq!(one.accepted(), 1);
}
