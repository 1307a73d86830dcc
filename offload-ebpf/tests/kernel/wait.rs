//! Waiting for a condition with a deadline: the only way in which a test lets time pass.

use std::thread;
use std::time::{Duration, Instant};

/// Long enough for anything that is not itself a time-out, on a busy machine.
pub const SOON: Duration = Duration::from_secs(10);

/// Waits until `condition` holds. Panics with `what` when it doesn't in time.
#[track_caller]
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + SOON;
    while !condition() {
        assert!(Instant::now() < end, "not within {SOON:?}: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}
