//! Who the enrolled pods of this node are, and the certificates that show it.
//!
//! The one idea: **whoever serves a pod holds its identity.** While a pod is enrolled and the mesh knows its workload, a
//! [`Lease`] of that workload's identity is held here, so its certificate is fetched before the first connection wants
//! it and kept fresh for as long. Certificates of identities that no pod of this node has are never asked for.
//!
//! Who a pod is follows from its enrolment and the mesh, the two things that [`Source`](crate::source::Source) follows
//! from. Both changes come through the [`Node`](crate::node::Node), one at a time, and are followed here before they are
//! in force: whoever finds a pod in the snapshot finds its lease. Reading takes no lock.
//!
//! Where certificates come from is settled at the start: istiod's CA, or files. With neither there are no identities to
//! show, and the node speaks plain TCP.

use std::collections::HashMap;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use underpass_certs::{
    CertificateFiles, CertificateFilesByIdentity, CertificateSource, IdentityStatus, IdentityStore, IstioCa,
    IstioCaSettings, Lease, SourceError, StoreSettings, Trust, TrustDomains, TrustFiles,
};
use underpass_config::{Identity, IdentitySettings, IstiodSettings, Mesh, NodeSettings, Touched, WorkloadUid};

use crate::istiod;

/// The identities of this node's pods. Clones are the same.
#[derive(Clone)]
pub struct Identities {
    store: IdentityStore,
    /// By the cookie of the pod's namespace.
    pods: Arc<ArcSwap<HashMap<u64, Holder>>>,
}

/// What is held for one pod.
#[derive(Clone)]
struct Holder {
    uid: WorkloadUid,
    /// `None`: the mesh does not know the workload.
    lease: Option<Arc<Lease>>,
}

/// How the certificate of an identity stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CertificateState {
    /// There is none yet.
    Missing,
    /// It can be shown.
    Valid,
    /// There was one.
    Expired,
}

impl CertificateState {
    /// All states.
    pub const ALL: [Self; 3] = [Self::Missing, Self::Valid, Self::Expired];

    /// The state of this moment.
    pub fn of(status: &IdentityStatus) -> Self {
        match &status.certificate {
            None => Self::Missing,
            Some(certificate) if certificate.not_after() <= SystemTime::now() => Self::Expired,
            Some(_) => Self::Valid,
        }
    }

    /// The one word for the admin view and the metrics.
    pub fn word(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Valid => "valid",
            Self::Expired => "expired",
        }
    }
}

/// What has to be done all the time for certificates to stay fresh.
pub struct Upkeep {
    renewing: Pin<Box<dyn Future<Output = ()> + Send>>,
    files: TrustFiles,
    trust: Arc<Trust>,
}

#[allow(
    dead_code,
    reason = "HBONE is on its way: it is who asks for a pod's identity, and whom to believe"
)]
impl Identities {
    /// The identities that `node` asks for, if any, and their upkeep.
    pub fn new(node: &NodeSettings) -> Option<(Self, Upkeep)> {
        let settings = &node.identities;
        let source: Arc<dyn CertificateSource> = match (&settings.certificates[..], &node.istiod) {
            ([], None) => return None,
            ([], Some(istiod)) => Arc::new(istios_ca(istiod, node)),
            (_, _) => Arc::new(certificate_files(settings)),
        };
        let aliases = settings.trust_domain_aliases.iter().cloned();
        let trust = Arc::new(Trust::new(TrustDomains::new(settings.trust_domain.clone(), aliases)));
        let (store, renewing) = IdentityStore::new(source, trust.clone(), StoreSettings::default());
        let files = TrustFiles {
            roots: settings.roots.clone(),
            revocations: settings.revocations.clone(),
        };
        let upkeep = Upkeep {
            renewing: Box::pin(renewing),
            files,
            trust,
        };
        let pods = Arc::default();
        Some((Self { store, pods }, upkeep))
    }

    /// Whom peers are believed by.
    pub fn trust(&self) -> &Arc<Trust> {
        self.store.trust()
    }

    /// The identity of the enrolled pod in the namespace `cookie`; `None` while the mesh does not know its workload.
    #[allow(dead_code, reason = "HBONE is on its way: it is who asks")]
    pub fn of_pod(&self, cookie: u64) -> Option<Arc<Lease>> {
        self.pods.load().get(&cookie)?.lease.clone()
    }

    /// Holds the certificate of an identity that the proxy itself opens tunnels as.
    pub fn hold(&self, identity: &Identity) -> Lease {
        self.store.hold(identity)
    }

    /// The enrolled pods and who they are.
    pub fn pods(&self) -> Vec<(WorkloadUid, Option<Identity>)> {
        let pods = self.pods.load();
        let identity = |holder: &Holder| Some(holder.lease.as_ref()?.slot().identity().clone());
        let mut all: Vec<_> = pods
            .values()
            .map(|holder| (holder.uid.clone(), identity(holder)))
            .collect();
        all.sort_by(|(one, _), (other, _)| one.cmp(other));
        all
    }

    /// How each stands.
    pub fn status(&self) -> Vec<IdentityStatus> {
        self.store.status()
    }

    /// A pod is enrolled. The node calls it, one change at a time.
    pub(crate) fn pod_added(&self, cookie: u64, uid: &WorkloadUid, mesh: &Mesh) {
        let holder = Holder {
            uid: uid.clone(),
            lease: self.lease(uid, mesh),
        };
        self.change(|pods| drop(pods.insert(cookie, holder)));
    }

    /// A pod is enrolled no more.
    pub(crate) fn pod_removed(&self, cookie: u64) {
        self.change(|pods| drop(pods.remove(&cookie)));
    }

    /// The mesh becomes `mesh`. Costs what this node's pods do.
    pub(crate) fn mesh_changes(&self, touched: &Touched, mesh: &Mesh) {
        let pods = self.pods.load();
        let concerned: Vec<(u64, Holder)> = pods
            .iter()
            .filter(|(_, holder)| touched.workloads.contains(&holder.uid))
            .map(|(cookie, holder)| (*cookie, holder.clone()))
            .collect();
        if concerned.is_empty() {
            return;
        }
        self.change(|pods| {
            for (cookie, Holder { uid, .. }) in concerned {
                // The old lease goes after the new one is there: one of the same identity has the same certificate.
                let lease = self.lease(&uid, mesh);
                pods.insert(cookie, Holder { uid, lease });
            }
        });
    }

    fn lease(&self, uid: &WorkloadUid, mesh: &Mesh) -> Option<Arc<Lease>> {
        let workload = mesh.workload(uid)?;
        Some(Arc::new(self.store.hold(&workload.identity)))
    }

    fn change(&self, change: impl FnOnce(&mut HashMap<u64, Holder>)) {
        let mut pods = HashMap::clone(&self.pods.load());
        change(&mut pods);
        self.pods.store(Arc::new(pods));
    }
}

impl Upkeep {
    /// Loads the files with roots and revocations, and begins to keep certificates fresh, for as long as the runtime
    /// lives.
    ///
    /// # Errors
    /// When the files can't be used.
    pub async fn start(self) -> Result<(), SourceError> {
        let Self { renewing, files, trust } = self;
        if files.roots.is_some() || files.revocations.is_some() {
            files.load(&trust).await?;
            tokio::spawn(files.follow(trust));
        }
        tokio::spawn(renewing);
        Ok(())
    }
}

fn istios_ca(settings: &IstiodSettings, node: &NodeSettings) -> IstioCa {
    let ca = IstioCaSettings {
        validity: node.identities.validity,
        own_identity: node.own_identity(),
        ..IstioCaSettings::new(&*node.cluster_id)
    };
    IstioCa::new(istiod::reached_by(settings), ca)
}

fn certificate_files(settings: &IdentitySettings) -> CertificateFilesByIdentity {
    let files = settings.certificates.iter().map(|certificate| {
        let files = CertificateFiles {
            chain: certificate.chain.clone(),
            key: certificate.key.clone(),
        };
        (certificate.identity.clone(), files)
    });
    CertificateFilesByIdentity(files.collect())
}

impl fmt::Debug for Identities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pods = self.pods.load();
        let known: Vec<_> = pods.values().map(|holder| (&holder.uid, &holder.lease)).collect();
        f.debug_tuple("Identities").field(&known).finish()
    }
}

#[cfg(test)]
mod tests;
