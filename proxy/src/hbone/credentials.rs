//! The two certificates that a connection was made with, and whether they still stand.
//!
//! A handshake verifies once. A connection lasts for hours, and meanwhile a certificate of either side expires, is revoked, or its root is trusted no
//! more. From then on the connection takes no new streams: whoever still is who he was shows it in a new handshake. What becomes of
//! open ones say the settings `expired` and `revoked` (ztunnel and Envoy keep them).

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use underpass_certs::{Slot, Trust, VerifiedPeer, WorkloadCertificate};
use underpass_config::{HboneSettings, LapsedStreams};

/// The longest sleep between two looks at the wall clock, which may jump.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// What both sides have shown.
#[derive(Debug)]
pub struct Credentials {
    peer: VerifiedPeer,
    own: Arc<WorkloadCertificate>,
    /// Where newer ones of ours are.
    slot: Arc<Slot>,
    trust: Arc<Trust>,
    /// The generation of `trust` by which both were last found good.
    found_good: AtomicU64,
}

/// Why a connection takes no new streams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lapsed {
    /// The one word for logs and metrics.
    pub reason: &'static str,
    /// More about that.
    pub detail: String,
    is_revoked: bool,
}

impl Lapsed {
    /// Whether open streams are reset for it.
    pub fn resets(&self, settings: &HboneSettings) -> bool {
        let streams = if self.is_revoked {
            settings.revoked
        } else {
            settings.expired
        };
        streams == LapsedStreams::Reset
    }
}

impl fmt::Display for Lapsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason, self.detail)
    }
}

impl Credentials {
    /// Those of a handshake by `trust` that was just done. `own` was in `slot` when it began.
    pub fn new(peer: VerifiedPeer, own: Arc<WorkloadCertificate>, slot: Arc<Slot>, trust: Arc<Trust>) -> Self {
        Self {
            peer,
            own,
            slot,
            trust,
            // What is trusted may have changed since the handshake: the first look is a whole one.
            found_good: AtomicU64::new(u64::MAX),
        }
    }

    /// Who the peer is.
    pub fn peer(&self) -> &VerifiedPeer {
        &self.peer
    }

    /// Whether both certificates stand at this moment. Costs next to nothing while what is trusted is the same.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self) -> Result<(), Lapsed> {
        let now = SystemTime::now();
        let generation = self.trust.generation();
        let has_expired = now >= after(self.peer.not_after());
        if has_expired || self.found_good.load(Ordering::Relaxed) != generation {
            self.check_peer(now)?;
            if self.trust.has_revoked(&self.own) {
                return Err(self.own_is("own_revoked", "was revoked", true));
            }
            self.found_good.store(generation, Ordering::Relaxed);
        }
        if self.slot.now() >= after(self.own.not_after()) {
            return Err(self.own_is("own_expired", "has expired", false));
        }
        Ok(())
    }

    /// Resolves when they no longer do, for a reason that counts.
    pub async fn lapsed(&self, counts: impl Fn(&Lapsed) -> bool) -> Lapsed {
        let mut changes = self.trust.changes();
        loop {
            changes.borrow_and_update();
            if let Err(lapsed) = self.check()
                && counts(&lapsed)
            {
                return lapsed;
            }
            tokio::select! {
                // What is trusted lives as long as this.
                _ = changes.changed() => {}
                () = tokio::time::sleep(self.until_next_look()) => {}
            }
        }
    }

    fn check_peer(&self, now: SystemTime) -> Result<(), Lapsed> {
        self.trust.still_believes(&self.peer, now).map_err(|error| Lapsed {
            reason: error.reason(),
            detail: format!("{}: {error}", self.peer.identity()),
            is_revoked: error.is_revocation(),
        })
    }

    fn own_is(&self, reason: &'static str, what: &str, is_revoked: bool) -> Lapsed {
        Lapsed {
            reason,
            detail: format!("the certificate that was shown as {} {what}", self.own.identity()),
            is_revoked,
        }
    }

    fn until_next_look(&self) -> Duration {
        let now = SystemTime::now();
        let ends = [after(self.peer.not_after()), after(self.own.not_after())];
        let to_come = ends.into_iter().filter_map(|end| end.duration_since(now).ok());
        to_come
            .filter(|left| !left.is_zero())
            .min()
            .unwrap_or(LONGEST_SLEEP)
            .min(LONGEST_SLEEP)
    }
}

/// A certificate is valid in its last second too (RFC 5280, section 4.1.2.5).
fn after(last: SystemTime) -> SystemTime {
    last + Duration::from_secs(1)
}
