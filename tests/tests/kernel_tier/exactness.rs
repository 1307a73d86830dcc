//! Bytes, order, ends and counts of connections that are moved into the kernel and taken back at any byte.
//!
//! Random conversations run on several lanes while the settings and policy change under them: the tier goes on and off for the node and
//! for single ports, and policy cuts the connections of some lanes. `UNDERPASS_CYCLES` sets how often a connection is to have been moved,
//! taken back or cut, `UNDERPASS_SEED` the first conversation's seed.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use underpass_tests::{Config, wait};

use crate::lanes::{Lane, Tally};
use crate::place::{IMPATIENT, PORT, Place, setting};

const DEFAULT_CYCLES: u64 = 1000;
const LANES: u16 = 6;
/// Of them, those that policy cuts.
const DOOMED: u16 = 2;
/// The longest time between two changes.
const CHANGES_EVERY: Duration = Duration::from_millis(30);
/// Issue 5: the least part of all bytes that must have taken either way.
const LEAST_SHARE: f64 = 0.3;

#[test]
fn connections_of_pods_that_move_in_and_out_are_those_of_a_wire() {
    if let Some(place) = Place::captured(IMPATIENT) {
        converse(&place);
    }
}

#[test]
fn connections_of_a_plain_listener_that_move_in_and_out_are_those_of_a_wire() {
    if let Some(place) = Place::on_loopback(IMPATIENT) {
        converse(&place);
    }
}

/// The variant that is not preferred, which this kernel may have to fall back on.
const OTHER_VARIANT: &str = "verdict";

#[test]
fn connections_of_pods_in_the_other_variant_are_those_of_a_wire() {
    if let Some(place) = Place::captured_in(OTHER_VARIANT, IMPATIENT) {
        converse(&place);
    }
}

#[test]
fn connections_of_a_plain_listener_in_the_other_variant_are_those_of_a_wire() {
    if let Some(place) = Place::on_loopback_in(OTHER_VARIANT, IMPATIENT) {
        converse(&place);
    }
}

fn converse(place: &Place) {
    let first = setting("UNDERPASS_SEED").unwrap_or_else(|| fastrand::u64(..1 << 32));
    let cycles = setting("UNDERPASS_CYCLES").unwrap_or(DEFAULT_CYCLES);
    let (next, tally, stop) = (AtomicU64::new(first), Mutex::<Tally>::default(), wait::Stop::default());
    thread::scope(|scope| {
        let _stops_the_others = stop.when_dropped();
        let lanes = (0..LANES).map(|number| Lane::new(place, PORT + number, number < DOOMED, &tally));
        let lanes: Vec<_> = lanes
            .map(|lane| {
                let (next, stop) = (&next, &stop);
                scope.spawn(move || {
                    while !stop.is_due() {
                        lane.hold(next.fetch_add(1, Ordering::SeqCst));
                    }
                })
            })
            .collect();
        let mut taken_back = 0;
        loop {
            // A lane that has found something wrong says so when it is joined.
            if lanes.iter().any(|lane| lane.is_finished()) {
                break;
            }
            let counts = Counts {
                joined: place.joins(),
                taken_back,
                cut: tally.lock().expect("no holder panics").cut,
            };
            if counts.sum() >= cycles {
                println!("{counts:?}");
                counts.assert_are_mixed();
                break;
            }
            let next = AnyState::new();
            taken_back += next.takes_back(place);
            place.proxy.apply(&next.config(place));
            thread::sleep(CHANGES_EVERY.mul_f64(fastrand::f64()));
        }
    });
    let tally = tally.into_inner().expect("no lane panics");
    println!(
        "{cycles} cycles: {tally:?}, {:.1} % in the kernel",
        100.0 * tally.bytes.share()
    );
    println!("{}", place.proxy.offload());
    assert!(tally.cut > 0 && tally.denied > 0 && tally.whole > 0, "{tally:?}");
    let (share, either_way) = (tally.bytes.share(), LEAST_SHARE..=1.0 - LEAST_SHARE);
    assert!(
        either_way.contains(&share),
        "{share} of all bytes went in the kernel: {tally:?}"
    );
}

/// What was done to connections in mid-stream.
#[derive(Debug)]
struct Counts {
    joined: u64,
    taken_back: u64,
    cut: u64,
}

impl Counts {
    fn sum(&self) -> u64 {
        self.joined + self.taken_back + self.cut
    }

    /// Each of them often.
    fn assert_are_mixed(&self) {
        for count in [self.joined, self.taken_back, self.cut] {
            assert!(count >= self.sum() / 20, "{self:?}");
        }
    }
}

/// Whose connections may be in the kernel, and whether policy cuts some.
struct AnyState {
    enabled: bool,
    except: Vec<u16>,
    denies: bool,
}

impl AnyState {
    fn new() -> Self {
        let ports = PORT..PORT + LANES;
        Self {
            enabled: fastrand::u8(..16) > 0,
            except: ports.filter(|_| fastrand::u8(..8) == 0).collect(),
            denies: fastrand::u8(..5) == 0,
        }
    }

    /// How many connections that are in the kernel may not be any more.
    fn takes_back(&self, place: &Place) -> u64 {
        let connections = place.proxy.connections();
        let in_kernel = connections.iter().filter(|connection| connection["tier"] == "kernel");
        let ports =
            in_kernel.filter_map(|connection| connection["dst_addr"].as_str()?.rsplit_once(':')?.1.parse().ok());
        let out = ports.filter(|port: &u16| !self.enabled || self.except.contains(port));
        out.count() as u64
    }

    fn config(&self, place: &Place) -> Config {
        let except: Vec<String> = self.except.iter().map(u16::to_string).collect();
        let offload = format!(
            "enabled: {}, {IMPATIENT}, except: {{ports: [{}]}}",
            self.enabled,
            except.join(", ")
        );
        let config = place.config(&offload);
        if !self.denies {
            return config;
        }
        let doomed: Vec<String> = (PORT..PORT + DOOMED).map(|port| port.to_string()).collect();
        let matches = format!("destination_ports: [{}]", doomed.join(", "));
        let policy = format!("scope: GLOBAL, action: DENY, groups: [{{rules: [{{matches: [{{{matches}}}]}}]}}]");
        config.policy("shop/doom", policy)
    }
}
