//! Connections of HTTP/1.1 that nobody asks anything by, which the proxy holds without a codec.

use std::sync::mpsc::{self, Sender};

use h2::server;
use http::{Request, Response};
use tokio::runtime::Runtime;
use underpass_tests::{Host, Proxy, wait};

use super::place::Place;
use crate::client::Client;
use crate::endpoint::Endpoint;

const REQUEST: &[u8] = b"GET /web/ HTTP/1.1\r\nhost: a\r\n\r\n";

fn parked(proxy: &Proxy) -> u64 {
    proxy.metrics().sum("underpass_http_parked_connections", &[])
}

fn wait_until_parked(proxy: &Proxy) {
    wait::eventually(wait::SOON, "the connection is parked", || parked(proxy) == 1);
}

/// A proxy in front of an endpoint that answers everything; `more` is the node's.
fn start(place: &Place, more: &str) -> (Proxy, Endpoint) {
    let endpoint = Endpoint::start(&place.them, 9001, "e", Default::default());
    let clusters = [("web", format!("endpoints: ['{}']", endpoint.address))];
    let yaml = place
        .yaml(&clusters, "")
        .replace("  workers: 1\n", &format!("  workers: 1\n{more}"));
    (place.start(&yaml), endpoint)
}

fn ask(client: &mut Client) -> u16 {
    client.send(REQUEST);
    client.answer(false).status
}

#[test]
fn a_parked_connection_is_used_again_and_again() {
    let place = Place::new();
    let (proxy, _endpoint) = start(&place, "");
    let mut client = Client::connect(&place.client, place.ours());
    assert_eq!(ask(&mut client), 200);
    for _ in 0..2 {
        wait_until_parked(&proxy);
        // Its head comes in two pieces, the second when the first was read.
        let (first, second) = REQUEST.split_at(9);
        client.send(first);
        wait::eventually(wait::SOON, "it is served again", || parked(&proxy) == 0);
        client.send(second);
        assert_eq!(client.answer(false).status, 200);
        assert_eq!(ask(&mut client), 200);
    }
}

#[test]
fn who_goes_while_parked_is_gone() {
    let place = Place::new();
    let (proxy, _endpoint) = start(&place, "");
    let mut client = Client::connect(&place.client, place.ours());
    assert_eq!(ask(&mut client), 200);
    wait_until_parked(&proxy);
    drop(client);
    wait::eventually(wait::SOON, "no connection is left", || {
        parked(&proxy) == 0 && proxy.metrics().sum("underpass_connections_open", &[]) == 0
    });
}

#[test]
fn a_parked_connection_is_idle_and_ends_by_the_idle_time_out() {
    let place = Place::new();
    let (proxy, _endpoint) = start(&place, "  timeouts: {idle: 4s}\n");
    let mut client = Client::connect(&place.client, place.ours());
    assert_eq!(ask(&mut client), 200);
    wait_until_parked(&proxy);
    assert!(client.is_closed(), "it should have ended");
}

/// The mutant whose watch begins anew with each codec takes what woke the connection for understood, and waits for its end as long as for a request.
#[test]
fn a_head_that_wakes_a_parked_connection_and_does_not_end_is_given_up() {
    let place = Place::new();
    let (proxy, _endpoint) = start(&place, "  timeouts: {handshake: 3s}\n");
    let mut client = Client::connect(&place.client, place.ours());
    assert_eq!(ask(&mut client), 200);
    wait_until_parked(&proxy);
    client.send(&REQUEST[..9]);
    assert!(client.is_closed(), "it should have ended");
}

#[test]
fn a_drain_ends_parked_connections() {
    let place = Place::new();
    let (mut proxy, _endpoint) = start(&place, "");
    let mut client = Client::connect(&place.client, place.ours());
    assert_eq!(ask(&mut client), 200);
    wait_until_parked(&proxy);
    assert!(
        proxy.terminate(wait::SOON).success(),
        "the drain has nobody to wait for"
    );
    assert!(client.is_closed(), "it should have ended");
}

/// Answers each request at once, whatever of its body is to come, and tells of it.
fn answer_early(host: &Host, told: Sender<String>) -> (Runtime, std::net::SocketAddr) {
    let runtime = Runtime::new().expect("a runtime");
    let listener = host.listen(9001);
    let address = listener.local_addr().expect("a socket");
    listener.set_nonblocking(true).expect("a socket");
    runtime.spawn(async move {
        let listener = tokio::net::TcpListener::from_std(listener).expect("a socket");
        while let Ok((stream, _)) = listener.accept().await {
            let told = told.clone();
            tokio::spawn(async move {
                let mut unread: Vec<Request<h2::RecvStream>> = Vec::new();
                let Ok(mut connection) = server::handshake(stream).await else {
                    return;
                };
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    let _ = told.send(request.uri().path().to_owned());
                    let _ = respond.send_response(Response::new(()), true);
                    unread.push(request);
                }
            });
        }
    });
    (runtime, address)
}

/// The mutant that parks whatever of a body is to come takes the rest for a request.
#[test]
fn the_rest_of_a_body_that_comes_after_its_answer_is_no_request() {
    let place = Place::new();
    let (told, seen) = mpsc::channel();
    let (_runtime, address) = answer_early(&place.them, told);
    let proxy = place.start(&place.yaml(&[("web", format!("protocol: http2, endpoints: ['{address}']"))], ""));
    let hidden = "GET /web/hidden HTTP/1.1\r\nhost: a\r\n\r\n";
    let mut client = Client::connect(&place.client, place.ours());
    client.send(
        format!(
            "POST /web/first HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n",
            4 + hidden.len()
        )
        .as_bytes(),
    );
    client.send(b"body");
    assert_eq!(client.answer(false).status, 200);
    // Another connection is parked meanwhile, so that this one could have been too.
    let mut other = Client::connect(&place.client, place.ours());
    assert_eq!(ask(&mut other), 200);
    wait::eventually(wait::SOON, "the other is parked", || parked(&proxy) >= 1);
    client.send(hidden.as_bytes());
    client.end();
    client.ends();
    drop(other);
    let paths: Vec<String> = seen.try_iter().collect();
    assert_eq!(paths, ["/web/first", "/web/"]);
}
