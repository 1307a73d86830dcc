//! How long to wait before trying again.

use std::time::Duration;

/// The delays between tries: each at most twice the one before, and each shortened by up to a half at random, so that
/// nodes that lost the same istiod at once do not come back at once.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    /// Delays from `first` on, doubling up to `longest`.
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self {
            first,
            longest,
            next: first,
        }
    }

    /// The next delay.
    pub fn delay(&mut self) -> Duration {
        let delay = self.next.min(self.longest);
        self.next = delay.saturating_mul(2);
        delay.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    /// What was tried has worked: the next delay is short again.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

/// From a quarter of a second to 15 seconds: a restart of istiod costs little, and a long outage of it nothing.
impl Default for Backoff {
    fn default() -> Self {
        Self::new(Duration::from_millis(250), Duration::from_secs(15))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_longest_are_jittered_and_begin_anew() {
        let second = Duration::from_secs(1);
        let mut backoff = Backoff::new(second, 5 * second);
        for whole in [1, 2, 4, 5, 5] {
            let delay = backoff.delay();
            assert!(
                delay <= whole * second && delay >= whole * second / 2,
                "{delay:?} of {whole} s"
            );
        }
        backoff.reset();
        assert!(backoff.delay() <= second);
        let delays: std::collections::HashSet<_> = (0..100).map(|_| Backoff::new(second, second).delay()).collect();
        assert!(delays.len() > 50, "{delays:?}");
    }
}
