//! How connections to endpoints are kept: which requests share one, when one ends, and what becomes of requests whose connection is gone.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use underpass_tests::{Need, available, wait};

use super::going::{Goes, Going};
use super::place::{ClusterPair, Place, endpoints};
use super::teller::{Running, Teller};
use crate::client::{Client, Seen, get};

fn teller(place: &Place, is_http2: bool) -> Running {
    let teller = Teller {
        is_http2,
        ..Teller::default()
    };
    teller.start(&place.world.host(), 9001)
}

fn cluster(at: &Running, more: &str) -> String {
    format!("endpoints: ['{}'], {more}", at.address)
}

/// The number of the connection that a request came by.
fn connection(seen: &Seen) -> u32 {
    let number = seen.header("x-connection").and_then(|number| number.parse().ok());
    number.unwrap_or_else(|| panic!("{seen:?}"))
}

/// Answers to requests that are all open at once.
fn ask_at_once(place: &Place, path: &str, requests: usize, pause: Duration) -> Vec<Seen> {
    thread::scope(|scope| {
        let asked: Vec<_> = (0..requests)
            .map(|_| scope.spawn(|| place.ask(path, &format!("x-pause-ms: {}\r\n", pause.as_millis()))))
            .collect();
        asked
            .into_iter()
            .map(|asked| asked.join().expect("an answer"))
            .collect()
    })
}

#[test]
fn a_connection_carries_as_many_requests_as_it_may() {
    let place = Place::new();
    let (one, two) = (teller(&place, false), teller(&place, true));
    let clusters = [
        ("one", cluster(&one, "protocol: http1, connections: {requests: 3}")),
        ("two", cluster(&two, "protocol: http2, connections: {requests: 3}")),
    ];
    let _proxy = place.start(&place.yaml(&clusters, ""));
    for name in ["one", "two"] {
        let numbers = (0..7).map(|_| connection(&place.ask(&format!("/{name}/x"), "")));
        assert_eq!(numbers.collect::<Vec<_>>(), [1, 1, 1, 2, 2, 2, 3], "{name}");
    }
    // Those that have had their requests are closed.
    for endpoint in [&one, &two] {
        wait::eventually(wait::SOON, "they are closed", || endpoint.open() == 1);
    }
}

#[test]
fn connections_that_idle_or_are_old_are_closed() {
    let place = Place::new();
    let kinds = [("one", "http1"), ("two", "http2")];
    let kept: Vec<Running> = kinds
        .iter()
        .map(|(_, protocol)| teller(&place, *protocol == "http2"))
        .collect();
    let old: Vec<Running> = kinds
        .iter()
        .map(|(_, protocol)| teller(&place, *protocol == "http2"))
        .collect();
    let mut clusters = Vec::new();
    for ((name, protocol), (kept, old)) in kinds.iter().zip(kept.iter().zip(&old)) {
        clusters.push((*name, cluster(kept, &format!("protocol: {protocol}, idle_timeout: 1s"))));
        let name = if *name == "one" { "old-one" } else { "old-two" };
        clusters.push((
            name,
            cluster(old, &format!("protocol: {protocol}, connections: {{lifetime: 1s}}")),
        ));
    }
    let _proxy = place.start(&place.yaml(&clusters, ""));
    for ((name, _), (kept, old)) in kinds.iter().zip(kept.iter().zip(&old)) {
        assert_eq!(connection(&place.ask(&format!("/{name}/x"), "")), 1);
        assert_eq!(connection(&place.ask(&format!("/old-{name}/x"), "")), 1);
        // A request that outlives its connection's time has it to its end.
        let began = Instant::now();
        let seen = place.ask(&format!("/old-{name}/x"), "x-pause-ms: 1500\r\n");
        assert_eq!((seen.status, connection(&seen)), (200, 1), "{seen:?}");
        assert!(began.elapsed() >= Duration::from_millis(1500));
        assert_eq!(connection(&place.ask(&format!("/old-{name}/x"), "")), 2, "{name}");
        for endpoint in [kept, old] {
            wait::eventually(wait::SOON, "it is closed", || endpoint.open() == 0);
        }
        assert_eq!(connection(&place.ask(&format!("/{name}/x"), "")), 2, "{name}");
    }
}

/// No connection carries more than it may, and the requests are spread over those that there are.
#[test]
fn requests_are_spread_over_as_many_http2_connections_as_they_fill() {
    let place = Place::new();
    let two = teller(&place, true);
    let few = Teller {
        is_http2: true,
        streams: Some(3),
        ..Teller::default()
    };
    let few = few.start(&place.world.host(), 9001);
    let clusters = [
        ("two", cluster(&two, "protocol: http2, connections: {streams: 4}")),
        ("few", cluster(&few, "protocol: http2")),
    ];
    let _proxy = place.start(&place.yaml(&clusters, ""));
    let answers = ask_at_once(&place, "/two/x", 16, Duration::from_secs(3));
    let mut loads = [0; 17];
    for seen in &answers {
        assert_eq!(seen.status, 200, "{seen:?}");
        loads[connection(seen) as usize] += 1;
    }
    assert!(loads.iter().all(|load| *load <= 4), "{loads:?}");
    assert!(two.accepted() <= 5, "{loads:?}");
    // Once the endpoint has said how many it allows, they go by that.
    assert_eq!(place.ask("/few/x", "").status, 200);
    let answers = ask_at_once(&place, "/few/x", 9, Duration::from_secs(3));
    let mut loads = [0; 17];
    answers.iter().for_each(|seen| loads[connection(seen) as usize] += 1);
    assert!(loads.iter().all(|load| *load <= 3), "{loads:?}");
}

/// Whoever waits for a connection that can't be made fails when it fails, not one after the other.
#[test]
fn connections_that_are_not_made_in_time_fail_all_who_wait_at_once() {
    let place = Place::new();
    let ours = underpass_tests::Authority::new(&place.world.directory().join("ca"));
    let mute = Teller {
        is_mute: true,
        ..Teller::default()
    };
    let mute = mute.start(&place.world.host(), 9001);
    let tls = format!("tls: {{server_name: a.test.example, roots: {:?}}}", ours.roots());
    let clusters = [(
        "mute",
        cluster(
            &mute,
            &format!("protocol: http2, connect_timeout: 2s, connections: {{streams: 4}}, {tls}"),
        ),
    )];
    let _proxy = place.start(&place.yaml(&clusters, ""));
    let began = Instant::now();
    let answers = ask_at_once(&place, "/mute/x", 12, Duration::ZERO);
    let took = began.elapsed();
    for seen in answers {
        assert_eq!(seen.status, 503, "{seen:?}");
        assert!(seen.body.ends_with("connection timeout"), "{seen:?}");
    }
    assert!(took < Duration::from_secs(12), "one after the other: {took:?}");
    wait::eventually(wait::SOON, "it is logged", || {
        place.logged(r#""response_flags":"UF""#) == 12
    });
    assert!((2..=6).contains(&mute.accepted()), "{}", mute.accepted());
}

/// An endpoint may close a connection at any time when it has no request, and one may be on its way then. The endpoint has got nothing of it: so it is
/// sent again, whichever it is.
#[test]
fn a_request_that_comes_too_late_for_its_connection_is_sent_by_another() {
    if !available(&[Need::Root]) {
        return;
    }
    let place = Place::new();
    let one = teller(&place, false);
    let _proxy = place.start(&place.yaml(&[("one", cluster(&one, ""))], ""));
    for (n, method) in ["GET", "DELETE", "PUT"].iter().enumerate() {
        assert_eq!(place.ask("/one/x", "x-do: vanish\r\n").status, 200);
        let seen = place.ask_by(method, "/one/again");
        assert_eq!(
            (seen.status, seen.header("x-path")),
            (200, Some("/one/again")),
            "{method}: {seen:?}"
        );
        assert_eq!(connection(&seen) as usize, n + 2);
    }
    // One that says its last word and closes is not taken for one that can be used.
    for _ in 0..5 {
        assert_eq!(place.ask("/one/x", "x-do: quit\r\n").status, 200);
        assert_eq!(place.ask_by("PUT", "/one/x").status, 200);
    }
}

/// An acknowledgement that did not come is no proof: whoever resets has read the request all the same, before its kernel had said so. What may not be done
/// twice is not sent twice.
#[test]
fn a_request_that_may_have_come_is_not_sent_again_if_that_matters() {
    if !available(&[Need::Root]) {
        return;
    }
    let place = Place::new();
    let one = teller(&place, false);
    let _proxy = place.start(&place.yaml(&[("one", cluster(&one, ""))], ""));
    for (n, does) in (1..).zip(["reset-next", "quit-next", "vanish", "reset-next", "vanish"]) {
        assert_eq!(place.ask("/one/x", &format!("x-do: {does}\r\n")).status, 200);
        assert_eq!(place.ask_by("POST", "/one/x").status, 503, "{does}");
        assert_eq!(one.accepted(), n, "{does}");
    }
}

/// What the endpoint has got it may have done, and is not given again without a retry policy: as with Envoy.
#[test]
fn a_request_that_came_is_not_sent_again() {
    if !available(&[Need::Envoy]) {
        return;
    }
    let place = Place::new();
    let (one, other) = (teller(&place, false), teller(&place, false));
    let pair = ClusterPair {
        name: "one",
        ours: cluster(&one, ""),
        envoys: json!({"type": "STATIC", "load_assignment": endpoints(&[other.address])}),
    };
    let _both = place.start_both(&[pair]);
    for (at, endpoint) in [(place.ours(), &one), (place.envoys(), &other)] {
        let ask = |lines: &str| crate::client::ask(&place.client, at, &get("/one/x", lines));
        assert_eq!(ask("x-do: quit-next\r\n").status, 200);
        let seen = ask("");
        assert_eq!(seen.status, 503, "{at}: {seen:?}");
        assert!(seen.body.ends_with("reset reason: connection termination"), "{seen:?}");
        assert_eq!(endpoint.accepted(), 1, "{at}");
    }
    wait::eventually(wait::SOON, "both have logged it", || {
        place.logged_by_envoy("503 UC upstream_reset_before_response_started{connection_termination}") == 1
            && place.logged(r#""response_flags":"UC""#) == 1
    });
}

/// An endpoint that no longer answers PING is gone.
#[test]
fn an_http2_connection_that_does_not_answer_pings_is_left() {
    let place = Place::new();
    let mute = Teller {
        is_mute: true,
        ..Teller::default()
    };
    let mute = mute.start(&place.world.host(), 9001);
    let fields = cluster(
        &mute,
        "protocol: http2, connections: {ping: {interval: 200ms, timeout: 500ms}}",
    );
    let _proxy = place.start(&place.yaml(&[("two", fields)], ", timeout: 60s"));
    let mut client = Client::connect(&place.client, place.ours());
    client.send(get("/two/x", "").as_bytes());
    let seen = client.answer(false);
    assert_eq!(seen.status, 503, "{seen:?}");
    wait::eventually(wait::SOON, "it is closed", || mute.open() == 0);
}

/// Clients that an endpoint is told of have connections of their own: without a bound their number would be the peers' to choose.
#[test]
fn no_more_connections_wait_than_may_and_the_longest_idle_go_first() {
    let place = Place::new();
    let told = |is_http2| {
        let teller = Teller {
            is_told: true,
            is_http2,
            ..Teller::default()
        };
        teller.start(&place.world.host(), 9001)
    };
    let (one, two, all) = (told(false), told(true), told(false));
    let clusters = [
        ("one", cluster(&one, "proxy_protocol: v1, connections: {idle: 3}")),
        (
            "two",
            cluster(&two, "proxy_protocol: v1, protocol: http2, connections: {idle: 3}"),
        ),
        ("all", cluster(&all, "proxy_protocol: v1")),
    ];
    let yaml = place
        .yaml(&clusters, "")
        .replace("  workers: 1\n", "  workers: 1\n  limits: {idle_http_connections: 6}\n");
    let _proxy = place.start(&yaml);
    for (name, endpoint, bound) in [("one", &one, 3), ("two", &two, 3), ("all", &all, 6)] {
        let mut clients: Vec<Client> = (0..12).map(|_| Client::connect(&place.client, place.ours())).collect();
        let mut ask = |client: usize| {
            clients[client].send(get(&format!("/{name}/x"), "").as_bytes());
            connection(&clients[client].answer(false))
        };
        let numbers: Vec<u32> = (0..12).map(&mut ask).collect();
        assert_eq!(numbers, (1..=12).collect::<Vec<_>>(), "{name}");
        wait::eventually(wait::SOON, "the others are closed", || endpoint.open() <= bound);
        assert_eq!(ask(11), 12, "{name}: the last one is kept");
        assert_eq!(ask(0), 13, "{name}: the first one is not");
    }
}

/// A server that goes says which streams it has not looked at; however many connections to it were there, such a request is sent by one that is made for it.
#[test]
fn a_request_that_going_connections_have_not_looked_at_is_sent_by_a_new_one() {
    let place = Place::new();
    let going = Going::start(&place.world.host(), 9001, Goes::AtTheSecond);
    let fields = format!(
        "endpoints: ['{}'], protocol: http2, connections: {{streams: 1}}",
        going.address
    );
    let _proxy = place.start(&place.yaml(&[("two", fields)], ""));
    let answers = ask_at_once(&place, "/two/x", 6, Duration::ZERO);
    assert!(answers.iter().all(|seen| seen.status == 200), "{answers:?}");
    assert_eq!(going.accepted(), 6);
    for method in ["GET", "POST"] {
        let before = going.accepted();
        let seen = place.ask_by(method, "/two/x");
        assert_eq!(seen.status, 200, "{method}: {seen:?}");
        assert!(going.accepted() <= before + 1, "{method}");
    }
}

/// Be the connection made for it: what was provably not looked at is sent by another, a few times.
#[test]
fn a_request_that_a_new_connection_has_not_looked_at_is_sent_by_another() {
    let place = Place::new();
    let start = |port, goes| Going::start(&place.them, port, goes);
    let (sometimes, always) = (start(9001, Goes::AtOnceEveryOther), start(9002, Goes::AtOnce));
    let (refuses, never) = (start(9003, Goes::RefusesEveryOther), start(9004, Goes::Refuses));
    let all = [
        ("sometimes", &sometimes),
        ("always", &always),
        ("refuses", &refuses),
        ("never", &never),
    ];
    let clusters = all.map(|(name, going)| {
        // Each request has a connection that is made for it.
        let fields = format!(
            "endpoints: ['{}'], protocol: http2, connections: {{requests: 1}}",
            going.address
        );
        (name, fields)
    });
    let _proxy = place.start(&place.yaml(&clusters, ""));
    for n in 1..=20 {
        for (name, going) in [("sometimes", &sometimes), ("refuses", &refuses)] {
            let seen = place.ask_by(["GET", "POST"][n % 2], &format!("/{name}/x"));
            assert_eq!(seen.status, 200, "{name}: {seen:?}");
            assert_eq!(going.accepted() as usize, 2 * n, "{name}");
        }
    }
    for (name, going, tries) in [("always", &always, 4), ("never", &never, 2)] {
        let seen = place.ask(&format!("/{name}/x"), "");
        assert_eq!(seen.status, 503, "{name}: {seen:?}");
        assert!(
            seen.body.ends_with("reset reason: remote refused stream reset"),
            "{seen:?}"
        );
        assert!((2..=tries).contains(&going.accepted()), "{name}: {}", going.accepted());
    }
}
