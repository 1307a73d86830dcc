//! A relaying thread steps aside from a sender that it cannot catch up with.
//!
//! A sender's next message may pass the relay by once all that it sent before has been handed on. A sender that is stopped by a full window is woken
//! when its last bytes have left it, by the very call that reads those before them. On another core it takes longer to wake up than we take to read
//! and hand on the rest. On ours it runs at once, instead of us: the next message takes TCP as well, and so does every one after it (seen for
//! whole seconds: 160 µs for each 16 KiB, the receiver idle). The scheduler brings the two together, since one wakes the other. So a thread that
//! is outrun by a sender on its own core leaves that core to it for a while.

use std::cell::Cell;
use std::io;
use std::time::Duration;

use rustix::io::Errno;
use rustix::thread::{sched_getcpu, sched_setaffinity};
use tokio::time::Instant;

use crate::affinity;
use crate::offload::Tally;

/// Messages that were behind before something is done about it, if not [`PASSING`] times as many have passed by: the relay of a fresh stream is
/// caught up within a few.
const OUTRUN: u64 = 16;

/// Of a stream that its receiver does not hold up, far more pass by; of one that is parked again and again, some eight for each that comes to us.
const PASSING: u64 = 4;

/// How long a thread stays away from a core. Long against what it costs to move (some 50 µs), and against the pauses of a stream.
const AWAY: Duration = Duration::from_secs(1);

/// What the kernel had counted when we began to look.
#[derive(Debug, Default)]
pub(super) struct Pursuit {
    bypassed: u64,
    behind: u64,
}

impl Pursuit {
    /// Whether [`OUTRUN`] messages more were behind, and few passed by. Says so once for as many.
    pub(super) fn is_in_vain(&mut self, tally: &Tally) -> bool {
        let has_passed = tally.bypassed_messages.saturating_sub(self.bypassed) >= PASSING * OUTRUN;
        let is_outrun = tally.behind.saturating_sub(self.behind) >= OUTRUN;
        if has_passed || is_outrun {
            (self.bypassed, self.behind) = (tally.bypassed_messages, tally.behind);
        }
        is_outrun && !has_passed
    }
}

thread_local! {
    /// Until when this thread is away from a core.
    static UNTIL: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Has this thread, which runs a runtime, stay away from `core` for [`AWAY`], if that is where it is and there is another.
pub(super) fn leave(core: u32) {
    if sched_getcpu() as u32 == core
        && let Err(error) = step_aside(core as usize)
    {
        // Then it stays as slow as it is.
        tracing::debug!(core, "the relay cannot leave a sender's core: {error}");
    }
}

fn step_aside(core: usize) -> io::Result<()> {
    let mut others = *affinity::usual();
    others.unset(core);
    match sched_setaffinity(None, &others) {
        Ok(()) => {}
        // There is no other.
        Err(Errno::INVAL) => return Ok(()),
        Err(error) => return Err(error.into()),
    }
    tracing::debug!(core, "the relay leaves the core to a sender that outruns it");
    if UNTIL.replace(Some(Instant::now() + AWAY)).is_none() {
        tokio::spawn(come_back());
    }
    Ok(())
}

/// Ends the absence of the thread that it runs on, when it is time.
async fn come_back() {
    while let Some(until) = UNTIL.get() {
        if Instant::now() < until {
            tokio::time::sleep_until(until).await;
            continue;
        }
        UNTIL.set(None);
        if let Err(error) = sched_setaffinity(None, affinity::usual()) {
            tracing::warn!("a relaying thread cannot have all its cores back: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::thread::sched_getaffinity;

    use super::*;

    fn tally(bypassed_messages: u64, behind: u64) -> Tally {
        Tally {
            bypassed_messages,
            behind,
            ..Tally::default()
        }
    }

    #[test]
    fn a_pursuit_is_in_vain_when_many_messages_are_behind_and_few_pass_by() {
        let (mut pursuit, many) = (Pursuit::default(), PASSING * OUTRUN);
        assert!(!pursuit.is_in_vain(&tally(3, OUTRUN - 1)));
        assert!(!pursuit.is_in_vain(&tally(many, OUTRUN + 5)), "enough have passed");
        assert!(!pursuit.is_in_vain(&tally(many + 3, 2 * OUTRUN + 4)));
        assert!(pursuit.is_in_vain(&tally(many + 3, 2 * OUTRUN + 5)));
        assert!(!pursuit.is_in_vain(&tally(many + 3, 2 * OUTRUN + 6)), "said once");
        assert!(pursuit.is_in_vain(&tally(many + 3, 3 * OUTRUN + 5)), "and again");
    }

    #[tokio::test(start_paused = true)]
    async fn a_thread_leaves_a_core_for_a_while_and_comes_back() {
        let usual = sched_getaffinity(None).expect("affinity");
        if usual.count() < 2 {
            return;
        }
        let here = sched_getcpu();
        let elsewhere = (here as u32 + 1) % usual.count();
        leave(elsewhere);
        assert_eq!(
            sched_getaffinity(None).expect("affinity"),
            usual,
            "that is not where it is"
        );

        step_aside(here).expect("moved");
        assert_ne!(sched_getcpu(), here);
        tokio::time::sleep(AWAY / 2).await;
        step_aside(here).expect("moved");
        tokio::time::sleep(AWAY * 3 / 4).await;
        assert!(
            !sched_getaffinity(None).expect("affinity").is_set(here),
            "longer, since it was asked again"
        );
        tokio::time::sleep(AWAY).await;
        assert_eq!(sched_getaffinity(None).expect("affinity"), usual);
    }
}
