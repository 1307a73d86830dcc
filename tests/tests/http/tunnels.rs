//! Tunnels: WebSockets by HTTP/1.1 and by HTTP/2 on either side, CONNECT. How they end, most of all.

mod client;
mod endpoint;
mod place;

use std::time::Duration;

use client::Client;
use endpoint::Saw;
use place::Place;

/// The two things that a client and an endpoint may speak.
const SPOKEN: [&str; 2] = ["h1", "h2"];

/// Each way to ask for a tunnel, with each way to be asked: a WebSocket by both, and a CONNECT that leads to TCP.
fn ways() -> Vec<(&'static str, &'static str)> {
    let mut ways = Vec::new();
    for client in SPOKEN {
        ways.extend(["h1", "h2", "tcp"].map(|endpoint| (client, endpoint)));
    }
    ways
}

/// A tunnel that both have finished is complete, and every byte of it is accounted for.
#[test]
fn bytes_pass_both_ways_until_both_have_finished() {
    for (client, endpoint) in ways() {
        let place = Place::start("");
        let mut tunnel = Client::open(&place, client, endpoint, "echo");
        for message in ["hello", "again, and more"] {
            tunnel.send(message.as_bytes());
            assert_eq!(tunnel.read(message.len()), message.as_bytes(), "{client} to {endpoint}");
        }
        tunnel.finish();
        assert!(tunnel.ends_complete(), "{client} to {endpoint}");
        assert_eq!(place.endpoint_saw(), Saw::Finished, "{client} to {endpoint}");
        let line = place.line();
        let status = if client == "h1" && endpoint != "tcp" { 101 } else { 200 };
        let sent = 20 + Client::asked(endpoint, "echo");
        for field in [
            format!(r#""response_code":{status}"#),
            r#""response_flags":"-""#.to_owned(),
            format!(r#""bytes_received":{sent},"#),
            r#""bytes_sent":20,"#.to_owned(),
        ] {
            assert!(
                line.contains(&field),
                "{client} to {endpoint}: {field} is not in {line}"
            );
        }
        let counted = [place.tunneled("received"), place.tunneled("sent")];
        assert_eq!(counted, [sent as u64, 20], "{client} to {endpoint}");
    }
}

/// What one side has finished, the other need not have.
#[test]
fn an_endpoint_that_has_finished_goes_on_to_receive() {
    for (client, endpoint) in ways() {
        let place = Place::start("");
        let mut tunnel = Client::open(&place, client, endpoint, "bye");
        assert_eq!(tunnel.read(3), b"bye", "{client} to {endpoint}");
        assert!(tunnel.ends_complete(), "{client} to {endpoint}");
        tunnel.send(b"still here");
        tunnel.finish();
        assert_eq!(place.endpoint_saw(), Saw::Finished, "{client} to {endpoint}");
        let line = place.line();
        let sent = format!(r#""bytes_received":{},"#, 10 + Client::asked(endpoint, "bye"));
        assert!(
            line.contains(&sent) && line.contains(r#""response_flags":"-""#),
            "{line}"
        );
    }
}

/// A tunnel that its endpoint breaks off never looks complete.
#[test]
fn a_tunnel_that_its_endpoint_breaks_off_is_broken_for_its_client() {
    for (client, endpoint) in ways() {
        let place = Place::start("");
        let mut tunnel = Client::open(&place, client, endpoint, "break");
        tunnel.send(b"x");
        assert!(tunnel.ends_broken(), "{client} to {endpoint}");
        assert!(
            place.line().contains(r#""response_flags":"UC""#),
            "{client} to {endpoint}"
        );
    }
}

/// Nor does one that its client breaks off; and nothing of it is left.
#[test]
fn a_tunnel_that_its_client_breaks_off_is_broken_for_its_endpoint() {
    for (client, endpoint) in ways() {
        let place = Place::start("");
        let mut tunnel = Client::open(&place, client, endpoint, "echo");
        tunnel.send(b"x");
        assert_eq!(tunnel.read(1), b"x");
        tunnel.break_off();
        assert_eq!(place.endpoint_saw(), Saw::Broken, "{client} to {endpoint}");
        assert!(
            place.line().contains(r#""response_flags":"DC""#),
            "{client} to {endpoint}"
        );
    }
}

/// Also while the endpoint does not read, and nothing can be handed on.
#[test]
fn a_client_that_goes_while_its_endpoint_is_stuck_is_noticed() {
    for (client, endpoint) in ways() {
        let place = Place::start("");
        let mut tunnel = Client::open(&place, client, endpoint, "stuck");
        tunnel.fill();
        tunnel.break_off();
        assert!(
            place.line().contains(r#""response_flags":"DC""#),
            "{client} to {endpoint}"
        );
    }
}

#[test]
fn a_tunnel_in_which_nothing_moves_ends_broken_after_its_idle_time() {
    for (client, endpoint) in ways() {
        let place = Place::start("idle_timeout: 1500ms, ");
        let mut tunnel = Client::open(&place, client, endpoint, "echo");
        // As long as something moves, it lasts.
        for _ in 0..4 {
            std::thread::sleep(Duration::from_millis(500));
            tunnel.send(b"x");
            assert_eq!(tunnel.read(1), b"x", "{client} to {endpoint}");
        }
        assert!(tunnel.ends_broken(), "{client} to {endpoint}");
        assert_eq!(place.endpoint_saw(), Saw::Broken, "{client} to {endpoint}");
        assert!(
            place.line().contains(r#""response_flags":"SI""#),
            "{client} to {endpoint}"
        );
    }
}

/// A policy that comes to deny finds the tunnel, and what led to the endpoint is gone with it.
#[test]
fn a_tunnel_does_not_outlive_a_policy_that_denies_it() {
    for (client, endpoint) in ways() {
        let place = Place::start("");
        let mut tunnel = Client::open(&place, client, endpoint, "echo");
        tunnel.send(b"x");
        assert_eq!(tunnel.read(1), b"x");
        place.deny();
        assert!(tunnel.ends_broken(), "{client} to {endpoint}");
        assert_eq!(place.endpoint_saw(), Saw::Broken, "{client} to {endpoint}");
        let line = place.line();
        let says = [
            r#""response_flags":"DENY""#,
            r#""response_code_details":"policy_revoked""#,
        ];
        assert!(
            says.iter().all(|said| line.contains(said)),
            "{client} to {endpoint}: {line}"
        );
    }
}

/// A drain leaves a tunnel its time, and no more.
#[test]
fn a_tunnel_lasts_through_a_drain_until_its_deadline() {
    for client in SPOKEN {
        let place = Place::start("");
        let mut tunnel = Client::open(&place, client, "h1", "echo");
        place.drain();
        tunnel.send(b"x");
        assert_eq!(tunnel.read(1), b"x", "{client}");
        assert!(tunnel.ends_broken(), "{client}");
        assert_eq!(place.endpoint_saw(), Saw::Broken, "{client}");
        assert!(place.line().contains(r#""response_flags":"DRAIN""#), "{client}");
    }
}

/// What an endpoint says last, before it takes nothing more, comes to its client, which is sending meanwhile.
#[test]
fn the_last_words_of_an_endpoint_that_breaks_off_come_to_its_client() {
    for (client, endpoint) in ways().into_iter().filter(|(_, endpoint)| *endpoint != "h2") {
        let place = Place::start("");
        let mut tunnel = Client::open(&place, client, endpoint, "last");
        assert_eq!(tunnel.read(1), b"?", "{client} to {endpoint}");
        place.while_stopped(|| {
            place.endpoint_breaks_off();
            tunnel.send(&[7; 1000]);
        });
        assert_eq!(
            tunnel.read(endpoint::LAST),
            vec![9; endpoint::LAST],
            "{client} to {endpoint}"
        );
        assert!(tunnel.ends_broken(), "{client} to {endpoint}");
        assert!(
            place.line().contains(r#""response_flags":"UC""#),
            "{client} to {endpoint}"
        );
    }
}

/// A tunnel has a place among the requests that its cluster may have, whatever it goes by.
#[test]
fn a_tunnel_counts_among_its_clusters_requests() {
    for (client, endpoint) in ways() {
        let place = Place::start_with("", "limits: {requests: 1}, ");
        let mut tunnel = Client::open(&place, client, endpoint, "echo");
        let target = match endpoint {
            "tcp" => "CONNECT web.test:80".to_owned(),
            _ => format!("/{endpoint}/echo"),
        };
        assert_eq!(Client::refused(&place, client, &target), 503, "{client} to {endpoint}");
        tunnel.finish();
        assert!(tunnel.ends_complete());
        // Its place is another's.
        place.line();
        Client::open(&place, client, endpoint, "echo");
    }
}

#[test]
fn what_a_route_does_not_allow_is_refused() {
    for (client, path, status) in [
        ("h1", "/plain/echo", 403),
        ("h2", "/plain/echo", 403),
        ("h1", "CONNECT nowhere.test:80", 404),
        ("h2", "CONNECT nowhere.test:80", 404),
    ] {
        let place = Place::start("");
        assert_eq!(Client::refused(&place, client, path), status, "{client} {path}");
    }
}
