//! The place of one identity's certificate: what connections read, and the store fills.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use arc_swap::ArcSwapOption;
use underpass_config::Identity;

use crate::certificate::WorkloadCertificate;

/// What time it is. Validity is a matter of the wall clock; tests have one of their own.
pub type Clock = fn() -> SystemTime;

/// One identity and its certificate, if it has one.
#[derive(Debug)]
pub struct Slot {
    identity: Identity,
    clock: Clock,
    certificate: ArcSwapOption<WorkloadCertificate>,
    used: AtomicBool,
}

impl Slot {
    pub(crate) fn new(identity: Identity, clock: Clock) -> Self {
        Self {
            identity,
            clock,
            certificate: ArcSwapOption::empty(),
            used: AtomicBool::new(false),
        }
    }

    /// Whose it is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// What time it is for this certificate.
    pub fn now(&self) -> SystemTime {
        (self.clock)()
    }

    /// The certificate, unless it has expired.
    pub fn valid(&self) -> Option<Arc<WorkloadCertificate>> {
        self.used.store(true, Ordering::Relaxed);
        self.certificate
            .load_full()
            .filter(|certificate| self.now() < certificate.not_after())
    }

    /// The certificate, whatever its state; this is not using it.
    pub(crate) fn look(&self) -> Option<Arc<WorkloadCertificate>> {
        self.certificate.load_full()
    }

    pub(crate) fn fill(&self, certificate: Arc<WorkloadCertificate>) {
        self.certificate.store(Some(certificate));
    }

    /// Whether it was asked for since it was last filled.
    pub(crate) fn is_used(&self) -> bool {
        self.used.load(Ordering::Relaxed)
    }

    pub(crate) fn begin_anew(&self) {
        self.used.store(false, Ordering::Relaxed);
    }
}
