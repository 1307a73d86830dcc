//! Programs that use their sockets in one certain way each (see the binary `application`): what may be in the kernel is, and what it would
//! break is kept out, and both work.

use underpass_tests::Process;

use crate::place::{DEADLINE, Place};

const CONNECTIONS: usize = 4;
const STREAMED: usize = 5_000_000;
/// Of one that is to be in the kernel mostly: whose first moment is not quiet is looked at again after a while, and 5 MB are gone by then.
const STREAMED_LONG: usize = 40_000_000;
/// Of a client that reads nothing until it has written everything: what fits the buffers of TCP and of the echo.
const LITTLE: usize = 40_000;

#[test]
fn an_edge_triggered_event_loop_is_in_the_kernel() {
    in_kernel("edge", "edge", STREAMED_LONG);
}

#[test]
fn an_io_uring_server_on_non_blocking_sockets_is_in_the_kernel() {
    in_kernel("uring", "edge", STREAMED_LONG);
}

#[test]
fn an_io_uring_server_on_blocking_sockets_is_kept_out() {
    kept_out("uring-blocking", "edge", STREAMED);
}

#[test]
fn a_blocking_client_with_a_thread_for_each_direction_is_kept_out() {
    kept_out("edge", "duplex", STREAMED);
}

#[test]
fn a_blocking_server_with_a_thread_for_each_direction_is_kept_out() {
    kept_out("duplex", "edge", STREAMED);
}

#[test]
fn a_blocking_server_is_kept_out() {
    kept_out("threads", "edge", STREAMED);
}

#[test]
fn a_server_that_peeks_is_kept_out() {
    kept_out("peek", "edge", STREAMED);
}

#[test]
fn a_server_that_waits_for_whole_messages_is_kept_out() {
    kept_out("whole", "duplex", STREAMED);
}

#[test]
fn a_client_that_half_closes_is_kept_out() {
    kept_out("threads", "half-close", LITTLE);
    kept_out("edge", "half-close", LITTLE);
}

#[test]
fn a_server_that_splices_is_kept_out() {
    kept_out("splice", "edge", STREAMED);
}

#[test]
fn a_server_that_splices_non_blocking_sockets_is_kept_out() {
    keeps_out(
        Place::captured_with_splicing(8080, &[]),
        "splice-polling",
        "edge",
        STREAMED,
    );
}

#[test]
fn a_client_that_sends_without_a_copy_is_kept_out() {
    kept_out("edge", "zerocopy", STREAMED);
}

fn in_kernel(server: &str, client: &str, bytes: usize) {
    let what = format!("{client} to {server}");
    Place::captured(8080, &[]).iter().for_each(|place| {
        load(place, server, client, bytes);
        place.assert_in_kernel(&what, 0, CONNECTIONS);
    });
}

fn kept_out(server: &str, client: &str, bytes: usize) {
    keeps_out(Place::captured(8080, &[]), server, client, bytes);
}

fn keeps_out(place: Option<Place>, server: &str, client: &str, bytes: usize) {
    place.iter().for_each(|place| {
        load(place, server, client, bytes);
        place.assert_kept_out(&format!("{client} to {server}"), CONNECTIONS);
    });
}

fn load(place: &Place, server: &str, client: &str, bytes: usize) {
    let program = || Process::command(env!("CARGO_BIN_EXE_application"));
    let (at, connections, bytes_of_each) = (place.server.at(place.port), CONNECTIONS.to_string(), bytes.to_string());
    let mut serve = program();
    serve.args(["serve", server, &at.to_string()]);
    let _server = place.serve(serve);
    let mut load = program();
    load.args(["load", client, &place.relay().to_string(), &connections, &bytes_of_each]);
    let said = Process::run(place.world(), &place.client, "load", load, DEADLINE);
    assert!(said.contains(&format!("echoed {}", CONNECTIONS * bytes)), "{said}");
}
