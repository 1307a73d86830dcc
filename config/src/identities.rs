//! Who this node's pods are, as the configuration file says it: the trust domain, and where certificates come from.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use crate::settings::as_written;
use crate::{Identity, Text};

/// Identities and certificates. Read at the start; a change needs a restart. The files themselves may be replaced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct IdentitySettings {
    /// The trust domain of this mesh; workloads that name none are of it. Default `cluster.local`.
    pub trust_domain: Text,
    /// Other names of the same trust domain. Default: none.
    pub trust_domain_aliases: Vec<Text>,
    /// Certificates from files. If any are given, istiod's CA is not asked for others. Default: none.
    pub certificates: Vec<CertificateFile>,
    /// The file with roots that peers are believed by, as PEM, besides those that come with the CA's certificates.
    pub roots: Option<PathBuf>,
    /// The file with certificate revocation lists, as PEM. Default: none.
    pub revocations: Option<PathBuf>,
    /// How long certificates of istiod's CA should be valid. Default 24 h, as Istio's.
    #[serde(serialize_with = "as_written")]
    pub validity: Duration,
}

/// One identity's certificate in files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CertificateFile {
    /// Whose it is.
    pub identity: Identity,
    /// The certificate and its intermediates, as PEM.
    pub chain: PathBuf,
    /// Its private key, as PEM.
    pub key: PathBuf,
}

impl IdentitySettings {
    /// Default of [`IdentitySettings::validity`].
    pub const DEFAULT_VALIDITY: Duration = Duration::from_secs(24 * 60 * 60);
    /// What istiod gives at most (`MAX_WORKLOAD_CERT_TTL`).
    pub const LONGEST_VALIDITY: Duration = Duration::from_secs(90 * 24 * 60 * 60);
}

impl Default for IdentitySettings {
    fn default() -> Self {
        Self {
            trust_domain: "cluster.local".into(),
            trust_domain_aliases: Vec::new(),
            certificates: Vec::new(),
            roots: None,
            revocations: None,
            validity: Self::DEFAULT_VALIDITY,
        }
    }
}
