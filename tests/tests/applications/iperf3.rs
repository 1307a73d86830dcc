//! Streams as fast as they go: iperf3, towards the server and back.

use serde_json::Value;
use underpass_tests::Need;

use crate::place::{Place, command};

/// Every test connection of iperf3 begins with a cookie of this length (`COOKIE_SIZE`), which it doesn't count.
const COOKIE: u64 = 37;
const PROGRAM: Need = Need::Program("iperf3");
const STREAMS: u64 = 2;
/// The control connection moves less than this, a stream more.
const A_STREAM: u64 = 100_000;

#[test]
fn iperf3_measures_in_both_directions() {
    Place::relayed(5201, &[PROGRAM]).iter().for_each(measure);
}

#[test]
fn iperf3_measures_in_both_directions_between_captured_pods() {
    Place::captured(5201, &[PROGRAM]).iter().for_each(measure);
}

fn measure(place: &Place) {
    let _iperf = place.serve(command(&format!(
        "iperf3 -s -B {} -p {}",
        place.server.ip(),
        place.port
    )));
    let relay = place.relay();
    for (direction, key, cookies) in [("", "sent_bytes", STREAMS * COOKIE), ("-R", "received_bytes", 0)] {
        let earlier = place.lines(0).len();
        let (host, port) = (relay.ip(), relay.port());
        let report = place.run(&format!("iperf3 -c {host} -p {port} -t 1 -P {STREAMS} -J {direction}"));
        let report: Value = serde_json::from_str(&report).expect("JSON");
        let bytes = |side: &str| report["end"][side]["bytes"].as_u64().expect("a number");
        place.assert_in_kernel(&format!("iperf3 {direction}"), earlier, 1 + STREAMS as usize);
        let lines = place.lines(earlier + 1 + STREAMS as usize).split_off(earlier);
        let relayed: u64 = lines
            .iter()
            .map(|line| line.number(key))
            .filter(|bytes| *bytes > A_STREAM)
            .sum();
        let possible = bytes("sum_received") + cookies..=bytes("sum_sent") + cookies;
        assert!(possible.contains(&relayed), "{relayed} {key} should be in {possible:?}");
    }
}
