//! Whom we believe: the roots, what they have revoked, and the trust domains that are ours.
//!
//! The roots in force are the union of those configured and those that came with the certificates now in use. While a
//! mesh moves from one root to another, some of a node's certificates are of the old one and some of the new one, as
//! are its peers', and each is believed until the last certificate of its root is replaced. Configured roots and
//! revocations are replaced whole.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, TrustAnchor, UnixTime};
use thiserror::Error;
use tokio::sync::watch;
use underpass_config::{Identity, Text};
use webpki::{CertRevocationList, OwnedCertRevocationList};

use crate::certificate::WorkloadCertificate;
use crate::tls::VerifiedPeer;
use crate::verify::{PeerError, Usage, verify_chain};

/// The trust domains of the mesh. All of them are one: an identity of an alias is the same identity of the first.
#[derive(Clone, Debug)]
pub struct TrustDomains {
    own: Text,
    aliases: HashSet<Text>,
}

impl TrustDomains {
    /// Our own trust domain, and its other names.
    pub fn new(own: impl Into<Text>, aliases: impl IntoIterator<Item = Text>) -> Self {
        Self {
            own: own.into(),
            aliases: aliases.into_iter().collect(),
        }
    }

    /// Our own trust domain.
    pub fn own(&self) -> &str {
        &self.own
    }

    /// Whether it is ours.
    pub fn contains(&self, trust_domain: &str) -> bool {
        trust_domain == &*self.own || self.aliases.contains(trust_domain)
    }

    /// Whether the two are the same, the name of the trust domain aside.
    pub fn same(&self, one: &Identity, other: &Identity) -> bool {
        let same_domain = one.trust_domain == other.trust_domain
            || (self.contains(&one.trust_domain) && self.contains(&other.trust_domain));
        same_domain && one.namespace == other.namespace && one.service_account == other.service_account
    }
}

/// Why roots or revocations can't be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TrustError {
    /// A root is no certificate.
    #[error("root {position} can't be used: {why}")]
    Root {
        /// Which, from 0.
        position: usize,
        /// What is wrong with it.
        why: String,
    },
    /// A list is none.
    #[error("revocation list {position} can't be used: {why}")]
    Revocations {
        /// Which, from 0.
        position: usize,
        /// What is wrong with it.
        why: String,
    },
}

/// What is trusted at this moment; read without a lock by every handshake.
pub struct Trust {
    domains: TrustDomains,
    parts: Mutex<Parts>,
    bundle: ArcSwap<Bundle>,
    /// Counts the changes.
    changes: watch::Sender<u64>,
}

#[derive(Default)]
struct Parts {
    configured: Vec<CertificateDer<'static>>,
    revocations: Arc<[CertRevocationList<'static>]>,
    issued: HashMap<Identity, Vec<CertificateDer<'static>>>,
    /// The roots in force, each once, as they are encoded.
    in_force: BTreeSet<Vec<u8>>,
    /// The revocations in force, as they are encoded.
    lists: Vec<Vec<u8>>,
}

/// What one handshake is verified with.
#[derive(Default)]
pub(crate) struct Bundle {
    pub(crate) anchors: Vec<TrustAnchor<'static>>,
    pub(crate) revocations: Arc<[CertRevocationList<'static>]>,
}

impl Trust {
    /// Nobody is trusted yet.
    pub fn new(domains: TrustDomains) -> Self {
        Self {
            domains,
            parts: Mutex::default(),
            bundle: ArcSwap::default(),
            changes: watch::Sender::new(0),
        }
    }

    /// The trust domains.
    pub fn domains(&self) -> &TrustDomains {
        &self.domains
    }

    /// How many roots are trusted.
    pub fn roots(&self) -> usize {
        self.bundle.load().anchors.len()
    }

    /// Replaces the configured roots and revocations; if any can't be used, nothing changes.
    pub fn configure(
        &self,
        roots: Vec<CertificateDer<'static>>,
        revocations: &[CertificateRevocationListDer<'_>],
    ) -> Result<(), TrustError> {
        check(&roots)?;
        let parse = |(position, list): (usize, &CertificateRevocationListDer<'_>)| {
            OwnedCertRevocationList::from_der(list)
                .map(CertRevocationList::from)
                .map_err(|error| TrustError::Revocations {
                    position,
                    why: error.to_string(),
                })
        };
        let lists: Vec<Vec<u8>> = revocations.iter().map(|list| list.to_vec()).collect();
        let revocations = revocations.iter().enumerate().map(parse).collect::<Result<_, _>>()?;
        self.change(|parts| {
            parts.configured = roots;
            if parts.lists != lists {
                parts.revocations = revocations;
                parts.lists = lists;
            }
        });
        Ok(())
    }

    /// The roots that came with the certificate of `identity`, instead of those before.
    pub(crate) fn issued(&self, identity: &Identity, roots: &[CertificateDer<'static>]) -> Result<(), TrustError> {
        let known = |parts: &Parts| parts.issued.get(identity).is_some_and(|known| known == roots);
        if known(&self.parts()) {
            return Ok(()); // As after nearly every renewal.
        }
        check(roots)?;
        self.change(|parts| {
            parts.issued.insert(identity.clone(), roots.to_vec());
        });
        Ok(())
    }

    /// The certificate of `identity` is no longer used.
    pub(crate) fn forget(&self, identity: &Identity) {
        self.change(|parts| {
            parts.issued.remove(identity);
        });
    }

    /// Whether a peer would be let in by a handshake of this moment. Costs what verifying its chain does.
    ///
    /// A certificate that has expired *and* was revoked is said to be revoked: that is the worse of the two.
    ///
    /// # Errors
    /// Why not.
    pub fn still_believes(&self, peer: &VerifiedPeer, now: SystemTime) -> Result<(), PeerError> {
        let (chain, usage) = peer.chain();
        let verified = self.verify(chain, usage, now);
        if verified.as_ref().is_err_and(|error| !error.is_revocation()) {
            // When it was still in its time: only then are lists looked at.
            let then = self.verify(chain, usage, now.min(last_second(peer.not_after())));
            then.or_else(|error| if error.is_revocation() { Err(error) } else { Ok(()) })?;
        }
        verified?;
        match self.domains.contains(&peer.identity().trust_domain) {
            true => Ok(()),
            false => Err(PeerError::TrustDomain(peer.identity().clone())),
        }
    }

    /// Whether a certificate that we show was revoked. (Whether peers believe it otherwise is up to them.)
    pub fn has_revoked(&self, own: &WorkloadCertificate) -> bool {
        let at = last_second(own.not_after()).max(own.not_before());
        let revoked = |usage| {
            let verified = self.verify(&own.certified().cert, usage, at);
            verified.is_err_and(|error| error.is_revocation())
        };
        !self.bundle.load().revocations.is_empty() && (revoked(Usage::Client) || revoked(Usage::Server))
    }

    /// Tells, by a number that grows, of changes of what is trusted.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// How often what is trusted has changed.
    pub fn generation(&self) -> u64 {
        *self.changes.borrow()
    }

    fn verify(&self, chain: &[CertificateDer<'_>], usage: Usage, now: SystemTime) -> Result<(), PeerError> {
        let [end_entity, intermediates @ ..] = chain else {
            return Err(PeerError::Chain(webpki::Error::UnknownIssuer));
        };
        let now = UnixTime::since_unix_epoch(now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default());
        verify_chain(&self.bundle(), end_entity, intermediates, now, usage).map(drop)
    }

    pub(crate) fn bundle(&self) -> Arc<Bundle> {
        self.bundle.load_full()
    }

    fn parts(&self) -> MutexGuard<'_, Parts> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Parts)) {
        let mut parts = self.parts();
        let revocations = parts.revocations.clone();
        change(&mut parts);
        let all = parts.configured.iter().chain(parts.issued.values().flatten());
        let all: BTreeSet<Vec<u8>> = all.map(|der| der.to_vec()).collect();
        if all == parts.in_force && Arc::ptr_eq(&revocations, &parts.revocations) {
            return; // As when files are read again, or one of several certificates of one root is given up.
        }
        let anchors = all.iter().filter_map(|der| {
            let certificate = CertificateDer::from(&der[..]);
            let anchor = webpki::anchor_from_trusted_cert(&certificate).ok()?;
            Some(anchor.to_owned())
        });
        self.bundle.store(Arc::new(Bundle {
            anchors: anchors.collect(),
            revocations: parts.revocations.clone(),
        }));
        parts.in_force = all;
        self.changes.send_modify(|count| *count += 1);
    }
}

/// A moment at which something that ends at `end` is valid.
fn last_second(end: SystemTime) -> SystemTime {
    end.checked_sub(Duration::from_secs(1)).unwrap_or(end)
}

fn check(roots: &[CertificateDer<'static>]) -> Result<(), TrustError> {
    for (position, root) in roots.iter().enumerate() {
        webpki::anchor_from_trusted_cert(root).map_err(|error| TrustError::Root {
            position,
            why: error.to_string(),
        })?;
    }
    Ok(())
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trust")
            .field("domains", &self.domains)
            .field("roots", &self.roots())
            .finish_non_exhaustive()
    }
}
