//! Waiting for a condition with a deadline: the only way in which a test lets time pass.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Between two looks at a condition. Short against every deadline in the tests, long against the cost of a look.
const INTERVAL: Duration = Duration::from_millis(2);

/// Long enough for anything that is not itself a time-out, on a machine whose two cores are shared with a build; longer than the time-outs of ten seconds that a
/// proxy has by default, so that one of its own tells what went wrong.
pub const SOON: Duration = Duration::from_secs(20);

/// A deadline on this machine. An emulated one says in `UNDERPASS_PATIENCE` how many times slower it is (`make test-kernels`).
pub fn patient(deadline: Duration) -> Duration {
    let times =
        std::env::var("UNDERPASS_PATIENCE").map_or(1, |text| text.parse().expect("UNDERPASS_PATIENCE: a number"));
    deadline * times
}

/// [`SOON`] on this machine, for what takes a time-out of its own.
pub fn soon() -> Duration {
    patient(SOON)
}

/// Waits until `condition` holds. Panics with `what` when it doesn't within `deadline`.
#[track_caller]
pub fn eventually(deadline: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    some(deadline, what, || condition().then_some(()))
}

/// Waits until `look` finds something and returns it. Panics with `what` when there is nothing within `deadline`.
#[track_caller]
pub fn some<T>(deadline: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = patient(deadline);
    let end = Instant::now() + deadline;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "not within {deadline:?}: {what}");
        thread::sleep(INTERVAL);
    }
}

/// Tells threads in the background to stop; it does so when dropped too, so that a test that fails ends.
#[derive(Default)]
pub struct Stop(AtomicBool);

/// Stops what it was made from when dropped.
pub struct StopGuard<'a>(&'a Stop);

impl Stop {
    /// Whether it is time to stop.
    pub fn is_due(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// Stops when the guard is dropped.
    pub fn when_dropped(&self) -> StopGuard<'_> {
        StopGuard(self)
    }
}

impl Drop for StopGuard<'_> {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::SeqCst);
    }
}
