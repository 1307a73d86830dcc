//! Waiting for a condition with a deadline: the only way in which a test lets time pass.

use std::thread;
use std::time::{Duration, Instant};

/// Long enough for anything that is not itself a time-out, on a busy machine.
const SOON: Duration = Duration::from_secs(10);

/// [`SOON`] on this machine. An emulated one says in `UNDERPASS_PATIENCE` how many times slower it is (`make test-kernels`).
pub fn soon() -> Duration {
    let times =
        std::env::var("UNDERPASS_PATIENCE").map_or(1, |text| text.parse().expect("UNDERPASS_PATIENCE: a number"));
    SOON * times
}

/// Waits until `condition` holds. Panics with `what` when it doesn't in time.
#[track_caller]
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = soon();
    let end = Instant::now() + deadline;
    while !condition() {
        assert!(Instant::now() < end, "not within {deadline:?}: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}
