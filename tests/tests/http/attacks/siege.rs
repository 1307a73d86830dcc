//! Watches, while an attack goes on, how much memory the proxy takes, and that others are served meanwhile.

use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use underpass_tests::wait::{self, Stop};

use super::Place;
use crate::client::{ask, get};

const MIB: u64 = 1 << 20;

/// Between two requests of the bystander.
const BETWEEN: Duration = Duration::from_millis(5);

/// Runs `attack` and asserts that the proxy grew by no more than `most` MiB, and answered everybody else.
pub(super) fn besieged<T>(place: &Place, name: &str, most: u64, attack: impl FnOnce() -> T) -> T {
    // What the first request needs is not the attack's.
    assert_eq!(ask(&place.client, place.at, &get("/first", "")).status, 200);
    let before = place.proxy.resident_bytes();
    let (stop, slowest) = (Stop::default(), Mutex::new((0, Duration::ZERO)));
    let mut peak = before;
    let outcome = thread::scope(|scope| {
        let guard = stop.when_dropped();
        let watched = scope.spawn(|| {
            let mut peak = before;
            while !stop.is_due() {
                peak = peak.max(place.proxy.resident_bytes());
                thread::sleep(Duration::from_millis(2));
            }
            peak
        });
        let bystander = scope.spawn(|| {
            // Once at least, be the attack ever so short.
            loop {
                let began = Instant::now();
                let seen = ask(&place.client, place.at, &get("/bystander", ""));
                assert_eq!(seen.header("x-told"), Some("GET /bystander 0"), "{seen:?}");
                let mut slowest = slowest.lock().expect("nobody panics");
                *slowest = (slowest.0 + 1, slowest.1.max(began.elapsed()));
                drop(slowest);
                if stop.is_due() {
                    break;
                }
                // A port is remembered for a minute after its connection.
                thread::sleep(BETWEEN);
            }
        });
        let outcome = attack();
        drop(guard);
        bystander.join().expect("others are served");
        peak = watched.join().expect("the proxy runs");
        outcome
    });
    let (served, slowest) = slowest.into_inner().expect("nobody panics");
    let grown = (peak - before) / MIB;
    println!("{name}: {grown} MiB more, {served} others served, the slowest in {slowest:?}");
    assert!(
        grown <= most,
        "{name}: the proxy grew by {grown} MiB; {most} are enough"
    );
    assert!(served > 0 && slowest < wait::soon(), "{name}: others wait {slowest:?}");
    outcome
}
