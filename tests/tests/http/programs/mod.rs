//! Unmodified programs as clients and as servers of HTTP, each client with each server: connections that are kept, large bodies both ways, lengths that are not said
//! beforehand, answers that come before the request has ended, trailers. The clients verify what they get.

mod curl;
mod place;

use std::path::{Path, PathBuf};

use underpass_tests::{Need, Process};

use place::{Place, Server, go_program};

/// What a client that verifies everything says at the end.
const ALL: &str = "all as it should be";

fn source(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("programs").join(path)
}

/// Has a client, given by its command line, ask each server for everything.
fn ask(needs: &[Need], line: &[String]) {
    let Some(place) = Place::start(needs) else {
        return;
    };
    for server in Server::ALL {
        let mut command = Process::command(&line[0]);
        command
            .args(&line[1..])
            .args([place.base(server), place.sha256(), server.deeds().to_owned()]);
        let said = place.run(&format!("client of {server:?}"), command);
        assert!(said.contains(ALL), "{server:?}: {said}");
    }
}

#[test]
fn python_is_served() {
    let client = source("python/client.py").display().to_string();
    ask(&[Need::Program("python3")], &["python3".to_owned(), client]);
}

#[test]
fn go_is_served() {
    for speaks in ["http1", "http2"] {
        ask(&[], &[go_program(), "ask".to_owned(), speaks.to_owned()]);
    }
}

#[test]
fn node_is_served() {
    let client = source("node/client.js").display().to_string();
    for speaks in ["http1", "http2"] {
        ask(
            &[Need::Program("node")],
            &["node".to_owned(), client.clone(), speaks.to_owned()],
        );
    }
}
