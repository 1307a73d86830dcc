//! Key-value stores that count their own bytes: Redis and memcached.

use std::fs;
use std::io::{BufRead, BufReader, Write};

use underpass_tests::Need;

use crate::place::{Place, command, number_after};

const REDIS: [Need; 2] = [Need::Program("redis-server"), Need::Program("redis-benchmark")];
const MEMCACHED: [Need; 3] = [
    Need::Program("memcached"),
    Need::Program("memccapable"),
    Need::Program("memcslap"),
];

#[test]
fn redis_serves_its_benchmark() {
    Place::relayed(6379, &REDIS).iter().for_each(serve_redis);
}

#[test]
fn redis_serves_its_benchmark_between_captured_pods() {
    Place::captured(6379, &REDIS).iter().for_each(serve_redis);
}

fn serve_redis(place: &Place) {
    let (address, port, directory) = (place.server.ip(), place.port, place.directory().display());
    let config = format!("bind {address}\nport {port}\ndir {directory}\nsave \"\"\nprotected-mode no\n");
    fs::write(place.path("redis.conf"), config).expect("write");
    let _redis = place.serve(command(&format!("redis-server {directory}/redis.conf")));

    let relay = place.relay();
    let benchmark = format!("redis-benchmark -h {} -p {} -q", relay.ip(), relay.port());
    place.run(&format!("{benchmark} -c 20 -n 20000 -P 4 -t set,get,lpush,lrange_100"));
    let small = place.lines(1).len();
    place.assert_in_kernel("redis-benchmark pipelines", 0, 1);
    place.run(&format!("{benchmark} -c 4 -n 500 -d 100000 -t set,get"));
    place.assert_in_kernel("redis-benchmark with 100 KB", small, 1);
    let (sent, received) = place.settled(1);
    // Asked directly: the question is counted, the answer not yet.
    let question = "INFO stats\r\n";
    let info = ask(place, question, |answer| {
        answer.contains("total_net_output_bytes") && answer.ends_with('\n')
    });
    assert_eq!(
        sent,
        number_after(&info, "total_net_input_bytes:") - question.len() as u64,
        "read by Redis"
    );
    assert_eq!(
        received,
        number_after(&info, "total_net_output_bytes:"),
        "written by Redis"
    );
}

#[test]
fn memcached_serves_its_conformance_test_and_load() {
    Place::relayed(11211, &MEMCACHED).iter().for_each(serve_memcached);
}

#[test]
fn memcached_serves_its_conformance_test_and_load_between_captured_pods() {
    Place::captured(11211, &MEMCACHED).iter().for_each(serve_memcached);
}

fn serve_memcached(place: &Place) {
    let user = if nix::unistd::geteuid().is_root() {
        "-u root"
    } else {
        ""
    };
    let (address, port) = (place.server.ip(), place.port);
    let _memcached = place.serve(command(&format!("memcached -l {address} -p {port} -U 0 {user}")));
    let stats = || {
        let stats = ask(place, "stats\r\n", |answer| answer.ends_with("END\r\n"));
        (
            number_after(&stats, "STAT bytes_read "),
            number_after(&stats, "STAT bytes_written "),
        )
    };
    let before = stats();
    let question = stats().0 - before.0;

    let relay = place.relay();
    let verdict = place.run(&format!("memccapable -h {} -p {}", relay.ip(), relay.port()));
    assert!(verdict.contains("All tests passed"), "{verdict}");
    let checks = place.lines(1).len();
    place.run(&format!(
        "memcslap -s {relay} --concurrency=4 --execute-number=5000 --test=get"
    ));
    place.assert_in_kernel("memcslap", checks, 1);
    let ((sent, received), after) = (place.settled(2), stats());
    // Between the two: the second question and its answer, and this question.
    assert_eq!(sent, after.0 - before.0 - 2 * question, "read by memcached");
    let written = after.1 - before.1;
    assert!(
        received <= written && written - received < 10_000,
        "{received} received, {written} written by memcached"
    );
}

/// Asks the store directly; reads until `complete`.
fn ask(place: &Place, question: &str, complete: impl Fn(&str) -> bool) -> String {
    let mut stream = BufReader::new(place.direct.connect(place.server.at(place.port)).expect("connect"));
    stream.get_mut().write_all(question.as_bytes()).expect("write");
    let mut answer = String::new();
    while !complete(&answer) {
        assert!(
            stream.read_line(&mut answer).expect("read") > 0,
            "the whole answer, not only: {answer}"
        );
    }
    answer
}
