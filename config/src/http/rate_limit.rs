//! How many requests of a table pass (`extensions.filters.http.local_ratelimit.v3.LocalRateLimit`).
//!
//! **One idea.** A bucket is a point in time: that at which it would have been empty, were all that is in it filled in since. A token moves the point on by what one
//! takes to fill in, and there is one as long as the point does not come to lie in the future. So a bucket is one number, which all cores share, and what
//! passes is exact whoever asks at the same time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http::StatusCode;

use super::HeaderEdits;

/// Parts of a nanosecond that a bucket counts, so that what does not fill in after a whole number of them is exact to 2⁻⁴ ns a token.
const PARTS: u128 = 16;

/// A filter that lets so many requests pass.
#[derive(Debug)]
pub struct LocalRateLimit {
    /// How many.
    pub bucket: TokenBucket,
    /// What others are answered with. Default 429.
    pub status: StatusCode,
    /// Edits of that answer.
    pub response_headers: HeaderEdits,
}

/// How a bucket is filled (`type.v3.TokenBucket`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenRate {
    /// As many are in it at most, and at the beginning.
    pub max_tokens: u32,
    /// So many come in…
    pub tokens_per_fill: u32,
    /// …in this time, one after the other (as in Envoy, which fills continuously).
    pub fill_interval: Duration,
}

/// Tokens, one of which each request takes.
#[derive(Debug)]
pub struct TokenBucket {
    rate: TokenRate,
    began: Instant,
    /// What one token takes to fill in, in parts.
    token: u64,
    /// What all of them take.
    full: u64,
    /// When it would have been empty, in parts since `full` before it began.
    empty_at: AtomicU64,
}

impl TokenRate {
    /// What an empty bucket may take to be full again; more is no limit that anybody waits for.
    pub const LONGEST: Duration = Duration::from_secs(31_557_600);

    /// What one token takes, in parts; up, so that there are never more than said.
    fn token(&self) -> u128 {
        (self.fill_interval.as_nanos() * PARTS).div_ceil(u128::from(self.tokens_per_fill.max(1)))
    }

    /// Whether an empty bucket would be full in [`TokenRate::LONGEST`].
    pub fn fills_in_time(&self) -> bool {
        self.token() * u128::from(self.max_tokens) <= Self::LONGEST.as_nanos() * PARTS
    }
}

impl TokenBucket {
    /// A full one. One that would not be full in [`TokenRate::LONGEST`] has less in it.
    pub fn new(rate: TokenRate, now: Instant) -> Self {
        let longest = Self::parts(TokenRate::LONGEST);
        let parts = |parts: u128| u64::try_from(parts).unwrap_or(u64::MAX).min(longest);
        Self {
            rate,
            began: now,
            token: parts(rate.token()),
            full: parts(rate.token() * u128::from(rate.max_tokens)),
            empty_at: AtomicU64::new(0),
        }
    }

    /// How it is filled.
    pub fn rate(&self) -> TokenRate {
        self.rate
    }

    fn parts(duration: Duration) -> u64 {
        u64::try_from(duration.as_nanos() * PARTS).unwrap_or(u64::MAX)
    }

    /// Takes one, if there is one.
    pub fn take(&self, now: Instant) -> bool {
        let elapsed = Self::parts(now.saturating_duration_since(self.began));
        let now = elapsed.saturating_add(self.full);
        let taken = |empty_at: u64| {
            // What would not fit in was never filled in.
            let next = empty_at.max(now - self.full).checked_add(self.token)?;
            (next <= now).then_some(next)
        };
        let updated = self.empty_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken);
        updated.is_ok()
    }
}

impl LocalRateLimit {
    /// Whether another goes on with the same bucket after an update.
    pub(super) fn is_as(&self, other: &Self) -> bool {
        self.bucket.rate == other.bucket.rate
            && self.status == other.status
            && self.response_headers == other.response_headers
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;

    fn rate(max_tokens: u32, tokens_per_fill: u32, fill_interval: Duration) -> TokenRate {
        TokenRate {
            max_tokens,
            tokens_per_fill,
            fill_interval,
        }
    }

    fn taken(bucket: &TokenBucket, now: Instant) -> u32 {
        (0..1000).filter(|_| bucket.take(now)).count() as u32
    }

    #[test]
    fn as_many_pass_as_are_in_it_and_then_as_come_in() {
        let now = Instant::now();
        let bucket = TokenBucket::new(rate(10, 3, Duration::from_secs(1)), now);
        assert_eq!(taken(&bucket, now), 10);
        let after = |millis| now + Duration::from_millis(millis);
        assert_eq!(taken(&bucket, after(333)), 0);
        assert_eq!(taken(&bucket, after(334)), 1);
        // One third after another, not three at once.
        assert_eq!(taken(&bucket, after(1001)), 2);
        assert_eq!(
            taken(&bucket, after(3_600_000)),
            10,
            "it never holds more than its limit"
        );
        // Clocks of cores may differ.
        assert!(!bucket.take(after(1)));
    }

    #[test]
    fn no_rate_is_too_fast_or_too_slow_to_be_counted() {
        let now = Instant::now();
        let fast = TokenBucket::new(rate(5, u32::MAX, Duration::from_nanos(1)), now);
        assert_eq!(taken(&fast, now), 5);
        let slow = rate(u32::MAX, 1, TokenRate::LONGEST);
        assert!(!slow.fills_in_time() && rate(1, 1, TokenRate::LONGEST).fills_in_time());
        assert_eq!(taken(&TokenBucket::new(slow, now), now), 1);
        assert_eq!(
            taken(&TokenBucket::new(rate(0, 1, Duration::from_secs(1)), now), now),
            0
        );
    }

    #[test]
    fn who_asks_at_the_same_time_shares_it() {
        let now = Instant::now();
        let bucket = TokenBucket::new(rate(1000, 1, Duration::from_secs(3600)), now);
        let passed = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        passed.fetch_add(u32::from(bucket.take(now)), Ordering::Relaxed);
                    }
                });
            }
        });
        assert_eq!(passed.into_inner(), 1000);
    }
}
