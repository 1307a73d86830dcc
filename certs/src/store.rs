//! The certificates of a node: one for each identity that somebody holds a [`Lease`] of.
//!
//! * *Single-flight.* However many connections wait for an identity, it is asked for once.
//! * *Bounded.* At most a few requests are on their way; whoever restarts with a thousand identities must not knock
//!   over the CA that restarted with it. Who goes first: identities that a connection waits for, then those in use,
//!   then the rest; among equals the one that expires first.
//! * *Early and spread.* A certificate is renewed at 40 to 50 % of its life, at random, so that those that came
//!   together are not renewed together. When renewing fails there is half a life left to try again, and the old one
//!   stays in use until it expires, not an instant longer.
//!
//! Time is asked of the wall clock (validity is a matter of it), at least once a minute: a clock that jumps, or a
//! machine that slept, is noticed.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use thiserror::Error;
use tokio::sync::{Notify, watch};
use tokio::task::{self, JoinSet};
use tokio::time::Instant;
use underpass_config::Identity;

use crate::backoff::Backoff;
use crate::certificate::WorkloadCertificate;
use crate::slot::{Clock, Slot};
use crate::source::{CertificateSource, SourceError};
use crate::trust::Trust;

/// How the store behaves.
#[derive(Clone, Debug)]
pub struct StoreSettings {
    /// How many certificates may be on their way at once.
    pub in_flight: usize,
    /// How long to wait before an identity is asked for again.
    pub backoff: Backoff,
    /// The same after a refusal that will be repeated.
    pub refused_backoff: Duration,
    /// What time it is.
    pub clock: Clock,
}

impl Default for StoreSettings {
    fn default() -> Self {
        Self {
            in_flight: 8,
            backoff: Backoff::new(Duration::from_millis(500), Duration::from_secs(60)),
            refused_backoff: Duration::from_secs(300),
            clock: SystemTime::now,
        }
    }
}

/// Between a certificate that came and the next one, at least: by a clock that is nearly a certificate's whole life ahead, what comes is always about to
/// expire, and each identity would be asked for without end.
const SOONEST_RENEWAL: Duration = Duration::from_secs(1);

/// The longest sleep between two looks at the wall clock.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// The store. Clones are the same store.
#[derive(Clone)]
pub struct IdentityStore(Arc<Shared>);

struct Shared {
    source: Arc<dyn CertificateSource>,
    trust: Arc<Trust>,
    settings: StoreSettings,
    entries: Mutex<HashMap<Identity, Entry>>,
    /// Something may be due sooner than was thought.
    changed: Notify,
}

struct Entry {
    slot: Arc<Slot>,
    leases: usize,
    /// Leases that wait for a certificate.
    waiting: usize,
    in_flight: bool,
    /// `None`: at once.
    renew_at: Option<SystemTime>,
    /// After a failure, not before.
    retry_at: Option<Instant>,
    backoff: Backoff,
    last_error: Option<String>,
    /// Changes with every outcome.
    outcomes: watch::Sender<u64>,
}

/// There is no certificate.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("no certificate for {identity}: {why}")]
pub struct Unavailable {
    /// Whose.
    pub identity: Identity,
    /// What is known of it.
    pub why: String,
}

/// How one identity stands, for `underpass status`.
#[derive(Clone, Debug)]
pub struct IdentityStatus {
    /// Whose.
    pub identity: Identity,
    /// Its certificate, which may have expired.
    pub certificate: Option<Arc<WorkloadCertificate>>,
    /// When it is to be renewed.
    pub renew_at: Option<SystemTime>,
    /// Why the last try failed, if it did.
    pub last_error: Option<String>,
    /// How many hold it.
    pub leases: usize,
}

impl IdentityStore {
    /// A store that gets its certificates from `source` and tells `trust` of the roots that come with them. It works
    /// while the second of what is returned runs.
    pub fn new(
        source: Arc<dyn CertificateSource>,
        trust: Arc<Trust>,
        settings: StoreSettings,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let shared = Arc::new(Shared {
            source,
            trust,
            settings,
            entries: Mutex::default(),
            changed: Notify::new(),
        });
        (Self(shared.clone()), shared.serve())
    }

    /// Whom certificates of this store believe.
    pub fn trust(&self) -> &Arc<Trust> {
        &self.0.trust
    }

    /// Holds the certificate of `identity`: it is fetched and kept fresh until the last lease of it is dropped.
    pub fn hold(&self, identity: &Identity) -> Lease {
        let mut entries = self.0.lock();
        let entry = entries.entry(identity.clone()).or_insert_with(|| Entry {
            slot: Arc::new(Slot::new(identity.clone(), self.0.settings.clock)),
            leases: 0,
            waiting: 0,
            in_flight: false,
            renew_at: None,
            retry_at: None,
            backoff: self.0.settings.backoff.clone(),
            last_error: None,
            outcomes: watch::Sender::new(0),
        });
        entry.leases += 1;
        let slot = entry.slot.clone();
        drop(entries);
        self.0.changed.notify_one();
        Lease {
            slot,
            shared: self.0.clone(),
        }
    }

    /// All identities, in order of their names.
    pub fn status(&self) -> Vec<IdentityStatus> {
        let entries = self.0.lock();
        let mut all: Vec<_> = entries
            .values()
            .map(|entry| IdentityStatus {
                identity: entry.slot.identity().clone(),
                certificate: entry.slot.look(),
                renew_at: entry.renew_at,
                last_error: entry.last_error.clone(),
                leases: entry.leases,
            })
            .collect();
        drop(entries);
        all.sort_by_key(|status| status.identity.to_string());
        all
    }
}

/// Keeps the certificate of one identity fresh.
pub struct Lease {
    slot: Arc<Slot>,
    shared: Arc<Shared>,
}

impl Lease {
    /// Where the certificate is, for [`ServerTls`](crate::ServerTls) and [`ClientTls`](crate::ClientTls).
    pub fn slot(&self) -> &Arc<Slot> {
        &self.slot
    }

    /// Waits for the certificate, going before those that nobody waits for; at most for `patience`.
    pub async fn ready(&self, patience: Duration) -> Result<Arc<WorkloadCertificate>, Unavailable> {
        if let Some(certificate) = self.slot.valid() {
            return Ok(certificate);
        }
        let waiting = Waiting::enter(self);
        let mut outcomes = waiting.outcomes.clone();
        let arrived = async {
            loop {
                if let Some(certificate) = self.slot.valid() {
                    return certificate;
                }
                if outcomes.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        tokio::time::timeout(patience, arrived).await.map_err(|_| Unavailable {
            identity: self.slot.identity().clone(),
            why: self
                .last_error()
                .unwrap_or_else(|| format!("nothing came within {patience:?}")),
        })
    }

    fn last_error(&self) -> Option<String> {
        self.shared.lock().get(self.slot.identity())?.last_error.clone()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut entries = self.shared.lock();
        let Some(entry) = entries.get_mut(self.slot.identity()) else {
            return;
        };
        entry.leases -= 1;
        if entry.leases == 0 {
            entries.remove(self.slot.identity());
            drop(entries);
            self.shared.trust.forget(self.slot.identity());
        }
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Lease").field(self.slot.identity()).finish()
    }
}

/// Counts somebody who waits.
struct Waiting<'a> {
    lease: &'a Lease,
    outcomes: watch::Receiver<u64>,
}

impl<'a> Waiting<'a> {
    fn enter(lease: &'a Lease) -> Self {
        let mut entries = lease.shared.lock();
        // A lease is held, so the entry is there; without it, nothing would ever come out.
        let outcomes = match entries.get_mut(lease.slot.identity()) {
            Some(entry) => {
                entry.waiting += 1;
                entry.outcomes.subscribe()
            }
            None => watch::channel(0).1,
        };
        drop(entries);
        lease.shared.changed.notify_one();
        Self { lease, outcomes }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(entry) = self.lease.shared.lock().get_mut(self.lease.slot.identity()) {
            entry.waiting -= 1;
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, HashMap<Identity, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn serve(self: Arc<Self>) {
        let mut requests = JoinSet::new();
        // Whose each is, for those that panic.
        let mut on_their_way: HashMap<task::Id, Arc<Slot>> = HashMap::new();
        loop {
            while requests.len() < self.settings.in_flight.max(1) {
                let Some(slot) = self.most_urgent() else { break };
                let (source, asked) = (self.source.clone(), slot.clone());
                let request = requests.spawn(async move { source.obtain(asked.identity()).await });
                on_their_way.insert(request.id(), slot);
            }
            tokio::select! {
                Some(done) = requests.join_next_with_id() => {
                    let (id, result) = match done {
                        Ok(done) => done,
                        Err(panic) => (panic.id(), Err(SourceError::Key(format!("asking for it failed: {panic}")))),
                    };
                    if let Some(slot) = on_their_way.remove(&id) {
                        self.settle(&slot, result);
                    }
                }
                () = self.changed.notified() => {}
                () = tokio::time::sleep(self.until_next_due()) => {}
            }
        }
    }

    /// Takes the identity that is to be asked for next, if any is due.
    fn most_urgent(&self) -> Option<Arc<Slot>> {
        let (now, wall) = (Instant::now(), (self.settings.clock)());
        let mut entries = self.lock();
        let entry = entries
            .values_mut()
            .filter(|entry| !entry.in_flight && entry.due_in(now, wall).is_zero())
            .min_by_key(|entry| entry.urgency())?;
        entry.in_flight = true;
        Some(entry.slot.clone())
    }

    fn until_next_due(&self) -> Duration {
        let (now, wall) = (Instant::now(), (self.settings.clock)());
        let entries = self.lock();
        let waiting = entries.values().filter(|entry| !entry.in_flight);
        let soonest = waiting
            .map(|entry| entry.due_in(now, wall))
            .min()
            .unwrap_or(LONGEST_SLEEP);
        // What is due and yet not on its way waits for one of those that are, and is woken by it.
        if soonest.is_zero() {
            LONGEST_SLEEP
        } else {
            soonest.min(LONGEST_SLEEP)
        }
    }

    fn settle(&self, slot: &Arc<Slot>, result: Result<WorkloadCertificate, SourceError>) {
        let wall = (self.settings.clock)();
        let identity = slot.identity().clone();
        let result = result.and_then(|certificate| self.take(&certificate, wall).map(|()| certificate));
        let mut entries = self.lock();
        // Somebody may have given it up, and somebody else begun to hold it anew.
        let entry = entries
            .get_mut(&identity)
            .filter(|entry| Arc::ptr_eq(&entry.slot, slot));
        let Some(entry) = entry else {
            let held_by_others = entries.contains_key(&identity);
            drop(entries);
            if !held_by_others {
                self.trust.forget(&identity);
            }
            return;
        };
        entry.in_flight = false;
        match result {
            Ok(certificate) => {
                entry.renew_at = Some(renewal(&certificate, wall, self.source.ask_again_after()));
                entry.retry_at = None;
                entry.backoff.reset();
                entry.last_error = None;
                entry.slot.begin_anew();
                entry.slot.fill(Arc::new(certificate));
            }
            Err(error) => {
                let delay = if error.is_permanent() {
                    self.settings.refused_backoff
                } else {
                    entry.backoff.delay()
                };
                tracing::warn!(%identity, %error, retry_in = ?delay, "no certificate");
                entry.retry_at = Some(Instant::now() + delay);
                entry.last_error = Some(error.to_string());
            }
        }
        entry.outcomes.send_modify(|count| *count += 1);
    }

    /// Believes the roots that came with a certificate, if the certificate is good for anything.
    fn take(&self, certificate: &WorkloadCertificate, wall: SystemTime) -> Result<(), SourceError> {
        if certificate.not_after() <= wall {
            return Err(SourceError::Expired);
        }
        let roots = certificate.roots();
        self.trust
            .issued(certificate.identity(), roots)
            .map_err(|error| SourceError::Invalid {
                message: error.to_string(),
            })
    }
}

impl Entry {
    fn due_in(&self, now: Instant, wall: SystemTime) -> Duration {
        let until_renewal = match self.renew_at {
            None => Duration::ZERO,
            Some(at) => at.duration_since(wall).unwrap_or(Duration::ZERO),
        };
        let until_retry = self
            .retry_at
            .map_or(Duration::ZERO, |at| at.saturating_duration_since(now));
        until_renewal.max(until_retry)
    }

    /// The smallest goes first.
    fn urgency(&self) -> (u8, Option<SystemTime>) {
        let class = match self {
            Self { waiting: 1.., .. } => 0,
            _ if self.slot.is_used() => 1,
            _ => 2,
        };
        (class, self.slot.look().map(|certificate| certificate.not_after()))
    }
}

/// When to renew a certificate that came now: at 40 to 50 % of what is left of it, but of no more than its whole life
/// (a clock that runs behind sees more left).
fn renewal(certificate: &WorkloadCertificate, now: SystemTime, ask_again_after: Option<Duration>) -> SystemTime {
    let left = certificate.not_after().duration_since(now).unwrap_or_default();
    let whole = certificate
        .not_after()
        .duration_since(certificate.not_before())
        .unwrap_or_default();
    let renewal = left.min(whole).mul_f64(0.4 + fastrand::f64() / 10.0);
    now + ask_again_after
        .map_or(renewal, |often| often.min(renewal))
        .max(SOONEST_RENEWAL)
}
