//! Copies that would go on for ever, or are begun when their request is over.

use std::io::Write;
use std::net::TcpListener;
use std::thread;

use underpass_tests::wait;

use super::Scene;
use crate::endpoint::{Endpoint, Heard, Tries};

/// Answers for ever, and reads nothing.
fn endless(listener: TcpListener) {
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let answer = b"HTTP/1.1 200 OK\r\n\r\n";
                let mut sent = stream.write_all(answer);
                while sent.is_ok() {
                    sent = stream.write_all(&[b'x'; 64 * 1024]);
                }
            });
        }
    });
}

/// A mirror that reads no more than it likes can't put off its end.
#[test]
fn a_mirror_that_answers_for_ever_has_as_long_as_its_request() {
    // More than kernels take, and less than may wait.
    const BODY: usize = 12 << 20;
    let mirror = format!(
        ", timeout: 1s, mirrors: [{{cluster: copy, buffer_bytes: {}}}]",
        16 << 20
    );
    let scene = Scene::start(&mirror, endless);
    let mut client = scene.post(BODY);
    client.send(&vec![b'x'; BODY]);
    assert_eq!(client.answer(false).status, 200);
    scene.comes_to("timed_out", 1);
}

/// As Envoy's default for a route; nobody would end it else.
#[test]
fn a_mirror_of_a_route_without_a_time_out_has_fifteen_seconds() {
    let scene = Scene::start(", timeout: 0s, mirrors: [{cluster: copy}]", endless);
    assert_eq!(scene.place.ask("/web/", "").status, 200);
    wait::eventually(2 * wait::SOON, "it ends", || scene.count("timed_out") == 1);
}

/// Whose delay takes all of the time that it has, is not asked for any more, of nobody.
#[test]
fn a_request_whose_time_is_over_in_a_faults_delay_is_not_copied() {
    let heard = Heard::default();
    let forward =
        ", max_stream_duration: 500ms, fault: {delay_by_header: true, delay_percent: 100}, mirrors: [{cluster: copy}]";
    let scene = Scene::start(forward, drop);
    let _copy = Endpoint::heard(&scene.place.them, 9001, "m", Tries::default(), heard.clone());
    let ask = |path: &str, lines: &str| scene.place.ask(path, lines).status;
    let paths = || -> Vec<String> {
        let heard = heard.lock().expect("no panic");
        let lines = heard.iter().filter_map(|told| told.lines().nth(1).map(str::to_owned));
        lines.collect()
    };
    let soon = |path: &str, copies: usize| {
        assert_eq!(ask(path, "x-envoy-fault-delay-request: 10\r\n"), 200);
        wait::eventually(wait::SOON, "it is copied", || {
            paths().iter().filter(|line| line.contains("/soon")).count() == copies
        });
    };
    // Connections are there, by which one could be sent at once.
    soon("/web/soon", 1);
    for _ in 0..5 {
        assert_eq!(ask("/web/late", "x-envoy-fault-delay-request: 60000\r\n"), 504);
    }
    soon("/web/soon", 2);
    assert_eq!(paths(), ["GET /web/soon HTTP/1.1"; 2]);
    assert_eq!(scene.count("timed_out"), 0, "copies were begun");
    let of_none = r#""upstream_host":"-""#;
    wait::eventually(wait::SOON, "they are logged", || scene.place.logged(of_none) == 5);
}
